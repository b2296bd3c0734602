"""Axis letters: the only way this project names an axis.

An equation such as ``"bnd,do->bno"`` gives every operand its letters; the glossary is in :mod:`jvq.core.dot`.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from jvq.core.errors import nearest


def split(equation: str) -> tuple[tuple[str, ...], str]:
    """The operands' letters and the product's letters: ``"bnd,do->bno"`` gives ``(("bnd", "do"), "bno")``."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    if not arrow:
        raise ValueError(f"equation '{equation}' has no '->': write the product's letters too, e.g. 'bnd,do->bno'")
    operands = tuple(left.split(","))
    for letters in (*operands, out):
        if not letters.isalpha() or len(set(letters)) != len(letters):
            raise ValueError(f"equation '{equation}': '{letters}' must be distinct letters, one an axis")
    return operands, out


def contracted(letters: str, out: str) -> str:
    """Those of an operand's letters that the product sums over (absent from the product's letters)."""
    return "".join(a for a in letters if a not in out)


def indices(letters: str, of: str) -> tuple[int, ...]:
    """The positions of ``letters`` in the operand letters ``of``."""
    return tuple(of.index(a) for a in letters)


def others(letters: str, of: str) -> tuple[int, ...]:
    """The positions in ``of`` of all axes that are *not* named by ``letters``: what a reduction runs over."""
    return tuple(i for i, a in enumerate(of) if a not in letters)


def ordered(letters: Iterable[str], of: str) -> str:
    """``letters`` in the order in which they stand in ``of``."""
    chosen = set(letters)
    return "".join(a for a in of if a in chosen)


def expand(x: jax.Array, letters: str, onto: str) -> jax.Array:
    """``x`` [letters] as [onto], with axes of length 1 for the letters that it lacks."""
    if ordered(letters, onto) != letters:
        raise ValueError(f"cannot expand '{letters}' onto '{onto}': letters must be there, in the same order")
    return jnp.expand_dims(x, others(letters, onto))


def require(letters: str, of: str, *, what: str) -> None:
    """Raises ``ValueError`` unless every one of ``letters`` is an axis of the operand with letters ``of``."""
    for a in letters:
        if a not in of:
            raise ValueError(f"{what}: no axis '{a}' in an operand with letters '{of}'{nearest(a, of)}")
    if len(set(letters)) != len(letters):
        raise ValueError(f"{what}: a letter stands twice in '{letters}'")
