"""Drawings for a page: SVG with its text as text, the same bytes for the same data, readable on white and on black."""

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jvq.core import files

INK = "#010203"  #: of text, axes and ticks; a page puts its own colour in this one's place
MAIN, BASE, PALE, THIRD, FOURTH, GREY = "#d55e00", "#2a86c8", "#8cc4f0", "#009e73", "#b868a8", "#888888"
"""Colours of data: told apart by the colour-blind, and with a contrast of 3 and more on white and on near-black;
PALE lies within BASE."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, and found by a search
    "svg.image_inline": True,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
    ),
}


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of that size in inches, written to ``path`` when the block ends: whole or not at all."""
    import matplotlib  # slow to import
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # the salt makes ids repeatable but for places that are not: see lean
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"jvq {path.name}"}):
        made = Figure((width, height), layout="constrained")
        FigureCanvasSVG(made)
        yield made
        with files.replacing(path) as part:
            made.savefig(part, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
            part.write_text(lean(part.read_text("utf-8"), path.stem), "utf-8")


def lean(text: str, stem: str) -> str:
    """The SVG with names only for what is referred to, numbered behind ``stem``: figures of one page share none.

    matplotlib's own are hashes of places, whose last digit the layout's solver does not give twice.
    """
    wanted = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    number = {name: f"{stem}-{i}" for i, name in enumerate(wanted)}
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{number[found[1]]}"' if found[1] in number else "", text)
    return re.sub(r'(href="#|url\(#)([^")]+)', lambda found: found[1] + number[found[2]], text)


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """The places of labels moved apart to at least ``gap`` (less where there is no room), in order, in low..high."""
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    moved = [0.0] * len(places)
    at = low - gap
    for i in order:
        at = moved[i] = max(places[i], at + gap)
    at = high + gap
    for i in reversed(order):
        at = moved[i] = min(moved[i], at - gap)
    return moved


def named_parts(addresses: list[str]) -> list[tuple[int, str]]:
    """Where each first part of neighbouring addresses (``block03`` of ``block03/attn/qk.q``) begins, with its name."""
    names = [_part(address) for address in addresses]
    return [(i, name) for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def _part(address: str) -> str:
    """The numbered beginning of an address (``stage0/block01``), or its first word."""
    words = address.partition(".")[0].split("/")
    numbered = list(itertools.takewhile(lambda word: word[-1:].isdigit(), words))
    return "/".join(numbered or words[:1])


def model_axis(panel: Any, addresses: list[str], most: int = 26) -> None:
    """Labels the x axis, a place an address in the model's order, by the model's parts; of many only some."""
    parts = named_parts(addresses)
    step = -(-len(parts) // most)
    panel.set_xticks([i for i, _ in parts[::step]], [name for _, name in parts[::step]], rotation=60, ha="right")
    panel.set_xlim(-0.8, len(addresses) - 0.2)
    for i, _ in parts:
        panel.axvline(i - 0.5, color=GREY, alpha=0.25, linewidth=0.5, zorder=0)


def plain_number(value: float) -> str:
    """The number as a person writes it: three digits, no exponent where it can be helped."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1e}"
