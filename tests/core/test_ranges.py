"""From bounds to scale and zero point, and how bounds are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core import ranges

INTERVALS = np.array(
    [[-1.0, 1.1], [-0.17, 6.0], [0.0, 3.0], [-4.0, 0.0], [2.0, 5.0], [-5.0, -2.0], [100.0, 101.0], [-1e-3, 2e-3]],
    np.float32,
)


def affine(lower, upper, levels, zero_point):
    """The scales and zero points as NumPy arrays."""
    args = jnp.asarray(lower, jnp.float32), jnp.asarray(upper, jnp.float32), jnp.float32(levels)
    return tuple(np.asarray(a) for a in ranges.affine(*args, zero_point))


def by_formula(lower, upper, levels, zero_point):
    """Spec 1, in float64."""
    lower, upper = lower.astype(np.float64), upper.astype(np.float64)
    if zero_point == "extend":
        lower, upper = np.minimum(lower, 0), np.maximum(upper, 0)
    scale = np.maximum((upper - lower) / levels, 1e-8)
    zero = np.round(-lower / scale)
    return scale, zero if zero_point == "free" else np.clip(zero, 0, levels)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("zero_point", ranges.ZERO_POINTS)
def test_scale_and_zero_point_are_the_formula(zero_point, bits):
    lower, upper, levels = INTERVALS[:, 0], INTERVALS[:, 1], 2**bits - 1
    scale, zero = affine(lower, upper, levels, zero_point)
    want_scale, want_zero = by_formula(lower, upper, levels, zero_point)
    np.testing.assert_allclose(scale, want_scale, rtol=1e-6)
    np.testing.assert_array_equal(zero, want_zero)


def test_where_the_interval_contains_zero_all_three_agree():
    lower, upper = INTERVALS[:4, 0], INTERVALS[:4, 1]
    for a, b in zip(affine(lower, upper, 15, "extend"), affine(lower, upper, 15, "clamp"), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(affine(lower, upper, 15, "extend"), affine(lower, upper, 15, "free"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("zero_point", "least", "greatest"),
    [("extend", 0.0, 5.0), ("free", 2.0, 5.0), ("clamp", 0.0, 3.0)],  # clamp clips [2, 5] at 5 - 2: the paper's defect
)
def test_what_an_all_positive_interval_can_represent(zero_point, least, greatest):
    """Spec 1 and 10.2."""
    (scale,), (zero,) = affine([2.0], [5.0], 15, zero_point)
    np.testing.assert_allclose([scale * (0 - zero), scale * (15 - zero)], [least, greatest], atol=scale / 2)
    (scale,), (zero,) = affine([-5.0], [-2.0], 15, zero_point)
    np.testing.assert_allclose([scale * (15 - zero), scale * (0 - zero)], [-least, -greatest], atol=scale / 2)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-6, 1e6])
@pytest.mark.parametrize("zero_point", ["extend", "free"])
def test_a_constant_tensor_is_kept(zero_point, value):
    (scale,), (zero,) = affine([value], [value], 15, zero_point)
    assert scale >= 1e-8
    codes = np.clip(np.round(np.float32(value) / scale) + zero, 0, 15)
    assert abs(scale * (codes - zero) - value) <= max(1e-6 * abs(value), 1e-8)


def test_the_literal_clamp_loses_a_constant_tensor_without_nan():
    (scale,), (zero,) = affine([3.0], [3.0], 15, "clamp")
    assert zero == 0
    assert 0 < scale * 15 < 1e-3


def test_quotients_stay_exact_for_a_narrow_interval_far_from_zero():
    (scale,), (zero,) = affine([1000.0], [1000.001], 65535, "free")
    assert 1000.0 / scale <= 2**22 * 1.001
    x = np.linspace(1000.0, 1000.001, 9, dtype=np.float32)
    value = scale * (np.clip(np.round(x / scale) + zero, 0, 65535) - zero)
    assert np.abs(value - x).max() <= scale


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_symmetric_is_symmetric_about_zero(bits):
    lower = jnp.asarray([-1.0, -0.5, 0.0])
    upper = jnp.asarray([0.25, 2.0, 0.0])
    scale, zero = (np.asarray(a) for a in ranges.symmetric(lower, upper, ranges.level_count(bits)))
    half = 2 ** (bits - 1)
    assert zero.tolist() == [half] * 3
    np.testing.assert_allclose(scale[:2] * (half - 1), [1.0, 2.0], rtol=1e-6)
    assert scale[2] == np.float32(1e-8)


def test_level_count():
    assert [float(ranges.level_count(b)) for b in (1, 4, 16)] == [1, 15, 65535]


def test_extremes_and_percentiles_run_over_the_named_axes(rng):
    x = rng.normal(size=(3, 40, 5)).astype(np.float32)
    low, high = ranges.extremes(jnp.asarray(x), (0, 1))
    np.testing.assert_array_equal(low, x.min(axis=(0, 1), keepdims=True))
    np.testing.assert_array_equal(high, x.max(axis=(0, 1), keepdims=True))
    low, high = ranges.percentiles(jnp.asarray(x), (0, 1), 2.5)
    np.testing.assert_allclose(low, np.percentile(x.astype(np.float64), 2.5, axis=(0, 1), keepdims=True), atol=1e-5)
    np.testing.assert_allclose(high, np.percentile(x.astype(np.float64), 97.5, axis=(0, 1), keepdims=True), atol=1e-5)


def squared_error(x, lower, upper, levels):
    """Mean squared error of extend-quantising x between each of the bounds (any shape), float64."""
    lower, upper = np.minimum(lower, 0.0)[..., None], np.maximum(upper, 0.0)[..., None]
    scale = np.maximum((upper - lower) / levels, 1e-8)
    zero = np.clip(np.round(-lower / scale), 0, levels)
    return ((x - scale * (np.clip(np.round(x / scale) + zero, 0, levels) - zero)) ** 2).mean(axis=-1)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Four distributions [4, 400]: normal, heavy-tailed, one-sided and GELU-like."""
    rng = np.random.default_rng(5)
    normal = rng.normal(size=400)
    heavy = rng.standard_t(3, 400)
    return np.stack([normal, heavy, rng.exponential(size=400), np.where(heavy > 0, heavy, 0.05 * heavy)])


