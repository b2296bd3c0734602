"""Whether JSON values are of the types that a dataclass wants: from a file come only fields that are known."""

import dataclasses
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jvq.core.errors import nearest


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
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return type(value) is hint or (value is None and hint is type(None))
