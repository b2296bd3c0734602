"""A run's configuration: typed dataclasses inside, an ``ml_collections.ConfigDict`` with every option outside."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from jvq.core import reading
from jvq.core.errors import nearest
from jvq.core.typed import fits
from jvq.methods import METHODS

WIDTHS = ("bits", "weight_bits", "act_bits", "edge_bits")  #: options that the rows of a table share


@dataclasses.dataclass(frozen=True)
class Data:
    """Where images come from. Sizes, cropping and normalisation belong to the checkpoint, not here."""

    name: str = "fashion"  # fashion | folder | npz | tfds:NAME
    dir: str | None = None  # of a folder, an npz file or prepared tfds data
    train: str = "train"  # split that calibration and training draw from
    test: str = "test"  # split that is evaluated
    calibration: int = 32  # images, drawn by the seed
    images: int | None = None  # evaluate only the first so many
    batch: int = 250  # images evaluated at once; never changes a result
    workers: int = 0  # processes that read images; 0: threads, -1: as the cores ask; never changes a result

    def __post_init__(self) -> None:
        for name in ("calibration", "images", "batch"):
            _least(1, f"data.{name}", getattr(self, name))
        _least(-1, "data.workers", self.workers)


@dataclasses.dataclass(frozen=True)
class Devices:
    """On which devices a run is. Their number changes no state and no plan (docs/devices.md)."""

    data: int | None = None  # parts of a batch of images; None: as many as there are devices for
    model: int = 1  # parts of the wide weights that rules names
    rules: str = ""  # "block.*/mlp/fc1/kernel=.m": regular expression, a letter for each axis: . whole, m in parts

    def __post_init__(self) -> None:
        for name in ("data", "model"):
            _least(1, f"mesh.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a run needs to know."""

    name: str
    method_name: str
    method: Any  # the method's Options
    weights: str = ""  # embedded or public name, or path; "" for training from scratch
    model: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # Spec fields: from scratch, or over the weights'
    preprocess: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of what is trained, or over the weights'
    resolution: int | None = None  # pixels a side, instead of the checkpoint's; positions are interpolated
    data: Data = dataclasses.field(default_factory=Data)
    rules: str = ""  # "pattern=bits,pattern=float": changes to the method's recipe, last match wins
    seed: int = 0
    needs: str = ""  # what has to be fetched before this can run, said where it is missing
    rows: Mapping[str, tuple[str, Any]] = dataclasses.field(default_factory=dict)  # more rows: method, its Options
    widths: str = ""  # "W8A8,W4A4": all of these instead of the method's bits, in one table (jvq.sweep)
    seeds: int = 1  # calibration sets, drawn by seed, seed + 1, ...: means and spreads over them (jvq.sweep)
    order: str = ""  # "minmax<igq<igq_12": rows from worse to better, tested in pairs at every width (jvq.sweep)
    parts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # instead of this run several: name, changes
    mesh: Devices = dataclasses.field(default_factory=Devices)
    figures: bool = True  # draw what report.html shows: ten seconds or so

    def __post_init__(self) -> None:
        _least(1, "resolution", self.resolution)
        _least(0, "seed", self.seed)
        _least(1, "seeds", self.seeds)


def config(
    name: str,
    method: str,
    *,
    weights: str = "",
    resolution: int | None = None,
    model: Mapping[str, Any] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    rules: str = "",
    seed: int = 0,
    needs: str = "",
    rows: Mapping[str, Mapping[str, Any]] | None = None,
    widths: str = "",
    seeds: int = 1,
    order: str = "",
    parts: Mapping[str, Mapping[str, Any]] | None = None,
    mesh: Mapping[str, Any] | None = None,
    figures: bool = True,
    **options: Any,
) -> ml_collections.ConfigDict:
    """A ConfigDict that shows every option of the method and the data, so that each can be overridden.

    ``options`` are fields of the method's ``Options``; the run's ``seed`` is also the method's. ``rows`` are shown
    beside the method and its baselines: ``{"percentile": {"name": "minmax", "range": "percentile"}}``, at the
    method's widths where they have none of their own; rows of the same method have all its options but what they
    name. ``parts`` make several runs of one command, in the order of their names, each with a folder of its own:
    ``{"swin": {"weights": "fashion_swin"}}`` says what differs from what stands here.
    """
    chosen = _method(method).Options
    return ml_collections.ConfigDict(
        {
            "name": name,
            "weights": weights,
            "resolution": config_dict.placeholder(int) if resolution is None else resolution,
            "model": dict(model or {}),
            "preprocess": dict(preprocess or {}),
            "data": _shown(Data, data or {}, "data"),
            "method": {"name": method, **_shown(chosen, options, "method")},
            "rules": rules,
            "seed": seed,
            "needs": needs,
            "rows": {label: dict(row) for label, row in (rows or {}).items()},
            "widths": widths,
            "seeds": seeds,
            "order": order,
            "parts": {label: dict(changes) for label, changes in (parts or {}).items()},
            "mesh": _shown(Devices, mesh or {}, "mesh"),
            "figures": figures,
        }
    )


