"""Use and entropy of codes against scipy, and what the figure says of them."""

import numpy as np
import pytest
from scipy import stats

from jvq.report.figures import weights


def layer(rng, address="a.w", codes=16, error=0.0123):
    return weights.Layer(
        address,
        "largest error",
        "o 3",
        rng.normal(size=50),
        np.linspace(-2, 2, codes),
        rng.integers(0, 9, codes),
        error,
    )


def test_entropy_is_scipys(rng):
    counts = rng.integers(0, 5, 30)
    assert weights.entropy(counts) == pytest.approx(stats.entropy(counts, base=2))
    assert weights.entropy(np.array([7, 0])) == 0
    assert weights.entropy(np.full(16, 3)) == pytest.approx(4)
    assert weights.used(np.array([7, 0, 0, 1])) == 0.5


def test_layers_are_drawn_with_a_line_a_bin(rng, drawn, tmp_path):
    few, many = layer(rng), layer(rng, "b.w", 256)
    texts = drawn(weights.draw, [few, many])
    assert {"weight; lines: what a code stands for", "weight; lines: the ends"} <= {*texts}
    assert f"{(few.counts > 0).sum()} of 16 codes, {stats.entropy(few.counts, base=2):.2f} bits of entropy" in texts


def test_the_caption_names_the_layer_that_wastes_most(rng):
    wasteful = layer(rng, "b.w", 4)._replace(counts=np.array([99, 1, 0, 0]), error=0.5)
    said = weights.caption([layer(rng)._replace(counts=np.full(16, 2)), wasteful])
    assert "a.w (largest error) 1.23 %; b.w (largest error) 50 %" in said
    assert f"b.w uses 50 % of its codes, and {stats.entropy([99, 1], base=2):.2f} of 2.00 bits" in said


def test_one_value_everywhere_can_be_drawn(rng, drawn):
    drawn(weights.draw, [layer(rng)._replace(values=np.zeros(5), bins=np.zeros(2), counts=np.array([5, 0]))])
