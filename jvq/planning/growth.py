"""What the model says of the rows that ``benchmarks/growth.py`` measures, and the rates of a core behind it.

A core does one thing after the other, so that the model is a sum: operations of products, operations one by one, bytes
of clustering, other bytes, programs started, each times seconds. These five numbers are all that is fitted, once for
all methods, to rows of the smallest model; whatever else the model says of the others it has from counting.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jvq.core.recipe import sites
from jvq.methods import METHODS
from jvq.models import build
from jvq.planning.demand import Workload, counted_in, workload
from jvq.planning.jobs import Job, Phase, phases
from jvq.planning.pods import pod_of

BASE = "base"  #: the model whose rows the rates are fitted to
HEADER = "| method | model | images | CPU s |"
ONE = pod_of("h100", 1)  #: what is counted is that of any single device without tiles
HEAD = 32  #: channels of a head
PATCH = 8  #: pixels
BATCH = 32  #: images that are evaluated at a time
STEPS = 100  #: in which rates are found
FITS = "read", "evaluate"  #: phases that are not timed where a fit is
LEFT_OUT = {"minmax": FITS, "igq": FITS, "sweep": FITS, "liu21": FITS, "vvtq": ("observe", *FITS)}
LEFT_OUT |= {"evaluate": ("read", "observe", "cluster")}


class Row(NamedTuple):
    """A row of the page."""

    method: str
    model: str
    images: int
    seconds: float
    forward: float  # of a float forward of the same images


class Rates(NamedTuple):
    """Seconds of a core."""

    products: float  # for an operation of products
    vector: float  # for one of others
    clustering: float  # for a byte that clustering moves: on a core it is arithmetic, and no faster from a cache
    bandwidth: float  # for another byte
    dispatch: float  # for a program started


def rows(page: str) -> list[Row]:
    """The rows of the page's table."""
    lines = itertools.takewhile(lambda line: line.startswith("|"), page.partition(HEADER)[2].splitlines()[2:])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [Row(c[0], c[1], int(c[2]), float(c[3]), float(c[5])) for c in cells]


def rates(measured: Sequence[Row], models: Mapping[str, tuple[int, int, int]]) -> Rates:
    """Rates, none negative, of least squared logarithm of what the model says over what was measured.

    The rows' forwards count too. ``models``: width, blocks and pixels a side by name. Logarithms become linear by
    weighing relative errors again and again; of the sets of rates that may be 0 the best is taken each time.
    """
    asked = [(asks(row.method, models[row.model], row.images), row.seconds) for row in measured]
    asked += [(_forward(models[row.model], row.images), row.forward) for row in measured]
    parts = np.array([[part / seconds for part in one] for one, seconds in asked])
    parts, scale = parts / parts.max(axis=0), parts.max(axis=0)  # numbers from 1 to 1e12
    weights, found = np.ones(len(parts)), np.zeros(len(scale))
    for _ in range(STEPS):
        found = _least(parts * weights[:, None], weights)
        off = np.maximum(parts @ found, 1e-3) - 1
        weights = np.where(np.abs(off) < 1e-6, 1.0, np.log1p(off) / np.where(off == 0, 1.0, off))
    return Rates(*(found / scale).tolist())


def _least(parts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The numbers, none negative, by which the columns add up to what is wanted, with least squared error."""
    best, least = np.zeros(parts.shape[1]), np.inf
    for count in range(1, parts.shape[1] + 1):
        for which in map(list, itertools.combinations(range(parts.shape[1]), count)):
            found = np.linalg.lstsq(parts[:, which], wanted)[0]
            off = float(np.square(parts[:, which] @ found - wanted).sum())
            if (found >= 0).all() and off < least:
                best, least = np.zeros(parts.shape[1]), off
                best[which] = found
    return best


def expected(row: Row, found: Rates, models: Mapping[str, tuple[int, int, int]]) -> float:
    """Seconds that the model says for a row."""
    return sum(a * b for a, b in zip(asks(row.method, models[row.model], row.images), found, strict=True))


def errors(measured: Sequence[Row], models: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """Lines of a table: what the model says over what was measured, a row a method, a column a model."""
    found = rates([row for row in measured if row.model == BASE], models)
    ratios: dict[tuple[str, str], list[str]] = {}
    for row in measured:
        off = expected(row, found, models) / row.seconds
        ratios.setdefault((row.method, row.model), []).append(f"{off:.2f}")
    lines = [
        f"| method | {' | '.join(f'{m}, fitted' if m == BASE else m for m in models)} |",
        f"|---|{'---|' * len(models)}",
    ]
    for method in dict.fromkeys(row.method for row in measured):
        lines.append(
            f"| {method} | {' | '.join(', '.join(ratios.get((method, m), ['not measured'])) for m in models)} |"
        )
    return lines


def asks(method: str, size: tuple[int, int, int], images: int) -> Rates:
    """What a row asks for, of each kind of work that has a rate."""
    kind, options, w = _counted(method, size)
    if method == "vvtq":
        options = dataclasses.replace(options, batch=images)
    plan = phases(Job(kind, options, images=images, evaluated=images), w, ONE, BATCH)
    return _sum([p for p in plan if p.name not in LEFT_OUT[method]])


def _forward(size: tuple[int, int, int], images: int) -> Rates:
    """Of float forwards, eight images at a time: what min-max does but for what it keeps."""
    _, _, w = _counted("minmax", size)
    return _sum([p for p in phases(Job("minmax", images=images), w, ONE) if p.name == "observe"])


@functools.cache
def _counted(method: str, size: tuple[int, int, int]) -> tuple[str, Any, Workload]:
    """The kind of job, options of it, and what the model asks for an image."""
    dim, depth, side = size
    kind = "igq" if method == "evaluate" else method
    made = METHODS["igq" if kind == "sweep" else kind]
    chosen: dict[str, dict[str, Any]] = {
        "sweep": {"allocation": "bops", "candidates": (4, 8, 12)},
        "vvtq": {"batch": BATCH, "steps": 1},
    }
    options = made.Options(bits=4, **chosen.get(method, {}))
    fields = {"dim": dim, "depth": depth, "heads": dim // HEAD, "image": (side, side), "patch": PATCH, "classes": 100}
    if method == "vvtq":
        return kind, options, workload(fields, made, options)
    model = build("vit", fields)
    return kind, options, counted_in(sites(model.forward, model.shapes(), model.image), model, made, options)


def _sum(plan: Sequence[Phase]) -> Rates:
    """Of all steps."""

    def of(name: str, which: Sequence[Phase] = plan) -> float:
        return float(sum(p.steps * getattr(p, name) for p in which))

    clustering = [p for p in plan if p.name == "cluster"]
    others = [p for p in plan if p.name != "cluster"]
    return Rates(of("flops"), of("ops"), of("traffic", clustering), of("traffic", others), of("calls"))
