"""A deployment: its weights are packed, its forward is fake quantisation, in integers it computes the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.calibrate import fresh
from jvq.core.dot import quantized
from jvq.core.packed import Packed
from jvq.core.recipe import resolve, sites
from jvq.export import Deployment
from jvq.integer import prepared
from jvq.quantizers import Signs, Steps, Uniform

ENDS = [("patch.*", None), ("head.*", None)]
RECIPES = {
    "uniform": [("*.w", Uniform(4, "o")), ("*/qkv.w", Uniform(3, "she")), ("*.[xqkpv]", Uniform(8))],
    "binary": [
        ("*.[xqkv]", Signs(scale="learned")),
        ("*/pv.p", Steps(keep="h")),
        ("*.w", Signs(scale="mean", keep="o")),
        ("*/qkv.w", Signs(scale="mean", keep="she")),
        *ENDS,
    ],
    "mixed": [
        ("*/fc1.x", Uniform(16)),
        ("*/fc1.w", Uniform(8, "o")),
        ("*/fc2.w", Uniform(2, "o")),
        ("*/pv.v", Uniform(8)),
    ],
}


def at(tree, path):
    return functools.reduce(lambda t, key: t[key], path, tree)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).normal(size=(6, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(checkpoint):
    """``fitted(name)``: the plan of a recipe and a state for all of it, made once."""
    model, params, made = checkpoint.model, checkpoint.params, {}
    known = sites(model.forward, params, model.image)

    def of(name):
        if name not in made:
            rng, plan, qstate = np.random.default_rng(1), resolve(RECIPES[name], known), {}
            for address, quantizer in plan.items():
                operand = known[address]
                x = rng.normal(size=(4, *operand.shape[1:])) if operand.path is None else at(params, operand.path)
                qstate[address] = fresh(quantizer, jnp.asarray(x, jnp.float32), operand.letters)
            made[name] = plan, qstate
        return made[name], known

    return of


@pytest.fixture(scope="module")
def made(checkpoint, fitted):
    def of(name):
        (plan, qstate), known = fitted(name)
        return Deployment.of(checkpoint, plan, qstate, known, {"seed": 3})

    return functools.cache(of)


@pytest.mark.parametrize("name", RECIPES)
def test_weights_of_the_plan_are_packed_and_the_rest_is_kept(name, checkpoint, fitted, made):
    (plan, qstate), known = fitted(name)
    deployment = made(name)
    weights = {known[a].path: (a, q) for a, q in plan.items() if known[a].path is not None}
    leaves, _ = jax.tree_util.tree_flatten_with_path(checkpoint.params)
    assert weights
    for keys, leaf in leaves:
        path = tuple(k.key for k in keys)
        assert isinstance(leaf, jax.Array)  # the checkpoint itself stays as it was
        got = at(deployment.params, path)
        if path not in weights:
            assert got is leaf
            continue
        address, quantizer = weights[path]
        assert isinstance(got, Packed)
        assert (got.bits, got.shape) == (quantizer.bits, leaf.shape)
        np.testing.assert_allclose(
            got.unpack(), quantizer.apply(qstate[address], leaf, known[address].letters), rtol=1e-6
        )
    activations = [a for a in plan if known[a].path is None]
    assert [*deployment.plan] == [*deployment.qstate] == activations
    assert all(deployment.plan[a] is plan[a] and deployment.qstate[a] is qstate[a] for a in activations)
    assert deployment.recipe == {a: repr(q) for a, q in plan.items()}
    for field in ("model", "preprocess", "notes"):
        assert getattr(deployment, field) is getattr(checkpoint, field)
    assert deployment.protocol == {"seed": 3}
    assert deployment.known == known


@pytest.mark.parametrize("name", RECIPES)
def test_forward_is_fake_quantisation_and_integers_compute_the_same(name, checkpoint, fitted, made, images):
    (plan, qstate), _ = fitted(name)
    deployment, model = made(name), checkpoint.model
    want = np.asarray(jax.jit(lambda x: model.forward(checkpoint.params, x, quantized(plan, qstate)))(images))
    plain = np.asarray(jax.jit(lambda x: model.forward(checkpoint.params, x))(images))
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5 * np.abs(want).max())
    assert np.abs(want - plain).max() > 1e-3 * np.abs(want).max()
    close(jax.jit(deployment.forward)(images), want)
    for weights in ("fast", "small"):
        run = deployment.integer(weights)
        close(run(images), want)
        if weights == "fast":
            close(run(jnp.asarray(images[2:3])), want[2:3])  # of any number of images, and of jax's arrays


def test_the_dot_takes_another_state(made, images):
    deployment = made("uniform")
    other = jax.tree.map(lambda x: x, dict(deployment.qstate))
    other["head.x"] = {**other["head.x"], "scale": 4 * other["head.x"]["scale"]}
    forward = jax.jit(lambda s, x: deployment.model.forward(deployment.params, x, deployment.dot(s)))
    own, changed = forward(deployment.qstate, images), forward(other, images)
    np.testing.assert_array_equal(own, forward(deployment.qstate, images))
    np.testing.assert_allclose(own, jax.jit(deployment.forward)(images), rtol=0, atol=1e-5 * np.abs(own).max())
    assert np.abs(own - changed).max() > 1e-2 * np.abs(own).max()


def test_small_weights_take_less_memory(made):
    deployment = made("uniform")
    size = {
        weights: sum(x.nbytes for x in jax.tree.leaves(prepared(deployment.params, deployment.known, weights)))
        for weights in ("fast", "small")
    }
    assert size["small"] < size["fast"] < sum(4 * np.prod(o.shape) for o in deployment.known.values() if o.path)


WAYS = {  # by the end of a site's name; the first that fits
    "uniform": {"": "int8"},
    "binary": {
        "patch": "float: an operand is not quantised",
        "head": "float: an operand is not quantised",
        "": "int8",
    },
    "mixed": {"fc1": "float: 16 bits, integer products have at most 8", "": "float: an operand is not quantised"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_ways_are_those_of_every_product_in_the_models_order(name, made):
    deployment = made(name)
    found = deployment.ways()
    assert [*found] == [*dict.fromkeys(o.site for o in deployment.known.values())]
    for site, way in found.items():
        assert way == next(w for end, w in WAYS[name].items() if site.endswith(end))


def test_groups_and_ladders_are_named(deployment):
    found = deployment("grouped").ways()
    assert found["block00/attn/qkv"] == "ladder"
    assert found["block00/mlp/fc1"] == found["head"] == "groups"


def test_an_implementation_that_is_not_there_is_an_error(made, images):
    deployment = made("uniform")
    with pytest.raises(ValueError, match="has no implementation 'xlaa' .did you mean 'xla'"):
        deployment.integer(impl="xlaa")(images)
    with pytest.raises(NotImplementedError, match="'pallas_tpu' runs on tpu"):  # a named one never falls back
        deployment.integer(impl="pallas_tpu")(images)
