"""The quantiser with a learned scale and offset: its gradients against autodiff, by hand, and by difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.rounding import learned_codes, learned_quantize

SHAPE = (3, 4, 40)
SCALES = {"tensor": (1, 1, 1), "head": (1, 4, 1)}
ENDS = {True: lambda b: (-(2.0 ** (b - 1)), 2.0 ** (b - 1) - 1), False: lambda b: (0.0, 2.0**b - 1)}


def straight_through(x, scale, offset, low, high, factor):
    """The same quantiser put together from ``stop_gradient``: spec 1.1 and 1.2, for autodiff to go through."""
    stop = jax.lax.stop_gradient
    scale = scale * factor + stop(scale * (1.0 - factor))  # the value of scale, its gradient times factor
    u = jnp.minimum(jnp.maximum((x - offset) / scale, low), high)
    return scale * (u + stop(jnp.round(u) - u)) + offset


def weighted(quantize):
    """Value and gradients to x, scale and offset of the product's sum, compiled once a shape."""

    def run(c, x, scale, offset, low, high, factor):
        def loss(x, scale, offset):
            y = quantize(x, scale, offset, low, high, factor)
            return (c * y).sum(), y

        (_, y), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, scale, offset)
        return y, *grads

    return jax.jit(run)


ours, theirs = weighted(learned_quantize), weighted(straight_through)


def drawn(rng, shape, bits, signed, offset):
    """Arguments of ``ours`` and ``theirs``: a good part of x beyond both ends, none of it near the edge of a code."""
    low, high = ENDS[signed](bits)
    scale = rng.uniform(0.05, 0.2, shape)
    shift = rng.normal(0, 0.3, shape) if offset else np.zeros(shape)
    width = high - low
    u = np.round(rng.uniform(low - 0.3 * width, high + 0.3 * width, SHAPE)) + rng.uniform(-0.45, 0.45, SHAPE)
    arrays = rng.normal(size=SHAPE), u * scale + shift, scale, shift, low, high, rng.uniform(0.1, 2.0, shape)
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize("shape", SCALES)
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_are_autodiffs_of_the_straight_through_composition(bits, signed, offset, shape, rng):
    """Q2."""
    args = drawn(rng, SCALES[shape], bits, signed, offset)
    (y, dx, ds, db), (y_, dx_, ds_, db_) = ours(*args), theirs(*args)
    np.testing.assert_allclose(y, y_, atol=1e-6 * float(jnp.abs(y_).max()))
    np.testing.assert_allclose(dx, dx_, atol=1e-5)
    np.testing.assert_allclose(ds, ds_, rtol=1e-4)
    np.testing.assert_allclose(db, db_, rtol=1e-5, atol=1e-5)
    assert 0.2 < (np.asarray(dx) != 0).mean() < 0.9  # both sides of the range are really there
    assert (np.asarray(db) != 0).all()


