"""A report is written whole or not at all, and never over another one unasked."""

import json

import pytest

from jvq.report import claim, markdown, write


def test_what_is_written_is_the_report(report, tmp_path):
    write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.md").read_text() == markdown(report)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_leaves_nothing_behind(report, value, tmp_path):
    report["rows"][1]["kl"] = 0.0
    report["seed"] = value
    with pytest.raises((ValueError, TypeError)):
        write(report, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_report_leaves_the_old_one(report, tmp_path):
    write(report, tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        write({**report, "seed": float("nan")}, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.md").read_text() == markdown(report)


def test_a_workdir_is_made_and_left_empty(tmp_path):
    workdir = tmp_path / "runs" / "x"
    claim(workdir, overwrite=False)
    assert list(workdir.iterdir()) == []
    claim(workdir, overwrite=False)


def test_a_report_is_not_written_over_unasked(report, tmp_path):
    write(report, tmp_path)
    with pytest.raises(ValueError, match=r"already holds a report; use another --workdir, or --overwrite"):
        claim(tmp_path, overwrite=False)
    claim(tmp_path, overwrite=True)
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_a_workdir_that_cannot_be_written_to_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ValueError, match=r"workdir: .*file.* cannot be written to \((File exists|Not a directory)\)"
        ):
            claim(path, overwrite=True)
