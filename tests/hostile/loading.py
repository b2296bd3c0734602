"""Every loader as a run calls it, and what must hold of what it accepts."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from jvq.core import reading
from jvq.data import Preprocess
from jvq.data.folder import read_image
from jvq.models.weights import Checkpoint, open_weights

from . import inputs

GREY = {"mean": [0.5], "std": [0.25], "size": [8, 8], "resize": 8, "interpolation": "bicubic"}


def weights(path: Path) -> Checkpoint:
    """As a run opens them."""
    found = open_weights(str(path), model={"heads": 2} if path.suffix != ".safetensors" or path.is_dir() else None)
    Preprocess.from_dict(found.preprocess)
    return found


def foreign(path: Path) -> Checkpoint:
    found = open_weights(str(path), model={"heads": 2})
    Preprocess.from_dict(found.preprocess)
    return found


def foreign_checkpoint_of(path: Path, data: bytes) -> Checkpoint:
    path.write_bytes(data)
    return foreign(path)


def unpacked(path: Path) -> Any:
    from jvq.export import load, load_folder

    return load_folder(path) if path.is_dir() else load(path)


def labels(path: Path) -> Any:
    from jvq.data.soft_labels import SoftLabels, recover

    found = SoftLabels.open(path, inputs.images())
    records = [found.record(i, inputs.images()[int(place)]["image"]) for i, place in enumerate(found.indices)]
    recover(records[0]["index"], records[0]["value"], found.classes, "smooth")
    return found.indices, np.stack(records)


def image(path: Path) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of what it reads all the same
        found = read_image(path)
    Preprocess.from_dict(GREY)(found)
    return found


def values(path: Path) -> Any:
    from jvq.config import runs

    def tuples(tree: Any) -> Any:  # which JSON lacks
        if isinstance(tree, dict):
            return {name: tuples(x) for name, x in tree.items()}
        return tuple(tuples(x) for x in tree) if isinstance(tree, list) else tree

    try:
        tree = tuples(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        return {}  # Python's to refuse
    return runs(tree)


def override(path: Path) -> Any:
    """The runs of a config file with overrides, as the command reads them; what it would print, where it refuses."""
    from absl import flags
    from ml_collections import config_flags

    from jvq import main
    from jvq.config import runs

    fresh, said = flags.FlagValues(), path.read_text()
    file = Path(main.__file__).parents[1] / "configs" / "igq_demo.py"
    config_flags.DEFINE_config_file("config", None, "", flag_values=fresh, lock_config=True)
    arguments = ["", f"--config={file}", *said.split("\x1f")]
    try:
        # ml_collections looks there for what is overridden, and loads the file in a way that Python deprecates
        with mock.patch.object(sys, "argv", arguments), warnings.catch_warnings(action="ignore"):
            fresh(arguments)
    except Exception as error:
        raise ValueError(reading.line(" ".join(main._text(error).split()))) from None  # the command's one line
    return runs(fresh.config)


def step(path: Path) -> Any:
    from jvq.checkpoints import Keeper

    keeper = Keeper(path, {"model": "x", "bits": [4, 3]}, scored=True)
    try:
        return keeper.restored({"w": np.zeros(6, np.float32), "step": np.int32(0)})
    finally:
        keeper.close()


def written_down(path: Path) -> dict[str, Any]:
    from jvq.journal import Journal

    return dict(Journal(path, "abc"))


# --- What must hold -------------------------------------------------------------------------------------------------


def whole_model(right: Checkpoint, got: Checkpoint) -> str:
    """A model that can run: float32 parameters of its shapes, all finite."""
    wanted = jax.tree.map(lambda x: (x.shape, "float32"), got.model.shapes())
    if jax.tree.map(lambda x: (x.shape, str(x.dtype)), got.params) != wanted:
        return "parameters of other shapes than the model's"
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(got.params)):
        return "values that are not finite"
    if got.model.spec != right.model.spec:
        jax.eval_shape(got.model.forward, got.params, jax.ShapeDtypeStruct((1, *got.model.image), "float32"))
    return ""


def identical(right: Any, got: Any) -> str:
    """The same to the bit."""
    a, b = jax.tree.leaves(right), jax.tree.leaves(got)
    if len(a) != len(b) or any(np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in zip(a, b, strict=True)):
        return "other numbers, in a format with a checksum"
    return ""


def deployed(right: Any, got: Any) -> str:
    """Arrays to the bit, as the digest was not touched; a header that was edited and signed anew may say otherwise."""
    if got.model.spec != right.model.spec or got.plan != right.plan:
        jax.eval_shape(got.forward, jax.ShapeDtypeStruct((1, *got.model.image), "float32"))
        return ""
    return identical((right.params, right.qstate), (got.params, got.qstate))


def pixels(_: np.ndarray, got: np.ndarray) -> str:
    """An image of a bearable size."""
    return (
        "" if got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3 and got.size else f"{got.dtype} {got.shape}"
    )


def labelled(_: Any, got: Any) -> str:
    """Images that a loader takes. A zip file's checksums do not tell who wrote them."""
    fine = got.images.dtype == np.uint8 and got.images.ndim == 4 and got.labels.shape == got.images.shape[:1]
    return "" if fine else f"{got.images.dtype} {got.images.shape} {got.labels.shape}"


def plain(right: Any, got: Any) -> str:
    return ""


def strings(right: Any, got: dict[str, Any]) -> str:
    return "" if all(isinstance(key, str) for key in got) else "keys that are no text"
