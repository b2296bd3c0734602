"""The bin regulariser against double loops in float64, and its schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.methods.bins import AGGREGATES, VARIANCES, bin_loss, strength
from jvq.quantizers import Learned

LETTERS, CONTRACTED = "do", "d"


def state_of(bits, scale):
    low = -(2.0 ** (bits - 1))
    parts = {"scale": scale, "low": low, "high": low + 2.0**bits - 1}
    return {name: jnp.asarray(value, jnp.float32) for name, value in parts.items()}


def by_loop(w, scale, bits, aggregate, variance):
    """Spec 5.1 and 5.2: value and gradient for w [d o] and scale [o] or one number; and how many are not clipped."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = np.broadcast_to(np.asarray(scale, np.float64), w.shape[1:])
    groups = [[o] for o in range(w.shape[1])] if len(np.unique(scale)) > 1 else [list(range(w.shape[1]))]
    share = {"sum": 1.0, "mean": 1.0 / w.size, "kernel_mean": 1.0 / w.shape[0]}[aggregate]
    value, slope, free = 0.0, np.zeros(w.shape), 0
    for group in groups:
        bins = {n: [] for n in range(low, high + 1)}
        for o in group:
            for d in range(w.shape[0]):
                u = float(w[d, o]) / scale[o]
                code = int(np.clip(np.rint(u), low, high))
                inside = low <= u <= high
                held = float(w[d, o]) if inside else scale[o] * code
                bins[code].append((d, o, held, inside))
                value += share * (scale[o] * code - held) ** 2
                slope[d, o] += share * 2 * (held - scale[o] * code) if inside else 0.0
                free += inside
        for members in bins.values():
            if len(members) < 2 or variance == "off":
                continue
            mean = np.mean([held for *_, held, _ in members])
            over = 1.0 if variance == "sum_sq" else 1.0 / (len(members) - 1)
            for d, o, held, inside in members:
                value += over * (held - mean) ** 2
                slope[d, o] += over * 2 * (held - mean) if inside else 0.0
    return value, slope, free


def loss(q, state, w, aggregate="sum", variance="sum_sq", letters=LETTERS, contracted=CONTRACTED):
    return bin_loss(q, state, w, letters, contracted, aggregate, variance)


@pytest.fixture(scope="module")
def w() -> np.ndarray:
    """[d o], some of it clipped at every width below."""
    return np.random.default_rng(0).normal(0, 0.2, (30, 4)).astype(np.float32)


@pytest.mark.parametrize("keep", ["", "o"])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_value_and_gradient_are_those_of_a_loop(aggregate, variance, keep, w):
    """O5; with a scale an output each output has bins of its own."""
    for bits in (2, 3):
        scale = np.float32([0.1, 0.15, 0.08, 0.12]) if keep else np.float32(0.1)
        value, slope, free = by_loop(w, scale, bits, aggregate, variance)
        assert 0.2 * w.size < free < 0.99 * w.size
        q, state = Learned(bits, keep), state_of(bits, scale)
        got, grad = jax.value_and_grad(lambda w, q=q, s=state: loss(q, s, w, aggregate, variance))(jnp.asarray(w))
        np.testing.assert_allclose(got, value, rtol=1e-5)
        np.testing.assert_allclose(grad, slope, atol=1e-5 * np.abs(slope).max())


def test_scales_that_are_equal_but_apart_have_bins_apart(w):
    shared, own = (
        loss(Learned(2, keep), state_of(2, np.full(shape, 0.1)), jnp.asarray(w)) for keep, shape in (("", ()), ("o", 4))
    )
    want = sum(by_loop(w[:, o : o + 1], 0.1, 2, "sum", "sum_sq")[0] for o in range(4))
    np.testing.assert_allclose(own, want, rtol=1e-5)
    assert own < shared


def test_kernels_of_more_axes_and_heads_side_by_side(rng):
    """The query, key and value matrices apart, the output projection by heads: the same numbers as one by one."""
    w = rng.normal(0, 0.2, (6, 3, 2, 2)).astype(np.float32)
    scale = np.float32([0.1, 0.12, 0.14])
    for aggregate in AGGREGATES:
        got = loss(Learned(3, "s"), state_of(3, scale), jnp.asarray(w), aggregate, letters="dshe")
        want = sum(by_loop(w[:, s].reshape(6, 4), scale[s], 3, aggregate, "off")[0] for s in range(3))
        want /= 3 if aggregate == "mean" else 1
        want += sum(by_loop(w[:, s].reshape(6, 4), scale[s], 3, "sum", "sum_sq")[0] for s in range(3))
        want -= sum(by_loop(w[:, s].reshape(6, 4), scale[s], 3, "sum", "off")[0] for s in range(3))
        np.testing.assert_allclose(got, want, rtol=1e-5)
    w = rng.normal(0, 0.2, (6, 4)).astype(np.float32)
    got = loss(Learned(3, "h", heads=2), state_of(3, scale[:2]), jnp.asarray(w))
    want = sum(by_loop(w[3 * h : 3 * h + 3], scale[h], 3, "sum", "sum_sq")[0] for h in range(2))
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_weights_on_their_values_cost_nothing(aggregate, variance):
    """O1: with a scale that float32 has exactly, nothing at all."""
    w = jnp.asarray(np.repeat(np.arange(-4, 4) / 16, 10).reshape(20, 4), jnp.float32)
    got, grad = jax.value_and_grad(lambda w: loss(Learned(3), state_of(3, 1 / 16), w, aggregate, variance))(w)
    assert got == 0
    assert not np.asarray(grad).any()


