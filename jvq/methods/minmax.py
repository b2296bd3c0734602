"""Min-max post-training quantisation: the baseline that everyone measures against.

Weights per output channel, activations per tensor, all ranges from the extremes on the calibration images; the patch
embedding and the head at 8 bits (stated in every result).
"""

import dataclasses
from collections.abc import MutableMapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jvq.core import axes
from jvq.core.calibrate import Fitted, Track, calibrate, silent
from jvq.core.errors import nearest
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Forward, Operand, Plan, Recipe, Sites
from jvq.operations import HEADS, PATCH
from jvq.quantizers import Uniform
from jvq.quantizers.uniform import Range

EDGES = PATCH + HEADS  #: first and last products, whose width every result states
FLOAT = 32  #: "bits" that mean: not quantised


@dataclasses.dataclass(frozen=True)
class Options:
    """Min-max quantisation. Widths: 1 to 16 bits, or 32 for float."""

    bits: int = 8  # of weights and activations
    weight_bits: int | None = None  # instead of bits
    act_bits: int | None = None  # instead of bits
    edge_bits: int | None = 8  # of the patch embedding and the head; None: as all others
    keep: str = ""  # axes of activations with a range of their own where they have them, e.g. "h"
    range: Range = "max"  # of activations
    percentile: float = 0.1  # percent cut off at each end, with range="percentile"
    weight_range: Range = "max"  # of weights; their percentile is the same
    symmetric: bool = False  # activations
    sequential: bool = False  # calibrate each site behind quantised earlier ones

    def widths(self) -> tuple[int, int]:
        """Bits of weights and of activations."""
        return widths(self.bits, self.weight_bits, self.act_bits)


def widths(bits: int, weight_bits: int | None, act_bits: int | None) -> tuple[int, int]:
    """Bits of weights and of activations, each ``bits`` unless said otherwise."""
    return (bits if weight_bits is None else weight_bits), (bits if act_bits is None else act_bits)


def edges(options: Any) -> tuple[int, int]:
    """Bits of weights and of activations of the patch embedding and the head."""
    return options.widths() if options.edge_bits is None else (options.edge_bits, options.edge_bits)


def is_edge(operand: Operand) -> bool:
    """Whether the operand belongs to the patch embedding, a head or a decoder."""
    return operand.site.split("/")[0] in EDGES


def outputs(operand: Operand) -> str:
    """The letters of a weight that the product keeps: its output channels."""
    return "".join(a for a in operand.letters if a not in operand.contracted)


def at(bits: int, quantizer: Quantizer) -> Quantizer | None:
    """The quantiser, or None (float) where ``bits`` says so."""
    return None if bits == FLOAT else quantizer


def check_letters(option: str, letters: str, known: Sites) -> None:
    """Raises ``ValueError`` where a letter is an axis of no activation of the model."""
    there = sorted({a for o in known.values() if o.batched for a in o.letters})
    for a in letters:
        if a not in there:
            raise ValueError(f"{option}: no activation of this model has an axis '{a}'{nearest(a, there)}")


def recipe(options: Options, known: Sites) -> Recipe:
    """One rule an address."""
    check_letters("method.keep", options.keep, known)
    rules: list[tuple[str, Quantizer | None]] = []
    for address, o in known.items():
        weight_bits, act_bits = edges(options) if is_edge(o) else options.widths()
        if o.path is not None:
            rules.append((address, at(weight_bits, _weight(options, o, weight_bits))))
        else:
            bits = act_bits
            keep = axes.ordered(set(options.keep) & set(o.letters), o.letters)
            cut = (options.percentile,)
            rules.append((address, at(bits, Uniform(bits, keep, options.symmetric, options.range, cut))))
    return rules


def _weight(options: Options, o: Operand, bits: int) -> Uniform:
    plain = Uniform(bits, outputs(o), range=options.weight_range)
    cut = (options.percentile,)
    return dataclasses.replace(plain, percentile=cut) if options.weight_range == "percentile" else plain


def fit(
    options: Options,
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    known: Sites,
    track: Track = silent,
    journal: MutableMapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Fitted:
    """The calibrated state of every quantiser of the plan."""
    state = calibrate(forward, params, images, plan, known, sequential=options.sequential, track=track, mesh=mesh)
    return Fitted(plan, state)


def calibrates(options: Options) -> bool:
    """Whether fitting is calibration on float activations alone, which rows of a table can share."""
    return not options.sequential


def baselines(options: Options) -> dict[str, tuple[str, Any]]:
    """Rows shown beside this method: none."""
    return {}


def protocol(options: Options) -> dict[str, Any]:
    """What has to be known to compare a result of this method."""
    weight_bits, act_bits = options.widths()
    kept = f"per tensor and axes '{options.keep}' where there" if options.keep else "per tensor"
    form = "symmetric" if options.symmetric else "affine"
    found = {"percentile": f"percentile {options.percentile} %"}
    activations = f"{width(act_bits)}, {form}, {kept}, range by {found.get(options.range, options.range)}"
    weights = found.get(options.weight_range, options.weight_range)
    return {
        "weights": f"{width(weight_bits)}, affine, per output channel, range by {weights}",
        "linear inputs": activations,
        "softmax": activations,
        "query, key, value": activations,
        "patch embedding and head": f"{edge_words(options)}, input as the other activations",
        "float": "LayerNorm, softmax, GELU, biases, residual additions",
        "calibration order": "sequential" if options.sequential else "parallel, float activations",
    }


def edge_words(options: Any) -> str:
    """The widths of the patch embedding and the head, in words."""
    return " and ".join(width(bits) for bits in dict.fromkeys(edges(options)))


def width(bits: int) -> str:
    """``4 bits``, or ``float``."""
    return "float" if bits == FLOAT else f"{bits} bits"
