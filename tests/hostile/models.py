"""Whole input of each loader of weights and packed models: a tiny model in every format."""

import functools
import io
import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvq.models import build
from jvq.models.weights import Checkpoint, native, to_timm

from .trial import Files

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 12, "depth": 2, "heads": 2, "classes": 3}
SWIN = {"image": (8, 8), "patch": 2, "dim": 8, "depths": (1, 1), "heads": (1, 2), "window": 2, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}


@functools.cache
def checkpoint(architecture: str = "vit") -> Checkpoint:
    """A tiny model with random weights."""
    model, rng = build(architecture, SPEC if architecture == "vit" else SWIN), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jax.numpy.asarray(rng.normal(0, 0.3, s.shape), "float32"), model.shapes())
    preprocess = PREPROCESS if architecture == "vit" else {**PREPROCESS, "mean": [0.5] * 3, "std": [0.25] * 3}
    return Checkpoint(model, params, preprocess, {"top1": 0.5})


def timm_arrays() -> dict[str, np.ndarray]:
    """The model's arrays by timm's names."""
    return {name: np.ascontiguousarray(x) for name, x in to_timm(checkpoint()).items()}


def native_file(folder: Path) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    native.save(checkpoint(), folder / "a.safetensors")
    return {"a.safetensors": (folder / "a.safetensors").read_bytes()}


def swin_file(folder: Path) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    native.save(checkpoint("swin"), folder / "a.safetensors")
    return {"a.safetensors": (folder / "a.safetensors").read_bytes()}


def foreign_file(_: Path) -> Files:
    from safetensors.numpy import save

    return {"a.safetensors": save(timm_arrays(), {"format": "pt"})}


def beside(_: Path) -> Files:
    config = {
        "architecture": "vit_small_patch4",
        "num_classes": 3,
        "model_args": {"num_heads": 2, "embed_dim": 12},
        "pretrained_cfg": {
            "input_size": [1, 8, 8],
            "crop_pct": 0.9,
            "mean": [0.5],
            "std": [0.5],
            "interpolation": "bicubic",
        },
    }
    before = {
        "size": {"height": 8, "width": 8},
        "resample": 3,
        "image_mean": [0.5],
        "image_std": [0.5],
        "do_normalize": True,
    }
    files = foreign_file(_)
    return {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(before).encode(),
        "model.safetensors": files["a.safetensors"],
    }


def of_transformers(_: Path) -> Files:
    config = {
        "model_type": "vit", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
        "num_channels": 1, "image_size": 8, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        "architectures": ["ViTForImageClassification"],
    }  # fmt: skip
    return {**beside(_), "config.json": json.dumps(config).encode()}


def npz_file(_: Path) -> Files:
    from jvq.models.weights import augreg, spec

    found, out = checkpoint(), {}
    flat = {name: np.asarray(x) for name, x in native.traverse.flatten_dict(found.params, sep="/").items()}
    flat["patch/kernel"] = flat["patch/kernel"].reshape(4, 4, 1, -1)
    for name, x in flat.items():
        out |= (
            spec.theirs(augreg.VIT.names(name), x, augreg.VIT.row(name).layout)
            if "proj/kernel" not in name
            else {augreg.VIT.names(name)[0]: x.reshape(2, 6, 12)}
        )
    stream = io.BytesIO()
    np.savez_compressed(stream, **out)
    return {"a.npz": stream.getvalue()}


class _Storage:
    """Pickled as torch pickles a storage."""

    def __init__(self, key: str, size: int) -> None:
        self.key, self.size = key, size


class _Tensor:
    """Pickled as torch pickles a tensor."""

    def __init__(self, key: str, array: np.ndarray) -> None:
        self.storage, self.shape = _Storage(key, array.size), array.shape
        self.strides = tuple(n // 4 for n in array.strides)

    def __reduce__(self) -> Any:
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, self.strides, False, OrderedDict())


def _rebuild_tensor_v2(*_: Any) -> None: ...
def FloatStorage(*_: Any) -> None: ...


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python can name what is not there
    def persistent_id(self, obj: Any) -> Any:
        return ("storage", FloatStorage, obj.key, "cpu", obj.size) if isinstance(obj, _Storage) else None

    def save_global(self, obj: Any, name: str | None = None) -> None:
        known = {_rebuild_tensor_v2: b"ctorch._utils\n_rebuild_tensor_v2\n", FloatStorage: b"ctorch\nFloatStorage\n"}
        if obj in known:
            self.write(known[obj])  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]

    dispatch = {**pickle._Pickler.dispatch, type(FloatStorage): save_global}  # type: ignore[attr-defined]  # noqa: RUF012


def pth_file(_: Path) -> Files:
    arrays, stream, out = timm_arrays(), io.BytesIO(), io.BytesIO()
    tree = OrderedDict((name, _Tensor(str(i), x)) for i, (name, x) in enumerate(arrays.items()))
    _Pickler(stream, 2).dump({"epoch": 3, "model": tree, "best": 0.5})
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("archive/data.pkl", stream.getvalue())
        file.writestr("archive/byteorder", "little")
        for i, x in enumerate(arrays.values()):
            file.writestr(f"archive/data/{i}", x.tobytes())
    return {"a.pth": out.getvalue()}


def onnx_file(_: Path) -> Files:
    import onnx

    tensors, nodes = [], []
    for name, x in timm_arrays().items():
        if x.ndim == 2 and name.endswith("weight"):
            tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(x.T), f"onnx::MatMul_{len(tensors)}"))
            out, bias = f"/{name}/out", name.replace(".weight", ".bias")
            nodes.append(onnx.helper.make_node("MatMul", ["x", tensors[-1].name], [out], name=f"/{name}/MatMul"))
            nodes.append(onnx.helper.make_node("Add", [bias, out], [f"/{name}/sum"]))
        else:
            tensors.append(onnx.numpy_helper.from_array(x, name))
    nodes.append(onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.ones(2))))
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors))
    return {"a.onnx": model.SerializeToString()}


def files_of(folder: Path) -> Files:
    """A folder's files by their names in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def orbax_folder(folder: Path) -> Files:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "a").absolute(), checkpoint().params)
    return files_of(folder / "a")


@functools.cache
def deployment() -> Any:
    from jvq.core.calibrate import fresh
    from jvq.core.recipe import resolve, sites
    from jvq.export import Deployment
    from jvq.quantizers import Uniform

    found, rng = checkpoint(), np.random.default_rng(1)
    known = sites(found.model.forward, found.params, found.model.image)
    recipe = [
        ("*.w", Uniform(bits=4, keep="o")),
        ("*/qkv.w", Uniform(bits=3, keep="sh")),
        ("*.[xqkpv]", Uniform(bits=8)),
    ]
    plan, state = resolve(recipe, known), {}
    for address, quantizer in plan.items():
        x: Any = jax.numpy.asarray(rng.uniform(size=(4, *known[address].shape[1:])), "float32")
        for key in known[address].path or ():
            x = x[key] if not isinstance(x, jax.Array) else found.params[key]
        state[address] = fresh(quantizer, x, known[address].letters)
    return Deployment.of(found, plan, state, known, {"seed": 0})


def packed_file(folder: Path) -> Files:
    from jvq.export import save

    folder.mkdir(parents=True, exist_ok=True)
    save(deployment(), folder / "a.safetensors")
    return {"a.safetensors": (folder / "a.safetensors").read_bytes()}


def packed_folder(folder: Path) -> Files:
    from jvq.export import save_folder

    save_folder(deployment(), folder / "a")
    return files_of(folder / "a")
