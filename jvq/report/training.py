"""Pictures of a training run: its losses and oscillation by step, and where its weights lie among the codes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvq.report.picture import figure, save

SHOWN = ("loss", "kl", "ranking", "flips", "regularizer", "oscillating")  #: of what a log has, a panel each


def draw_training(path: Path, training: Mapping[str, Any]) -> None:
    """Writes a picture of a report's ``training``: above what was logged by step, below the weights of each site.

    The histograms are of ``w / scale``: weights in units of codes; dashed lines are where the code changes.
    """
    curves = training["curves"]
    panels = [name for name in SHOWN if name in curves]
    weights = training["weights"]
    columns = max(4, len(panels))
    rows = -(-len(weights) // columns)
    made = figure(2.6 * columns, 2.1 + 1.5 * rows)
    grid = made.add_gridspec(rows + 1, columns, height_ratios=[1.4] + [1.0] * rows)
    for i, name in enumerate(panels):
        panel = made.add_subplot(grid[0, i])
        panel.plot(curves["step"], curves[name], color="tab:blue", linewidth=1)
        panel.set_title(name, fontsize=8)
        panel.set_xlabel("step", fontsize=7)
        panel.tick_params(labelsize=6)
    for i, (address, weight) in enumerate(weights.items()):
        panel = made.add_subplot(grid[1 + i // columns, i % columns])
        _histogram(panel, weight)
        panel.set_title(f"{address}: {100 * weight['oscillating']:.0f} % oscillate", fontsize=6)
    save(made, path)


def _histogram(panel: Any, weight: Mapping[str, Any]) -> None:
    """The counts of weights between ``low - 1`` and ``high + 1``, and the boundaries between codes."""
    low, high = weight["ends"]
    counts = np.asarray(weight["histogram"], float)
    edges = np.linspace(low - 1, high + 1, len(counts) + 1)
    panel.stairs(counts, edges, fill=True, color="tab:blue")
    for boundary in np.arange(low, high) + 0.5:
        panel.axvline(boundary, color="gray", linestyle="--", linewidth=0.5)
    panel.set_yticks([])
    panel.tick_params(labelsize=6)
