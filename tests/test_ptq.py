"""One call from a checkpoint to a packed model that runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvq
from jvq.export import load, save

pytestmark = pytest.mark.once

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}


@pytest.fixture(scope="module")
def tiny():
    """A checkpoint and images for it."""
    model, rng = jvq.build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    return jvq.Checkpoint(model, params, PREPROCESS, {}), rng.normal(size=(6, 8, 8, 1)).astype(np.float32)


def test_the_model_is_packed_runs_and_is_saved(tmp_path, tiny):
    checkpoint, images = tiny
    deployment = jvq.quantize(checkpoint, images, "minmax", bits=8, rules="head.*=float")
    assert not any(address.startswith("head") for address in deployment.recipe)
    reference = np.asarray(checkpoint.model.forward(checkpoint.params, images, jvq.float_dot))
    fake, integers = (np.asarray(run(images)) for run in (deployment.forward, deployment.integer()))
    np.testing.assert_allclose(fake, integers, rtol=0, atol=1e-5 * np.abs(fake).max())
    assert 0 < np.abs(fake - reference).max() < 0.2 * np.abs(reference).max()
    save(deployment, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "model.safetensors").forward(images), deployment.forward(images))


def test_corrected_parameters_are_the_ones_that_are_packed(tiny):
    checkpoint, images = tiny
    plain, corrected = (
        jvq.quantize(checkpoint, images, "liu21", bits=4, rounds=0, bias_correction=how)
        for how in ("none", "sequential")
    )
    assert np.abs(plain.forward(images) - corrected.forward(images)).max() > 0


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("igqq", {}, r"method 'igqq' is not known \(did you mean 'igq'\?\)"),
        ("minmax", {"bit": 4}, "there is no option 'method.bit'"),
        ("vvtq", {}, "quantize: 'vvtq' trains; python -m jvq.main does that. Without training: "),
        ("supervised", {}, "quantize: 'supervised' trains"),
    ],
)
def test_a_mistake_is_said_in_one_line(tiny, method, options, says):
    checkpoint, images = tiny
    with pytest.raises(ValueError, match=says):
        jvq.quantize(checkpoint, images, method, **options)
