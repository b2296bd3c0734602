"""From a deployment to an ONNX file and back: written whole, checked, and run in onnxruntime beside the model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jvq.core import files
from jvq.core.recipe import sites
from jvq.export.deployment import Deployment
from jvq.export.onnx import grids, saliency, swin, vit
from jvq.export.onnx.graph import Graph
from jvq.export.onnx.package import onnx, onnxruntime
from jvq.export.onnx.products import Products
from jvq.models import Model

FORMAT = "jvq-onnx/1"
IMAGES = "images"  #: the input's name
FORWARDS = {"vit": vit.forward, "swin": swin.forward, "saliency": saliency.forward}
LARGEST = 2**31 - 1  #: bytes of one protobuf message
PRECISE = "session.x64quantprecision"  #: a session option of onnxruntime, see session


class Agreement(NamedTuple):
    """An exported file in onnxruntime against the deployment in JAX, on the same images."""

    difference: float  # largest, of the outputs
    differing: tuple[int, ...]  # the images whose largest output is another

    @property
    def agrees(self) -> bool:
        """Whether every image's largest output is the same."""
        return not self.differing


def save_onnx(deployment: Deployment, path: str | os.PathLike[str]) -> None:
    """Writes the deployment as QDQ: ``images`` float32 [batch y x c], preprocessed, to ``logits`` [batch o].

    ``features`` or ``tokens`` where the model has no head, ``map`` [batch y x] where it has a decoder. Weights are int8
    with a scale and zero point an output channel; quantised activations pass through uint8. How images are
    preprocessed, the recipe and the protocol are in the file's metadata, as JSON. ``ValueError``: one line on what QDQ
    cannot express, with the address and what to use instead; nothing is written then.
    """
    path = Path(path)
    model = graph(deployment)
    if model.ByteSize() > LARGEST:
        raise ValueError(f"export: {path} would have {model.ByteSize()} bytes, an ONNX file has at most {LARGEST}")
    with files.replacing(path, "export: ") as part:
        part.write_bytes(model.SerializeToString())
        onnx().checker.check_model(str(part), full_check=True)


def save_onnx_float(model: Model, params: Any, preprocess: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the float model, with the same input, output and metadata as :func:`save_onnx`."""
    save_onnx(Deployment(model, params, {}, {}, preprocess, {}, {}, {}), path)


def graph(deployment: Deployment) -> Any:
    """The deployment as an ONNX ``ModelProto``."""
    model = deployment.model
    if model.architecture not in FORWARDS:
        known = ", ".join(FORWARDS)
        raise ValueError(f"export: ONNX has no graph of the architecture '{model.architecture}' (there are: {known})")
    for address, quantizer in deployment.plan.items():
        grids.check(address, quantizer)
    known = sites(model.forward, deployment.params, model.image)
    products = Products(Graph(), deployment.params, deployment.plan, deployment.qstate, known)
    value, name, shape = FORWARDS[model.architecture](products, model.spec, IMAGES)
    assert sorted(products.sites) == sorted({o.site for o in known.values()}), "the graph has other products"
    notes = {"format": FORMAT, "architecture": model.architecture}
    texts = {"preprocess": deployment.preprocess, "recipe": deployment.recipe, "protocol": deployment.protocol}
    notes |= {key: json.dumps(text, default=str) for key, text in texts.items()}
    return products.graph.model((IMAGES, model.image), (name, shape), value, notes)


def session(
    path: str | os.PathLike[str],
    threads: int = 0,
    optimized: str | os.PathLike[str] | None = None,
    *,
    precise: bool = False,
) -> Any:
    """An onnxruntime session on the CPU for a file; ``optimized`` is where it writes the graph that it runs.

    ``precise`` sets its option ``session.x64quantprecision``: weights become uint8, which is slower where the CPU has
    VNNI, and exact where it has only AVX2 or AVX512. There products of uint8 and int8 add up pairs in 16 bits, which
    overflow with weights of 8 bits.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry(PRECISE, "1")
    if optimized is not None:
        options.optimized_model_filepath = os.fspath(optimized)
    return ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def check(deployment: Deployment, path: str | os.PathLike[str], images: np.ndarray, *, batch: int = 100) -> Agreement:
    """How far the file's outputs are from the deployment's on images [n y x c], ``batch`` at a time."""
    running = session(path, precise=True)

    @jax.jit
    def reference(params: Any, qstate: Any, x: jax.Array) -> jax.Array:
        return deployment.model.forward(params, x, deployment.dot(qstate))

    largest, differing = 0.0, []
    for start in range(0, len(images), batch):
        x = np.asarray(images[start : start + batch], np.float32)
        wanted = np.asarray(reference(deployment.params, dict(deployment.qstate), x))
        (got,) = running.run(None, {IMAGES: x})
        largest = max(largest, float(np.abs(got - wanted).max()))
        other = (got.argmax(axis=-1) != wanted.argmax(axis=-1)).reshape(len(x), -1).any(axis=1)
        differing += [start + int(i) for i in np.flatnonzero(other)]
    return Agreement(largest, tuple(differing))
