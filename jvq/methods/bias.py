"""Bias correction: the mean error of a quantised product, over images and tokens, taken off the bias behind it.

Source: Liu et al. 2021, section 3.2 (eqs. 14-16), in full: the errors of both operands. Corrections are always from
the float bias.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jvq.core import axes
from jvq.core.calibrate import Track, silent
from jvq.core.dot import float_dot, packed_dot, quantized
from jvq.core.mesh import Rounds, added, everywhere, gathered, split
from jvq.core.quantizer import State
from jvq.core.recipe import Forward, Plan, Sites, forms, path_of

Corrections = Mapping[str, np.ndarray]
"""By site what is taken off its bias [the bias's shape]."""


def bias_path(known: Sites, site: str) -> tuple[str, ...] | None:
    """Where the bias behind a product would stand in the parameters; None where its right operand is no weight."""
    weight = known.get(f"{site}.w")
    return None if weight is None or weight.path is None else (*weight.path[:-1], "bias")


def bias_of(params: Any, known: Sites, site: str) -> Any:
    """The bias behind a product, None where it has none."""
    path = bias_path(known, site)
    for key in path or ():
        if not isinstance(params, Mapping) or key not in params:
            return None
        params = params[key]
    return params if path else None


def with_bias_corrections(params: Any, known: Sites, corrections: Corrections) -> Any:
    """The parameters, nothing but the biases of those sites changed."""
    off = {bias_path(known, site): c for site, c in corrections.items()}

    def corrected(path: tuple[Any, ...], leaf: Any) -> Any:
        c = off.get(path_of(path))
        return leaf if c is None else leaf - jnp.asarray(c, leaf.dtype)

    return jax.tree_util.tree_map_with_path(corrected, params)


def mean_errors(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    qstate: Mapping[str, State],
    known: Sites,
    *,
    batch: int,
    track: Track = silent,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """The corrections, each product on the float model's operands: one pass over the images."""
    sites = _corrected(params, plan, known)
    params, qstate = everywhere(mesh, (params, dict(qstate)))
    total: dict[str, Any] = {}
    for x, mask, _ in track(Rounds(mesh, images, batch), "correcting biases"):
        for site, found in gathered(_parallel(forward, forms(plan), sites, params, qstate, x)).items():
            total[site] = added(total.get(site, 0.0), found[mask])
    return {site: (total[site] / len(images)).astype(np.float32) for site in sites}


def sequential_mean_errors(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    qstate: Mapping[str, State],
    known: Sites,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """The corrections, each product behind the quantised and corrected ones before it, against the float model's.

    All images at once: one pass finds and applies them in the model's order. On the devices of a ``mesh`` each has its
    part of them, less than a single one would have, so that the last digits may differ.
    """
    sites = _corrected(params, plan, known)
    params, qstate = everywhere(mesh, (params, dict(qstate)))
    x, _ = split(mesh, images)
    found = gathered(_sequential(forward, forms(plan), sites, (mesh, len(images)), params, qstate, x))
    return {site: found[site] for site in sites}


def _corrected(params: Any, plan: Plan, known: Sites) -> tuple[str, ...]:
    """Sites with a bias and a quantised operand, in order."""
    sites = dict.fromkeys(known[address].site for address in plan)
    return tuple(site for site in sites if bias_of(params, known, site) is not None)


def _per_unit(y: jax.Array, equation: str) -> jax.Array:
    """Means over all axes but the image's and the bias's: [b bias]."""
    (left, _), out = axes.split(equation)
    return y.mean(axis=tuple(i for i, a in enumerate(out) if a != "b" and a in left))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _parallel(
    forward: Forward, plan: Any, sites: Sequence[str], params: Any, qstate: Any, x: jax.Array
) -> dict[str, jax.Array]:
    """Of every image [b bias]."""
    tape: dict[str, jax.Array] = {}
    rough = quantized(dict(plan), qstate)

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        y = float_dot(site, equation, **operands)
        if site in sites:
            off = rough(site, equation, **operands) - y
            tape[site] = _per_unit(off, equation)
        return y

    forward(params, x, packed_dot(dot))
    return tape


@partial(jax.jit, static_argnums=range(4))
def _sequential(
    forward: Forward,
    plan: Any,
    sites: Sequence[str],
    lying: tuple[Mesh | None, int],
    params: Any,
    qstate: Any,
    x: jax.Array,
) -> dict[str, jax.Array]:
    """``lying``: on which devices the images are in parts, and how many they are without what fills them up."""
    mesh, count = lying

    def mean(y: jax.Array, equation: str) -> jax.Array:
        each = _per_unit(y, equation)
        if mesh is not None:  # every device adds up all images, in the order of a single one
            each = jax.lax.with_sharding_constraint(each, NamedSharding(mesh, P()))[:count]
        return each.mean(axis=0)

    targets: dict[str, jax.Array] = {}
    tape: dict[str, jax.Array] = {}
    rough = quantized(dict(plan), qstate)

    def floating(site: str, equation: str, /, **operands: Any) -> jax.Array:
        y = float_dot(site, equation, **operands)
        if site in sites:
            targets[site] = mean(y, equation)
        return y

    def correcting(site: str, equation: str, /, **operands: Any) -> jax.Array:
        y = rough(site, equation, **operands)
        if site not in sites:
            return y
        (left, _), out = axes.split(equation)
        tape[site] = mean(y, equation) - targets[site]
        return y - axes.expand(tape[site], "".join(a for a in out if a not in left), out)

    forward(params, x, packed_dot(floating))
    forward(params, x, packed_dot(correcting))
    return tape
