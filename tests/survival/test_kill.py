"""Runs that are killed or told to stop go on, by the same command, to what they would have come to."""

import random
import signal

import killing
import pytest

pytestmark = pytest.mark.once

MOST = 4  #: kills of one run in the long version


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    killing.prepare(folder, images=240)
    return folder


@pytest.fixture(scope="module")
def trained(server, root):
    """What the training comes to without interruption, and its processor seconds."""
    return killing.whole(server, root, "training")


def test_a_killed_run_ends_as_one_that_was_not(server, root, trained):
    whole, seconds = trained
    found = killing.chain(server, root, "training", root / "killed", [0.4 * seconds, 0.7 * seconds], whole)
    assert not found.wrong
    assert len(found.kills) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_says_how_to_go_on(number, server, root, trained):
    whole, seconds = trained
    workdir = root / f"stopped{number}"
    workdir.mkdir()
    words, log = killing.command(root, "training", workdir), workdir.with_suffix(".log")
    ended = server.run(words, log, 0.6 * seconds, number)
    assert ended.code == 128 + number
    text = log.read_text()
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert f"jvq: {name}: ending after this piece of work; once more to end at once" in text
    assert f"jvq: stopped by {name}" in text
    assert ended.said == f"jvq: to go on: python -m {' '.join(words)}"
    assert not (workdir / "report.json").exists()
    assert not list(workdir.rglob("*.part"))
    assert server.run(words, log).code == 0
    assert killing.result(workdir) == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", [*killing.RUNS, killing.EXPORT])
def test_runs_of_all_kinds_killed_at_random_moments(name, server, root):
    whole, seconds = killing.whole(server, root, name)
    rng, kills = random.Random(name), 0
    for i in range(3):
        moments = killing.moments(rng, MOST, seconds)
        found = killing.chain(server, root, name, root / f"{name}{i}", moments, whole)
        assert not found.wrong
        kills += len(found.kills)
    assert kills >= 4