def test_weights_all_off_by_as_much_have_the_error_and_no_variance():
    """O2: 867 inside at 0.3 of a step of 0.1 are 0.7803; those of the highest code are clipped and cost nothing."""
    codes = np.concatenate([np.tile([-4, -2, 2], 289), np.full(33, 3)])
    w = jnp.asarray((codes + 0.3) * 0.1, jnp.float32).reshape(30, 30)
    q, state = Learned(3), state_of(3, 0.1)
    off, *with_ = (loss(q, state, w, "sum", v) for v in ("off", "sum_sq", "unbiased"))
    assert float(off) == pytest.approx(0.7803, rel=3e-5)  # a float32 sum of 867, in the processor's order
    np.testing.assert_allclose(with_, off, atol=1e-6)
    assert float(loss(q, state, w, "mean", "off")) == pytest.approx(0.7803 / 900, rel=3e-5)
    assert float(loss(q, state, w, "kernel_mean", "off")) == pytest.approx(0.7803 / 30, rel=3e-5)


def test_weights_spread_evenly_have_a_twelfth_of_a_square_step(rng):
    """O3."""
    w = jnp.asarray(rng.uniform(-0.35, 0.25, (400, 100)), jnp.float32)
    assert float(loss(Learned(3), state_of(3, 0.1), w, "mean", "off")) == pytest.approx(0.1**2 / 12, rel=0.02)


@pytest.mark.parametrize("variance", VARIANCES)
def test_clipped_weights_and_scales_get_no_gradient(variance, w):
    """O4."""
    q, state = Learned(2), state_of(2, 0.1)
    to_state, to_w = jax.grad(lambda s, w: loss(q, s, w, variance=variance), (0, 1))(state, jnp.asarray(w))
    clipped = (w / 0.1 < -2) | (w / 0.1 > 1)
    assert 0.1 < clipped.mean() < 0.9
    assert (np.asarray(to_w)[clipped] == 0).all()
    assert (np.asarray(to_w)[~clipped] != 0).all()
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(to_state))


@pytest.mark.parametrize("variance", ["sum_sq", "unbiased"])
def test_bins_of_one_weight_or_none_add_nothing(variance):
    """O4: at four bits five weights leave eleven bins empty."""
    q, state = Learned(4), state_of(4, 0.1)
    w = jnp.asarray([[-0.71], [-0.13], [0.02], [0.24], [0.62]], jnp.float32)
    for values in (w, w[:1]):
        got, grad = jax.value_and_grad(lambda w: loss(q, state, w, variance=variance))(values)
        want, want_grad = jax.value_and_grad(lambda w: loss(q, state, w, variance="off"))(values)
        np.testing.assert_allclose(got, want, rtol=1e-5)
        np.testing.assert_allclose(grad, want_grad, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_weight_is_in_a_bin(bits):
    """O6: members of each bin off by +-0.2 of a step spread about its value; one left out would be missed."""
    codes = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)  # but the highest, above which values are clipped
    for scale in (0.1, 0.037):
        inner, q, state = codes[1:], Learned(bits), state_of(bits, scale)
        w = jnp.asarray(np.stack([inner - 0.2, inner + 0.2], axis=1) * scale, jnp.float32)
        off, spread, each = (float(loss(q, state, w, "sum", v)) for v in ("off", "sum_sq", "unbiased"))
        assert spread - off == pytest.approx(w.size * (0.2 * scale) ** 2, rel=1e-3)
        assert each - off == pytest.approx(len(inner) * 2 * (0.2 * scale) ** 2, rel=1e-3)


def test_the_strength_by_step():
    """O7: the table of spec 5.3, of 150 epochs."""
    table = {0: 0, 36: 0, 37: 0, 40: 1.218e-5, 60: 9.549e-4, 80: 3.127e-3, 100: 5.868e-3, 120: 8.346e-3, 148: 9.992e-3}
    got = {t: float(strength(0.01, 0.25, jnp.int32(t), 150)) for t in table}
    assert got == pytest.approx(table, abs=1e-6)
    assert float(strength(0.01, 0.25, jnp.int32(375), 600)) == pytest.approx(5e-3, abs=1e-6)  # 93.75 of 150
    assert float(strength(0.5, 0.0, jnp.int32(10), 10)) == pytest.approx(0.5)
    assert float(strength(0.5, 0.0, jnp.int32(0), 10)) == 0
