"""The table, on the terminal and as JSON."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import rich.box
from rich.table import Table

from jvq.bench.timing import Spent, Spread
from jvq.bench.variants import BASE
from jvq.core import files

HEAD = ("model", "batch", "variant", "CPU ms", "quartiles", "speed", "wall ms", "quartiles", "speed", "weights MB")
Row = dict[str, Any]


def row(model: str, batch: int, variant: str, does: str, **numbers: Any) -> Row:
    """A row: what was run, and numbers or ``skipped`` with the reason."""
    return {"model": model, "batch": batch, "variant": variant, "does": does, **numbers}


def timed(times: Iterable[Spent], base: Iterable[Spent]) -> Row:
    """Spreads in milliseconds a call, and how many times as fast as ``base`` the medians are."""
    found: Row = {}
    for kind, own, other in zip(("cpu", "wall"), zip(*times, strict=True), zip(*base, strict=True), strict=True):
        spread = Spread.of(1e3 * t for t in own)
        found[f"{kind}_ms"] = spread._asdict()
        found[f"{kind}_speed"] = 1e3 * Spread.of(other).median / spread.median
    return found


def table(rows: Iterable[Row]) -> Table:
    """All rows; what was skipped says why."""
    shown = Table(box=rich.box.SIMPLE_HEAD)
    for i, name in enumerate((*HEAD, "peak MB", "load s", "what it is")):
        text = i in (0, 2, len(HEAD) + 2)
        shown.add_column(name, justify="left" if text else "right", no_wrap=i < len(HEAD), overflow="fold")
    last = None
    for r in rows:
        at = (r["model"], r["batch"])
        if last not in (None, at):
            shown.add_section()
        last = at
        shown.add_row(*_cells(r), style="bold" if r["variant"] == BASE else "")
    return shown


def _cells(r: Row) -> list[str]:
    first = [r["model"], str(r["batch"]), r["variant"]]
    if "skipped" in r:
        return [*first, *["-"] * (len(HEAD) - 1), f"skipped: {r['skipped']}"]
    cells = []
    for kind in ("cpu", "wall"):
        ms = r[f"{kind}_ms"]
        cells += [f"{ms['median']:.1f}", f"{ms['lower']:.1f}-{ms['upper']:.1f}", f"{r[f'{kind}_speed']:.2f}x"]
    peak = r.get("peak_bytes")
    more = [f"{r['bytes'] / 1e6:.1f}", "-" if peak is None else f"{peak / 1e6:.0f}", f"{r['load_s']:.1f}"]
    return [*first, *cells, *more, r["does"]]


def write(report: Mapping[str, Any], path: Path) -> None:
    """Writes the numbers as JSON, whole or not at all."""
    files.replace(path, json.dumps(report, indent=1))
