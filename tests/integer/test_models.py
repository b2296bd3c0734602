"""Whole models in integers against fake quantisation, every method: the same decisions on every image.

Fake quantisation is taken in two forms. With sums of whole numbers (``whole_dot``), as a deployment's reference has it,
every logit is the same to the bit but where a processor joins a product and a sum differently. With sums of scaled
values (``quantized``), as tables are made, a code that lies on the edge of two can fall to either side, as float32
rounds sums in another order: of the 10,000 test images 0 to 5 are then decided otherwise (none with signs, whose scales
come last there too).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvq
from jvq.core.dot import packed_dot, quantized
from jvq.core.recipe import resolve
from jvq.core.whole import whole_dot
from jvq.data import Preprocess, open_source, sample
from jvq.integer import integer_dot, prepared, ways
from jvq.methods import METHODS

pytestmark = pytest.mark.once

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
    """Logits [n o] of so many test images: sums of scaled values, of whole numbers, integers; how products are done."""
    checkpoint, known, (params, plan, state) = frozen(model, name)
    forward = checkpoint.model.forward
    rows = prepared(params, known)
    preprocess = Preprocess.from_dict(checkpoint.preprocess)
    images = sample(open_source("fashion", "test"), preprocess, count, seed=1).images
    fake = jax.jit(lambda x: forward(params, x, packed_dot(quantized(plan, state))))
    whole = jax.jit(lambda x: forward(params, x, whole_dot(plan, state)))
    integer = jax.jit(lambda x: forward(rows, x, integer_dot(plan, state)))
    size = min(count, 250)
    batches = [jnp.asarray(images[i : i + size]) for i in range(0, count, size)]
    found = ways(forward, rows, plan, state, batches[0][:1])
    return [np.concatenate([np.asarray(run(x)) for x in batches]) for run in (fake, whole, integer)], found


def agree(model, name, count):
    (fake, whole, integer), found = both(model, name, count)
    assert {way.partition(":")[0] for way in found.values()} == ROWS[name][2]
    assert np.isfinite(integer).all()
    assert np.median(np.abs(fake - integer).max(axis=1)) < 1e-5 * fake.std()
    np.testing.assert_array_equal(whole.argmax(axis=1), integer.argmax(axis=1))
    assert np.mean((whole != integer).any(axis=1)) < 0.01, "images with a logit that is not the same to the bit"
    return fake, integer


@pytest.mark.parametrize("name", ["minmax 8", "igq 4", "igq 4 ladder", "bivit 1"])
def test_the_vit_decides_the_same(name):
    agree("fashion_vit", name, 250)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_decides_the_same_on_the_whole_test_set(model, name):
    fake, integer = agree(model, name, 10_000)
    different = fake.argmax(axis=1) != integer.argmax(axis=1)
    assert different.sum() <= (0 if name.startswith("bivit") else 10)
    right = np.sort(fake, axis=1)
    assert (right[different, -1] - right[different, -2] < 0.5 * fake.std()).all(), "only what was undecided anyway"
