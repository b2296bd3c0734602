"""Query and key as one matrix a head: the same function, and a checkpoint like any other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.recipe import sites
from jvq.methods import vvtq
from jvq.methods.vvtq import Options
from jvq.models import build
from jvq.models.merging import merged
from jvq.models.weights import Checkpoint, open_weights, save

VIT = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 8, "depth": 2, "heads": 2, "classes": 3}
SWIN = {"image": (8, 8), "channels": 1, "patch": 2, "dim": 8, "depths": (2,), "heads": (2,), "window": 2, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}


def pair(architecture, spec):
    """A model with parameters, and the merged one with its own."""
    model = build(architecture, spec)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), model.shapes())
    return model, params, build(architecture, {**spec, "merged": True}), merged(params)


@pytest.mark.parametrize(("architecture", "spec"), [("vit", {**VIT, "distill_token": True}), ("swin", SWIN)])
def test_the_merged_model_is_the_same_function(architecture, spec, rng):
    model, params, other, both = pair(architecture, spec)
    assert jax.tree.map(jnp.shape, both) == jax.tree.map(lambda s: s.shape, other.shapes())
    x = jnp.asarray(rng.normal(size=(3, 8, 8, 1)), jnp.float32)
    want, got = jax.jit(model.forward)(params, x), jax.jit(other.forward)(both, x)
    assert np.ptp(np.asarray(want), axis=0).min() > 1e-3  # images differ
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("architecture", "spec", "block"), [("vit", VIT, "block00"), ("swin", SWIN, "stage0/block00")])
def test_its_sites_and_their_scales(architecture, spec, block):
    _, _, other, _ = pair(architecture, spec)
    known = sites(other.forward, other.shapes(), other.image)
    here = {a.removeprefix(f"{block}/attn/"): o for a, o in known.items() if a.startswith(f"{block}/attn")}
    roles = {"query_key": "xw", "value": "xw", "qk": "qk", "pv": "pv", "proj": "xw"}
    names = [f"{site}.{role}" for site, both in roles.items() for role in both]
    assert list(here) == names
    assert (here["query_key.w"].shape, here["value.w"].shape) == ((8, 2, 8), (8, 2, 4))
    assert here["qk.k"].path is None
    plan = dict(vvtq.recipe(Options(bits=2), known))
    assert plan[f"{block}/attn/query_key.w"].keep == "ho"
    assert plan[f"{block}/attn/value.w"].keep == "he"
    left = {a for a, q in vvtq.recipe(Options(bits=2, leave="attention"), known)}
    assert left == {a for a in known if "/attn/" not in a}


def test_a_checkpoint_is_merged_when_asked_and_comes_back(tmp_path):
    model, params, other, both = pair("vit", VIT)
    save(Checkpoint(model, params, PREPROCESS, {}), tmp_path / "plain.safetensors")
    found = open_weights(str(tmp_path / "plain.safetensors"), model={"merged": True})
    assert found.model.spec == dataclasses.replace(model.spec, merged=True) == other.spec
    jax.tree.map(np.testing.assert_array_equal, found.params, both)
    save(found, tmp_path / "merged.safetensors")
    for asked in ({}, {"merged": True}):
        again = open_weights(str(tmp_path / "merged.safetensors"), model=asked)
        assert again.model.spec.merged
        jax.tree.map(np.testing.assert_array_equal, again.params, both)
    assert not open_weights(str(tmp_path / "plain.safetensors")).model.spec.merged
    with pytest.raises(ValueError, match="merged: the query and key of .*merged.safetensors are one matrix already"):
        open_weights(str(tmp_path / "merged.safetensors"), model={"merged": False})
