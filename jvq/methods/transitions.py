"""Transition-rate scheduling: weights step so that a wanted share of codes changes, instead of by a learning rate.

Source: Lee et al. 2025 (Scheduling Weight Transitions for Quantization-Aware Training). The share is that of all codes
of the model together, and the target falls as the learning rate would; both are choices of ours.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jvq.core.recipe import Sites
from jvq.methods.latent import codes, scaled
from jvq.quantizers import Learned

MEMORY = 0.99  #: of the moving average of shares
GAIN = 0.01  #: how fast the rate follows: with this memory it does not swing


class Rate(NamedTuple):
    """What is known after a step."""

    codes: dict[str, jax.Array]  # by address, int16: before the last update
    share: jax.Array  # float32 [], moving average of the share of codes that an update changes
    rate: jax.Array  # float32 [], what latent weights step by
    step: jax.Array  # int32 []


def scheduled(
    weights: Mapping[str, Learned], known: Sites, target: float, learning_rate: float, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Updates of ``weights`` at a rate under which the share ``target * schedule / learning_rate`` of codes changes.

    Comes behind a rule whose rate is ``schedule``, at most ``learning_rate``: its direction stays, its length goes.
    """
    count = sum(math.prod(known[a].shape) for a in weights)

    def now(params: Any) -> dict[str, jax.Array]:
        return {a: codes(q, params, known[a]).astype(jnp.int16) for a, q in weights.items()}

    def init(params: Any) -> Rate:
        return Rate(now(params), jnp.float32(0), jnp.asarray(schedule(0), jnp.float32), jnp.int32(0))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Rate]:
        found, usual = now(params), jnp.asarray(schedule(state.step.astype(jnp.float32)), jnp.float32)
        moved = jnp.stack([(found[a] != state.codes[a]).sum() for a in weights]).sum() / count
        share = MEMORY * state.share + (1 - MEMORY) * moved
        missing = usual / learning_rate - share / target
        rate = jnp.maximum(state.rate + GAIN * learning_rate * missing, 0.0)
        factor = jnp.where(usual > 0, rate / jnp.where(usual > 0, usual, 1.0), 0.0)
        mine = {path: factor for a in weights if (path := known[a].path) is not None}
        return scaled(updates, mine), Rate(found, share, rate, state.step + 1)

    return optax.GradientTransformation(init, update)
