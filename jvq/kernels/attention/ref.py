"""The reference: zero points are taken off first, and every step is written as it is meant."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32


@partial(jax.jit, static_argnames=("p_levels",))
def attend(
    *,
    q: Int8[Array, "b h q e"],
    k: Int8[Array, "b h k e"],
    v: Int8[Array, "b h k e"],
    q_scale: Float32[Array, "#b #h 1 1"],
    k_scale: Float32[Array, "#b #h 1 1"],
    v_scale: Float32[Array, "#b #h 1 1"],
    q_zero: Int32[Array, "#b #h 1 1"] | None = None,
    k_zero: Int32[Array, "#b #h 1 1"] | None = None,
    v_zero: Int32[Array, "#b #h 1 1"] | None = None,
    bias: Float32[Array, "#b #h q k"] | None = None,
    p_scale: Float32[Array, "1 #h 1 1"] | None = None,
    p_zero: Int32[Array, "1 #h 1 1"] | None = None,
    p_levels: int = 255,
) -> Float32[Array, "b h q e"]:
    """The output of the heads, float32 [b h q e]; see ``attention``."""
    products = jnp.einsum("bhqe,bhke->bhqk", _off(q, q_zero), _off(k, k_zero))
    scores = (q_scale * k_scale) * products.astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    p = powers / powers.sum(axis=-1, keepdims=True)
    values = _off(v, v_zero)
    if p_scale is None:
        floats = v_scale * values.astype(jnp.float32)
        return jnp.einsum("bhqk,bhke->bhqe", p, floats, precision=jax.lax.Precision.HIGHEST)
    zero = jnp.zeros((1, 1, 1, 1), jnp.int32) if p_zero is None else p_zero
    codes = jnp.clip(jnp.round(p * (1.0 / p_scale)) + zero.astype(jnp.float32), 0.0, p_levels)
    out = jnp.einsum("bhqk,bhke->bhqe", codes.astype(jnp.int32) - zero, values)
    return (p_scale * v_scale) * out.astype(jnp.float32)


def _off(codes: jax.Array, zero: jax.Array | None) -> jax.Array:
    """The integers ``codes - zero``, int32."""
    wide = codes.astype(jnp.int32)
    return wide if zero is None else wide - zero
