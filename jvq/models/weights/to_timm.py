"""A checkpoint under timm's names, for ``timm.create_model(...).load_state_dict``: timm 0.9 and newer."""

from pathlib import Path

import flax.traverse_util as traverse
import numpy as np

from jvq.models.layers import Variant
from jvq.models.weights import timm
from jvq.models.weights.native import Checkpoint, write
from jvq.models.weights.spec import open_form, theirs
from jvq.models.weights.table import Arrays

TABLES = {"vit": timm.VIT, "swin": timm.SWIN}


def to_timm(checkpoint: Checkpoint) -> Arrays:
    """timm's ``state_dict`` as float32 arrays. ``ValueError`` for what timm has no name for.

    Positions of the class token that are all zero are left out, as in timm's models with ``no_embed_class``, and folded
    into the class token where there are registers, as in timm's DINOv2.
    """
    model = checkpoint.model
    if model.architecture not in TABLES:
        raise ValueError(f"weights: timm has no model like '{model.architecture}' (vit and swin can be exported)")
    if odd := Variant.of(model.spec).changes:
        raise ValueError(
            f"weights: timm has no model with model.{', model.'.join(odd)}; only the plain one can be exported"
        )
    table, s = TABLES[model.architecture], model.spec
    flat = {name: np.asarray(x) for name, x in traverse.flatten_dict(checkpoint.params, sep="/").items()}
    if model.architecture == "vit":
        if s.pool in ("both", "none") and s.classes:
            raise ValueError(f"weights: timm has no head for model.pool '{s.pool}'; open the checkpoint with classes=0")
        flat |= _positions(flat, s.placed, s.registers)
    out: Arrays = {}
    for name, x in open_form(flat, model).items():
        names = table.names(name)
        if model.architecture == "vit" and s.pool == "mean" and name.startswith("norm/"):
            names = [f"fc_{names[0]}"]
        out |= theirs(names, x, table.row(name).layout)
    return out


def save_timm(checkpoint: Checkpoint, path: Path) -> None:
    """Writes ``to_timm`` to ``path`` (.safetensors), whole or not at all."""
    write(to_timm(checkpoint), path, {"format": "pt"})


def _positions(flat: Arrays, placed: int, registers: int) -> Arrays:
    prefix, patches = flat["pos"][:, :placed], flat["pos"][:, placed:]
    if placed and not prefix.any():
        return {"pos": patches}
    if registers:
        moved = {
            name: flat[name] + prefix[:, i : i + 1] for i, name in enumerate(n for n in ("cls", "dist") if n in flat)
        }
        return {**moved, "pos": patches}
    return {}
