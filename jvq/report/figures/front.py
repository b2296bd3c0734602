"""The rows of a table: their score against their size and against their bit-operations, with what nothing beats."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jvq.report.figures.canvas import BASE, GREY, INK, MAIN, THIRD, drawing, plain_number, spread
from jvq.report.tables import COLUMNS

SCORES = ("top1", "correlation", "agreement")  #: what is shown, the first that the rows have; larger is better
COSTS = {"bytes": ("size, KB", 1e3), "bops": ("bit-operations of one image, GBOPs", 1e9)}
LABELLED = 14  #: rows that all have their names; of more only those of a front, the main and the baseline


class Front(NamedTuple):
    """The rows [n] of a table."""

    names: Sequence[str]
    main: str
    measure: str  # the score's name in a row
    score: Float[np.ndarray, " n"]  # as the table writes it
    costs: Mapping[str, Float[np.ndarray, " n"]]  # "bytes" and "bops"


def front_of(rows: Sequence[Mapping[str, Any]], main: str) -> Front | None:
    """What the figure shows of a report's rows; None where they have no score, or there is nothing to compare."""
    measure = next((m for m in SCORES if all(row.get(m) is not None for row in rows)), None)
    if measure is None or len(rows) < 2:
        return None
    score = np.array([COLUMNS[measure].factor * row[measure] for row in rows])
    costs = {name: np.array([row[name] / unit for row in rows], float) for name, (_, unit) in COSTS.items()}
    return Front([row["name"] for row in rows], main, measure, score, costs)


def undominated(cost: Float[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which points no other beats: none costs no more and scores no less, and is better in one of the two."""
    no_worse = (cost[None, :] <= cost[:, None]) & (score[None, :] >= score[:, None])
    better = (cost[None, :] < cost[:, None]) | (score[None, :] > score[:, None])
    return ~(no_worse & better).any(axis=1)


def draw(path: Path, data: Front) -> None:
    """Writes the figure: a panel a cost, on a log axis."""
    best = {name: undominated(cost, data.score) for name, cost in data.costs.items()}
    shown = [
        i
        for i, name in enumerate(data.names)
        if len(data.names) <= LABELLED or name in (data.main, "float", "minmax") or any(b[i] for b in best.values())
    ]
    low, high = float(data.score.min()), float(data.score.max())
    room = 0.12 * (high - low) or 1.0
    with drawing(path, 9.0, max(3.4, 0.17 * len(shown) + 1.4)) as figure:
        for panel, (name, cost) in zip(figure.subplots(1, 2), data.costs.items(), strict=True):
            _panel(panel, data, cost, best[name])
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(lambda x, _: plain_number(x))
            panel.xaxis.set_minor_formatter(lambda x, _: plain_number(x) if f"{x:.0e}"[0] in "25" else "")
            panel.tick_params(axis="x", which="minor", labelsize=7)
            panel.set_ylim(low - room, high + room)
            panel.set_xlabel(COSTS[name][0])
            panel.set_ylabel(COLUMNS[data.measure].head)
            _names(panel, data, cost, best[name], shown, (low - room, high + room))


def _panel(panel: Any, data: Front, cost: Float[np.ndarray, " n"], best: Bool[np.ndarray, " n"]) -> None:
    """Draws the points, and the front as steps."""
    order = np.lexsort((-data.score, cost))
    x, y = cost[order][best[order]], data.score[order][best[order]]
    panel.step(x, y, where="post", color=THIRD, linewidth=1.4, alpha=0.8, zorder=1)
    for i, name in enumerate(data.names):
        colour = MAIN if name == data.main else BASE if name.split(" ")[-1] == "minmax" else GREY
        fill = colour if best[i] else "none"
        panel.plot(
            cost[i],
            data.score[i],
            marker="s" if name == "float" else "o",
            markersize=6 if name == data.main else 4.5,
            color=colour,
            markerfacecolor=fill,
            linestyle="none",
            zorder=3,
        )


def _names(
    panel: Any,
    data: Front,
    cost: Float[np.ndarray, " n"],
    best: Bool[np.ndarray, " n"],
    shown: list[int],
    ends: tuple[float, float],
) -> None:
    """Writes the names at the right edge, apart from each other, each with a thin line to its point."""
    low, high = ends
    places = spread([(data.score[i] - low) / (high - low) for i in shown], 0.058, 0.02, 0.98)
    for i, place in zip(shown, places, strict=True):
        panel.annotate(
            data.names[i],
            (cost[i], data.score[i]),
            (1.04, place),
            textcoords="axes fraction",
            fontsize=7,
            color=INK,
            weight="bold" if data.names[i] == data.main else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "alpha": 0.8, "shrinkB": 3},
        )


def caption(data: Front) -> str:
    """What is seen, with this run's numbers."""
    parts: list[str] = []
    for name, cost in data.costs.items():
        best = undominated(cost, data.score)
        names = [str(data.names[i]) for i in np.argsort(cost, kind="stable") if best[i]]
        what = "size" if name == "bytes" else "bit-operations"
        listed = ", ".join(names) if len(names) <= 6 else f"{len(names)} of {len(best)} rows"
        parts.append(f"against {what} {listed}")
    head = COLUMNS[data.measure].head
    said = f"Filled and joined: the rows that no other beats, {'; '.join(parts)}."
    if data.main in data.names and "float" in data.names:
        i, f = data.names.index(data.main), data.names.index("float")
        size = data.costs["bytes"]
        said += f" {data.main} has {head} {plain_number(data.score[i])} at {plain_number(size[i])} KB, float "
        said += f"{plain_number(data.score[f])} at {plain_number(size[f])} KB."
    return said
