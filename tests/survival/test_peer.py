"""One of two processes of a run is killed: the other ends by itself, and both go on to what they would have come to."""

import json

import killing
import peers
import pytest

CONFIG = """
from jvq.config import config


def get_config(arg):
    data = dict(name="npz", dir={root!r}, calibration=8, batch=64)
    given = dict(weights={root!r} + "/vit.safetensors", data=data, figures=False)
    if arg == "table":
        return config("pair", "minmax", bits=4, rows=dict(six=dict(name="minmax", bits=6)), **given)
    trained = dict(batch=24, epochs=2, save_every=15, learning_rate=3e-3)
    return config("pair", "vvtq", distillation="stored", crops=2, bits=3, bin_strength=1e-3, **trained, **given)
"""
LEADER, OTHER = 0, 1
FINISHED = "unfinished/*.npz"
CHECKPOINT = "vvtq-*/steps/15/commit_success.txt"
LABELLED = "labels-*/shards.jsonl"
LAST = "jvq: process {i} of 2: another process has ended, or cannot be reached"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    killing.prepare(folder, images=240)
    (folder / "pair.py").write_text(CONFIG.format(root=str(folder)))
    return folder


class Runs:
    """A run in a folder of its own, started over and over."""

    def __init__(self, server, root, name, workdir):
        self.server, self.workdir, self.log = server, root / workdir, root / f"{workdir}.0.log"
        self.args = [f"--config={root}/pair.py:{name}", f"--workdir={self.workdir}", "--resume", "--silence=30"]
        self.workdir.mkdir()

    def __call__(self, processes=2, **killed):
        """The exit codes, and what each process said this time."""
        logs = [self.log.with_suffix("").with_suffix(f".{i}.log") for i in range(processes)]
        for log in logs:
            log.unlink(missing_ok=True)
        return peers.ended(peers.started(self.server, self.args, logs), **killed), [log.read_text() for log in logs]

    def ended(self, processes=2):
        """What the leading process said of a run that ended as it should, and its report."""
        codes, said = self(processes)
        assert codes == [0] * processes, said
        assert not list(self.workdir.rglob("*.part"))
        assert not (self.workdir / "unfinished").exists()
        return said[0], json.loads((self.workdir / "report.json").read_text())

    def killed(self, which, pattern, count=1):
        """Kills a process when so many files are there; the other has to end, with a line, and leave what was there."""
        before = {}

        def there():
            found = [*self.workdir.glob(pattern)]
            if len(found) < count:
                return False
            before.update({path: path.read_bytes() for path in found})
            return True

        codes, said = self(there=there, killed=which)
        assert codes == [-9, 2] if which == LEADER else [2, -9]
        assert said[1 - which].splitlines()[-1].startswith(LAST.format(i=1 - which)), said[1 - which]
        assert {path: path.read_bytes() for path in before} == before
        assert not (self.workdir / "report.json").exists()


@pytest.mark.once
def test_a_table_goes_on_whoever_was_killed(server, root):
    """The other process first, then the leading one; in the end the packed model is that of a single process."""
    run, alone = Runs(server, root, "table", "table"), Runs(server, root, "table", "alone")
    run.killed(OTHER, FINISHED)
    run.killed(LEADER, FINISHED, 3)
    said, report = run.ended()
    assert "float: taken from" in said
    assert "minmax fitted: taken from" in said
    _, want = alone.ended(processes=1)
    assert report["device"].startswith("2 x")
    assert (run.workdir / "packed.safetensors").read_bytes() == (alone.workdir / "packed.safetensors").read_bytes()
    for row, other in zip(report["rows"], want["rows"], strict=True):
        assert (row["name"], row["top1"], row["agreement"]) == (other["name"], other["top1"], other["agreement"])
        assert row["kl"] == pytest.approx(other["kl"], rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_labels_and_training_go_on_to_the_same_files(server, root):
    """Killed with its labels just written, and with its first checkpoint; every file is that of a run left alone."""
    whole, run = Runs(server, root, "trained", "whole"), Runs(server, root, "trained", "trained")
    whole.ended()
    run.killed(LEADER, LABELLED)
    run.killed(OTHER, CHECKPOINT)
    run.ended()
    assert killing.result(run.workdir) == killing.result(whole.workdir)
    assert any(name.startswith("labels-") for name in killing.result(run.workdir))


@pytest.mark.slow
def test_one_process_goes_on_from_two(server, root):
    """What they had finished is computed again, as it was of other devices: the decisions are the same."""
    run, alone = Runs(server, root, "table", "two_then_one"), Runs(server, root, "table", "one")
    run.killed(LEADER, FINISHED, 3)
    said, report = run.ended(processes=1)
    assert "taken from" not in said
    _, want = alone.ended(processes=1)
    assert {**report, **dict.fromkeys(killing.TIMED)} == {**want, **dict.fromkeys(killing.TIMED)}
    assert killing.result(run.workdir) == killing.result(alone.workdir)


@pytest.mark.slow
def test_one_process_goes_on_from_the_checkpoint_of_two(server, root):
    run, alone = Runs(server, root, "trained", "trained_by_two"), Runs(server, root, "trained", "trained_by_one")
    run.killed(OTHER, CHECKPOINT)
    before = {path: path.read_bytes() for path in run.workdir.glob("labels-*/*")}
    _, report = run.ended(processes=1)
    _, want = alone.ended(processes=1)
    assert {path: path.read_bytes() for path in run.workdir.glob("labels-*/*")} == before
    theirs = {path.name: path.read_bytes() for path in alone.workdir.glob("labels-*/*")}
    assert {path.name: content for path, content in before.items()} == theirs, "labels of two are those of one"
    for row, other in zip(report["rows"], want["rows"], strict=True):
        assert row["top1"] == pytest.approx(other["top1"], abs=0.03)
