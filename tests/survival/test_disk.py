"""Disks that are full or only to be read, and folders that vanish: one line, and what was there stays."""

import contextlib
import shutil
import subprocess

import jax.numpy as jnp
import killing
import numpy as np
import pytest
from PIL import Image

from jvq import run
from jvq.checkpoints import Keeper
from jvq.config import config, typed
from jvq.data import CorruptImage, ImageFolder, Loader, Preprocess
from jvq.report import Console, claim

pytestmark = pytest.mark.once


@pytest.fixture
def disk(tmp_path):
    """A folder that is a disk of its own, and a function that remounts it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount")
    yield folder, lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    killing.prepare(folder, images=24)
    return folder


def cfg(root, **changes):
    data = {"name": "npz", "dir": str(root), "calibration": 8, "batch": 64}
    return typed(config("tiny", "minmax", weights=str(root / "vit.safetensors"), data=data, figures=False, **changes))


def test_a_full_disk_ends_a_run_in_a_line_and_room_lets_it_go_on(disk, root, tmp_path):
    """Filled up to some KiB, at several of which another file is the one that does not fit."""
    folder, _ = disk
    run.run(cfg(root), tmp_path / "whole", Console(quiet=True))
    whole = killing.result(tmp_path / "whole")
    files = {}
    for free in (0, 4, 12, 28):
        (folder / "ballast").write_bytes(b"")
        room = shutil.disk_usage(folder).free
        (folder / "ballast").write_bytes(b"\0" * (room - free * 1024))
        workdir = folder / "work"
        with pytest.raises(ValueError, match="No space left on device") as error:
            run.run(cfg(root), workdir, Console(quiet=True))
        assert "\n" not in str(error.value)
        files[str(error.value).rpartition(" cannot be")[0].rpartition("/")[2]] = free
        assert not (workdir / "report.json").exists()
        assert not list(folder.rglob("*.part"))
    assert len(files) > 1, files
    (folder / "ballast").unlink()
    run.run(cfg(root), workdir, Console(quiet=True))
    assert killing.result(workdir) == whole


def test_a_full_disk_leaves_the_report_that_was_there(disk, root):
    folder, _ = disk
    run.run(cfg(root), folder / "work", Console(quiet=True))
    before = killing.result(folder / "work")
    (folder / "ballast").write_bytes(b"\0" * (shutil.disk_usage(folder).free - 8192))
    with pytest.raises(ValueError, match="No space left on device"):
        run.run(cfg(root, bits=4), folder / "work", Console(quiet=True))
    after = killing.result(folder / "work")
    assert {name: after[name] for name in ("report.json", "packed.safetensors")} == {
        name: before[name] for name in ("report.json", "packed.safetensors")
    }


def test_a_disk_that_is_only_to_be_read_is_told_before_anything_is_computed(disk):
    folder, remount = disk
    remount("ro")
    with pytest.raises(ValueError, match=r"workdir: .*work cannot be written to \(Read-only file system\)"):
        claim(folder / "work", overwrite=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's threads end with theirs
def test_a_checkpoint_that_does_not_fit_is_a_line_and_the_one_before_stays(disk):
    folder, _ = disk
    tree = {"a": jnp.asarray(np.random.default_rng(0).normal(size=20_000), jnp.float32)}
    keeper = Keeper(folder / "run", {"images": 1})
    keeper.save(1, tree)
    keeper.wait()
    (folder / "ballast").write_bytes(b"\0" * (shutil.disk_usage(folder).free - 16384))

    def more():
        keeper.save(2, {"a": tree["a"] + 1})
        keeper.wait()

    with pytest.raises(ValueError, match="checkpoints: .*run cannot be written: No space left on device$") as error:
        more()
    assert "\n" not in str(error.value)
    with contextlib.suppress(ValueError):
        keeper.close()
    (folder / "ballast").unlink()
    again = Keeper(folder / "run", {"images": 1})
    np.testing.assert_array_equal(again.restored(tree)["a"], tree["a"])
    assert [int(step) for step in again.manager.all_steps()] == [1]
    again.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's threads end with theirs
def test_checkpoints_that_are_taken_away_do_not_come_back_by_halves(tmp_path):
    tree = {"a": jnp.arange(4, dtype=jnp.float32)}
    keeper = Keeper(tmp_path / "run", {"images": 1})
    keeper.save(1, tree)
    keeper.wait()
    (tmp_path / "run").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"^checkpoints: .*run is not there any more$"):
        keeper.save(2, tree)
    assert not (tmp_path / "run").exists()
    (tmp_path / "away").rename(tmp_path / "run")
    keeper.save(2, tree)
    keeper.close()
    (tmp_path / "run" / "about.json").unlink()
    with pytest.raises(ValueError, match=r"^checkpoints in .*run: no about.json says what they are of; delete them$"):
        Keeper(tmp_path / "run", {"images": 1})


def emptied(folder):
    """As where a disk is taken away: its folder stays."""
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize("vanishes", [shutil.rmtree, emptied])
def test_a_folder_of_images_that_vanishes_is_no_folder_of_images_that_cannot_be_read(vanishes, tmp_path, rng):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    (folder / "03.png").write_bytes(b"torn")
    loader = Loader(ImageFolder(folder), Preprocess((8, 8), None, "bicubic", (0.5,) * 3, (0.25,) * 3), 2)
    assert len(list(loader)) == 20
    assert len(loader.skipped) == 1, "one that is torn is left out"

    def vanishing():
        for i, _ in enumerate(loader):
            if i == 0:
                vanishes(folder)

    with pytest.raises(ValueError, match=f"source 'folder': {folder} is not there any more, or empty"):
        vanishing()


def test_a_class_that_vanishes_is_told(tmp_path, rng):
    for i in range(8):
        path = tmp_path / "images" / "ab"[i // 4] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    source = ImageFolder(tmp_path / "images")
    (tmp_path / "images" / "a" / "1.png").unlink()
    with pytest.raises(CorruptImage, match="1.png: not a readable image"):  # one file alone is left out
        source[1]
    shutil.rmtree(tmp_path / "images" / "b")
    with pytest.raises(ValueError, match=r"source 'folder': .*images/b is not there any more, or empty$"):
        source[5]
