"""Images in a folder: one sub-folder a class, or a flat folder without labels."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jvq.core import reading
from jvq.core.errors import nearest
from jvq.data.records import CorruptImage, Record

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  #: whatever the name ends in; Pillow hands others to programs
DEEPEST = 64  #: folders in each other
SLENDER = 1000  #: times that a side may be the other: its short side grows to hundreds of pixels, and the other with it


class ImageFolder:
    """The images (jpg, jpeg, png, webp, bmp; any case) under ``dir`` as RGB uint8 [y,x,3], sorted by path.

    Where images lie in sub-folders, every visible sub-folder is a class, in sorted order (an empty one too, so that
    labels agree between splits), and its images lie at any depth. Where they lie in ``dir`` itself, every label is -1.
    Raises ``ValueError`` for a folder that is missing, unreadable, empty, without images, or with images in both
    places. Files are read only when asked for: one that cannot be read raises ``CorruptImage`` then.
    """

    name = "folder"

    def __init__(self, dir: str | os.PathLike[str]) -> None:
        root = existing_folder(Path(dir))
        flat, folders = _entries(root)
        labelled = [(path, label) for label, folder in enumerate(folders) for path in _images_below(folder)]
        images = [path for path in flat if _is_image(path)]
        if images and labelled:
            both = f"images ('{os.path.basename(images[0])}') beside classes ('{os.path.basename(folders[0])}')"
            raise ValueError(f"source 'folder': {root} holds {both}: keep one")
        if not images and not labelled:
            raise ValueError(f"source 'folder': {_nothing_in(root, flat, folders)}; images end in {' '.join(SUFFIXES)}")
        self.dir = root
        self.paths = images or [path for path, _ in labelled]
        self.labels = np.array([-1] * len(images) or [label for _, label in labelled], np.int32)
        self.classes: tuple[str, ...] = tuple(os.path.basename(folder) for folder in folders) if labelled else ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Record:
        try:
            return {"image": read_image(self.paths[i]), "label": int(self.labels[i])}
        except CorruptImage:
            if not self.dir.is_dir():  # else every image from here on would count as one that cannot be read
                raise ValueError(f"source 'folder': {self.dir} is not there any more") from None
            raise


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


def _is_image(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name.endswith(SUFFIXES) and not name.startswith(".")  # macOS leaves "._x.jpg" files that are no images


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """The sorted paths of the files, and of the visible folders, that lie in ``folder``."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"source 'folder': cannot read {folder} ({error.strerror})") from error
    visible = [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return [entry.path for entry in entries if entry.is_file()], visible


def _images_below(folder: str, above: frozenset[str] = frozenset()) -> Iterable[str]:
    """The images at any depth. ``ValueError``: a link leads back to a folder that it lies in."""
    real = os.path.realpath(folder)
    if real in above or len(above) > DEEPEST:
        raise ValueError(reading.line(f"source 'folder': {folder} lies in itself, or more than {DEEPEST} folders deep"))
    files, folders = _entries(Path(folder))
    yield from (path for path in files if _is_image(path))
    for inner in folders:
        yield from _images_below(inner, above | {real})


def _nothing_in(root: Path, files: list[str], folders: list[str]) -> str:
    if not files and not folders:
        return f"{root} is empty"
    others = sorted({os.path.splitext(path)[1] or "no suffix" for path in files})
    return f"no image in {root}, got {len(files)} files ({', '.join(others) or '-'}) and {len(folders)} folders"
