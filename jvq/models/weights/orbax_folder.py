"""A checkpoint folder of orbax: a tree of arrays, ours by its names, perhaps one item or one step of several."""

import math
from pathlib import Path
from typing import Any

import flax.traverse_util as traverse
import jax
import numpy as np
import orbax.checkpoint as ocp

from jvq.core import reading

Arrays = dict[str, np.ndarray]
ITEMS = ("default", "params", "state")


def read(path: Path) -> Arrays:
    """The tree's arrays by their paths. ``ValueError`` where orbax cannot read the folder."""
    folder = next((path / item for item in ITEMS if (path / item).is_dir()), path).absolute()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree: Any = checkpointer.metadata(folder).item_metadata.tree
            _bearable(tree, folder)
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            found: Any = checkpointer.restore(folder, restore_args=kinds)
    except Exception as error:  # orbax and tensorstore raise of all kinds where a file of theirs is damaged
        raise ValueError(
            f"weights: {path} cannot be read as an orbax checkpoint: {reading.line(_first(error))}"
        ) from None
    flat = traverse.flatten_dict(found, sep="/")
    return {name: np.asarray(x) for name, x in flat.items() if isinstance(x, np.ndarray | jax.Array)}


def _bearable(tree: Any, folder: Path) -> None:
    """``ValueError`` where the arrays, or the pieces that they are stored in, are far larger than the folder."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    total = 0
    for leaf in jax.tree.leaves(tree):
        shapes = (getattr(leaf, "shape", None), getattr(getattr(leaf, "storage", None), "chunk_shape", None))
        width = np.dtype(getattr(leaf, "dtype", None) or np.float32).itemsize
        total += max(math.prod(shape) * width for shape in (*shapes, ()) if shape is not None)
    if total > reading.allowed(size):
        raise ValueError(f"its arrays would take {total} bytes, the folder has {size}; it is refused")


def _first(error: Exception) -> str:
    """The first line of what an error says: tensorstore's go on with where in its own source they are from."""
    return (str(error).splitlines() or [type(error).__name__])[0]
