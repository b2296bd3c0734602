"""Our own float checkpoints: safetensors whose names are the parameter tree's paths, the rest in the header.

Header (all values are JSON): ``format`` "jvq-float", ``version``, ``architecture``, ``spec`` (fields of the
architecture's Spec), ``preprocess`` (what the images must go through: it belongs to the weights), ``notes``.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import flax.traverse_util as traverse
import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jvq.core.errors import nearest
from jvq.models import Model, build

FORMAT, VERSION = "jvq-float", 1
HEADER = ("format", "version", "architecture", "spec", "preprocess", "notes")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model with its parameters and what its images must go through."""

    model: Model
    params: Any  # float32 arrays in the model's tree
    preprocess: dict[str, Any]  # fields of jvq.data.Preprocess
    notes: dict[str, Any]  # where it comes from


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
    part = path.with_name(path.name + ".part")
    try:
        save_file(arrays, part, header)
        part.chmod(0o644)  # safetensors leaves the file to its owner alone
        os.replace(part, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> Checkpoint:
    """The checkpoint at ``path``. ``ValueError`` says what does not fit: names, shapes, format, version."""
    try:
        with safe_open(path, framework="numpy") as f:
            text = f.metadata() or {}
            if text.get("format") != json.dumps(FORMAT):  # others' safetensors say "pt" there, which is no JSON
                raise ValueError(f"weights: {path} is not a float checkpoint of jvq (format: {text.get('format')})")
            header = {name: json.loads(value) for name, value in text.items()}
            lacking = [name for name in HEADER if name not in header]
            if lacking:
                raise ValueError(f"weights: {path} lacks {', '.join(lacking)} in its header")
            if header["version"] > VERSION:
                raise ValueError(f"weights: {path} has version {header['version']}, this jvq reads up to {VERSION}")
            arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"weights: {path} cannot be read as jvq safetensors: {error}") from None
    model = build(header["architecture"], header["spec"])
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
    bad = [name for name, x in arrays.items() if not np.isfinite(x).all()]
    if bad:
        raise ValueError(f"weights: {where}: values that are not finite (NaN or infinite) in {', '.join(bad[:6])}")
    leaves = {name: jax.numpy.asarray(x.astype(np.float32)) for name, x in arrays.items()}
    return traverse.unflatten_dict(leaves, sep="/")
