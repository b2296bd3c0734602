"""Whole models in integers against fake quantisation, every method: logits to float rounding, the same decisions.

A code that lies on the edge of two can fall to either side, as float32 rounds sums in another order: what follows then
differs by a step of a quantiser. So logits are compared in the middle, and decisions on every image. Of the 10,000 test
images 0 to 5 were decided otherwise (most with groups of the moment, which amplify a code; none with signs, whose sums
are exact on both sides).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvq
from jvq.core.dot import packed_dot, quantized
from jvq.core.recipe import resolve
from jvq.data import Preprocess, open_source, sample
from jvq.integer import integer_dot, prepared, ways
from jvq.methods import METHODS

MODELS = ("fashion_vit", "fashion_deit", "fashion_swin")
ROWS = {  # method, its options, how linear products are computed
    "minmax 8": ("minmax", {"bits": 8}, {"int8"}),
    "minmax 4": ("minmax", {"bits": 4}, {"int8"}),
    "igq 4": ("igq", {"bits": 4}, {"groups", "int8"}),
    "igq 4 ladder": ("igq", {"bits": 4, "ladder": True}, {"ladder", "int8"}),
    "igq 6 static": ("igq", {"bits": 6, "linear": "sorted"}, {"groups", "int8"}),
    "liu21 6": ("liu21", {"bits": 6, "rounds": 0}, {"int8"}),
    "vvtq 4": ("vvtq", {"bits": 4}, {"int8"}),
    "bivit 1": ("bivit", {}, {"int8", "float"}),  # patch embedding and head are float
}


def frozen(model, name):
    """The checkpoint, and its packed parameters, plan and state under the row's recipe, calibrated."""
    kind, fields, _ = ROWS[name]
    checkpoint = jvq.open_weights(model)
    images = sample(open_source("fashion", "train"), Preprocess.from_dict(checkpoint.preprocess), 16, seed=0).images
    known = jvq.sites(checkpoint.model.forward, checkpoint.params, checkpoint.model.image)
    method = METHODS[kind]
    plan = resolve(method.recipe(method.Options(**fields), known), known)
    state = jvq.calibrate(checkpoint.model.forward, checkpoint.params, images, plan, known)
    return checkpoint, known, jvq.freeze(checkpoint.params, plan, state, known)


def both(model, name, count):
    """Logits [n o] by fake quantisation and in integers of so many test images, and how products are computed."""
    checkpoint, known, (params, plan, state) = frozen(model, name)
    forward = checkpoint.model.forward
    rows = prepared(params, known)
    preprocess = Preprocess.from_dict(checkpoint.preprocess)
    images = sample(open_source("fashion", "test"), preprocess, count, seed=1).images
    fake = jax.jit(lambda x: forward(params, x, packed_dot(quantized(plan, state))))
    integer = jax.jit(lambda x: forward(rows, x, integer_dot(plan, state)))
    size = min(count, 250)
    batches = [jnp.asarray(images[i : i + size]) for i in range(0, count, size)]
    found = ways(forward, rows, plan, state, batches[0][:1])
    return [np.concatenate([np.asarray(run(x)) for x in batches]) for run in (fake, integer)], found


def agree(model, name, count):
    (fake, integer), found = both(model, name, count)
    assert {way.partition(":")[0] for way in found.values()} == ROWS[name][2]
    spread = fake.std()
    apart = np.abs(fake - integer).max(axis=1)
    assert np.median(apart) < 1e-5 * spread
    different = fake.argmax(axis=1) != integer.argmax(axis=1)
    return different, fake, integer


@pytest.mark.parametrize("name", ["minmax 8", "igq 4 ladder", "bivit 1"])
def test_the_vit_decides_the_same(name):
    different, *_ = agree("fashion_vit", name, 250)
    assert not different.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_decides_the_same_on_the_whole_test_set(model, name):
    different, fake, integer = agree(model, name, 10_000)
    assert different.sum() <= (0 if name.startswith("bivit") else 10)
    right = np.sort(fake, axis=1)
    assert (right[different, -1] - right[different, -2] < 0.3 * fake.std()).all(), "only what was undecided anyway"
    assert np.isfinite(integer).all()
