"""Which images a folder holds, in which order, of which class: an index that stays small however many there are.

A name takes its own bytes and twelve more, in arrays rather than in objects. Large folders' indices are kept in a file
(:mod:`jvq.data.index_file`), which is mapped into memory: what is not asked for is not in it.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from jvq.core import reading

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
DEEPEST = 64  #: folders in each other


@dataclass(frozen=True, eq=False)
class Index:
    """The images of a folder: ``labels`` int32 [n], -1 in a flat one, and their ``path``; ``classes`` by label.

    ``names`` are the files' names one after the other, as bytes, and ``ends`` [n] where each of them ends; ``folders``
    and ``folder_ends`` [f] are the same of the folders, relative to the root. Images of a folder are neighbours:
    ``first`` [f] are their beginnings. ``states`` [f,2] are the folders' times of change in ns when they were read.
    ``file`` is where the index is kept, None where it is not, and ``digest`` tells its content from others.
    """

    classes: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]
    names: UInt8[np.ndarray, " bytes"]
    ends: Int64[np.ndarray, " n"]
    folders: UInt8[np.ndarray, " folder_bytes"]
    folder_ends: Int64[np.ndarray, " f"]
    first: Int64[np.ndarray, " f"]
    states: Int64[np.ndarray, "f 2"]
    file: Path | None = None
    digest: int = 0

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, i: int) -> str:
        """Where image ``i`` lies, relative to the root."""
        folder = self.folder(int(np.searchsorted(self.first, i, side="right")) - 1)
        return os.path.join(folder, _piece(self.names, self.ends, i))

    def folder(self, k: int) -> str:
        """Where folder ``k`` lies, relative to the root, which is the first and is called ""."""
        return _piece(self.folders, self.folder_ends, k)


def _piece(arena: UInt8[np.ndarray, " bytes"], ends: Int64[np.ndarray, " n"], i: int) -> str:
    return os.fsdecode(arena[ends[i - 1] if i else 0 : ends[i]].tobytes())


class Paths(Sequence[str]):
    """The paths of an index's images, each made when it is asked for."""

    def __init__(self, root: Path, index: Index) -> None:
        self.root, self.of = root, index

    def __len__(self) -> int:
        return len(self.of)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        return os.path.join(self.root, self.of.path(range(len(self))[i]))


class _Listed(NamedTuple):
    """A folder that was read: its path, relative to the root, its times of change, the sorted names in it."""

    folder: str
    state: tuple[int, int]
    files: list[str]
    folders: list[str]


def scan(root: Path) -> Index:
    """The index of what lies in the folder now: sorted by name, a folder's files before its folders'.

    ``ValueError``: a folder cannot be read or lies in itself, there are no images, or some beside classes.
    """
    names, ends, labels = bytearray(), array("q"), array("i")
    folders, folder_ends, first, states = bytearray(), array("q"), array("q"), array("q")

    def add(listed: _Listed, label: int) -> None:
        first.append(len(ends))
        folders.extend(os.fsencode(listed.folder))
        folder_ends.append(len(folders))
        states.extend(listed.state)
        for name in filter(is_image, listed.files):
            names.extend(os.fsencode(name))
            ends.append(len(names))
            labels.append(label)

    top = _listed(root, "")
    add(top, -1)
    flat = len(ends)
    for label, name in enumerate(top.folders):
        for listed in _below(root, name):
            add(listed, label)
        if flat and len(ends) > flat:
            image = next(filter(is_image, top.files))
            raise ValueError(
                reading.line(f"source 'folder': {root} holds images ('{image}') beside classes ('{name}'): keep one")
            )
    if not ends:
        nothing = _nothing_in(root, top.files, top.folders)
        raise ValueError(reading.line(f"source 'folder': {nothing}; images end in {' '.join(SUFFIXES)}"))
    numbers = (np.frombuffer(found, np.int64) for found in (ends, folder_ends, first, states))
    at, folder_at, starts, times = numbers
    return Index(
        classes=() if flat else tuple(top.folders),
        labels=np.frombuffer(labels, np.int32),
        names=np.frombuffer(names, np.uint8),
        ends=at,
        folders=np.frombuffer(folders, np.uint8),
        folder_ends=folder_at,
        first=starts,
        states=times.reshape(-1, 2),
    )


def state(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """When the folder's names changed last, in ns; whoever unpacks or copies may set back the first, not the second."""
    found = os.stat(folder)
    return found.st_mtime_ns, found.st_ctime_ns


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")  # macOS leaves "._x.jpg", which is none


def _listed(root: Path, folder: str) -> _Listed:
    """The names of the files, and of the visible folders, that lie in ``root/folder``; links count as what they are to.

    The state is taken first: what changes while the names are read is seen as a change later.
    """
    path, files, folders = os.path.join(root, folder) if folder else os.fspath(root), list[str](), list[str]()
    try:
        times = state(path)
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not entry.name.startswith("."):
                        folders.append(entry.name)
                elif entry.is_file():
                    files.append(entry.name)
    except OSError as error:
        raise ValueError(reading.line(f"source 'folder': cannot read {path} ({error.strerror})")) from error
    return _Listed(folder, times, sorted(files), sorted(folders))


def _below(root: Path, folder: str, above: frozenset[str] = frozenset()) -> Iterator[_Listed]:
    """The folder and those in it at any depth. ``ValueError``: a link leads back to a folder that it lies in."""
    path = os.path.join(root, folder)
    real = os.path.realpath(path)
    if real in above or len(above) > DEEPEST:
        raise ValueError(reading.line(f"source 'folder': {path} lies in itself, or more than {DEEPEST} folders deep"))
    listed = _listed(root, folder)
    yield listed
    for inner in listed.folders:
        yield from _below(root, os.path.join(folder, inner), above | {real})


def _nothing_in(root: Path, files: list[str], folders: list[str]) -> str:
    if not files and not folders:
        return f"{root} is empty"
    others = sorted({os.path.splitext(name)[1] or "no suffix" for name in files})
    return f"no image in {root}, got {len(files)} files ({', '.join(others) or '-'}) and {len(folders)} folders"
