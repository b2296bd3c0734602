"""From an image as it was stored to the array that a model was trained on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from jvq.core import reading
from jvq.core.errors import nearest
from jvq.core.typed import checked
from jvq.data.records import CorruptImage

SIDE = 2**14  #: pixels a side that an image may get
LARGEST = 2**28  #: pixels that an image may have on the way: one of a row of pixels would grow without bound
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """From uint8 [y,x,c] of 0..255 to float32 [y,x,c] in the units that a checkpoint expects, of which it is a part.

    In order, as timm's evaluation transform does (and torchvision's Resize, CenterCrop, Normalize):

    1. grey <-> RGB where the channels differ from ``len(mean)``;
    2. the short side to ``resize`` pixels with Pillow's antialiasing filter (smaller images grow), the long side in
       proportion, rounded down; None leaves the image as it is;
    3. the centre ``size`` = (y, x); an image that is smaller is padded with black, the odd pixel after it;
    4. ``(value / 255 - mean) / std``, a number a channel.

    Raises ``ValueError`` for fields that cannot be.
    """

    size: tuple[int, int]
    resize: int | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"preprocess: size must be two positive numbers (y, x), got {self.size}")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"preprocess: resize must be a positive number of pixels or None, got {self.resize}")
        if max(*self.size, self.resize or 1) > SIDE:
            raise ValueError(f"preprocess: no side may get more than {SIDE} pixels, got {self.size}, {self.resize}")
        if self.interpolation not in FILTERS:
            raise ValueError(
                f"preprocess: no interpolation '{self.interpolation}'{nearest(self.interpolation, FILTERS)}"
            )
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(f"preprocess: mean and std must both have 1 or 3 channels, got {self.mean} and {self.std}")
        if not np.isfinite(self.mean).all() or not np.isfinite(self.std).all() or min(self.std) <= 0:
            raise ValueError(f"preprocess: mean must be finite and std positive, got {self.mean} and {self.std}")

    @property
    def channels(self) -> int:
        """How many channels come out: 1 or 3."""
        return len(self.mean)

    def __call__(self, image: UInt8[np.ndarray, "y x c"]) -> Float32[np.ndarray, "y2 x2 c2"]:
        """The model's input float32 [y,x,c] of ``size`` and ``channels``."""
        return self._normalise(self.crop(image))

    def batch(self, images: UInt8[np.ndarray, "n y x c"]) -> Float32[np.ndarray, "n y2 x2 c2"]:
        """The model's inputs float32 [n,y,x,c]; in one go where the images need arithmetic only."""
        if self.is_arithmetic(images.shape[1:]):
            return self._normalise(images)
        return self._normalise(np.stack([self.crop(image) for image in images]))

    def is_arithmetic(self, shape: tuple[int, ...]) -> bool:
        """Whether images of ``shape`` (y, x, c) have the final size and channels already: only values change."""
        return shape == (*self.size, self.channels) and self.resize in (None, min(self.size))

    def crop(self, image: UInt8[np.ndarray, "y x c"]) -> UInt8[np.ndarray, "y2 x2 c2"]:
        """The image uint8 [y,x,c] with the right channels, resized and cropped to ``size``, not normalised."""
        if self.is_arithmetic(image.shape):
            return image
        image = with_channels(image, self.channels)
        if self.resize is not None:
            image = _resize_short_side(image, self.resize, FILTERS[self.interpolation])
        return _centre(image, self.size)

    def _normalise(self, images: UInt8[np.ndarray, "*b y x c"]) -> Float32[np.ndarray, "*b y x c"]:
        out = images.astype(np.float32)  # in place from here: the loader's time is the memory's
        out /= np.float32(255)
        out -= np.asarray(self.mean, np.float32)
        out /= np.asarray(self.std, np.float32)
        return out

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of ``to_dict``. Raises ``ValueError`` for a key that is missing or unknown, or a wrong type."""
        with reading.shown("preprocess"):
            return cls._from_dict(values)

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The same, its errors with whatever letters are in the keys."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"preprocess: no key '{key}'{nearest(key, known)}")
        for key in known:
            if key not in values:
                raise ValueError(f"preprocess: no '{key}' in {sorted(values)}")
        found = checked(cls, values, "preprocess")
        mean, std = (tuple(float(value) for value in found[key]) for key in ("mean", "std"))
        return cls(found["size"], found["resize"], found["interpolation"], mean, std)


def with_channels(image: UInt8[np.ndarray, "y x c"], channels: int) -> UInt8[np.ndarray, "y x c2"]:
    """The image uint8 [y,x,c] as grey (1 channel, by luma) or RGB (3); ``ValueError`` where it is neither."""
    if image.shape[-1] == channels:
        return image
    if image.shape[-1] == 1:
        return np.repeat(image, channels, axis=-1)
    if image.shape[-1] == 3:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]  # ITU-R 601 luma
    raise ValueError(f"preprocess: an image must have 1 or 3 channels, got {image.shape[-1]}")


def _resize_short_side(
    image: UInt8[np.ndarray, "y x c"], short: int, how: Image.Resampling
) -> UInt8[np.ndarray, "y2 x2 c"]:
    y, x, c = image.shape
    if min(y, x) == short:
        return image
    to = (short * x // y, short) if y <= x else (short, short * y // x)  # Pillow's order: x, y
    if to[0] * to[1] > LARGEST:
        raise CorruptImage(
            f"preprocess: an image of {y}x{x} pixels would be {to[1]}x{to[0]} at {short} on its short side"
        )
    small = np.asarray(Image.fromarray(image if c == 3 else image[..., 0]).resize(to, how))
    return small.reshape(to[1], to[0], c)


def _centre(image: UInt8[np.ndarray, "y x c"], size: tuple[int, int]) -> UInt8[np.ndarray, "y2 x2 c"]:
    short = [max(0, want - got) for want, got in zip(size, image.shape, strict=False)]
    if any(short):
        image = np.pad(image, [(n // 2, n - n // 2) for n in short] + [(0, 0)])
    top, left = (
        round((got - want) / 2) for want, got in zip(size, image.shape, strict=False)
    )  # half to even, as torchvision
    return image[top : top + size[0], left : left + size[1]]
