"""What is known of the next pixel of many grey images at once: the model by which the embedded set is coded.

All images advance together in raster order, so that a step is a few vector operations over the images. A pixel is
predicted from its neighbours above and to the left, by weights of its place and of its image's class; its surroundings
choose one of ``CONTEXTS`` histograms of the pixels seen so far. All arithmetic is exact (the floats hold integers below
2**24, so that the order of a sum does not matter), and the coder and every decoder agree.
"""

import numpy as np
from jaxtyping import Float32, Int16, Int32, Int64, Integer, UInt8

SIDE = 28
PLACES = SIDE * SIDE
BITS = 16  # the frequencies of a histogram add up to 2**BITS
UNIT = 256  # a weight of 1

_NEIGHBOURS = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-1, 2))  # (y, x): w n nw ne ww nn nne
FEATURES = len(_NEIGHBOURS) + 2
_WIDTH = SIDE + 4  # zeros: two rows above, two columns on each side
_AREA = (SIDE + 2) * _WIDTH


def _levels(top: int, *starts: int) -> Int16[np.ndarray, " top"]:
    """A table from 0..top-1 to levels: how many of ``starts`` a value has reached."""
    return np.digitize(np.arange(top), starts).astype(np.int16)


_ROUGH = _levels(4096, 1, 3, 6, 10, 15, 21, 28, 37, 48, 62, 80, 103, 133, 172, 225, 300, 420, 600)
_BRIGHT = _levels(256, 1, 3, 6, 12, 20, 32, 48, 70, 100, 140, 190, 230)
_SMOOTH = 2 * 19  # contexts without a black neighbour: roughness, and whether the prediction is near white
CONTEXTS = _SMOOTH + 3 * 13 * 15  # the others: roughness in three, prediction, which of w n ne nw are black

_COUNT = 64  # what a pixel adds to its histogram
_EVERY = 14  # pixels between two tables of frequencies


class PixelModel:
    """The state of coding ``n`` images, sorted by class, up to a place; ``per_class`` int [k] says how many of each.

    ``step(place)`` sets ``context`` [n], the histogram that each image's next pixel is coded by, and ``cumulative``
    uint32 [CONTEXTS,257], the histograms; ``learn(place, pixels)`` must follow it. What is coded is ``flip(pixels)``.
    """

    def __init__(self, per_class: Integer[np.ndarray, " k"], weights: Float32[np.ndarray, "place k feature"]) -> None:
        ends = np.cumsum(per_class)
        self._classes = [slice(end - count, end) for end, count in zip(ends, per_class, strict=True)]
        self._weights = weights
        self._pixels = np.zeros((_AREA, ends[-1]), np.int16)
        self._misses = np.zeros((_AREA, ends[-1]), np.int16)
        self._counts = _prior()
        self._seen: list[np.ndarray] = []  # context and symbol of what is not yet in the counts

    def step(self, place: int) -> None:
        """Predicts the pixels at ``place`` = 28 y + x from those before it."""
        if place % SIDE == 0:
            self._counts -= self._counts >> 3  # the coming row is more like the last than like the first
        if place % _EVERY == 0:
            self._count()
            self.cumulative = _cumulative(self._counts)
        x = self.features(place)
        sums = [w @ x[:, images] for w, images in zip(self._weights[place], self._classes, strict=True)]
        self._mean = np.clip((np.concatenate(sums).astype(np.int32) + UNIT // 2) // UNIT, 0, 255)
        self.context, self._absolute = self._contexts(place)

    def features(self, place: int) -> Float32[np.ndarray, "feature n"]:
        """What predicts the pixels at ``place``: neighbours, the gradient's guess, a constant. Integers."""
        around = self._around(self._pixels, place)
        w, n, nw = around[:3]
        gradient = np.clip(w + n - nw, np.minimum(w, n), np.maximum(w, n))
        return np.stack([*around, gradient, np.full_like(w, 16)]).astype(np.float32)

    def flip(self, values: Integer[np.ndarray, " n"], back: bool = False) -> Int32[np.ndarray, " n"]:
        """Pixels as symbols 0..255, or ``back``: less the prediction, modulo 256, where no neighbour is black."""
        mean = np.where(self._absolute, 0, self._mean)
        return (values.astype(np.int32) + (mean if back else -mean)) & 255

    def learn(self, place: int, pixels: UInt8[np.ndarray, " n"]) -> None:
        """Takes in the pixels at ``place``."""
        self._seen.append(self.context * 256 + self.flip(pixels))
        self.show(place, pixels)
        self._misses[_at(place)] = np.abs(pixels - self._mean)

    def show(self, place: int, pixels: UInt8[np.ndarray, " n"]) -> None:
        """Places the pixels where later ``features`` find them."""
        self._pixels[_at(place)] = pixels

    def _count(self) -> None:
        if self._seen:
            seen = np.bincount(np.concatenate(self._seen), minlength=CONTEXTS * 256)
            self._counts += _COUNT * seen.reshape(CONTEXTS, 256)
            self._seen = []

    def _around(self, field: np.ndarray, place: int) -> list[np.ndarray]:
        return [field[_at(place) + y * _WIDTH + x] for y, x in _NEIGHBOURS]

    def _contexts(self, place: int) -> tuple[Int64[np.ndarray, " n"], np.ndarray]:
        w, n, nw, ne, *_ = self._around(self._pixels, place)
        miss_w, miss_n, miss_nw, miss_ne, *_ = self._around(self._misses, place)
        rough = np.abs(w - nw) + np.abs(n - nw) + np.abs(n - ne) + 2 * miss_w + 2 * miss_n + miss_nw + miss_ne
        rough = _ROUGH.take(rough)
        black = (w == 0) + np.int16(2) * (n == 0) + np.int16(4) * (ne == 0) + np.int16(8) * (nw == 0)
        by_black = _SMOOTH + 3 * (13 * (black - 1) + _BRIGHT.take(self._mean)) + (rough > 4) + (rough > 10)
        absolute = black > 0
        return np.where(absolute, by_black, 2 * rough + (self._mean > 200)).astype(np.int64), absolute


def _at(place: int) -> int:
    return (place // SIDE + 2) * _WIDTH + place % SIDE + 2


def _prior() -> Int64[np.ndarray, "context 256"]:
    """The histograms before the first pixel: small differences are likely, and so is black beside black."""
    counts = np.ones((CONTEXTS, 256), np.int64)
    distance = np.minimum(np.arange(256), np.arange(256, 0, -1))
    counts[:_SMOOTH] += 32 >> np.minimum(distance // 3, 6)
    counts[_SMOOTH:, 0] += _COUNT
    return counts


def _cumulative(counts: Int64[np.ndarray, "context 256"]) -> np.ndarray:
    """Cumulative frequencies uint32 [context,257] from 0 to 2**BITS, every symbol's at least 1."""
    frequencies = 1 + counts * ((1 << BITS) - 256) // counts.sum(axis=1, keepdims=True)
    frequencies[np.arange(CONTEXTS), counts.argmax(axis=1)] += (1 << BITS) - frequencies.sum(axis=1)
    return np.pad(frequencies.cumsum(axis=1), ((0, 0), (1, 0))).astype(np.uint32)
