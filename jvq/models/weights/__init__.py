"""Weights: from a name or a path to a checkpoint; one format a file."""

import dataclasses
import difflib
from importlib import resources
from pathlib import Path

from jvq.core.errors import nearest
from jvq.models import build, vit
from jvq.models.weights.native import Checkpoint, load, save

__all__ = ["EMBEDDED", "Checkpoint", "load", "open_weights", "resized", "save"]

EMBEDDED = ("fashion_vit",)  #: checkpoints inside the package


def open_weights(name: str) -> Checkpoint:
    """The checkpoint of an embedded name (``"fashion_vit"``) or of a ``.safetensors`` file that jvq wrote."""
    if name in EMBEDDED:
        with resources.as_file(resources.files("jvq") / "assets" / f"{name}.safetensors") as path:
            return load(path)
    path = Path(name)
    if path.is_file():
        return load(path)
    if path.suffix or "/" in name:
        there = [p.name for p in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, there, n=3) or there[:3]
        beside = f"; beside it: {', '.join(close)}" if close else ""
        raise ValueError(f"weights: no file '{name}'{beside}; embedded checkpoints: {', '.join(EMBEDDED)}")
    raise ValueError(f"weights: '{name}' is neither an embedded checkpoint nor a file{nearest(name, EMBEDDED)}")


def resized(checkpoint: Checkpoint, image: tuple[int, int]) -> Checkpoint:
    """The checkpoint for images of another size (y, x): position table and preprocessing follow."""
    old = checkpoint.model.spec
    model = build(checkpoint.model.architecture, {**dataclasses.asdict(old), "image": image})
    table = vit.resize_positions(checkpoint.params["pos"], old.grid, model.spec.grid, old.prefix)
    preprocess = {**checkpoint.preprocess, "size": image}
    short = checkpoint.preprocess["resize"]
    if short is not None or image != old.image:  # the short side keeps its proportion to the crop
        preprocess["resize"] = round((short or min(old.image)) * min(image) / min(old.image))
    return dataclasses.replace(
        checkpoint, model=model, params={**checkpoint.params, "pos": table}, preprocess=preprocess
    )
