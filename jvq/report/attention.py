"""A picture of attention: maps of the float model and of quantised ones, and how well these keep the rows' order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jvq.report.picture import figure, save

Maps = Mapping[str, Float[np.ndarray, "_q _k"]]
"""By address the map of one image and head; by ``address + "^"`` as its product sees it, where it is quantised."""

SEEN = "^"  #: after an address: the map behind its quantiser, as evaluate_order's attention_maps has it
NOTE = "below: quantised,\nas the product sees it"
INCHES = 1.7  #: a side of each map
MOST = 4  #: layers that are shown; of more, the first, the middle and the last


def draw_attention(path: Path, maps: Mapping[str, Maps], order: Mapping[str, Mapping[str, float]]) -> None:
    """Writes a picture: a row of maps for each model, the float one first, and below them how each keeps the order.

    ``maps`` by the name of a row; one scale of colours a layer, from 0 to the first row's largest value, by the square
    root. ``order`` by the name of a row and address: the mean Kendall tau of the map's rows with the float model's.
    """
    layers = shown_layers(list(dict.fromkeys(a.removesuffix(SEEN) for row in maps.values() for a in row)))
    twice = any(address + SEEN in row for row in maps.values() for address in layers)
    wide = len(layers) * (2 if twice else 1)
    addresses = list(dict.fromkeys(a for row in order.values() for a in row))
    made = figure(max(INCHES * wide + 0.8, 0.3 * len(addresses) + 2.0, 5.0), (INCHES + 0.15) * len(maps) + 3.0)
    above, below = made.subfigures(2, 1, height_ratios=((INCHES + 0.15) * len(maps) + 0.6, 2.4))
    colours = {name: f"C{i}" for i, name in enumerate(order)}
    cells = above.subplots(len(maps), wide, squeeze=False)
    for cell in cells.flat:
        cell.set_axis_off()
    for j, address in enumerate(layers):
        columns = cells[:, j * wide // len(layers) : (j + 1) * wide // len(layers)]
        _column(above, columns, address, list(maps.values()))
    for (name, _), cell in zip(maps.items(), cells[:, 0], strict=True):
        style = dict(rotation=90, ha="right", va="center", transform=cell.transAxes)
        cell.text(-0.12, 0.5, name, color=colours.get(name, "black"), fontsize=9, **style)
        cell.text(-0.02, 0.5, "query", color="gray", fontsize=6, **style)
    _bars(below.subplots(), addresses, order, colours)
    save(made, path)


def shown_layers(addresses: Sequence[str]) -> list[str]:
    """All of up to four; else the first, the middle and the last."""
    last = len(addresses) - 1
    return list(addresses) if last < MOST else [addresses[i] for i in (0, last // 2, last)]


def _column(part: Any, cells: np.ndarray, address: str, rows: Sequence[Maps]) -> None:
    """Draws one layer: [row 1 or 2] cells, the soft map and beside it the quantised one, and the colours' values."""
    from matplotlib.colors import PowerNorm  # matplotlib is slow to import

    soft = [row[address] for row in rows if address in row]
    norm = PowerNorm(0.5, 0.0, float(soft[0].max()) or 1.0)
    shown = None
    for row, following, pair in zip(rows, [*rows[1:], {}], cells, strict=True):
        if address in row:
            shown = _map(pair[0], row[address], norm=norm, cmap="viridis")
        if address + SEEN in row:
            seen = row[address + SEEN]
            _map(pair[1], seen, vmin=min(0.0, seen.min()), vmax=seen.max() or 1.0, cmap="Greys")
            pair[1].set_title(_levels(seen), fontsize=7)
        elif address + SEEN in following:
            pair[1].text(0.5, 0.02, NOTE, fontsize=7, color="gray", ha="center", transform=pair[1].transAxes)
    cells[0, 0].set_title(address, fontsize=8)
    cells[-1, 0].set_xlabel("key", fontsize=6, color="gray")
    over = "max" if max(x.max() for x in soft) > norm.vmax else "neither"
    bar = part.colorbar(shown, ax=list(cells.flat), location="bottom", extend=over, aspect=30, shrink=0.9)
    bar.set_label("attention after softmax", fontsize=7)
    bar.ax.tick_params(labelsize=6)


def _map(cell: Any, values: np.ndarray, **colours: Any) -> Any:
    """Draws one map in a thin frame."""
    cell.set_axis_on()
    cell.set_xticks([])
    cell.set_yticks([])
    for side in cell.spines.values():
        side.set_linewidth(0.4)
    return cell.imshow(values, **colours)


def _levels(seen: np.ndarray) -> str:
    """What a quantised map holds, in words."""
    levels = np.unique(seen)
    if len(levels) > 2:
        return f"{len(levels)} values"
    if len(levels) == 1:
        return f"all {levels[0]:.2g}"
    return f"{100 * (seen == levels[1]).mean():.0f} % are {levels[1]:.2g}, the rest {levels[0]:.2g}"


def _bars(
    panel: Any, addresses: Sequence[str], order: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]
) -> None:
    """Draws a bar for each row and layer."""
    places = np.arange(len(addresses))
    width = 0.8 / len(order)
    for i, (name, taus) in enumerate(order.items()):
        values = np.array([taus.get(address, np.nan) for address in addresses])
        label = f"{name}: mean {np.nanmean(values):.2f}"
        panel.bar(places + (i + 0.5) * width - 0.4, values, width, color=colours[name], label=label)
    panel.axhline(0, color="black", linewidth=0.6)
    panel.set_xticks(places, addresses, rotation=90, fontsize=6)
    panel.set_ylim(top=1.0)
    panel.set_ylabel("Kendall's tau", fontsize=8)
    panel.set_title("order of the keys in each row: agreement with float (1: the same order)", fontsize=8, loc="left")
    panel.tick_params(axis="y", labelsize=7)
    panel.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
