"""What a teacher says of the crops of images: the records of soft labels, a shard at a time.

A shard depends on its own images alone, so that any process can make it, and in any order.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from jvq.data import label_folder
from jvq.data.crops import CropPolicy, cut
from jvq.data.records import Source
from jvq.data.transforms import Preprocess

Teacher = Callable[[np.ndarray], Any]
"""``teacher(images float32 [b,y,x,c], normalised) -> logits [b,o]``, NumPy or JAX."""


@dataclasses.dataclass(frozen=True)
class Labeller:
    """Draws crops, asks the teacher, keeps the largest; ``batch`` crops at a time, filled up with crops of before."""

    source: Source
    preprocess: Preprocess
    teacher: Teacher
    policy: CropPolicy
    classes: int
    crops: int
    keep: int
    seed: int
    batch: int

    def records(self, rows: Int[np.ndarray, " n"]) -> np.ndarray:
        """The records [n] of the images at ``rows``."""
        out = np.zeros(len(rows), label_folder.record_type(self.crops, self.keep))
        cuts, count = self._cuts(rows, out), len(rows) * self.crops
        index, value = (np.empty((count, self.keep), dtype) for dtype in (np.uint16, np.float16))
        images = np.zeros((self.batch, *self.preprocess.size, self.preprocess.channels), np.uint8)
        normalise = dataclasses.replace(self.preprocess, resize=None).batch  # of the final size: arithmetic only
        for first in range(0, count, self.batch):
            at = slice(first, min(first + self.batch, count))
            for place, made in enumerate(itertools.islice(cuts, at.stop - first)):
                images[place] = made
            logits = np.asarray(self.teacher(normalise(images))).astype(np.float64)
            index[at], value[at] = self._largest(logits, at.stop - first, int(rows[first // self.crops]))
        out["index"], out["value"] = (x.reshape(-1, self.crops, self.keep) for x in (index, value))
        return out

    def _cuts(self, rows: np.ndarray, out: np.ndarray) -> Iterator[np.ndarray]:
        """The crops of the images one after another; boxes, flips and checksums go into ``out`` on the way."""
        for record, i in zip(out, rows.tolist(), strict=True):
            image = self.source[i]["image"]
            boxes, flips = self.policy.draw(np.random.default_rng([self.seed, i]), self.crops, image.shape[:2])
            record["box"], record["flip"], record["crc"] = boxes, flips, checksum(image)
            for box, flip in zip(boxes, flips, strict=True):
                yield cut(image, box, flip, self.preprocess)

    def _largest(self, logits: np.ndarray, count: int, image: int) -> tuple[np.ndarray, np.ndarray]:
        """The first ``count`` rows' k largest probabilities, falling: their indices and values [count,k]."""
        if logits.shape != (self.batch, self.classes):
            raise ValueError(f"soft labels: the teacher must give {(self.batch, self.classes)}, got {logits.shape}")
        logits = logits[:count]
        if not np.isfinite(logits).all():
            raise ValueError(f"soft labels: the teacher's logits are not finite at image {image} or soon after")
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        index = np.argsort(-logits, axis=1, kind="stable")[:, : self.keep]
        return index, np.take_along_axis(powers / powers.sum(axis=1, keepdims=True), index, axis=1)


def checked(
    source: Source, classes: int, crops: int, keep: int, seed: int, shard: int, batch: int, indices: Any
) -> Int[np.ndarray, " n"]:
    """The places in the source of the images that get labels; ``ValueError`` for arguments that cannot be."""
    if not 1 <= classes <= label_folder.LARGEST:
        raise ValueError(
            f"soft labels: classes must be 1 to {label_folder.LARGEST} (an index has 16 bits), got {classes}"
        )
    if not 1 <= keep <= classes:
        raise ValueError(f"soft labels: keep must be 1 to {classes}, the classes, got {keep}")
    for name, number in (("crops", crops), ("shard", shard), ("batch", batch)):
        if number < 1:
            raise ValueError(f"soft labels: {name} must be positive, got {number}")
    if seed < 0:
        raise ValueError(f"soft labels: seed must not be negative, got {seed}")
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    outside = chosen[(chosen < 0) | (chosen >= len(source))]
    if outside.size:
        raise ValueError(f"soft labels: index {outside[0]} is outside source '{source.name}' of {len(source)} images")
    if not len(chosen):
        raise ValueError(f"soft labels: source '{source.name}' has no image to label")
    return chosen


def checksum(image: UInt8[np.ndarray, "y x c"]) -> int:
    """The CRC-32 of an image's pixels, by which a record knows its own."""
    return zlib.crc32(np.ascontiguousarray(image).data)
