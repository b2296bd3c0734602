"""Weights against the bins of their quantiser: histograms of one channel, and how often each code is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jvq.report.figures.canvas import BASE, GREY, INK, MAIN, drawing, plain_number

LINES = 64  #: bins that are drawn as lines; of more only the first and the last


class Layer(NamedTuple):
    """A weight, one of its channels, and its codes."""

    address: str
    why: str  # it is shown: "largest error"
    channel: str  # "o 12", or "all" where one scale serves all
    values: Float[np.ndarray, " n"]  # of the channel
    bins: Float[np.ndarray, " k"]  # what its codes decode to, ascending by code
    counts: Int[np.ndarray, " k"]  # of the codes, of the whole weight
    error: float  # relative, of the whole weight


def used(counts: Int[np.ndarray, " k"]) -> float:
    """The share of codes that occur."""
    return float((counts > 0).mean())


def entropy(counts: Int[np.ndarray, " k"]) -> float:
    """The entropy of the codes, bits a weight."""
    p = counts[counts > 0] / counts.sum()
    return float(max(-(p * np.log2(p)).sum(), 0.0))


def draw(path: Path, layers: Sequence[Layer]) -> None:
    """Writes the figure, a column a layer: above the channel's histogram with its bins, below the use of the codes."""
    with drawing(path, 9.0, 3.9) as figure:
        cells = figure.subplots(2, len(layers), squeeze=False, height_ratios=(1.5, 1))
        for layer, (above, below) in zip(layers, cells.T, strict=True):
            _histogram(above, layer)
            _codes(below, layer)
        cells[0, 0].set_ylabel("weights of the channel")
        cells[1, 0].set_ylabel("% of all weights")


def _histogram(panel: Any, layer: Layer) -> None:
    """Draws the values of one channel and the lines of its bins."""
    ends = np.sort(layer.bins)
    low, high = min(layer.values.min(), ends[0]), max(layer.values.max(), ends[-1])
    panel.hist(
        layer.values,
        bins=max(12, min(60, len(layer.values) // 4)),
        range=(float(low), float(high)),
        color=BASE,
        histtype="stepfilled",
        alpha=0.9,
    )
    shown = ends if len(ends) <= LINES else ends[[0, -1]]
    top = panel.get_ylim()[1]
    panel.vlines(shown, 0, top, color=MAIN, linewidth=0.7, alpha=0.9)
    panel.set_ylim(0, top)
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.set_title(f"{layer.address}\n{layer.why}, channel {layer.channel}", fontsize=7.5)
    panel.set_xlabel("weight" + ("; lines: what a code stands for" if len(ends) <= LINES else "; lines: the ends"))


def _codes(panel: Any, layer: Layer) -> None:
    """Draws the share of each code."""
    share = 100 * layer.counts / layer.counts.sum()
    x = np.arange(len(share))
    panel.bar(x, share, width=0.85 if len(share) <= LINES else 1.0, color=np.where(share > 0, MAIN, GREY).tolist())
    panel.set_xlim(-0.7, len(share) - 0.3)
    panel.set_xlabel("code")
    panel.xaxis.get_major_locator().set_params(integer=True)
    said = f"{(layer.counts > 0).sum()} of {len(share)} codes, {entropy(layer.counts):.2f} bits of entropy"
    panel.set_title(said, fontsize=7, color=INK)


def caption(layers: Sequence[Layer]) -> str:
    """What is seen, with this run's numbers."""
    full = np.log2([len(x.counts) for x in layers])
    least = min(range(len(layers)), key=lambda i: entropy(layers[i].counts) / max(full[i], 1e-9))
    errors = "; ".join(f"{x.address} ({x.why}) {plain_number(100 * x.error)} %" for x in layers)
    one = layers[least]
    return (
        f"Relative errors: {errors}. In each the channel that its quantiser fits worst. {one.address} uses "
        f"{100 * used(one.counts):.0f} % of its codes, and {entropy(one.counts):.2f} of {full[least]:.2f} bits."
    )
