"""The dot of integer inference: codes are multiplied, sums are exact in int32, scales come last."""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvq.core import axes
from jvq.core.dot import Dot, packed_dot, quantized
from jvq.core.packed import Encoded
from jvq.core.quantizer import Codes, Quantizer, State
from jvq.core.recipe import Forward
from jvq.core.whole import WIDEST
from jvq.integer.groups import group_product, grouped
from jvq.integer.rows import Form, Integers, Rows
from jvq.kernels.binary_matmul import binary_matmul, pack_words, unpack_words
from jvq.kernels.int8_matmul import int8_matmul
from jvq.kernels.packed_matmul import packed_matmul

Way = str
"""How a product is computed: "int8", "packed", "binary", "groups", "ladder", or "float: " and why."""


class Order(NamedTuple):
    """The letters of a product by what becomes of them, each in its operand's order."""

    shared: str  # in both operands and the product
    summed: str  # in both operands alone
    left: str  # in the first operand and the product
    right: str  # in the second operand and the product

    @classmethod
    def of(cls, equation: str) -> "Order":
        (a, b), out = axes.split(equation)
        return cls(
            "".join(i for i in a if i in b and i in out),
            "".join(i for i in a if i in b and i not in out),
            "".join(i for i in a if i not in b),
            "".join(i for i in b if i not in a),
        )


class Side(NamedTuple):
    """One operand as [g m k], with what its scale and zero point are worth there."""

    codes: jax.Array  # int8 [g m k]
    scale: jax.Array  # float32 [g|1 m|1 1]
    zero: jax.Array | None  # int32, likewise
    offset: jax.Array | None  # float32, likewise


def integer_dot(
    plan: Mapping[str, Quantizer],
    qstate: Mapping[str, State],
    *,
    impl: str = "auto",
    count: bool = False,
    tape: MutableMapping[str, Way] | None = None,
) -> Dot:
    """The dot of a frozen model: products of integers wherever both operands are quantised to at most 8 bits.

    ``plan`` and ``qstate`` are of the activations (what ``freeze`` leaves), weights are :class:`Rows` (``prepared``) or
    packed. ``impl`` names the kernels' implementation. With ``count`` products of one-bit activations with each other
    count bits, as those with ``Rows`` of words do; else their signs are int8, which multiply faster. What cannot be
    multiplied as integers is multiplied in float32 after fake quantisation; ``tape``, if given, is told for every site
    how it was computed and why.
    """
    plain = packed_dot(quantized(plan, qstate))

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        (left, right), out = axes.split(equation)
        order, (role_a, role_b) = Order.of(equation), operands
        a, b = operands.values()
        qa, qb = plan.get(f"{site}.{role_a}"), plan.get(f"{site}.{role_b}")
        why = _unfit(qa, a) or _unfit(qb, b)
        if not why and isinstance(b, Rows) and grouped(qa, left, order.summed):
            y, way = group_product(qa, qstate[f"{site}.{role_a}"], a, b, left, impl)
        elif not why:
            codes = [
                x if isinstance(x, Rows) else q.encode(qstate[f"{site}.{role}"], x, letters)  # type: ignore[union-attr]
                for q, (role, x), letters in zip((qa, qb), operands.items(), (left, right), strict=True)
            ]
            y, way = _product(codes, (qa, qb), order, (left, right), impl, count)
        else:
            y, way = None, f"float: {why}"
        if tape is not None:
            tape[site] = way
        if y is None:
            return plain(site, equation, **operands)
        size = {**dict(zip(left, a.shape, strict=True)), **dict(zip(right, b.shape, strict=True))}
        inner = order.shared + order.left + order.right
        return y.reshape([size[i] for i in inner]).transpose(axes.indices(out, inner)).astype(a.dtype)

    return dot


def ways(
    forward: Forward, params: Any, plan: Mapping[str, Quantizer], qstate: Any, images: Any, *, count: bool = False
) -> dict[str, Way]:
    """How each product of the model is computed, by site, from an abstract trace; ``count`` as in ``integer_dot``."""
    tape: dict[str, Way] = {}
    jax.eval_shape(lambda p, s, x: forward(p, x, integer_dot(plan, s, count=count, tape=tape)), params, qstate, images)
    return tape


