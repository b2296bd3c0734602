"""Scales of groups that are powers of two apart, ``s0 * 2**k``: one integer operand and one accumulator serve all.

A code less its zero point, shifted left by its group's ``k``, is a multiple of the one scale ``s0``. Source: ours; the
measurements behind it are in the specification of IGQ-ViT, section 10.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jvq.core import ranges

HOLDS = 127  #: signed int8: the greatest shifted difference of a code and its zero point
SHIFTS = 7  #: shifts 0..6, of which 1 bit has room for all, 4 bits for 0..3, 7 bits for 0 alone
OCTAVE = 32  #: finest steps of scale to a factor of two
BELOW, STEP = 5 * OCTAVE, OCTAVE // 8  #: how far the widest scale is searched below the widest covering one, how finely
NUDGES = range(-3, 4)  #: what the second pass tries around the first one's best, in finest steps

GroupError = Callable[[jax.Array, jax.Array], jax.Array]
"""``error(scale, zero)``: the squared error of each group with its quantiser, [g] of [g], [g]."""


class Search(NamedTuple):
    """What is tried, a row a pass: static, the same for every width."""

    factor: np.ndarray  # [2 s] scales, over the widest covering one and then over the best of the first pass
    depth: np.ndarray  # [2 s] the least shift below the widest scale in use at which a scale serves
    ladders: np.ndarray  # [2 t k] the scales of each ladder, the widest first, as indices into the pass's scales


def room(levels: Float[Array, ""]) -> Bool[Array, " k"]:
    """Which shifts k = 0..6 keep ``levels << k`` within int8; none from 8 bits on."""
    return levels * jnp.asarray(2.0 ** np.arange(SHIFTS), jnp.float32) <= HOLDS


def fit_ladder(
    lower: Float[Array, " g"],
    upper: Float[Array, " g"],
    levels: Float[Array, ""],
    error: GroupError,
    *,
    nonnegative: bool,
) -> tuple[Float[Array, " g"], Float[Array, " g"]]:
    """Scales ``s0 * 2**k``, exactly, and whole zero points in 0..levels of least summed error, float32 [g], [g].

    ``lower upper`` are the groups' covering bounds. The widest scale of a ladder is searched from just below twice the
    widest group's covering scale (a phase between two groups may suit both best) down to 1/32 of it (clipping), eight
    an octave, then around the best in steps of 1/32 octave. At every scale each group takes the best of six zero
    points, in every ladder the best of its scales; the ladder of least sum wins. Ladders an eighth of an octave apart
    share all their scales but one an octave, so that a scale's error is computed once. Where all are equal (a group
    without values) the quantiser nearest to the covering one is taken.
    """
    low, high = jnp.minimum(lower, 0.0), jnp.maximum(upper, 0.0)
    covering, _ = ranges.affine(low, high, levels, "extend")
    fits, parts = room(levels), _parts(low, covering * levels, nonnegative)
    depth = fits.sum()

    def best_zero(scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        def at(part: jax.Array) -> tuple[jax.Array, jax.Array]:
            over = (high - low) * (1.0 / scale) - levels  # codes that are missing to cover; may be negative
            zero = jnp.clip(jnp.round(-low * (1.0 / scale) - part * over), 0.0, levels)
            return error(jnp.full_like(low, scale), zero), zero

        errors, zeros = jax.lax.map(at, parts)
        best = errors.argmin(axis=0, keepdims=True)
        return jnp.take_along_axis(errors, best, axis=0)[0], jnp.take_along_axis(zeros, best, axis=0)[0]

    def skipped(scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.full_like(low, jnp.inf), jnp.zeros_like(low)

    def search(widest: jax.Array, row: Search) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        scale = widest * row.factor
        errors, zeros = jax.lax.map(lambda x: jax.lax.cond(x[1] < depth, best_zero, skipped, x[0]), (scale, row.depth))
        each = jnp.where(fits[:, None], errors[row.ladders], jnp.inf)  # [t k g]
        ladder = row.ladders[each.min(axis=1).sum(axis=-1).argmin()]
        of = jnp.where(fits[:, None], errors[ladder], jnp.inf)  # [k g]
        away = jnp.abs(scale[ladder][:, None] - covering[None])
        rung = ladder[jnp.where(of <= of.min(axis=0, keepdims=True), away, jnp.inf).argmin(axis=0)]
        return scale[ladder[0]], (scale[rung], jnp.take_along_axis(zeros, rung[None], axis=0)[0])

    passes = jax.tree.map(jnp.asarray, _passes())
    _, (scale, zero) = jax.lax.scan(search, covering.max(), passes)  # one scan: error is compiled once
    return scale[-1], zero[-1]


def _parts(low: Float[Array, " g"], width: Float[Array, " g"], nonnegative: bool) -> Float[Array, "z g"]:
    """Of what a scale clips of the covering interval, the part that falls to its lower end: its share, and quarters.

    The first keeps the covering quantiser's own zero point, and is taken where errors are equal. Without values below
    0 no zero point but 0 makes sense.
    """
    if nonnegative:
        return jnp.zeros_like(low)[None]
    return jnp.stack([-low * (1.0 / width), *(jnp.full_like(low, i / 4) for i in range(5))])


def _passes() -> Search:
    """The coarse pass and the fine one, padded to one length."""
    tops = np.arange(OCTAVE - STEP, -BELOW - 1, -STEP)
    down = np.arange(SHIFTS)
    coarse = np.arange(OCTAVE - STEP, -BELOW - (SHIFTS - 1) * OCTAVE - 1, -STEP)
    fine = (np.array(NUDGES)[:, None] - OCTAVE * down).ravel()
    reads = np.arange(len(tops))[:, None] + down * (OCTAVE // STEP), np.arange(len(fine)).reshape(-1, SHIFTS)
    depth = np.maximum(-(-(np.arange(len(coarse)) - len(tops) + 1) * STEP // OCTAVE), 0), np.tile(down, len(NUDGES))
    whole = [np.resize(x, len(coarse)) for x in (coarse, fine)]
    return Search(
        factor=np.stack([_power(x) for x in whole]),
        depth=np.stack([np.pad(x, (0, len(coarse) - len(x)), constant_values=SHIFTS) for x in depth]).astype(np.int32),
        ladders=np.stack([np.resize(x, (len(tops), SHIFTS)) for x in reads]).astype(np.int32),
    )


def _power(steps: np.ndarray) -> np.ndarray:
    """``2 ** (steps / 32)``, float32; numbers an octave apart are so exactly."""
    octaves, rest = np.divmod(steps, OCTAVE)
    return np.ldexp(np.exp2(rest / OCTAVE).astype(np.float32), octaves)
