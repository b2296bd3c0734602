"""Multi-crop soft labels: what a teacher says of R stored crops of every image, on disk, and the batches out of them.

The teacher runs once, before training; students then see its crops again with its k largest probabilities (FKD: Shen &
Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition"; the VVTQ specification, section 3).

A folder holds ``header.json``, ``shards.jsonl`` with a line for each finished shard, and the shards: a NumPy array of
records each, one an image. A file appears under its name only when it is whole, so writing goes on where it was killed.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32, Integer, UInt8

from jvq.core import reading
from jvq.core.calibrate import Track, silent
from jvq.core.errors import nearest
from jvq.data import label_folder
from jvq.data.crops import CropPolicy, cut
from jvq.data.records import Source
from jvq.data.transforms import Preprocess
from jvq.data.workers import THREADS

LOOKED_AT = 16  # images that stand for all when a folder is opened
OPEN = 256  # shards mapped at once: each holds a file descriptor, of which a process often has 1024
MODES = ("smooth", "renorm", "hard")

Teacher = Callable[[np.ndarray], Any]
"""``teacher(images float32 [b,y,x,c], normalised) -> logits [b,o]``, NumPy or JAX."""


class CropBatch(TypedDict):
    """``image`` uint8 [n,y,x,c], ``label`` int32 [n] of the source; the teacher's ``index`` and ``value`` [n,k]."""

    image: UInt8[np.ndarray, "n y x c"]
    label: Int32[np.ndarray, " n"]
    index: Int32[np.ndarray, "n k"]
    value: Float32[np.ndarray, "n k"]


def record_type(crops: int, keep: int) -> np.dtype:
    """What is stored of an image: R boxes and flips, k indices and values of each, falling, and the image's CRC-32."""
    box, flip = ("box", "<f4", (crops, 4)), ("flip", "u1", (crops,))
    return np.dtype([box, flip, ("index", "<u2", (crops, keep)), ("value", "<f2", (crops, keep)), ("crc", "<u4")])


class SoftLabels:
    """The soft labels in a folder, record by record; ``open`` makes one. ``len`` counts the images.

    ``indices`` int64 [n] says which image of the source a record is of; ``crops`` is R, ``keep`` k, ``classes`` the
    length of a recovered label, ``header`` everything that was said when they were written.
    """

    def __init__(
        self, folder: Path, header: dict[str, Any], shards: label_folder.Finished, indices: Int[np.ndarray, " n"]
    ) -> None:
        self.folder, self.header, self.indices = folder, header, indices
        self.classes, self.crops, self.keep = (int(header[key]) for key in ("classes", "crops", "keep"))
        self._shards, self._type = shards, record_type(self.crops, self.keep)
        self._verified, self._lock = set[int](), threading.Lock()
        self._shard = functools.lru_cache(maxsize=OPEN)(self._map)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], source: Source) -> "SoftLabels":
        """The labels in ``folder``, which must be whole and of the images of ``source``.

        Raises ``ValueError`` for a folder that is missing or not finished, an unknown schema, another number of images,
        or other images: 16 evenly spread ones are compared here, the others when they are used.
        """
        folder = Path(folder)
        header, shards, chosen = label_folder.opened(folder)
        if header["of"] != len(source):
            here = f"source '{source.name}' has {len(source)}"
            raise ValueError(f"soft labels: {folder} is of a source of {header['of']} images, {here}")
        labels = cls(folder, header, shards, chosen)
        for position in _spread(len(labels)):
            labels.record(position, source[int(chosen[position])]["image"])
        return labels

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, position: int, image: UInt8[np.ndarray, "y x c"]) -> np.void:
        """Record number ``position``: its fields are those of ``record_type``.

        Raises ``ValueError`` where ``image`` is not the one it is of, or where the shard is not as it was written.
        """
        shard, row = divmod(position, self.header["shard"])
        record = self._shard(shard)[row]
        if (got := _crc(image)) != record["crc"]:
            want = (
                f"image {self.indices[position]} has CRC-32 {got:08x}, the labels are of one with {record['crc']:08x}"
            )
            raise ValueError(f"soft labels: {self.folder} is of other images: {want}")
        return record

    def _map(self, shard: int) -> np.ndarray:
        """Shard [rows] mapped into memory, its digest compared the first time."""
        path, (rows, digest) = self.folder / label_folder.shard_name(shard), self._shards[shard]
        try:
            with self._lock:
                if shard not in self._verified:
                    if label_folder.digest(path) != digest:
                        raise ValueError("its SHA-256 is another")
                    self._verified.add(shard)
            records = reading.npy_mapped(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"soft labels: {path} is not as it was written: {error}") from error
        if problem := label_folder.problem(records, rows, self._type, self.classes):
            raise ValueError(f"soft labels: {path} {problem}")
        return records


