"""What a file's arrays say about the shape of their model, and the arrays in the axes of that model.

All formats come here under our names (``table.opened``), so a Spec is read off once. What shapes do not tell comes from
``stated``: fields that a configuration beside the file or the caller gives.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util as traverse
import numpy as np

from jvq.models import Model
from jvq.models.positions import sincos
from jvq.models.weights.table import Arrays, Opened, turned

Fields = dict[str, Any]
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # published widths whose heads are not 64 wide: So400m, H, g, G
EPS = {"vit": 1e-6, "swin": 1e-5}


def fields(file: Opened, stated: Mapping[str, Any]) -> Fields:
    """The Spec's fields as the file has them. ``ValueError``: the arrays contradict ``stated`` or do not suffice."""
    found = (vit_fields if file.table.architecture == "vit" else swin_fields)(file, stated)
    for name in ("dim", "depth", "depths", "patch", "heads", "window"):
        said = tuple(stated[name]) if isinstance(stated.get(name), list) else stated.get(name)
        if said is not None and name in found and found[name] != said:
            raise ValueError(f"weights: {file.where}: {name} {said} was stated, its arrays have {found[name]}")
    return found


def stem(file: Opened, stated: Mapping[str, Any]) -> Fields:
    """Patch, channels and width."""
    kernel = file.arrays.get("patch/kernel")
    if kernel is not None and kernel.ndim == 2:  # ours: p, q and c are one axis
        area, dim = kernel.shape
        channels = stated.get("channels") or (3 if area % 3 == 0 and math.isqrt(area // 3) ** 2 * 3 == area else 1)
        return {"patch": math.isqrt(area // channels), "channels": channels, "dim": dim}
    size = file.shape("patch/kernel", "p q c d")
    if size["p"] != size["q"]:
        raise ValueError(f"weights: {file.where}: patches of {size['p']}x{size['q']} pixels; they must be square")
    return {"patch": size["p"], "channels": size["c"], "dim": size["d"]}


def head(file: Opened) -> int:
    """How many classes the file's head has; 0 without one."""
    return file.shape("head/kernel", "d o")["o"] if "head/kernel" in file.arrays else 0


def count(file: Opened, expression: str) -> int:
    """One more than the highest number in our names."""
    return 1 + max((int(found[1]) for name in file.arrays if (found := re.match(expression, name))), default=-1)


# --- ViT ------------------------------------------------------------------------------------------------------------


def vit_fields(file: Opened, stated: Mapping[str, Any]) -> Fields:
    """The fields of ``vit.Spec``."""
    out = stem(file, stated)
    there = file.arrays
    hidden = file.shape("block00/mlp/fc1/kernel", "d o")["o"]
    out |= {
        "depth": count(file, r"block(\d+)/"),
        "heads": vit_heads(file, out["dim"], stated),
        "mlp_ratio": hidden / out["dim"],
        "classes": head(file),
        "class_token": "cls" in there,
        "distill_token": "dist" in there,
        "registers": file.shape("reg", "a n d")["n"] if "reg" in there else 0,
        "representation": file.shape("pre_logits/kernel", "d o")["o"] if "pre_logits/kernel" in there else 0,
        "layer_scale": (stated.get("layer_scale") or 1e-5) if "block00/scale1/gamma" in there else None,
        "eps": stated.get("eps", EPS["vit"]),
        "pool": pool(file, out["dim"], stated),
    }
    if out["distill_token"] and out["classes"] and "head_dist/kernel" not in there:  # DeiT with one head (transformers)
        out |= {"distill_token": False, "registers": out["registers"] + 1}
    return out | {"image": vit_image(file, out, stated)}


def vit_heads(file: Opened, dim: int, stated: Mapping[str, Any]) -> int:
    """From the projection's own axes, else as stated, else as in the published models of that width."""
    kernel = file.arrays.get("block00/attn/qkv/kernel")
    if kernel is not None and kernel.ndim == 4:
        return kernel.shape[2]
    known = stated.get("heads") or HEADS.get(dim, dim // 64)
    if not known or dim % known or (not stated.get("heads") and dim not in HEADS and dim % 64):
        raise ValueError(
            f"weights: {file.where}: how many heads share a width of {dim} is neither in the file nor beside it; "
            "give model.heads"
        )
    return known


def pool(file: Opened, dim: int, stated: Mapping[str, Any]) -> str:
    """How the tokens become what the head sees."""
    if said := stated.get("pool"):
        return said
    if any(name.startswith("fc_norm.") for name in file.origin.get("norm/scale", [])):
        return "mean"  # timm: the mean, then the norm
    if "cls" not in file.arrays:
        return "mean" if file.table.format == "jvq" else "normed_mean"
    if "head/kernel" in file.arrays and file.shape("head/kernel", "d o")["d"] == 2 * dim:
        return "both"
    return "cls"


def vit_image(file: Opened, found: Fields, stated: Mapping[str, Any]) -> tuple[int, int]:
    """The image size (y, x) that the position table is for."""
    patch, said = found["patch"], stated.get("image")
    if "pos" not in file.arrays:
        return said or (224 - 224 % patch,) * 2
    rows = file.shape("pos", "a n d")["n"]
    placed = int("cls" in file.arrays) + int("dist" in file.arrays)
    for prefix in (placed, 0, placed + found["registers"]):  # with a row each, without, with one for registers too
        side = math.isqrt(max(rows - prefix, 0))
        if said is not None and (said[0] // patch) * (said[1] // patch) == rows - prefix:
            return said
        if side and side * side == rows - prefix:
            return side * patch, side * patch
    raise ValueError(
        f"weights: {file.where}: a position table of {rows} rows is no square grid and {placed} tokens; "
        "give model.image as the file has it"
    )


# --- Swin -----------------------------------------------------------------------------------------------------------


def swin_fields(file: Opened, stated: Mapping[str, Any]) -> Fields:
    """The fields of ``swin.Spec``."""
    out = stem(file, stated)
    stages = range(count(file, r"stage(\d+)/"))
    tables = [file.shape(f"stage{i}/block00/attn/bias_table", "n h") for i in stages]
    window = max(((math.isqrt(table["n"]) + 1) // 2 for table in tables), default=0)
    out |= {
        "depths": tuple(count(file, rf"stage{i}/block(\d+)/") for i in stages),
        "heads": tuple(table["h"] for table in tables),
        "window": window,
        "mlp_ratio": file.shape("stage0/block00/mlp/fc1/kernel", "d o")["o"] / out["dim"],
        "classes": head(file),
        "eps": stated.get("eps", EPS["swin"]),
    }
    side = out["patch"] * window * 2 ** (len(stages) - 1)  # the last stage is one window in all published models
    return out | {"image": stated.get("image") or (side, side)}


# --- The arrays -----------------------------------------------------------------------------------------------------


def closed(file: Opened, model: Model, fresh: tuple[str, ...] = ()) -> Arrays:
    """The file's arrays by our flat names, float32, in the model's shapes; zeros for modules in ``fresh``.

    ``ValueError`` lists in the file's own names what is missing, unexpected or of another shape.
    """
    wanted: dict[str, Any] = traverse.flatten_dict(model.shapes(), sep="/")
    arrays = positioned(file, model) if model.architecture == "vit" else dict(file.arrays)
    for name, x in wanted.items():
        if name.split("/")[0] in fresh:
            arrays[name] = np.zeros(x.shape, np.float32)
    lines = [line for name in wanted if name not in arrays for line in file.missing(name)]
    lines += [f"+{name}" for name in file.unexpected]
    lines += [f"+{', '.join(file.origin.get(name, [name]))}" for name in arrays if name not in wanted]
    for name in wanted:
        shape = wanted[name].shape
        if (
            name in arrays
            and (name == "patch/kernel" or "/attn/qkv/" in name)
            and arrays[name].size == math.prod(shape)
        ):
            arrays[name] = arrays[name].reshape(shape)
        if name in arrays and arrays[name].shape != shape:
            called = ", ".join(file.origin.get(name, [name]))
            lines.append(f"~{called} has shape {arrays[name].shape} in our axes, the model {shape}")
    if lines:
        raise file.complaint(lines)
    return {name: arrays[name] for name in wanted}


def positioned(file: Opened, model: Model) -> Arrays:
    """The arrays of a ViT with a row of positions for the class and the distillation token and for no register.

    Where the file adds positions to patches only (DeiT III, big_vision, timm's models with registers) those rows are
    zero; where it adds some to tokens that are registers here, they are added to those once and for all.
    """
    s, arrays = model.spec, dict(file.arrays)
    if "pos" not in arrays and file.table.format == "augreg":  # big_vision's sincos2d has no parameters
        table = sincos(s.grid, s.dim)[None]
        arrays["pos"] = np.concatenate([np.zeros((1, s.placed, s.dim), np.float32), table], axis=1)
    if "pos" not in arrays or "pos" not in file.origin:
        return arrays
    table, patches = arrays["pos"], s.grid[0] * s.grid[1]
    named = int("cls" in arrays) + int("dist" in arrays)
    rows = table.shape[1] - patches
    prefix, table = table[:, : max(rows, 0)], table[:, max(rows, 0) :]
    if rows == 0:
        prefix = np.zeros((1, named, table.shape[-1]), np.float32)
    extra = prefix[:, s.placed :]
    if "dist" in arrays and not s.distill_token:
        reg = [arrays.pop("dist"), *([arrays["reg"]] if "reg" in arrays else [])]
        arrays["reg"] = np.concatenate(reg, axis=1)
        file.origin["reg"] = file.origin.pop("dist") + file.origin.get("reg", [])
    if extra.shape[1] and "reg" in arrays:
        n = extra.shape[1]
        arrays["reg"] = np.concatenate([arrays["reg"][:, :n] + extra, arrays["reg"][:, n:]], axis=1)
    arrays["pos"] = np.concatenate([prefix[:, : s.placed], table], axis=1)
    return arrays


def open_form(flat: Mapping[str, np.ndarray], model: Model) -> Arrays:
    """The inverse of ``closed``: patch kernels as [p q c d], projections as [d s o] and [s o]."""
    s, out = model.spec, dict(flat)
    for name, x in flat.items():
        if name == "patch/kernel":
            out[name] = x.reshape(s.patch, s.patch, s.channels, -1)
        elif name.endswith("attn/qkv/kernel"):
            out[name] = x.reshape(*x.shape[:2], -1)
        elif name.endswith("attn/qkv/bias"):
            out[name] = x.reshape(x.shape[0], -1)
    return out


def theirs(file_names: list[str], array: np.ndarray, layout: str) -> Arrays:
    """One parameter in the open form as the one or three arrays of a format."""
    back = turned(array, layout)
    if len(file_names) == 1:
        return {file_names[0]: back}
    return dict(zip(file_names, back, strict=True))
