"""Which group each channel (or row) of an operand chooses, from image to image."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jvq.report.figures.canvas import MAIN, drawing

MAP = "viridis"  #: of groups: dark the narrowest, light the widest


class Choices(NamedTuple):
    """The group of every channel in every image."""

    address: str
    what: str  # "channels", or "rows"
    group: Int[np.ndarray, "b c"]
    width: Float[np.ndarray, " g"]  # of each group's range


def ranked(data: Choices) -> Int[np.ndarray, "b c"]:
    """The choices with the groups numbered by their width, 0 the narrowest."""
    rank = np.empty(len(data.width), int)
    rank[np.argsort(data.width, kind="stable")] = np.arange(len(data.width))
    return rank[data.group]


def usual(rank: Int[np.ndarray, "b c"], groups: int) -> tuple[Int[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Each channel's most frequent group (of several the narrowest), and the share of images that choose it."""
    counts = np.stack([(rank == g).sum(axis=0) for g in range(groups)])
    return counts.argmax(axis=0), counts.max(axis=0) / len(rank)


def moved(rank: Int[np.ndarray, "b c"]) -> Bool[np.ndarray, " c"]:
    """Which channels are not in the same group in every image."""
    return (rank != rank[:1]).any(axis=0)


def draw(path: Path, data: Choices) -> None:
    """Writes the figure: images by channels, sorted by their usual group, and how many use each group."""
    rank, count = ranked(data), len(data.width)
    common, _ = usual(rank, count)
    order = np.lexsort((rank.mean(axis=0), common))[::-1]
    with drawing(path, 9.0, 2.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3.2, 1))
        extent = (0.5, len(order) + 0.5, len(rank) + 0.5, 0.5)
        style: dict[str, Any] = dict(aspect="auto", cmap=MAP, vmin=0, vmax=max(count - 1, 1), interpolation="none")
        left.imshow(rank[:, order], extent=extent, **style)
        left.set_xlabel(f"{data.what}, sorted by the group that they choose most often")
        left.set_ylabel("image")
        left.set_title(data.address)
        share = np.stack([(rank == g).mean(axis=1) for g in range(count)])
        mean = 100 * share.mean(axis=1)
        colours = _colours(count)
        places = np.arange(count)
        right.barh(places, mean, color=colours, height=0.8)
        right.hlines(places, 100 * share.min(axis=1), 100 * share.max(axis=1), color=MAIN, linewidth=1.2)
        if count <= 16:
            right.set_yticks(places, [f"{w:.2g}" for w in np.sort(data.width)])
            right.set_ylabel("range that a group covers")
        else:
            right.set_yticks([0, count - 1], ["narrowest", "widest"])
        right.set_xlabel(f"% of the {data.what}")
        right.set_xlim(left=0)


def _colours(count: int) -> Any:
    from matplotlib import colormaps

    return colormaps[MAP](np.arange(count) / max(count - 1, 1))


def caption(data: Choices) -> str:
    """What is seen, with this run's numbers."""
    rank = ranked(data)
    _, share = usual(rank, len(data.width))
    use = np.bincount(rank.reshape(-1), minlength=len(data.width)) / rank.size
    said = f"{100 * moved(rank).mean():.0f} % of the {data.what} of {data.address} change their group within "
    said += f"{len(rank)} images; a {data.what.removesuffix('s')} keeps to one group in "
    said += f"{100 * share.mean():.0f} % of them on average. "
    empty = int((use == 0).sum())
    said += f"The most used group has {100 * use.max():.0f} % of all choices, the least used {100 * use.min():.1f} %"
    said += f"; {empty} of {len(use)} are never chosen." if empty else "."
    return said + " Bars: the mean of the images; lines: the least to the most of one."
