"""The photos inside the scikit-image wheel, as views of them: calibration and pictures at 224 px without a download.

Ten photos are for calibration and six others for evaluation, so that no photo is in both; the six have a subject, which
a map of saliency needs. They are too few as they are: each is shown in several views, squares out of it, some mirrored.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jvq.core.errors import nearest
from jvq.data.records import CorruptImage, Record

INSTALL = "pip install 'jvq[photos]'"


class View(NamedTuple):
    """A square out of a photo."""

    side: float  # of the photo's short side
    y: float  # of the room above and below: 0 is the top, 1 the bottom
    x: float  # of the room left and right: 0 is the left, 1 the right
    mirrored: bool = False


CALIBRATION = (
    "astronaut.png",
    "coffee.png",
    "motorcycle_left.png",
    "coins.png",
    "ihc.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "gravel.png",
    "grass.png",
    "brick.png",
)
EVALUATION = ("camera.png", "chelsea.png", "rocket.jpg", "clock_motion.png", "retina.jpg", "cell.png")
SPLITS: dict[str, tuple[tuple[str, ...], tuple[View, ...]]] = {
    "train": (
        CALIBRATION,
        (
            View(1.0, 0.5, 0.5),
            View(0.7, 0.0, 0.0),
            View(0.7, 1.0, 1.0, mirrored=True),
            View(0.7, 0.0, 1.0),
            View(0.7, 1.0, 0.0, mirrored=True),
            View(0.6, 0.5, 0.5),
            View(1.0, 0.5, 0.0, mirrored=True),
            View(0.85, 0.5, 0.5),
        ),
    ),
    "test": (
        EVALUATION,
        (
            View(1.0, 0.5, 0.5),
            View(0.85, 0.5, 0.0, mirrored=True),
            View(0.7, 0.5, 1.0),
            View(0.7, 0.3, 0.5, mirrored=True),
        ),
    ),
}


class Photos:
    """The views of a split, photo by photo: "train" is 10 photos in 8 views, "test" 6 others in 4; labels are -1.

    Raises ``ValueError`` where scikit-image is not installed, or the split is unknown.
    """

    name, classes = "photos", ()

    def __init__(self, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"source 'photos': no split '{split}'{nearest(split, SPLITS)}")
        self.files, self.views = SPLITS[split]
        self._folder = _folder()

    def __len__(self) -> int:
        return len(self.files) * len(self.views)

    def __getitem__(self, i: int) -> Record:
        file, view = self._folder / self.files[i // len(self.views)], self.views[i % len(self.views)]
        try:
            with Image.open(file) as opened:
                photo = np.asarray(opened.convert("RGB"))
        except OSError as error:
            raise CorruptImage(f"{file}: not a readable image ({error})") from error
        return {"image": cut(photo, view), "label": -1}


def cut(photo: UInt8[np.ndarray, "y x c"], view: View) -> UInt8[np.ndarray, "side side c"]:
    """The view of a photo."""
    side = round(view.side * min(photo.shape[:2]))
    top, left = (round(at * (n - side)) for at, n in zip((view.y, view.x), photo.shape, strict=False))
    square = photo[top : top + side, left : left + side]
    return square[:, ::-1] if view.mirrored else square


def names(split: str) -> Sequence[str]:
    """What the split's images show, in order: ``chelsea 2`` is the second view of that photo."""
    files, views = SPLITS[split]
    return [f"{Path(file).stem} {i}" for file in files for i in range(1, len(views) + 1)]


def _folder() -> Path:
    """Where the wheel's photos are; scikit-image is looked up, not imported."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise ValueError(f"source 'photos' needs scikit-image: {INSTALL}")
    return Path(found.origin).with_name("data")
