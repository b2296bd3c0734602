"""What a model out of a file may be: of the right types, and no larger than what the file holds can justify.

A Spec says how long tracing takes and which tables a model computes for itself, so that a header of 100 bytes could
stop a machine. Every model of the papers is far below these bounds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvq.core.typed import checked
from jvq.models import ARCHITECTURES, Model, build

PIXELS = 2**24  #: of an image: 4096 x 4096
BLOCKS = 256  #: each takes milliseconds to trace; ViT-22B has 48
WINDOW = 64  #: tokens a side: a window's table of positions grows with its fourth power
SHIFTED = 2**25  #: numbers of a table of which tokens a shift brought together
NUMBER = 2**31 - 1


def built(architecture: Any, fields: Any, where: str) -> Model:
    """The model of fields out of a file. ``ValueError``: an unknown name, a wrong type, more than can be meant."""
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        return build(str(architecture), {})  # says which there are
    fields = checked(ARCHITECTURES[architecture][0], fields, f"the Spec of '{architecture}'")
    said = {f.name: f.default for f in dataclasses.fields(ARCHITECTURES[architecture][0])} | fields
    for name, value in said.items():
        if any(isinstance(x, int | float) and abs(x) > NUMBER for x in numbers(value)):
            raise ValueError(f"{where}: model.{name} is {value}, more than a model can have")
    signed = ("classes", "registers", "representation", "depths", "clip", "layer_scale", "eps", "depth")  # 0 is allowed
    for name, value in said.items():
        low = 0 if name in signed or isinstance(value, bool) else 1e-6
        if any(x < low for x in numbers(value)):
            raise ValueError(f"{where}: model.{name} must be {'above' if low else 'at least'} zero, got {value}")
    y, x = said["image"]
    window, blocks = said.get("window", 1), sum(numbers(said.get("depths", said.get("depth"))))
    if (
        y * x * max(1, said["channels"] / 4) > PIXELS
        or blocks > BLOCKS
        or len(numbers(said.get("depths", ()))) > BLOCKS
        or window > WINDOW
    ):
        raise ValueError(
            f"{where}: a model of {blocks} blocks for {y}x{x} pixels is more than jvq opens: {BLOCKS} blocks, "
            f"{PIXELS} pixels, windows of {WINDOW}"
        )
    if "window" in said and (y // said["patch"]) * (x // said["patch"]) * min(window, y, x) ** 2 > SHIFTED:
        raise ValueError(f"{where}: windows of {window} on {y}x{x} pixels are more than jvq opens")
    if max(y, x) // said["patch"] < 1 or min(y, x) < 1:
        raise ValueError(f"{where}: images of {y}x{x} pixels have no patch of {said['patch']}")
    return build(architecture, fields)


def asked(architecture: Any, fields: Mapping[str, Any], where: str) -> Model:
    """The same where the fields are also what a user asks for: one that is not known is an option that is not there."""
    if architecture in ARCHITECTURES:
        known = {f.name for f in dataclasses.fields(ARCHITECTURES[architecture][0])}
        for name in fields:
            if name not in known:
                return build(architecture, {name: None})  # says which there are
    return built(architecture, fields, where)


def numbers(value: Any) -> tuple[Any, ...]:
    """The numbers in a field's value; none in a text."""
    if isinstance(value, tuple | list):
        return tuple(x for x in value if isinstance(x, int | float))
    return (value,) if isinstance(value, int | float) else ()


def floats(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The arrays as float32, infinite where that cannot hold them. ``ValueError``: they are no floats."""
    other = [f"{name} ({x.dtype})" for name, x in arrays.items() if not jnp.issubdtype(x.dtype, jnp.floating)]
    if other:
        raise ValueError(f"weights: {where}: parameters must be floats, got {', '.join(other[:6])}")
    with np.errstate(over="ignore", invalid="ignore"):
        return {name: x.astype(np.float32) for name, x in arrays.items()}


def finite(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The arrays as float32. ``ValueError``: they are no floats, not finite, or not in float32."""
    found = floats(arrays, where)
    bad = [name for name, x in found.items() if not np.isfinite(x).all()]
    if bad:
        raise ValueError(f"weights: {where}: values that are not finite (NaN or infinite) in {', '.join(bad[:6])}")
    return found
