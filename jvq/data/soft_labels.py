"""Multi-crop soft labels: what a teacher says of R stored crops of every image, on disk, and the batches out of them.

The teacher runs once, before training; students then see its crops again with its k largest probabilities (FKD: Shen &
Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition"; the VVTQ specification, section 3).

A folder holds ``header.json``, ``shards.jsonl`` with a line for each finished shard, and the shards: a NumPy array of
records each, one an image. A file appears under its name only when it is whole, so writing goes on where it was killed.
"""

import dataclasses
import functools
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer, UInt8

from jvq.core import hosts, reading
from jvq.core.calibrate import Track, silent
from jvq.core.errors import nearest
from jvq.core.mesh import own_rows
from jvq.data import label_folder
from jvq.data.crops import CropPolicy, cut
from jvq.data.labelling import Labeller, Teacher, checked, checksum
from jvq.data.records import Source
from jvq.data.transforms import Preprocess
from jvq.data.workers import THREADS, ahead, processes

LOOKED_AT = 16  # images that stand for all when a folder is opened
OPEN = 256  # shards mapped at once: each holds a file descriptor, of which a process often has 1024
MODES = ("smooth", "renorm", "hard")


class CropBatch(TypedDict):
    """``image`` uint8 [n,y,x,c], ``label`` int32 [n] of the source; the teacher's ``index`` and ``value`` [n,k]."""

    image: UInt8[np.ndarray, "n y x c"]
    label: Int32[np.ndarray, " n"]
    index: Int32[np.ndarray, "n k"]
    value: Float32[np.ndarray, "n k"]


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
        self._shards, self._type = shards, label_folder.record_type(self.crops, self.keep)
        self._verified, self._lock = set[int](), threading.Lock()
        self._shard = functools.lru_cache(maxsize=OPEN)(self._map)

    def __reduce__(self) -> tuple[Any, ...]:
        """Processes that read ahead map and verify shards of their own."""
        return SoftLabels, (self.folder, self.header, self._shards, self.indices)

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
        if (got := checksum(image)) != record["crc"]:
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

    Of many processes each makes a shard at a time, with a teacher on a device of its own, and the leading one writes
    them: the files are those of one process. The folder is the leading one's, and all have to see it.

    Raises ``ValueError`` for arguments that cannot be, for a folder that holds other labels (it says which fields
    differ), and for logits of another shape or not finite; ``CorruptImage`` for an image that cannot be read.
    """
    folder, policy = _common(Path(folder)), CropPolicy() if policy is None else policy
    chosen = checked(source, classes, crops, keep, seed, shard, batch, indices)
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
    there = hosts.led(lambda: _begun(folder, header, chosen))
    _seen_by_all(folder)
    finished: label_folder.Finished = {number: (rows, sha) for number, rows, sha in there}
    todo = [number for number in range(label_folder.shard_count(header)) if number not in finished]
    labeller = Labeller(source, preprocess, teacher, policy, classes, crops, keep, seed, batch)
    for turn, _ in enumerate(track(todo[:: hosts.count()], "labelling crops")):
        numbers = todo[turn * hosts.count() :][: hosts.count()]
        parts = {number: chosen[number * shard :][:shard] for number in numbers}
        mine = [labeller.records(parts[number]) for number in numbers[hosts.share(len(numbers))]]
        made = hosts.stacked(np.concatenate(mine) if mine else np.zeros(0, label_folder.record_type(crops, keep)))
        shards = zip(numbers, np.split(made, np.cumsum([len(rows) for rows in parts.values()])[:-1]), strict=True)
        hosts.led(lambda shards=shards: _written(folder, shards, finished))
    return SoftLabels.open(folder, source)


def _common(folder: Path) -> Path:
    """The folder of the leading process."""
    return Path(hosts.agreed(str(folder.resolve()))) if hosts.many() else folder


def _seen_by_all(folder: Path) -> None:
    """Raises ``ValueError`` where a process does not see the folder that the leading one has begun."""
    seen = hosts.shared((folder / label_folder.HEADER).is_file())
    if not all(seen):
        raise hosts.Agreed(f"soft labels: process {seen.index(False)} does not see {folder}: all have to")


def _begun(folder: Path, header: label_folder.Header, chosen: Int[np.ndarray, " n"]) -> list[tuple[int, int, str]]:
    """Number, rows and SHA-256 of every shard that is there already and as it was written; the folder made ready."""
    label_folder.begin(folder, header, chosen)
    there = label_folder.finished(folder, header).items()
    return [(n, *shard) for n, shard in there if label_folder.digest(folder / label_folder.shard_name(n)) == shard[1]]


def _written(folder: Path, shards: Iterable[tuple[int, np.ndarray]], finished: label_folder.Finished) -> None:
    """Writes the records of shards, and notes them as ``finished``, one after another."""
    for number, records in shards:
        content = label_folder.npy(records)
        label_folder.replace(folder / label_folder.shard_name(number), content)
        finished[number] = (len(records), hashlib.sha256(content).hexdigest())
        label_folder.note(folder, finished)


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
    workers: int = 0,
    mesh: Mesh | None = None,
) -> Iterator[CropBatch]:
    """Iterates ``CropBatch`` of ``batch`` crops [n], M = ``per_image`` of an image side by side, from step ``start``.

    Every pass of ``passes(epochs, M)`` shuffles the images anew and draws M of an image's R crops without replacement;
    its last batch is filled up from its own beginning. A batch depends on the arguments and its step alone: started
    anywhere, the stream is what it would have been there. Batches are cut ahead, by ``workers`` processes or in
    threads, as for ``Loader``. Images are not normalised. On a ``mesh`` of several processes each cuts the crops that
    its devices are given; the rows of others are zeros.

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

    stream = _Stream(source, labels, preprocess, own_rows(mesh, batch), passes(epochs, per_image), seed)
    made = grain.MapDataset.range(total)[start:].map(stream)
    if count := processes(workers, source, len(made)):
        return ahead(made, source, count)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS)  # also out of memory: they cut
    return iter(made.to_iter_dataset(options))


