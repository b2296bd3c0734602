"""How alike a product and its quantised self are: what Liu et al. 2021 maximise, and EasyQuant.

Similarity (eqs. 9-11) is taken image by image, each over its whole output. The ranking loss (eqs. 12-13) asks that in a
row of attention scores a greater one stays greater, by a margin.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Similarity = Literal["pearson", "cosine"]
SIMILARITIES: tuple[Similarity, ...] = ("pearson", "cosine")
FLAT = 1e-6  #: a spread below this part of the greatest value is rounding, not variance
HALVINGS = 2  #: of a row of scores, before its pairs are compared; more is no faster


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
    sorted by the reference, so that of each two entries the later one has to be greater, and cut into parts: of two
    parts every pair is one that counts, only inside a part half of them are left out.
    """
    order = jnp.argsort(reference, axis=-1)
    lead, keys = reference.shape[:-1], reference.shape[-1]
    halvings = HALVINGS if keys >= 4**HALVINGS else 0  # so that what fills a row up is all in its last part
    parts = 1 << halvings
    fill = [(0, 0)] * len(lead) + [(0, -keys % parts)]
    ranked, moved = (
        jnp.pad(jnp.take_along_axis(x, order, axis=-1), fill, constant_values=jnp.inf) for x in (reference, got)
    )

    def hinges(ranked: jax.Array, moved: jax.Array, before: Any, after: Any) -> Float[Array, "... i j"]:
        later = ranked[after][..., None, :] > ranked[before][..., :, None]
        apart = moved[after][..., None, :] - moved[before][..., :, None]
        return jnp.where(later, jnp.maximum(theta - apart, 0.0), theta)

    cost = jnp.zeros(lead, jnp.float32)
    for level in range(halvings):
        known, seen = (x.reshape(*lead, 1 << level, 2, -1) for x in (ranked, moved))
        cost += _sum_of_pairs(hinges(known, seen, np.s_[..., 0, :], np.s_[..., 1, :])).sum(axis=-1)
    ranked, moved = (x.reshape(*lead, parts, -1) for x in (ranked, moved))
    place = np.arange(parts * ranked.shape[-1]).reshape(parts, 1, -1)
    pairs = (place > place.reshape(parts, -1, 1)) & (place < keys)  # each once, and none of the filling
    pairs = jnp.asarray(pairs).reshape(*[1] * len(lead), *pairs.shape)
    return cost + _sum_of_pairs(jnp.where(pairs, hinges(ranked, moved, ..., ...), 0.0)).sum(axis=-1)


def _sum_of_pairs(x: Float[Array, "*r i j"]) -> Float[Array, "*r"]:
    return x.sum(axis=-2).sum(axis=-1)  # the minor axis last: it vectorises
