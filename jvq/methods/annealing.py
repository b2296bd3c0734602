"""Confidence-guided annealing: at the end only weights that lie next to where their code changes are still trained.

Source: Liu et al. 2023 (OFQ), where it is a fine-tuning of its own; here it is the last share of the steps. Scales of
these weights stand still too [choice]: a scale that moves would change the codes of weights that do not.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jvq.core.recipe import Sites
from jvq.methods.latent import scaled, steps
from jvq.methods.oscillation import near_boundary
from jvq.quantizers import Learned


def annealed(weights: Mapping[str, Learned], known: Sites, start: int, band: float) -> optax.GradientTransformation:
    """From step ``start`` on, updates of ``weights`` within ``band`` of a step of a boundary, and none of the others.

    Comes behind everything that changes updates. Biases, norms and scales of activations go on.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, jax.Array]:
        before = state < start  # the number of the step
        masks, q = {}, dict(updates["q"])
        for a, quantizer in weights.items():
            path, own = known[a].path, params["q"][a]
            assert path is not None
            near = near_boundary(steps(quantizer, params, known[a]), own["low"], own["high"], band)
            masks[path] = (before | near).astype(jnp.float32)
            q[a] = jax.tree.map(lambda x: jnp.where(before, x, jnp.zeros_like(x)), q[a])
        return scaled({**updates, "q": q}, masks), state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)
