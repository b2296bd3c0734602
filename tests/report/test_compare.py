"""Runs side by side: what they share once, what they differ in said, and mistakes in one line."""

import copy
import functools
import itertools
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl import app, flags

import jvq.report
from jvq.report import Console, compare, html, row_cells
from jvq.report.page import scatter
from jvq.report.reading import Run, named, read

MAIN = Path(jvq.report.__file__).with_name("__main__.py")
FC1 = "block00/mlp/fc1.x"


@pytest.fixture
def runs(report):
    """Two runs of one model on the same data: the second has another main method and the same float and min-max."""
    other = copy.deepcopy(report)
    other |= {"method": "liu21", "command": "python -m jvq.main --config configs/y.py"}
    other["rows"][2] |= {"name": "liu21", "top1": 0.85, "bytes": 8000, "bops": 10**9}
    other["protocol"] = {"weights": "4 bits, searched", "rules": "none", "search": "pearson"}
    other["sites"] = {
        FC1: {**report["sites"][FC1], "relative_error": 0.0246, "bits": 6, "groups": None},
        "block00/mlp/fc1.w": {**report["sites"]["patch.x"], "relative_error": 0.5},
    }
    return [Run(report, Path("a"), "igq_demo"), Run(other, Path("b"), "liu_demo")]


def test_rows_that_runs_share_stand_once(runs):
    found = [(compare.owner(e, runs), e.row["name"], e.main) for e in compare.entries(runs)]
    assert found == [
        ("all", "float", False),
        ("all", "minmax", False),
        ("igq_demo", "igq", True),
        ("liu_demo", "liu21", True),
    ]
    third = Run({**runs[0].report, "rows": runs[0].report["rows"][:1]}, Path("c"), "third")
    found = [(compare.owner(e, [*runs, third]), e.row["name"]) for e in compare.entries([*runs, third])]
    assert found[:2] == [("all", "float"), ("igq_demo, liu_demo", "minmax")]


def test_a_difference_in_any_number_makes_two_rows(runs):
    runs[1].report["rows"][1]["kl"] += 1e-9
    assert [compare.owner(e, runs) for e in compare.entries(runs) if e.row["name"] == "minmax"] == [
        "igq_demo",
        "liu_demo",
    ]


def test_rows_of_other_measures_have_a_dash(runs):
    for row in runs[1].report["rows"]:
        row["correlation"] = 0.5
    grid = compare.row_grid(runs)
    place = [h.text for h in grid.head].index("corr.")
    assert {line.cells[place].text for line in grid.lines} == {"-", "0.5000"}
    assert {len(line.cells) for line in grid.lines} == {len(grid.head)}


def test_the_best_stand_out_only_where_runs_are_comparable(runs):
    def best():
        return [[c.text for c in line.cells if "best" in c.kind] for line in compare.row_grid(runs).lines]

    assert best() == [[], ["4 KiB", "1.000"], ["90.50", "0.0312"], ["85.00", "90.50", "0.0312", "1.000"]]
    runs[1].report["data"]["images"] = 100
    assert not any(best())


def test_warnings_name_what_is_not_the_same(runs):
    assert compare.warnings(runs) == ["different protocols, in: weights", "only some of the runs have: search"]
    assert [*compare.differing(compare.fields(runs))] == ["weights", "search"]
    same = [runs[0], runs[0]._replace(name="again")]
    assert compare.warnings(same) == []
    assert compare.comparable(same)
    assert not compare.differing(compare.fields(same))


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("data", "images", 100, "different images: .*numbers of images \\(igq_demo: 200; liu_demo: 100\\)"),
        ("data", "name", "fashion", "different data: .*\\(igq_demo: npz \\(test\\); liu_demo: fashion \\(test\\)\\)"),
        ("data", "split", "train", "different data: .*liu_demo: npz \\(train\\)"),
        ("model", "name", "large", "different model: .*of different models"),
        ("protocol", "calibration", "8 images", "different calibration: .*\\(igq_demo: none; liu_demo: 8 images\\)"),
    ],
)
def test_what_cannot_be_compared_comes_first(runs, part, key, value, said):
    runs[1].report[part][key] = value
    assert re.fullmatch(said + ".*", compare.warnings(runs)[0])
    assert compare.comparable(runs) == (part == "protocol")


def test_what_a_run_found_is_no_difference_of_protocol(runs):
    runs[1].report["protocol"]["integer inference"] = "32 products"
    assert not any("integer" in line for line in compare.warnings(runs))
    assert "integer inference" in compare.differing(compare.fields(runs))