def _unfit(quantizer: Quantizer | None, x: Any) -> str:
    """Why an operand has no integers to multiply; "" where it has."""
    if isinstance(x, Rows):
        return ""
    if isinstance(x, Encoded):
        return f"a weight of {x.bits} bits, or with a scale for every index that is summed over"  # type: ignore[attr]
    if quantizer is None:
        return "an operand is not quantised"
    return f"{quantizer.bits} bits, integer products have at most {WIDEST}" if quantizer.bits > WIDEST else ""


def _product(
    operands: list[Any], quantizers: tuple[Any, Any], order: Order, letters: tuple[str, str], impl: str, count: bool
) -> tuple[jax.Array | None, Way]:
    """The product [shared left right] in float32 and how it was computed; None where scales prevent it.

    ``operands`` are Codes, the second may be Rows.
    """
    a, b = operands
    known = [
        x.parts if isinstance(x, Rows) else _divided(x, q, order.summed, axis)
        for x, q, axis in zip(operands, quantizers, letters, strict=True)
    ]
    if 0 in known or (max(known) > 1 and order.shared):
        return None, "float: a scale for every index that is summed over"
    parts = math.lcm(*known)
    left = _left(Integers.of(a, quantizers[0].bits), order, order.left, letters[0], parts)
    if isinstance(b, Rows):
        right = _of_rows(b, parts)
    else:
        # as they are: fused with what makes them, a transposition would be one more pass over them
        codes = Integers.of(b, quantizers[1].bits)
        codes = codes._replace(codes=jax.lax.optimization_barrier(codes.codes))
        right = _turned(_left(codes, order, order.right, letters[1], parts))
    signs = not isinstance(b, Rows) and quantizers[1].bits == 1 and b.zero is None
    k = left.codes.shape[-1]
    if quantizers[0].bits == 1 and (right.form == "words" or (count and signs)):
        y, way = _binary(left, right, k, "xnor" if a.zero is None else "and", impl), "binary"
    else:
        y, way = _affine(left, right, k, impl)
    y = y + _offsets(left, right, k)
    return (y.sum(axis=0, keepdims=True) if parts > 1 else y), way


class Right(NamedTuple):
    """The second operand, a row of k codes for each of n outputs."""

    codes: jax.Array  # by form: int8 [g n k], packed, or words [g n w]
    scale: jax.Array  # float32 [g|1 1 n|1]
    zero: jax.Array | None  # int32, likewise
    offset: jax.Array | None  # float32, likewise
    sums: jax.Array | None  # int32 [g 1 n], of the codes; None: not known beforehand
    form: Form
    bits: int  # where packed

    def total(self) -> jax.Array:
        """The sums, computed where they are not known."""
        return _sums(self.codes) if self.sums is None else self.sums


def _divided(codes: Codes, quantizer: Any, summed: str, letters: str) -> int:
    """In how many parts an activation's scale divides what is summed over; 0: in single indices."""
    at = axes.indices(summed, letters)
    if all(t is None or all(t.shape[i] == 1 for i in at) for t in codes[1:]):
        return 1
    return getattr(quantizer, "heads", 0)


