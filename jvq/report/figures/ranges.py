"""Ranges of channels: an operand's channels in several images against what its quantiser covers, and all operands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jvq.report.figures.canvas import BASE, FOURTH, GREY, INK, MAIN, PALE, THIRD, drawing, model_axis, plain_number

COLUMNS = 320  #: of more channels neighbours in the order of their ranges are drawn together
OUTER = 1.0  #: percent of the values that lie outside of the inner band, at either end
ROLES = {"x": (BASE, "o"), "q": (THIRD, "^"), "k": (THIRD, "v"), "v": (MAIN, "s"), "p": (FOURTH, "D")}
CALLED = {
    "x": "inputs of linear layers",
    "q": "queries",
    "k": "keys",
    "v": "values",
    "p": "attention maps, rows",
}


class Channels(NamedTuple):
    """What the values of each channel (or row) are in each image, and what quantisers cover. Bounds are (low, high)."""

    address: str
    what: str  # "channels", or "rows"
    bounds: Float[np.ndarray, "2 b c"]  # least and greatest value
    inner: Float[np.ndarray, "2 b c"]  # percentiles 1 and 99
    name: str  # of the method
    covered: Float[np.ndarray, "2 b c"]  # by the method's quantiser
    steps: int  # of its range: one less than its codes
    baseline: str = ""  # its name; "" where it has nothing there
    plain: Float[np.ndarray, "2 b c"] | None = None  # covered by its quantiser
    groups: Float[np.ndarray, "2 g"] | None = None  # of the method, where it has groups
    share: Float[np.ndarray, " g"] | None = None  # of the channels in all images, which choose each


def measured(values: Float[np.ndarray, "b c n"]) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest value, and the percentiles 1 and 99, of each image and channel: [2 b c] each."""
    inner = np.percentile(values, [OUTER, 100 - OUTER], axis=2)
    return np.stack([values.min(axis=2), values.max(axis=2)]), inner


def apart(values: np.ndarray, letters: str, kept: str) -> Float[np.ndarray, "b c n"]:
    """An operand [letters] by image, by index along ``kept``, and all else."""
    first = [letters.index(a) for a in letters if a in "b" + kept]
    rest = [i for i in range(len(letters)) if i not in first]
    moved = values.transpose(*sorted(first, key=lambda i: letters[i] != "b"), *rest)
    return moved.reshape(len(moved), int(np.prod(moved.shape[1 : len(first)])), -1)


def widths(bounds: Float[np.ndarray, "2 b c"]) -> Float[np.ndarray, " c"]:
    """The range of each channel over all images."""
    return bounds[1].max(axis=0) - bounds[0].min(axis=0)


def outlying(width: Float[np.ndarray, " c"]) -> float:
    """How many times the median channel's range the widest one's is; channels that are constant do not count."""
    wide = width[width > 0]
    return float(wide.max() / np.median(wide)) if wide.size else 1.0


def clipped(data: Channels) -> float:
    """The share of channels and images with a value beyond what the method's quantiser covers, by over half a step.

    Half a step is what rounding may cost any value.
    """
    half = 0.501 * (data.covered[1] - data.covered[0]) / data.steps
    return float(((data.bounds[0] < data.covered[0] - half) | (data.bounds[1] > data.covered[1] + half)).mean())


def draw(path: Path, data: Channels) -> None:
    """Writes the figure: bands over the channels, sorted by range; below by image; at the right the groups."""
    width = widths(data.bounds)
    order = np.argsort(-width, kind="stable")
    pieces = np.array_split(order, min(COLUMNS, len(order)))
    with drawing(path, 9.0, 4.6) as figure:
        grid = figure.add_gridspec(
            2, 2, height_ratios=(2.4, 1), width_ratios=(1, 0.3 if data.groups is not None else 0.02)
        )
        above = figure.add_subplot(grid[0, 0])
        below = figure.add_subplot(grid[1, 0], sharex=above)
        _bands(above, data, pieces)
        _images(figure, grid[1, 1], below, data, pieces)
        if data.groups is not None:
            _groups(figure.add_subplot(grid[0, 1], sharey=above), data)
        above.tick_params(labelbottom=False)
        merged = "" if len(pieces) == len(order) else f", {len(order)} in {len(pieces)} places"
        below.set_xlabel(f"{data.what}, the widest first{merged}")


