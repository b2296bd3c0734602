"""A checkpoint folder of orbax: a tree of arrays, ours by its names, perhaps one item or one step of several."""

from pathlib import Path
from typing import Any

import flax.traverse_util as traverse
import jax
import numpy as np
import orbax.checkpoint as ocp

Arrays = dict[str, np.ndarray]
ITEMS = ("default", "params", "state")


def read(path: Path) -> Arrays:
    """The tree's arrays by their paths. ``ValueError`` where orbax cannot read the folder."""
    folder = next((path / item for item in ITEMS if (path / item).is_dir()), path).absolute()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree: Any = checkpointer.metadata(folder).item_metadata.tree
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            found: Any = checkpointer.restore(folder, restore_args=kinds)
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"weights: {path} cannot be read as an orbax checkpoint: {str(error).splitlines()[0]}"
        ) from None
    flat = traverse.flatten_dict(found, sep="/")
    return {name: np.asarray(x) for name, x in flat.items() if isinstance(x, np.ndarray | jax.Array)}
