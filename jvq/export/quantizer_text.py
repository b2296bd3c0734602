"""Quantisers and Specs as JSON values and back: from a file come only classes and fields that are known."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jvq.core.errors import nearest
from jvq.core.quantizer import Quantizer
from jvq.quantizers import Dynamic, Grouped, Learned, ShiftedSigns, Signs, StaticGrouped, Steps, Ternary, Uniform

KINDS: dict[str, type] = {
    "Dynamic": Dynamic,
    "Grouped": Grouped,
    "Learned": Learned,
    "ShiftedSigns": ShiftedSigns,
    "Signs": Signs,
    "StaticGrouped": StaticGrouped,
    "Steps": Steps,
    "Ternary": Ternary,
    "Uniform": Uniform,
}


def written(quantizer: Quantizer) -> list[Any]:
    """``[class, {field: value}]``, every field. ``ValueError`` for a class that no file can name."""
    name = type(quantizer).__name__
    if KINDS.get(name) is not type(quantizer):
        raise ValueError(f"a file names only quantisers of jvq.quantizers, not {name}{nearest(name, KINDS)}")
    return [name, {f.name: getattr(quantizer, f.name) for f in dataclasses.fields(KINDS[name])}]


def read(entry: Any) -> Quantizer:
    """The quantiser that :func:`written` put down. ``ValueError``: an unknown class or field, a value of another type.

    A field that is not there has its default: the file is older than the field.
    """
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        raise ValueError("a quantiser must read [class, {field: value}]")
    name, fields = entry
    if name not in KINDS:
        raise ValueError(f"quantiser {name} is not known{nearest(name, KINDS)}")
    return KINDS[name](**checked(KINDS[name], fields, name))


def checked(kind: type, fields: Any, name: str) -> dict[str, Any]:
    """Fields of the dataclass ``kind`` out of JSON, lists as tuples. ``ValueError``: not its fields, or their types."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"the fields of {name} are no table")
    hints = get_type_hints(kind)
    known = {f.name: hints[f.name] for f in dataclasses.fields(kind)}
    found = {}
    for field, value in fields.items():
        if field not in known:
            raise ValueError(f"{name} has no field '{field}'{nearest(field, known)}")
        if not fits(value, known[field]):
            raise ValueError(f"{name}: field '{field}' cannot be {value!r}")
        found[field] = tuple(value) if isinstance(value, list) else value
    return found


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is one of the type: a list is a tuple, a whole number also a float, a choice its values."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        of = get_args(hint)
        if not isinstance(value, list | tuple):
            return False
        if of[-1] is Ellipsis:
            return all(fits(v, of[0]) for v in value)
        return len(value) == len(of) and all(fits(v, h) for v, h in zip(value, of, strict=True))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return type(value) is hint or (value is None and hint is type(None))
