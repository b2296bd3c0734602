"""Oscillation-aware bin regularisation: weights are drawn to the values that their codes stand for.

Source: Huang et al. 2024 (VVTQ), with Nagel et al. 2022 (dampening) and Han et al. 2021 (bin regularisation) behind it;
specification section 5. As released, means of squares at strength 0.01, its gradient is a thousand times too weak to do
anything; our default sums. Scales get no gradient, and membership is by integer code.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvq.core.quantizer import State
from jvq.quantizers import Learned

Aggregate = Literal["sum", "mean", "kernel_mean"]
Variance = Literal["sum_sq", "unbiased", "off"]
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)
VARIANCES: tuple[Variance, ...] = get_args(Variance)


def bin_loss(
    q: Learned,
    state: State,
    w: Float[Array, "..."],
    letters: str,
    contracted: str,
    aggregate: Aggregate = "sum",
    variance: Variance = "sum_sq",
) -> Float[Array, ""]:
    """The regulariser of one weight: squared error, and the spread inside each bin of each scale's part.

    ``aggregate`` is over the squared errors: their sum, their mean, or the sum over outputs of the means over
    inputs (``contracted``).
    ``variance``: sums of squares about the bin's mean, unbiased variances (of bins of two and more), or nothing.
    Clipped weights count as the value at their end and get no gradient.
    """
    state = jax.lax.stop_gradient(state)
    value = jax.lax.stop_gradient(q.apply(state, w, letters))
    codes = jax.lax.stop_gradient(q.codes(state, w, letters))
    u = jax.lax.stop_gradient(q.steps(state, w, letters))
    inside = (u >= state["low"]) & (u <= state["high"])
    clipped = jnp.where(inside, w, value)
    error = jnp.square(clipped - value).sum()
    fan_in = math.prod(n for a, n in zip(letters, w.shape, strict=True) if a in contracted)
    loss = error / {"sum": 1, "mean": w.size, "kernel_mean": fan_in}[aggregate]
    if variance == "off":
        return loss
    part, parts = q.parts(state, w, letters)
    levels = 2**q.bits
    place = (part * levels + (codes - state["low"]).astype(jnp.int32)).reshape(-1)

    def sums(x: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(x.reshape(-1), place, parts * levels)

    count = sums(jnp.ones(w.shape))
    mean = jax.lax.stop_gradient(sums(clipped) / jnp.maximum(count, 1.0))
    spread = jnp.square(clipped - mean[place].reshape(w.shape))
    if variance == "sum_sq":
        return loss + spread.sum()
    return loss + (sums(spread) / jnp.maximum(count - 1.0, 1.0)).sum()


def strength(most: float, start: float, step: jax.Array, steps: int) -> Float[Array, ""]:
    """The regulariser's factor at a step: 0 for the share ``start`` of the steps, then half a cosine up to ``most``."""
    after = (step / steps - start) / (1 - start)
    return jnp.where(after > 0, most * 0.5 * (1 - jnp.cos(jnp.pi * after)), 0.0)
