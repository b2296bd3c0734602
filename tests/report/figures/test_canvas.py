"""The sheet that figures are drawn on: whole files, ink, ids, and places of labels."""

import re

import numpy as np
import pytest

from jvq.report.figures.canvas import BASE, FOURTH, GREY, MAIN, THIRD, drawing, named_parts, plain_number, spread


def luminance(colour):
    """WCAG's relative luminance of "#rrggbb"."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("colour", [MAIN, BASE, THIRD, FOURTH, GREY])
@pytest.mark.parametrize("paper", ["#ffffff", "#111111"])
def test_colours_of_data_read_on_white_and_on_near_black(colour, paper):
    light, dark = sorted([luminance(colour), luminance(paper)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_what_breaks_while_drawing_leaves_no_file(tmp_path):
    def broken():
        with drawing(tmp_path / "a.svg", 2.0, 2.0):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        broken()
    assert not [*tmp_path.iterdir()]


def test_styles_end_with_the_drawing(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    with drawing(tmp_path / "a.svg", 2.0, 2.0) as figure:
        figure.subplots().plot([1, 2])
    assert dict(matplotlib.rcParams) == before


def test_two_files_share_no_names(tmp_path):
    for name in ("a.svg", "b.svg"):
        with drawing(tmp_path / name, 2.0, 2.0) as figure:
            figure.subplots().plot([1, 2], marker="o")
    a, b = ({*re.findall(r' id="([^"]+)"', (tmp_path / n).read_text("utf-8"))} for n in ("a.svg", "b.svg"))
    assert a
    assert b
    assert not a & b


def test_labels_keep_their_order_and_their_distance(rng):
    for count in (1, 2, 9):
        places = rng.uniform(0, 1, count).tolist()
        moved = spread(places, 0.05, 0.0, 1.0)
        order = np.argsort(places)
        assert (np.diff(np.array(moved)[order]) >= 0.05 - 1e-9).all()
        assert min(moved) >= -1e-9
        assert max(moved) <= 1 + 1e-9
    assert spread([0.1, 0.9], 0.05, 0.0, 1.0) == [0.1, 0.9], "what has room stays"
    crowded = spread([0.5] * 50, 0.05, 0.0, 1.0)
    np.testing.assert_allclose(np.diff(crowded), 1 / 49, atol=1e-9)


def test_parts_of_a_model_are_its_numbered_ones():
    names = [
        "patch.x",
        "block00/attn/qkv.x",
        "block00/mlp/fc1.x",
        "stage1/block00/attn/qk.q",
        "stage1/merge.x",
        "head.x",
    ]
    assert named_parts(names) == [
        (0, "patch"), (1, "block00"), (3, "stage1/block00"), (4, "stage1"), (5, "head"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (12.345, "12.3"), (12345.6, "12,346"), (1e-7, "1.0e-07")]
)
def test_numbers_are_written_as_people_do(value, text):
    assert plain_number(value) == text
