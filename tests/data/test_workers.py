"""Reading ahead: the same batches from threads and from processes, and what happens when one of these dies."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jvq.data import (
    CorruptImage,
    ImageFolder,
    InMemory,
    Preprocess,
    Record,
    batches,
    index_file,
    train_batches,
    workers,
)
from jvq.data.records import Some

PREPROCESS = Preprocess((8, 8), 10, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> ImageFolder:
    """Twelve images of noise in two classes, two of which cannot be read; their index is kept."""
    monkeypatch.setenv("JVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_file, "LEAST", 0)
    for i in range(12):
        file = tmp_path / "set" / "ab"[i // 6] / f"{i:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        y, x = rng.integers(9, 30, 2)
        Image.fromarray(rng.integers(0, 256, (y, x, 3), dtype=np.uint8)).save(file, quality=90)
        if i in (3, 10):
            file.write_bytes(b"no image")
    return ImageFolder(tmp_path / "set")


class Deadly:
    """A source whose image 5 is the end of the process that reads it."""

    name, classes = "deadly", ()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Record:
        if i == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": np.full((8, 10, 3), i, np.uint8), "label": i}


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys()
        and all(type(b[k]) is np.ndarray and a[k].dtype == b[k].dtype and (a[k] == b[k]).all() for k in a)
        for a, b in zip(first, second, strict=True)
    )


def children() -> set[int]:
    return {process.pid or 0 for process in multiprocessing.active_children()}


@pytest.mark.once
def test_processes_give_what_threads_give(photos: ImageFolder) -> None:
    want, skipped, before = [], None, children()
    for count in (0, 1, 2):
        loader = batches(photos, PREPROCESS, 3, [11, *range(11), 0], workers=count)
        assert loader.workers == count
        found = list(loader)
        want, skipped = want or found, skipped or loader.skipped
        assert same(want, found)
        assert loader.skipped == skipped
    assert skipped is not None
    assert [line.split(": not a readable image")[0] for line in skipped] == [photos.paths[3], photos.paths[10]]
    assert [b["mask"].sum() for b in want] == [3, 2, 3, 2, 1]
    chosen = [i for i in range(12) if i not in (3, 10)]
    readable = Some(photos, np.array(chosen))
    streams = [list(train_batches(readable, 4, 1, 3, PREPROCESS, start=1, workers=n)) for n in (0, 1)]
    assert same(*streams)
    assert len(streams[0]) == 5
    with pytest.raises(CorruptImage, match=r"(03|10)\.jpg: not a readable image"):
        list(train_batches(photos, 4, 0, 1, PREPROCESS, workers=1))
    stream = iter(batches(photos, PREPROCESS, 3, workers=1))
    assert same([next(stream)], [next(iter(batches(photos, PREPROCESS, 3)))])
    del stream  # left early
    assert children() == before


@pytest.mark.once
def test_a_process_that_dies_ends_in_one_line() -> None:
    before = children()
    with pytest.raises(ValueError, match="one of 1 processes that read 'deadly' died of SIGKILL: .* memory runs out; "):
        list(batches(Deadly(), PREPROCESS, 2, workers=1))
    assert children() == before


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (
            -7,
            "loader: one of 3 processes that read 'deadly' died of SIGBUS: /dev/shm is full; fewer workers or a",
        ),
        (-99, "loader: one of 3 processes that read 'deadly' died of 99"),
        (1, "loader: one of 3 processes that read 'deadly' died with exit code 1; what it said stands above"),
    ],
)
def test_why_it_died(code: int, line: str) -> None:
    assert workers._died(code, 3, Deadly()).startswith(line)


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    source, held = Deadly(), InMemory("held", np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, int))
    assert [workers.processes(n, source, 3) for n in (0, 1, 3, 8)] == [0, 1, 3, 3]
    assert workers.processes(8, held, 3) == 0
    for cores, want in ((1, 0), (4, 0), (5, 4), (17, 16), (64, 16)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: set(range(n)))
        assert workers.processes(-1, source, 100) == want
        assert workers.processes(-1, held, 100) == 0
    with pytest.raises(ValueError, match="loader: workers must be a number of processes, .*, got -2"):
        batches(source, PREPROCESS, 2, workers=-2)
    assert workers.described(0, held) == "from memory"
    assert workers.described(0, source) == "in 4 threads"
    assert workers.described(3, source) == "in 3 processes"


class Elements:
    """What grain hands out, as far as it is asked here."""

    def __init__(self, error: Exception) -> None:
        self.error, self.closed = error, False

    def to_iter_dataset(self, options: Any) -> "Elements":
        return self

    def mp_prefetch(self, options: Any, begin: Callable[[int, int], None]) -> "Elements":
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        raise self.error

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("error", [RuntimeError("another"), CorruptImage("x.jpg: no"), ValueError("gone")])
def test_other_errors_come_as_they_are(error: Exception) -> None:
    elements = Elements(error)
    with pytest.raises(type(error)) as caught:
        list(workers.ahead(elements, Deadly(), 2))
    assert caught.value is error
    assert elements.closed
