"""Quantisers and Specs as JSON values and back: from a file come only classes and fields that are known."""

import dataclasses
from typing import Any

from jvq.core.errors import nearest
from jvq.core.quantizer import Quantizer
from jvq.core.typed import checked, fits
from jvq.quantizers import Dynamic, Grouped, Learned, ShiftedSigns, Signs, StaticGrouped, Steps, Ternary, Uniform

__all__ = ["KINDS", "checked", "fits", "read", "written"]

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
