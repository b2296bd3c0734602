"""Pictures of groups: that they are written whole, show what they are given, and the front they draw."""

import numpy as np
import pytest
from PIL import Image

from jvq.report import draw_allocation, draw_error, draw_fronts, draw_grouping
from jvq.report.groups import pareto
from jvq.report.tables import COLUMNS


def colours(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)), picture.size


def site(rng, rows=False):
    points = np.sort(rng.normal(size=(300, 2)), axis=1)
    points[:, 0] *= not rows
    group = rng.integers(0, 4, 300)
    return {
        "points": points,
        "group": group,
        "centres": np.array([points[group == g].mean(axis=0) for g in range(4)]),
        "history": np.linspace(9, 5, 6),
        "quantile": 6.0,
    }


def test_grouping_has_a_column_an_operand(rng, tmp_path):
    sites = {"block00/mlp/fc1.x": site(rng), "block00/attn/pv.p": site(rng, rows=True)}
    draw_grouping(tmp_path / "two.png", sites)
    draw_grouping(tmp_path / "one.png", dict([*sites.items()][:1]))
    many, (width, height) = colours(tmp_path / "two.png")
    _, (narrow, same) = colours(tmp_path / "one.png")
    assert many > 50
    assert width == pytest.approx(2 * narrow, abs=2)
    assert height == same
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_the_same_allocation_gives_the_same_picture_and_another_choice_another(tmp_path):
    sites = {
        "a.x": {"groups": 8, "candidates": [4, 8], "kl": [0.25, 0.5], "cost": [1, 2]},
        "b.p": {"groups": 4, "candidates": [2, 4], "kl": [1.0, 0.0], "cost": [1, 2]},
    }
    for name in ("one", "again"):
        draw_allocation(tmp_path / f"{name}.png", {"sites": sites})
    sites["a.x"]["groups"] = 4
    draw_allocation(tmp_path / "other.png", {"sites": sites})
    one, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


def test_a_front_is_drawn_of_rows_with_and_without_spread(tmp_path):
    rows = [
        {"name": f"W{b}A{b} {method}", "bops": b * 1e9 + extra, "top1": score}
        for b in (2, 4)
        for method, extra, score in (("minmax", 0, 0.1 * b), ("igq", 1e8, 0.2 * b))
    ]
    rows[0]["spread"] = {"top1": 0.05}
    draw_fronts(tmp_path / "front.png", rows, "top1", {"top1": 0.9})
    assert colours(tmp_path / "front.png")[0] > 20


def test_errors_are_drawn_against_the_number_of_groups(tmp_path):
    points = [(g, {"kl": 0.1 / g, "spread": {"kl": 0.01}}) for g in (1, 2, 8)]
    draw_error(tmp_path / "error.png", points, {"minmax": {"kl": 0.2}}, "kl", COLUMNS["kl"])
    draw_error(tmp_path / "other.png", points, {}, "kl", COLUMNS["kl"])
    assert colours(tmp_path / "error.png")[0] > 20
    assert (tmp_path / "error.png").read_bytes() != (tmp_path / "other.png").read_bytes()


@pytest.mark.parametrize("larger", [True, False])
def test_the_front_is_what_nothing_cheaper_beats(rng, larger):
    points = [(float(c), float(s)) for c, s in rng.integers(0, 9, (40, 2))]
    beats = (lambda a, b: a > b) if larger else (lambda a, b: a < b)
    want = {
        (c, s) for c, s in points if not any((d <= c and beats(t, s)) or (d < c and not beats(s, t)) for d, t in points)
    }
    assert set(zip(*pareto(points, larger), strict=True)) == want
