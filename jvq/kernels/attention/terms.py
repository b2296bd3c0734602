"""What zero points and scales add to the products of codes: small arrays, made once in front of a kernel.

A constant added to all scores of a row does not change its softmax. Of ``(q - q_zero) . (k - k_zero)`` only two terms
vary along the keys: ``q . k`` and ``-q_zero * sum(k)``. So no sum of q is needed, and ``k_zero`` not at all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

SHIFT = 128  #: what is taken off codes of p that do not fit int8
FITS = 127  #: the greatest code that does


class Terms(NamedTuple):
    """``scores = scale * (q . k + keys)``; ``out = scaled * (s . v + values - v_zero * sum(s))``, s the codes of p.

    Without codes of p (``inverse`` None): ``out = scaled * p . (v - v_zero)``. None: nothing is added.
    """

    scale: jax.Array  # float32 [1|b 1|h 1 1]
    keys: jax.Array | None  # int32 [b h 1 k]
    inverse: jax.Array | None  # float32 [1 1|h 1 1], of the scale of p
    p_zero: jax.Array | None  # int32 [1 1|h 1 1], of codes from 0
    shift: int  # s = code - shift
    values: jax.Array | None  # int32 [b h 1 e]
    v_zero: jax.Array | None  # int32 [1|b 1|h 1 1]
    scaled: jax.Array  # float32 [1|b 1|h 1 1]


def terms(
    k: jax.Array,
    v: jax.Array,
    q_scale: jax.Array,
    k_scale: jax.Array,
    v_scale: jax.Array,
    q_zero: jax.Array | None,
    v_zero: jax.Array | None,
    p_scale: jax.Array | None,
    p_zero: jax.Array | None,
    p_levels: int,
) -> Terms:
    """The terms of k [b h k e] and v [b h k e]."""
    keys = None
    if q_zero is not None:
        keys = -q_zero * jnp.swapaxes(k.astype(jnp.int32).sum(axis=3, keepdims=True), 2, 3)
    if p_scale is None:
        return Terms(q_scale * k_scale, keys, None, None, 0, None, v_zero, v_scale)
    shift = SHIFT if p_levels > FITS else 0
    values = None
    if shift or p_zero is not None:
        sums = v.astype(jnp.int32).sum(axis=2, keepdims=True)
        sums = sums if v_zero is None else sums - v.shape[2] * v_zero
        values = sums * (shift if p_zero is None else shift - p_zero)
    return Terms(q_scale * k_scale, keys, 1.0 / p_scale, p_zero, shift, values, v_zero, p_scale * v_scale)