def runs(cfg: Any) -> dict[str, Run]:
    """The runs of a config by the names of their parts: a single one, named "", where it has none."""
    with reading.shown("config"):
        return _runs(cfg)


def _runs(cfg: Any) -> dict[str, Run]:
    """The same, its errors with whatever letters are in the config."""
    whole = typed(cfg)
    if not whole.parts:
        return {"": whole}
    tree, found = cfg.to_dict() if isinstance(cfg, ml_collections.ConfigDict) else dict(cfg), {}
    for label, changes in whole.parts.items():
        part = {**tree, "parts": {}, "name": f"{whole.name}_{label}"}
        for key, value in _mapping(changes, f"parts.{label}").items():
            part[key] = {**tree[key], **_mapping(value, key)} if key in ("data", "method", "mesh") else value
        found[label] = typed(part)
    return found


def typed(cfg: Any) -> Run:
    """The typed run of a config; ``ValueError`` with the nearest key for one that does not exist, or a wrong type."""
    if not isinstance(cfg, (Mapping, ml_collections.ConfigDict)):
        raise ValueError(f"config: get_config must return what jvq.config.config makes, got {type(cfg).__name__}")
    tree = cfg.to_dict() if isinstance(cfg, ml_collections.ConfigDict) else dict(cfg)
    shared = {"seed": tree.get("seed", 0)}
    kind, options = _options(tree.pop("method", {}), "method", shared)
    shared |= {name: getattr(options, name) for name in WIDTHS if hasattr(options, name)}
    rows = _mapping(tree.get("rows", {}), "rows")
    own = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}  # rows differ in what they name
    of = {
        label: {**own, **shared} if _mapping(row, label).get("name") == kind else shared for label, row in rows.items()
    }
    tree["rows"] = {label: _options(row, f"rows.{label}", of[label]) for label, row in rows.items()}
    tree["data"] = _made(Data, tree.get("data", {}), "data")
    tree["mesh"] = _made(Devices, tree.get("mesh", {}), "mesh")
    return _made(Run, {**tree, "method_name": kind, "method": options}, "config")


def _options(given: Any, where: str, shared: Mapping[str, Any]) -> tuple[str, Any]:
    """A method's name and its Options; ``shared`` are values of options that it has and that are not given."""
    fields = dict(_mapping(given, where))
    if "name" not in fields:
        raise ValueError(f"config: {where}.name is missing{nearest('', METHODS)}")
    kind = str(fields.pop("name"))
    options = _method(kind).Options
    known = {f.name for f in dataclasses.fields(options)}
    return kind, _made(options, {**{k: v for k, v in shared.items() if k in known}, **fields}, where)


def _method(name: str) -> Any:
    if name not in METHODS:
        raise ValueError(f"method '{name}' is not known{nearest(name, METHODS)}")
    return METHODS[name]


def _shown(kind: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All fields of a dataclass with their values; those that may be None as typed placeholders."""
    values = dataclasses.asdict(_made(kind, given, where))
    hints = typing.get_type_hints(kind)
    shown = {}
    for name, value in values.items():
        inner = _inner(hints[name])
        shown[name] = config_dict.placeholder(inner[0]) if value is None else value
    return {name: value for name, value in shown.items() if name != "seed"}


def _made(kind: type, given: Any, where: str) -> Any:
    """The dataclass from a mapping, keys and types checked."""
    hints = typing.get_type_hints(kind)
    prefix = "" if where == "config" else f"{where}."
    values = {}
    for name, value in _mapping(given, where).items():
        if name not in hints:
            raise ValueError(f"config: there is no option '{prefix}{name}'{nearest(name, hints)}")
        values[name] = _fitting(value, hints[name], f"{prefix}{name}")
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"config: {prefix}{field.name} is missing")
    return kind(**values)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"config: {name} must be a mapping of options, got {value!r}")
    return value


def _least(least: int, name: str, value: int | None) -> None:
    if value is not None and value < least:
        raise ValueError(f"config: {name} must be at least {least}, got {value}")


def _inner(hint: Any) -> tuple[type, ...]:
    """The plain types that a hint admits, None left out; a Literal counts as str, a generic as its origin."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(t for part in typing.get_args(hint) if part is not type(None) for t in _inner(part))
    origin = typing.get_origin(hint)
    return (str,) if origin is typing.Literal else (origin or hint,)


def _fitting(value: Any, hint: Any, name: str) -> Any:
    """The value, whole numbers made floats where a float is wanted; ``ValueError`` where the type is wrong."""
    if hint is Any:
        return value
    kinds = _inner(hint)
    optional = type(None) in typing.get_args(hint)
    if value is None and optional:
        return None
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if wrong_bool or not isinstance(value, kinds):
        wanted = " or ".join(k.__name__ for k in kinds) + (" or None" if optional else "")
        raise ValueError(f"config: {name} must be {wanted}, got {value!r}")
    if isinstance(value, tuple) and not fits(value, hint):
        raise ValueError(f"config: {name} must be {str(hint).replace('typing.', '')}, got {value!r}")
    if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
        raise ValueError(f"config: {name}: got '{value}'{nearest(str(value), typing.get_args(hint))}")
    return value
