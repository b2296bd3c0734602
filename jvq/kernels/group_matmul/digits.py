"""Values on many scales as one fixed-point number a value, three int8 digits of base 256: three products serve all.

Masked passes take a product a group, of which there are 4 to 32. Here ``scale * (x - zero)`` itself becomes a whole
number of at most 23 bits in units of its row's greatest magnitude, and each of its digits is an int8 operand: the
integers are summed exactly, and what rounding to 2**-24 of the greatest magnitude loses is what float32 loses too.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

DIGITS = 3
BASE = 256  #: digits are -128..127
GREATEST = 127 * BASE ** (DIGITS - 1)  #: whose last digit int8 holds, whatever is carried into it
LEAST = 1e-30  #: the unit of a row of zeros


def fixed_point(a: Float32[Array, "*b k"]) -> tuple[list[Int32[Array, "*b k"]], Float32[Array, "*b 1"]]:
    """Digits, int32 [.. k] each, the lowest first, and units [.. 1]: ``a`` is about ``unit * sum(256**i digit[i])``."""
    top = jnp.abs(a).max(axis=-1, keepdims=True)
    unit = jnp.maximum(top * (1.0 / GREATEST), LEAST)
    rest = jnp.round(a * (1.0 / unit)).astype(jnp.int32)
    digits = []
    for _ in range(DIGITS - 1):
        low = ((rest + BASE // 2) & (BASE - 1)) - BASE // 2
        digits.append(low)
        rest = (rest - low) >> 8
    return [*digits, rest], unit


def joined(sums: list[Int32[Array, "*b"]]) -> Float32[Array, "*b"]:
    """``sum(256**i sums[i])`` in float32, the greatest first."""
    total = sums[-1].astype(jnp.float32)
    for i in range(len(sums) - 2, -1, -1):
        total = total * float(BASE) + sums[i].astype(jnp.float32)
    return total


def own(of: jax.Array, group: Int32[Array, "b k"]) -> Float32[Array, "b 1 k"]:
    """What each channel of each image has of its group's [g], float32, against all rows."""
    return jnp.take(of.astype(jnp.float32), group, axis=0)[:, None]


def values(x: jax.Array, scale: Float32[Array, "*b 1 k"], zero: Float32[Array, "*b 1 k"] | None) -> jax.Array:
    """``scale * (x - zero)``, float32 [b m k], of int8 codes; the difference is exact."""
    steps = x.astype(jnp.float32)
    return scale * (steps if zero is None else steps - zero)