@pytest.mark.parametrize("bits", [2, 4])
def test_least_error_is_near_the_best_of_a_grid_and_never_worse_than_the_start(samples, bits):
    levels = 2**bits - 1
    x = jnp.asarray(samples, jnp.float32)

    @jax.jit
    def search(x, levels):
        def error(lower, upper):
            scale, zero = ranges.affine(lower, upper, levels, "extend")
            codes = jnp.clip(jnp.round(x / scale) + zero, 0.0, levels)
            return jnp.square(x - scale * (codes - zero)).mean(axis=1, keepdims=True)

        return ranges.least_error(*ranges.extremes(x, (1,)), error)

    lower, upper = (np.asarray(a, np.float64)[:, 0] for a in search(x, jnp.float32(levels)))
    for i, row in enumerate(samples):
        found = squared_error(row, lower[i], upper[i], levels)
        assert found <= squared_error(row, row.min(), row.max(), levels) * (1 + 1e-6)
        shares = np.linspace(0, 1, 41)
        grid = squared_error(row, shares[:, None] * row.min(), shares[None, 1:] * row.max(), levels)
        assert found <= 1.05 * grid.min()


def test_least_error_keeps_the_start_where_nothing_is_better():
    lower, upper = jnp.asarray([-1.0, -2.0]), jnp.asarray([1.0, 3.0])
    got = jax.jit(lambda low, high: ranges.least_error(low, high, lambda a, b: (b - high) ** 2 + (a - low) ** 2))(
        lower, upper
    )
    np.testing.assert_array_equal(got[0], lower)
    np.testing.assert_array_equal(got[1], upper)


def test_least_error_moves_each_end_and_each_pair_for_itself():
    """A bowl of known minimum, another for each pair."""
    best_low, best_high = np.array([-0.6, -1.9]), np.array([0.55, 1.6])

    def error(low, high):
        return (low - best_low.astype(np.float32)) ** 2 + (high - best_high.astype(np.float32)) ** 2

    low, high = jax.jit(lambda a, b: ranges.least_error(a, b, error))(
        jnp.asarray([-1.0, -3.0]), jnp.asarray([1.0, 2.5])
    )
    np.testing.assert_allclose(low, best_low, atol=0.02)
    np.testing.assert_allclose(high, best_high, atol=0.02)


def test_least_error_also_goes_on_from_other_bounds_that_are_better():
    """An error with a narrow valley that the shrinking bounds step over: only the offered pair finds it."""
    low, high = jnp.array([-1.0, -1.0]), jnp.array([8.0, 8.0])

    def error(a, b):
        return jnp.minimum(1.0 + 0.1 * (jnp.square(a - low) + jnp.square(b - high)), 100 * jnp.square(b - 2.03 * a - 5))

    found = jax.jit(lambda x: ranges.least_error(low, high, error, also=(jnp.array([-1.0, -0.5]), x)))
    a, b = found(jnp.array([3.0, 4.0]))
    assert (np.asarray(error(a, b)) <= np.asarray(error(jnp.array([-1.0, -0.5]), jnp.array([3.0, 4.0])))).all()
    assert (np.asarray(error(a, b)) < 1e-2).all()
    for start in (low, high), (jnp.array([-9.0, 3.0]), jnp.array([40.0, 4.0])):  # a bad offer does no harm
        a, b = jax.jit(lambda x, y: ranges.least_error(low, high, error, also=(x, y)))(*start)
        assert (np.asarray(error(a, b)) <= np.asarray(error(low, high)) + 1e-6).all()
