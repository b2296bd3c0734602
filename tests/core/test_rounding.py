"""Fake quantisation: the values against NumPy, the gradients against the formulas of LSQ and LSQ+ written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.rounding import fake_quantize, round_ste, uniform_codes

SHAPE = (3, 4, 5)
SHARED = [(1, 1, 1), (1, 4, 1), (3, 1, 5), SHAPE]


def case(shape, bits, rng, away=False):
    """x, scale, zero and levels with a good part of x beyond both ends; ``away`` keeps x off the steps' edges."""
    levels = np.float32(2**bits - 1)
    scale = rng.uniform(0.05, 0.2, shape).astype(np.float32)
    zero = np.round(rng.uniform(0.2, 0.8, shape) * levels).astype(np.float32)
    steps = rng.uniform(-0.3 * levels, 1.3 * levels, SHAPE) - zero
    if away:
        steps = np.round(steps) + rng.uniform(-0.4, 0.4, SHAPE)
    return (steps * scale).astype(np.float32), scale, zero, levels


def codes_by_loop(x, scale, zero, levels):
    """clip(round(x / scale) + zero, 0, levels) in float64, and how far x / scale is from the middle of two codes."""
    codes, doubt = np.zeros(x.shape), np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        j = tuple(k if n > 1 else 0 for k, n in zip(i, scale.shape, strict=True))
        steps = float(x[i]) / float(scale[j])
        codes[i] = min(max(np.rint(steps) + float(zero[j]), 0.0), float(levels))
        doubt[i] = abs(steps - np.floor(steps) - 0.5)
    return codes, doubt


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
@pytest.mark.parametrize("shape", SHARED)
def test_values_are_those_of_a_loop_in_float64(shape, bits, rng):
    x, scale, zero, levels = case(shape, bits, rng)
    codes, doubt = codes_by_loop(x, scale, zero, levels)
    sure = doubt > 2e-2 if bits == 16 else doubt > 1e-4  # elsewhere float32's quotient may round the other way
    assert sure.mean() > 0.9
    got = np.asarray(uniform_codes(*map(jnp.asarray, (x, scale, zero, levels))))
    np.testing.assert_array_equal(got[sure], codes[sure])
    assert np.abs(got - codes).max() <= 1
    value = fake_quantize(*map(jnp.asarray, (x, scale, zero, levels)), jnp.float32(1))
    np.testing.assert_allclose(value, scale.astype(np.float64) * (got - zero), rtol=1e-6)


def test_halves_go_to_the_even_code():
    x = jnp.asarray([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], jnp.float32)
    one = jnp.ones(1)
    even = [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 4.0]
    assert fake_quantize(x, one, 8 * one, jnp.float32(15), jnp.float32(1)).tolist() == even
    assert round_ste(x).tolist() == even


def test_a_zero_point_between_codes_counts_as_the_nearest_code(rng):
    x, scale, zero, levels = case((1, 4, 1), 4, rng)
    args = [jnp.asarray(a) for a in (x, scale, zero, levels)]
    moved = [args[0], args[1], args[2] + 0.3, args[3]]
    one = jnp.float32(1)
    np.testing.assert_array_equal(fake_quantize(*moved, one), fake_quantize(*args, one))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_of_x_is_kept_forward_and_backward(dtype, rng):
    x, scale, zero, levels = case((1, 4, 1), 4, rng)
    rest = [jnp.asarray(a) for a in (scale, zero, levels, np.float32(1))]
    narrow = jnp.asarray(x).astype(dtype)
    y = fake_quantize(narrow, *rest)
    wide = fake_quantize(narrow.astype(jnp.float32), *rest)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, wide.astype(dtype))
    to_x, to_scale = jax.grad(lambda x, s: fake_quantize(x, s, *rest[1:]).astype(jnp.float32).sum(), (0, 1))(
        narrow, rest[0]
    )
    assert to_x.dtype == dtype
    assert to_scale.dtype == jnp.float32


def gradients_by_loop(x, scale, zero, levels, upstream, factor):
    """d/dx, d/dscale, d/dzero of sum(upstream * fake_quantize(...)): LSQ eqs. 2-3 with the zero point of LSQ+."""
    to_x, to_scale, to_zero = np.zeros(x.shape), np.zeros(scale.shape), np.zeros(zero.shape)
    for i in np.ndindex(x.shape):
        j = tuple(k if n > 1 else 0 for k, n in zip(i, scale.shape, strict=True))
        k = tuple(k if n > 1 else 0 for k, n in zip(i, zero.shape, strict=True))
        s, z, g = float(scale[j]), float(zero[k]), float(upstream[i])
        steps = float(x[i]) / s
        place = np.rint(steps) + z
        if place < 0:
            to_scale[j] += g * -z * factor
            to_zero[k] += g * -s * factor
        elif place > levels:
            to_scale[j] += g * (float(levels) - z) * factor
            to_zero[k] += g * -s * factor
        else:
            to_x[i] = g
            to_scale[j] += g * (np.rint(steps) - steps) * factor
    return to_x, to_scale, to_zero


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("shape", SHARED)
def test_gradients_are_those_of_lsq(shape, factor, rng):
    x, scale, zero, levels = case(shape, 4, rng, away=True)
    upstream = rng.normal(size=SHAPE).astype(np.float32)

    @jax.jit
    def grads(x, scale, zero, levels, upstream, factor):
        return jax.grad(lambda *a: (upstream * fake_quantize(*a, levels, factor)).sum(), (0, 1, 2))(x, scale, zero)

    got = grads(*map(jnp.asarray, (x, scale, zero, levels, upstream, np.float32(factor))))
    want = gradients_by_loop(x, scale, zero, levels, upstream, factor)
    assert 0.2 < (want[0] != 0).mean() < 0.9  # both sides of the range are really there
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_scale_and_zero_may_be_shared_along_different_axes(rng):
    x, scale, _, levels = case((1, 4, 1), 4, rng, away=True)
    zero = rng.integers(3, 12, (3, 1, 1)).astype(np.float32)
    args = [jnp.asarray(a) for a in (x, scale, zero)]
    fixed = jnp.asarray(levels), jnp.float32(1)
    got = jax.jit(jax.grad(lambda *a: fake_quantize(*a, *fixed).sum(), (0, 1, 2)))(*args)
    for a, b in zip(got, gradients_by_loop(x, scale, zero, levels, np.ones(SHAPE), 1.0), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_the_ends_of_the_range_are_inside():
    x = jnp.asarray([-0.4, 0.0, 15.0, 15.4, 15.6, -0.6])
    args = jnp.ones(1), jnp.zeros(1), jnp.float32(15), jnp.float32(1)
    assert jax.grad(lambda x: fake_quantize(x, *args).sum())(x).tolist() == [1, 1, 1, 1, 0, 0]


def test_rounding_passes_gradients_straight_through(rng):
    x = jnp.asarray(rng.normal(size=7), jnp.float32)
    weight = jnp.arange(7, dtype=jnp.float32)
    got = jax.grad(lambda x: (weight * round_ste(3.0 * x)).sum())(x)
    np.testing.assert_allclose(got, 3.0 * np.arange(7))
