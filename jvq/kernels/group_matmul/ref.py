"""The reference: one masked int32 product a group, each with its scale, summed in float32 in the order of groups."""

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32


def group_matmul(
    x: Int8[Array, "b m k"],
    group: Int32[Array, "b k"] | None,
    w: Int8[Array, "n k"],
    *,
    scale: Float32[Array, " g"],
    zero: Int32[Array, " g"] | None,
    w_scale: Float32[Array, " c"],
    w_zero: Int32[Array, " z"] | None = None,
    bias: Float32[Array, " n"] | None = None,
    ladder: bool = False,
) -> Float32[Array, "b m n"]:
    """The product, as :func:`~jvq.kernels.group_matmul.group_matmul` says."""
    codes, weights = x.astype(jnp.int32), w.astype(jnp.int32)
    if w_zero is not None:
        weights = weights - w_zero[:, None]
    total = jnp.zeros((*x.shape[:2], w.shape[0]), jnp.float32)
    for g in range(len(scale)):
        steps = codes if zero is None else codes - zero[g]
        if not ladder:
            assert group is not None
            steps = jnp.where((group == g)[:, None], steps, 0)
        total = total + scale[g] * jnp.einsum("bmk,nk->bmn", steps, weights).astype(jnp.float32)
    y = w_scale[None, None] * total
    return y if bias is None else y + bias[None, None]
