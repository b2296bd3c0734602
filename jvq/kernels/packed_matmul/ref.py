"""The reference: weights are unpacked and the formula is computed as it is written."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, UInt8

from jvq.kernels.packed_matmul.layout import unpack_rows


@partial(jax.jit, static_argnames=("bits", "n"))
def packed_matmul(
    x: jax.Array,
    w: UInt8[Array, "gw p r k"],
    *,
    bits: int,
    n: int,
    x_scale: Float32[Array, "_ _ 1"] | None,
    w_scale: Float32[Array, "_ 1 _"],
    x_zero: Int32[Array, "_ _ 1"] | None = None,
    w_zero: Int32[Array, "_ 1 _"] | None = None,
    w_sum: Int32[Array, "_ 1 n"] | None = None,
    bias: Float32[Array, " n"] | None = None,
) -> Float32[Array, "g m n"]:
    """The product, as :func:`~jvq.kernels.packed_matmul.packed_matmul` says."""
    g, _, k = x.shape
    codes = unpack_rows(w, bits, n).astype(jnp.int32)
    if x_scale is None:
        values = codes if w_zero is None else codes - jnp.swapaxes(w_zero, 1, 2)
        # what x's type does to the values, and nothing to their products
        left, right = x.astype(jnp.float32), values.astype(x.dtype).astype(jnp.float32)
        right = jnp.broadcast_to(right, (g, n, k))
        y = w_scale * jnp.einsum("gmk,gnk->gmn", left, right, precision=jax.lax.Precision.HIGHEST)
    else:
        left = x.astype(jnp.int32)
        total = jnp.einsum("gmk,gnk->gmn", left, jnp.broadcast_to(codes, (g, n, k)))
        if x_zero is not None:
            assert w_sum is not None
            total = total - x_zero * w_sum
        if w_zero is not None:
            total = total - w_zero * left.sum(axis=2, keepdims=True)
        if x_zero is not None and w_zero is not None:
            total = total + k * x_zero * w_zero
        y = x_scale * w_scale * total.astype(jnp.float32)
    return y if bias is None else y + bias[None, None]
