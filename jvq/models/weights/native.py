"""Our own float checkpoints: safetensors whose names are the parameter tree's paths, the rest in the header.

Header (all values are JSON): ``format`` "jvq-float", ``version``, ``architecture``, ``spec`` (fields of the
architecture's Spec), ``preprocess`` (what the images must go through: it belongs to the weights), ``notes``.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import flax.traverse_util as traverse
import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jvq.core import files, reading
from jvq.core.errors import nearest
from jvq.core.packed import is_encoded
from jvq.models import Model
from jvq.models.weights import bounds

FORMAT, VERSION = "jvq-float", 1
HEADER = {"format": str, "version": int, "architecture": str, "spec": dict, "preprocess": dict, "notes": dict}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model with its parameters and what its images must go through."""

    model: Model
    params: Any  # float32 arrays in the model's tree
    preprocess: dict[str, Any]  # fields of jvq.data.Preprocess
    notes: dict[str, Any]  # where it comes from

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.notes.items() if name != "ignored")
        return f"Checkpoint({described(self.model, self.params)}{f'; {said}' if said else ''})"


def described(model: Model, params: Any) -> str:
    """``vit, 28x28x1 pixels, 255,050 parameters in 996.3 KiB``, from shapes alone: no array is read."""
    leaves = jax.tree.leaves(params, is_leaf=is_encoded)
    count = sum(math.prod(getattr(x, "shape", ())) for x in leaves)
    stored = [x for x in jax.tree.leaves(params) if hasattr(x, "shape") and hasattr(x, "dtype")]
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in stored) / 1024
    return f"{model.architecture}, {'x'.join(map(str, model.image))} pixels, {count:,} parameters in {size:,.1f} KiB"


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the checkpoint to ``path`` (.safetensors), whole or not at all."""
    flat = traverse.flatten_dict(checkpoint.params, sep="/")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": checkpoint.model.architecture,
        "spec": dataclasses.asdict(checkpoint.model.spec),
        "preprocess": checkpoint.preprocess,
        "notes": checkpoint.notes,
    }
    arrays = {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in flat.items()}
    write(arrays, path, {name: json.dumps(value) for name, value in header.items()})


def write(arrays: dict[str, np.ndarray], path: Path, header: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all."""
    with files.replacing(path) as part:
        try:
            save_file(arrays, part, header)
        except SafetensorError as error:  # a full disk, among others; its words have the temporary name
            raise ValueError(f"{path} cannot be written: {error}") from None
        part.chmod(0o644)  # safetensors leaves the file to its owner alone


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``. ``ValueError`` says what does not fit: names, shapes, format, version."""
    try:
        with safe_open(path, framework="numpy") as f:
            text = f.metadata() or {}
            if text.get("format") != json.dumps(FORMAT):  # others' safetensors say "pt" there, which is no JSON
                raise ValueError(f"weights: {path} is not a float checkpoint of jvq (format: {text.get('format')})")
            bad = f"weights: {path} cannot be read as jvq safetensors: '{{}}' is not JSON"
            header = {name: reading.json_value(x, bad.format(name)) for name, x in text.items()}
            lacking = [name for name in HEADER if name not in header]
            if lacking:
                raise ValueError(f"weights: {path} lacks {', '.join(lacking)} in its header")
            for name, kind in HEADER.items():
                if type(header[name]) is not kind:
                    raise ValueError(f"weights: {path}: '{name}' in its header must be a {kind.__name__} of JSON")
            if header["version"] > VERSION:
                raise ValueError(f"weights: {path} has version {header['version']}, this jvq reads up to {VERSION}")
            arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"weights: {path} cannot be read as jvq safetensors: {error}") from None
    model = bounds.asked(header["architecture"], header["spec"], f"weights: {path}")
    params = fitted(arrays, model, str(path))
    return Checkpoint(model, params, header["preprocess"], header["notes"])


def fitted(arrays: dict[str, np.ndarray], model: Model, where: str) -> Any:
    """The arrays as the model's parameter tree, float32.

    ``ValueError`` lists missing (-), unexpected (+) and misshapen (~), then what is not finite.
    """
    wanted: dict[str, Any] = traverse.flatten_dict(model.shapes(), sep="/")
    lines = [f"-{name}{nearest(name, set(arrays) - set(wanted))}" for name in wanted if name not in arrays]
    lines += [f"+{name}" for name in arrays if name not in wanted]
    lines += [
        f"~{name} has shape {arrays[name].shape}, the model {wanted[name].shape}"
        for name in wanted
        if name in arrays and arrays[name].shape != wanted[name].shape
    ]
    if lines:
        shown = ", ".join(lines[:6]) + (f", ... {len(lines)} in all" if len(lines) > 6 else "")
        raise ValueError(f"weights: {where} does not fit the model (- missing, + unexpected, ~ shape): {shown}")
    return parameters({name: arrays[name] for name in wanted}, where)


def parameters(arrays: dict[str, np.ndarray], where: str) -> Any:
    """Arrays that fit as a parameter tree, float32. ``ValueError`` for values that are not finite."""
    leaves = {name: jax.numpy.asarray(x) for name, x in bounds.finite(arrays, where).items()}
    return traverse.unflatten_dict(leaves, sep="/")
