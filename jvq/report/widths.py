"""A picture of how the widths of modules were chosen: the front, and what each module got."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvq.report.picture import figure, save


def draw_widths(path: Path, mixed: Mapping[str, Any]) -> None:
    """Writes a picture of a report's ``mixed``: sensitivity against size (left), and each module's width (right)."""
    modules = mixed["modules"]
    made = figure(5.0 + max(3.5, 0.3 * len(modules)), 3.8)
    front, bars = made.subplots(1, 2, width_ratios=(4.0, max(3.5, 0.3 * len(modules))))
    sizes, losses = np.asarray(mixed["front"], float).T
    front.plot(sizes / 1024, losses, drawstyle="steps-post", color="tab:blue", linewidth=1, label="best at each size")
    for bits, (size, loss) in mixed["equal"].items():
        front.plot(size / 1024, loss, "o", color="black", markersize=4)
        front.annotate(f"{bits} bits", (size / 1024, loss), fontsize=7, xytext=(4, 3), textcoords="offset points")
    front.plot(mixed["size"] / 1024, mixed["loss"], "*", color="tab:orange", markersize=11, label="chosen")
    front.axvline(mixed["limit"] / 1024, color="gray", linestyle=":", linewidth=1, label="budget")
    front.set_yscale("log")
    front.set_xlabel("weights of attentions and MLPs, KiB", fontsize=8)
    front.set_ylabel(mixed["unit"], fontsize=8)
    front.set_title("dots: the same width everywhere", fontsize=8)
    front.legend(fontsize=7, frameon=False)
    places = np.arange(len(modules))
    colours = ["tab:orange" if name.endswith("attn") else "tab:blue" for name in modules]
    bars.bar(places, [m["bits"] for m in modules.values()], color=colours)
    bars.axhline(mixed["target"], color="gray", linestyle=":", linewidth=1)
    bars.set_xticks(places, [*modules], rotation=90, fontsize=7)
    bars.set_ylabel("bits", fontsize=8)
    bars.set_title("width of each module (orange: attention)", fontsize=8)
    for panel in (front, bars):
        panel.tick_params(labelsize=7)
    save(made, path)


def draw_joint(path: Path, joint: Mapping[str, Any]) -> None:
    """Writes a picture of a report's ``joint``: each product's width (above) and number of groups (below)."""
    sites = joint["sites"]
    made = figure(max(6.0, 0.26 * len(sites) + 1.5), 4.6)
    widths, groups = made.subplots(2, 1, sharex=True)
    places = np.arange(len(sites))
    colours = ["tab:orange" if site.endswith(("qk", "pv")) else "tab:blue" for site in sites]
    widths.bar(places, [s["bits"] for s in sites.values()], color=colours)
    widths.set_ylabel("bits", fontsize=8)
    widths.set_title("width of each product (orange: attention's)", fontsize=8)
    groups.bar(places, [s["groups"] or 0 for s in sites.values()], color=colours)
    groups.set_ylabel("groups", fontsize=8)
    groups.set_xticks(places, [*sites], rotation=90, fontsize=7)
    for panel in (widths, groups):
        panel.tick_params(labelsize=7)
    save(made, path)
