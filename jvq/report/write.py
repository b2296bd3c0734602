"""Writing a report: whole or not at all, and never over another one unasked."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvq.report.tables import markdown

SCHEMA = "jvq.report/1"
NAME = "report.json"


def claim(workdir: Path, overwrite: bool) -> None:
    """Makes the folder ready to be written to; ``ValueError`` where it cannot be, or holds a report already."""
    if (workdir / NAME).exists() and not overwrite:
        raise ValueError(f"workdir: {workdir} already holds a report; use another --workdir, or --overwrite")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".jvq-write-test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"workdir: {workdir} cannot be written to ({error.strerror})") from None


def write(report: Mapping[str, Any], workdir: Path) -> None:
    """``report.json`` and ``report.md`` into the folder."""
    text = {"report.md": markdown(report), NAME: json.dumps(report, indent=1, allow_nan=False) + "\n"}
    for name, content in text.items():
        _replace(workdir / name, content)


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
