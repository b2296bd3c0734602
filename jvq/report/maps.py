"""Pictures of maps: images and what several models make of them, side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jvq.report.picture import figure, save

INCHES = 1.4  #: a side of each image


def draw_maps(path: Path, images: Float[np.ndarray, "n y x c"], maps: Mapping[str, Float[np.ndarray, "n h w"]]) -> None:
    """Writes a picture: a row an image (values 0..1), beside it each model's map of it, all on one scale of 0..1."""
    columns = {"image": images, **maps}
    made = figure(INCHES * len(columns), INCHES * len(images) + 0.3)
    cells = made.subplots(len(images), len(columns), squeeze=False)
    for j, (name, pictures) in enumerate(columns.items()):
        cells[0, j].set_title(name, fontsize=8)
        for i, picture in enumerate(pictures):
            cells[i, j].axis("off")
            cells[i, j].imshow(np.clip(picture.squeeze(), 0, 1), vmin=0, vmax=1, cmap="gray" if j == 0 else "viridis")
    save(made, path)
