"""Fake quantisation whose sums are exact: codes are multiplied as whole numbers in float32, their scales come last.

What :func:`~jvq.core.dot.quantized` multiplies are scaled values, whose sums float32 rounds in an order that depends on
the processor: a code behind it that lies on the edge of two falls to either side. Here every operand is a whole number,
so that a sum is the same in any order as long as it stays below 2**24, which one of 8 bits times 8 bits does up to some
500 terms of the greatest size and in practice always does; beyond, float32 rounds it. The same formula in integers
(:mod:`jvq.integer`) gives the same bits.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvq.core import axes
from jvq.core.dot import Dot, float_dot, onto, outside, packed_dot, quantized
from jvq.core.fixed_point import fixed_point, joined
from jvq.core.packed import Packed
from jvq.core.quantizer import Codes, Quantizer, State

WIDEST = 8  #: bits of a code that integers multiply, here and in the kernels; wider ones are left to float


class Whole(NamedTuple):
    """An operand [letters] as ``unit * sum(256**i part[i]) + offset``."""

    parts: list[jax.Array]  # whole numbers, float32, in the operand's shape
    unit: jax.Array  # float32, on the axes of the product
    offset: jax.Array | None = None  # likewise; None: 0
    grouped: bool = False  # its scales differ along what is summed


def whole_dot(plan: Mapping[str, Quantizer], qstate: Mapping[str, State], inner: Dot = float_dot) -> Dot:
    """The dot of a frozen model whose products are of whole numbers, wherever both operands are quantised to <= 8 bits.

    ``plan`` and ``qstate`` are of the activations (what ``freeze`` leaves), weights are packed. What integers cannot
    multiply either (a scale for every index that is summed over) is multiplied as ``quantized`` does. No gradients.
    """
    plain = packed_dot(quantized(plan, qstate, inner))

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        letters, out = axes.split(equation)
        found = []
        for (role, x), axis in zip(operands.items(), letters, strict=True):
            quantizer = plan.get(f"{site}.{role}")
            if isinstance(x, Packed):
                found.append(_whole(x.codes(), None, axis, out) if x.bits <= WIDEST else None)
            elif quantizer is not None and quantizer.bits <= WIDEST:
                found.append(_whole(quantizer.encode(qstate[f"{site}.{role}"], x, axis), quantizer, axis, out))
            else:
                found.append(None)
        a, b = found
        if a is None or b is None or b.grouped:
            return plain(site, equation, **operands)

        def product(x: jax.Array, y: jax.Array) -> jax.Array:
            return inner(site, equation, **dict(zip(operands, (x, y), strict=True)))

        total = joined([product(part, b.parts[0]) for part in a.parts])
        y = total * a.unit * b.unit if a.grouped else a.unit * b.unit * total  # in the order of jvq.integer: it rounds
        if len(a.parts) > 1:  # integers have it rounded before a bias is added, too: the two may become one operation
            y = jax.lax.optimization_barrier(y)
        offsets = _offsets(a, b, product)
        y = y if offsets is None else y + offsets
        first, *_ = operands.values()
        return y.astype(first.dtype)

    return dot


def _whole(codes: Codes, quantizer: Any, letters: str, out: str) -> Whole | None:
    """The codes [letters] of an operand of a product [out]; None where whole numbers cannot stand for them.

    Groups that divide what is summed are on the least scale where theirs are powers of two apart, else digits.
    """
    steps, offset = _steps(codes)
    if all(t is None or outside(t, letters, out) for t in (codes.scale, codes.zero, offset)):
        return Whole([steps], onto(codes.scale, letters, out), None if offset is None else onto(offset, letters, out))
    summed = axes.contracted(letters, out)
    if not set(summed) <= set(getattr(quantizer, "along", "")):
        return None
    over = axes.indices(summed, letters)
    if getattr(quantizer, "ladder", False):
        least = codes.scale.min(axis=over, keepdims=True)
        octave = jnp.round(codes.scale * (1.0 / least))  # the quotient may be off by a last bit
        return Whole([steps * octave], onto(least, letters, out), grouped=True)
    digits, unit = fixed_point(codes.scale * steps, over)
    return Whole([d.astype(jnp.float32) for d in digits], onto(unit, letters, out), grouped=True)


def _steps(codes: Codes) -> tuple[jax.Array, jax.Array | None]:
    """What the scale multiplies, as whole numbers, and the offset that is left: of signs it is whole steps too."""
    if codes.zero is not None:
        return (codes.codes - codes.zero).astype(jnp.float32), codes.offset
    signs = (2 * codes.codes - 1).astype(jnp.float32)
    return (signs if codes.offset is None else signs + jnp.round(codes.offset * (1.0 / codes.scale))), None


def _offsets(a: Whole, b: Whole, product: Any) -> jax.Array | None:
    """What offsets add to a product, each times the sum of the other operand's values; None where there are none."""
    (x, *_), (y, *_) = a.parts, b.parts
    terms = []
    if a.offset is not None:
        terms.append(a.offset * (b.unit * product(jnp.ones_like(x), y)))
    if b.offset is not None:
        terms.append(b.offset * (a.unit * product(x, jnp.ones_like(y))))
    if a.offset is not None and b.offset is not None:
        terms.append(product(jnp.ones_like(x), jnp.ones_like(y)) * a.offset * b.offset)
    return sum(terms[1:], terms[0]) if terms else None
