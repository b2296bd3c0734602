"""Checkpoints: what is written is read back, and a file that does not fit says where."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jvq.data import Preprocess
from jvq.models import build
from jvq.models.vit import resize_positions
from jvq.models.weights import Checkpoint, open_weights, resized, save

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
KERNEL = "block00/mlp/fc1/kernel"


@pytest.fixture(scope="module")
def checkpoint():
    model, rng = build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), model.shapes())
    return Checkpoint(model, params, PREPROCESS, {"source": "random", "top1": 0.5})


@pytest.fixture(scope="module")
def written(checkpoint, tmp_path_factory):
    """The folder with ``good.safetensors``."""
    folder = tmp_path_factory.mktemp("weights")
    save(checkpoint, folder / "good.safetensors")
    return folder


def read(path):
    with safe_open(path, framework="numpy") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, f.metadata()  # noqa: SIM118


def test_what_is_saved_comes_back(checkpoint, written):
    back = open_weights(str(written / "good.safetensors"))
    assert back.model.spec == checkpoint.model.spec
    assert back.model.architecture == "vit"
    assert (back.preprocess, back.notes) == (checkpoint.preprocess, checkpoint.notes)
    assert jax.tree.structure(back.params) == jax.tree.structure(checkpoint.params)
    jax.tree.map(np.testing.assert_array_equal, back.params, checkpoint.params)
    assert [p.name for p in written.iterdir()] == ["good.safetensors"], "nothing half-written is left"


def test_the_file_is_plain_safetensors_named_by_path(checkpoint, written):
    arrays, header = read(written / "good.safetensors")
    assert arrays[KERNEL].shape == (16, 64)
    assert {x.dtype for x in arrays.values()} == {np.dtype(np.float32)}
    assert {name: json.loads(value) for name, value in header.items()}["spec"]["image"] == [8, 8]


def test_an_existing_file_is_replaced(checkpoint, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"something else")
    save(checkpoint, path)
    assert open_weights(str(path)).notes == checkpoint.notes


def changed(written, folder, arrays=lambda x: x, header=lambda x: x):
    """A path to the good checkpoint with its arrays or header changed."""
    tensors, meta = read(written / "good.safetensors")
    save_file(arrays(tensors), folder / "bad.safetensors", header(meta))
    return str(folder / "bad.safetensors")


def without(*names):
    return lambda mapping: {name: x for name, x in mapping.items() if name not in names}


def nan(arrays):
    arrays[KERNEL][3, 5] = np.nan
    return arrays


CHANGES = {
    "missing key": (dict(arrays=without(KERNEL)), f"does not fit the model .*: -{KERNEL} .there are none"),
    "renamed key": (
        dict(arrays=lambda a: {name.replace("fc1/k", "fc_1/k"): x for name, x in a.items()}),
        f"-{KERNEL} .did you mean 'block00/mlp/fc_1/kernel'.*[+]block00/mlp/fc_1/kernel",
    ),
    "extra key": (dict(arrays=lambda a: {**a, "extra": np.zeros(3, np.float32)}), "[+]extra"),
    "wrong shape": (
        dict(arrays=lambda a: {**a, KERNEL: np.zeros((16, 32), np.float32)}),
        rf"~{KERNEL} has shape \(16, 32\), the model \(16, 64\)",
    ),
    "many": (dict(arrays=lambda a: {"x": np.zeros(1, np.float32)}), r"\.\.\. \d\d in all"),
    "not finite": (dict(arrays=nan), f"values that are not finite .NaN or infinite. in {KERNEL}"),
    "newer version": (dict(header=lambda h: {**h, "version": "2"}), "has version 2, this jvq reads up to 1"),
    "no version": (dict(header=without("version", "notes")), "lacks version, notes in its header"),
    "packed": (dict(header=lambda h: {**h, "format": '"jvq-packed"'}), "is not a float checkpoint of jvq but has"),
    "header no JSON": (dict(header=lambda h: {**h, "spec": "{"}), "cannot be read as jvq safetensors"),
    "unknown architecture": (dict(header=lambda h: {**h, "architecture": '"vitt"'}), "'vitt' is not known .*'vit'"),
    "unknown option": (
        dict(header=lambda h: {**h, "spec": '{"dims": 16}'}),
        "model.dims: vit has no such option.*'dim'",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_file_that_does_not_fit_says_where(case, written, tmp_path):
    change, says = CHANGES[case]
    path = changed(written, tmp_path, **change)
    with pytest.raises(ValueError, match=says) as caught:
        open_weights(path)
    assert path in str(caught.value) or case.startswith("unknown")


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_file_is_refused(keep, written, tmp_path):
    path = tmp_path / "short.safetensors"
    path.write_bytes((written / "good.safetensors").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"short\.safetensors cannot be read as safetensors"):
        open_weights(str(path))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_widths_are_read_as_float32(dtype, checkpoint, written, tmp_path):
    path = changed(written, tmp_path, arrays=lambda a: {name: x.astype(dtype) for name, x in a.items()})
    params = open_weights(path).params
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    want = jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), checkpoint.params)
    jax.tree.map(np.testing.assert_array_equal, params, want if dtype is np.float16 else checkpoint.params)


@pytest.mark.parametrize(("name", "says"), [
    ("fashion_vitt", "'fashion_vitt' is neither an embedded checkpoint nor a file .did you mean 'fashion_vit'"),
    ("{}/god.safetensors", "no file '.*god.safetensors'; beside it: good.safetensors; embedded .*: fashion_vit"),
    ("{}/nowhere/good.safetensors", "no file '.*nowhere/good.safetensors'; embedded"),
    ("{}/nowhere", "no file"),
])  # fmt: skip
def test_a_name_that_leads_nowhere_shows_the_nearest(name, says, written):
    with pytest.raises(ValueError, match=says):
        open_weights(name.format(written))


@pytest.mark.parametrize(("resize", "want"), [(None, 16), (10, 20)])
def test_resizing_takes_positions_and_preprocessing_along(resize, want, checkpoint):
    old = dataclasses.replace(checkpoint, preprocess={**PREPROCESS, "resize": resize})
    new = resized(old, (16, 16))
    assert new.model.spec == dataclasses.replace(old.model.spec, image=(16, 16))
    preprocess = Preprocess.from_dict(new.preprocess)
    assert (preprocess.size, preprocess.resize) == ((16, 16), want)
    np.testing.assert_array_equal(new.params["pos"], resize_positions(old.params["pos"], (2, 2), (4, 4), 1))
    assert new.params["pos"].shape == (1, 17, 16)
    assert {name: x for name, x in new.params.items() if name != "pos"} == {
        name: x for name, x in old.params.items() if name != "pos"
    }
    assert jax.eval_shape(new.model.forward, new.params, jnp.zeros((1, 16, 16, 1))).shape == (1, 3)
    assert old.preprocess["resize"] == resize, "the old one stays as it was"


def test_the_same_size_changes_nothing(checkpoint):
    same = resized(checkpoint, (8, 8))
    assert same.preprocess["resize"] is None
    np.testing.assert_allclose(same.params["pos"], checkpoint.params["pos"], rtol=1e-5, atol=1e-6)


def test_a_size_between_patches_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"model.image 10x10 is not a multiple of model.patch 4: \[8, 12\] would be"):
        resized(checkpoint, (10, 10))
