"""Pictures of what IGQ-ViT's groups are and what they cost: ranges, EM, allocation, error and accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvq.report.picture import figure, save
from jvq.report.tables import COLUMNS, Column

NEAR = 0.06  #: of a score: the part below float that a front shows again, larger


def draw_grouping(path: Path, sites: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a picture with a column an operand: its points by group (above), and the EM's objective (below).

    ``sites[address]``: ``points`` [p 2], each channel's or row's (min, max) in each calibration image, ``group`` [p],
    ``centres`` [g 2], ``history`` [i] the objective by iteration, ``quantile`` what the quantile start reaches.
    """
    made = figure(3.2 * len(sites), 5.4)
    above, below = made.subplots(2, len(sites), squeeze=False)
    for (address, site), ranges, objective in zip(sites.items(), above, below, strict=True):
        points, group = np.asarray(site["points"]), np.asarray(site["group"])
        count = len(site["centres"])
        rows = (points[:, 0] == 0).all()  # attention rows: their maximum alone decides
        place = np.argsort(np.argsort(points[:, 1])) / len(points) if rows else points[:, 0]
        ranges.scatter(place, points[:, 1], c=group, cmap="turbo", vmin=0, vmax=count - 1, s=3, linewidths=0)
        if not rows:
            ranges.scatter(*np.asarray(site["centres"]).T, marker="x", c="black", s=18, linewidths=0.8)
        ranges.set_title(address, fontsize=8)
        ranges.set_xlabel("rank of the row" if rows else "least value", fontsize=8)
        ranges.set_ylabel("greatest value", fontsize=8)
        objective.plot(site["history"], color="black", linewidth=1, label="k-means++")
        objective.axhline(float(site["quantile"]), color="gray", linestyle=":", linewidth=1, label="quantile start")
        objective.set_yscale("log")
        objective.set_xlabel("iteration", fontsize=8)
        objective.set_ylabel("sum of squared distances", fontsize=8)
        objective.legend(fontsize=7, frameon=False)
        for panel in (ranges, objective):
            panel.tick_params(labelsize=7)
    save(made, path)


def draw_allocation(path: Path, allocation: Mapping[str, Any]) -> None:
    """Writes a picture of a report's ``allocation``: each operand's groups, and the divergence of each candidate."""
    sites = allocation["sites"]
    offered = sorted({g for site in sites.values() for g in site["candidates"]})
    made = figure(max(6.0, 0.24 * len(sites) + 1.5), 5.4)
    bars, heat = made.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    places = np.arange(len(sites))
    colours = ["tab:orange" if address.endswith(".p") else "tab:blue" for address in sites]
    bars.bar(places, [site["groups"] for site in sites.values()], color=colours)
    bars.set_ylabel("groups", fontsize=8)
    bars.set_title("number of groups (orange: attention rows)", fontsize=9)
    kl = np.full((len(offered), len(sites)), np.nan)
    for j, site in enumerate(sites.values()):
        for g, value in zip(site["candidates"], site["kl"], strict=True):
            kl[offered.index(g), j] = value
    shown = heat.imshow(np.log10(np.maximum(kl, 1e-12)), aspect="auto", cmap="viridis", origin="lower")
    heat.scatter(places, [offered.index(site["groups"]) for site in sites.values()], c="red", s=10, label="chosen")
    heat.set_yticks(range(len(offered)), [str(g) for g in offered], fontsize=7)
    heat.set_xticks(places, list(sites), rotation=90, fontsize=6)
    heat.set_ylabel("candidate", fontsize=8)
    heat.legend(fontsize=7, loc="upper right")
    made.colorbar(shown, ax=heat, label="log10 KL, alone")
    bars.tick_params(labelsize=7)
    save(made, path)


def draw_error(
    path: Path,
    points: Sequence[tuple[int, Mapping[str, Any]]],
    beside: Mapping[str, Mapping[str, Any]],
    measure: str,
    column: Column,
) -> None:
    """Writes a picture of a measure against the number of groups: rows of a table, and others as level lines."""
    made = figure(5.5, 4.0)
    axes = made.subplots()
    groups = [count for count, _ in points]
    values = [row[measure] for _, row in points]
    spread = [row.get("spread", {}).get(measure, 0.0) for _, row in points]
    axes.errorbar(groups, values, yerr=spread, fmt="o-", color="tab:blue", capsize=2, label="groups, chosen per image")
    for i, (label, row) in enumerate(beside.items()):
        axes.axhline(row[measure], linestyle="--", color=f"C{i + 1}", linewidth=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(groups, [str(count) for count in groups])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("groups of every operand")
    axes.set_ylabel(f"{column.head}, mean ± spread over the calibration sets")
    axes.legend(fontsize=8, frameon=False)
    save(made, path)


def draw_fronts(path: Path, rows: Sequence[Mapping[str, Any]], score: str, plain: Mapping[str, Any]) -> None:
    """Writes a picture of the rows' ``score`` (more is better) against their bit-operations, with the Pareto front.

    ``rows`` are called by their width and their method, ``plain`` is the float model's row.
    """
    made = figure(11.0, 4.6)
    column = COLUMNS[score]
    families = list(dict.fromkeys(row["name"].split(" ")[-1] for row in rows))
    front = pareto([(row["bops"] / 1e9, column.factor * row[score]) for row in rows], True)
    panels = made.subplots(1, 2)
    for axes in panels:
        for i, family in enumerate(families):
            mine = [row for row in rows if row["name"].split(" ")[-1] == family]
            x, y = [row["bops"] / 1e9 for row in mine], [column.factor * row[score] for row in mine]
            spread = [column.factor * row.get("spread", {}).get(score, 0.0) for row in mine]
            style = dict(markersize=4, linewidth=1, elinewidth=0.7, color=f"C{i % 10}", label=family)
            axes.errorbar(x, y, yerr=spread, fmt="o-" if i < 10 else "s--", **style)
        axes.plot(*front, color="black", linewidth=4, alpha=0.15, label="Pareto front")
        axes.axhline(column.factor * plain[score], color="gray", linestyle=":", linewidth=1, label="float")
        axes.set_xscale("log")
        for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis(lambda x, _: f"{x:g}" if f"{x:.0e}"[0] in "1235" else "")
        axes.set_xlabel("bit-operations of one image, GBOPs")
        axes.set_ylabel(column.head)
    panels[0].legend(fontsize=7, frameon=False)
    panels[1].set_ylim(column.factor * (plain[score] - NEAR), column.factor * (plain[score] + NEAR / 6))
    panels[1].set_title("near the float model", fontsize=9)
    save(made, path)


def pareto(points: Sequence[tuple[float, float]], larger_is_better: bool) -> tuple[list[float], list[float]]:
    """The (cost, score) points that no cheaper or equally cheap one beats, by cost."""
    sign = -1 if larger_is_better else 1
    x: list[float] = []
    y: list[float] = []
    for cost, score in sorted(points, key=lambda p: (p[0], sign * p[1])):
        if not y or sign * score < sign * y[-1]:
            x.append(cost)
            y.append(score)
    return x, y
