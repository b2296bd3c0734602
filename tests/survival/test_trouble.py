"""Whole runs whose disk fills up or becomes read-only, whose images or own folder are taken away: a line, and go on."""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import killing
import pytest

pytestmark = pytest.mark.once

SIZE = "4m"  #: of the disk
LONGER = functools.partial(pytest.param, marks=pytest.mark.slow)
NOISE = re.compile(r"Traceback|Error|Exception|[Ww]arning|leaked")


class Place(NamedTuple):
    """A disk of its own with the workdir, and the folder of the images."""

    disk: Path
    photos: Path

    @property
    def work(self) -> Path:
        return self.disk / "work"

    def remount(self, options: str) -> None:
        """Remounts the disk, as soon as nothing on it is open for writing."""
        until = time.monotonic() + 10
        while (done := mount(self.disk, f"remount,{options}")).returncode and time.monotonic() < until:
            time.sleep(0.05)
        assert not done.returncode, done.stderr

    def fill(self) -> None:
        """Leaves no room, until there has been none for a while: a checkpoint that ends then removes an older one."""
        begun = quiet = time.monotonic()
        with (self.disk / "ballast").open("ab", buffering=0) as file:
            while time.monotonic() < min(quiet + 1, begun + 10):
                if free := shutil.disk_usage(self.disk).free:
                    quiet = time.monotonic()
                    with contextlib.suppress(OSError):
                        file.write(b"\0" * free)
                time.sleep(0.02)

    @property
    def away(self) -> Path:
        return self.photos.with_name("away")

    def empty(self) -> None:
        """Takes the images away as a disk is: its folder stays."""
        self.photos.rename(self.away)
        for split in ("train", "test"):
            (self.photos / split).mkdir(parents=True)

    def refill(self) -> None:
        shutil.rmtree(self.photos)
        self.away.rename(self.photos)


class Trouble(NamedTuple):
    """What happens, how it ends, and what is said of it."""

    begin: Callable[[Place], object]
    end: Callable[[Place], object]
    said: str


GONE = r"source 'folder': .*photos/(train|test) is not there any more, or empty$"
NO_FOLDER = r"(cannot be written: (No such file or directory|it must be a file in a folder .*)|is not there any more)$"
TROUBLES = {
    "full": Trouble(
        Place.fill, lambda p: (p.disk / "ballast").unlink(), r"disk/work.* cannot be written: .*No space left on device"
    ),
    "read-only": Trouble(
        lambda p: p.remount("ro"), lambda p: p.remount("rw"), r"disk/work.* cannot be written: Read-only file system$"
    ),
    "no workdir": Trouble(lambda p: shutil.rmtree(p.work), lambda p: None, rf"disk/work.* {NO_FOLDER}"),
    "no images": Trouble(lambda p: p.photos.rename(p.away), lambda p: p.away.rename(p.photos), GONE),
    "emptied images": Trouble(Place.empty, Place.refill, GONE),
}


