"""Writes the embedded data set: ``python -m jvq.data.embed SRC_DIR``, half a minute.

SRC_DIR holds Fashion-MNIST as published (https://github.com/zalandoresearch/fashion-mnist), four ``*-ubyte.gz`` files.
What is written is read back and compared before the command ends.
"""

import gzip
import lzma
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from jvq.data.embedded import LANES, SPLITS, read, unpack_weights
from jvq.data.pixel_model import FEATURES, PLACES, UNIT, PixelModel

TARGET = Path(__file__).parents[1] / "assets" / "fashion_mnist"
PUBLISHED = {"train": "train", "test": "t10k"}


def published(source: Path, split: str) -> tuple[UInt8[np.ndarray, "n 784"], UInt8[np.ndarray, " n"]]:
    """Images uint8 [n,784] and labels uint8 [n] from the published IDX files."""
    images = gzip.decompress((source / f"{PUBLISHED[split]}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / f"{PUBLISHED[split]}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, PLACES), np.frombuffer(labels, np.uint8, offset=8)


def fit_weights(
    images: UInt8[np.ndarray, "n place"], labels: UInt8[np.ndarray, " n"]
) -> Float32[np.ndarray, "place k feature"]:
    """The weights of ``PixelModel`` by least squares, a class and a place at a time, rounded to whole ``UNIT``-ths."""
    per_class = np.bincount(labels)
    pixels = images[np.argsort(labels, kind="stable")].T
    weights = np.zeros((PLACES, len(per_class), FEATURES), np.float32)
    model = PixelModel(per_class, weights)
    ends = per_class.cumsum()
    for place in range(PLACES):
        x, y = model.features(place).astype(np.float64), pixels[place].astype(np.float64)
        shared = x @ x.T / len(labels) * 200  # as if each class had 200 images of all classes, too
        prior = np.linalg.solve(x @ x.T + 100 * np.eye(FEATURES), x @ y)
        for k, (end, count) in enumerate(zip(ends, per_class, strict=True)):
            xk, yk = x[:, end - count : end], y[end - count : end]
            fit = np.linalg.solve(xk @ xk.T + shared + 100 * np.eye(FEATURES), xk @ yk + shared @ prior)
            weights[place, k] = np.rint(fit * UNIT)
        model.show(place, pixels[place])
    return weights


def encode(
    images: UInt8[np.ndarray, "n place"],
    labels: UInt8[np.ndarray, " n"],
    weights: Float32[np.ndarray, "place k feature"],
) -> UInt16[np.ndarray, " w"]:
    """The words that ``jvq.data.embedded`` decodes: the states' halves, then the stream."""
    n = len(labels)
    pixels = images[np.argsort(labels, kind="stable")].T
    model = PixelModel(np.bincount(labels), weights)
    low, high = np.empty((PLACES, n), np.uint16), np.empty((PLACES, n), np.uint32)
    for place in range(PLACES):
        model.step(place)
        symbols = model.flip(pixels[place])
        low[place], high[place] = model.cumulative[model.context, symbols], model.cumulative[model.context, symbols + 1]
        model.learn(place, pixels[place])
    state, words = np.full(LANES, 1 << 16, np.uint64), []
    for start, end in zip(low.reshape(-1, LANES)[::-1], high.reshape(-1, LANES)[::-1], strict=True):
        start, frequency = start.astype(np.uint64), (end - start).astype(np.uint64)
        full = state >= frequency << np.uint64(16)
        words.append(state[full].astype(np.uint16))
        state[full] >>= np.uint64(16)
        state = (state // frequency << np.uint64(16)) + state % frequency + start
    heads = [(state >> np.uint64(16)).astype(np.uint16), state.astype(np.uint16)]
    return np.concatenate(heads + words[::-1])


def main(source: Path) -> None:
    """Writes weights, labels and images of both splits to the package's assets, and reads them back."""
    TARGET.mkdir(parents=True, exist_ok=True)
    packed = lzma.compress(fit_weights(*published(source, "train")).astype("<i2").tobytes(), preset=9)
    (TARGET / "weights.xz").write_bytes(packed)
    for split in SPLITS:
        images, labels = published(source, split)
        (TARGET / f"{split}-labels.xz").write_bytes(lzma.compress(labels.tobytes(), preset=9))
        words = encode(images, labels, unpack_weights(packed))
        (TARGET / f"{split}-images.rans").write_bytes(words.astype("<u2").tobytes())
        again, labels_again = read(split)
        if not np.array_equal(again.reshape(images.shape), images) or not np.array_equal(labels_again, labels):
            raise AssertionError(f"{TARGET}: {split} does not come back as it went in")
        print(f"{split}: {len(labels)} images, {2 * len(words)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
