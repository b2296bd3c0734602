"""Deployments of a tiny ViT, one for each family of quantisers, with random weights and states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.calibrate import fresh
from jvq.core.recipe import resolve, sites
from jvq.export import Deployment
from jvq.models import build
from jvq.models.weights import Checkpoint
from jvq.quantizers import Dynamic, Grouped, Learned, ShiftedSigns, Signs, StaticGrouped, Steps, Ternary, Uniform

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 12, "depth": 1, "heads": 2, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
EACH = [("*.w", Uniform(bits=4, keep="o")), ("*/qkv.w", Uniform(bits=3, keep="sh"))]
FEW = {"groups": 3, "restarts": 1, "iterations": 3}

RECIPES = {
    "uniform": [  # the patch embedding's weights are positive: their zero points are negative
        *EACH,
        ("patch.w", Uniform(bits=5, keep="o", zero_point="free")),
        ("*.[xqkpv]", Uniform(bits=8, range="percentile", percentile=(0.1, 1.0))),
    ],
    "dynamic": [
        ("*.[xqkpv]", Dynamic(bits=6)),
        ("*/pv.p", Dynamic(keep="bhq", nonnegative=True)),
        ("*/mlp/*.w", Uniform(bits=2, symmetric=True)),
    ],
    "grouped": [
        ("*.x", Grouped(**FEW)),
        ("*/qkv.x", Grouped(ladder=True, **FEW)),
        ("*/pv.p", Grouped(along="hq", nonnegative=True, capacity=5, **FEW)),
        *EACH,
    ],
    "static": [("*.x", StaticGrouped(groups=3)), ("*/pv.v", StaticGrouped(groups=2, along="h")), *EACH],
    "learned": [
        ("*.x", Learned(bits=4, signed=False, offset=True, start="max")),
        ("*/proj.x", Learned(bits=4, heads=2, keep="h", start="mean")),
        ("*.w", Learned(bits=4, keep="o", start="mean")),
        ("*/qkv.w", Learned(bits=3, keep="she", start="mean", gradient="l1")),
    ],
    "binary": [
        ("*.x", Signs()),
        ("*/qk.*", Signs(scale="learned", keep="h")),
        ("*/pv.p", Steps(keep="h")),
        ("*/pv.v", ShiftedSigns(keep="h")),
        ("*.w", Signs(scale="mean", keep="o")),
        ("*/qkv.w", Signs(scale="mean", keep="she")),
        ("head.w", Ternary(keep="o")),
        ("patch.x", Ternary()),
    ],
}


def deployed(checkpoint, known, plan):
    """The checkpoint under a plan; quantisers of activations have seen random numbers, or have some for a state."""
    rng, qstate = np.random.default_rng(1), {}
    for address, quantizer in plan.items():
        operand = known[address]
        x = jnp.asarray(np.abs(rng.normal(size=(4, *operand.shape[1:]))), jnp.float32)
        if operand.path is not None:
            x = checkpoint.params
            for key in operand.path:
                x = x[key]
        if isinstance(quantizer, Grouped | StaticGrouped):  # whose fit takes seconds to compile
            shapes = jax.eval_shape(lambda x, q=quantizer, o=operand: q.init(x, o.letters), x)
            qstate[address] = {n: jnp.asarray(rng.uniform(size=s.shape), jnp.float32) for n, s in shapes.items()}
            if "lower" in shapes:  # as padding is
                qstate[address]["lower"] = qstate[address]["lower"].at[-1].set(jnp.inf)
        else:
            qstate[address] = fresh(quantizer, x, operand.letters)
    return Deployment.of(checkpoint, plan, qstate, known, {"ends": "8 bits", "seed": 0, "sizes": [1, 2.5, None]})


@pytest.fixture(scope="session")
def checkpoint():
    model, rng = build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    params["patch"]["kernel"] = jnp.abs(params["patch"]["kernel"]) + 1.0
    return Checkpoint(model, params, PREPROCESS, {"top1": 0.5, "wörk": "ünïcode"})


@pytest.fixture(scope="session")
def deployment(checkpoint):
    """``deployment(name)``: one of RECIPES, made once."""
    model, made = checkpoint.model, {}
    known = sites(model.forward, checkpoint.params, model.image)

    def of(name):
        if name not in made:
            made[name] = deployed(checkpoint, known, resolve(RECIPES[name], known))
        return made[name]

    return of


@pytest.fixture(scope="session")
def same():
    """``same(a, b)``: two deployments are one, to the bit."""

    def check(a, b):
        assert jax.tree.structure((a.params, a.qstate)) == jax.tree.structure((b.params, b.qstate))
        for x, y in zip(jax.tree.leaves((a.params, a.qstate)), jax.tree.leaves((b.params, b.qstate)), strict=True):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for name in ("model", "plan", "recipe", "protocol", "preprocess", "notes"):
            assert getattr(a, name) == getattr(b, name), name

    return check
