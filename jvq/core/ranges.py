"""Ranges of uniform quantisers: from bounds to scale and zero point, and how bounds are found."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

ZeroPoint = Literal["extend", "free", "clamp"]
ZERO_POINTS: tuple[ZeroPoint, ...] = ("extend", "free", "clamp")
SMALLEST = 1e-8  #: the least scale


def level_count(bits: int | Int[Array, ""]) -> Float[Array, ""]:
    """``2**bits - 1`` as the float32 array that goes into a state."""
    return jnp.asarray(2**bits - 1, jnp.float32)


def affine(
    lower: Float[Array, "..."], upper: Float[Array, "..."], levels: Float[Array, ""], zero_point: ZeroPoint
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The scale and the (whole) zero point, float32, of the uniform quantiser with these bounds (IGQ-ViT eqs. 1-3).

    ``zero_point`` says what becomes of an interval without 0. ``extend``: it is made to contain 0 first (our default).
    ``free``: it is quantised as it is, the zero point outside the codes. ``clamp``: scale from ``upper - lower``, zero
    point cut to the codes: the paper's literal form, which clips such an interval at ``upper - lower``.
    The scale is at least 1e-8 and at least 2**-22 of the larger bound, so that ``x / scale`` stays below 2**22,
    where float32 still tells halves apart (``free`` and an interval far from 0: half a code off at that end).
    """
    if zero_point == "extend":
        lower, upper = jnp.minimum(lower, 0.0), jnp.maximum(upper, 0.0)
    least = jnp.maximum(jnp.maximum(jnp.abs(lower), jnp.abs(upper)) * 2.0**-22, SMALLEST)
    scale = jnp.maximum((upper - lower) * (1.0 / levels), least)  # products, not divisions: see uniform_codes
    zero = jnp.round(-lower * (1.0 / scale))
    return scale, zero if zero_point == "free" else jnp.clip(zero, 0.0, levels)


def symmetric(
    lower: Float[Array, "..."], upper: Float[Array, "..."], levels: Float[Array, ""]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The scale and zero point of the quantiser that is symmetric about 0: codes -(2**(bits-1)-1) .. 2**(bits-1)-1.

    As unsigned codes the zero point is ``2**(bits-1)``; code 0 is left to values beyond the bounds.
    """
    zero = (levels + 1.0) / 2.0
    reach = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    scale = jnp.maximum(reach * (1.0 / (zero - 1.0)), SMALLEST)
    return scale, jnp.broadcast_to(zero, scale.shape)


def extremes(x: Float[Array, "..."], over: tuple[int, ...]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Least and greatest value over the axes ``over``, kept with length 1, in float32."""
    wide = x.astype(jnp.float32)
    return wide.min(axis=over, keepdims=True), wide.max(axis=over, keepdims=True)


def percentiles(
    x: Float[Array, "..."], over: tuple[int, ...], percent: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The ``percent``-th and ``100 - percent``-th percentile over the axes ``over`` (linear interpolation)."""
    wide = x.astype(jnp.float32)
    low, high = jnp.percentile(wide, jnp.array([percent, 100.0 - percent], jnp.float32), axis=over, keepdims=True)
    return low, high


Bounds = tuple[jax.Array, jax.Array]
Error = Callable[[jax.Array, jax.Array], jax.Array]
"""``error(lower, upper)``: the quantisation error of each pair of bounds, same shape."""


def least_error(
    lower: Float[Array, "..."],
    upper: Float[Array, "..."],
    error: Error,
    also: Bounds | None = None,
    coarse: int = 32,
    rounds: int = 2,
) -> Bounds:
    """Bounds of least error, each pair for itself, found from the given (outermost) ones.

    First both ends shrink together over ``coarse`` equal steps; then, ``rounds`` times, each end in turn moves by up to
    one step of the last grid either way in eight parts. ``also`` are bounds that are tried too, and gone on from where
    they are the better start. The incumbent is always kept: the error never exceeds that of either given bounds.
    """

    def step(carry: tuple[Bounds, tuple[jax.Array, ...]], move: jax.Array) -> Any:
        base, best = carry
        fresh, keep, by_lower, by_upper = move
        base = tuple(jnp.where(fresh > 0, x, y) for x, y in zip(best[1:], base, strict=True))
        low, high = keep * base[0] + by_lower * lower, keep * base[1] + by_upper * upper
        return (base, _better(best, (error(low, high), low, high))), None

    start = (also or (lower, upper), (jnp.full_like(lower, jnp.inf), lower, upper))
    (_, best), _ = jax.lax.scan(step, start, jnp.asarray(_moves(coarse, rounds)))  # one scan: error is compiled once
    return best[1], best[2]


def _moves(coarse: int, rounds: int) -> np.ndarray:
    """What :func:`least_error` tries, a row each: [start from the best so far?, weight of that, of lower, of upper]."""
    given = [(0.0, 1.0, 0.0, 0.0)]
    shrink = [(0.0, 0.0, i / coarse, i / coarse) for i in range(coarse, 0, -1)]
    offsets = [i / 8 for i in range(-8, 9) if i]
    nudges = [
        (float(first), 1.0, by * width if end == 0 else 0.0, by * width if end == 1 else 0.0)
        for width in (1.0 / (coarse * 4**r) for r in range(rounds))
        for end in (1, 0)
        for first, by in ((i == 0, offset) for i, offset in enumerate(offsets))
    ]
    return np.array(given + shrink + nudges, np.float32)


def _better(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Of two (error, lower, upper) triples the one of less error, elementwise; the first where equal."""
    pick = b[0] < a[0]
    return tuple(jnp.where(pick, y, x) for x, y in zip(a, b, strict=True))
