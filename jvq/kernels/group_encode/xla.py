"""Plain XLA for every platform: one reduction, a running minimum over the groups, one loop that quantises."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.group_encode.ladder import code_offset, per_group


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
    wide = 8 if code_offset(bits) else 7  # no other width has an executable of its own
    return _encode(x, lower, upper, scale, zero, levels, wide, nonnegative, ladder, distance, along)


@partial(jax.jit, static_argnums=range(6, 11))
def _encode(
    x: Float32[Array, "b n d"],
    lower: Float32[Array, " g"],
    upper: Float32[Array, " g"],
    scale: Float32[Array, " g"],
    zero: Float32[Array, " g"],
    levels: Float32[Array, ""],
    bits: int,
    nonnegative: bool,
    ladder: bool,
    distance: str,
    along: str,
) -> tuple[Int8[Array, "b n d"], Int32[Array, "b p"]]:
    over = "bnd".index("n" if along == "d" else "d")
    high = x.max(axis=over)
    low = jnp.zeros_like(high) if nonnegative else x.min(axis=over)
    # barriers: else the groups are found anew for every row of x, and encoding takes half as long again; and a distance
    # rounds as what surrounds it is compiled (a product and a sum may become one), which decides between equal ones
    low, high = jax.lax.optimization_barrier((low, high))
    group = jax.lax.optimization_barrier(assign(low, high, lower, upper, distance))
    own = (jnp.take(a, group, axis=0) for a in per_group(upper, scale, zero, bits=bits, ladder=ladder))
    inverse, zero, off, step = (jnp.expand_dims(a, over) for a in own)
    codes = jnp.clip(jnp.round(x * inverse) + zero, 0.0, levels)
    return ((codes - off) * step).astype(jnp.int8), group


def assign(
    low: Float32[Array, "*p"],
    high: Float32[Array, "*p"],
    lower: Float32[Array, " g"],
    upper: Float32[Array, " g"],
    distance: str,
) -> Int32[Array, "*p"]:
    """The group whose bounds are nearest to (low, high), the lowest where equal.

    A running minimum is one vectorised loop; ``argmin`` on a CPU takes forty times as long.
    """
    size = jnp.abs if distance == "absolute" else jnp.square
    least, group = jnp.full_like(low, jnp.inf), jnp.zeros(low.shape, jnp.int32)
    for g in range(lower.shape[0]):
        away = size(low - lower[g]) + size(high - upper[g])
        group = jnp.where(away < least, g, group)
        least = jnp.minimum(away, least)
    return group
