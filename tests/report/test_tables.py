"""The numbers of a report as text."""

import pytest

from jvq import rows
from jvq.report import cost_cells, figures_of, markdown, row_cells, row_head, site_cells


def test_a_row_in_cells(report):
    assert row_cells(report["rows"][2]) == ("igq", "80.50", "90.50", "0.0312", "8 KiB", "1.100")


def test_without_labels_there_is_no_accuracy(report):
    assert row_cells({**report["rows"][2], "top1": None})[1] == "-"


@pytest.mark.parametrize(("size", "shown"), [(1024, "1 KiB"), (2**23 - 1, "8192 KiB"), (2**23, "8.0 MiB")])
def test_sizes_have_a_fitting_unit(report, size, shown):
    assert row_cells({**report["rows"][0], "bytes": size})[4] == shown


def test_a_site_in_cells(report):
    patch, fc1 = report["sites"].items()
    assert site_cells(*patch) == ("patch.x", "Uniform", "8", "", "1.50e-05", "")
    assert site_cells(*fc1) == ("block00/mlp/fc1.x", "Grouped", "4", "8", "1.23e-02", "0.875")


def test_the_sentences_compare_with_float_and_min_max(report):
    assert figures_of(report) == [
        "igq is 5.0 times smaller than float and needs 58 times fewer bit-operations, at -9.50 points of top-1.",
        "Against min-max at the same widths: +30.50 points for +10.0 % bit-operations.",
    ]


def test_without_labels_the_sentences_leave_accuracy_out(report):
    for row in report["rows"]:
        row["top1"] = None
    assert figures_of(report) == ["igq is 5.0 times smaller than float and needs 58 times fewer bit-operations."]


def test_min_max_is_not_compared_with_itself(report):
    assert len(figures_of({**report, "method": "minmax"})) == 1
    assert figures_of({**report, "method": "supervised", "rows": report["rows"][:1]}) == []


def test_markdown_holds_everything(report):
    text = markdown(report)
    for row in report["rows"]:
        assert "| " + " | ".join(row_cells(row)) + " |" in text
    for site in report["sites"].items():
        assert "| " + " | ".join(site_cells(*site)) + " |" in text
    for part in ("# igq on tiny", "`python -m jvq.main --config configs/x.py`", "200 images of npz (test), seed 3"):
        assert part in text
    assert "1 x cpu (cpu), 4 s." in text
    assert "- weights: 4 bits\n- rules: none" in text
    assert "load 1.2, fit 2.5" in text
    assert "the formula" in text
    assert all(line in text for line in figures_of(report))
    assert "without labels" not in text
    assert "## Warnings" not in text


def test_markdown_tables_are_rectangular(report):
    rows = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert sorted({line.count("|") for line in rows}) == [7, 8]  # 6 columns of sites and of models, 7 of costs


def test_markdown_says_what_is_missing(report):
    for row in report["rows"]:
        row["top1"] = None
    text = markdown({**report, "sites": {}, "warnings": ["2 images could not be read"]})
    assert "200 images of npz (test) without labels" in text
    assert "## Sites" not in text
    assert text.endswith("## Warnings\n\n- 2 images could not be read\n")


def test_work_at_run_time_is_a_share_of_the_products(report):
    assert cost_cells(report["rows"][1]) == ("minmax", "0.0625", "1.000", "0.00", "0.00", "0.00", "0.00")
    assert cost_cells(report["rows"][2]) == ("igq", "0.0625", "1.000", "1.00", "2.00", "7.00", "10.00")


def test_the_chosen_number_of_groups_stands_out(report):
    sites = {
        "patch.x": {"groups": 8, "candidates": [4, 8], "kl": [0.25, 0.5], "cost": [1, 2]},
        "block00/attn/pv.p": {"groups": 4, "candidates": [2, 4], "kl": [1.0, 2e-5], "cost": [1, 2]},
    }
    allocation = {"budget": "bops", "limit": 12345, "spent": 12000, "mean_groups": 6.0, "kl": 0.5, "sites": sites}
    text = markdown({**report, "allocation": allocation})
    assert "Budget: 12,345 bit-operations at run time" in text
    assert "spent 12,000" in text
    assert "| address | groups | KL of 2 | KL of 4 | KL of 8 |" in text
    assert "| patch.x | 8 |  | 2.5e-01 | **5.0e-01** |" in text
    assert "| block00/attn/pv.p | 4 | 1.0e+00 | **2.0e-05** |  |" in text
    assert "Number of groups" not in markdown(report)


def test_rows_without_training_have_a_dash_where_others_oscillate():
    plain = {"name": "minmax", "top1": 0.5, "bytes": 10, "bops": 10**9}
    trained = {**plain, "name": "vvtq", "oscillating": 0.125}
    table = rows.filled([plain, trained])
    assert row_head(table) == ("model", "top-1 %", "oscillates %", "size", "GBOPs")
    assert [row_cells(row)[2] for row in table] == ["-", "12.50"]
    assert rows.filled([plain]) == [plain]
    fit = rows.Fitted({}, {}, {"training": {"curves": {"oscillating": [0.5, 0.125]}}})
    assert rows.of_training(fit) == {"oscillating": 0.125}
    assert rows.of_training(rows.Fitted({}, {})) == rows.of_training(rows.Fitted({}, {}, {"training": {}})) == {}