def write(
    folder: str | os.PathLike[str],
    source: Source,
    preprocess: Preprocess,
    teacher: Teacher,
    *,
    teacher_name: str,
    teacher_digest: str,
    classes: int,
    crops: int = 16,
    keep: int = 5,
    policy: CropPolicy | None = None,
    seed: int = 0,
    shard: int = 1024,
    batch: int = 256,
    indices: Sequence[int] | np.ndarray | None = None,
    track: Track = silent,
) -> SoftLabels:
    """The labels of ``crops`` crops of every image, or of those at ``indices``, written to ``folder`` shard by shard.

    A label is the teacher's softmax at temperature 1, of which the ``keep`` largest are stored. Crops of image i are
    drawn by ``default_rng([seed, i])``, so that no image depends on another and finished shards of an earlier call are
    kept; one that is damaged is made again. The teacher always gets ``batch`` images: what is missing at a shard's end
    are images of before. ``teacher_name`` and ``teacher_digest`` are the caller's words for it.

    Raises ``ValueError`` for arguments that cannot be, for a folder that holds other labels (it says which fields
    differ), and for logits of another shape or not finite; ``CorruptImage`` for an image that cannot be read.
    """
    folder, policy = Path(folder), CropPolicy() if policy is None else policy
    chosen = _check(source, classes, crops, keep, seed, shard, batch, indices)
    header = {
        "schema": label_folder.SCHEMA,
        "source": source.name,
        "of": len(source),
        "images": len(chosen),
        "chosen": label_folder.ALL if indices is None else label_folder.digest_of(chosen),
        "fingerprint": image_digest(source, chosen),
        "classes": classes,
        "crops": crops,
        "keep": keep,
        "policy": dataclasses.asdict(policy),
        "preprocess": preprocess.to_dict(),
        "seed": seed,
        "teacher": teacher_name,
        "digest": teacher_digest,
        "shard": shard,
    }
    label_folder.begin(folder, header, chosen)
    finished = {
        number: (rows, digest)
        for number, (rows, digest) in label_folder.finished(folder, header).items()
        if label_folder.digest(folder / label_folder.shard_name(number)) == digest
    }
    todo = [number for number in range(label_folder.shard_count(header)) if number not in finished]
    labeller = _Labeller(source, preprocess, teacher, policy, classes, crops, keep, seed, batch)
    for number in track(todo, "labelling crops"):
        rows = chosen[number * shard :][:shard]
        content = label_folder.npy(labeller.records(rows))
        label_folder.replace(folder / label_folder.shard_name(number), content)
        finished[number] = (len(rows), hashlib.sha256(content).hexdigest())
        label_folder.note(folder, finished)
    return SoftLabels.open(folder, source)


def recover(
    index: Integer[Array | np.ndarray, "b k"], value: Float[Array | np.ndarray, "b k"], classes: int, mode: str
) -> Float32[Array, "b o"]:
    """Whole labels float32 [b,o], each of sum 1, from the k largest probabilities; for use inside a jitted step.

    "smooth" (FKD's marginal smoothing) keeps them and gives every other class the same share of the rest; where there
    is no rest, because float16 rounded the sum above 1 or all classes are stored, they are divided by their sum.
    "renorm" divides by the sum and gives the others 0; "hard" gives the largest 1. Raises ``ValueError`` for another.
    """
    if mode not in MODES:
        raise ValueError(f"soft labels: no mode '{mode}'{nearest(mode, MODES)}")
    index, value = jnp.asarray(index).astype(jnp.int32), jnp.asarray(value).astype(jnp.float32)
    b, k = index.shape
    total, rest = value.sum(axis=1, keepdims=True), jnp.zeros((b, 1), jnp.float32)
    if mode == "hard":
        value = (jnp.arange(k)[None] == value.argmax(axis=1, keepdims=True)).astype(jnp.float32)
    elif mode == "renorm" or k == classes:
        value = value / total
    else:
        value, rest = value / jnp.maximum(total, 1.0), jnp.maximum(1.0 - total, 0.0) / (classes - k)
    return jnp.broadcast_to(rest, (b, classes)).at[jnp.arange(b)[:, None], index].set(value)


