"""Three values: digits and scales against NumPy, and their packed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.packed import Packed
from jvq.quantizers import Signs, Ternary


@pytest.fixture(scope="module")
def w():
    """[d o], channels of different width."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(50, 6)) * np.logspace(-1, 0.5, 6), jnp.float32)


def by_hand(w, over):
    """Threshold 0.7 mean|w|, scale the mean of |w| beyond it, in float64."""
    size = np.abs(np.asarray(w, np.float64))
    beyond = size > 0.7 * size.mean(axis=over, keepdims=True)
    scale = (size * beyond).sum(axis=over, keepdims=True) / beyond.sum(axis=over, keepdims=True)
    return np.sign(w) * beyond, scale


@pytest.mark.parametrize(("keep", "over"), [("", (0, 1)), ("o", (0,)), ("d", (1,))])
def test_digits_and_scales_are_twns(keep, over, w):
    q = Ternary(keep=keep)
    q.check("do", w.shape)
    assert q.init(w, "do") == {}
    digits, scale = by_hand(w, over)
    codes = q.encode({}, w, "do")
    np.testing.assert_array_equal(codes.codes - 1, digits)
    np.testing.assert_allclose(codes.scale, scale, rtol=1e-5)
    np.testing.assert_array_equal(codes.decode(), q.apply({}, w, "do"))
    assert set(np.unique(codes.codes)) == {0, 1, 2}


def test_three_values_are_nearer_than_two(w):
    lost = [np.square(q.apply({}, w, "do") - w).sum() for q in (Ternary(keep="o"), Signs(scale="mean", keep="o"))]
    assert lost[0] < 0.65 * lost[1]  # 0.19 and 0.36 of a normal weight's power


def test_the_gradient_passes_up_to_one(w):
    g = np.random.default_rng(1).normal(size=w.shape).astype(np.float32)
    got = jax.grad(lambda w: (g * Ternary(keep="o").apply({}, w, "do")).sum())(w)
    np.testing.assert_array_equal(got, g * (np.abs(w) <= 1))
    assert 0.02 < (np.asarray(got) == 0).mean() < 0.5


def test_a_packed_weight_has_two_bits(w):
    q = Ternary(keep="o")
    leaf = Packed.of(q.encode({}, w, "do"), q.bits)
    assert leaf.nbytes == 2 * 7 * 6 + 6 * 4 + 6 * 4
    np.testing.assert_array_equal(leaf.unpack(), q.apply({}, w, "do"))


def test_activations_have_a_scale_an_image(rng):
    x = jnp.asarray(rng.normal(size=(3, 5, 4)) * np.array([1.0, 10.0, 100.0]).reshape(3, 1, 1), jnp.float32)
    q = Ternary()
    np.testing.assert_allclose(q.encode({}, x, "bnd").scale, by_hand(x, (1, 2))[1], rtol=1e-5)
    assert q.overhead("bnd", (1, 5, 4), "d", 480, 16) == (2 * 16 * 20, 0, 0)
    assert q.overhead("do", (4, 6), "d", 480, 16).total == 0


@pytest.mark.parametrize(("q", "says"), [
    (Ternary(bits=1), "bits must be 2, got 1: Ternary has no other width"),
    (Ternary(bits=3), "bits must be 2, got 3"),
    (Ternary(keep="h"), "keep: no axis 'h' in an operand with letters 'do'"),
], ids=str)  # fmt: skip
def test_what_does_not_fit_is_refused(q, says, w):
    with pytest.raises(ValueError, match=says):
        q.check("do", w.shape)
