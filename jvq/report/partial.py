"""The rows of a run that has not ended: what an interruption leaves to look at, and nobody takes for a report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jvq.core import files
from jvq.report.tables import row_cells, row_head

PARTIAL = "jvq.partial/1"  #: the schema; no report has it
JSON, TEXT = "report.partial.json", "report.partial.md"


def write_partial(
    workdir: Path, method: str, model: str, wanted: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Writes ``report.partial.json`` and ``report.partial.md`` with the rows that are finished, of the ``wanted``."""
    there = [row["name"] for row in rows]
    missing = [name for name in wanted if name not in there]
    note = f"The same command with --workdir={workdir} --resume goes on behind them."
    data = {"schema": PARTIAL, "partial": True, "method": method, "model": model, "missing": missing}
    said = "Not finished: " + (", ".join(missing) or "what follows the rows (sites, pictures, the packed model)") + "."
    cells = [row_head(rows), *map(row_cells, rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    rule = "|" + " --- |" * len(cells[0])
    text = [f"# Partial: {method} on {model}", "", said, note, "", lines[0], rule, *lines[1:], ""]
    files.replace(workdir / JSON, json.dumps({**data, "resume": note, "rows": rows}, indent=1) + "\n")
    files.replace(workdir / TEXT, "\n".join(text))


def clear_partial(workdir: Path) -> None:
    """Removes them: there is a whole report."""
    for name in (JSON, TEXT):
        (workdir / name).unlink(missing_ok=True)
