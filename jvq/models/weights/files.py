"""From a path to arrays by name: one reader a kind of file. What the names mean is the tables' business."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jvq.core import reading
from jvq.models.weights import onnx_file, torch_file

Arrays = dict[str, np.ndarray]
TORCH = (".pth", ".pt", ".bin")
KINDS = (".safetensors", ".npz", ".onnx", *TORCH)
BY_NAME = ("model.safetensors", "pytorch_model.bin", "model.onnx")  # in a folder, in this order
ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "checkpoint")


def located(path: Path) -> Path:
    """The weights of a folder (a file, or a checkpoint folder of orbax), or the file itself. ``ValueError``: none."""
    if not path.is_dir():
        return path
    if any((path / name).exists() for name in ORBAX):
        return path
    if files := [path / name for name in BY_NAME if (path / name).is_file()]:
        return files[0]
    files = sorted(p for p in path.iterdir() if p.suffix in KINDS and p.is_file())
    steps = sorted((p for p in path.iterdir() if p.is_dir() and is_orbax(p)), key=lambda p: (len(p.name), p.name))
    if len(files) == 1:
        return files[0]
    if steps and not files:
        return steps[-1]  # the last step
    shown = ", ".join(p.name for p in files[:6]) or "none"
    raise ValueError(
        f"weights: the folder {path} holds none of {', '.join(BY_NAME)} and no orbax checkpoint; weights in it: {shown}"
    )


def is_orbax(path: Path) -> bool:
    """Whether a folder, or an item in it, is a checkpoint of orbax."""
    items = (path, path / "default", path / "params", path / "state")
    return any((item / name).exists() for item in items for name in ORBAX)


def read(path: Path) -> Arrays:
    """The arrays in a file, names as they stand in it but for wrappers' prefixes. ``ValueError`` in one line."""
    if path.is_dir():
        from jvq.models.weights import orbax_folder

        return orbax_folder.read(path)
    if path.suffix == ".safetensors":
        return torch_file.bare(of_safetensors(path))
    if path.suffix == ".npz":
        return of_npz(path)
    if path.suffix == ".onnx":
        return torch_file.bare(onnx_file.read(path))
    if path.suffix in TORCH:
        return torch_file.read(path)
    raise ValueError(f"weights: {path} has none of the endings that jvq reads: {', '.join(KINDS)}")


def format_of(path: Path) -> str:
    """The ``format`` in a safetensors header; empty where there is none. ``ValueError`` for what is no safetensors."""
    try:
        with safe_open(path, framework="numpy") as f:
            text = (f.metadata() or {}).get("format", "")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights: {path} cannot be read as safetensors: {error}") from None
    try:
        return str(json.loads(text))
    except (ValueError, RecursionError):  # others write it bare
        return text


def of_safetensors(path: Path) -> Arrays:
    """The arrays of a safetensors file."""
    try:
        try:
            with safe_open(path, framework="numpy") as f:
                return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
        except (TypeError, AttributeError):  # an older safetensors knows bfloat16 of jax, not of NumPy
            with safe_open(path, framework="flax") as f:
                return {name: np.asarray(f.get_tensor(name)) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, *reading.BROKEN) as error:
        raise ValueError(f"weights: {path} cannot be read as safetensors: {error}") from None


def of_npz(path: Path) -> Arrays:
    """The arrays of an ``.npz`` file; bfloat16, which NumPy stores as two bytes without a meaning, gets it back."""
    arrays = reading.npz(path, f"weights: {path} cannot be read as npz")
    return {name: x.view(jnp.bfloat16) if x.dtype == np.dtype("V2") else x for name, x in arrays.items()}
