"""What int8 codes of a grouped quantiser mean: plain, less 128, or on the one scale of a ladder."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32


def code_offset(bits: int) -> int:
    """What is taken off every code so that int8 holds it: 0 up to 7 bits, 128 for 8. Zero points move with it."""
    return 0 if bits <= 7 else 128


def base_scale(upper: Float32[Array, " g"], scale: Float32[Array, " g"]) -> Float32[Array, "1"]:
    """The least scale of the groups in use, float32 [1]: what one step of a ladder's codes is worth.

    Groups that only fill up an array have infinite bounds and do not count.
    """
    return jnp.where(jnp.isfinite(upper), scale, jnp.inf).min(keepdims=True)


def step_sizes(upper: Float32[Array, " g"], scale: Float32[Array, " g"]) -> Float32[Array, " g"]:
    """How many steps of the base scale a group's step is, float32 [g]: whole powers of two where it is a ladder."""
    steps = jnp.round(scale * (1.0 / base_scale(upper, scale)))  # the quotient may be off by a last bit
    return jnp.where(jnp.isfinite(upper), steps, 1.0)


def per_group(
    upper: Float32[Array, " g"], scale: Float32[Array, " g"], zero: Float32[Array, " g"], *, bits: int, ladder: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What a code is made with, [g] each: 1 / scale, the zero point, what is taken off, and what then multiplies it."""
    zero = jnp.round(zero)
    if ladder:
        return 1.0 / scale, zero, zero, step_sizes(upper, scale)
    return 1.0 / scale, zero, jnp.full_like(zero, code_offset(bits)), jnp.ones_like(zero)
