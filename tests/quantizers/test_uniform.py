"""Static and dynamic uniform quantisers against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jvq.core.ranges import ZERO_POINTS
from jvq.quantizers import Dynamic, Uniform
from jvq.quantizers.uniform import RANGES

init = jax.jit(lambda q, x, letters: q.init(x, letters), static_argnums=(0, 2))
_apply = jax.jit(lambda q, s, x, letters: q.apply(s, x, letters), static_argnums=(0, 3))
_encode = jax.jit(lambda q, s, x, letters: q.encode(s, x, letters), static_argnums=(0, 3))


def plain(q):
    """The quantiser without what only calibration reads: one compiled function serves all that share the rest."""
    return Uniform(keep=q.keep) if isinstance(q, Uniform) else dataclasses.replace(q, bits=8)


def apply(q, state, x, letters):
    return _apply(plain(q), state, x, letters)


def encode(q, state, x, letters):
    return _encode(plain(q), state, x, letters)


def run(quantizer, x, letters):
    """The state found on x, and x quantised with it."""
    state = init(quantizer, x, letters)
    return state, apply(quantizer, state, x, letters)


def wide(t, keep, letters):
    """State array [keep] on the operand's axes."""
    return np.expand_dims(np.asarray(t), tuple(i for i, a in enumerate(letters) if a not in keep))


@pytest.fixture(scope="module")
def x(data) -> np.ndarray:
    return data[0].seen


@pytest.fixture(scope="module")
def kernel() -> np.ndarray:
    """A fused projection [d s h e] with heavy tails."""
    return (np.random.default_rng(2).standard_t(4, (24, 3, 2, 5)) * 0.1).astype(np.float32)


@pytest.mark.parametrize(
    ("keep", "letters", "bits"),
    [
        ("", "bnd", 4),
        *(("d", "bnd", b) for b in (1, 4, 8, 16)),
        ("s", "dshe", 4),
        ("she", "dshe", 8),
        ("hs", "dshe", 4),
    ],
)
def test_a_range_per_index_of_keep_between_the_extremes(x, kernel, oracle, keep, letters, bits):
    value = x if letters == "bnd" else kernel
    state, got = run(Uniform(bits=bits, keep=keep), value, letters)
    over = tuple(i for i, a in enumerate(letters) if a not in keep)
    scale, zero = oracle.affine(value.min(axis=over), value.max(axis=over), bits)
    np.testing.assert_allclose(state["scale"], scale, rtol=1e-6)
    np.testing.assert_allclose(state["zero"], zero, atol=0 if bits < 16 else 1)
    assert state["levels"] == 2**bits - 1
    scale, zero = wide(state["scale"], keep, letters), wide(state["zero"], keep, letters)
    oracle.matches(got, value, scale, zero, bits)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_are_whole_in_range_and_zero_is_exact(x, bits):
    """Spec 8.1."""
    q = Uniform(bits=bits)
    state = init(q, x, "bnd")
    codes = encode(q, state, x, "bnd")
    assert codes.codes.dtype == jnp.int32
    assert codes.codes.min() >= 0
    assert codes.codes.max() <= 2**bits - 1
    assert len(np.unique(apply(q, state, x, "bnd"))) <= 2**bits
    assert (np.asarray(apply(q, state, np.zeros_like(x), "bnd")) == 0).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("quantizer", [Uniform(), Uniform(keep="d"), Dynamic(keep="bd")])
def test_the_error_is_half_a_step_inside_and_the_nearer_end_outside(x, data, quantizer, bits):
    """Spec 8.2, on images of which not all fit the range."""
    q = dataclasses.replace(quantizer, bits=bits)
    state, held = init(q, x, "bnd"), data[0].held * np.float32(6)
    codes = encode(q, state, held, "bnd")
    scale, zero = (np.asarray(a, np.float64) for a in (codes.scale, codes.zero))
    lowest, highest = -zero * scale, (2**bits - 1 - zero) * scale
    off = np.abs(np.asarray(apply(q, state, held, "bnd"), np.float64) - np.clip(held, lowest, highest))
    assert (off <= scale / 2 * (1 + 1e-4)).all()
    outside = (held < lowest) | (held > highest)
    assert (off <= 1e-6 * np.abs(held))[outside].all()
    if isinstance(q, Uniform):
        assert outside.any()


EQUAL = [(Uniform(bits=b, keep="d"), "bnd") for b in (1, 4, 8, 16)]
EQUAL += [
    (Uniform(bits=4), "bnd"),
    (Uniform(bits=4, keep="hs"), "dshe"),
    (Uniform(bits=5, symmetric=True, keep="e"), "dshe"),
    (Uniform(bits=4, zero_point="free", keep="d"), "bnd"),
    (Uniform(bits=4, zero_point="clamp", keep="d"), "bnd"),
    (Dynamic(bits=4, keep="bd"), "bnd"),
    (Dynamic(bits=8, keep="bn", zero_point="free"), "bnd"),
    (Dynamic(bits=3, keep="b", nonnegative=True), "bnd"),
]


