"""ONNX graphs: kernels get their names back, however the exporter folded them."""

import numpy as np
import pytest

from jvq.models.weights import onnx_file, open_weights

onnx = pytest.importorskip("onnx")


def graph(arrays, nodes):
    initializers = [onnx.numpy_helper.from_array(np.ascontiguousarray(x), name) for name, x in arrays.items()]
    made = [onnx.helper.make_node(kind, inputs, [out], name=name, **more) for kind, inputs, out, name, more in nodes]
    return onnx.helper.make_model(onnx.helper.make_graph(made, "g", [], [], initializers))


def exported(arrays, batched=True):
    """The graph that torch's exporter makes of a ``state_dict``, as far as its weights go."""
    kept, nodes = {}, []
    for i, (name, x) in enumerate(arrays.items()):
        bias = name.replace(".weight", ".bias")
        if not name.endswith("weight") or x.ndim != 2:
            kept[name] = x
            continue
        at = "/" + name.removesuffix(".weight").replace(".", "/")
        if name == "head.weight":  # a layer on one vector: a Gemm, turned or not
            kept[name if batched else f"onnx::Gemm_{i}"] = x if batched else x.T
            nodes.append(
                ("Gemm", ["x", name if batched else f"onnx::Gemm_{i}", bias], "y", "", {"transB": int(batched)})
            )
            continue
        kept[f"onnx::MatMul_{i}"] = x.T
        nodes.append(("MatMul", ["x", f"onnx::MatMul_{i}"], f"{at}/out", f"{at}/MatMul", {}))
        if bias in arrays:
            sides = [bias, f"{at}/out"] if i % 2 else [f"{at}/out", bias]
            nodes.append(("Add", sides, f"{at}/sum", f"{at}/Add", {}))
    return graph(kept | {"onnx::Slice_7": np.arange(3)}, nodes)


@pytest.mark.parametrize("batched", [True, False])
def test_a_graph_gives_the_state_dict_back(batched, timm_vit, timm_swin, arrays_of, tmp_path):
    for arrays in (arrays_of(timm_vit()), arrays_of(timm_swin(depths=(1, 1)))):
        onnx.save(exported(arrays, batched), tmp_path / "a.onnx")
        found = onnx_file.read(tmp_path / "a.onnx")
        for name, x in arrays.items():
            np.testing.assert_array_equal(found[name], x, err_msg=name)
        assert set(found) == set(arrays)


def test_a_graph_opens_as_a_checkpoint(timm_vit, arrays_of, tmp_path):
    arrays = arrays_of(timm_vit(depth=1))
    onnx.save(exported(arrays), tmp_path / "a.onnx")
    found = open_weights(str(tmp_path / "a.onnx"), model={"heads": 2})
    np.testing.assert_array_equal(found.params["head"]["kernel"], arrays["head.weight"].T)


def test_equal_arrays_are_kept_once(tmp_path):
    model = graph({"a.bias": np.ones(2, np.float32)}, [("Identity", ["a.bias"], "b.bias", "", {})])
    onnx.save(model, tmp_path / "a.onnx")
    assert {name: x.tolist() for name, x in onnx_file.read(tmp_path / "a.onnx").items()} == {
        "a.bias": [1, 1],
        "b.bias": [1, 1],
    }


def test_what_is_no_graph_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match=r"a\.onnx cannot be read as ONNX"):
        onnx_file.read(tmp_path / "a.onnx")


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_what_torch_exports(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    model = transformers.ViTForImageClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    torch.onnx.export(model, (torch.zeros(1, 3, 8, 8),), str(tmp_path / "a.onnx"), dynamo=False)
    found = onnx_file.read(tmp_path / "a.onnx")
    want = model.state_dict()
    assert set(found) == set(want)
    for name, x in want.items():
        np.testing.assert_array_equal(found[name], x.numpy(), err_msg=name)
