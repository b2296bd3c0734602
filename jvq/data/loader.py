"""Batches out of a source: in order for evaluation, a random few for calibration, shuffled epochs for training.

grain shuffles and repeats, and reads ahead in threads or processes (:mod:`jvq.data.workers`); whole batches are
gathered at once where the source has its images in memory.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float32, Int, Int32

from jvq.core import hosts, reading
from jvq.core.calibrate import Track, silent
from jvq.core.mesh import own_rows, told_apart
from jvq.data.records import CorruptImage, Gathers, Records, Some, Source
from jvq.data.transforms import Preprocess
from jvq.data.workers import ahead, processes

__all__ = ["Batch", "Loader", "Sample", "batches", "sample", "train_batches"]


class Batch(TypedDict):
    """``image`` float32 [b,y,x,c], ``label`` int32 [b], ``mask`` bool [b]: False at padding and at corrupt images."""

    image: Float32[np.ndarray, "b y x c"]
    label: Int32[np.ndarray, " b"]
    mask: Bool[np.ndarray, " b"]


class Sample(NamedTuple):
    """``images`` float32 [n,y,x,c], ``labels`` int32 [n] and ``indices`` int64 [n], their places in the source."""

    images: Float32[np.ndarray, "n y x c"]
    labels: Int32[np.ndarray, " n"]
    indices: Int[np.ndarray, " n"]


class Loader:
    """The batches of a source, in order, as often as iterated; ``len`` counts them, ``skipped`` lists corrupt images.

    Every batch has ``batch_size`` rows. The rows after the last image, and those of images that cannot be read, are
    zeros with mask False. ``skipped`` has a line for each image that the latest iteration could not read, in order.
    ``workers`` processes read them, or threads where it is 0 (see :func:`jvq.data.workers.processes`): the batches are
    the same. On a ``mesh`` of several processes each reads the images that its devices are given; the rows of others
    are zeros, what is said of them (label, mask, a line) is the same everywhere.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        batch_size: int,
        indices: Sequence[int] | np.ndarray | None = None,
        workers: int = 0,
        mesh: Mesh | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"loader: batch_size must be positive, got {batch_size}")
        self.source, self.preprocess, self.batch_size = source, preprocess, batch_size
        self.mine, self.shared = own_rows(mesh, batch_size), told_apart(mesh)
        self.indices = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
        outside = self.indices[(self.indices < 0) | (self.indices >= len(source))]
        if outside.size:
            raise ValueError(f"loader: index {outside[0]} is outside source '{source.name}' of {len(source)} images")
        self.skipped: list[str] = []
        self.workers = processes(workers, source, len(self))

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        import grain  # takes more than a second, so only who loads pays

        self.skipped = skipped = []
        for batch, errors in ahead(grain.MapDataset.range(len(self)).map(self._load), self.source, self.workers):
            if self.shared:
                batch, errors = self._completed(batch, errors)
            skipped += errors
            yield batch

    def _load(self, k: int) -> tuple[Batch, list[str]]:
        """Batch ``k`` and a line for each of its corrupt images."""
        rows = self.indices[k * self.batch_size :][: self.batch_size]
        (places,) = self.mine[: len(rows)].nonzero()
        images, labels, good, errors = _read(self.source, self.preprocess, rows[places])
        good = places[good]
        shape = (self.batch_size, *self.preprocess.size, self.preprocess.channels)
        if len(good) == self.batch_size:
            return {"image": images, "label": labels, "mask": np.ones(self.batch_size, bool)}, errors
        batch: Batch = {
            "image": np.zeros(shape, np.float32),
            "label": np.zeros(self.batch_size, np.int32),
            "mask": np.zeros(self.batch_size, bool),
        }
        batch["image"][good], batch["label"][good], batch["mask"][good] = images, labels, True
        return batch, errors

    def _completed(self, batch: Batch, errors: list[str]) -> tuple[Batch, list[str]]:
        """The batch with the labels and the mask of the images that other processes have read, and their lines."""
        (places,) = batch["mask"].nonzero()
        label, mask, lines = batch["label"], batch["mask"], list[str]()
        for said in hosts.shared([places.tolist(), label[places].tolist(), errors]):
            label[said[0]], mask[said[0]] = said[1], True
            lines += said[2]
        return batch, [*dict.fromkeys(lines)]  # several may have read the same image


def batches(
    source: Source,
    preprocess: Preprocess,
    batch_size: int,
    indices: Sequence[int] | np.ndarray | None = None,
    workers: int = 0,
) -> Loader:
    """The batches of ``source``, or of its images at ``indices``, in order: see ``Loader``."""
    return Loader(source, preprocess, batch_size, indices, workers)


