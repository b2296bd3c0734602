"""The contract of a quantiser as a function: ``check(quantizer)`` raises one line with the first clause that it breaks.

Every quantiser of jvq meets it (``tests/test_contracts.py`` runs each clause over the folder); so should yours. A
clause takes the quantiser and an operand, and raises ``ValueError``. What else the quantiser raises goes through.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvq.core.axes import indices
from jvq.core.quantizer import Quantizer, widths

LETTERS, SHAPE = "bnd", (4, 10, 16)  #: image, token, channel
CONSTANTS = (0.0, 3.0, -3.0)
NO_WIDTHS = (0, 17, -1, True)
MEMBERS = ("bits", "check", "apart", "form", "init", "apply", "encode", "overhead")

Clause = Callable[[Any, jax.Array, str], None]
"""``clause(quantizer, x [letters], letters)``: raises ``ValueError`` where the quantiser breaks it on that operand."""


def check(quantizer: Any, letters: str = LETTERS, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> None:
    """Nothing, where the quantiser meets every clause at its own width; else ``ValueError``: the first that it breaks.

    ``letters`` and ``shape`` are those of an operand that the quantiser is for, with several images where it has ``b``.
    """
    x = operand(letters, shape, seed)
    for clause in CLAUSES:
        try:
            clause(quantizer, x, letters)
        except ValueError as error:
            raise ValueError(f"{quantizer!r}: {clause.__name__}: {error}") from None


def operand(letters: str = LETTERS, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> jax.Array:
    """Normal values [letters] of that shape whose last axis has scales from 0.1 to 10: some channels are outliers."""
    if len(letters) != len(shape):
        raise ValueError(
            f"contract: the letters '{letters}' name {len(letters)} axes, the shape {shape} has {len(shape)}"
        )
    scales = np.logspace(-1, 1, shape[-1])
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scales, jnp.float32)


def described(quantizer: Any, x: jax.Array, letters: str) -> None:
    """A hashable frozen dataclass with all members, whose docstring says what the state holds."""
    lacking = [name for name in MEMBERS if not hasattr(quantizer, name)]
    _holds(not lacking, f"it lacks {', '.join(lacking)}")
    made = type(quantizer)
    frozen = dataclasses.is_dataclass(made) and made.__dataclass_params__.frozen  # type: ignore[attr-defined]
    _holds(frozen, "it must be a dataclass with frozen=True")
    try:
        same = hash(quantizer) == hash(dataclasses.replace(quantizer))
    except TypeError as error:
        raise ValueError(f"it must be hashable: {error}") from None
    _holds(same, "equal quantisers must have equal hashes")
    assert isinstance(quantizer, Quantizer), "MEMBERS are those of the protocol"
    _holds("State" in (inspect.getdoc(made) or ""), "the docstring must say what the state holds ('State: ...')")


def refuses(quantizer: Any, x: jax.Array, letters: str) -> None:
    """Widths that it does not have, of 1 to 16 bits or beyond, are refused with ``ValueError: bits must be ...``."""
    others = (*NO_WIDTHS, *(b for b in range(1, 17) if b not in widths(quantizer)))
    for bits in others:
        says = f"check must raise ValueError 'bits must be ...' for bits={bits}"
        try:
            dataclasses.replace(quantizer, bits=bits).check(letters, x.shape)
        except ValueError as error:
            _holds(str(error).startswith("bits must be "), f"{says}, it says '{error}'")
        else:
            raise ValueError(says)


def decodes(quantizer: Any, x: jax.Array, letters: str) -> None:
    """``encode(...).decode()`` is what ``apply`` gives, to the bit, and that is not ``x``; codes have ``bits`` bits."""
    quantizer.check(letters, x.shape)
    state = quantizer.init(x, letters)
    kinds = {str(part.dtype) for part in jax.tree.leaves(state)} - {"float32"}
    _holds(not kinds, f"the state must be float32, it has {', '.join(sorted(kinds))}")
    codes, values = quantizer.encode(state, x, letters), quantizer.apply(state, x, letters)
    _holds(values.shape == x.shape, f"apply must give {x.shape}, it gives {values.shape}")
    _holds(values.dtype == x.dtype, f"apply must give {x.dtype}, it gives {values.dtype}")
    _holds(codes.codes.dtype == jnp.int32, f"the codes must be int32, they are {codes.codes.dtype}")
    least, greatest, most = int(codes.codes.min()), int(codes.codes.max()), 2**quantizer.bits - 1
    _holds(0 <= least and greatest <= most, f"codes must lie in 0 to {most}, they go from {least} to {greatest}")
    _same(codes.decode(), values, "encode(...).decode() must be what apply gives")
    _holds(len(np.unique(values - x)) > 1, "a quantiser that changes nothing is none")


def alone(quantizer: Any, x: jax.Array, letters: str) -> None:
    """An image is quantised the same alone and in a batch."""
    if "b" not in letters:
        return
    (at,) = indices("b", letters)
    state = quantizer.init(x, letters)
    together = quantizer.apply(state, x, letters)
    each = [quantizer.apply(state, jnp.take(x, jnp.array([i]), axis=at), letters) for i in range(x.shape[at])]
    _same(jnp.concatenate(each, axis=at), together, "an image must be quantised the same alone and in a batch")


def finer(quantizer: Any, x: jax.Array, letters: str) -> None:
    """More bits, less error: of those of 2, 4 and 8 bits that it has."""
    errors = []
    for bits in (b for b in (2, 4, 8) if b in widths(quantizer)):
        q = dataclasses.replace(quantizer, bits=bits)
        errors.append(float(jnp.square(q.apply(q.init(x, letters), x, letters) - x).mean()))
    falls = all(a > b for a, b in itertools.pairwise(errors))
    _holds(falls, f"more bits must give less error, mean squares go {_row(errors)}")


def traced(quantizer: Any, x: jax.Array, letters: str) -> None:
    """The width lives in the state: one compiled program serves 3 bits and 5, where it has both."""
    if not {3, 5} <= set(widths(quantizer)):
        return
    traces = []

    @jax.jit
    def run(state: Any, x: jax.Array) -> jax.Array:
        traces.append(1)
        return quantizer.apply(state, x, letters)

    for bits in (3, 5):
        q = dataclasses.replace(quantizer, bits=bits)
        state = q.init(x, letters)
        _same(run(state, x), q.apply(state, x, letters), f"apply must take the width from the state, at {bits} bits")
    _holds(len(traces) == 1, "another width must not compile anew: states of all widths need the same shapes")


def formed(quantizer: Any, x: jax.Array, letters: str) -> None:
    """``form`` does what the quantiser does, and is the same for every width."""
    form, state = quantizer.form, quantizer.init(x, letters)
    same = form == dataclasses.replace(quantizer, bits=7).form == form.form
    _holds(same, "form must leave out the width, and be its own form")
    _same(form.apply(state, x, letters), quantizer.apply(state, x, letters), "form.apply must do what apply does")
    got, want = (q.encode(state, x, letters) for q in (form, quantizer))
    for name, a, b in zip(got._fields, got, want, strict=True):
        _holds((a is None) == (b is None), f"form.encode must give {name} where encode does")
        if a is not None:
            _same(a, b, f"form.encode must give the {name} that encode gives")


def constants(quantizer: Any, x: jax.Array, letters: str) -> None:
    """Of an operand that is one value everywhere, values and gradients stay finite."""
    for value in CONSTANTS:
        flat = jnp.full(x.shape, value, jnp.float32)
        state = quantizer.init(flat, letters)
        slope = jax.grad(lambda y, s=state: quantizer.apply(s, y, letters).sum())(flat)
        for what, found in (("values", quantizer.apply(state, flat, letters)), ("gradients", slope)):
            _holds(bool(np.isfinite(found).all()), f"{what} must stay finite on an operand that is {value} everywhere")


def counts(quantizer: Any, x: jax.Array, letters: str) -> None:
    """``overhead`` is three counts of bit-operations."""
    shape = tuple(1 if a == "b" else n for a, n in zip(letters, x.shape, strict=True))
    found = quantizer.overhead(letters, shape, letters[-1], 320, 16)
    _holds(all(isinstance(part, int) and part >= 0 for part in found), f"overhead must be counts, it is {found}")
    _holds(found.total == sum(found), f"overhead.total must be the sum of its parts, it is {found.total}")


CLAUSES: tuple[Clause, ...] = (described, refuses, decodes, alone, finer, traced, formed, constants, counts)


def _holds(true: bool, says: str) -> None:
    if not true:
        raise ValueError(says)


def _same(got: Any, want: Any, says: str) -> None:
    """Raises ``ValueError`` unless both are equal to the bit."""
    a, b = np.asarray(got), np.asarray(want)
    _holds(a.shape == b.shape, f"{says}: the shapes are {a.shape} and {b.shape}")
    off = a != b
    _holds(not off.any(), f"{says}: {off.sum()} of {off.size} values differ, by up to {_most(a, b):.2g}")


def _most(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())


def _row(numbers: list[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)
