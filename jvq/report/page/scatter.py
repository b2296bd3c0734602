"""Points of several runs against a logarithmic cost, placed on a canvas for a template to draw."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jvq.report.groups import pareto

WIDE, HIGH = 460, 320  #: of a panel, in units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44  #: margins


class Point(NamedTuple):
    """What is drawn: a model's cost and score, whose run it is of, what it is called, whether it stands out."""

    cost: float
    score: float
    run: int
    name: str
    main: bool


class Mark(NamedTuple):
    """A point on the canvas."""

    x: float
    y: float
    point: Point


class Label(NamedTuple):
    """A text on the canvas, to the right of its place, or with ``anchor`` "end" to the left of it."""

    x: float
    y: float
    text: str
    anchor: str


class Tick(NamedTuple):
    """A place on an axis and its text."""

    at: float
    text: str


class Panel(NamedTuple):
    """Marks, the Pareto front as the points of a line, ticks below and at the left, a level, and what costs are."""

    marks: Sequence[Mark]
    labels: Sequence[Label]
    front: str
    below: Sequence[Tick]
    beside: Sequence[Tick]
    level: float | None
    label: str


def panel(points: Sequence[Point], label: str, level: float | int | None = None) -> Panel:
    """The points, more of the score higher up; ``level`` is the float model's score."""
    costs, scores = [p.cost for p in points], [p.score for p in points] + ([] if level is None else [level])
    low, high = math.log10(min(costs)), math.log10(max(costs))
    pad = max(0.08 * (high - low), 0.06)
    low, high = low - pad, high + pad
    bottom, top = min(scores), max(scores)
    room = 0.07 * (top - bottom) or 1.0
    bottom, top = bottom - room, top + room

    def across(cost: float | int) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * (math.log10(cost) - low) / (high - low)

    def up(score: float | int) -> float:
        return HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (score - bottom) / (top - bottom)

    marks = [Mark(round(across(p.cost), 1), round(up(p.score), 1), p) for p in points]
    front = zip(*pareto([(p.cost, p.score) for p in points], True), strict=True)
    return Panel(
        marks,
        labels(marks),
        stairs([(across(c), up(s)) for c, s in front], WIDE - RIGHT),
        [Tick(round(across(t), 1), f"{t:g}") for t in decades(10**low, 10**high)],
        [Tick(round(up(t), 1), f"{t:g}") for t in ticks(bottom, top)],
        None if level is None else round(up(level), 1),
        label,
    )


def labels(marks: Sequence[Mark]) -> list[Label]:
    """The names of what stands out, beside it and not over each other; of what finds no room, none."""
    found: list[Label] = []
    boxes = [(m.x - 5, m.x + 5, m.y) for m in marks]
    for m in (m for m in marks if m.point.main):
        wide = 7.2 * len(m.point.name)
        places = [(m.x + 9, m.y + 4, "start"), (m.x - 9, m.y + 4, "end"), (m.x + 7, m.y - 8, "start")]
        places += [(m.x + 7, m.y + 16, "start"), (m.x - 7, m.y - 8, "end"), (m.x - 7, m.y + 16, "end")]
        for x, y, anchor in places:
            left = x if anchor == "start" else x - wide
            inside = left >= LEFT and left + wide <= WIDE and TOP <= y <= HIGH - BOTTOM
            if inside and all(left > b or left + wide < a or abs(y - 4 - at) > 10 for a, b, at in boxes):
                found.append(Label(round(x, 1), round(y, 1), m.point.name, anchor))
                boxes.append((left, left + wide, y - 4))
                break
    return found


def stairs(points: Sequence[tuple[float, float]], end: float | int) -> str:
    """The points of a line of steps through (x, y), on to ``end``: a dearer model is never needed for less."""
    found = [points[0]]
    for x, y in [*points[1:], (end, points[-1][1])]:
        found += [(x, found[-1][1]), (x, y)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in found)


def ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers between the two."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Numbers 1, 2, 5, 10, ... between the two; round ones where there would be fewer than two of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{s * 10.0**p:.10g}") for p in powers for s in (1, 2, 5) if low <= s * 10.0**p <= high]
    if len(found) > 8:
        found = [float(f"{10.0**p:.10g}") for p in powers if low <= 10.0**p <= high]
    return found if len(found) > 1 else ticks(low, high)
