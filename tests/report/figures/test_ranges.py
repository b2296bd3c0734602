"""Ranges of channels against plain loops."""

import re

import numpy as np
import pytest

from jvq.report.figures import ranges


def channels(rng, groups=False, count=12, what="channels"):
    values = rng.normal(size=(5, count, 30)) * np.linspace(0.1, 3, count)[None, :, None]
    bounds, inner = ranges.measured(values)
    covered = np.stack([np.full((5, count), -2.0), np.full((5, count), 2.0)])
    more = {}
    if groups:
        more = {"groups": np.array([[-1.0, -3.0], [1.0, 3.0]]), "share": np.array([0.25, 0.75])}
        more |= {"baseline": "minmax", "plain": 2 * covered}
    return values, ranges.Channels("block00/fc.x", what, bounds, inner, "igq", covered, 15, **more)


def test_bounds_and_percentiles_are_those_of_sorted_values(rng):
    values = rng.normal(size=(2, 3, 101))
    bounds, inner = ranges.measured(values)
    for i in range(2):
        for j in range(3):
            ordered = sorted(values[i, j])
            assert bounds[:, i, j].tolist() == [ordered[0], ordered[-1]]
            np.testing.assert_allclose(inner[:, i, j], [ordered[1], ordered[99]])  # 1 % of 100 intervals is one


@pytest.mark.parametrize(("letters", "kept"), [("bnd", "d"), ("bqhe", "he"), ("bmhqk", "hq"), ("nbd", "d")])
def test_an_operand_is_cut_by_image_and_index(rng, letters, kept):
    shape = [2 + i for i in range(len(letters))]
    x = rng.normal(size=shape)
    got = ranges.apart(x, letters, kept)
    images = shape[letters.index("b")]
    count = int(np.prod([shape[letters.index(a)] for a in kept]))
    assert got.shape[:2] == (images, count)
    sizes = [shape[letters.index(a)] for a in kept]
    for place, index in enumerate(np.ndindex(*sizes)):
        at = [slice(None)] * len(letters)
        for a, i in zip("b" + kept, (1, *index), strict=True):
            at[letters.index(a)] = i
        assert sorted(got[1, place]) == sorted(x[tuple(at)].reshape(-1))


def test_outlying_is_the_widest_over_the_median_and_leaves_constant_channels_out():
    assert ranges.outlying(np.array([0.0, 0.0, 1.0, 2.0, 8.0])) == 4
    assert ranges.outlying(np.zeros(3)) == 1


def test_clipping_counts_what_lies_beyond_half_a_step(rng):
    values, data = channels(rng)
    half = 0.501 * 4 / 15
    count = 0
    for image in values:
        for channel in image:
            count += min(channel) < -2 - half or max(channel) > 2 + half
    assert 0 < count < 60
    assert ranges.clipped(data) == pytest.approx(count / 60)


def test_channels_are_drawn_and_the_caption_s_numbers_are_theirs(rng, drawn):
    values, data = channels(rng, groups=True)
    texts = drawn(ranges.draw, data)
    assert {"block00/fc.x", "2 groups", "75", "25", "covered by minmax"} <= {*texts}
    said = ranges.caption(data, "Why")
    width = values.max(axis=(0, 2)) - values.min(axis=(0, 2))
    assert f"is {width.max() / np.median(width):.3g} times the median" in said
    size = values.max(axis=2) - values.min(axis=2)
    assert f"falls to {100 * np.median(size.min(axis=0) / size.max(axis=0)):.0f} %" in said
    assert "minmax covers 8, igq 4" in said
    assert f"clips {100 * ranges.clipped(data):.0f} %" in said


def test_two_values_are_not_said_to_clip(rng):
    _, data = channels(rng)
    assert "clips" in ranges.caption(data, "Why")
    assert "clips" not in ranges.caption(data._replace(steps=1), "Why")


def test_thousands_of_channels_stay_small(rng, drawn):
    _, data = channels(rng, count=3000)
    assert any("3000 in 320 places" in text for text in drawn(ranges.draw, data))


def test_spreads_name_the_largest(drawn):
    data = ranges.Spreads({"block00/fc.x": 2.0, "block00/qk.q": 9.0, "block01/pv.p": 1.5, "block01/fc.x": 5.0}, 16)
    texts = drawn(ranges.draw_spreads, data)
    assert {"block00/qk.q 9", "block01/fc.x 5", "attention maps, rows"} <= {*texts}
    said = ranges.caption_spreads(data)
    assert re.findall(r"[\d.]+(?= times| of| images)", said) == ["16", "9", "4", "2"]
    assert "of 4 sites" in said


def test_hundreds_of_sites_stay_readable(rng, drawn):
    ratio = {f"block{i // 8:02}/s{i}.x": float(r) for i, r in enumerate(rng.uniform(1, 9, 400))}
    texts = drawn(ranges.draw_spreads, ranges.Spreads(ratio, 16))
    assert sum(text.startswith("block") and "/" not in text for text in texts) <= 26
