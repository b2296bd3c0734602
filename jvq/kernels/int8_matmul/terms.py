"""The epilogue in as few terms as an element needs: what varies by column only is put together beforehand.

``y = x_scale * w_scale * (acc - x_zero * (w_sum - k * w_zero) - x_sum * w_zero) + bias`` is the formula with its terms
in another order, equal in integers modulo 2^32. A zero point that all rows share makes one vector of columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32


class Terms(NamedTuple):
    """What goes with the product int32 [g m n]: rows [g|1 m|1 1] and columns [g|1 1 n]; None where there is none."""

    scale: Float32[Array, "_ 1 n"]
    row_scale: Float32[Array, "_ _ 1"] | None
    offset: Int32[Array, "_ 1 n"] | None  # subtracted
    x_zero: Int32[Array, "_ _ 1"] | None  # subtracted, times w_total
    w_total: Int32[Array, "_ 1 n"] | None
    x_sum: Int32[Array, "g m 1"] | None  # subtracted, times w_zero
    w_zero: Int32[Array, "_ 1 n"] | None
    bias: Float32[Array, "1 1 n"] | None


COLUMNS = 8  #: of ones: fewer take a CPU no less time
AXES = "nmnmnmnn"  #: whether each of the terms, in their order, is of rows m or of columns n


def terms(
    x: Int8[Array, "g m k"],
    n: int,
    *,
    x_scale: Float32[Array, "_ _ 1"],
    w_scale: Float32[Array, "_ 1 _"],
    x_zero: Int32[Array, "_ _ 1"] | None,
    w_zero: Int32[Array, "_ 1 _"] | None,
    w_sum: Int32[Array, "_ 1 n"] | None,
    bias: Float32[Array, " n"] | None,
    x_sum: Int32[Array, "g m 1"] | None = None,
) -> Terms:
    """The terms of the product of x with n columns; ``x_sum``, of x over k, is computed where it is not known."""
    zeros = None if w_zero is None else _columns(w_zero, n)
    offset = total = None
    if x_zero is not None:
        assert w_sum is not None  # see sums_of
        total = w_sum if zeros is None else w_sum - x.shape[2] * zeros
        if x_zero.shape[1] == 1:
            offset, x_zero, total = x_zero * total, None, None
    per_row = x_scale.shape[1] != 1  # it may be the symbol of any batch
    return Terms(
        scale=_columns(w_scale if per_row else x_scale * w_scale, n),
        row_scale=x_scale if per_row else None,
        offset=offset,
        x_zero=x_zero,
        w_total=total,
        x_sum=None if zeros is None else _row_sums(x) if x_sum is None else x_sum,
        w_zero=zeros,
        bias=None if bias is None else bias[None, None],
    )


def sums_of(w: Int8[Array, "gw n k"]) -> Int32[Array, "gw 1 n"]:
    """The sums of w over k, where they were not known beforehand."""
    return w.sum(axis=2, dtype=jnp.int32)[:, None]


def finish(acc: Int32[Array, "*g m n"], t: Terms) -> Float32[Array, "*g m n"]:
    """The values of a product, or of a block of it, from its integers; terms broadcast against them."""
    if t.offset is not None:
        acc = acc - t.offset
    if t.x_zero is not None and t.w_total is not None:
        acc = acc - t.x_zero * t.w_total
    if t.x_sum is not None and t.w_zero is not None:
        acc = acc - t.x_sum * t.w_zero
    y = (t.scale if t.row_scale is None else t.row_scale * t.scale) * acc.astype(jnp.float32)
    return y if t.bias is None else y + t.bias


def stacked(
    x: Int8[Array, "g m k"], gw: int, x_scale: Float32[Array, "_ _ 1"], x_zero: Int32[Array, "_ _ 1"] | None
) -> tuple[Int8[Array, "_ _ k"], Float32[Array, "_ _ 1"], Int32[Array, "_ _ 1"] | None]:
    """All three, as one matrix and what its rows have where all of x meets one w, which has ``gw`` matrices."""
    g, m, k = x.shape
    if gw > 1 or g == 1:
        return x, x_scale, x_zero
    return x.reshape(1, g * m, k), _flat(x_scale, g, m), None if x_zero is None else _flat(x_zero, g, m)


def _flat(a: jax.Array, g: int, m: int) -> jax.Array:
    """What rows have [g|1 m|1 1], as that of one matrix [1 gm|1 1]."""
    return a if a.size == 1 else jnp.broadcast_to(a, (g, m, 1)).reshape(1, g * m, 1)


def _columns(a: jax.Array, n: int) -> jax.Array:
    """A row vector [g 1 n] for each matrix, of [g 1 n|1]."""
    return jnp.broadcast_to(a, (*a.shape[:2], n))


def _row_sums(x: Int8[Array, "g m k"]) -> Int32[Array, "g m 1"]:
    """The sums of x over k. As a product with ones: a reduction would draw in what makes x, and compute it twice."""
    g, m, k = x.shape
    ones = jnp.ones((COLUMNS, k), jnp.int8)
    axes = (((1,), (1,)), ((), ()))
    sums = jax.lax.dot_general(x.reshape(g * m, k), ones, axes, preferred_element_type=jnp.int32)
    return sums[:, :1].reshape(g, m, 1)