def test_sites_side_by_side(runs):
    grid = compare.site_grid(runs)
    assert [h.text for h in grid.head][:4] == ["address", "igq_demo", "liu_demo", "liu_demo / igq_demo"]
    lines = {line.cells[0].text: [c.text for c in line.cells[1:]] for line in grid.lines}
    assert lines[FC1] == ["1.23e-02", "2.46e-02", "2.00", "4 x 8", "6"]
    assert lines["patch.x"] == ["1.50e-05", "", "", "8", ""]
    assert lines["block00/mlp/fc1.w"] == ["", "5.00e-01", "", "", "8"]
    assert [*lines] == ["patch.x", FC1, "block00/mlp/fc1.w"]
    worse = next(line for line in grid.lines if line.cells[0].text == FC1).cells[3]
    assert "worse" in worse.kind
    assert compare.site_grid([run._replace(report={**run.report, "sites": {}}) for run in runs]) is None


def test_a_page_of_several_runs(runs):
    text = compare.html(runs)
    for run in runs:
        assert run.report["command"].split()[-1] in text
        assert all(cell in text for row in run.report["rows"] for cell in row_cells(row))
    assert text.count("<circle") == 2 * 3  # float is a line
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', text)[1]
    assert json.loads(data) == {run.name: run.report for run in runs}
    bad = "</script><script>alert(1)</script>\"'<b>"
    for run in runs:
        run.report["protocol"][bad] = run.report["rows"][2]["name"] = run.report["method"] = bad
    hostile = compare.html([run._replace(name=bad + run.name) for run in runs])
    assert hostile.count("<script") == text.count("<script") == 2
    assert "<b>" not in hostile


def test_without_a_measure_that_all_have_there_is_no_front(runs):
    runs[1].report["rows"][2] |= {"top1": None, "agreement": None}
    assert compare.panels(runs) == ("", [])
    assert "<circle" not in compare.html(runs)


def points(*of):
    return [scatter.Point(c, s, i, f"row {i}", True) for i, (c, s) in enumerate(of)]


def test_better_is_higher_and_dearer_further_right():
    panel = scatter.panel(points((100.0, 80.0), (200.0, 90.0), (400.0, 85.0)), "size", 92.0)
    (a, b, c) = panel.marks
    assert b.x - a.x == pytest.approx(c.x - b.x, abs=0.2)  # doubling is a step of one length
    assert b.y < c.y < a.y
    assert panel.level < b.y
    assert all(scatter.LEFT <= m.x <= scatter.WIDE - scatter.RIGHT for m in panel.marks)
    assert all(scatter.TOP <= m.y <= scatter.HIGH - scatter.BOTTOM for m in panel.marks)
    corners = dict.fromkeys(tuple(map(float, pair.split(","))) for pair in panel.front.split())
    assert [*corners] == [(a.x, a.y), (b.x, a.y), (b.x, b.y), (scatter.WIDE - scatter.RIGHT, b.y)]


@pytest.mark.parametrize("of", [[(5.0, 1.0)], [(5.0, 1.0), (5.0, 1.0)], [(1e-3, 0.0), (1e6, 1.0)]])
def test_points_that_are_the_same_or_far_apart_can_be_drawn(of):
    panel = scatter.panel(points(*of), "size")
    assert len(panel.below) > 1
    assert len(panel.beside) > 1
    assert all(scatter.LEFT <= tick.at <= scatter.WIDE for tick in panel.below)
    assert all(0 <= tick.at <= scatter.HIGH - scatter.BOTTOM for tick in panel.beside)


def test_names_do_not_lie_on_each_other_or_outside():
    panel = scatter.panel(points(*((100.0 + i / 10, 80.0 + i / 5) for i in range(8))), "size")
    boxes = [(x - 7.2 * len(t) if e == "end" else x, y - 4, 7.2 * len(t)) for x, y, t, e in panel.labels]
    assert boxes
    for i, (x, y, wide) in enumerate(boxes):
        assert scatter.LEFT <= x
        assert x + wide <= scatter.WIDE
        assert all(abs(y - v) > 10 or x > u + w or x + wide < u for u, v, w in boxes[:i])


@pytest.mark.parametrize("ends", [(0.0, 1.0), (63.8, 91.1), (-2.0, 3e5), (0.001, 0.0012)])
def test_ticks_are_round_and_inside(ends):
    found = scatter.ticks(*ends)
    assert 2 <= len(found) <= 11
    assert all(ends[0] <= t <= ends[1] for t in found)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert steps == {1.0}