def _merged(values: Float[np.ndarray, " c"], pieces: Sequence[np.ndarray], how: Any) -> np.ndarray:
    """By place what ``how`` makes of its channels' values."""
    return np.array([how(values[piece]) for piece in pieces])


def _bands(panel: Any, data: Channels, pieces: Sequence[np.ndarray]) -> None:
    """Draws what the channels hold and what is covered."""
    x = np.arange(len(pieces))

    def band(low: np.ndarray, high: np.ndarray, colour: str, alpha: float, label: str) -> None:
        ends = _merged(low, pieces, np.min), _merged(high, pieces, np.max)
        panel.fill_between(x, *ends, step="mid", color=colour, alpha=alpha, linewidth=0, label=label)

    median, inner = np.median(data.bounds, axis=1), np.median(data.inner, axis=1)
    band(data.bounds[0].min(axis=0), data.bounds[1].max(axis=0), BASE, 0.25, "values of all images")
    band(median[0], median[1], BASE, 0.85, "of the median image")
    band(inner[0], inner[1], PALE, 1.0, f"of it all but {OUTER:.0f} % at either end")

    def edges(bounds: np.ndarray, label: str, **style: Any) -> None:
        for end, name in zip(bounds, (label, None), strict=True):
            y = _merged(np.median(end, axis=0), pieces, np.median)
            panel.plot(x, y, drawstyle="steps-mid", label=name, **style)

    if data.plain is not None:
        edges(data.plain, f"covered by {data.baseline}", color=GREY, linestyle="--", linewidth=1.0)
    edges(data.covered, f"covered by {data.name}, median image", color=MAIN, linewidth=1.1)
    panel.axhline(0, color=INK, linewidth=0.4, alpha=0.5)
    panel.set_title(data.address)
    panel.set_ylabel("value")
    panel.legend(loc="upper right", ncols=3)
    low, high = panel.get_ylim()
    panel.set_ylim(low, high + 0.22 * (high - low))  # room for the legend


def _images(figure: Any, place: Any, panel: Any, data: Channels, pieces: Sequence[np.ndarray]) -> None:
    """Draws the range of each channel in each image as a part of the channel's widest."""
    size = data.bounds[1] - data.bounds[0]
    part = size / np.where(size.max(axis=0) > 0, size.max(axis=0), 1.0)
    heat = np.stack([_merged(row, pieces, np.mean) for row in part])
    extent = (-0.5, len(pieces) - 0.5, len(heat) + 0.5, 0.5)
    shown = panel.imshow(
        heat, aspect="auto", cmap="viridis", vmin=0, vmax=1, extent=extent, interpolation="none", origin="upper"
    )
    panel.set_ylabel("image")
    panel.set_title(f"range in one image, as a part of the {data.what.removesuffix('s')}'s widest")
    beside = figure.add_subplot(place)
    beside.set_axis_off()
    bar = figure.colorbar(shown, ax=beside, location="left", fraction=0.9, aspect=8, ticks=(0, 0.5, 1))
    bar.outline.set_linewidth(0)


