"""The log of a training run: nothing is said twice, and a line that was cut off costs that line alone."""

import json

import pytest

from jvq import metrics
from jvq.metrics import Log


def steps(path):
    return [line["step"] for line in metrics.read(path)]


def test_lines_are_json_with_step_numbers_and_seconds(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.begin(0)
    log.write(50, {"loss": 0.5})
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (line["step"], line["loss"]) == (50, 0.5)
    assert line["seconds"] >= 0


@pytest.mark.parametrize(("start", "kept"), [(0, []), (50, [50]), (99, [50]), (100, [50, 100])])
def test_going_on_drops_what_is_made_again(start, kept, tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.begin(0)
    for step in (50, 100, 150):
        log.write(step, {"loss": 1.0})
    again = Log(tmp_path / "log.jsonl")
    again.begin(start)
    again.write(start + 50, {"loss": 2.0})
    assert steps(tmp_path / "log.jsonl") == [*kept, start + 50]


@pytest.mark.parametrize("torn", ['{"step": 10', "{", '{"step": 100, "lo'])
def test_a_torn_line_costs_nothing_but_itself(torn, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 50, "loss": 1.0, "seconds": 7.0}\n' + torn)
    log = Log(path)
    log.begin(60)
    for step in (100, 150):
        log.write(step, {"loss": 1.0})
    lines = metrics.read(path)
    assert [line["step"] for line in lines] == [50, 100, 150]
    assert lines[-1]["seconds"] >= 7


def test_events_are_written_where_they_are_wanted(tmp_path):
    pytest.importorskip("tensorboardX")
    log = Log(tmp_path / "log.jsonl", tmp_path / "events")
    log.begin(0)
    log.write(50, {"loss": 0.5})
    assert list((tmp_path / "events").iterdir())
