"""What configurations beside a file say: of the model (``stated``) and of what its images must go through.

``config.json`` of timm or transformers, ``preprocessor_config.json`` of transformers. Without them: what a family's
authors evaluate with.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvq.core import reading
from jvq.core.errors import nearest
from jvq.core.typed import fits
from jvq.models import Model

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
FAMILIES = {  # normalisation, share of the short side that the crop keeps (timm's)
    "augreg": (HALF, 0.9),
    "deit": (IMAGENET, 0.9),
    "deit3": (IMAGENET, 1.0),
    "dinov2": (IMAGENET, 1.0),
    "dino": (IMAGENET, 0.9),
    "mae": (IMAGENET, 0.9),
    "swin": (IMAGENET, 0.9),
}
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
FILTERS = ("bicubic", "bilinear")  # what jvq's preprocessing has
FIELDS = ("size", "resize", "interpolation", "mean", "std")
SIDE = 2**14  #: pixels that an image may have
STATED: dict[str, Any] = {  # what a configuration may state of a model
    "image": tuple[int, int],
    "eps": float,
    "layer_scale": float,
    "depths": tuple[int, ...],
    "heads": int | tuple[int, ...],
    "pool": str,
}
MODEL_TYPES = {"vit", "deit", "dinov2", "dinov2_with_registers", "swin"}

Config = dict[str, Any]


def read(folder: Path, name: str) -> Config:
    """The JSON object in a file of the folder; empty where there is none."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        found = reading.json_value(path.read_bytes(), f"weights: {path} cannot be read as JSON")
    except OSError as error:
        raise ValueError(f"weights: {path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"weights: {path} holds no JSON object")
    return found


def pair(size: Any, where: str) -> tuple[int, int]:
    """A size as (y, x), out of a number, a pair or an object of transformers."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or (size.get("height"), size.get("width"))
    if isinstance(size, int):
        size = (size, size)
    if not fits(size, tuple[int, int]) or not all(0 < n <= SIDE for n in size):
        raise ValueError(
            f"weights: {where}: an image size must be one or two positive numbers, got {size} (at most {SIDE})"
        )
    return size[0], size[1]


def stated(config: Config, where: str) -> dict[str, Any]:
    """Fields of a Spec that a ``config.json`` states. ``ValueError`` for a model that jvq cannot compute."""
    with reading.shown(f"weights: {where}: a value of another type than it must have", *reading.BROKEN):
        found = _of_transformers(config, where) if "model_type" in config else _of_timm(config, where)
    for name, value in found.items():
        value = list(value) if isinstance(value, tuple) else value
        if not fits(value, STATED.get(name, int)):
            raise ValueError(f"weights: {where}: what it says of {name} cannot be {value!r}")
    return found


def _of_timm(config: Config, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "architecture" in config:  # timm
        args = config.get("model_args") or {}
        names = {"num_heads": "heads", "embed_dim": "dim", "window_size": "window"}
        found = {ours: args[name] for name, ours in names.items() if name in args}
        size = config.get("pretrained_cfg", config).get("input_size")
        if size:
            found["image"] = pair(size[1:], where)
    return found


def _of_transformers(config: Config, where: str) -> dict[str, Any]:
    kind = config["model_type"]
    if kind not in MODEL_TYPES:
        raise ValueError(f"weights: {where}: model_type '{kind}' is not one of jvq's{nearest(kind, MODEL_TYPES)}")
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"weights: {where}: hidden_act '{config['hidden_act']}' is not built, only 'gelu'")
    if config.get("use_swiglu_ffn"):
        raise ValueError(f"weights: {where}: a feed-forward with SwiGLU is not built (use_swiglu_ffn)")
    names = {"layer_norm_eps": "eps", "patch_size": "patch", "num_channels": "channels"}
    if kind == "swin":
        names |= {"embed_dim": "dim", "depths": "depths", "num_heads": "heads", "window_size": "window"}
    else:
        names |= {"hidden_size": "dim", "num_hidden_layers": "depth", "num_attention_heads": "heads"}
        names |= {"layerscale_value": "layer_scale"}
    found = {ours: config[name] for name, ours in names.items() if config.get(name) is not None}
    found |= {name: float(found[name]) for name in ("eps", "layer_scale") if name in found}
    if "image_size" in config:
        found["image"] = pair(config["image_size"], where)
    heads = [a for a in config.get("architectures") or () if "ForImageClassification" in a]
    if kind.startswith("dinov2") and heads:
        found["pool"] = "both"
    return found


def family(architecture: str, kind: str, fields: Mapping[str, Any], path: Path, config: Config) -> str:
    """The family of a file whose configuration says nothing of images: by format, by name, by what its model has."""
    if architecture == "swin":
        return "swin"
    if named := config.get("model_type"):
        return {"vit": "augreg", "deit": "deit"}.get(named, "dinov2")
    if kind == "augreg":
        return "augreg"
    name = f"{path.parent.name}/{path.name}/{config.get('architecture', '')}".lower()
    for known in ("dinov2", "dino", "deit3", "augreg", "deit", "mae"):
        if known in name or (known == "deit3" and "deit_3" in name):
            return known
    if fields["layer_scale"] is not None:
        return "dinov2" if fields["patch"] == 14 else "deit3"
    return "deit" if fields["distill_token"] else "augreg"


def preprocess(model: Model, path: Path, kind: str, configs: tuple[Config, Config]) -> tuple[dict[str, Any], str]:
    """The fields of jvq's preprocessing, and a word on where they are from."""
    with reading.shown(f"weights: {path.parent}: a value of another type than it must have", *reading.BROKEN):
        return _preprocess(model, path, kind, configs)


def _preprocess(model: Model, path: Path, kind: str, configs: tuple[Config, Config]) -> tuple[dict[str, Any], str]:
    config, processor = configs
    if processor:
        return _of_processor(processor, str(path.parent / "preprocessor_config.json")), "preprocessor_config.json"
    timm = config.get("pretrained_cfg", config) if "architecture" in config else {}
    if "mean" in timm:
        size = pair(timm.get("input_size", (3, *model.spec.image))[1:], str(path.parent / "config.json"))
        normal = {"mean": tuple(timm["mean"]), "std": tuple(timm["std"])}
        how = timm.get("interpolation") or "bicubic"
        return _fields(size, timm.get("crop_pct") or 0.875, how, normal), "config.json"
    fields = {"layer_scale": None, "distill_token": False, "patch": 0}
    fields |= {name: getattr(model.spec, name) for name in fields if hasattr(model.spec, name)}
    named = family(model.architecture, kind, fields, path, config)
    normal, crop = FAMILIES[named]
    if model.architecture == "swin" and model.spec.image[0] > 224:
        crop = 1.0
    if model.spec.channels == 1:
        normal = {name: (sum(values) / len(values),) for name, values in normal.items()}
    return _fields(model.spec.image, crop, "bicubic", normal), f"as is usual for {named}"


def _fields(size: tuple[int, int], crop: float, interpolation: str, normal: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": size, "resize": math.floor(min(size) / crop), "interpolation": interpolation, **normal}


def _of_processor(config: Config, where: str) -> dict[str, Any]:
    """transformers' image processor. One that squashes to a square is read as short side and centre."""
    scale = config.get("rescale_factor", 1 / 255)
    if abs(scale * 255 - 1) > 1e-3:
        raise ValueError(f"weights: {where}: rescale_factor {scale} is not 1/255; give preprocess yourself")
    short = pair(config.get("size", 224), where)
    crops = config.get("do_center_crop", "crop_size" in config)
    size = pair(config.get("crop_size", 224), where) if crops else short
    share = config.get("crop_pct")
    resize = min(size) if not crops and not share else math.floor(min(size) / share) if share else min(short)
    normal = config.get("do_normalize", True)
    mean, std = (tuple(config.get(f"image_{name}", HALF[name])) for name in ("mean", "std"))
    if not normal:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    return {
        "size": size,
        "resize": resize if config.get("do_resize", True) else None,
        "interpolation": RESAMPLE.get(config.get("resample", 3), "unknown"),
        "mean": mean,
        "std": std,
    }


def checked(fields: dict[str, Any], given: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """The fields with the caller's on top, as JSON holds them. ``ValueError`` for what jvq's preprocessing lacks."""
    for name in given or {}:
        if name not in FIELDS:
            raise ValueError(f"weights: preprocess has no '{name}'{nearest(name, FIELDS)}")
    out = {**fields, **(given or {})}
    if lacking := [name for name in FIELDS if name not in out]:
        raise ValueError(f"weights: {where}: what its images go through has no {', '.join(lacking)}")
    out["size"] = pair(out["size"], f"{where}: preprocess.size")
    short, normal = out["resize"], (out["mean"], out["std"])
    if short is not None and not (fits(short, int) and 0 < short <= SIDE):
        raise ValueError(f"weights: {where}: preprocess.resize must be from 1 to {SIDE}, or None, got {short!r}")
    if not all(x and fits(x, tuple[float, ...]) for x in normal) or min(out["std"]) <= 0:
        raise ValueError(f"weights: {where}: preprocess.mean and .std must be numbers, got {normal!r}")
    if not isinstance(out["interpolation"], str) or out["interpolation"] not in FILTERS:
        how = str(out["interpolation"])
        raise ValueError(
            f"weights: {where}: images are resized by '{how}', which jvq has not"
            f"{nearest(how, FILTERS)}; give preprocess.interpolation"
        )
    return {name: list(x) if isinstance(x, tuple) else x for name, x in out.items()}