def test_the_terminal_shows_rows_differences_and_warnings(runs, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    runs[1].report["protocol"]["search"] = "[bold]pearson"
    compare.show(runs, Console())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    name, *cells = row_cells(runs[1].report["rows"][2])
    assert [name, "liu_demo", *" ".join(cells).split()] in lines
    assert ["search", "-", "[bold]pearson"] in lines
    assert ["warning:", "different", "protocols,", "in:", "weights"] in lines


@pytest.fixture
def root(report, tmp_path):
    """Folders of runs: a, b (other seed), deep/a, parts (two of them), and some that cannot be shown."""
    texts = {f"{name}/report.json": json.dumps(report) for name in ("a", "deep/a", "parts/vit", "parts/swin")}
    texts |= {"b/report.json": json.dumps({**report, "seed": 4}), "cut/report.json": json.dumps(report)[:100]}
    texts |= {"new/report.json": json.dumps({**report, "schema": "jvq.report/2"})}
    texts |= {"nan/report.json": json.dumps({**report, "seed": float("nan")}), "list/report.json": "[]"}
    texts |= {"rows/report.json": json.dumps({**report, "rows": [{"name": "float"}]}), "empty/x": ""}
    texts |= {
        "less/report.json": json.dumps({k: v for k, v in report.items() if k != "sites"}),
        "c.json": texts["a/report.json"],
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture
def command(root, monkeypatch, capsys):
    """``command(*args) -> (exit code, stdout, stderr)`` in the folder ``root``; with flags of its own."""
    monkeypatch.chdir(root)
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*args):
        own, code = flags.FlagValues(), 0
        define = functools.partial(flags.DEFINE_string, flag_values=own)
        with monkeypatch.context() as m:
            m.setattr("absl.flags", SimpleNamespace(FLAGS=own, DEFINE_string=define))
            m.setattr(app, "run", lambda main: main(own(["jvq.report", *args])))
            try:
                runpy.run_path(str(MAIN), run_name="__main__")
            except SystemExit as stop:
                code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_several_runs_make_a_page_and_a_table(command, root):
    code, out, err = command("a", "b/report.json")
    assert (code, err) == (0, "")
    assert "comparison: compare.html" in out
    assert re.search(r"seed +3 +4", out)
    assert (root / "compare.html").read_text() == compare.html(named([Path("a"), Path("b")]))
    assert command("a", "b", "--out=deep/other.html")[0] == 0
    assert (root / "deep" / "other.html").exists()


def test_one_run_gets_its_page_again(command, root, report):
    code, out, err = command("a")
    assert (code, err) == (0, "")
    assert (root / "a" / "report.html").read_text() == html(report, root / "a")
    assert "report: a/report.html" in out
    assert command("a", "--out=x.html")[0] == 0
    assert sorted(p.name for p in root.glob("*.html")) == ["x.html"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "an argument is needed"),
        (["missing", "b"], "no folder or file 'missing' \\(there are: a, b, "),
        (["part", "b"], "no folder or file 'part' \\(did you mean 'parts'\\?\\)"),
        (["empty"], "empty holds no report.json: it is not the folder of a run, or the run did not end"),
        (["parts"], "parts holds no report itself but those of its parts: swin, vit; name one, such as parts/swin"),
        (["cut"], "cut/report.json is not JSON, or not whole: .*line 1"),
        (["nan"], "nan/report.json is not JSON, or not whole: NaN is not a number"),
        (["list"], "list/report.json is no report of a run: its schema is None, not 'jvq.report/1'"),
        (["a", "new"], "new/report.json was written by a newer jvq \\('jvq.report/2'\\); this one reads up to"),
        (["less"], "less/report.json is no whole report: 'sites' is missing"),
        (["rows"], "rows/report.json is no whole report: every one of its rows needs name, bytes"),
        (["a", "a/report.json"], "the same report is named twice"),
        (["a", "b", "--out=no/x.html"], "out: no/x.html cannot be written: it must be a file in a folder that exists"),
        (["a", "--out=b"], "out: b cannot be written"),
    ],
)
def test_mistakes_end_in_one_line(command, root, args, said):
    before = sorted(root.rglob("*"))
    code, out, err = command(*args)
    assert (code, out) == (2, "")
    assert re.match(f"jvq: {said}", err), err
    assert err.count("\n") == 1
    assert sorted(root.rglob("*")) == before


def test_runs_are_called_by_what_tells_them_apart(root):
    assert [run.name for run in named([root / "a", root / "b"])] == ["a", "b"]
    assert [run.name for run in named([root / "a", root / "deep" / "a"])] == [f"{root.name}/a", "deep/a"]
    assert [run.name for run in named([root / "a", root / "c.json"])] == ["a", "c.json"]
    assert [run.name for run in named([root / "parts" / "vit"])] == ["vit"]


def test_what_is_read_is_what_was_written(report, root):
    assert read(root / "a").report == read(root / "c.json").report == report
    assert read(root / "a").folder == root / "a"
    assert read(root / "c.json").folder == root
