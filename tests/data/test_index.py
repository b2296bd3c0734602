"""The index of a folder: what a plain walk finds, kept as long as nothing changes, small however many there are."""

import fcntl
import os
import pickle
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jvq.core import files
from jvq.data import CorruptImage, ImageFolder, index, index_file

NAMES = [
    *("a.jpg", "B.PNG", "b.jpeg", "ü.webp", "two\nlines.bmp", "\U0001f600.jpg", "\uff5e.jpg", "\udcff.png", "n 1.JPEG"),
    *("x.jpg.txt", "notes", ".hidden.jpg", "._a.jpg", ".jpg"),
]
FOLDERS = ["c1", "C2", "ä", "new\nline", ".git", "\udcfe", "empty", "c1 ", "z"]
Tree = Callable[[np.random.Generator, Path], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, for folders of any size, in which what is read counts as settled at once."""
    monkeypatch.setenv("JVQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_file, "LEAST", 0)
    monkeypatch.setattr(index_file, "SETTLES", -(10**9))
    return tmp_path / "cache" / "folders"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder of two classes of two and one images."""
    root = tmp_path / "set"
    for name in ("a/0.jpg", "a/1.jpg", "b/in/2.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def walked(root: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Paths, labels and classes by ``os.walk``."""
    paths, labels, classes = list[str](), list[int](), list[str]()
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        classes = classes or list(inner)
        top = os.path.relpath(folder, root).split(os.sep)[0]
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()
            if (
                suffix in {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
                and name[0] != "."
                and os.path.isfile(f"{folder}/{name}")
            ):
                paths.append(os.path.join(folder, name))
                labels.append(-1 if folder == str(root) else classes.index(top))
    return paths, labels, () if -1 in labels else tuple(classes)


def found(source: ImageFolder) -> tuple[list[str], list[int], tuple[str, ...]]:
    return list(source.paths), source.labels.tolist(), source.classes


def grow(rng: np.random.Generator, folder: Path, depth: int = 0) -> None:
    """Files, folders and links of odd names; the root has folders only."""
    folder.mkdir(exist_ok=True)
    if depth:
        for name in rng.choice(NAMES, rng.integers(0, 6), replace=False):
            (folder / str(name)).touch()
        if rng.random() < 0.5:
            (folder / "link.jpg").symlink_to(folder.parent / "elsewhere.jpg")  # leads nowhere, most often
            (folder / "to_file.jpg").symlink_to(__file__)
    if depth < 3:
        for name in rng.choice(FOLDERS, rng.integers(0 if depth else 2, 5), replace=False):
            grow(rng, folder / str(name), depth + 1)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_what_a_plain_walk_finds(tmp_path: Path, seed: int) -> None:
    root, rng = tmp_path / "set", np.random.default_rng(seed)
    grow(rng, root)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "far.png").touch()
    (root / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    want = walked(root)
    for _ in range(2):  # as it was scanned, and as it was kept
        assert found(ImageFolder(root)) == want


def test_a_flat_folder_as_well(tmp_path: Path, cache: Path) -> None:
    for name in NAMES:
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    want = walked(tmp_path)
    assert want[1][0] == -1
    assert found(ImageFolder(tmp_path)) == want
    assert found(ImageFolder(tmp_path)) == want  # the cache is in it, and is no image
    assert len(list(cache.iterdir())) == 1
    with pytest.raises(IndexError):
        ImageFolder(tmp_path).paths[len(want[0])]
    assert ImageFolder(tmp_path).paths[-2:] == want[0][-2:]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are read from now on."""
    seen, scandir = list[str](), os.scandir

    def counted(path: str) -> object:
        seen.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", counted)
    return seen


def test_a_kept_index_reads_no_folder(small: Path, reads: list[str]) -> None:
    first = ImageFolder(small)
    assert reads == [str(small), f"{small}/a", f"{small}/b", f"{small}/b/in"]
    reads.clear()
    again = ImageFolder(os.path.relpath(small))  # however it is called
    assert reads == []
    assert [os.path.abspath(path) for path in again.paths] == list(first.paths)
    (small.parent / "alias").symlink_to(small)
    assert list(ImageFolder(small.parent / "alias").paths)[2] == f"{small.parent}/alias/b/in/2.jpg"
    assert reads == []
    assert not again.labels.flags.writeable


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda root: (root / "b" / "new.png").touch(),
    "added deep": lambda root: (root / "b" / "in" / "new.png").touch(),
    "removed": lambda root: (root / "a" / "0.jpg").unlink(),
    "renamed": lambda root: (root / "a" / "0.jpg").rename(root / "a" / "9.jpg"),
    "a class added": lambda root: (root / "aa").mkdir(),
    "a class renamed": lambda root: (root / "a").rename(root / "c"),
    "classes exchanged": lambda root: [(root / x).rename(root / y) for x, y in (("a", "t"), ("b", "a"), ("t", "b"))],
    "times set back": lambda root: [
        stat := (root / "a").stat(),
        (root / "a" / "2.jpg").touch(),
        os.utime(root / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns)),
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_built_anew_when_something_changed(small: Path, change: str) -> None:
    before = found(ImageFolder(small))
    time.sleep(0.02)  # more than a tick of the clock of files
    CHANGES[change](small)
    want = walked(small)
    assert want != before
    for _ in range(2):
        assert found(ImageFolder(small)) == want


def test_what_has_just_changed_is_read_again(
    small: Path, cache: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "SETTLES", 10**12)
    for _ in range(2):
        reads.clear()
        ImageFolder(small)
        assert len(reads) == 4
    assert len(list(cache.iterdir())) == 1


def test_a_removed_file_is_met_as_one_that_cannot_be_read(small: Path) -> None:
    source = ImageFolder(small)
    (small / "a" / "1.jpg").unlink()
    with pytest.raises(CorruptImage, match=r"a/1\.jpg: not a readable image \(.*No such file"):
        source[1]


def test_small_folders_are_not_kept(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "LEAST", 4)
    ImageFolder(small)
    assert not cache.exists()
    (small / "a" / "2.jpg").touch()
    ImageFolder(small)
    assert [file.suffix for file in cache.iterdir()] == [".index"]


def test_a_broken_file_counts_as_none(small: Path, cache: Path, rng: np.random.Generator) -> None:
    want = found(ImageFolder(small))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    broken = [b"", b"\0" * 100, whole[:7], whole[:100], whole[:-1], whole + b"x", whole[:8] + b"null\n", whole[::-1]]
    for at in {*range(0, len(whole), 37), *rng.integers(0, len(whole), 40).tolist()}:
        broken.append(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
    for content in broken:
        file.write_bytes(content)
        assert index_file._read(file) is None, content
        assert found(ImageFolder(small)) == want
        assert file.read_bytes() == whole
        assert [*cache.iterdir()] == [file]


def test_a_file_of_another_version_or_folder_counts_as_none(
    small: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ImageFolder(small)
    (file,) = cache.iterdir()
    for name in ("x/0.jpg", "y/0.jpg"):
        (tmp_path / "second" / name).parent.mkdir(parents=True)
        (tmp_path / "second" / name).touch()
    ImageFolder(tmp_path / "second")
    (second,) = {*cache.iterdir()} - {file}
    file.replace(second)
    with monkeypatch.context() as m:
        m.setattr(index_file, "unchanged", lambda kept, root: True)
        assert found(ImageFolder(tmp_path / "second")) == walked(tmp_path / "second")
    ImageFolder(small)
    for name, value in (("FORMAT", "another"), ("SUFFIXES", (".jpg",))):
        with monkeypatch.context() as m:
            m.setattr(index_file, name, value)
            assert index_file._read(file) is None
    assert index_file._read(file) is not None


def test_a_cache_that_cannot_be_written_to(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = walked(small)
    with monkeypatch.context() as m:
        m.setenv("JVQ_CACHE", str(small / "a" / "0.jpg"))  # a file
        assert found(ImageFolder(small)) == want
        assert ImageFolder(small).index.file is None

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as m:
        m.setattr("os.replace", refuse)
        assert found(ImageFolder(small)) == want
    assert [*cache.iterdir()] == []
    lock = os.open(cache, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # another process is writing
    assert found(ImageFolder(small)) == want
    os.close(lock)
    assert [*cache.iterdir()] == []
    assert ImageFolder(small).index.file is not None


def test_several_that_build_at_once(small: Path, cache: Path) -> None:
    want, wrong, barrier = walked(small), list[object](), threading.Barrier(4)

    def build() -> None:
        for _ in range(15):
            barrier.wait()
            for file in cache.glob("*.index") if cache.exists() else ():
                file.unlink(missing_ok=True)
            try:
                if (got := found(ImageFolder(small))) != want:
                    wrong.append(got)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert found(ImageFolder(small)) == want
    assert [file.suffix for file in cache.iterdir()] == [".index"]
    assert not [*cache.glob(f"*{files.PART}")]


@pytest.mark.once
def test_two_processes_that_build_at_once(small: Path, cache: Path) -> None:
    code = """if True:
        import sys
        from jvq.data import ImageFolder, index_file
        index_file.LEAST, index_file.SETTLES = 0, 10**12
        print("ready", flush=True)
        sys.stdin.readline()
        found = {tuple(ImageFolder(sys.argv[1]).paths) for _ in range(200)}
        assert len(found) == 1
        print(*found.pop(), sep="|")
    """
    command = [sys.executable, "-c", code, str(small)]
    both = [subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.communicate("go\n") == ("|".join(walked(small)[0]) + "\n", "")
    assert [file.suffix for file in cache.iterdir()] == [".index"]


def test_another_process_gets_the_file_and_not_the_names(small: Path, cache: Path) -> None:
    source = ImageFolder(small)
    sent = pickle.dumps(source)
    assert b"1.jpg" not in sent
    assert found(pickle.loads(sent)) == found(source)
    assert pickle.loads(sent).index.file is not None
    time.sleep(0.02)
    (small / "a" / "3.jpg").touch()
    ImageFolder(small)  # replaces the file
    with pytest.raises(ValueError, match="was replaced, as its folder has changed: start again"):
        pickle.loads(sent)
    assert found(source)[0][:2] == [f"{small}/a/0.jpg", f"{small}/a/1.jpg"]  # who has it open keeps what it had
    (file,) = cache.iterdir()
    file.unlink()
    with pytest.raises(ValueError, match="was replaced"):
        pickle.loads(sent)


def test_an_index_that_is_not_kept_is_sent_whole(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "LEAST", 100)
    source = ImageFolder(small)
    assert found(pickle.loads(pickle.dumps(source))) == found(source)


def test_memory_an_image(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200,000 names of 20 letters: 32 bytes each and what arrays keep in reserve; out of the file nothing."""
    count, each = 200_000, 1000
    classes, names = [f"n{k:08d}" for k in range(count // each)], [f"n01440764_{i:05d}.JPEG" for i in range(each)]

    def listed(root: Path, folder: str) -> index._Listed:
        return index._Listed(folder, (0, 0), names if folder else [], [] if folder else classes)

    monkeypatch.setattr(index, "_listed", listed)
    monkeypatch.setattr(index, "state", lambda folder: (0, 0))
    tracemalloc.start()
    try:
        whole = index.scan(tmp_path)
        held, peak = tracemalloc.get_traced_memory()
        assert whole.path(123_456) == "n00000123/n01440764_00456.JPEG"
        assert 32 * count < held < 40 * count
        assert peak < 80 * count
        monkeypatch.setattr(index, "scan", lambda root: whole)
        index_file.opened(tmp_path)  # writes it
        monkeypatch.delattr(index, "scan")
        tracemalloc.clear_traces()
        kept = index_file.opened(tmp_path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept.file is not None
    assert len(kept) == count
    assert kept.labels[-1] == len(classes) - 1
    assert kept.path(count - 1) == f"{classes[-1]}/n01440764_{each - 1:05d}.JPEG"
    assert held < count
    assert peak < 2 * index_file.PIECE + count
