"""Freezing: the weights of a plan become packed integers, the rest of the plan goes on quantising activations."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from jvq.core.packed import Packed
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Plan, Sites, path_of


def freeze(
    params: Any, plan: Plan, qstate: Mapping[str, State], known: Sites
) -> tuple[Any, dict[str, Quantizer], dict[str, State]]:
    """The same parameter tree with :class:`Packed` leaves, and the plan and state that are left: the activations'.

    The forward of the result with ``packed_dot`` computes what fake quantisation of the whole plan computes. Raises
    ``ValueError`` where two operands of the plan are one parameter: it could be packed in one way only.
    """
    packed = {}
    for address, quantizer in plan.items():
        path = known[address].path
        if path is not None:
            if path in packed:
                raise ValueError(f"{address}: its parameter {'/'.join(path)} is packed for another site already")
            packed[path] = (quantizer, qstate[address], known[address].letters)

    def replace(path: tuple[Any, ...], leaf: Any) -> Any:
        there = packed.get(path_of(path))
        if there is None:
            return leaf
        quantizer, state, letters = there
        return _pack(quantizer.form, quantizer.bits, state, leaf, letters)

    tree = jax.tree_util.tree_map_with_path(replace, params, is_leaf=lambda x: isinstance(x, Packed))
    rest = {a: q for a, q in plan.items() if known[a].path is None}
    return tree, rest, {a: qstate[a] for a in rest}


@partial(jax.jit, static_argnums=(0, 1, 4))
def _pack(form: Quantizer, bits: int, state: State, leaf: jax.Array, letters: str) -> Packed:
    """One executable per form of quantiser, width and shape, shared by all weights that have them."""
    return Packed.of(form.encode(state, leaf, letters), bits)
