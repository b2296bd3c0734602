"""Packed models as a folder: the header as JSON beside the arrays, which orbax keeps.

``deployment.json`` has the header, its digest and the name of the folder with the arrays. It is replaced in one step
when those are there, so the folder holds the old deployment or the new one.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jvq.core import files, reading
from jvq.export.contents import Arrays, Contents, contents, one_line, parsed, restored
from jvq.export.deployment import Deployment
from jvq.models import Model

ABOUT = "deployment.json"
ARRAYS = "arrays"  #: beginning of the name of a folder of orbax's


def save_folder(deployment: Deployment, folder: str | Path) -> None:
    """Writes the deployment to ``folder``, whole or not at all. ``ValueError``: the folder holds something else."""
    import orbax.checkpoint as ocp  # takes seconds, so only who wants a folder pays

    folder, found = Path(folder), contents(deployment)
    if folder.exists() and not (folder.is_dir() and _is_ours(folder)):
        raise ValueError(f"packed: {folder} holds something other than a packed model: use another folder or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    before = sorted(folder.glob(f"{ARRAYS}*"))
    name = next(n for i in range(len(before) + 1) if not (folder / (n := f"{ARRAYS}{i}")).exists())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / name).absolute(), _nested(found.arrays))
    about = {"digest": found.digest, "arrays": name, "header": found.header}
    files.replace(folder / ABOUT, json.dumps(about, indent=1, allow_nan=False), "packed: ")
    for old in before:
        shutil.rmtree(old, ignore_errors=True)


def load_folder(folder: str | Path, model: Model | None = None) -> Deployment:
    """The deployment in ``folder``, its numbers to the bit; checked as a file is (:func:`jvq.export.load`)."""
    folder = Path(folder)
    with reading.shown(f"packed: {folder}"):
        return _load(folder, model)


def _load(folder: Path, model: Model | None) -> Deployment:
    """The same, its errors with whatever letters are in the folder."""
    about = _about(folder)
    header = parsed(json.dumps(about["header"]), str(folder / ABOUT))
    found = Contents(header, _arrays(header["arrays"], folder, about["arrays"]))
    if found.digest != about["digest"]:
        raise ValueError(f"packed: {folder} is damaged or was edited: its digest is not that of its contents")
    return restored(found, str(folder), model)


def _is_ours(folder: Path) -> bool:
    """Whether the folder is empty, has a deployment, or what an interrupted first save left."""
    there = {p.name for p in folder.iterdir()}
    return ABOUT in there or all(name.startswith((ABOUT, ARRAYS)) for name in there)


def _about(folder: Path) -> dict[str, Any]:
    """What ``deployment.json`` says."""
    path = folder / ABOUT
    try:
        about = reading.json_value(path.read_bytes(), f"packed: {path} cannot be read as JSON")
    except FileNotFoundError:
        raise ValueError(f"packed: there is no {path}: the folder holds no packed model, or not a whole one") from None
    except OSError as error:
        raise ValueError(f"packed: {path} cannot be read: {error}") from None
    if not isinstance(about, dict) or set(about) != {"digest", "arrays", "header"}:
        raise ValueError(f"packed: {path} must have digest, arrays and header")
    name = about["arrays"]
    if not isinstance(name, str) or not name.startswith(ARRAYS) or Path(name).name != name:
        raise ValueError(f"packed: {path}: arrays must name a folder {ARRAYS}... beside it, got {name!r}")
    return about


def _nested(arrays: Arrays) -> dict[str, Any]:
    """The arrays as a tree, by the parts of their names: orbax has no slash in a name."""
    tree: dict[str, Any] = {}
    for name, x in arrays.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = x
    return tree


def _arrays(listed: list[Any], folder: Path, name: str) -> Arrays:
    """The arrays that the header lists, in its order."""
    from jvq.models.weights import orbax_folder

    try:
        stored = orbax_folder.read(folder / name)
    except Exception as error:  # orbax and tensorstore raise of all kinds where a file of theirs is damaged
        raise ValueError(f"packed: {folder / name} cannot be read: {one_line(error)}") from None
    wanted = {n: (dtype, tuple(shape)) for n, dtype, shape in listed}
    for n, (dtype, shape) in wanted.items():
        if n not in stored or (str(stored[n].dtype), stored[n].shape) != (dtype, shape):
            raise ValueError(f"packed: {folder / name} is damaged or was edited: {n} is not as the header lists it")
    if more := set(stored) - set(wanted):
        raise ValueError(f"packed: {folder / name} holds more than the header lists: {', '.join(sorted(more))}")
    return {n: np.asarray(stored[n]) for n in wanted}
