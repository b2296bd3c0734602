"""From a file or folder of any format to a checkpoint, for the classes and the image size that are asked for."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util as traverse
import numpy as np

from jvq.core import reading
from jvq.models import Model, build, vit
from jvq.models.altering import FIELDS, altered
from jvq.models.weights import augreg, beside, bounds, files, huggingface, native, spec, timm, tree
from jvq.models.weights.native import Checkpoint
from jvq.models.weights.table import choose, opened

TABLES = (timm.VIT, timm.SWIN, huggingface.VIT, huggingface.SWIN, augreg.VIT, tree.VIT, tree.SWIN)
HEADS = ("head", "head_dist")


def open_path(
    path: Path, *, model: Mapping[str, Any] | None = None, preprocess: Mapping[str, Any] | None = None
) -> Checkpoint:
    """The checkpoint in a file or a folder.

    ``model`` has fields of the architecture's Spec. Another ``classes`` than the file's puts a head of zeros in the
    place of its own (0: none), another ``image`` resizes the positions, ``merged``, ``qk_norm``, ``clip`` and
    ``softmax`` alter it (:mod:`jvq.models.altering`), other fields say what the file does not. ``preprocess`` replaces
    fields of what the images go through. ``ValueError`` in one line.
    """
    with reading.shown(f"weights: {path}"):
        return _open(path, model, preprocess)


def _open(path: Path, model: Mapping[str, Any] | None, preprocess: Mapping[str, Any] | None) -> Checkpoint:
    """The same, its errors with whatever letters are in the file."""
    path, asked = files.located(path), dict(model or {})
    other = {name: asked.pop(name) for name in FIELDS if name in asked}
    if "image" in asked:
        asked["image"] = beside.pair(asked["image"], "model.image")
    kind = files.format_of(path) if path.suffix == ".safetensors" and path.is_file() else ""
    if kind.startswith("jvq-") and kind != native.FORMAT:
        raise ValueError(
            f"weights: {path} is not a float checkpoint of jvq but has its packed weights (format: {kind}), "
            "which run as they are and cannot be quantised again"
        )
    found = _ours(path, asked) if kind == native.FORMAT else _foreign(path, asked)
    fields = beside.checked(found.preprocess, preprocess, str(path))
    changed, params = altered(found.model, found.params, where=str(path), **other)
    found = dataclasses.replace(found, model=changed, params=params, preprocess=fields)
    return resized(found, asked.get("image") or tuple(fields["size"]))


def _ours(path: Path, asked: dict[str, Any]) -> Checkpoint:
    """A checkpoint that jvq wrote."""
    found = native.load(path)
    changes = {name: value for name, value in asked.items() if name != "image"}
    if not changes:
        return found
    old = found.model.spec
    model = build(found.model.architecture, {**dataclasses.asdict(old), **changes})
    flat = {name: np.asarray(x) for name, x in traverse.flatten_dict(found.params, sep="/").items()}
    notes = dict(found.notes)
    if model.spec.classes != old.classes:
        flat = {name: x for name, x in flat.items() if name.split("/")[0] not in HEADS}
        wanted: dict[str, Any] = traverse.flatten_dict(model.shapes(), sep="/")
        flat |= {name: np.zeros(x.shape, np.float32) for name, x in wanted.items() if name.split("/")[0] in HEADS}
        if not model.spec.classes:
            flat = {name: x for name, x in flat.items() if not name.startswith("pre_logits/")}
        notes["head"] = "new" if model.spec.classes else "none"
    return dataclasses.replace(found, model=model, params=native.fitted(flat, model, str(path)), notes=notes)


def _foreign(path: Path, asked: dict[str, Any]) -> Checkpoint:
    """A checkpoint that somebody else wrote, read by the table that knows its names."""
    folder = path if path.is_dir() else path.parent
    config = beside.read(folder, "config.json")
    table, arrays = choose(TABLES, files.read(path), str(path))
    stated = {name: value for name, value in asked.items() if name not in ("classes", "size")}
    if asked.get("size"):
        stated |= _of_size(table.architecture, asked["size"])
    stated |= beside.stated(config, str(folder / "config.json"))
    stated |= {name: value for name, value in asked.items() if name in ("eps", "heads", "pool", "layer_scale")}
    file = opened(table, arrays, str(path))
    fields = spec.fields(file, stated)
    notes: dict[str, Any] = {"file": path.name, "format": table.format}
    if file.ignored:
        notes["ignored"] = sorted(file.ignored)
    fields |= {name: value for name, value in asked.items() if name not in ("classes", "image", "size")}
    classes, fresh = asked.get("classes", fields["classes"]), ()
    if classes != fields["classes"]:
        fresh, notes["head"] = HEADS, "new" if classes else "none"
        gone = HEADS if classes else (*HEADS, "pre_logits")
        fields |= {"classes": classes} | ({} if classes or table.architecture == "swin" else {"representation": 0})
        kept = {name: x for name, x in file.arrays.items() if name.split("/")[0] not in gone}
        file = dataclasses.replace(file, arrays=kept)
    model = bounds.asked(table.architecture, fields, f"weights: {path}")
    params = native.parameters(spec.closed(file, model, fresh), str(path))
    before = beside.read(folder, "preprocessor_config.json")
    preprocess, notes["preprocess"] = beside.preprocess(model, path, table.format, (config, before))
    return Checkpoint(model, params, preprocess, notes)


def _of_size(architecture: str, size: str) -> dict[str, Any]:
    """What a size by name (``"S/16"``, ``"T"``) states."""
    named, names = build(architecture, {"size": size}).spec, ["dim", "depth", "depths", "heads"]
    names += ["patch"] if "/" in size else []
    return {name: getattr(named, name) for name in names if hasattr(named, name)}


def resized(checkpoint: Checkpoint, image: tuple[int, int]) -> Checkpoint:
    """The checkpoint for images of another size (y, x): position table and preprocessing follow."""
    old, params, preprocess = checkpoint.model.spec, checkpoint.params, dict(checkpoint.preprocess)
    model: Model = build(checkpoint.model.architecture, {**dataclasses.asdict(old), "image": image})
    if "pos" in params and image != old.image:
        params = {**params, "pos": vit.resize_positions(params["pos"], old.grid, model.spec.grid, old.placed)}
    size, short = tuple(preprocess["size"]), preprocess["resize"]
    if image != size:
        preprocess["size"] = list(image)
        preprocess["resize"] = round((short or min(size)) * min(image) / min(size))  # keeps its proportion to the crop
    return dataclasses.replace(checkpoint, model=model, params=params, preprocess=preprocess)
