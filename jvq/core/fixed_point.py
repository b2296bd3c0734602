"""Values on many scales as one fixed-point number a value: three digits, whole numbers that int8 holds.

Where scales differ along what a product sums over, as those of groups of channels do, they cannot multiply the sum.
Here ``scale * (codes - zero)`` itself becomes a whole number of at most 23 bits in units of its row's greatest
magnitude, and each of its digits is an operand: the products of digits are summed exactly, and what rounding to 2**-24
of the greatest magnitude loses is what float32 loses too.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

DIGITS = 3
BASE = 256  #: digits are -128..127
GREATEST = 127 * BASE ** (DIGITS - 1)  #: whose last digit int8 holds, whatever is carried into it
LEAST = 1e-30  #: the unit of a row of zeros


def fixed_point(a: Float32[Array, "..."], over: Sequence[int] = (-1,)) -> tuple[list[Int32[Array, "..."]], jax.Array]:
    """Digits, int32 in the shape of ``a`` each, the lowest first, and units, of length 1 along the axes ``over``.

    ``a`` is about ``unit * sum(256**i digit[i])``: to half a unit, which is 2**-24 of the greatest along ``over``.
    """
    top = jnp.abs(a).max(axis=tuple(over), keepdims=True)
    unit = jnp.maximum(top * (1.0 / GREATEST), LEAST)
    rest = jnp.round(a * (1.0 / unit)).astype(jnp.int32)
    digits = []
    for _ in range(DIGITS - 1):
        low = ((rest + BASE // 2) & (BASE - 1)) - BASE // 2
        digits.append(low)
        rest = (rest - low) >> 8
    return [*digits, rest], unit


def joined(sums: Sequence[jax.Array]) -> Float32[Array, "..."]:
    """``sum(256**i sums[i])`` in float32, the greatest first."""
    total = sums[-1].astype(jnp.float32)
    for i in range(len(sums) - 2, -1, -1):
        total = total * float(BASE) + sums[i].astype(jnp.float32)
    return total