decode = jax.jit(lambda codes: codes.decode())


@pytest.mark.parametrize(("quantizer", "letters"), EQUAL)
def test_codes_decode_to_exactly_what_apply_gives(x, kernel, quantizer, letters):
    value = x if letters == "bnd" else kernel
    state, got = run(quantizer, value, letters)
    np.testing.assert_array_equal(decode(encode(quantizer, state, value, letters)), got)


@settings(max_examples=40, deadline=None)
@given(
    x=arrays.arrays(np.float32, (2, 6), elements=st.floats(-1e4, 1e4, width=32)),
    bits=st.sampled_from([1, 8]),
    zero_point=st.sampled_from(ZERO_POINTS),
)
def test_any_values_are_quantised_without_nan(x, bits, zero_point):
    q = Uniform(bits=bits, zero_point=zero_point)
    state, got = run(q, x, "bn")
    codes = encode(q, state, x, "bn")
    np.testing.assert_array_equal(decode(codes), got)
    assert 0 <= codes.codes.min() <= codes.codes.max() <= 2**bits - 1
    assert np.isfinite(got).all()
    if zero_point != "clamp":  # the end that rounding the zero point moved inwards loses up to another half step
        reach = np.abs(x).max()
        assert np.abs(np.asarray(got, np.float64) - x).max() <= float(state["scale"]) * 1.0001 + 1e-6 * reach


@pytest.mark.parametrize(
    ("range_", "zero_point"), [*(("mse", z) for z in ZERO_POINTS), *((r, "extend") for r in RANGES if r != "mse")]
)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_gives_no_nan_and_is_kept(range_, zero_point, value):
    constant = np.full((4, 10), value, np.float32)
    state, got = run(Uniform(bits=4, range=range_, zero_point=zero_point), constant, "bn")
    assert all(np.isfinite(a).all() for a in state.values())
    assert np.isfinite(got).all()
    if zero_point != "clamp":
        np.testing.assert_allclose(got, constant, rtol=1e-6)


@pytest.mark.parametrize(("keep", "letters", "percent"), [("", "bnd", 0.0), ("", "bnd", 0.1), ("sh", "dshe", 5.0)])
def test_percentiles_are_numpys(x, kernel, oracle, keep, letters, percent):
    value = x if letters == "bnd" else kernel
    over = tuple(i for i, a in enumerate(letters) if a not in keep)
    state, _ = run(Uniform(bits=6, keep=keep, range="percentile", percentile=(percent,)), value, letters)
    ends = [np.percentile(value.astype(np.float64), p, axis=over) for p in (percent, 100 - percent)]
    np.testing.assert_allclose(state["scale"], oracle.affine(*ends, 6)[0], rtol=2e-4)


def test_of_several_percentiles_each_range_takes_the_one_of_least_error(kernel, oracle):
    tried, bits = (0.0, 2.0, 10.0), 3
    state, _ = run(Uniform(bits=bits, keep="sh", range="percentile", percentile=tried), kernel, "dshe")
    picked = set()
    for s, h in np.ndindex(3, 2):
        values = kernel[:, s, h].astype(np.float64)
        found = []
        for p in tried:
            scale, zero = oracle.affine(np.percentile(values, p), np.percentile(values, 100 - p), bits)
            found.append((np.square(oracle.fake(values, scale, zero, bits)[1] - values).mean(), scale))
        picked.add(int(np.argmin([e for e, _ in found])))
        np.testing.assert_allclose(state["scale"][s, h], min(found)[1], rtol=2e-4)
    assert len(picked) > 1  # not the same for all: the choice is really made


