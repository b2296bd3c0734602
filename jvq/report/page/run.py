"""The page of one run."""

from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jvq.report.page import verdict
from jvq.report.page.drawings import drawings
from jvq.report.page.grid import Cell, Grid, Line, aligned, grid
from jvq.report.page.rendering import rendered
from jvq.report.page.sites import site_grid, spread_of
from jvq.report.tables import SITE_TEXT, columns, legend, parts_of, row_cells, row_head, subject_of

WIDE, HIGH = 160, 28  #: of a course's drawing


class Course(NamedTuple):
    """What was logged of training: a number by step."""

    name: str
    first: str
    last: str
    points: str  # of a line in a box of WIDE x HIGH


def html(report: Mapping[str, Any], workdir: Path) -> str:
    """The whole report, with the figures and pictures that lie in ``workdir``, as one file."""
    return rendered(
        "run.html",
        report,
        report=report,
        title=f"{report['method']} on {report['model']['name']}",
        subject=subject_of(report),
        verdict=verdict.verdict(report),
        headline=headline(report),
        legend=legend(report),
        error=verdict.error_of(report),
        made=made(report),
        subjects=subjects(report),
        stages=stages(report["seconds"]),
        drawings=drawings(report, workdir),
        parts_of_run=[(part, grid(part.table) if part.table else None) for part in parts_of(report)],
        courses=courses(report.get("training") or {}),
        sites=site_grid(report) if report["sites"] else None,
        width=next(reversed(verdict.tables_of(report)), ""),
        sites_say=spread_of(report["sites"]) if report["sites"] else "",
        sites_text=SITE_TEXT,
    )


def headline(report: Mapping[str, Any]) -> Grid:
    """The table of the rows; the report's own method stands out, and the best of each column at each width."""
    rows, tables = report["rows"], [[*table.values()] for table in verdict.tables_of(report).values()]
    best = {row["name"]: names for table in tables for row, names in zip(table, verdict.best(table), strict=True)}
    first = {table[0]["name"] for table in tables}
    lines = []
    for row in rows:
        kinds = "main" if verdict.is_main(report, row) else "", "first" if row["name"] in first else ""
        lines.append(Line(cells_of(row, columns(rows), best.get(row["name"], ())), " ".join(filter(None, kinds))))
    return aligned(row_head(rows), lines, says_of(rows))


def cells_of(row: Mapping[str, Any], names: Iterable[str], best: Container[str]) -> list[Cell]:
    """The row's cells, of these columns and its costs; those of the ``best`` are marked."""
    name, *numbers = row_cells(row)
    found = [Cell(name)]
    for column, text in zip([*names, "bytes", "bops"], numbers, strict=True):
        found.append(Cell(text, "best" if column in best else "", str(row["bytes"]) if column == "bytes" else ""))
    return found


def says_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the columns of the rows' table say, for the headings."""
    return ["", *(column.says for column in columns(rows).values()), "weights, and what quantisers keep", "per image"]


def made(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the result was made, by name."""
    known = {"commit": report.get("commit"), "device": report["device"], "seed": report["seed"], **report["versions"]}
    return [(name, str(value)) for name, value in known.items() if value is not None]


def subjects(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was quantised, and on what it was evaluated, by name."""
    model, data = report["model"], report["data"]
    spec = (
        f"{k} {' x '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in (model.get("spec") or {}).items()
    )
    skipped = data.get("skipped") or []
    return [
        ("model", f"{model['name']} ({model['architecture']})"),
        ("parameters", f"{model['parameters']:,}"),
        ("shape", ", ".join(spec)),
        ("data", f"{data['name']} ({data['split']})"),
        ("images", f"{data['images']:,}"),
        *([("skipped", f"{len(skipped)}: {', '.join(map(str, skipped[:8]))}")] if skipped else []),
    ]


def stages(seconds: Mapping[str, float | int]) -> list[tuple[str, str, float]]:
    """Each stage with its seconds as text and as a share of all, in %."""
    whole = sum(seconds.values()) or 1.0
    return [(stage, f"{value:.1f}", 100 * value / whole) for stage, value in seconds.items()]


def courses(training: Mapping[str, Any]) -> list[Course]:
    """What was logged while the model was trained, by its name."""
    curves = training.get("curves") or {}
    steps = curves.get("step") or []
    return [
        Course(name, f"{values[0]:.4g}", f"{values[-1]:.4g}", polyline(steps, values))
        for name, values in curves.items()
        if name != "step" and values and len(values) == len(steps)
    ]


def polyline(x: Sequence[float | int], y: Sequence[float | int]) -> str:
    """The points of a line through (x, y), in a box of ``WIDE`` x ``HIGH`` with a margin of 2."""

    def placed(values: Sequence[float | int], room: float | int) -> list[float]:
        low, span = min(values), max(values) - min(values)
        return [2 + (room - 4) * ((v - low) / span if span else 0.5) for v in values]

    return " ".join(f"{a:.1f},{HIGH - b:.1f}" for a, b in zip(placed(x, WIDE), placed(y, HIGH), strict=True))
