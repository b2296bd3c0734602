"""What a run's numbers say in words, and which of them are the best."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jvq.report.tables import COLUMNS, columns, size_cell

Row = Mapping[str, Any]

MEASURES = ("top1", "correlation", "agreement")  #: what a sentence is about: the first that the row has


def tables_of(report: Mapping[str, Any]) -> dict[str, dict[str, Row]]:
    """By width the quantised rows by their names; of a run at one width, which its rows do not name, by ``""``."""
    found: dict[str, dict[str, Row]] = {}
    for row in report["rows"]:
        width, _, name = row["name"].partition(" ") if "runs" in report else ("", "", row["name"])
        if row["name"] != "float":
            found.setdefault(width if name else "", {})[name or width] = row
    return found


def is_main(report: Mapping[str, Any], row: Row) -> bool:
    """Whether the row is the report's own method, at whatever width."""
    return any(rows.get(report["method"]) is row for rows in tables_of(report).values())


def verdict(report: Mapping[str, Any]) -> list[str]:
    """A sentence or two; of a table over widths, a sentence for each of them."""
    plain, tables = report["rows"][0], tables_of(report)
    said = []
    for width, rows in tables.items():
        main = rows.get(report["method"])
        if main is not None:
            name, other = report["method"], baseline(rows, report["method"])
            text = f"{width}: " if width else ""
            text += kept(name, main, plain) + against(main, rows.get(other or ""), other or "")
            said.append(f"{text}{'; ' if width else '. It is '}{smaller(main, plain)}.")
    score = f" has {100 * plain['top1']:.2f} % top-1 and" if plain.get("top1") is not None else ""
    return said or [f"The float model{score} takes {size_cell(plain['bytes'])}."]


def measure_of(row: Row) -> str | None:
    """The name of what a row is measured by first."""
    return next((name for name in MEASURES if row.get(name) is not None), None)


def baseline(rows: Mapping[str, Row], main: str) -> str | None:
    """The name of what the main row is held against: min-max, else the best of the others."""
    others = {name: row for name, row in rows.items() if name != main}
    measure = measure_of(rows[main])
    if "minmax" in others or measure is None:
        return "minmax" if "minmax" in others else None
    return max(others, key=lambda name: others[name].get(measure) or 0.0, default=None)


def kept(name: str, row: Row, plain: Row) -> str:
    """How much of the float model's score is left: ``igq keeps 89.60 of 91.07 % top-1``."""
    measure = measure_of(row)
    if measure is None:
        return f"{name} was not measured"
    if measure == "agreement":
        return f"{name} decides as the float model does on {100 * row[measure]:.2f} % of the images, KL {row['kl']:.4f}"
    if measure == "correlation":
        return f"the maps of {name} correlate with the float model's at {row[measure]:.4f}"
    verb = "keeps" if row[measure] <= plain[measure] else "reaches"
    spread = f" ±{100 * row['spread'][measure]:.2f}" if measure in row.get("spread", {}) else ""
    form = f"{100 * row[measure]:.2f}{spread} {'of' if verb == 'keeps' else '% top-1, float has'}"
    return f"{name} {verb} {form} {100 * plain[measure]:.2f} %" + (" top-1" if verb == "keeps" else "")


def against(row: Row, other: Row | None, name: str) -> str:
    """The gain over another row and its price: ``, 3.69 points above minmax, for 13.6 % more bit-operations``."""
    measure = measure_of(row)
    if other is None or measure is None or other.get(measure) is None:
        return ""
    gain = row[measure] - other[measure]
    size = f"{abs(gain):.4f}" if measure == "correlation" else f"{100 * abs(gain):.2f} points"
    where = f"{size} {'above' if gain > 0 else 'below'} {name}" if gain else f"the same as {name}"
    costs = [_more(row["bops"], other["bops"], "bit-operations"), _more(row["bytes"], other["bytes"], "bytes")]
    price = " and ".join(cost for cost in costs if cost) or "the same size and work"
    return f", {where}, for {price}"


def smaller(row: Row, plain: Row) -> str:
    """Against the float model: ``5.6 times smaller than float and needs 56 times fewer bit-operations``."""
    size, work = plain["bytes"] / row["bytes"], plain["bops"] / row["bops"]
    return f"{size:.1f} times smaller than float and needs {work:.0f} times fewer bit-operations"


def best(rows: Sequence[Row]) -> list[set[str]]:
    """For each row the measures and costs at which none of the others is better; none where all are the same."""
    larger = {name: column.larger for name, column in columns(rows).items()} | {"bytes": False, "bops": False}
    found: list[set[str]] = [set() for _ in rows]
    for name, more in larger.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        if len({*values}) > 1:
            top = max(values) if more else min(values)
            for row, mine in zip(rows, found, strict=True):
                if row.get(name) == top:
                    mine.add(name)
    return found


def error_of(report: Mapping[str, Any]) -> str:
    """The standard error of the float model's top-1 over the images, in words; nothing where there is no top-1."""
    share, count = report["rows"][0].get("top1"), report["data"]["images"]
    if share is None or not count:
        return ""
    points = COLUMNS["top1"].factor * math.sqrt(share * (1 - share) / count)
    return f"A standard error of top-1 on {count:,} images is {points:.1f} points."


def _more(got: float | int, other: float | int, what: str) -> str:
    """``13.6 % more bit-operations``; nothing where there is less than a thousandth between them."""
    if not other or abs(got / other - 1) < 0.0005:
        return ""
    ratio = got / other
    if ratio >= 2:
        return f"{ratio:.1f} times the {what}"
    return f"{100 * abs(ratio - 1):.1f} % {'more' if ratio > 1 else 'fewer'} {what}"
