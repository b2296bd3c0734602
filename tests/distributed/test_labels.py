"""Two real processes share soft labels and finished rows: the files of one process, and no image read by both."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jvq.data import SoftLabels
from jvq.data.soft_labels import steps

pytestmark = pytest.mark.once
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("on_labels.py")
SECONDS = 240  #: after which what still runs is killed, and the test has failed


def loaded():
    """The module of the script, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("on_labels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ended(processes):
    """(exit code, stderr) of each; a hang is an error, and nothing stays behind."""
    until, found = time.monotonic() + SECONDS, []
    try:
        for process in processes:
            _, err = process.communicate(timeout=max(1.0, until - time.monotonic()))
            found.append((process.returncode, err))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The folder, what each of two processes has found by name, and how it ended."""
    folder = tmp_path_factory.mktemp("labels")
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        where = f"localhost:{listener.getsockname()[1]}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    args = [[sys.executable, str(SCRIPT), str(folder), where, "2", str(i)] for i in range(2)]
    ends = ended([subprocess.Popen(mine, env=env, **pipes) for mine in args])
    for i, (_, err) in enumerate(ends):
        assert (folder / f"process-{i}.npz").exists(), err[-4000:]
    return folder, [dict(np.load(folder / f"process-{i}.npz")) for i in range(2)], ends


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The script's module, the labels that this process writes, and what it asked the teacher."""
    module, folder = loaded(), tmp_path_factory.mktemp("alone")
    teacher = module.Teacher()
    labels = module.write(folder / "labels", module.Pictures(), teacher)
    module.write(folder / "some", module.Pictures(), module.Teacher(), indices=[9, 2, 5, 3, 0])
    return module, labels, teacher.calls


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_files_are_those_of_one_process(found, alone):
    """Also those of the labels of some images, whose two shards are of 4 and 1; and nobody else has written any."""
    folder, _, _ = found
    _, labels, _ = alone
    assert contents(folder / "labels") == contents(labels.folder)
    assert contents(folder / "some") == contents(labels.folder.with_name("some"))
    assert [path.name for path in (folder / "own-1").rglob("*") if path.is_file()] == []


def test_shards_are_made_by_one_process_each_and_missing_ones_alone(found, alone):
    """Three shards take nine batches; two of them, one missing and one damaged, are made again."""
    module, _, calls = alone
    asked = np.stack([mine["calls"] for mine in found[1]])
    each = -(-module.SHARD * module.CROPS // module.CALLED)
    assert asked.sum(axis=0).tolist() == [calls, calls - each]
    assert (asked > 0).all()


@pytest.mark.parametrize("per_image", [3, 4])
def test_batches_are_cut_by_the_process_whose_rows_they_are(per_image, found, alone):
    module, labels, _ = alone
    source = module.Pictures()
    whole = module.batches(SoftLabels.open(labels.folder, source), source, None, per_image)
    half = module.BATCH // 2
    got = [{name: mine[f"batches{per_image}/{name}"] for name in whole} for mine in found[1]]
    for name in ("image", "label", "index", "value"):
        both = np.concatenate([got[0][name][:, :half], got[1][name][:, half:]], axis=1)
        np.testing.assert_array_equal(both, whole[name])
        assert not got[0][name][:, half:].any()
        assert not got[1][name][:, :half].any()
    passed = steps(module.IMAGES, module.BATCH, module.EPOCHS, per_image)
    assert len(whole["image"]) == passed
    twice = steps(module.IMAGES, module.BATCH, module.EPOCHS // 4 * 4, 4) if per_image == 4 else 0
    assert sum(len(mine["read"]) for mine in got) == len(whole["read"]) + twice, "but for an image of both"


def test_what_the_leading_process_has_finished_is_found_by_all(found):
    for mine in found[1]:
        assert mine["took/own"].tolist() == [0, 1, 2, 3, 4]
        assert mine["took/whole"].tolist() == [0, 1, 2]
        assert mine["took/parts"].tolist() == [0, 1, 2, 3]
        assert mine["sent"].tolist() == list(range(10))


def test_all_compute_again_where_one_cannot_take_it(found):
    """Another run's, one that the second process cannot read, one that is damaged."""
    assert [mine["computed"].tolist() for mine in found[1]] == [[1, 2, 3]] * 2


def test_what_is_kept_is_of_all_processes(found):
    """The mark is the same in all; and another where one process differs, in its packages perhaps."""
    (a, same, differs), other = (mine["marks"].tolist() for mine in found[1])
    assert a == same != differs
    assert other == [a, same, differs]


def test_a_folder_that_one_process_does_not_see_is_a_line_of_all(found):
    folder, _, ends = found
    for code, err in ends:
        said = [line for line in err.splitlines() if line.startswith("jvq:")]
        assert (code, said) == (2, [f"jvq: soft labels: process 1 does not see {folder / 'seen-by-0'}: all have to"])
