"""Confidence-guided annealing: which weights still move, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.methods import vvtq
from jvq.methods.annealing import annealed
from jvq.methods.vvtq import Options

FC1 = "block00/mlp/fc1"


@pytest.mark.parametrize("bits", [2, 4])
def test_from_a_step_on_only_weights_next_to_a_boundary_move(bits, known, rng):
    plan = dict(vvtq.recipe(Options(bits=bits, granularity="tensor"), known))
    low, high, scale, band = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 0.1, 0.05
    kernel = rng.normal(0, 0.2, (16, 64)).astype(np.float32)
    state = {"scale": jnp.float32(scale), "low": jnp.float32(low), "high": jnp.float32(high)}
    params = {
        "params": {"block00": {"mlp": {"fc1": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(64)}}}},
        "q": {f"{FC1}.w": state, f"{FC1}.x": state},
    }
    ones = jax.tree.map(jnp.ones_like, params)
    rule = annealed({f"{FC1}.w": plan[f"{FC1}.w"]}, known, 2, band)
    carry, update = rule.init(params), jax.jit(rule.update)
    u = kernel.astype(np.float64) / scale
    edges = np.arange(low, high) + 0.5  # where a code becomes the next
    near = (np.abs(u[..., None] - edges) < band).any(axis=-1)
    assert 0 < near.mean() < 0.3
    for step in range(4):
        got, carry = update(ones, carry, params)
        mine = got["params"]["block00"]["mlp"]["fc1"]
        np.testing.assert_array_equal(mine["kernel"], np.ones_like(kernel) if step < 2 else near.astype(np.float32))
        assert (np.asarray(mine["bias"]) == 1).all()
        assert float(got["q"][f"{FC1}.w"]["scale"]) == (step < 2)
        assert float(got["q"][f"{FC1}.x"]["scale"]) == 1


def test_options_that_anneal_have_a_rule_for_the_last_steps(known):
    options = Options(bits=3, anneal=0.25, epochs=4)
    plan = {a: q for a, q in vvtq.recipe(options, known) if q is not None}
    schedule = options.schedule(512)
    assert schedule.steps == 16
    rule = vvtq.reweighting(options, plan, known, schedule)
    assert rule is not None
    shapes = {"block00": {"attn": {}, "mlp": {}}}
    weights = [a for a in plan if known[a].path and a.startswith("block00")]
    trained = {"params": shapes, "q": {}}
    for a in weights:
        _, part, layer, name = known[a].path
        shapes["block00"][part].setdefault(layer, {})[name] = jnp.zeros(known[a].shape)  # all in the middle of a bin
        trained["q"][a] = {"scale": jnp.ones(known[a].shape[1:]), "low": jnp.float32(-4), "high": jnp.float32(3)}
    carry, update = rule.init(trained), jax.jit(rule.update)
    for step in range(16):
        got, carry = update(jax.tree.map(jnp.ones_like, trained), carry, trained)
        assert {float(x.max()) for x in jax.tree.leaves(got["params"])} == {float(step < 12)}
