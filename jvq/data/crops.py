"""Random resized crops as data: drawn once, stored as boxes, cut again out of the same image whenever they are needed.

Soft labels are of a crop, not of an image, so training has to see exactly the crop that the teacher saw. A box is in
fractions of the image (top / H, left / W, height / H, width / W), as FKD stores it (Shen & Xing 2022, "A Fast Knowledge
Distillation Framework for Visual Recognition").
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image

from jvq.data.transforms import Preprocess, with_channels

TRIES = 10  # as torchvision
GRAIN = 64  # of a pixel: far finer than a crop needs, far coarser than float32 fractions of any image


@dataclass(frozen=True)
class CropPolicy:
    """Which crops are drawn: ``scale`` in fractions of the image's area, ``ratio`` x / y, ``flip`` a probability.

    The defaults are those of FKD's published labels. Raises ``ValueError`` for fields that cannot be.
    """

    scale: tuple[float, float] = (0.08, 0.936)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crops: scale must be two rising fractions of the area in (0, 1], got {self.scale}")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"crops: ratio must be two rising positive numbers x / y, got {self.ratio}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"crops: flip must be a probability, got {self.flip}")

    def draw(
        self, rng: np.random.Generator, count: int, size: tuple[int, int]
    ) -> tuple[Float32[np.ndarray, "r 4"], UInt8[np.ndarray, " r"]]:
        """``count`` boxes float32 [r,4] of whole pixels of an image of ``size`` (y, x), and flips uint8 [r], 0 or 1.

        torchvision's RandomResizedCrop: area uniform in ``scale``, aspect ratio log-uniform in ``ratio``, the first of
        ten tries that fits the image, anywhere in it; where none fits, the centre, as large as ``ratio`` allows.
        """
        y, x = size
        low, high = self.ratio
        area = y * x * rng.uniform(*self.scale, size=(count, TRIES))
        aspect = np.exp(rng.uniform(math.log(low), math.log(high), (count, TRIES)))
        tall = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        wide = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        fits = (0 < tall) & (tall <= y) & (0 < wide) & (wide <= x)
        any_fits = fits.any(axis=1)
        height, width = (_first(lengths, fits) for lengths in (tall, wide))
        centre_height, centre_width = self._largest(y, x)
        height, width = np.where(any_fits, height, centre_height), np.where(any_fits, width, centre_width)
        top = np.where(any_fits, rng.integers(0, y - height + 1), (y - height) // 2)
        left = np.where(any_fits, rng.integers(0, x - width + 1), (x - width) // 2)
        boxes = np.stack([top / y, left / x, height / y, width / x], axis=1).astype(np.float32)
        return boxes, (rng.random(count) < self.flip).astype(np.uint8)

    def _largest(self, y: int, x: int) -> tuple[int, int]:
        """Height and width of the fallback: the whole image where its ratio is allowed, else the nearest that is."""
        low, high = self.ratio
        if x / y < low:
            return max(1, round(x / low)), x
        if x / y > high:
            return y, max(1, round(y * high))
        return y, x


def cut(
    image: UInt8[np.ndarray, "y x c"], box: Float32[np.ndarray, " 4"], flip: int | np.integer, preprocess: Preprocess
) -> UInt8[np.ndarray, "y2 x2 c2"]:
    """The crop uint8 [y,x,c] of ``preprocess``'s size and channels out of the image, mirrored where flip; as stored.

    Resized bilinearly with Pillow's antialiasing, whatever ``preprocess.interpolation`` says: FKD and VVTQ cut for the
    student so, and here the teacher sees the same pixels. As Pillow resizes a box, pixels beside it count at its edge
    where the crop shrinks; torchvision cuts first. Not normalised. Raises ``ValueError`` for a box outside the image.
    """
    top, left, height, width = box.tolist()
    if not (top >= 0 and left >= 0 and height > 0 and width > 0 and top + height < 1.001 and left + width < 1.001):
        raise ValueError(f"crops: a box must lie in the image, in fractions (top, left, height, width), got {box}")
    image = with_channels(image, preprocess.channels)
    y, x, c = image.shape
    (upper, lower), (start, end) = _edges(top, height, y), _edges(left, width, x)
    whole = Image.fromarray(image if c == 3 else image[..., 0])
    height, width = preprocess.size
    small = whole.resize((width, height), Image.Resampling.BILINEAR, (start, upper, end, lower))
    made = np.asarray(small).reshape(height, width, c)
    return made[:, ::-1] if flip else made


def _edges(first: float, length: float, pixels: int) -> tuple[float, float]:
    """Both edges in pixels: whole pixels come back whole from float32 fractions, none lies outside."""
    low = min(round(first * pixels * GRAIN) / GRAIN, pixels - 1 / GRAIN)
    return low, min(low + max(round(length * pixels * GRAIN), 1) / GRAIN, pixels)


def _first(lengths: Int[np.ndarray, "r t"], fits: Bool[np.ndarray, "r t"]) -> Int[np.ndarray, " r"]:
    """Of every row the first length that fits, 1 where none does."""
    rows = np.arange(len(lengths))
    at = fits.argmax(axis=1)
    return np.where(fits[rows, at], lengths[rows, at], 1)