def sample(source: Source, preprocess: Preprocess, count: int, seed: int, track: Track = silent) -> Sample:
    """``count`` images drawn without replacement by ``numpy.random.default_rng(seed)``: images float32 [count,y,x,c].

    A corrupt image is replaced by the next drawn. Of many processes each reads a part, and all have all. Raises
    ``ValueError`` where the source has fewer than ``count`` images that can be read, or where a value comes out NaN or
    infinite.
    """
    order = np.random.default_rng(seed).permutation(len(source))
    parts: list[Sample] = []
    found, at = 0, 0
    while found < count and at < len(order):
        rows = order[at : at + count - found]
        mine = rows[hosts.share(len(rows))]
        # who tracks may ask all processes whether they go on, and their parts are not of one length
        images, labels, good, _ = _read(source, preprocess, mine, silent if hosts.many() else track)
        images, labels, good = map(hosts.stacked, (images, labels, mine[good]))
        parts.append(Sample(images, labels, good))
        found, at = found + len(good), at + len(rows)
    if found < count or count < 1:
        has = f"source '{source.name}' has {found} of {len(source)} that can be read"
        raise ValueError(f"sample: wanted {count} images, {has}")
    drawn = parts[0] if len(parts) == 1 else Sample(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    if not np.isfinite(drawn.images).all():
        raise ValueError(f"sample: NaN or infinite values out of source '{source.name}' with {preprocess}")
    return drawn


def train_batches(
    source: Source,
    batch_size: int,
    seed: int,
    epochs: int,
    preprocess: Preprocess | None = None,
    start: int = 0,
    workers: int = 0,
    mesh: Mesh | None = None,
) -> Iterator[Records]:
    """Iterates ``{"image": uint8 [b,y,x,c], "label": int32 [b]}``, reshuffled every epoch, its remainder dropped.

    Augmentation and normalisation are the training step's; ``preprocess``, where given, only resizes and crops, which
    images of different sizes need. The same arguments give the same stream; ``start`` leaves out so many batches of
    it, and ``workers`` processes read it as they do for ``Loader``. On a ``mesh`` of several processes each reads the
    images that its devices are given, the others are zeros, as are their labels. Raises ``ValueError`` where the images
    still differ in size or a batch is larger than the source, and ``CorruptImage`` where one cannot be read: training
    does not go on quietly without it.
    """
    if not 1 <= batch_size <= len(source):
        raise ValueError(f"train_batches: batch_size must be 1 to {len(source)} ('{source.name}'), got {batch_size}")
    import grain

    # grain shuffles epoch e with seed + e, so neighbouring seeds would share their epochs' orders: spread them first.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    indices = grain.MapDataset.range(len(source)).shuffle(spread).batch(batch_size, drop_remainder=True).repeat(epochs)
    (mine,) = own_rows(mesh, batch_size).nonzero()
    made = indices[start:].map(lambda rows: _spread(_gather(source, preprocess, rows[mine]), mine, batch_size))
    return ahead(made, source, processes(workers, source, len(made)))


def _read(
    source: Source, preprocess: Preprocess, rows: Int[np.ndarray, " b"], track: Track = silent
) -> tuple[Float32[np.ndarray, "g y x c"], Int32[np.ndarray, " g"], Int[np.ndarray, " g"], list[str]]:
    """The images and labels at ``rows`` that can be read, their positions in ``rows``, and a line for each other."""
    if isinstance(source, Gathers) and len(rows):
        records = source.__getitems__(rows)
        return preprocess.batch(records["image"]), records["label"], np.arange(len(rows)), []
    images, labels, good, errors = [], [], [], []
    for position, row in enumerate(track(rows, f"reading images of {source.name}")):
        try:
            image, label = _prepared(source, int(row), preprocess)
        except CorruptImage as error:
            errors.append(str(error))
            continue
        images.append(image)
        labels.append(label)
        good.append(position)
    stacked = np.stack(images) if images else np.zeros((0, *preprocess.size, preprocess.channels), np.float32)
    return stacked, np.array(labels, np.int32), np.array(good, np.int64), errors


def _gather(source: Source, preprocess: Preprocess | None, rows: Int[np.ndarray, " b"]) -> Records:
    """The images uint8 [b,y,x,c] and labels at ``rows``, resized and cropped where ``preprocess`` is given."""
    if isinstance(source, Gathers) and preprocess is None:
        return source.__getitems__(rows)
    crop = np.asarray if preprocess is None else preprocess.crop
    images, labels = zip(*(_prepared(source, int(row), crop) for row in rows), strict=True)
    for image in images:
        if image.shape != images[0].shape:
            sizes = f"{images[0].shape} and {image.shape}"
            raise ValueError(f"train_batches: images of source '{source.name}' differ, {sizes}: give preprocess")
    return {"image": np.stack(images), "label": np.array(labels, np.int32)}


def _spread(records: Records, places: Int[np.ndarray, " b"], size: int) -> Records:
    """The records at their places among ``size`` rows, zeros at the others."""
    if len(places) == size:
        return records
    spread = {name: np.zeros((size, *x.shape[1:]), x.dtype) for name, x in records.items()}  # type: ignore[union-attr]
    for name, x in records.items():
        spread[name][places] = x
    return spread  # type: ignore[return-value]


def _prepared(source: Source, row: int, prepare: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, int]:
    """The image at ``row`` after ``prepare``, and its label. ``CorruptImage``, whoever refuses it, names it."""
    record = source[row]
    try:
        return prepare(record["image"]), int(record["label"])
    except CorruptImage as error:  # which has seen the pixels only
        raise CorruptImage(f"{_place(source, row)}: {error}") from None


def _place(source: Source, row: int) -> str:
    """Where a person finds the image at ``row``: its path, or its number where it is no file."""
    while isinstance(source, Some):
        source, row = source.source, int(source.places[row])
    paths = getattr(source, "paths", None)
    return f"number {row} of source '{source.name}'" if paths is None else reading.line(os.fspath(paths[row]))
