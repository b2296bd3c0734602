"""Several runs side by side: their rows, where their protocols differ, their sites, accuracy against cost."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import rich.box
from rich.table import Table as RichTable
from rich.text import Text

from jvq.report.page import scatter, verdict
from jvq.report.page.grid import Cell, Grid, Heading, Line, aligned
from jvq.report.page.rendering import rendered
from jvq.report.page.run import cells_of, says_of
from jvq.report.page.sites import ends, length
from jvq.report.reading import Run
from jvq.report.tables import COLUMNS, columns, row_cells, row_head
from jvq.report.terminal import Console

ALL = "all"  #: instead of a run: a row that every run has in the same way
COMPARABLE = {  # what numbers have to share, beside the protocol, and what they cannot be compared in otherwise
    "model": "the rows are of different models",
    "data": "scores on different data say nothing about each other",
    "images": "the rows were evaluated on different numbers of images",
    "calibration": "what the quantisers have seen differs",
}
FOUND = {"packed against fake quantisation", "integer inference"}  #: beside a protocol, but found by the run


class Entry(NamedTuple):
    """A line of the table: a row, the places of the runs that have it, and whether it is the method of one of them."""

    runs: tuple[int, ...]
    row: Mapping[str, Any]
    main: bool


def entries(runs: Sequence[Run]) -> list[Entry]:
    """Every row of every run; rows that several have in the same way once. All have the same columns."""
    names = dict.fromkeys(columns([row for run in runs for row in run.report["rows"]]))
    found: dict[str, Entry] = {}
    for i, run in enumerate(runs):
        for row in run.report["rows"]:
            old = found.setdefault(json.dumps(row, sort_keys=True), Entry((), {**names, **row}, False))
            main = old.main or verdict.is_main(run.report, row)
            found[json.dumps(row, sort_keys=True)] = Entry((*old.runs, i), old.row, main)
    return sorted(found.values(), key=lambda e: e.row["name"] != "float")


def owner(entry: Entry, runs: Sequence[Run]) -> str:
    """Whose row it is, in words."""
    return ALL if len(entry.runs) == len(runs) else ", ".join(runs[i].name for i in entry.runs)


def fields(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """What has to be known to compare the runs, by its name, with each run's value; None where a run has none."""
    reports = [run.report for run in runs]
    found: dict[str, list[str | None]] = {
        "model": [f"{r['model'].get('name')}, {r['model'].get('parameters'):,} parameters" for r in reports],
        "data": [f"{r['data'].get('name')} ({r['data'].get('split')})" for r in reports],
        "images": [f"{r['data'].get('images'):,}" for r in reports],
        "seed": [str(r["seed"]) for r in reports],
    }
    for name in dict.fromkeys(name for r in reports for name in r["protocol"]):
        found[name] = [None if (value := r["protocol"].get(name)) is None else str(value) for r in reports]
    found |= {"device": [r["device"] for r in reports], "commit": [_short(r.get("commit")) for r in reports]}
    for name in dict.fromkeys(name for r in reports for name in r["versions"]):
        found[f"version of {name}"] = [r["versions"].get(name) for r in reports]
    return found


def differing(known: Mapping[str, Sequence[str | None]]) -> dict[str, Sequence[str | None]]:
    """The fields of which not every run has the same value."""
    return {name: values for name, values in known.items() if len({*values}) > 1}


def warnings(runs: Sequence[Run]) -> list[str]:
    """In what the runs are not comparable; what their rows are about is first."""
    other = differing(fields(runs))
    names = [run.name for run in runs]
    said = []
    for field, why in COMPARABLE.items():
        if field in other:
            values = "; ".join(f"{n}: {v or 'none'}" for n, v in zip(names, other[field], strict=True))
            said.append(f"different {field}: {why} ({values})")
    protocol = {name for run in runs for name in run.report["protocol"]} - {*COMPARABLE} - FOUND
    both = [name for name in other if name in protocol and None not in other[name]]
    some = [name for name in other if name in protocol and None in other[name]]
    if both:
        said.append(f"different protocols, in: {'; '.join(both)}")
    if some:
        said.append(f"only some of the runs have: {'; '.join(some)}")
    return said


def comparable(runs: Sequence[Run]) -> bool:
    """Whether it makes sense to call a row of one run better than one of another."""
    return not any(field in differing(fields(runs)) for field in ("model", "data", "images"))


def row_grid(runs: Sequence[Run]) -> Grid:
    """A line for each run and row; the best of each column only where the runs are comparable."""
    found = entries(runs)
    rows = [entry.row for entry in found]
    quantised = [row for row in rows if row["name"] != "float"]
    best = iter(verdict.best(quantised) if comparable(runs) else [set[str]() for _ in quantised])
    lines = []
    for entry in found:
        name, *cells = cells_of(entry.row, columns(rows), () if entry.row["name"] == "float" else next(best))
        lines.append(Line([name, Cell(owner(entry, runs)), *cells], "main" if entry.main else ""))
    (model, *head), (_, *says) = row_head(rows), says_of(rows)
    return aligned((model, "run", *head), lines, ("", "", *says))


