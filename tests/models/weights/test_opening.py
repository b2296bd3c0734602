"""Opening: folders, half-wide floats, our own files with other classes, what stands beside a file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jvq.models import build
from jvq.models.weights import Checkpoint, open_weights, save

SPEC = {"image": (8, 8), "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3, "layer_scale": 1e-5}
PREPROCESS = {"size": [8, 8], "resize": 10, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.fixture
def ours():
    model, rng = build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.integers(-9, 9, s.shape) / 8, jnp.float32), model.shapes())
    return Checkpoint(model, params, PREPROCESS, {"top1": 0.5})


@pytest.fixture
def flat(ours):
    return {
        jax.tree_util.keystr(k, simple=True, separator="/"): np.asarray(x)
        for k, x in jax.tree.leaves_with_path(ours.params)
    }


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_wide_floats_and_our_names_without_our_header(dtype, ours, flat, tmp_path):
    save_file({name: x.astype(dtype) for name, x in flat.items()}, tmp_path / "a.safetensors")
    found = open_weights(str(tmp_path / "a.safetensors"))
    assert found.model.spec == ours.model.spec
    jax.tree.map(np.testing.assert_array_equal, found.params, ours.params)


def test_our_own_file_for_other_classes_and_another_image(ours, tmp_path):
    save(ours, tmp_path / "a.safetensors")
    found = open_weights(
        str(tmp_path / "a.safetensors"), model={"classes": 7, "image": [16, 16]}, preprocess={"std": [1, 1, 1]}
    )
    assert found.model.spec == dataclasses.replace(ours.model.spec, classes=7, image=(16, 16))
    assert found.notes == {"top1": 0.5, "head": "new"}
    assert (found.preprocess["size"], found.preprocess["resize"]) == ([16, 16], 20)
    assert found.preprocess["std"] == [1, 1, 1]
    assert found.params["head"]["kernel"].shape == (16, 7)
    none = open_weights(str(tmp_path / "a.safetensors"), model={"classes": 0})
    assert "head" not in none.params
    with pytest.raises(ValueError, match="does not fit the model .* the model .16, 48."):
        open_weights(str(tmp_path / "a.safetensors"), model={"mlp_ratio": 3.0})
    with pytest.raises(ValueError, match="model.clases: vit has no such option .did you mean 'classes'"):
        open_weights(str(tmp_path / "a.safetensors"), model={"clases": 3})
    with pytest.raises(ValueError, match="model.image: an image size must be one or two positive numbers, got .0, 0."):
        open_weights(str(tmp_path / "a.safetensors"), model={"image": 0})


def test_packed_weights_are_refused(flat, tmp_path):
    save_file(flat, tmp_path / "a.safetensors", {"format": json.dumps("jvq-packed")})
    with pytest.raises(ValueError, match="is not a float checkpoint of jvq but has its packed weights"):
        open_weights(str(tmp_path / "a.safetensors"))


def test_a_folder_is_its_only_file(flat, tmp_path):
    np.savez(tmp_path / "x.npz", **flat)
    (tmp_path / "notes.txt").write_text("")
    assert open_weights(str(tmp_path)).model.spec.dim == 16
    np.savez(tmp_path / "y.npz", **flat)
    with pytest.raises(ValueError, match="holds none of model.safetensors, .*; weights in it: x.npz, y.npz"):
        open_weights(str(tmp_path))
    save_file(flat, tmp_path / "model.safetensors")
    assert open_weights(str(tmp_path)).notes["file"] == "model.safetensors"


def test_another_ending_is_refused(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the endings that jvq reads: .safetensors, .npz, .onnx"):
        open_weights(str(tmp_path / "a.h5"))


PROCESSOR = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True}
PROCESSOR |= {"resample": 3, "image_mean": [0.1] * 3, "image_std": [0.2] * 3, "rescale_factor": 0.00392156862745098}
CASES = {  # changes to the processor: size, resize
    "crop": ({}, [16, 16], 20),
    "squash": ({"size": {"height": 8, "width": 8}, "do_center_crop": False}, [8, 8], 8),
    "number": ({"size": 12, "crop_size": 8}, [8, 8], 12),
    "no resize": ({"do_resize": False}, [16, 16], None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_transformers_says_of_images(case, flat, tmp_path):
    change, size, resize = CASES[case]
    save_file(flat, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | change))
    found = open_weights(str(tmp_path))
    want = {"size": size, "resize": resize, "interpolation": "bicubic", "mean": [0.1] * 3, "std": [0.2] * 3}
    assert found.preprocess == want
    assert list(found.model.spec.image) == size, "positions for the images that come, as transformers does"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "resnet"}, "model_type 'resnet' is not one of jvq's"),
        ({"model_type": "vit", "hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not built"),
        ({"model_type": "dinov2", "use_swiglu_ffn": True}, "SwiGLU is not built"),
        ({"model_type": "vit", "hidden_size": 32}, "dim 32 was stated, its arrays have 16"),
        ([1], "holds no JSON object"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(config, says, flat, tmp_path):
    save_file(flat, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says):
        open_weights(str(tmp_path))