class _Stream:
    """``stream(step) -> CropBatch``: any step, in any order, from any thread."""

    def __init__(
        self,
        source: Source,
        labels: SoftLabels,
        preprocess: Preprocess,
        mine: Bool[np.ndarray, " n"],
        plan: list[int],
        seed: int,
    ) -> None:
        self.given = source, labels, preprocess, mine, plan, seed
        self.source, self.labels, self.preprocess = source, labels, preprocess
        self.mine, self.batch, self.plan, self.seed = mine, len(mine), plan, seed
        self.ends = np.cumsum([-(-len(labels) // (self.batch // m)) for m in plan])
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)  # threads may be on both sides of a pass's end

    def __reduce__(self) -> tuple[Any, ...]:
        return _Stream, self.given

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
            "image": np.zeros((self.batch, *self.preprocess.size, self.preprocess.channels), np.uint8),
            "label": np.zeros(self.batch, np.int32),
            "index": np.zeros((self.batch, k), np.int32),
            "value": np.zeros((self.batch, k), np.float32),
        }
        rows = np.arange(self.batch).reshape(images, m)
        for position, picked, at in zip(which.tolist(), picks, rows, strict=True):
            if not self.mine[at].any():
                continue
            found = self.source[int(self.labels.indices[position])]
            record = self.labels.record(position, found["image"])
            picked, at = picked[self.mine[at]], at[self.mine[at]]
            for place, r in zip(at.tolist(), picked.tolist(), strict=True):
                out["image"][place] = cut(found["image"], record["box"][r], record["flip"][r], self.preprocess)
            out["label"][at], out["index"][at] = found["label"], record["index"][picked]
            out["value"][at] = record["value"][picked]
        return out

    def _shuffled(self, number: int) -> np.ndarray:
        """The records' order in pass ``number``: int64 [n]."""
        return np.random.default_rng([self.seed, number, 1]).permutation(len(self.labels))


def _spread(count: int) -> list[int]:
    """Up to 16 places, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, LOOKED_AT).round().astype(int)).tolist()


def image_digest(source: Source, chosen: Int[np.ndarray, " n"]) -> str:
    """A short digest of 16 evenly spread images."""
    digest = hashlib.sha256()
    for position in _spread(len(chosen)):
        image = source[int(chosen[position])]["image"]
        digest.update(f"{image.shape}\n".encode() + image.tobytes())
    return digest.hexdigest()[:16]
