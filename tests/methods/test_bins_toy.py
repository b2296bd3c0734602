"""What the bin regulariser does to oscillation and to accuracy, on the toy of the specification (section 10.3).

An MLP 32-64-64-10 with GELU learns what its own float weights say; its latent weights start there. Weights alone are
quantised, a learned scale a tensor. Numbers in the comments are the specification's.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvq.methods import bins, oscillation
from jvq.quantizers import Learned

pytestmark = pytest.mark.slow
STEPS, BATCH, SIZES = 4000, 128, (32, 64, 64, 10)
SEEDS = (0, 1, 2)


def mlp(weights, x):
    for i, w in enumerate(weights):
        x = jnp.einsum("bd,do->bo", x, w)
        x = jax.nn.gelu(x, approximate=False) if i + 1 < len(weights) else x
    return x


@functools.cache
def trained(bits, strength=0.0, aggregate="sum", variance="sum_sq", seed=0, gradient="lsq", rule="adamw"):
    """Final KL to the teacher, share that oscillates at the end and after a quarter, share next to a boundary."""
    q = Learned(bits, gradient=gradient)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return _trained(q, strength, aggregate, variance, seed, rule)


def _trained(q, strength, aggregate, variance, seed, rule):
    keys = jax.random.split(jax.random.key(seed), len(SIZES))
    teacher = [1.6 * n**-0.5 * jax.random.normal(k, (n, m)) for k, n, m in zip(keys, SIZES, SIZES[1:], strict=False)]
    begin = {"w": teacher, "q": [q.init(w, "do") for w in teacher]}
    rate = optax.cosine_decay_schedule(2e-3, STEPS)
    rules = {
        "adamw": optax.adamw(rate, weight_decay=0.0),
        "sgd": optax.sgd(optax.cosine_decay_schedule(0.05, STEPS), 0.9),
    }
    optimizer = rules[rule]

    def student(tree, x):
        return mlp([q.apply(s, w, "do") for w, s in zip(tree["w"], tree["q"], strict=True)], x)

    def told(tree, x):
        return optax.softmax_cross_entropy(student(tree, x), jax.nn.softmax(mlp(teacher, x))).mean()

    def loss(tree, x, step):
        factor = bins.strength(strength, 0.25, step, STEPS)
        pull = [
            bins.bin_loss(q, s, w, "do", "d", aggregate, variance) for w, s in zip(tree["w"], tree["q"], strict=True)
        ]
        return told(tree, x) + factor * sum(pull)

    def codes(tree):
        return [q.codes(s, w, "do") for w, s in zip(tree["w"], tree["q"], strict=True)]

    def step(carry, i):
        tree, state, tracks = carry
        x = jax.random.normal(jax.random.fold_in(keys[-1], i), (BATCH, SIZES[0]))
        updates, state = optimizer.update(jax.grad(loss)(tree, x, i), state, tree)
        tree = optax.apply_updates(tree, updates)
        tree = {**tree, "q": [q.projected(s) for s in tree["q"]]}
        tracks = [oscillation.follow(t, c) for t, c in zip(tracks, codes(tree), strict=True)]
        return (tree, state, tracks), _share(tracks)

    tracks = [oscillation.begin(c) for c in codes(begin)]
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(STEPS)))
    (tree, _, tracks), shares = run((begin, optimizer.init(begin), tracks))
    x = jax.random.normal(jax.random.key(99), (4096, SIZES[0]))
    p = jax.nn.log_softmax(mlp(teacher, x))
    kl = (jnp.exp(p) * (p - jax.nn.log_softmax(student(tree, x)))).sum(axis=-1).mean()
    near = jnp.concatenate([
        oscillation.near_boundary(q.steps(s, w, "do"), s["low"], s["high"]).reshape(-1)
        for w, s in zip(tree["w"], tree["q"], strict=True)
    ]).mean()  # fmt: skip
    return {"kl": float(kl), "end": float(shares[-1]), "quarter": float(shares[STEPS // 4 - 1]), "near": float(near)}


def _share(tracks):
    return jnp.concatenate([oscillation.oscillating(t).reshape(-1) for t in tracks]).mean()


@pytest.mark.parametrize(("bits", "least"), [(2, 0.25), (3, 0.40)])
def test_without_a_regulariser_many_weights_oscillate(bits, least):
    assert all(trained(bits, seed=seed)["end"] > least for seed in SEEDS)  # 0.32 to 0.35; 0.51 to 0.54


@pytest.mark.parametrize("bits", [2, 3])
def test_sums_at_a_hundredth_calm_them_and_help(bits):
    for seed in SEEDS:
        plain, calm = trained(bits, seed=seed), trained(bits, 1e-2, variance="off", seed=seed)
        assert calm["end"] < 0.3 * plain["end"]  # 0.12 to 0.24
        assert calm["kl"] <= plain["kl"]  # .105 to .108 of .123 to .126; .042 to .043 of .054 to .058
        assert calm["near"] * 5 <= plain["near"]  # 0.359 to 0.010; 0.392 to 0.020


@pytest.mark.parametrize("bits", [2, 3])
def test_more_of_it_calms_more(bits):
    shares = [trained(bits, strength, variance="off")["end"] for strength in (0.0, 1e-4, 1e-3, 1e-2)]
    assert all(b < a + 0.01 for a, b in itertools.pairwise(shares))
    assert shares[3] < shares[2] < shares[0]


def test_spread_inside_bins_counts_only_as_a_sum():
    off, mean, sums = (trained(2, 1e-3, variance=v)["end"] for v in ("off", "unbiased", "sum_sq"))
    assert abs(mean - off) < 0.02
    assert sums < off - 0.02  # 0.203 to 0.156


@pytest.mark.parametrize("bits", [2, 3])
def test_as_released_it_does_nothing(bits):
    plain, released = trained(bits), trained(bits, 0.01, "mean", "unbiased")
    assert abs(released["end"] - plain["end"]) < 0.03


def test_the_first_quarter_is_the_same_with_and_without():
    assert trained(2)["quarter"] == pytest.approx(trained(2, 1e-2, variance="off")["quarter"], abs=0.01)


def test_the_scales_gradient_factor_matters_under_sgd_and_not_under_adam():
    found = {g: trained(2, gradient=g)["kl"] for g in ("none", "lsq", "l1")}
    assert max(found.values()) < 1.1 * min(found.values()), found  # .1216, .1194, .1197 after 2000 steps
    sgd = {g: trained(2, gradient=g, rule="sgd")["kl"] for g in ("lsq", "l1")}
    assert np.isfinite([*sgd.values()]).all()
    # without a factor it runs away, at times luckily back: 1.03, 1.07, .97 and on another processor .127, 1.07, .97
    worse = [not trained(2, gradient="none", rule="sgd", seed=i)["kl"] < 2 * max(sgd.values()) for i in range(3)]
    assert sum(worse) >= 2, sgd
