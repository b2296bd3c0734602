"""The variants of other libraries, each imported only where it is asked for."""

# pyright: reportMissingImports=false

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvq.bench.bed import Bed, Prepared, Run, Variant
from jvq.core.freeze import freeze
from jvq.core.quantizer import State
from jvq.core.recipe import Plan, Sites
from jvq.export.deployment import Deployment
from jvq.export.onnx import save_onnx


def variants(w8a8: Callable[[Sites], Plan]) -> tuple[Variant, ...]:
    """Those of onnxruntime and torch; ``w8a8`` is the plan of the one in 8 bits that follows a plan."""
    onnx, torch = ("onnx", "onnxruntime"), ("torch",)
    return (
        Variant("ort-float32", "onnxruntime, float32", exported, session, needs=onnx),
        Variant("ort-int8", "onnxruntime, the same W8A8 as QDQ", exported, session, w8a8, onnx),
        Variant("ort-int8-spin", "the same, its threads spin", exported, partial(session, spin=True), w8a8, onnx),
        Variant("torch-float32", "torch, float32", torch_form("float32"), torch_model, needs=torch),
        Variant("torch-bf16", "torch, all in bfloat16", torch_form("bf16"), torch_model, needs=torch),
        Variant("torch-int8", "torch, dynamic int8, linear layers only", torch_form("int8"), torch_model, needs=torch),
    )


def exported(bed: Bed, plan: Plan, qstate: Mapping[str, State]) -> Prepared:
    """An ONNX file, of the float model where nothing is planned."""
    params, rest, state = freeze(bed.params, plan, qstate, bed.known)
    path = bed.folder / f"{bed.name}{'-int8' if plan else ''}.onnx"
    save_onnx(Deployment(bed.model, params, rest, state, {}, {}, {}, {}), path)
    return Prepared(path, path.stat().st_size)


def session(path: Path, threads: int, spin: bool = False) -> Run:
    """An onnxruntime session on the CPU, all of its graph optimisations on.

    ``spin``: threads wait for each other busily, as is its default. That is fast where nothing else runs; on a machine
    that is shared it takes twice the CPU time and the wall time of others, so that the table has both.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in opened.get_inputs())
    return lambda images: opened.run(None, {name: images})


class Torch(NamedTuple):
    """A ViT in torch."""

    spec: Any  # of jvq.models.vit
    form: str  # float32, bf16 or int8


def torch_form(form: str) -> Callable[[Bed, Plan, Mapping[str, State]], Prepared]:
    """What prepares torch's module of that form, with the bytes that it holds."""

    def prepare(bed: Bed, plan: Plan, qstate: Mapping[str, State]) -> Prepared:
        what = Torch(bed.model.spec, form)
        return Prepared(what, _torch_bytes(_torch(what)))

    return prepare


def torch_model(what: Torch, threads: int) -> Run:
    """The module in inference mode, with weights of its own: torch has its own random numbers."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    model = _torch(what)
    dtype = torch.bfloat16 if what.form == "bf16" else torch.float32

    def run(images: np.ndarray) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(images).to(dtype))

    return run


def _torch(what: Torch) -> Any:
    import torch

    from jvq.bench.torch_vit import ViT

    torch.manual_seed(0)
    model = ViT(what.spec).eval()
    if what.form == "bf16":
        return model.to(torch.bfloat16)
    if what.form == "float32":
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that this has moved to torchao
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def _torch_bytes(model: Any) -> int:
    """Bytes of the state of a module, of packed weights as well."""
    import torch

    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value)) if isinstance(value, tuple) else 0

    return sum(size(value) for value in model.state_dict().values())
