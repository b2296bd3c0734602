"""The epilogue of Pallas kernels: that of ``int8_matmul`` for integers, a scale and a bias for floats."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from jvq.kernels.int8_matmul import terms as integers
from jvq.kernels.int8_matmul.terms import AXES, Terms

__all__ = ["AXES", "Terms", "finish", "prepared"]


def prepared(
    x: jax.Array,
    gw: int,
    n: int,
    *,
    x_scale: Float32[Array, "_ _ 1"] | None,
    w_scale: Float32[Array, "_ 1 _"],
    x_zero: Int32[Array, "_ _ 1"] | None,
    w_zero: Int32[Array, "_ 1 _"] | None,
    w_sum: Int32[Array, "_ 1 n"] | None,
    bias: Float32[Array, " n"] | None,
) -> tuple[jax.Array, Terms]:
    """``x`` as a matrix for each of the ``gw`` of w, and what turns a product with n columns into values.

    With floats w's zero points are taken off before the product, and are no term.
    """
    if x_scale is not None:
        x, x_scale, x_zero = integers.stacked(x, gw, x_scale, x_zero)
        return x, integers.terms(
            x, n, x_scale=x_scale, w_scale=w_scale, x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias
        )
    of_columns: dict[str, Any] = dict.fromkeys(Terms._fields)
    of_columns["scale"] = jnp.broadcast_to(w_scale, (w_scale.shape[0], 1, n))
    of_columns["bias"] = None if bias is None else bias[None, None]
    return x if gw > 1 else x.reshape(1, -1, x.shape[2]), Terms(**of_columns)


def finish(acc: jax.Array, t: Terms) -> jax.Array:
    """The values of a block of the product from its sums, int32 or float32."""
    if acc.dtype == jnp.int32:
        return integers.finish(acc, t)
    y = t.scale * acc
    return y if t.bias is None else y + t.bias
