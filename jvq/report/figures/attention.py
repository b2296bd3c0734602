"""Attention of one head: float, quantised and their difference, and how every head keeps the order of its rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jvq.report.figures.canvas import MAIN, drawing

SIDE = 1.9  #: inches of a map
WRITTEN = 200  #: heads whose numbers are written


class Head(NamedTuple):
    """One head's map of one image, after softmax and before it is quantised itself; and behind its quantiser."""

    address: str
    head: int
    image: int  # its place among the images
    tau: float  # of this map
    plain: Float[np.ndarray, "q k"]  # of the float model
    got: Float[np.ndarray, "q k"]
    seen: Float[np.ndarray, "q k"] | None = None  # as the product with the values sees it, where it is quantised


class Attention(NamedTuple):
    """Kendall's tau of rows, float model against quantised, mean over images (and windows), by address and head [h]."""

    name: str
    tau: Mapping[str, Float[np.ndarray, " h"]]
    images: int
    heads: Sequence[Head]  # that are shown: the worst, and the best


def draw(path: Path, data: Attention) -> None:
    """Writes the figure: every head's agreement above, and a row of maps a head that is shown."""
    layers, most = list(data.tau), max(len(t) for t in data.tau.values())
    rows = len(data.heads)
    tall = max(0.7, min(2.4, 0.17 * most + 0.35))
    with drawing(path, 9.0, tall + 0.9 + (SIDE + 0.35) * rows) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=(tall + 0.9, (SIDE + 0.35) * rows))
        _agreement(above, data, layers, most)
        cells = below.subplots(rows, 3 + any(h.seen is not None for h in data.heads), squeeze=False)
        for which, head, panels in zip(("worst", "best"), data.heads, cells, strict=False):
            _row(below, panels, head, which)


def _agreement(part: Any, data: Attention, layers: list[str], most: int) -> None:
    """Draws heads by layers, coloured by tau; heads that a layer lacks stay empty."""
    table = np.full((most, len(layers)), np.nan)
    for j, address in enumerate(layers):
        table[: len(data.tau[address]), j] = data.tau[address]
    from matplotlib.patches import Rectangle  # slow to import

    panel = part.subplots()
    low, high = np.floor(10 * np.nanmin(table)) / 10, np.ceil(10 * np.nanmax(table)) / 10
    shown = panel.imshow(table, aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="none")
    for (i, j), tau in np.ndenumerate(table):
        if table.size <= WRITTEN and np.isfinite(tau):
            colour = "white" if tau < (low + high) / 2 else "#0a0a0a"
            panel.text(j, i, f"{tau:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    names = [a.partition("/")[0] if len({b.partition("/")[0] for b in layers}) == len(layers) else a for a in layers]
    short = [a.removesuffix(".p").removesuffix("/attn/pv") for a in names]
    many = len(layers) > 8
    panel.set_xticks(range(len(layers)), short, rotation=45 if many else 0, ha="right" if many else "center")
    panel.set_yticks(range(most) if most <= 6 else range(0, most, 2))
    panel.set_ylabel("head")
    panel.set_title("order of the keys in each row, agreement with float (Kendall's tau, 1: the same order)")
    for i, head in enumerate(data.heads):
        style: dict[str, Any] = dict(fill=False, edgecolor=MAIN, linewidth=2, linestyle="--" if i else "-")
        panel.add_patch(Rectangle((layers.index(head.address) - 0.5, head.head - 0.5), 1, 1, clip_on=False, **style))
    bar = part.colorbar(shown, ax=panel, aspect=12, pad=0.01)
    bar.outline.set_linewidth(0)


def _row(part: Any, panels: Any, head: Head, which: str) -> None:
    """Draws float, quantised and difference, and what the product sees."""
    from matplotlib.colors import PowerNorm  # slow to import

    norm = PowerNorm(0.5, 0.0, float(head.plain.max()) or 1.0)
    off = head.got - head.plain
    most = float(np.abs(off).max()) or 1.0
    green: dict[str, Any] = dict(cmap="viridis", norm=norm)
    maps: list[tuple[str, np.ndarray, dict[str, Any]]] = [("float", head.plain, green), ("quantised", head.got, green)]
    maps += [("difference", off, dict(cmap="RdBu_r", vmin=-most, vmax=most))]
    if head.seen is not None:
        levels = len(np.unique(head.seen))
        top = max(float(head.seen.max()), 1e-12)
        seen = dict(cmap="viridis", norm=PowerNorm(0.5, min(0.0, float(head.seen.min())), top))
        maps += [(f"behind its quantiser: {levels} values", head.seen, seen)]
    for panel, (name, values, colours) in zip(panels, maps, strict=False):
        shown = panel.imshow(values, interpolation="none", **colours)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_title(name, fontsize=8)
        if name in ("quantised", "difference"):
            bar = part.colorbar(shown, ax=panel, location="bottom", aspect=24, pad=0.03, shrink=0.9)
            bar.outline.set_linewidth(0)
            bar.ax.tick_params(labelsize=6)
            bar.ax.locator_params(nbins=4)
        else:  # of the same height as those with a bar
            part.colorbar(shown, ax=panel, location="bottom", aspect=24, pad=0.03, shrink=0.9).ax.set_visible(False)
    for panel in panels[len(maps) :]:
        panel.set_axis_off()
    said = f"{which}: {head.address}\nhead {head.head}, image {head.image + 1}: tau {head.tau:.2f}"
    panels[0].set_ylabel(said + "\nquery", fontsize=7)
    panels[0].set_xlabel("key", fontsize=7)


def caption(data: Attention) -> str:
    """What is seen, with this run's numbers."""
    where = [(float(t), a, i) for a, taus in data.tau.items() for i, t in enumerate(taus)]
    worst, best = min(where), max(where)
    mean = sum(t for t, _, _ in where) / len(where)
    return (
        f"Over {data.images} images the rows of {len(where)} heads keep their order with tau {mean:.2f} on average: "
        f"worst {worst[0]:.2f} in head {worst[2]} of {worst[1]}, best {best[0]:.2f} in head {best[2]} of {best[1]}. "
        "Of these two heads, framed above (best: dashed), the maps of the image that agrees least."
    )