def passes(epochs: int, per_image: int) -> list[int]:
    """How many crops of an image each pass over the data takes: a pass at M crops counts as M epochs.

    What is left over are passes of one crop: 150 epochs at 4 crops are 37 passes of 4 and 2 of 1 (VVTQ's released
    code). Raises ``ValueError`` for numbers that are not positive.
    """
    if epochs < 1 or per_image < 1:
        raise ValueError(f"soft labels: epochs and crops an image must be positive, got {epochs} and {per_image}")
    return [per_image] * (epochs // per_image) + [1] * (epochs % per_image)


def steps(images: int, batch: int, epochs: int, per_image: int) -> int:
    """How many batches of ``batch`` crops the passes over ``images`` images take, each pass rounded up."""
    if images < 1 or batch < 1:
        raise ValueError(f"soft labels: images and batch must be positive, got {images} and {batch}")
    return sum(-(-images // -(-batch // m)) for m in passes(epochs, per_image))


def crop_batches(
    source: Source,
    labels: SoftLabels,
    preprocess: Preprocess,
    batch: int,
    per_image: int,
    epochs: int,
    seed: int,
    start: int = 0,
) -> Iterator[CropBatch]:
    """Iterates ``CropBatch`` of ``batch`` crops [n], M = ``per_image`` of an image side by side, from step ``start``.

    Every pass of ``passes(epochs, M)`` shuffles the images anew and draws M of an image's R crops without replacement;
    its last batch is filled up from its own beginning. A batch depends on the arguments and its step alone: started
    anywhere, the stream is what it would have been there. Batches are cut ahead, in threads. Images are not normalised.

    Raises ``ValueError`` where M does not divide ``batch`` or is more than R, where ``start`` lies outside, where
    labels are of another source; while iterating as ``SoftLabels.record`` does, and ``CorruptImage``.
    """
    total = steps(len(labels), batch, epochs, per_image)
    if batch % per_image:
        raise ValueError(f"soft labels: crops an image must divide the batch, got {per_image} and {batch}")
    if per_image > labels.crops:
        raise ValueError(f"soft labels: {labels.folder} holds {labels.crops} crops an image, wanted {per_image}")
    if not 0 <= start <= total:
        raise ValueError(f"soft labels: start must be a step from 0 to {total}, got {start}")
    if seed < 0:
        raise ValueError(f"soft labels: seed must not be negative, got {seed}")
    if labels.header["of"] != len(source):
        raise ValueError(f"soft labels: {labels.folder} is of {labels.header['of']} images, got {len(source)}")
    import grain  # takes more than a second, so only who loads pays

    stream = _Stream(source, labels, preprocess, batch, passes(epochs, per_image), seed)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS)
    return iter(grain.MapDataset.range(total)[start:].map(stream).to_iter_dataset(options))


class _Stream:
    """``stream(step) -> CropBatch``: any step, in any order, from any thread."""

    def __init__(
        self, source: Source, labels: SoftLabels, preprocess: Preprocess, batch: int, plan: list[int], seed: int
    ) -> None:
        self.source, self.labels, self.preprocess = source, labels, preprocess
        self.batch, self.plan, self.seed = batch, plan, seed
        self.ends = np.cumsum([-(-len(labels) // (batch // m)) for m in plan])
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)  # threads may be on both sides of a pass's end

    def __call__(self, step: int) -> CropBatch:
        number = int(np.searchsorted(self.ends, step, side="right"))
        m = self.plan[number]
        images = self.batch // m
        first = (step - (int(self.ends[number - 1]) if number else 0)) * images
        order = self._order(number)
        which = order[np.arange(first, first + images) % len(order)]
        # A third word that is not 0 keeps both apart from the [seed, image] that crops are drawn with.
        picks = np.random.default_rng([self.seed, step, 2]).random((images, self.labels.crops)).argsort(axis=1)[:, :m]
        k = self.labels.keep
        out: CropBatch = {
            "image": np.empty((self.batch, *self.preprocess.size, self.preprocess.channels), np.uint8),
            "label": np.empty(self.batch, np.int32),
            "index": np.empty((self.batch, k), np.int32),
            "value": np.empty((self.batch, k), np.float32),
        }
        for row, (position, picked) in enumerate(zip(which.tolist(), picks, strict=True)):
            found = self.source[int(self.labels.indices[position])]
            record = self.labels.record(position, found["image"])
            at = slice(row * m, (row + 1) * m)
            for place, r in enumerate(picked.tolist(), at.start):
                out["image"][place] = cut(found["image"], record["box"][r], record["flip"][r], self.preprocess)
            out["label"][at], out["index"][at] = found["label"], record["index"][picked]
            out["value"][at] = record["value"][picked]
        return out

    def _shuffled(self, number: int) -> np.ndarray:
        """The records' order in pass ``number``: int64 [n]."""
        return np.random.default_rng([self.seed, number, 1]).permutation(len(self.labels))


@dataclasses.dataclass(frozen=True)
class _Labeller:
    """Draws crops, asks the teacher, keeps the largest; a shard at a time and independent of the others."""

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
        out = np.zeros(len(rows), record_type(self.crops, self.keep))
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
            record["box"], record["flip"], record["crc"] = boxes, flips, _crc(image)
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


def _check(
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


def _spread(count: int) -> list[int]:
    """Up to 16 places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, LOOKED_AT).round().astype(int)).tolist()


def _crc(image: UInt8[np.ndarray, "y x c"]) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data)


def image_digest(source: Source, chosen: Int[np.ndarray, " n"]) -> str:
    """A short digest of 16 evenly spread images."""
    digest = hashlib.sha256()
    for position in _spread(len(chosen)):
        image = source[int(chosen[position])]["image"]
        digest.update(f"{image.shape}\n".encode() + image.tobytes())
    return digest.hexdigest()[:16]
