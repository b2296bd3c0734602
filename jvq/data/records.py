"""What a source of labelled images is."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Integer, UInt8


class Record(TypedDict):
    """One labelled image: ``image`` uint8 [y,x,c] with c 1 or 3, and ``label``, -1 where unknown."""

    image: UInt8[np.ndarray, "y x c"]
    label: int


class Records(TypedDict):
    """Labelled images of one size: ``image`` uint8 [b,y,x,c] and ``label`` int32 [b]."""

    image: UInt8[np.ndarray, "b y x c"]
    label: Int32[np.ndarray, " b"]


class CorruptImage(ValueError):
    """What should be an image and cannot be read as one; the text names the file."""


@runtime_checkable
class Source(Protocol):
    """A sequence of labelled images; ``classes`` are the names of the labels 0, 1, ..., empty where unknown.

    An image that cannot be read raises ``CorruptImage``.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Record: ...


@runtime_checkable
class Gathers(Source, Protocol):
    """A source whose images have one size and all lie in memory: the loader gathers a whole batch of them at once."""

    def __getitems__(self, indices: Int[np.ndarray, " b"], /) -> Records: ...


class Some:
    """The images of a source at some places."""

    def __init__(self, source: Source, places: Int[np.ndarray, " n"]) -> None:
        self.source, self.places = source, places
        self.name, self.classes = f"{source.name} ({len(places)} of {len(source)})", source.classes

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, i: int) -> Record:
        return self.source[int(self.places[i])]


class GatheredSome(Some):
    """The same of a source whose images lie in memory."""

    source: Gathers

    def __getitems__(self, indices: Int[np.ndarray, " b"]) -> Records:
        return self.source.__getitems__(self.places[indices])


def split(source: Source, held: int, seed: int = 0) -> tuple[Source, Source]:
    """The source without ``held`` images, and these: drawn by the seed, as a folder is in the order of its classes."""
    if not held:
        return source, source
    if not 0 < held < len(source):
        raise ValueError(f"held back: got {held}, source '{source.name}' has {len(source)} images")
    order = np.random.default_rng(seed).permutation(len(source))
    kind = GatheredSome if isinstance(source, Gathers) else Some
    return kind(source, np.sort(order[held:])), kind(source, np.sort(order[:held]))  # type: ignore[arg-type]


class InMemory:
    """A source over ``images`` uint8 [n,y,x,c] and ``labels`` int32 [n]."""

    def __init__(
        self,
        name: str,
        images: UInt8[np.ndarray, "n y x c"],
        labels: Integer[np.ndarray, " n"],
        classes: Sequence[str] = (),
    ) -> None:
        self.name, self.classes = name, tuple(classes)
        self.images, self.labels = images, labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Record:
        return {"image": self.images[i], "label": int(self.labels[i])}

    def __getitems__(self, indices: Int[np.ndarray, " b"]) -> Records:
        return {"image": self.images[indices], "label": self.labels[indices]}
