"""Images in a folder: one sub-folder a class, or a flat folder without labels."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from jvq.core import reading
from jvq.core.errors import nearest
from jvq.data import index_file
from jvq.data.index import Index, Paths
from jvq.data.records import CorruptImage, Record

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  #: whatever the name ends in; Pillow hands others to programs
SLENDER = 1000  #: times that a side may be the other: its short side grows to hundreds of pixels, and the other with it


class ImageFolder:
    """The images (jpg, jpeg, png, webp, bmp; any case) under ``dir`` as RGB uint8 [y,x,3], sorted by path.

    Where images lie in sub-folders, every visible sub-folder is a class, in sorted order (an empty one too, so that
    labels agree between splits), and its images lie at any depth. Where they lie in ``dir`` itself, every label is -1.
    Raises ``ValueError`` for a folder that is missing, unreadable, empty, without images, or with images in both
    places. Files are read only when asked for: one that cannot be read raises ``CorruptImage`` then. What there is
    stands in ``index``: by default as it is now, or as it was kept for a large folder (:mod:`jvq.data.index_file`).
    """

    name = "folder"

    def __init__(self, dir: str | os.PathLike[str], index: Index | None = None) -> None:
        self.dir = existing_folder(Path(dir))
        self.index = index_file.opened(self.dir) if index is None else index

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file of the index: only one that is not kept is sent whole."""
        if self.index.file is None:
            return ImageFolder, (self.dir, self.index)
        return _again, (self.dir, self.index.file, self.index.digest)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the sub-folders, empty for a flat folder."""
        return self.index.classes

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """Of every image, -1 in a flat folder."""
        return self.index.labels

    @property
    def paths(self) -> Paths:
        """Of every image."""
        return Paths(self.dir, self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Record:
        try:
            return {"image": read_image(self.paths[i]), "label": int(self.labels[i])}
        except CorruptImage:
            for folder in (self.dir, Path(self.paths[i]).parent):
                if not _holds_anything(folder):  # else every image from here on would count as one that cannot be read
                    raise ValueError(f"source 'folder': {folder} is not there any more, or empty") from None
            raise


def _holds_anything(folder: Path) -> bool:
    """Whether there is a folder with something in it; where a disk was taken away, its folder may be there, empty."""
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return False


def _again(dir: Path, file: Path, digest: int) -> ImageFolder:
    return ImageFolder(dir, index_file.again(file, digest))


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "y x 3"]:
    """The image file as RGB uint8 [y,x,3]; transparency and EXIF rotation are ignored, 16-bit grey keeps its high byte.

    Raises ``CorruptImage``, naming the file, where it is missing, truncated, not an image, or unfolds to more pixels
    than Pillow's ``MAX_IMAGE_PIXELS``, of which Pillow itself warns only.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            short, long = sorted(image.size)
            if short * long > (Image.MAX_IMAGE_PIXELS or math.inf) or long > SLENDER * max(short, 1):
                raise ValueError(f"{image.height}x{image.width} pixels are more, or more slender, than is read")
            if image.mode.startswith("I;16"):  # Pillow would clip at 255
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
            if "transparency" in image.info:  # Pillow warns where a palette's transparency goes straight to RGB
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB"))
    except (*reading.BROKEN, SyntaxError, Image.DecompressionBombError, Warning) as error:  # warnings may be errors
        raise CorruptImage(reading.line(f"{os.fspath(path)}: not a readable image ({error})")) from error


def existing_folder(path: Path) -> Path:
    """``path`` where it is a folder, else ``ValueError`` with what is spelt alike in its nearest existing parent."""
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"source: {path} is a file, not a folder")
    missing = path.absolute()
    while not missing.parent.is_dir():
        missing = missing.parent
    with os.scandir(missing.parent) as entries:
        there = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    raise ValueError(
        f"source: no folder {path}: {missing.parent} has no '{missing.name}'{nearest(missing.name, there)}"
    )
