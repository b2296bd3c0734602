"""How far predictions move when one operand is quantised: IGQ-ViT's perturbation metric (eq. 9), for many candidates.

One compiled function serves every operand and every candidate: which operand it is, and the candidates' states, are
arguments. Products in front of that operand are not computed again but taken from a recording; what a model computes
between its products (norms, softmax, GELU) is.
"""

import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jvq.core import axes
from jvq.core.calibrate import Track, silent
from jvq.core.dot import PRODUCT, float_dot, packed_dot, quantized, recording
from jvq.core.mesh import Rounds, everywhere, gathered, parts
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Forward, Plan, Sites

Journal = MutableMapping[str, list[float]]
"""What is known already, by a key; what is found is put into it at once."""


def sweep(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    candidates: Mapping[str, Sequence[Quantizer]],
    states: Mapping[str, Sequence[State]],
    known: Sites,
    *,
    base: tuple[Plan, Mapping[str, State]] = ({}, {}),
    memory: int = 2**30,
    track: Track = silent,
    journal: Journal | None = None,
    mesh: Mesh | None = None,
) -> dict[str, list[float]]:
    """By address the divergence (nats) that each candidate causes alone, mean over float images [b y x c].

    ``states`` are the candidates' own: the candidates of an address are of one form, their states arrays of the same
    names and shapes. ``base`` is what the rest of the model is quantised with (nothing: float);
    the reference is always the float model. Recorded products stay below about ``memory`` bytes a device. What
    ``journal`` holds already is not computed again, on however many devices of a ``mesh`` it was.
    """
    journal, (plan, rest) = {} if journal is None else journal, base
    order = {site: i for i, site in enumerate(dict.fromkeys(o.site for o in known.values()))}
    number = {address: i for i, address in enumerate(candidates)}

    @jax.jit
    def record(params: Any, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The float model's predictions, and the products of the model under ``base``."""
        tape: dict[str, jax.Array] = {}
        forward(params, x, recording(tape, _is_product, packed_dot(quantized(plan, rest))))
        return forward(params, x, packed_dot()), tape

    @jax.jit
    def probe(
        params: Any,
        x: jax.Array,
        reference: jax.Array,
        tape: Mapping[str, jax.Array],
        at: Int[Array, ""],
        start: Int[Array, ""],
        current: Mapping[str, State],
    ) -> Float[Array, " b"]:
        def through(address: str, value: jax.Array, letters: str) -> jax.Array:
            def usual() -> jax.Array:
                return plan[address].apply(rest[address], value, letters) if address in plan else value

            def changed() -> jax.Array:
                return candidates[address][0].apply(current[address], value, letters)

            return jax.lax.cond(at == number[address], changed, usual) if address in number else usual()

        def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
            letters, _ = axes.split(equation)

            def compute() -> jax.Array:
                pairs = zip(operands.items(), letters, strict=True)
                return float_dot(site, equation, **{r: through(f"{site}.{r}", x, axis) for (r, x), axis in pairs})

            return jax.lax.cond(order[site] < start, lambda: tape[f"{site}.{PRODUCT}"], compute)

        return divergence(reference, forward(params, x, packed_dot(dot)))

    size = max(1, memory // max(1, _product_bytes(known)))
    params, firsts = everywhere(mesh, (params, {a: mine[0] for a, mine in states.items()}))
    units = [slice(i, i + size) for i in range(0, len(images), size)]
    sums = {address: np.zeros(len(quantizers)) for address, quantizers in candidates.items()}
    for x, mask, first in Rounds(mesh, images, size):
        recorded = None
        here = range(first // size, min(first // size + parts(mesh), len(units)))
        text = "sensitivity" if len(here) == len(units) else f"sensitivity, images {here[-1] + 1} of {len(units)}"
        for address in track(list(candidates), text):
            keys = [f"{address} {i}/{len(units)}" for i in here]
            if not all(key in journal for key in keys):
                recorded = recorded or record(params, x)
                place = jnp.int32(number[address]), jnp.int32(order[known[address].site])
                found = [probe(params, x, *recorded, *place, {**firsts, address: s}) for s in states[address]]
                _keep(journal, zip(keys, units, strict=False), [d[mask] for d in gathered(found)])
            for key in keys:
                sums[address] += journal[key]
    return {address: (total / len(images)).tolist() for address, total in sums.items()}


def _keep(journal: Journal, keys: Iterable[tuple[str, slice]], found: Sequence[np.ndarray]) -> None:
    """Writes what is not in the journal yet: by the key of a unit, its images' sum for each candidate."""
    for key, unit in keys:
        if key not in journal:
            journal[key] = [float(d[unit].sum()) for d in found]


def sweep_modules(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    modules: Mapping[str, Sequence[str]],
    plan: Plan,
    states: Sequence[Mapping[str, State]],
    *,
    batch: int = 8,
    track: Track = silent,
    mesh: Mesh | None = None,
) -> dict[str, list[float]]:
    """By module the divergence (nats) of quantising it alone, as a whole, under each of ``states`` of the plan.

    ``modules`` are the operands of each; the rest of the model is float. Mean over float images [b y x c].
    """
    number = {a: i for i, addresses in enumerate(modules.values()) for a in addresses}

    @jax.jit
    def reference(params: Any, x: jax.Array) -> jax.Array:
        return forward(params, x, packed_dot())

    @jax.jit
    def probe(
        params: Any, x: jax.Array, plain: jax.Array, at: Int[Array, ""], state: Mapping[str, State]
    ) -> Float[Array, " b"]:
        def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
            letters, _ = axes.split(equation)
            through = {}
            for (role, value), axis in zip(operands.items(), letters, strict=True):
                address = f"{site}.{role}"
                through[role] = value
                if address in number and address in plan:

                    def changed(a: str = address, v: jax.Array = value, axis: str = axis) -> jax.Array:
                        return plan[a].apply(state[a], v, axis)

                    through[role] = jax.lax.cond(at == number[address], changed, lambda v=value: v)
            return float_dot(site, equation, **through)

        return divergence(plain, forward(params, x, packed_dot(dot)))

    params = everywhere(mesh, params)
    batches = [*Rounds(mesh, images, batch)]
    plain = [reference(params, part.images) for part in batches]
    means: dict[str, list[float]] = {name: [] for name in modules}
    for i, name in track([*enumerate(modules)], "sensitivity of modules"):
        for state in states:
            mine = {a: state[a] for a in number if a in plan}
            pairs = zip(batches, plain, strict=True)
            found = [gathered(probe(params, b.images, y, jnp.int32(i), mine))[b.mask] for b, y in pairs]
            means[name].append(math.fsum(np.concatenate(found)) / len(images))
    return means


def _is_product(address: str) -> bool:
    return address.endswith(f".{PRODUCT}")


def _product_bytes(known: Sites) -> int:
    """Bytes of all products of one image, float32."""
    return 4 * sum({o.site: int(np.prod(o.product)) for o in known.values()}.values())


def divergence(reference: Float[Array, "b ..."], got: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """KL(reference || got) of each image's predictions, nats, float32.

    Logits [b o] are distributions over classes. Maps [b y x] of values in 0..1 are a yes or no in every pixel, and
    their divergence is the mean over the pixels.
    """
    if reference.ndim == 2:
        log_p, log_q = (jax.nn.log_softmax(logits.astype(jnp.float32)) for logits in (reference, got))
        return _kl(log_p, log_q).sum(axis=-1)
    p, q = (jnp.clip(maps.astype(jnp.float32), 1e-6, 1 - 1e-6) for maps in (reference, got))
    each = _kl(jnp.log(p), jnp.log(q)) + _kl(jnp.log1p(-p), jnp.log1p(-q))
    return each.mean(axis=tuple(range(1, each.ndim)))


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """``p log(p / q) + q - p``: sums like KL, as both sum to 1, but no term is negative."""
    d = log_q - log_p
    near = jnp.minimum(d, 1.0)  # where q is much greater than p, its exponential would be too large
    return jnp.where(d < 1, jnp.exp(log_p) * (jnp.expm1(near) - near), jnp.exp(log_q) - jnp.exp(log_p) * (1 + d))