def _left(x: Integers, order: Order, free: str, letters: str, parts: int) -> Side:
    """An activation [letters] as [g m k]; of several parts, g is the part."""
    groups = order.shared, free, order.summed
    perm = axes.indices("".join(groups), letters)
    sizes = [[x.codes.shape[i] for i in axes.indices(group, letters)] for group in groups]

    def flat(t: jax.Array | None) -> Any:
        if t is None:
            return None
        t, shape, at = t.transpose(perm), [], 0
        for group, size in zip(groups, sizes, strict=True):
            own = t.shape[at : at + len(group)]
            shape.append(own if all(n == 1 for n in own) else size)
            at += len(group)
        t = jnp.broadcast_to(t, [n for own in shape for n in own])
        g, m, k = (math.prod(own) for own in shape)
        if parts == 1 or k == 1:
            return t.reshape(g, m, k)
        return jnp.moveaxis(t.reshape(m, parts, k // parts), 1, 0)

    codes, scale, zero, offset = (flat(t) for t in x)
    zero, offset = (None if t is None else t[..., :1] for t in (zero, offset))
    return Side(codes, scale[..., :1], zero, offset)


def _turned(x: Side) -> Right:
    """An activation as the second operand."""
    scale, zero, offset = (None if t is None else jnp.swapaxes(t, 1, 2) for t in x[1:])
    assert scale is not None
    return Right(x.codes, scale, zero, offset, None, "int8", WIDEST)


def _of_rows(rows: Rows, parts: int) -> Right:
    """A weight as the second operand, each of its parts divided further where there are to be more."""
    if rows.parts == parts:
        return Right(rows.codes, rows.scale, rows.zero, None, rows.sums, rows.form, rows.bits)
    times = parts // rows.parts
    p, n, k = (codes := rows.int8()).shape
    finer = jnp.moveaxis(codes.reshape(p, n, times, k // times), 2, 1).reshape(parts, n, k // times)
    scale, zero = (None if t is None else jnp.repeat(t, times, axis=0) for t in (rows.scale, rows.zero))
    assert scale is not None
    return Right(finer, scale, zero, None, _sums(finer), "int8", rows.bits)


def _sums(codes: jax.Array) -> jax.Array:
    """Sums of int8 codes [g n k] over k: int32 [g 1 n]."""
    return codes.sum(axis=-1, dtype=jnp.int32)[:, None]


def _affine(left: Side, right: Right, k: int, impl: str) -> tuple[jax.Array, Way]:
    """``x_scale * w_scale * sum (x - x_zero) (w - w_zero)`` of int8 operands."""

    arguments: dict[str, Any] = {
        "x_scale": left.scale,
        "x_zero": left.zero,
        "w_scale": right.scale,
        "w_zero": right.zero,
        "w_sum": right.sums,
        "impl": impl,
    }
    if right.form == "packed":
        n = right.total().shape[-1]
        return packed_matmul(left.codes, right.codes, bits=right.bits, n=n, **arguments), "packed"
    codes = right.codes if right.form == "int8" else (2 * unpack_words(right.codes, k) - 1).astype(jnp.int8)
    return int8_matmul(left.codes, codes, **arguments), "int8"


def _binary(left: Side, right: Right, k: int, kind: str, impl: str) -> jax.Array:
    """The same where the second operand is signs and the first signs ("xnor") or 0 and 1 ("and")."""
    words = right.codes if right.form == "words" else pack_words(right.codes > 0)
    total = binary_matmul(pack_words(left.codes > 0), words, k, kind, impl)
    if left.zero is not None:
        total = total - left.zero * right.total()
    if right.zero is not None:
        total = total - right.zero * jnp.swapaxes(_sums(left.codes), 1, 2)
        if left.zero is not None:
            total = total + k * left.zero * right.zero
    return left.scale * right.scale * total.astype(jnp.float32)


def _offsets(left: Side, right: Right, k: int) -> jax.Array:
    """What offsets add to a product: each times the sum of the other operand's values, [g m n], or 0."""
    total = jnp.zeros((1, 1, 1), jnp.float32)
    if left.offset is not None:
        total = total + left.offset * _value(right.total(), k, right.scale, right.zero)
    if right.offset is not None:
        sums = jnp.swapaxes(_sums(left.codes), 1, 2)
        total = total + right.offset * _value(sums, k, left.scale, left.zero)
        if left.offset is not None:
            total = total + float(k) * left.offset * right.offset
    return total


def _value(sums: jax.Array, k: int, scale: jax.Array, zero: jax.Array | None) -> jax.Array:
    """The sum of k values whose codes add up to ``sums``."""
    return scale * (sums if zero is None else sums - k * zero).astype(jnp.float32)
