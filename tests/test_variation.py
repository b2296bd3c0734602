"""Measures of variation, against numbers known beforehand and scipy."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jvq import variation
from jvq.core.recipe import sites
from jvq.models import build

TINY = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}


def test_two_groups_differ_by_twice_their_sdam(rng):
    signs = rng.choice([-1, 1], (6, 2))
    assert variation.variation(signs * np.array([0.7, 0.2]), "do", "o").sdam == pytest.approx(0.25)
    assert variation.variation(signs * 0.7, "do", "o").sdam == pytest.approx(0, abs=1e-12)


def test_sdam_scales_and_the_rest_does_not(rng):
    x = rng.normal(size=(5, 3, 4)) * np.array([1, 2, 5])[None, :, None]
    a, b = (variation.variation(k * x, "dhe", "h") for k in (1.0, -3.0))
    assert b.sdam == pytest.approx(3 * a.sdam)
    assert b[2:] == pytest.approx(a[2:])
    mixed = rng.permuted(x.transpose(1, 0, 2).reshape(3, -1), axis=1).reshape(3, 5, 4).transpose(1, 0, 2)
    assert variation.variation(mixed, "dhe", "h") == pytest.approx(a)


def test_outliers_are_those_of_scipy(rng):
    x = rng.standard_t(4, size=(40, 8))
    found = variation.variation(x, "do", "o")
    assert found.kurtosis == pytest.approx(scipy.stats.kurtosis(x, axis=None, fisher=False))
    assert found.reach == pytest.approx(np.abs(scipy.stats.zscore(x, axis=None)).max())
    assert found.groups == 8


def test_a_constant_varies_by_nothing():
    assert variation.variation(np.full((3, 2), 4.0), "do", "o") == (2, 0, 0, 0, 0)


def test_every_operand_is_measured_on_its_own_groups(rng):
    model = build("vit", TINY)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    known = sites(model.forward, params, model.image)
    images = rng.normal(size=(3, 8, 8, 1)).astype(np.float32)
    found = variation.measure(model.forward, params, images, known)
    assert list(found) == list(known)
    groups = {a.removeprefix("block00/"): v.groups for a, v in found.items()}
    assert (groups["attn/qkv.w"], groups["attn/qk.q"], groups["attn/pv.p"]) == (6, 2, 10)
    assert (groups["mlp/fc1.w"], groups["mlp/fc1.x"], groups["mlp/fc2.w"]) == (64, 16, 16)
    w = np.asarray(params["block00"]["mlp"]["fc2"]["kernel"], np.float64)
    assert found["block00/mlp/fc2.w"].sdam == pytest.approx(np.abs(w).mean(axis=0).std())


def test_mistakes_end_in_one_line():
    command = [sys.executable, "-m", "jvq.variation", "--weights=fashion_vitt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "fashion_vit" in done.stderr