def mount(folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trouble")
    killing.prepare(folder)
    killing.prepare_photos(folder)
    return folder


@pytest.fixture(scope="module")
def whole(server, root):
    """By the name of a run what it comes to without trouble."""
    found: dict[str, dict[str, str]] = {}
    return lambda name: (
        found[name] if name in found else found.setdefault(name, killing.whole(server, root, name, 1)[0])
    )


@pytest.fixture
def place(root, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = mount(folder, f"size={SIZE}")
    if done.returncode:
        pytest.skip(f"no right to mount: {done.stderr.strip()}")
    yield Place(folder, root / "photos")
    subprocess.run(["umount", "-l", str(folder)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder that a run adds to or leaves alone: not the rows so far, nor what is orbax's."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        n: p.read_bytes() for n, p in found.items() if "partial" not in n and "steps" not in n and p.suffix != ".part"
    }


def steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints under a folder."""
    return sorted(int(path.name) for path in folder.rglob("steps/*") if path.name.isdigit())


def met(name, at, kind, *, root, server, whole, place, more=()):
    """A run that meets the trouble where it has said ``at`` ends in a line; without it, the command ends as ever."""
    trouble, want, log = TROUBLES[kind], whole(name), place.disk.with_suffix(".log")
    shutil.copytree(root / f"{name}_whole", place.disk / "earlier")
    earlier, before, saved = contents(place.disk / "earlier"), dict[str, bytes](), list[int]()
    words = [*killing.command(root, name, place.work), *more]

    def begin():
        before.update(contents(place.work))
        saved.extend(steps(place.work))
        trouble.begin(place)

    ended = server.run(words, log, at=(at, begin))
    text = log.read_text().partition(at)[2]
    assert ended.code == 2, text
    assert not ended.left
    assert re.search(f"^jvq: .*{trouble.said}", ended.said), ended.said
    assert text.count("jvq: ") == 1
    assert not NOISE.search(text.removesuffix(f"{ended.said}\n")), text
    assert contents(place.disk / "earlier") == earlier
    assert not list(place.disk.rglob("*.part"))
    if kind == "no workdir":
        assert not place.work.exists() or not steps(place.work)
    else:
        after = contents(place.work)
        assert {n for n in before if not after.get(n, b"").startswith(before[n])} == set()
        assert saved[-1:] == [step for step in steps(place.work) if step in saved][-1:]
    trouble.end(place)
    assert server.run(words, log).code == 0, log.read_text()
    assert killing.result(place.work) == want
    assert contents(place.disk / "earlier") == earlier
    return before, saved


LONG = ["--config.data.workers=2", "--config.method.epochs=64"]
HALF = {"training": "training 2 epochs: 50 of 90", "photos_training": "training 32 epochs: 50 of 128"}


@pytest.mark.parametrize("kind", ["full", LONGER("read-only"), "no workdir"])
def test_a_table_goes_on_behind_its_rows(kind, root, server, whole, place):
    before, _ = met("minmax", "six: fitting", kind, root=root, server=server, whole=whole, place=place)
    assert sum(name.startswith("unfinished/") for name in before) == 3  # float, minmax fitted, minmax evaluated
    taken = place.disk.with_suffix(".log").read_text().count(": taken from ")
    assert taken == (0 if kind == "no workdir" else 3)


@pytest.mark.parametrize("kind", ["full", LONGER("read-only"), LONGER("no workdir")])
def test_training_goes_on_from_its_checkpoint(kind, root, server, whole, place):
    _, saved = met("training", HALF["training"], kind, root=root, server=server, whole=whole, place=place)
    assert max(saved) >= 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "kind"),
    [
        ("evaluating minmax: 1 of", "emptied images"),
        ("evaluating minmax: 1 of", "no images"),
        ("reading images of folder: 1 of", "no images"),
        ("measuring every site", "no images"),
    ],
)
def test_images_that_are_taken_away_while_a_model_is_quantised(at, kind, root, server, whole, place):
    met("photos", at, kind, root=root, server=server, whole=whole, place=place)


@pytest.mark.parametrize("workers", [1, LONGER(0)])
def test_images_that_are_taken_away_while_it_is_trained(workers, root, server, whole, place):
    name, more = "photos_training", [f"--config.data.workers={workers}"]
    met(name, HALF[name], "no images", root=root, server=server, whole=whole, place=place, more=more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "read-only", "no workdir"])
@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("calibration", "drawing ..."),
        ("calibration", "packing, and comparing"),
        ("sweep", "evaluating W4A4 igq, seed 1"),
        ("sweep", "sensitivity: 1 of"),
        ("labels", "labelling crops: 1 of"),
        ("labels", "training vvtq: 50 of"),
    ],
)
def test_every_other_stage(name, at, kind, root, server, whole, place):
    met(name, at, kind, root=root, server=server, whole=whole, place=place)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_report_that_is_to_be_written_over(kind, root, server, whole, place):
    want, log, trouble = whole("minmax"), place.disk.with_suffix(".log"), TROUBLES[kind]
    shutil.copytree(root / "minmax_whole", place.work)
    before = contents(place.work)
    words = [w for w in killing.command(root, "minmax", place.work) if w != "--resume"]
    words += ["--overwrite", "--config.method.bits=5"]
    ended = server.run(words, log, at=("measuring every site", lambda: trouble.begin(place)))
    assert ended.code == 2
    assert re.search(trouble.said, ended.said)
    after = contents(place.work)
    assert {name: after.get(name) for name in before} == before
    trouble.end(place)
    assert server.run(words, log).code == 0
    assert killing.result(place.work).keys() == want.keys()
    assert killing.result(place.work)["report.json"] != want["report.json"]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["writing ", "compiling "])
def test_an_export_onto_a_full_disk(at, root, server, whole, place):
    want, log = whole(killing.EXPORT), place.disk.with_suffix(".log")
    place.work.mkdir()
    words = killing.command(root, killing.EXPORT, place.work)
    ended = server.run(words, log, at=(at, place.fill))
    assert ended.code == 2
    assert re.search(TROUBLES["full"].said, ended.said), ended.said
    assert log.read_text().count("jvq: ") == 1
    assert not NOISE.search(log.read_text().removesuffix(f"{ended.said}\n"))
    assert not list(place.disk.rglob("*.part"))
    (place.disk / "ballast").unlink()
    assert server.run(words, log).code == 0
    assert killing.result(place.work) == want


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no images", "full", "signal"])
def test_processes_that_read_leave_nothing_behind(kind, root, place):
    """In a process of its own: whoever looks after shared memory would have the last word."""
    log, reached = place.disk.with_suffix(".log"), place.work / "metrics.jsonl"
    module, *args = [*killing.command(root, "photos_training", place.work), *LONG]
    with log.open("w") as out:
        run = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        while run.poll() is None and not reached.exists():
            time.sleep(0.005)
        if kind == "signal":
            run.send_signal(signal.SIGTERM)
        else:
            TROUBLES[kind].begin(place)
        code = run.wait(120)
    if kind == "no images":
        TROUBLES[kind].end(place)
    left = killing.left(run.pid)
    text = log.read_text()
    assert code == (128 + signal.SIGTERM if kind == "signal" else 2), text
    assert not left
    assert not NOISE.search(text), text
    assert text.strip().splitlines()[-1].startswith("jvq: to go on:" if kind == "signal" else "jvq: "), text
