"""Transition-rate scheduling: the rate's law against a loop, and a target that is met."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvq.methods import latent, vvtq
from jvq.methods.transitions import GAIN, MEMORY, scheduled
from jvq.methods.vvtq import Options

FC1 = "block00/mlp/fc1.w"


@pytest.fixture
def weights(known):
    """The quantiser of one kernel [d o] of 4 bits, with one scale."""
    plan = dict(vvtq.recipe(Options(bits=4, granularity="tensor", weight_start="max"), known))
    return {FC1: plan[FC1]}


def tree(kernel, scale=0.1):
    state = {"scale": jnp.float32(scale), "low": jnp.float32(-8), "high": jnp.float32(7)}
    return {"params": {"block00": {"mlp": {"fc1": {"kernel": kernel, "bias": jnp.zeros(64)}}}}, "q": {FC1: state}}


def test_the_rate_follows_the_share_of_codes_that_change(known, weights, rng):
    """Lee et al.: K = m K + (1-m) k, U = max(0, U + gain (R - K)), with R the schedule's shape."""
    target, top, steps = 0.05, 0.2, 12
    schedule = optax.warmup_cosine_decay_schedule(0.0, top, 3, steps)
    rule = scheduled(weights, known, target, top, schedule)
    kernels = [rng.normal(0, 0.3, (16, 64)).astype(np.float32)]
    for _ in range(steps):
        kernels.append(kernels[-1] + rng.normal(0, 0.02, (16, 64)).astype(np.float32))
    state, update = rule.init(tree(jnp.asarray(kernels[0]))), jax.jit(rule.update)
    share, rate, before = 0.0, 0.0, None
    for i, kernel in enumerate(kernels[:steps]):
        code = np.clip(np.round(kernel.astype(np.float64) / 0.1), -8, 7)
        moved = 0.0 if before is None else np.mean(code != before)
        before, usual = code, float(schedule(i))
        share = MEMORY * share + (1 - MEMORY) * moved
        rate = max(0.0, rate + GAIN * top * (usual / top - share / target))
        given = jax.tree.map(jnp.ones_like, tree(jnp.asarray(kernel)))
        got, state = update(given, state, tree(jnp.asarray(kernel)))
        assert float(state.share) == pytest.approx(share, rel=1e-5, abs=1e-9)
        assert float(state.rate) == pytest.approx(rate, rel=1e-4, abs=1e-9)
        mine = got["params"]["block00"]["mlp"]["fc1"]
        want = rate / usual if usual else 0.0
        np.testing.assert_allclose(mine["kernel"], np.full((16, 64), want), rtol=1e-4, atol=1e-9)
        assert (np.asarray(mine["bias"]) == 1).all()
        assert all((np.asarray(x) == 1).all() for x in jax.tree.leaves(got["q"]))
    assert share > 0


@pytest.mark.parametrize("target", [0.002, 0.02])
def test_a_target_is_met_whatever_the_learning_rate(target, known, weights, rng):
    """A random walk: the wanted share of codes changes at the end of a constant schedule."""
    rule = scheduled(weights, known, target, 1e-3, optax.constant_schedule(1e-3))
    first = tree(jnp.asarray(rng.normal(0, 0.3, (16, 64)), jnp.float32))
    w = "block00", "mlp", "fc1", "kernel"

    @jax.jit
    def walk(params, key):
        def step(carry, key):
            params, state = carry
            noise = jax.tree.map(jnp.zeros_like, params)
            noise["params"]["block00"]["mlp"]["fc1"]["kernel"] = 1e-3 * jax.random.normal(key, (16, 64))
            updates, state = rule.update(noise, state, params)
            return (optax.apply_updates(params, updates), state), state.share

        return jax.lax.scan(step, (params, rule.init(params)), jax.random.split(key, 4000))

    (end, _), shares = walk(first, jax.random.key(0))
    assert float(shares[-1000:].mean()) == pytest.approx(target, rel=0.1)
    assert w[0] in end["params"]


def test_only_weights_of_few_bits_are_counted(known):
    plan = {a: q for a, q in vvtq.recipe(Options(bits=4), known) if q is not None}
    assert set(latent.followed(plan, known)) == {a for a in plan if known[a].path and a.startswith("block00")}
