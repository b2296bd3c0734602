"""Whether attention still ranks tokens as the float model does: Kendall's tau of the maps' rows."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jvq.core import axes
from jvq.core.dot import packed_dot, quantized, recording
from jvq.core.errors import nearest
from jvq.core.mesh import gathered
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Forward, Plan, Sites, forms

SEEN = "^"  #: after the address of a map: as its product sees it, quantised


def order_agreement(
    reference: tuple[Forward, Any],
    got: tuple[Forward, Any],
    plan: Plan,
    qstate: Mapping[str, State],
    known: Sites,
    images: np.ndarray,
    *,
    rows: int = 8,
    batch: int = 8,
) -> dict[str, float]:
    """By the address of an attention map the mean tau-b of its rows, float model against quantised model.

    ``reference`` and ``got`` are the two models, forward and parameters; ``known`` are the first one's operands, whose
    attention maps the second has too. The maps are those that the softmax gives, before they are quantised
    themselves; of every head (and window) ``rows`` rows, evenly spaced, of every image. Keys that the float model's
    mask excludes are left out. 1: every pair of keys in the float order.
    """
    maps = tuple(a for a, o in known.items() if o.role == "p")
    total = dict.fromkeys(maps, 0.0)
    (forward, params), (other, own), static = reference, got, forms(plan)
    for i in range(0, len(images), batch):
        x = jnp.asarray(images[i : i + batch])
        found = gathered(_sums(forward, other, static, maps, rows, params, own, dict(qstate), x))
        total = {a: total[a] + float(found[a]) for a in maps}
    return {a: total[a] / len(images) for a in maps}


@partial(jax.jit, static_argnums=range(5))
def _sums(
    forward: Forward,
    other: Forward,
    plan: tuple[tuple[str, Quantizer], ...],
    maps: tuple[str, ...],
    rows: int,
    params: Any,
    own: Any,
    qstate: Any,
    x: jax.Array,
) -> dict[str, jax.Array]:
    """Sums over the images."""
    plain: dict[str, jax.Array] = {}
    tape: dict[str, jax.Array] = {}
    forward(params, x, recording(plain, maps.__contains__, packed_dot()))
    other(own, x, recording(tape, maps.__contains__, packed_dot(quantized(dict(plan), qstate))))

    def mean(address: str) -> jax.Array:
        count = plain[address].shape[-2]
        places = np.arange(min(rows, count)) * count // min(rows, count)
        tau = kendall(*(jnp.take(t[address], places, axis=-2) for t in (plain, tape)))
        return tau.reshape(x.shape[0], -1).mean(axis=1).sum()

    return {address: mean(address) for address in maps}


def attention_maps(
    model: tuple[Forward, Any],
    plan: Plan,
    qstate: Mapping[str, State],
    addresses: Iterable[str],
    images: np.ndarray,
) -> dict[str, np.ndarray]:
    """By address the attention map of every image, [b h q k] or [b m h q k], float32, before it is quantised itself.

    Of those that have a quantiser in the plan also, by ``address + "^"``, what their product sees. ``model`` is forward
    and parameters; everything before a map is quantised as the plan says. One forward of all the images.
    """
    forward, params = model
    chosen = tuple(addresses)
    found = gathered(_maps(forward, forms(plan), chosen, params, dict(qstate), jnp.asarray(images)))
    return {a: found[a] for address in chosen for a in (address, address + SEEN) if a in found}


@partial(jax.jit, static_argnums=range(3))
def _maps(
    forward: Forward,
    plan: tuple[tuple[str, Quantizer], ...],
    addresses: tuple[str, ...],
    params: Any,
    qstate: Any,
    x: jax.Array,
) -> dict[str, jax.Array]:
    """The chosen maps, and behind their quantisers."""
    soft: dict[str, jax.Array] = {}
    seen: dict[str, jax.Array] = {}
    quantizers = dict(plan)
    below = packed_dot(quantized(quantizers, qstate))

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        for (role, y), letters in zip(operands.items(), axes.split(equation)[0], strict=True):
            address = f"{site}.{role}"
            if address in addresses and address in quantizers:
                seen[address] = quantizers[address].apply(qstate[address], y, letters)
        return below(site, equation, **operands)

    forward(params, x, recording(soft, lambda a: a.endswith(".p"), dot))
    for address in addresses:
        if address not in soft:
            raise ValueError(f"{address} is no attention map of the model{nearest(address, soft)}")
    found = {a: soft[a] for a in addresses} | {a + SEEN: y for a, y in seen.items()}
    return {a: y.astype(jnp.float32) for a, y in found.items()}


def kendall(reference: Float[Array, "*r k"], got: Float[Array, "*r k"]) -> Float[Array, "*r"]:
    """Kendall's tau-b of each row; entries where the reference is 0 (masked) do not count, a row without pairs gives 1.

    tau-b: concordant less discordant pairs, over the geometric mean of the pairs that are not tied in either.
    """
    there = (reference > 0)[..., None, :] & (reference > 0)[..., :, None]
    a, b = (jnp.where(there, jnp.sign(x[..., None, :] - x[..., :, None]), 0.0) for x in (reference, got))
    agree, left, right = ((u * v).sum(axis=-2).sum(axis=-1) for u, v in ((a, b), (a, a), (b, b)))
    return jnp.where(left > 0, agree / jnp.sqrt(jnp.maximum(left * right, 1.0)), 1.0)