def _groups(panel: Any, data: Channels) -> None:
    """Draws the groups' intervals, the widest first, with the share of channels that choose each."""
    assert data.groups is not None
    assert data.share is not None
    order = np.argsort(data.groups[0] - data.groups[1], kind="stable")
    low, high = data.groups[:, order]
    x = np.arange(len(order))
    panel.vlines(x, low, high, color=MAIN, linewidth=min(5, 50 / len(order)), alpha=0.85)
    panel.set_xlim(-0.8, len(order) - 0.2)
    if len(order) <= 16:
        for i, j in enumerate(order):
            panel.annotate(
                f"{100 * data.share[j]:.0f}", (i, high[i]), (0, 3), textcoords="offset points", fontsize=6, ha="center"
            )
        panel.set_xlabel(f"% of {data.what} in each")
    panel.set_xticks([])
    panel.set_title(f"{len(order)} groups")
    panel.tick_params(labelleft=False)


def caption(data: Channels, why: str) -> str:
    """What is seen, with this run's numbers; ``why`` this site was chosen."""
    width, images = widths(data.bounds), data.bounds.shape[1]
    one = data.what.removesuffix("s")
    size = data.bounds[1] - data.bounds[0]
    there = size.max(axis=0) > 0
    least = float(np.median(size.min(axis=0)[there] / size.max(axis=0)[there])) if there.any() else 1.0
    said = f"{why}. The widest {one} of {data.address} is {plain_number(outlying(width))} times the median one; "
    said += f"the median {one}'s range falls to {100 * least:.0f} % of its widest within {images} images."
    if data.plain is not None:
        tall = float(np.median(data.plain[1] - data.plain[0]))
        mine = float(np.median(data.covered[1] - data.covered[0]))
        said += f" For the median {one} {data.baseline} covers {plain_number(tall)}, {data.name} {plain_number(mine)}."
    if data.steps == 1:
        return said  # two values cover nothing that could be clipped
    short = 100 * clipped(data)
    return said + f" Image by image, {data.name} clips {short:.0f} % of the {data.what} by more than half a step."


class Spreads(NamedTuple):
    """By address, in the model's order: how many times the median channel's range the widest one's is."""

    ratio: Mapping[str, float]
    images: int


def draw_spreads(path: Path, data: Spreads) -> None:
    """Writes the figure: a point a site, on a log axis, the largest by name."""
    addresses = list(data.ratio)
    ratios = np.array([data.ratio[a] for a in addresses])
    roles = [a.rpartition(".")[2] for a in addresses]
    with drawing(path, 9.0, 3.2) as figure:
        panel = figure.subplots()
        for role in dict.fromkeys(roles):
            colour, marker = ROLES.get(role, (GREY, "o"))
            at = [i for i, r in enumerate(roles) if r == role]
            style = dict(linestyle="none", marker=marker, markersize=4, color=colour)
            panel.plot(at, ratios[at], label=CALLED.get(role, role), **style)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda y, _: plain_number(y))
        panel.yaxis.set_minor_formatter(lambda y, _: plain_number(y) if f"{y:.0e}"[0] in "25" else "")
        panel.tick_params(axis="y", which="minor", labelsize=6)
        panel.set_ylabel("widest / median channel")
        panel.axhline(1, color=INK, linewidth=0.4)
        model_axis(panel, addresses)
        for i in np.argsort(-ratios, kind="stable")[:4]:
            panel.annotate(
                f"{addresses[i]} {plain_number(float(ratios[i]))}",
                (i, ratios[i]),
                (5 if i < 0.7 * len(addresses) else -5, 3),
                textcoords="offset points",
                fontsize=6.5,
                ha="left" if i < 0.7 * len(addresses) else "right",
            )
        panel.margins(y=0.12)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=len(set(roles)))


def caption_spreads(data: Spreads) -> str:
    """What is seen, with this run's numbers."""
    worst = max(data.ratio, key=lambda a: data.ratio[a])
    over = sum(r > 4 for r in data.ratio.values())
    return (
        f"A range of every channel over {data.images} images. The widest channel of {worst} is "
        f"{plain_number(data.ratio[worst])} times the median one, the most of all; more than 4 times it is at {over} "
        f"of {len(data.ratio)} sites. One range a tensor leaves the narrow channels few of its levels there."
    )
