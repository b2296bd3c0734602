"""What codes on many scales are worth: float32 values, which :mod:`jvq.core.fixed_point` makes digits of.

Masked passes take a product a group, of which there are 4 to 32; three products of digits serve all.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32


def own(of: jax.Array, group: Int32[Array, "b k"]) -> Float32[Array, "b 1 k"]:
    """What each channel of each image has of its group's [g], float32, against all rows."""
    return jnp.take(of.astype(jnp.float32), group, axis=0)[:, None]


def values(x: jax.Array, scale: Float32[Array, "*b 1 k"], zero: Float32[Array, "*b 1 k"] | None) -> jax.Array:
    """``scale * (x - zero)``, float32 [b m k], of int8 codes; the difference is exact."""
    steps = x.astype(jnp.float32)
    return scale * (steps if zero is None else steps - zero)
