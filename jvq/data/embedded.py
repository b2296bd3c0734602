"""The embedded data set, Fashion-MNIST: decoded from package data with numpy alone.

Written by ``jvq.data.embed``. ``PixelModel`` says how likely each pixel is, and rANS codes it accordingly (Duda,
"Asymmetric numeral systems", 2013; words of 16 bits): ``LANES`` states take turns over the images and share one stream
of words. That is 22.1 MB, where lossless WebP sheets take 27.7 MB and the published files 30.9 MB.
"""

import lzma
from importlib import resources

import numpy as np
from jaxtyping import Float32, Int32, UInt8, UInt16, UInt32

from jvq.data.pixel_model import BITS, FEATURES, PLACES, SIDE, PixelModel

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SPLITS = ("train", "test")
LANES = 5_000  # rANS states: fewer make the file smaller, by 2 bytes each, and the decoder slower
_COARSE = 12  # bits of the table that a search for a symbol starts from


def read(split: str) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, " n"]]:
    """Images uint8 [n,28,28,1] and labels int32 [n] of "train" (60,000) or "test" (10,000), in the original order."""
    folder = resources.files("jvq") / "assets" / "fashion_mnist"
    labels = np.frombuffer(lzma.decompress((folder / f"{split}-labels.xz").read_bytes()), np.uint8)
    words = np.frombuffer((folder / f"{split}-images.rans").read_bytes(), "<u2")
    weights = unpack_weights((folder / "weights.xz").read_bytes())
    order = np.argsort(labels, kind="stable")
    images = np.empty((len(labels), SIDE, SIDE, 1), np.uint8)
    images[order] = _decode(words, np.bincount(labels), weights).T.reshape(-1, SIDE, SIDE, 1)
    return images, labels.astype(np.int32)


def unpack_weights(packed: bytes) -> Float32[np.ndarray, "place k feature"]:
    """The prediction's weights [place,k,feature], integers."""
    values = np.frombuffer(lzma.decompress(packed), "<i2").astype(np.float32)
    return values.reshape(PLACES, len(CLASSES), FEATURES)


def _decode(
    words: UInt16[np.ndarray, " w"], per_class: np.ndarray, weights: Float32[np.ndarray, "place k feature"]
) -> UInt8[np.ndarray, "place n"]:
    """The pixels [place,n] of all images, sorted by class."""
    model = PixelModel(per_class, weights)
    stream = _Stream(words[:LANES].astype(np.uint32) << 16 | words[LANES : 2 * LANES], words[2 * LANES :])
    pixels = np.empty((PLACES, per_class.sum()), np.uint8)
    for place in range(PLACES):
        model.step(place)
        stream.use(model.cumulative)
        symbols = np.concatenate([stream.take(context) for context in model.context.reshape(-1, LANES)])
        pixels[place] = model.flip(symbols, back=True)
        model.learn(place, pixels[place])
    return pixels


class _Stream:
    """rANS decoding of one symbol a state at a time, ``state`` uint32 [lane] between 2**16 and 2**32."""

    def __init__(self, state: UInt32[np.ndarray, " lane"], words: UInt16[np.ndarray, " w"]) -> None:
        self._state, self._words, self._next = state, words, 0
        self._used: np.ndarray | None = None

    def use(self, cumulative: UInt32[np.ndarray, "context 257"]) -> None:
        """Decodes by these histograms from now on."""
        if cumulative is self._used:
            return
        self._used, self._cumulative = cumulative, cumulative.ravel()
        firsts = -(-cumulative.astype(np.int64) >> BITS - _COARSE)  # the first coarse slot that begins with the symbol
        symbols = np.tile(np.arange(256, dtype=np.uint8), len(cumulative))
        self._symbols = np.repeat(symbols, np.diff(firsts).ravel())

    def take(self, context: np.ndarray) -> np.ndarray:
        """The next symbol of each lane, coded in ``context`` [lane]."""
        slot = self._state & 0xFFFF
        symbol = self._symbols[(context << _COARSE) + (slot >> BITS - _COARSE)]
        at = context * 257 + symbol
        wrong = np.flatnonzero(self._cumulative[at + 1] <= slot)
        while wrong.size:
            at[wrong] += 1
            wrong = wrong[self._cumulative[at[wrong] + 1] <= slot[wrong]]
        low = self._cumulative[at]
        state = (self._cumulative[at + 1] - low) * (self._state >> 16) + slot - low
        short = np.flatnonzero(state < 1 << 16)
        state[short] = state[short] << 16 | self._words[self._next : self._next + short.size]
        self._state, self._next = state, self._next + short.size
        return at - context * 257
