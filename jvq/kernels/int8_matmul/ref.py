"""The reference: the formula as it is written, one term after the other. What implementations are compared with."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32


@jax.jit
def int8_matmul(
    x: Int8[Array, "g m k"],
    w: Int8[Array, "gw n k"],
    *,
    x_scale: Float32[Array, "_ _ 1"],
    w_scale: Float32[Array, "_ 1 _"],
    x_zero: Int32[Array, "_ _ 1"] | None = None,
    w_zero: Int32[Array, "_ 1 _"] | None = None,
    w_sum: Int32[Array, "_ 1 n"] | None = None,
    bias: Float32[Array, " n"] | None = None,
) -> Float32[Array, "g m n"]:
    """The product, as :func:`~jvq.kernels.int8_matmul.int8_matmul` says."""
    g, _, k = x.shape
    left, right = x.astype(jnp.int32), jnp.broadcast_to(w, (g, *w.shape[1:])).astype(jnp.int32)
    total = jnp.einsum("gmk,gnk->gmn", left, right)
    if x_zero is not None:
        total = total - x_zero * (right.sum(axis=2)[:, None] if w_sum is None else w_sum)
    if w_zero is not None:
        total = total - w_zero * left.sum(axis=2, keepdims=True)
    if x_zero is not None and w_zero is not None:
        total = total + k * x_zero * w_zero
    y = x_scale * w_scale * total.astype(jnp.float32)
    return y if bias is None else y + bias[None, None]
