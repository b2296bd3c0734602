"""What an interrupted run leaves to look at: its rows, how to go on, and nothing that passes for a report."""

import json

import pytest

from jvq.report import clear_partial, markdown, row_cells, write, write_partial
from jvq.report.reading import read


@pytest.fixture
def partial(report, tmp_path):
    write_partial(tmp_path, "igq", "fashion_vit", ["minmax", "igq", "late"], report["rows"][:2])
    return tmp_path


def test_it_says_what_is_there_what_is_missing_and_how_to_go_on(partial, report):
    found = json.loads((partial / "report.partial.json").read_text())
    assert (found["partial"], found["rows"]) == (True, report["rows"][:2])
    names = [row["name"] for row in report["rows"][:2]]
    missing = [name for name in ("minmax", "igq", "late") if name not in names]
    assert found["missing"] == missing
    assert f"--workdir={partial} --resume" in found["resume"]
    text = (partial / "report.partial.md").read_text()
    assert text.startswith("# Partial: igq on fashion_vit\n")
    assert f"Not finished: {', '.join(missing)}." in text
    assert found["resume"] in text
    for row in report["rows"][:2]:
        assert f"| {' | '.join(row_cells(row))} |" in text.splitlines()
        assert f"| {' | '.join(row_cells(row))} |" in markdown(report).replace("**", "").splitlines()


def test_it_is_no_report(partial):
    with pytest.raises(
        ValueError, match=r"holds no report.json: it is not the folder of a run, or the run did not end"
    ):
        read(partial)
    with pytest.raises(ValueError, match=r"is no report of a run: its schema is 'jvq.partial/1'"):
        read(partial / "report.partial.json")


def test_a_report_takes_its_place(partial, report):
    write(report, partial)
    clear_partial(partial)
    assert not list(partial.glob("report.partial*"))
    assert read(partial).report == report
    clear_partial(partial)
