"""The images that quantisation damages most: their predictions, or their maps, by two models."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jvq.report.figures.canvas import BASE, GREY, INK, MAIN, drawing

SHOWN = 8  #: images
CLASSES = 4  #: of which an image shows the probabilities, at most
PIXELS = 72  #: an image's longer side, at most


class Damaged(NamedTuple):
    """Images with what two models make of each; ``classes`` are the names of the labels, empty where unknown."""

    name: str  # of the method
    images: Sequence[np.ndarray]  # float [y x c], values 0..1
    places: Int[np.ndarray, " n"]  # in the data set
    labels: Int[np.ndarray, " n"]  # -1: unknown
    plain: Float[np.ndarray, "n o"]  # probabilities of the float model
    got: Float[np.ndarray, "n o"]
    kl: Float[np.ndarray, " n"]
    classes: Sequence[str]
    flips: int  # of all images, how many have another prediction
    of: int  # how many images there are


class DamagedMaps(NamedTuple):
    """Images with the maps of two models."""

    name: str
    images: Sequence[np.ndarray]  # float [y x c], values 0..1
    places: Int[np.ndarray, " n"]
    plain: Sequence[np.ndarray]  # [h w], 0..1
    got: Sequence[np.ndarray]
    alike: Float[np.ndarray, " n"]  # the maps' correlation
    mean: float  # of all images


def order(flipped: Bool[np.ndarray, " n"], kl: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """The ``count`` most damaged images: those whose decision flipped first, then by divergence, the largest first."""
    return np.lexsort((-kl, ~flipped))[:count]


def probabilities(logits: Float[np.ndarray, "n o"]) -> Float[np.ndarray, "n o"]:
    """Softmax, float64."""
    wide = logits.astype(np.float64)
    some = np.exp(wide - wide.max(axis=1, keepdims=True))
    return some / some.sum(axis=1, keepdims=True)


def small(image: np.ndarray) -> np.ndarray:
    """The image uint8 [y x] or [y x 3] with a longer side of at most ``PIXELS``."""
    from PIL import Image

    whole = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    made = Image.fromarray(whole.squeeze(-1) if whole.shape[-1] == 1 else whole)
    made.thumbnail((PIXELS, PIXELS))
    return np.asarray(made)


def shown_classes(plain: Float[np.ndarray, " o"], got: Float[np.ndarray, " o"], label: int) -> list[int]:
    """Both predictions, the label, and then the likeliest others: at most ``CLASSES``, by the float model's belief."""
    first = [int(plain.argmax()), int(got.argmax()), *([label] if label >= 0 else [])]
    others = np.argsort(-(plain + got), kind="stable").tolist()
    return sorted([*dict.fromkeys([*first, *others])][:CLASSES], key=lambda i: -plain[i])


def draw(path: Path, data: Damaged) -> None:
    """Writes the figure: each image beside the probabilities of some classes, float and quantised."""
    columns = 2
    rows = -(-len(data.places) // columns)
    with drawing(path, 9.0, 1.25 * rows + 0.45) as figure:
        cells = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=(1, 2.3) * columns)
        for i, panel in enumerate(cells.reshape(-1, 2)):
            if i < len(data.places):
                _image(panel[0], data.images[i])
                _bars(panel[1], data, i)
            else:
                panel[0].set_axis_off()
                panel[1].set_axis_off()
        from matplotlib.patches import Patch  # slow to import

        handles = [Patch(color=BASE, label="float"), Patch(color=MAIN, label=data.name)]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)


def _image(panel: Any, image: np.ndarray) -> None:
    panel.imshow(small(image), cmap="gray", vmin=0, vmax=255, interpolation="none")
    panel.set_axis_off()


def _bars(panel: Any, data: Damaged, i: int) -> None:
    """Draws two bars a class."""
    chosen = shown_classes(data.plain[i], data.got[i], int(data.labels[i]))
    y = np.arange(len(chosen))
    panel.barh(y - 0.19, 100 * data.plain[i][chosen], 0.36, color=BASE)
    panel.barh(y + 0.19, 100 * data.got[i][chosen], 0.36, color=MAIN)
    panel.set_ylim(CLASSES - 0.4, -0.6)
    panel.set_xlim(0, 100)
    panel.set_xticks([0, 50, 100], ["0", "50", "100 %"], fontsize=6)
    names = [textwrap.shorten(name_of(data.classes, c), 22, placeholder="...") for c in chosen]
    panel.set_yticks(y, names)
    for text, c in zip(panel.get_yticklabels(), chosen, strict=True):
        text.set_weight("bold" if c == data.labels[i] else "normal")
    panel.set_title(f"no. {data.places[i]}, KL {data.kl[i]:.2f}", fontsize=7, color=INK)
    panel.axvline(50, color=GREY, linewidth=0.3, alpha=0.6, zorder=0)


def name_of(classes: Sequence[str], index: int) -> str:
    """The class's name, where it is known."""
    return classes[index] if index < len(classes) else f"class {index}"


def caption(data: Damaged) -> str:
    """What is seen, with this run's numbers."""
    a, b = data.plain.argmax(axis=1), data.got.argmax(axis=1)
    said = f"{data.flips} of {data.of} images ({100 * data.flips / data.of:.1f} %) have another prediction than float. "
    said += f"Shown: the {len(a)} with the largest KL, flipped ones first, from {data.kl[0]:.2f} on"
    names = [[name_of(data.classes, int(i)) for i in best] for best in (a, b)]
    pairs = [(x, y) for x, y in zip(*names, strict=True) if x != y]
    if pairs:
        common = max(pairs, key=pairs.count)
        said += f"; {pairs.count(common)} of them go from {common[0]} to {common[1]}"
    return said + (". The right class is in bold." if (data.labels >= 0).any() else ".")


def draw_maps(path: Path, data: DamagedMaps) -> None:
    """Writes the figure: a column an image, below it the float model's map, the method's and the correlation."""
    with drawing(path, 9.0, 3.9) as figure:
        cells = figure.subplots(3, len(data.images), squeeze=False)
        for i, (image, plain, got) in enumerate(zip(data.images, data.plain, data.got, strict=True)):
            _image(cells[0, i], image)
            for cell, values in zip(cells[1:, i], (plain, got), strict=True):
                shown = small(np.asarray(values)[..., None])
                cell.imshow(shown, cmap="viridis", vmin=0, vmax=255, interpolation="none")
                cell.set_axis_off()
            cells[0, i].set_title(f"no. {data.places[i]}", fontsize=7)
            cells[2, i].set_title(f"corr. {data.alike[i]:.2f}", fontsize=7, loc="center")
        for cell, name in zip(cells[:, 0], ("image", "float", data.name), strict=True):
            cell.text(-0.08, 0.5, name, rotation=90, ha="right", va="center", transform=cell.transAxes, fontsize=8)


def caption_maps(data: DamagedMaps) -> str:
    """What is seen, with this run's numbers."""
    return (
        f"The {len(data.images)} images whose maps agree least with the float model's, correlation {data.alike[0]:.2f} "
        f"to {data.alike[-1]:.2f}; the mean of all images is {data.mean:.2f}."
    )
