"""Checkpoints: whole or not there, of this run or refused, and a killed run ends as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.checkpoints import Keeper, differences

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "n": jnp.int32(4)}
ABOUT = {"method": {"bits": 4, "name": "vvtq"}, "images": 100}


def at(step):
    return jax.tree.map(lambda x: x + step, TREE)


@pytest.fixture
def keeper(tmp_path):
    made = Keeper(tmp_path / "run", ABOUT, scored=True)
    yield made
    made.close()


def test_nothing_is_restored_from_an_empty_folder(keeper):
    assert keeper.restored(TREE) is TREE
    assert keeper.last() is None
    assert keeper.best() is None


def test_the_latest_comes_back_bit_by_bit(keeper, tmp_path):
    for step in (3, 7):
        keeper.save(step, at(step))
    assert keeper.last() == tmp_path / "run" / "steps" / "7"
    jax.tree.map(np.testing.assert_array_equal, keeper.restored(TREE), at(7))
    jax.tree.map(np.testing.assert_array_equal, keeper.restored(TREE, 3), at(3))


def test_two_latest_and_the_best_are_kept(keeper):
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2), (5, 0.3)):
        keeper.save(step, at(step), score)
        keeper.wait()
    assert sorted(keeper.manager.all_steps()) == [2, 4, 5]
    assert keeper.best() == 2


def test_a_folder_of_another_run_is_refused_with_what_differs(keeper, tmp_path):
    keeper.save(3, at(3))
    keeper.wait()
    other = {"method": {"bits": 3, "name": "vvtq"}, "images": 100, "more": 1}
    with pytest.raises(
        ValueError, match=r"another run, .*: method\.bits: stored 4, wanted 3; more: stored None, wanted 1"
    ):
        Keeper(tmp_path / "run", other)
    Keeper(tmp_path / "run", ABOUT).close()


def test_a_folder_without_a_checkpoint_is_anyones(keeper, tmp_path):
    Keeper(tmp_path / "run", {"method": {"bits": 3}}).close()
    assert json.loads((tmp_path / "run" / "about.json").read_text()) == {"method": {"bits": 3}}


def test_many_differences_are_counted():
    lines = differences({"plan": {str(i): i for i in range(9)}}, {"plan": {str(i): -i for i in range(9)}})
    assert len(lines) == 8
    assert lines[0] == "plan.1: stored 1, wanted -1"


def test_what_an_interrupted_save_left_is_not_taken_for_a_checkpoint(keeper, tmp_path):
    keeper.save(3, at(3))
    keeper.wait()
    (tmp_path / "run" / "steps" / "9.orbax-checkpoint-tmp").mkdir()
    again = Keeper(tmp_path / "run", ABOUT)
    jax.tree.map(np.testing.assert_array_equal, again.restored(TREE), at(3))
    again.close()


PROGRAM = """
import sys, pathlib, time
import jax, jax.numpy as jnp, numpy as np
from jvq.checkpoints import Keeper
from jvq.schedule import Schedule
from jvq.train import Objective, run

def loss(trained, fixed, batch, key):
    error = batch["x"] @ trained["kernel"] - batch["y"]
    return jnp.square(error).mean(), {}

def batches(start):
    for i in range(start, 60):
        rng = np.random.default_rng(i)
        print(i, flush=True)
        time.sleep(0.01)
        yield {"x": rng.normal(size=(8, 256)).astype(np.float32), "y": rng.normal(size=(8, 256)).astype(np.float32)}

keeper = Keeper(pathlib.Path(sys.argv[1]), {"what": "a line"}, every=5)
begin = {"kernel": jnp.zeros((256, 256))}
progress = run(Objective(loss), begin, batches, Schedule(60, ema=0.9), jax.random.key(0), keeper=keeper)
keeper.close()
np.savez(sys.argv[2], kernel=progress.trained["kernel"], mean=progress.mean["kernel"])
"""


def start(folder, out):
    command = [sys.executable, "-c", PROGRAM, str(folder), str(out)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.once
def test_a_run_that_is_killed_at_any_moment_ends_as_one_that_was_not(tmp_path):
    whole = start(tmp_path / "whole", tmp_path / "whole.npz")
    _, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, errors
    first: list[int] = []
    for kill in (7, 23, 40):  # some steps after which it dies, in the middle of saves or between them
        process = start(tmp_path / "killed", tmp_path / "killed.npz")
        assert process.stdout is not None
        steps = []
        for line in process.stdout:
            steps.append(int(line))
            if steps[-1] >= kill:
                time.sleep(0.003 * kill % 0.02)
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
        first.append(steps[0])
    last = start(tmp_path / "killed", tmp_path / "killed.npz")
    out, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    first.append(int(out.split()[0]))
    assert first[0] == 0
    assert all(0 <= done - begun <= 12 for done, begun in zip((7, 23, 40), first[1:], strict=True)), first
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "killed.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_what_it_is_of_stands_beside_it(keeper, tmp_path):
    assert json.loads((tmp_path / "run" / "about.json").read_text()) == ABOUT
