"""Counting a model in the operations of papers on binary networks: OPs = FLOPs + BOPs / 64.

The rule (spec of Bi-ViT, section 5; in use since XNOR-Net), per image::

    OPs of a product = MACs * bits(left) * bits(right) / 64    never more than its MACs
                       MACs                                    where an operand is float

One MAC is one FLOP. 8 x 8 bits are one operation: a patch embedding and heads at 8 bits count as float ones. Only
products count [choice]: neither LayerNorm, softmax, GELU, residual additions and Swin's relative position bias, nor
what the quantisers do at run time, which ``accounting`` counts.

The float model over the quantised one is stated three times, because no single rule gives what the paper prints:

    exact        all products, each as the plan has it
    body only    blocks, attention and merges: without the patch embedding and the heads
    paper        one entry of a table over another, both rounded to 0.01 G before they are divided
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from jvq.accounting import FLOAT_BITS, macs, pairs
from jvq.core.recipe import Operand, Plan, Sites

WORD = 64  #: one-bit products that count as one operation
HUNDREDTH = 10**7  #: 0.01 G, to which the paper's entries are rounded
PATCH = ("patch",)  #: the first products; the first part of a site's name decides
HEADS = ("head", "head_dist", "decoder")  #: the last

RULE = (
    f"sum over products of MACs * bits * bits / {WORD}, never more than MACs; MACs where an operand is float; "
    "one MAC is one FLOP, 8 x 8 bits are one; per image"
)
FOUND = "61.5 for DeiT-T with 198 tokens, 56.1 for Swin-T; elsewhere the same rule, which rounding may take past 64"

Part = Literal["patch", "body", "head"]
Count = int | float


class Parts(NamedTuple):
    """A count, by part of the model."""

    patch: Count
    body: Count  # blocks, attention and merges: what is neither patch embedding nor head
    head: Count

    @property
    def total(self) -> Count:
        return sum(self)


class Operations(NamedTuple):
    """What a model costs per image, and how many times less than the float one; quotients by nothing are None."""

    macs: Parts
    ops: Parts
    windowed: bool  # attention in windows: decides which entries the paper divides

    @property
    def exact(self) -> float | None:
        """All products, each as the plan has it."""
        return _over(self.macs.total, self.ops.total)

    @property
    def body_only(self) -> float | None:
        """Without the patch embedding and the heads: 64 where all of the body is binary."""
        return _over(self.macs.body, self.ops.body)

    @property
    def entries(self) -> tuple[int, int]:
        """What the paper divides, in hundredths of a G.

        An inference from its quotients (section 5): the body over its OPs for DeiT, but the whole model over the OPs of
        body and patch embedding for Swin. Among entries of two decimals near these models' sizes no others give them.
        """
        if self.windowed:
            above, below = self.macs.total, self.ops.body + self.ops.patch
        else:
            above, below = self.macs.body, self.ops.body
        return round(above / HUNDREDTH), round(below / HUNDREDTH)

    @property
    def paper(self) -> float | None:
        """The paper's quotient; None where the lower entry rounds to 0.00 G."""
        return _over(*self.entries)

    @property
    def paper_rule(self) -> str:
        """Which entries the paper divides, in words."""
        if self.windowed:
            return "all MACs over the OPs of body and patch embedding, each rounded to 0.01 G"
        return "MACs of the body over its OPs, each rounded to 0.01 G"

    def lines(self) -> list[str]:
        """The three quotients, each with what was divided and the rule."""
        above, below = (n / 100 for n in self.entries)
        whole = f"{_giga(self.macs.total)} MACs / {_giga(self.ops.total)} OPs"
        body = f"{_giga(self.macs.body)} MACs / {_giga(self.ops.body)} OPs"
        return [
            f"exact: {_times(self.exact)} = {whole} (all products; {RULE})",
            f"body only: {_times(self.body_only)} = {body} (without patch embedding and heads)",
            f"paper's quotient: {_times(self.paper)} = {above:.2f} G / {below:.2f} G ({self.paper_rule}: {FOUND})",
        ]

    def row(self) -> dict[str, Any]:
        """The same for a report: counts by part, the three quotients, their rules."""
        return {
            "macs": {**self.macs._asdict(), "total": self.macs.total},
            "ops": {**self.ops._asdict(), "total": self.ops.total},
            "quotients": {"exact": self.exact, "body_only": self.body_only, "paper": self.paper},
            "lines": self.lines(),
        }


class Stored(NamedTuple):
    """Bytes of the body's binary kernels."""

    kernels: int  # how many there are
    plain: int  # as float32
    packed: int  # as bits, with a float32 scale per output channel

    @property
    def ratio(self) -> float | None:
        """By how much the binarised body is smaller; None where no kernel of it is binary."""
        return _over(self.plain, self.packed)


def part(site: str) -> Part:
    """Where a site belongs: the patch embedding, a head, or the body between them."""
    first = site.partition("/")[0]
    return "patch" if first in PATCH else "head" if first in HEADS else "body"


def site_operations(known: Sites, plan: Plan) -> dict[str, float]:
    """Every site's OPs under a plan (operands without a quantiser are float)."""
    return {site: _ops(*operands, plan) for site, operands in pairs(known).items()}


def operations(known: Sites, plan: Plan) -> Operations:
    """The model's MACs and OPs by part, and their three quotients; the plan is the whole one, from before freezing."""
    floats = {site: macs(*operands) for site, operands in pairs(known).items()}
    windowed = any("m" in operand.letters for operand in known.values())
    return Operations(_parted(floats), _parted(site_operations(known, plan)), windowed)


def body_bytes(known: Sites, plan: Plan) -> Stored:
    """Bytes of the body's kernels to which the plan gives 1 bit, as float32 and packed with their scales.

    Packed: a plane that fills whole bytes per output channel (``pack_bits``), and a float32 scale per output channel.
    Signs have no zero point. Biases and all else stay as they are and are not in it.
    """
    kernels = [
        operand
        for address, operand in known.items()
        if operand.path is not None and part(operand.site) == "body" and address in plan and plan[address].bits == 1
    ]
    byte = FLOAT_BITS // 8
    plain = sum(byte * math.prod(kernel.shape) for kernel in kernels)
    planes = sum(-(-kernel.shape[0] // 8) * math.prod(kernel.shape[1:]) for kernel in kernels)
    return Stored(len(kernels), plain, planes + sum(byte * _channels(kernel) for kernel in kernels))


def _ops(left: Operand, right: Operand, plan: Plan) -> float:
    count = float(macs(left, right))
    if left.address not in plan or right.address not in plan:
        return count
    return min(count, count * plan[left.address].bits * plan[right.address].bits / WORD)


def _channels(kernel: Operand) -> int:
    """Output channels: the extents of the letters that the product keeps, multiplied."""
    extents = zip(kernel.letters, kernel.shape, strict=True)
    return math.prod(n for letter, n in extents if letter not in kernel.contracted)


def _parted(table: Mapping[str, Count]) -> Parts:
    return Parts(*(sum(n for site, n in table.items() if part(site) == name) for name in Parts._fields))


def _over(above: Count, below: Count) -> float | None:
    return above / below if below else None


def _giga(count: Count) -> str:
    return f"{count / 1e9:.4g} G"


def _times(quotient: float | None) -> str:
    return "undefined" if quotient is None else f"{quotient:.5g}x"