def least_by_grid(values, bits, oracle, symmetric=False, steps=50):
    """The least mean squared error over a grid of bounds, float64."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    best = np.inf
    for up in np.linspace(0, 1, steps + 1)[1:]:
        if symmetric:
            reach = up * max(-low, high)
            bounds = [(reach / (2 ** (bits - 1) - 1), 2 ** (bits - 1))]
        else:
            bounds = [oracle.affine(down * low, up * high, bits) for down in np.linspace(0, 1, steps + 1)]
        for scale, zero in bounds:
            best = min(best, np.square(oracle.fake(values, scale, zero, bits)[1] - values).mean())
    return best


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_error_search_beats_the_extremes_and_nears_the_best_of_a_grid(kernel, oracle, symmetric):
    bits = 3
    q = Uniform(bits=bits, keep="sh", symmetric=symmetric, range="mse")
    _, searched = run(q, kernel, "dshe")
    _, plain = run(dataclasses.replace(q, range="max"), kernel, "dshe")
    true = kernel.astype(np.float64)
    for s, h in np.ndindex(3, 2):
        best = least_by_grid(true[:, s, h], bits, oracle, symmetric)
        found, covered = (np.square(np.asarray(y, np.float64) - true)[:, s, h].mean() for y in (searched, plain))
        assert found <= covered * (1 + 1e-6)
        assert found <= 1.05 * best
        assert best < 0.9 * covered  # there is something to find


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_means_the_same_for_x_and_minus_x(kernel, bits):
    q = Uniform(bits=bits, symmetric=True, keep="e")
    state, got = run(q, kernel, "dshe")
    np.testing.assert_array_equal(apply(q, state, -kernel, "dshe"), -got)
    np.testing.assert_allclose(state["scale"], np.abs(kernel).max(axis=(0, 1, 2)) / (2 ** (bits - 1) - 1), rtol=1e-6)
    assert (np.asarray(encode(q, state, kernel, "dshe").codes) > 0).all()


@pytest.mark.parametrize("quantizer", [Uniform(bits=4, keep="d"), Dynamic(bits=4, keep="bd")])
def test_gradients_pass_straight_inside_the_range_and_stop_outside(x, data, quantizer):
    state, held = init(quantizer, x, "bnd"), data[0].held * np.float32(1.2)
    got = jax.jit(jax.grad(lambda x: quantizer.apply(state, x, "bnd").sum()))(held)
    codes = encode(quantizer, state, held, "bnd")
    steps = np.round(held.astype(np.float64) / np.asarray(codes.scale, np.float64)) + np.asarray(codes.zero)
    inside = (steps >= 0) & (steps <= 15)
    assert (np.asarray(got) == inside).mean() > 0.999  # values at the edge of two codes may go either way
    assert inside.mean() > 0.9
    assert inside.all() == isinstance(quantizer, Dynamic)


@pytest.mark.parametrize("quantizer", [Uniform(bits=4, keep="d"), Dynamic(bits=4, keep="bd")])
def test_the_dtype_is_kept(x, quantizer):
    narrow = jnp.asarray(x[:4]).astype(jnp.bfloat16)
    state, got = run(quantizer, narrow, "bnd")
    assert got.dtype == jnp.bfloat16
    assert all(a.dtype == jnp.float32 for a in state.values())
    assert np.abs(got.astype(jnp.float32) - x[:4]).max() < 0.2 * np.abs(x).max()


@pytest.mark.parametrize(
    ("keep", "letters", "nonnegative"),
    [("b", "bnd", False), ("bd", "bnd", False), ("bn", "bnd", False), ("bhq", "bhqk", True)],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_dynamic_takes_the_range_of_the_tensor_at_hand(data, oracle, keep, letters, nonnegative, bits):
    value = data[0].held if letters == "bnd" else data[0].held_maps
    state, got = run(Dynamic(bits=bits, keep=keep, nonnegative=nonnegative), value, letters)
    assert set(state) == {"levels"}
    over = tuple(i for i, a in enumerate(letters) if a not in keep)
    low, high = value.min(axis=over, keepdims=True), value.max(axis=over, keepdims=True)
    oracle.matches(got, value, *oracle.affine(low * (not nonnegative), high, bits), bits)


@pytest.mark.parametrize("quantizer", [Uniform(bits=4, keep="d"), Dynamic(bits=4, keep="bd"), Dynamic(bits=8)])
def test_an_image_alone_is_what_it_is_in_a_batch(x, data, quantizer):
    """Spec 8.10, to the last bit."""
    state = init(quantizer, x, "bnd")
    together = apply(quantizer, state, data[0].held, "bnd")
    for i in range(4):
        np.testing.assert_array_equal(apply(quantizer, state, data[0].held[i : i + 1], "bnd")[0], together[i])


def test_two_more_bits_are_a_sixteenth_of_the_error(data, oracle):
    """Spec 8.3: dynamic ranges per channel, 8 to 14 bits (at 16 float32 itself is felt)."""
    errors = [
        oracle.error(run(Dynamic(bits=b, keep="bd"), data[0].held, "bnd")[1], data[0].held) for b in (8, 10, 12, 14)
    ]
    ratios = np.array(errors[:-1]) / errors[1:]
    assert ((ratios > 14) & (ratios < 18)).all()


def test_overheads_beyond_the_product():
    assert Uniform(keep="d").overhead("nd", (50, 64), "d", 50 * 96, 16).total == 0
    channels = Dynamic(keep="bd").overhead("nd", (50, 64), "d", 50 * 96, 16).total
    assert channels == 2 * 16 * 50 * 64 + 16 * 63 * 50 * 96  # minima and maxima; a partial sum per channel
    assert Dynamic(keep="bn").overhead("nd", (50, 64), "d", 50 * 96, 16).total == 2 * 16 * 50 * 64
    assert Dynamic(keep="bhq", nonnegative=True).overhead("hqk", (2, 20, 20), "k", 20 * 8, 16).total == 16 * 2 * 20 * 20
