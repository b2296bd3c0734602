"""The rate over the steps, what decays, and what a constant factor of the gradient does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvq.schedule import RULES, Schedule


@pytest.fixture(scope="module", autouse=True)
def optax_is_not_strict():
    """Its bias correction raises a float to an integer array."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def tree(seed):
    """What is trained: parameters of every name that ViT and Swin have, and the states of two quantisers."""
    rng = np.random.default_rng(seed)

    def some(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    block = {"norm": {"scale": some(4), "bias": some(4)}, "qkv": {"kernel": some(4, 3, 2, 2), "bias": some(3, 2, 2)}}
    params = {"cls": some(1, 1, 4), "pos": some(1, 5, 4), "block00": block, "bias_table": some(9, 2)}
    q = {"qkv.w": {"scale": some(3), "low": jnp.float32(-2)}, "fc2.x": {"scale": some(), "offset": some()}}
    return {"params": params, "q": q}


def paths(x):
    return {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in jax.tree_util.tree_leaves_with_path(x)}


@functools.cache
def moved(rule, **changes):
    """Every leaf's change in one update; the ends of ranges have no gradient."""
    optimizer = Schedule(10, 0.1, warmup=0.0, clip=None, rule=rule, **changes).optimizer()
    trained, grads = tree(0), tree(1)
    grads["q"]["qkv.w"]["low"] = jnp.float32(0)
    updates, _ = jax.jit(lambda p, g: optimizer.update(g, optimizer.init(p), p))(trained, grads)
    return paths(jax.tree.map(np.asarray, updates))


def test_the_rate_by_epoch_of_the_released_recipe():
    """L1."""
    rate = Schedule(150, learning_rate=5e-4, warmup=0.0).rate()
    want = {12: 4.92e-4, 36: 4.32e-4, 76: 2.45e-4, 100: 1.25e-4, 140: 5.46e-6}
    assert {t: float(rate(t)) for t in want} == pytest.approx(want, rel=0.01)
    assert float(rate(150)) == 0


def test_without_warm_up_the_rate_starts_at_the_top_and_with_it_at_nothing():
    cold, warm = (Schedule(100, learning_rate=0.3, warmup=w).rate() for w in (0.0, 0.1))
    assert float(cold(0)) == np.float32(0.3)
    assert float(warm(0)) == 0
    assert float(warm(5)) == pytest.approx(0.15)
    assert float(warm(10)) == np.float32(0.3)
    assert max(float(warm(t)) for t in range(100)) == np.float32(0.3)
    assert float(cold(100)) == pytest.approx(0, abs=1e-9)
    assert float(warm(100)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_kernels_decay_and_nothing_else_does(rule):
    """L2: scales, offsets, biases, norms, tokens, positions move exactly as without decay."""
    with_, without = (moved(rule, weight_decay=d) for d in (0.3, 0.0))
    assert [a for a, change in with_.items() if not np.array_equal(change, without[a])] == ["params/block00/qkv/kernel"]
    assert [a for a, change in with_.items() if not change.any()] == ["q/qkv.w/low"]


def test_decay_takes_rate_times_decay_of_a_kernel():
    address = "params/block00/qkv/kernel"
    got = moved("adamw", weight_decay=0.3)[address] - moved("adamw", weight_decay=0.0)[address]
    np.testing.assert_allclose(got, -0.1 * 0.3 * np.asarray(paths(tree(0))[address]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_the_scale_rate_multiplies_the_updates_of_quantisers_alone(rule):
    plain, slow = moved(rule, weight_decay=0.3), moved(rule, weight_decay=0.3, scale_rate=0.125)
    for address, change in slow.items():
        factor = np.float32(0.125 if address.startswith("q/") else 1.0)
        np.testing.assert_array_equal(change, factor * plain[address], err_msg=address)
    assert {a for a, change in slow.items() if a.startswith("q/") and change.any()} == {
        "q/qkv.w/scale",
        "q/fc2.x/scale",
        "q/fc2.x/offset",
    }


def test_adam_does_not_see_a_constant_factor_of_the_gradient():
    """A1: the same 200 steps from gradients times 1, 1/100 and 100."""
    schedule = Schedule(200, learning_rate=5e-3, warmup=0.0, weight_decay=0.1, clip=None, betas=(0.9, 0.999))
    optimizer = schedule.optimizer()
    grads = jnp.asarray(np.random.default_rng(0).normal(0.2, 1, (200, 6)), jnp.float32)

    @jax.jit
    def path(factor):
        def step(carry, grad):
            trained, state = carry
            updates, state = optimizer.update({"kernel": factor * grad}, state, trained)
            trained = optax.apply_updates(trained, updates)
            return (trained, state), trained["kernel"]

        trained = {"kernel": jnp.linspace(-1.0, 1.0, 6)}
        return jax.lax.scan(step, (trained, optimizer.init(trained)), grads)[1]

    want, *others = (path(jnp.float32(c)) for c in (1.0, 1e-2, 1e2))
    assert float(jnp.abs(want[-1] - want[0]).max()) > 0.1
    for got in others:
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("wrong", "says"), [
    (dict(rule="sgd"), "schedule.rule: got 'sgd', must be one of adamw, lamb"),
    (dict(ema=1.0), "schedule.ema: got 1.0"),
    (dict(accumulate=0), "schedule.accumulate: got 0"),
])  # fmt: skip
def test_impossible_schedules_are_refused(wrong, says):
    schedule = Schedule(10)
    for name, value in wrong.items():
        object.__setattr__(schedule, name, value)  # tests check types, and these are not all of theirs
    with pytest.raises(ValueError, match=says):
        schedule.__post_init__()
