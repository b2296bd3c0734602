"""Where labelled images come from: the embedded set, an .npz, a prepared TensorFlow Datasets set, a folder of files.

What a source is stands in ``jvq.data.records``; the folder in ``jvq.data.folder``.
"""

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from jvq.core import reading
from jvq.core.errors import nearest
from jvq.data import embedded
from jvq.data.folder import ImageFolder, existing_folder
from jvq.data.photos import Photos
from jvq.data.records import CorruptImage, InMemory, Record, Source

NAMES = ("fashion", "photos", "folder", "npz", "tfds:NAME")
SPLITS = ("train", "test", "validation", "val")


class Fashion(InMemory):
    """The embedded Fashion-MNIST, in its original order: "train" is 60,000 images [28,28,1], "test" is 10,000."""

    def __init__(self, split: str) -> None:
        if split not in embedded.SPLITS:
            raise ValueError(f"source 'fashion': no split '{split}'{nearest(split, embedded.SPLITS)}")
        super().__init__("fashion", *embedded.read(split), classes=embedded.CLASSES)


class Npz(InMemory):
    """An .npz file with ``image`` or ``images`` uint8 [n,y,x] or [n,y,x,c], and ``label`` or ``labels`` int [n].

    Without labels every label is -1. Raises ``ValueError`` where an array is missing, misspelt or of another type or
    shape.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        where = f"source 'npz': {path}"
        with reading.shown(where):
            images, labels = self._checked(_arrays(path, where), where)
        super().__init__("npz", images, labels)

    @staticmethod
    def _checked(arrays: Mapping[str, np.ndarray], where: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels."""
        images = _array(arrays, ("image", "images"), where)
        if images is None:
            raise ValueError(f"{where}: no array 'images'{nearest('images', arrays)}")
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
            got = f"{images.dtype} {images.shape}"
            raise ValueError(f"{where}: images must be uint8 [n,y,x] or [n,y,x,c] with c 1 or 3, got {got}")
        labels = _array(arrays, ("label", "labels"), where)
        if labels is None and difflib.get_close_matches("labels", arrays):
            raise ValueError(f"{where}: no array 'labels'{nearest('labels', arrays)}")
        labels = np.full(len(images), -1) if labels is None else labels
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise ValueError(f"{where}: labels must be integers [{len(images)}], got {labels.dtype} {labels.shape}")
        if labels.min() < -1 or labels.max() >= 2**31:
            raise ValueError(f"{where}: labels must be from -1 to 2**31 - 1, got {labels.min()} to {labels.max()}")
        return images, labels


class Tfds:
    """A split of a TensorFlow Datasets set with features "image" and "label", read without TensorFlow.

    ``split`` is as TFDS writes it ("train", "validation[:500]", ...); ``data_dir`` None is TFDS's own default. Raises
    ``ValueError`` where the set or the split is unknown, or where the set is not prepared as array_record.
    """

    def __init__(self, name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> None:
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ValueError(f"source 'tfds:{name}' needs tensorflow_datasets and array_record: {error}") from error
        self.name = f"tfds:{name}"
        data_dir = None if data_dir is None else os.fspath(data_dir)
        self._arguments = name, split, data_dir
        try:
            builder = cast(Any, tfds.builder(name, data_dir=data_dir))
        except tfds.core.DatasetNotFoundError as error:
            known = tfds.list_builders(with_community_datasets=False)
            raise ValueError(f"source '{self.name}': no such set, nor in {data_dir}{nearest(name, known)}") from error
        splits = tuple(builder.info.splits)
        if splits and not {*re.split(r"\[[^]]*\]|\+", split)} <= {*splits, "all", ""}:
            raise ValueError(f"source '{self.name}': no split '{split}' in {builder.data_dir}{nearest(split, splits)}")
        try:
            self._records = builder.as_data_source(split)
        except (NotImplementedError, ValueError, OSError) as error:
            where = f"source '{self.name}': split '{split}' is not prepared as array_record in {builder.data_dir}"
            prepare = f"tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
            raise ValueError(f"{where}: run {prepare}.download_and_prepare()") from error
        features: Mapping[str, Any] = dict(builder.info.features)
        self.classes: tuple[str, ...] = tuple(getattr(features.get("label"), "names", None) or ())

    def __reduce__(self) -> tuple[type["Tfds"], tuple[str, str, str | None]]:
        """Another process opens the files for itself."""
        return Tfds, self._arguments

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> Record:
        try:
            record = self._records[int(i)]
        except (OSError, SyntaxError, ValueError) as error:
            raise CorruptImage(f"{self.name}[{i}]: not a readable record ({error})") from error
        return {"image": np.asarray(record["image"]), "label": int(record.get("label", -1))}


def open_source(name: str, split: str, dir: str | os.PathLike[str] | None = None) -> Source:
    """The source called ``name``: "fashion", "photos", "folder", "npz" or "tfds:NAME"; ``split`` is "train" or "test".

    "folder" takes ``dir/split`` where it exists ("test" may also be called "validation" or "val"), else ``dir`` itself;
    "npz" takes ``dir/split.npz`` likewise, or ``dir`` itself where that is a file; "tfds:NAME" takes ``dir`` as its
    data_dir and hands ``split`` on. Raises ``ValueError``.
    """
    kind, _, rest = name.partition(":")
    if name == "fashion":
        return Fashion(split)
    if name == "photos":
        return Photos(split)
    if kind == "tfds" and rest:
        return Tfds(rest, split, dir)
    if name not in ("folder", "npz"):
        raise ValueError(f"no source '{name}'{nearest(name, NAMES)}")
    if dir is None:
        raise ValueError(f"source '{name}' needs a directory: give dir")
    return ImageFolder(_split_folder(Path(dir), split)) if name == "folder" else Npz(_split_file(Path(dir), split))


def _aliases(split: str) -> tuple[str, ...]:
    if split not in SPLITS:
        raise ValueError(f"no split '{split}'{nearest(split, SPLITS)}")
    return (split,) if split == "train" else (split, *(s for s in SPLITS[1:] if s != split))


def _split_folder(root: Path, split: str) -> Path:
    existing_folder(root)
    for alias in _aliases(split):
        if (root / alias).is_dir():
            return root / alias
    others = [s for s in SPLITS if (root / s).is_dir()]
    if others:  # else the other split would pass for a class of this one
        raise ValueError(f"source 'folder': no split '{split}' in {root}{nearest(split, others)}")
    return root


def _split_file(root: Path, split: str) -> Path:
    if root.is_file() or root.suffix == ".npz":
        return root
    existing_folder(root)
    files = [root / f"{alias}.npz" for alias in _aliases(split)]
    found = next((f for f in files if f.is_file()), None)
    if found is None:
        there = sorted(f.name for f in root.glob("*.npz"))
        raise ValueError(f"source 'npz': no {split}.npz in {root}{nearest(f'{split}.npz', there)}")
    return found


def _arrays(path: Path, where: str) -> dict[str, np.ndarray]:
    if not path.exists():
        there = sorted(p.name for p in path.parent.glob("*"))
        raise ValueError(f"{where}: no such file{nearest(path.name, there)}")
    try:
        return reading.npz(path, where)
    except ValueError as error:
        raise ValueError(f"{where}: not a readable .npz ({str(error).removeprefix(f'{where}: ')})") from None


def _array(arrays: Mapping[str, np.ndarray], names: tuple[str, str], where: str) -> np.ndarray | None:
    found = [name for name in names if name in arrays]
    if len(found) > 1:
        raise ValueError(f"{where}: both '{names[0]}' and '{names[1]}' are there; keep one")
    return arrays[found[0]] if found else None
