"""The reference: extremes, distances to all groups, the least of them, codes; one after the other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.group_encode.ladder import base_scale, code_offset


def group_encode(
    x: Float32[Array, "b n d"],
    lower: Float32[Array, " g"],
    upper: Float32[Array, " g"],
    scale: Float32[Array, " g"],
    zero: Float32[Array, " g"],
    levels: Float32[Array, ""],
    *,
    bits: int = 8,
    nonnegative: bool = False,
    ladder: bool = False,
    distance: str = "squared",
    along: str = "d",
) -> tuple[Int8[Array, "b n d"], Int32[Array, "b p"]]:
    """The codes and the groups, as :func:`~jvq.kernels.group_encode.group_encode` says."""
    over = "bnd".index("n" if along == "d" else "d")
    low, high = x.min(axis=over), x.max(axis=over)
    if nonnegative:
        low = jnp.zeros_like(high)
    size = jnp.abs if distance == "absolute" else jnp.square
    away = size(low[..., None] - lower[None, None]) + size(high[..., None] - upper[None, None])
    group = away.argmin(axis=-1).astype(jnp.int32)
    own_scale, own_zero = (jnp.expand_dims(jnp.take(a, group, axis=0), over) for a in (scale, jnp.round(zero)))
    codes = jnp.clip(jnp.round(x * (1.0 / own_scale)) + own_zero, 0.0, levels).astype(jnp.int32)
    if not ladder:
        return (codes - code_offset(bits)).astype(jnp.int8), group
    octaves = jnp.round(jnp.log2(own_scale / base_scale(upper, scale)[None, None])).astype(jnp.int32)
    return jax.lax.shift_left(codes - own_zero.astype(jnp.int32), jnp.broadcast_to(octaves, x.shape)).astype(
        jnp.int8
    ), group
