"""The front by brute force, and what its caption says."""

import numpy as np

from jvq.report.figures import front


def test_the_front_is_what_no_other_point_beats(rng):
    cost, score = rng.integers(0, 8, 40).astype(float), rng.integers(0, 8, 40).astype(float)
    want = []
    for i in range(40):
        beaten = False
        for j in range(40):
            if cost[j] <= cost[i] and score[j] >= score[i] and (cost[j] < cost[i] or score[j] > score[i]):
                beaten = True
        want.append(not beaten)
    assert front.undominated(cost, score).tolist() == want
    assert 0 < sum(want) < 40


def test_the_table_is_drawn_with_its_names(report, drawn):
    data = front.front_of(report["rows"], "igq")
    assert data.measure == "top1"
    np.testing.assert_allclose(data.score, [90, 50, 80.5])
    np.testing.assert_allclose(data.costs["bytes"], [40.96, 4.096, 8.192])
    np.testing.assert_allclose(data.costs["bops"], [64, 1, 1.1])
    texts = drawn(front.draw, data)
    for name in ("float", "minmax", "igq"):
        assert texts.count(name) == 2, "in each panel once"
    said = front.caption(data)
    assert "against size minmax, igq, float" in said
    assert "igq has top-1 % 80.5 at 8.19 KB, float 90 at 41 KB" in said


def test_a_beaten_row_is_not_named_in_the_caption_s_front(report):
    report["rows"][1] |= {"bytes": 10**5, "bops": 10**12}
    assert "minmax" not in front.caption(front.front_of(report["rows"], "igq"))


def test_of_many_rows_only_telling_ones_have_names(report, drawn):
    rows = report["rows"] + [{**report["rows"][1], "name": f"other{i}", "top1": 0.01 * i} for i in range(30)]
    texts = drawn(front.draw, front.front_of(rows, "igq"))
    assert "igq" in texts
    assert sum(t.startswith("other") for t in texts) == 0


def test_without_a_score_or_another_row_there_is_nothing_to_draw(report):
    assert front.front_of(report["rows"][:1], "igq") is None
    for row in report["rows"]:
        row["top1"] = None
    assert front.front_of(report["rows"], "igq").measure == "agreement"
    for row in report["rows"]:
        del row["agreement"]
    assert front.front_of(report["rows"], "igq") is None
