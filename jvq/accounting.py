"""Counting what a quantised model costs: multiply-accumulates, bit-operations, bytes.

Bit-operations (BOPs) of one image (spec of IGQ-ViT, section 2.6; base formula of Shift-and-Sum)::

    base     = MACs * bits(left operand) * bits(right operand)        a float operand counts 32 bits
    overhead = what the quantisers do at run time (their ``overhead``), for N tokens, C inputs, D outputs, G groups:
      find     minima and maxima           2 beta N C of a linear input,         beta H N**2 of an attention map
      choose   each index's nearest group  C G (3 beta + 2 beta**2),             beta H N G
      add      the groups' partial sums    beta (G - 1) N D,                     0: a row's scale factors out of the sum

A floating-point addition or comparison costs ``beta`` BOPs, 16 by default.

Bytes are those of the arrays: packed weights (bits / 8 a weight, rounded up per output channel), their scales and zero
points, float parameters, and the state of the activations' quantisers.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax

from jvq.core.packed import is_encoded
from jvq.core.quantizer import Overhead, State
from jvq.core.recipe import Operand, Plan, Sites

FLOAT_BITS = 32
BETA = 16

FORMULA = (
    "sum over products of MACs * bits * bits (float = 32) + run-time work of the quantisers, "
    f"{BETA} BOPs a floating-point addition or comparison; per image"
)


class Cost(NamedTuple):
    """Of one site, per image."""

    macs: int
    base: int  # bit-operations of the product
    overhead: Overhead  # bit-operations of the quantisers at run time

    @property
    def bops(self) -> int:
        return self.base + self.overhead.total


def macs(left: Operand, right: Operand) -> int:
    """Multiply-accumulates of a product, per image: the extents of all its letters multiplied."""
    extent = dict(zip(left.letters, left.shape, strict=True)) | dict(zip(right.letters, right.shape, strict=True))
    return math.prod(extent.values())


def pairs(known: Sites) -> dict[str, tuple[Operand, Operand]]:
    """Site to its two operands."""
    found: dict[str, list[Operand]] = {}
    for operand in known.values():
        found.setdefault(operand.site, []).append(operand)
    return {site: (left, right) for site, (left, right) in found.items()}


def costs(known: Sites, plan: Plan, beta: int = BETA) -> dict[str, Cost]:
    """Every site's cost under a plan (operands without a quantiser are float)."""
    table = {}
    for site, operands in pairs(known).items():
        count = macs(*operands)
        base, extra = count, []
        for o in operands:
            quantizer = plan.get(o.address)
            base *= FLOAT_BITS if quantizer is None else quantizer.bits
            if quantizer is not None:
                extra.append(quantizer.overhead(o.letters, o.shape, o.contracted, math.prod(o.product), beta))
        table[site] = Cost(count, base, _together(extra))
    return table


def bops(known: Sites, plan: Plan, beta: int = BETA) -> int:
    """Bit-operations of the whole model, per image."""
    return sum(cost.bops for cost in costs(known, plan, beta).values())


def total(table: Mapping[str, Cost]) -> Cost:
    """The sum over the sites."""
    every = table.values()
    return Cost(sum(c.macs for c in every), sum(c.base for c in every), _together(c.overhead for c in every))


def _together(parts: Iterable[Overhead]) -> Overhead:
    return Overhead(*map(sum, zip(*parts, strict=True)))


def spent(known: Sites, plan: Plan, beta: int = BETA) -> dict[str, Any]:
    """What a row of a report says of its cost: ``bops`` of one image, and under ``cost`` what they are made of."""
    whole = total(costs(known, plan, beta))
    return {"bops": whole.bops, "cost": {"macs": whole.macs, "base": whole.base, **whole.overhead._asdict()}}


def tree_bytes(params: Any, qstate: Mapping[str, State] | None = None) -> int:
    """Bytes of a parameter tree, Packed leaves as packed, and of the quantisers' states beside it."""
    leaves = jax.tree.leaves(params, is_leaf=is_encoded)
    return sum(int(leaf.nbytes) for leaf in leaves) + sum(int(x.nbytes) for x in jax.tree.leaves(dict(qstate or {})))
