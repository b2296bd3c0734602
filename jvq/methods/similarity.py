"""How alike a product and its quantised self are: what Liu et al. 2021 maximise, and EasyQuant.

Similarity (eqs. 9-11) is taken image by image, each over its whole output. The ranking loss (eqs. 12-13) asks that in a
row of attention scores a greater one stays greater, by a margin.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Similarity = Literal["pearson", "cosine"]
SIMILARITIES: tuple[Similarity, ...] = ("pearson", "cosine")
FLAT = 1e-6  #: a spread below this part of the greatest value is rounding, not variance


def similarity(
    reference: Float[Array, "..."], got: Float[Array, "..."], over: tuple[int, ...], kind: Similarity = "pearson"
) -> Float[Array, "..."]:
    """The correlation (``pearson``) or cosine of two arrays over the axes ``over``, which are gone in the result.

    In -1..1; 0, by definition, where either does not vary (cosine: is 0 everywhere). A correlation does not see a
    common factor nor a common offset.
    """
    pairs = []
    for x in (reference, got):
        wide = x.astype(jnp.float32)
        for _ in range(2):  # squares neither overflow nor vanish; twice, because some reciprocals are subnormal
            greatest = jnp.clip(jnp.abs(wide).max(axis=over, keepdims=True), 1e-36, 1e36)
            wide = wide * jnp.where(greatest > 1e-36, 1.0 / greatest, 1.0)
        if kind == "pearson":
            wide = wide - wide.mean(axis=over, keepdims=True)
        pairs.append((wide, jnp.square(wide).mean(axis=over)))
    (a, power_a), (b, power_b) = pairs
    varies = (power_a > FLAT**2) & (power_b > FLAT**2)
    scale = jnp.sqrt(jnp.where(varies, power_a, 1.0)) * jnp.sqrt(jnp.where(varies, power_b, 1.0))
    return jnp.where(varies, (a * b).mean(axis=over) / scale, 0.0)


def ranking_loss(reference: Float[Array, "*r k"], got: Float[Array, "*r k"], theta: float) -> Float[Array, "*r"]:
    """The pairs' hinge of each row, summed: ``max(0, theta - (got_i - got_j) * sign(reference_i - reference_j))``.

    A pair costs nothing if it is in the right order and at least ``theta`` apart; a tie costs ``theta``. Rows are
    sorted by the reference, so that of each two entries the later one has to be greater.
    """
    order = jnp.argsort(reference, axis=-1)
    ranked = jnp.take_along_axis(reference, order, axis=-1)
    moved = jnp.take_along_axis(got, order, axis=-1)
    group = jnp.cumsum(jnp.diff(ranked, axis=-1, prepend=ranked[..., :1]) > 0, axis=-1)  # equal ones share a number
    after = group[..., None, :] > group[..., :, None]
    hinge = jnp.maximum(theta - (moved[..., None, :] - moved[..., :, None]), 0.0)
    count = ranked.shape[-1] * (ranked.shape[-1] - 1) / 2
    cost = jnp.where(after, hinge, 0.0).sum(axis=-2).sum(axis=-1)  # the minor axis last: it vectorises
    return cost + theta * (count - after.sum(axis=-2).sum(axis=-1).astype(jnp.float32))
