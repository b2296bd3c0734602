"""Latent weights: the float weights behind the codes of a quantised product, while both are trained."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from jvq.core.calibrate import leaf
from jvq.core.recipe import Operand, Plan, Sites, path_of
from jvq.quantizers import Learned

WIDEST = 4  #: bits of the weights whose codes are followed


def learned(plan: Plan) -> dict[str, Learned]:
    """The quantisers of the plan whose scales are trained."""
    return {a: q for a, q in plan.items() if isinstance(q, Learned)}


def weights(plan: Plan, known: Sites) -> dict[str, Learned]:
    """Those of them that quantise weights."""
    return {a: q for a, q in learned(plan).items() if known[a].path is not None}


def followed(plan: Plan, known: Sites) -> dict[str, Learned]:
    """The quantisers of the weights of few bits, inside the model."""
    return {a: q for a, q in weights(plan, known).items() if q.bits <= WIDEST}


def codes(q: Learned, trained: Any, o: Operand) -> Float[Array, "..."]:
    """The codes of the weight that is ``o``, in its shape; ``trained`` has ``params`` and ``q``."""
    return q.codes(trained["q"][o.address], leaf(trained["params"], o), o.letters)


def steps(q: Learned, trained: Any, o: Operand) -> Float[Array, "..."]:
    """Where the weight that is ``o`` lies among its codes, in its shape."""
    return q.steps(trained["q"][o.address], leaf(trained["params"], o), o.letters)


def scaled(updates: Any, factors: Mapping[tuple[str, ...], Any]) -> Any:
    """The updates of ``params`` times ``factors``, which are by path; others as they are."""

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        factor = factors.get(path_of(path))
        return update if factor is None else update * factor

    return {**updates, "params": jax.tree_util.tree_map_with_path(scale, updates["params"])}
