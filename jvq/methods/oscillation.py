"""How many weights oscillate: their codes keep going back and forth between two neighbours.

Source: Nagel et al. 2022; specification of VVTQ, section 6. Nothing is frozen, and only weights of at most four bits
are tracked.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MOMENTUM = 0.001  #: of the moving average of reversals
THRESHOLD = 0.005  #: a weight oscillates when it reverses more often: a period of less than 400 steps
NEAR = 0.05  #: of a step, on either side of the boundary between two codes


class Track(NamedTuple):
    """Of every weight, in the weight's shape."""

    code: jax.Array  # int16, the last code
    direction: jax.Array  # int8, of the last change: -1, 1; 0 before the first
    frequency: jax.Array  # float32, moving average of reversals


def begin(codes: Float[Array, "..."]) -> Track:
    """Nothing has moved yet."""
    code = codes.astype(jnp.int16)
    zeros = (jnp.zeros_like(code, dtype) for dtype in (jnp.int8, jnp.float32))  # they lie where it does, in parts too
    return Track(code, *zeros)


def follow(track: Track, codes: Float[Array, "..."], momentum: float = MOMENTUM) -> Track:
    """The track one step on. A change against the direction of the change before it is a reversal."""
    code = codes.astype(jnp.int16)
    moved = jnp.sign(code - track.code).astype(jnp.int8)
    reversal = (moved != 0) & (moved == -track.direction)
    frequency = momentum * reversal.astype(jnp.float32) + (1 - momentum) * track.frequency
    return Track(code, jnp.where(moved != 0, moved, track.direction), frequency)


def oscillating(track: Track, threshold: float = THRESHOLD) -> Bool[Array, "..."]:
    """Which weights oscillate."""
    return track.frequency > threshold


def near_boundary(
    steps: Float[Array, "..."], low: jax.Array, high: jax.Array, band: float = NEAR
) -> Bool[Array, "..."]:
    """Which weights, given as ``w / scale``, lie within ``band`` of a step of where their code changes."""
    off = jnp.abs(jnp.abs(steps - jnp.round(steps)) - 0.5) < band
    return off & (steps > low) & (steps < high)
