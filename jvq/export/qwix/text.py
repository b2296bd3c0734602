"""Rules as the Python text that makes them."""

import ast
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp


def python_of(rules: Sequence[Any], name: str = "rules") -> str:
    """Python text, to be pasted, that makes the list ``name`` of equal ``qwix.QuantizationRule``; defaults left out."""
    lines, types = [], False
    for rule in rules:
        lines.append(f"    qwix.{type(rule).__name__}(")
        for field in dataclasses.fields(rule):
            value = getattr(rule, field.name)
            if value != field.default:
                text, is_type = _written(field.name, value)
                types |= is_type
                lines.append(f"        {field.name}={text},")
        lines.append("    ),")
    head = ["import jax.numpy as jnp"] * types + ["import qwix"]
    body = [f"{name} = [", *lines, "]"] if lines else [f"{name} = []"]
    return "\n".join([*head, "", *body]) + "\n"


def _written(field: str, value: Any) -> tuple[str, bool]:
    """A field's value as an expression, and whether it is a dtype; ``ValueError`` for what no literal says."""
    text = repr(value)
    try:
        if ast.literal_eval(text) == value:
            return text.replace("'", '"') if isinstance(value, str) and '"' not in value else text, False
    except (ValueError, SyntaxError):
        pass
    try:
        kind = f"jnp.{jnp.dtype(value).name}"
    except TypeError:
        raise ValueError(f"qwix: {field}={text} of a rule cannot be written as Python text") from None
    return kind, True