@pytest.mark.parametrize("signed", [True, False])
def test_factor_and_offset_may_be_shared_otherwise_than_the_scale(signed, rng):
    """A scale a head, one offset, and the factor a plain number."""
    c, x, scale, _, low, high, _ = drawn(rng, (1, 4, 1), 3, signed, True)
    args = c, x, scale, jnp.full((1, 1, 1), 0.07), low, high, jnp.float32(0.3)
    for got, want in zip(ours(*args), theirs(*args), strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def row(*values):
    return jnp.asarray(values, jnp.float32)


def test_gradient_to_x_is_cut_off_at_and_beyond_the_ends():
    """Q3, with values that float32 has exactly: offset 1, scale 1/4, codes -4 to 3."""
    u = row(-9.0, -4.25, -4.0, -3.999, -3.5, 0.0, 1.49, 2.999, 3.0, 3.25, 70.0)
    c = jnp.arange(1.0, 12.0)
    _, dx, _, _ = ours(c, u * 0.25 + 1.0, row(0.25), row(1.0), jnp.float32(-4), jnp.float32(3), jnp.float32(1))
    np.testing.assert_array_equal(dx, np.asarray(c) * [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_gradient_to_the_scale_at_centres_and_far_beyond_the_ends(offset):
    """Q4."""
    low, high, factor, scale = jnp.float32(-8), jnp.float32(7), jnp.float32(0.25), row(0.1)
    centres = jnp.arange(-7.0, 7.0) * 0.1 + offset
    args = scale, row(offset), low, high, factor
    np.testing.assert_allclose(ours(jnp.ones(14), centres, *args)[2], [0.0], atol=1e-5)
    np.testing.assert_allclose(ours(jnp.ones(50), jnp.full(50, 90.0), *args)[2], [0.25 * 50 * 7], rtol=1e-5)
    np.testing.assert_allclose(ours(jnp.ones(50), jnp.full(50, -90.0), *args)[2], [0.25 * 50 * -8], rtol=1e-5)


def test_gradient_to_the_scale_is_the_rounding_error_inside():
    """By hand: u of 0.3, 1.4, 1.6 and -2.2 lack -0.3, -0.4, 0.4 and 0.2 to their codes."""
    x, c = row(0.3, 1.4, 1.6, -2.2) * 0.5, row(1.0, 10.0, 100.0, 1000.0)
    _, _, ds, _ = ours(c, x, row(0.5), row(0.0), jnp.float32(-4), jnp.float32(3), jnp.float32(2))
    np.testing.assert_allclose(ds, [2 * (-0.3 - 4 + 40 + 200)], rtol=1e-5)


def test_gradient_to_the_offset_is_that_of_clipped_values_alone(rng):
    """Q5: unscaled, whatever the factor."""
    c, x, scale, shift, low, high, factor = drawn(rng, (1, 4, 1), 3, False, True)
    u = (np.asarray(x) - np.asarray(shift)) / np.asarray(scale)
    clipped = (u <= 0) | (u >= 7)
    assert 0.1 < clipped.mean() < 0.9
    want = (np.asarray(c) * clipped).sum(axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(ours(c, x, scale, shift, low, high, factor)[3], want, atol=1e-5)
    inner = jnp.clip(x, shift + 0.1 * scale, shift + 6.9 * scale)
    np.testing.assert_array_equal(ours(c, inner, scale, shift, low, high, factor)[3], np.zeros((1, 4, 1)))


@pytest.mark.parametrize("end", [-1, 1])
@pytest.mark.parametrize("signed", [True, False])
def test_gradients_of_clipped_values_are_differences(signed, end, rng):
    """Q6: where all is clipped the quantiser is linear in scale and offset, so differences are exact."""
    c, _, scale, shift, low, high, _ = drawn(rng, (1, 4, 1), 3, signed, True)
    one, x = jnp.float32(1), jnp.full(SHAPE, end * 50.0)
    _, _, ds, db = ours(c, x, scale, shift, low, high, one)

    def loss(scale, shift):
        y = np.asarray(learned_quantize(x, scale, shift, low, high, one), np.float64)
        return (np.asarray(c, np.float64) * y).sum(axis=(0, 2))

    step = 0.03
    by_scale = (loss(scale + step, shift) - loss(scale - step, shift)) / (2 * step)
    by_shift = (loss(scale, shift + step) - loss(scale, shift - step)) / (2 * step)
    np.testing.assert_allclose(ds.ravel(), by_scale, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(db.ravel(), by_shift, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_values_are_whole_codes_times_the_scale(signed, bits, rng):
    """Q1, and the codes against float64."""
    _, x, scale, shift, low, high, _ = drawn(rng, (1, 4, 1), bits, signed, True)
    y = ours(x, x, scale, shift, low, high, jnp.float32(1))[0]
    codes = np.asarray(learned_codes(x, scale, shift, low, high))
    wide = [np.asarray(a, np.float64) for a in (x, scale, shift)]
    np.testing.assert_array_equal(codes, np.clip(np.rint((wide[0] - wide[2]) / wide[1]), float(low), float(high)))
    np.testing.assert_allclose((np.asarray(y, np.float64) - wide[2]) / wide[1], codes, atol=1e-5 * 2**bits)
    again = ours(x, y, scale, shift, low, high, jnp.float32(1))[0]
    np.testing.assert_allclose(again, y, atol=1e-6)


def test_halves_go_to_the_even_code():
    u = row(-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)
    y = learned_quantize(u, row(1.0), row(0.0), jnp.float32(-4), jnp.float32(3), jnp.float32(1))
    assert y.tolist() == [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0]


def test_ranges_and_factor_get_no_gradient(rng):
    c, *args = drawn(rng, (1, 4, 1), 3, True, True)
    got = jax.grad(lambda *a: (c * learned_quantize(*args[:3], *a)).sum(), (0, 1, 2))(*args[3:])
    assert [g.shape for g in got] == [a.shape for a in args[3:]]
    assert not any(np.asarray(g).any() for g in got)


def test_the_dtype_of_x_is_kept_forward_and_backward(rng):
    c, x, *rest = drawn(rng, (1, 4, 1), 4, True, True)
    narrow = x.astype(jnp.bfloat16)
    y = learned_quantize(narrow, *rest)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, learned_quantize(narrow.astype(jnp.float32), *rest).astype(jnp.bfloat16))

    def loss(x, scale, shift):
        return (c * learned_quantize(x, scale, shift, *rest[2:]).astype(jnp.float32)).sum()

    assert [g.dtype.name for g in jax.grad(loss, (0, 1, 2))(narrow, *rest[:2])] == ["bfloat16", "float32", "float32"]
