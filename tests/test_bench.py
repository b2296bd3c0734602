"""The bench runs, on a tiny model: every variant is in the table, or says why not. What it measures is not judged."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from absl.testing import flagsaver

from jvq.bench import __main__ as command
from jvq.bench import others, running, table, timing, variants
from jvq.bench.bed import Bed
from jvq.bench.timing import Spent, Spread
from jvq.bench.variants import BASE, VARIANTS, chosen
from jvq.integer import Rows, ways
from jvq.models import build

pytestmark = pytest.mark.once

ONCE = {"models": ["tiny"], "batches": ["1"], "rounds": 1, "threads": 0, "memory": False}


@pytest.fixture(scope="module")
def flags():
    if not command.MODELS.present:
        command.flags.FLAGS(["bench"])


def ran(capsys, **changes):
    with flagsaver.flagsaver(**{**ONCE, **changes}):
        command.main(["bench"])
    return capsys.readouterr().out


def test_one_command_shows_every_variant_and_writes_the_numbers(flags, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    said = ran(capsys, out=str(tmp_path / "bench.json"))
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [r["variant"] for r in report["rows"]] == [v.name for v in VARIANTS]
    assert report["settings"]["rounds"] == 1
    lines = [line for line in said.splitlines() if line.split()[:2] == ["tiny", "1"]]
    for r, line in zip(report["rows"], lines, strict=True):
        assert r["variant"] == line.split()[2]
        needed = next(v.needs for v in VARIANTS if v.name == r["variant"])
        if "skipped" in r:
            assert needed
            assert f"skipped: {r['skipped']}" in line
            assert r["skipped"].endswith("not installed")
            continue
        for kind in ("cpu", "wall"):
            ms = r[f"{kind}_ms"]
            assert 0 <= ms["lower"] <= ms["median"] <= ms["upper"]
            assert f"{r[f'{kind}_speed']:.2f}x" in line
        assert r["bytes"] > 0
    size = {r["variant"]: r.get("bytes") for r in report["rows"]}
    assert size["jvq-w4a8-small"] < size["jvq-int8"] < size["jax-bf16"] < size[BASE]
    assert size["jvq-binary"] < size[BASE]


def test_mistakes_are_said_before_anything_is_measured(flags, capsys, tmp_path):
    for changes, complaint in (
        ({"models": ["vit_x"]}, r"--models: 'vit_x' is not known .did you mean 'vit_b'"),
        ({"batches": ["1", "0"]}, "--batches: got 1,0, must be numbers of images"),
        ({"only": ["jvq-int9"]}, r"--only: 'jvq-int9' is no variant .did you mean 'jvq-int8'"),
        ({"out": str(tmp_path / "no" / "a.json")}, "--out: there is no folder"),
    ):
        with pytest.raises(ValueError, match=complaint):
            ran(capsys, **changes)
    with pytest.raises(ValueError, match="unexpected argument 'tiny'"):
        command.main(["bench", "tiny"])


def test_globs_choose_and_the_base_of_ratios_stays():
    assert [v.name for v in chosen(["ort-*"])] == [BASE, "ort-float32", "ort-int8", "ort-int8-spin"]
    assert chosen([]) == list(VARIANTS)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    return Bed.of("tiny", tmp_path_factory.mktemp("bed"))


@pytest.fixture(scope="module")
def ready(bed):
    return running.prepare(bed, chosen(["jvq-*", "jax-*"]))[0]


def test_variants_multiply_what_they_say(bed, ready):
    images = np.zeros((1, *bed.model.image), np.float32)

    def how(name):
        m = ready[name].what
        return set(ways(build(m.architecture, m.spec).forward, m.params, m.plan, m.qstate, images).values())

    assert how("jvq-int8") == {"int8"}
    assert how("jvq-w4a8") == {"int8"}
    assert how("jvq-w4a8-small") == {"packed", "int8"}  # attention has no weights, and the ends have 8 bits
    assert "ladder" in how("jvq-igq-w4a4")
    assert not any(way.startswith("float") for way in how("jvq-igq-w4a4"))
    ends = "float: an operand is not quantised"
    assert how("jvq-binary") == {"int8", ends}
    assert how("jvq-binary-small") == {"int8", "binary", ends}  # counted where weights are bits; attention, if asked
    for name, form in (("jvq-binary", "int8"), ("jvq-binary-small", "words")):
        fc1 = ready[name].what.params["block00"]["mlp"]["fc1"]
        assert {leaf.form for leaf in fc1.values() if is_rows(leaf)} == {form}


def is_rows(x):
    return isinstance(x, Rows)


def test_the_int8_variants_weights_have_no_zero_point(ready):
    assert ready["jvq-int8"].what.params["block00"]["mlp"]["fc1"]["kernel"].zero is None


def test_a_package_that_lacks_is_a_note(bed):
    made_up = variants.Variant("made-up", "", others.exported, others.session, needs=("no_such_package", "numpy"))
    assert running.prepare(bed, [made_up]) == ({}, {"made-up": "no_such_package not installed"})


def test_what_a_variant_cannot_express_is_a_note(bed):
    def refusing(*_):
        raise ValueError("groups that are\nchosen at run time")

    assert running.prepare(bed, [variants.Variant("made-up", "", refusing, others.session)])[1] == {
        "made-up": "groups that are chosen at run time"
    }


def test_rounds_go_through_all_variants_in_turn():
    calls = []
    runs = {name: lambda images, name=name: calls.append(name) for name in "ab"}
    found = timing.interleaved(runs, np.zeros(1), range(3))
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}
    order = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert order == ["a", "b"] * 4  # the first time to see how many calls are timed at once


def test_cpu_time_is_of_work_and_wall_time_of_waiting_too():
    def work(_):
        sum(range(300_000))

    def wait(_):
        timing.time.sleep(0.05)

    busy, idle = timing.spent(work, np.zeros(1)), timing.spent(wait, np.zeros(1), 2)
    assert busy.cpu > 1e-3
    assert idle.wall >= 0.05
    assert idle.cpu < idle.wall / 2


def test_medians_and_ratios_are_of_the_right_numbers():
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 100.0]) == Spread(3.0, 2.0, 4.0)
    own = [Spent(0.001, 0.002), Spent(0.003, 0.004), Spent(0.002, 0.003)]
    base = [Spent(0.01, 0.006), Spent(0.02, 0.006), Spent(0.01, 0.012)]
    found = table.timed(own, base)
    assert found["cpu_ms"]["median"] == pytest.approx(2.0)
    assert found["cpu_speed"] == pytest.approx(5.0)
    assert found["wall_speed"] == pytest.approx(2.0)


def test_peak_memory_is_of_a_process_that_only_runs_the_model(bed):
    from jvq.bench.memory import Job, peak

    v = next(v for v in VARIANTS if v.name == BASE)
    prepared = v.prepare(bed, {}, {})
    few, many = (peak(Job(BASE, (count, *bed.model.image), 0), prepared) for count in (1, 20_000))
    # a tiny model is less than what a process gives back by chance; its images are not
    assert few < many - 20_000 * 4 * np.prod(bed.model.image) / 2
    assert many < 2**31


def test_the_command_ends_in_one_line_where_it_is_called_wrongly():
    done = subprocess.run(
        [sys.executable, "-m", "jvq.bench", "--models=tiny", "--only=nothing"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"jvq: --only: 'nothing' is no variant (there are: {BASE}, ")
