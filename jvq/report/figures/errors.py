"""The relative error of every site in the model's order: one method against another, weights and activations apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jvq.report.figures.canvas import BASE, INK, MAIN, drawing, model_axis, plain_number

FLOOR = 1e-12  #: an error of 0 is drawn here at the least


class Errors(NamedTuple):
    """By address, in the model's order, ``sum (q(x) - x)**2 / sum x**2`` of two methods."""

    name: str
    main: Mapping[str, float]
    weights: frozenset[str]  # those of the addresses that are parameters
    baseline: str = ""  # its name; "" where there is none
    plain: Mapping[str, float] = {}


def draw(path: Path, data: Errors) -> None:
    """Writes the figure: activations above, weights below, a log axis."""
    kinds = [("activations", [a for a in data.main if a not in data.weights])]
    kinds += [("weights", [a for a in data.main if a in data.weights])]
    kinds = [(kind, addresses) for kind, addresses in kinds if addresses]
    with drawing(path, 9.0, 2.6 * len(kinds) + 0.2) as figure:
        for panel, (kind, addresses) in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, strict=True):
            places = range(len(addresses))
            main = [max(data.main[a], FLOOR) for a in addresses]
            plain = [max(data.plain[a], FLOOR) if a in data.plain else float("nan") for a in addresses]
            if data.plain:
                style = dict(marker="o", markersize=3.5, markerfacecolor="none", markeredgewidth=0.8, linewidth=0.6)
                panel.plot(places, plain, color=BASE, label=data.baseline, **style)
                colours = [BASE if one < other else MAIN for one, other in zip(main, plain, strict=True)]
                panel.vlines(places, main, plain, colors=colours, alpha=0.35, linewidth=0.6)
            panel.plot(places, main, color=MAIN, marker="o", markersize=3, linewidth=0.9, label=data.name)
            panel.set_yscale("log")
            panel.set_ylabel("relative error")
            panel.set_title(kind)
            model_axis(panel, addresses)
            for i in apart(main, len(main) / 7):
                side = "left" if i < len(main) / 10 else "right" if i > 0.9 * len(main) else "center"
                top = main[i] if not plain[i] > main[i] else plain[i]
                style = dict(textcoords="offset points", fontsize=6.5, color=INK, ha=side)
                panel.annotate(addresses[i], (i, top), (0, 5), **style)
            panel.margins(y=0.16)
            panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)


def apart(values: list[float], gap: float, most: int = 3) -> list[int]:
    """The places of the largest values, at least ``gap`` from each other."""
    found: list[int] = []
    for i in sorted(range(len(values)), key=lambda i: -values[i]):
        if len(found) < most and all(abs(i - j) >= gap for j in found):
            found.append(i)
    return found


def caption(data: Errors) -> str:
    """What is seen, with this run's numbers."""
    worst = max(data.main, key=lambda a: data.main[a])
    said = f"The largest error of {data.name} is {plain_number(100 * data.main[worst])} % of the operand's power, "
    said += f"at {worst}."
    both = [a for a in data.main if a in data.plain]
    if both:
        better = sum(data.main[a] < data.plain[a] for a in both)
        worse = sum(data.main[a] > data.plain[a] for a in both)
        said += f" It is below that of {data.baseline} at {better} of {len(both)} sites and above it at {worse}."
    return said