def field_grid(runs: Sequence[Run], known: Mapping[str, Sequence[str | None]]) -> Grid:
    """A line for each field, with each run's value; those that are not the first run's are marked."""
    head = [Heading("field"), *(Heading(run.name, "name") for run in runs)]
    lines = []
    for name, values in known.items():
        cells = (Cell("-" if v is None else v, "" if v == values[0] else "differs") for v in values)
        lines.append(Line([Cell(name), *cells]))
    return Grid(head, lines)


def site_grid(runs: Sequence[Run]) -> Grid | None:
    """A line for each operand: its error in each run, how many times the first run's that is, its bits and groups."""
    sites = [run.report["sites"] for run in runs]
    addresses = [*dict.fromkeys(address for found in sites for address in found)]
    if not addresses:
        return None
    low, high = ends([site["relative_error"] for found in sites for site in found.values()])
    lines = []
    for address in addresses:
        errors = [found[address]["relative_error"] if address in found else None for found in sites]
        bars = [
            Cell("") if e is None else Cell(f"{e:.2e}", "", "", length(e, low, high)) for e in errors
        ]  # absent from a run: float there, or another model
        ratios = [_ratio(e, errors[0]) for e in errors[1:]]
        widths = [_width(found.get(address)) for found in sites]
        lines.append(Line([Cell(address), *bars, *ratios, *(Cell(text) for text in widths)]))
    first, names = runs[0].name, [run.name for run in runs]
    head = ["address", *names, *(f"{name} / {first}" for name in names[1:]), *(f"bits x groups, {n}" for n in names)]
    says = ["", *["relative error"] * len(runs), *["quotient of the errors"] * (len(runs) - 1)]
    return aligned(head, lines, says)


def panels(runs: Sequence[Run]) -> tuple[str, list[scatter.Panel]]:
    """What scores mean, and the quantised rows' against their size and their bit-operations; none without scores."""
    found = [entry for entry in entries(runs) if entry.row["name"] != "float"]
    measure = next((m for m in verdict.MEASURES if found and all(e.row.get(m) is not None for e in found)), None)
    if measure is None:
        return "", []
    column = COLUMNS[measure]
    plain = {run.report["rows"][0].get(measure) for run in runs}
    level = column.factor * plain.pop() if len(plain) == 1 and None not in plain else None

    def points(cost: str, unit: float | int) -> list[scatter.Point]:
        return [
            scatter.Point(e.row[cost] / unit, column.factor * e.row[measure], e.runs[0], e.row["name"], e.main)
            for e in found
        ]

    size = scatter.panel(points("bytes", 1024), "size, KiB", level)
    return column.head, [size, scatter.panel(points("bops", 1e9), "bit-operations of one image, GBOPs", level)]


def html(runs: Sequence[Run]) -> str:
    """The whole comparison as one file."""
    known = fields(runs)
    other = differing(known)
    measure, drawn = panels(runs)
    return rendered(
        "comparison.html",
        {run.name: run.report for run in runs},
        title=", ".join(run.name for run in runs),
        runs=[(run.name, run.report, verdict.verdict(run.report)) for run in runs],
        warnings=warnings(runs),
        rows=row_grid(runs),
        marked=comparable(runs),
        legend=" ".join(c.says for c in columns([e.row for e in entries(runs)]).values()),
        other=field_grid(runs, other) if other else None,
        same=[(name, values[0]) for name, values in known.items() if name not in other],
        sites=site_grid(runs),
        measure=measure,
        panels=drawn,
        canvas=scatter,
    )


def show(runs: Sequence[Run], console: Console) -> None:
    """The rows, and the fields in which the runs differ, on the terminal."""
    found = entries(runs)
    model, *head = row_head([entry.row for entry in found])
    table = _table((model, "run", *head), 2)
    for entry in found:
        name, *cells = row_cells(entry.row)
        table.add_row(*map(Text, (name, owner(entry, runs), *cells)), style="bold" if entry.main else "")
    console.out.print(table)
    other = differing(fields(runs))
    if other:
        table = _table(("differs in", *(run.name for run in runs)), 1 + len(runs))
        for name, values in other.items():
            table.add_row(*map(Text, (name, *(v if v is not None else "-" for v in values))))
        console.out.print(table)
    for line in warnings(runs):
        console.say(f"warning: {line}")


def _table(head: Sequence[str], left: int) -> RichTable:
    """An empty table whose first ``left`` columns are texts."""
    table = RichTable(box=rich.box.SIMPLE_HEAD)
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="left" if i < left else "right", overflow="fold", no_wrap=i == 0)
    return table


def _short(commit: str | None) -> str | None:
    """The beginning of a commit's name, which tells it from others, and what follows the name."""
    return commit and commit[:10] + commit[40:]


def _ratio(error: float | int | None, first: float | int | None) -> Cell:
    if error is None or not first:
        return Cell("")
    return Cell(f"{error / first:.2f}", "worse" if error > 1.05 * first else "")


def _width(site: Mapping[str, Any] | None) -> str:
    if site is None:
        return ""
    return f"{site['bits']}" + ("" if site["groups"] is None else f" x {site['groups']}")
