"""IGQ-ViT: instance-aware group quantisation of linear inputs and attention rows.

Source: Moon, Kim, Cheon, Ham, CVPR 2024. No code of the authors exists; where the paper is silent the defaults are ours
and the alternatives are options. What departs from the paper's letter: ``mstep="mse"``, ``zero_point="extend"`` and
weights by min-max (4 bits and more) or error search (below) instead of a percentile; see README, "Results". Query, key
and value, of which the paper says nothing, have a range a head: its scale factors out of both products.
"""

import dataclasses
from collections.abc import MutableMapping
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from jvq.core.calibrate import Fitted, Track, calibrate, silent
from jvq.core.quantizer import Quantizer
from jvq.core.ranges import ZeroPoint
from jvq.core.recipe import Forward, Operand, Plan, Recipe, Sites
from jvq.methods import minmax
from jvq.methods.allocation import BUDGETS, RESTS, Budget, Rest, allocate
from jvq.methods.joint import allocate_widths
from jvq.methods.minmax import at, check_letters, edge_words, edges, is_edge, outputs, width, widths
from jvq.quantizers import Dynamic, Grouped, StaticGrouped, Uniform
from jvq.quantizers.grouped import MStep, Statistics
from jvq.quantizers.kmeans import Distance, Start
from jvq.quantizers.static_groups import GROUPINGS
from jvq.quantizers.uniform import Range, check_choice

CUTS = (0.1, 0.01, 0.001)  #: percent; RepQ-ViT tries the 99.9, 99.99 and 99.999 percentile and keeps the least error
TREATMENTS = ("groups", "layer", "float")
LINEAR = ("groups", *GROUPINGS, "layer", "float")
QKV = ("tensor", "head", "float")
RANGES = ("auto", "max", "percentile", "mse")


@dataclasses.dataclass(frozen=True)
class Options:
    """IGQ-ViT. Widths: 1 to 16 bits, or 32 for float."""

    bits: int = 4  # of weights and activations
    weight_bits: int | None = None  # instead of bits
    act_bits: int | None = None  # instead of bits
    edge_bits: int | None = 8  # of the patch embedding and the head; None: as all others
    groups: int = 8  # quantisers a linear input
    softmax_groups: int | None = None  # quantisers an attention map; None: as many as groups
    linear: Literal["groups", "consecutive", "sorted", "kmeans", "layer", "float"] = "groups"  # inputs of linear layers
    softmax: Literal["groups", "layer", "float"] = "groups"  # attention maps
    qkv: Literal["tensor", "head", "float"] = "head"  # granularity of query, key, value (static)
    qkv_range: Literal["auto", "max", "percentile", "mse"] = "auto"  # max at 6 bits and more, else percentile by error
    linear_along: str = "d"  # axes whose indices choose a group in linear inputs
    softmax_along: str = "hq"  # "hq": each row of each head; "q": a token over all heads; always each window apart
    mstep: MStep = "mse"  # mean: the paper's letter
    zero_point: ZeroPoint = "extend"  # clamp: the paper's letter
    ladder: bool = False  # groups' scales a power of two apart: one integer accumulator, no partial sums
    distance: Distance = "squared"
    start: Start = "kmeans++"
    restarts: int = 3
    iterations: int = 50
    statistics: Statistics = "image"
    weight_range: Literal["auto", "max", "percentile", "mse"] = "auto"  # auto: max at 4 bits and more, else mse
    weight_percentile: float = 0.1  # percent cut off at each end, with weight_range="percentile"
    sequential: bool = False  # calibrate each site behind quantised earlier ones
    allocation: Budget = "none"  # numbers of groups chosen under what the fixed ones cost: in BOPs, or in groups
    candidates: tuple[int, ...] = (4, 6, 8, 10, 12, 16, 20, 24, 32)  # numbers of groups to choose from
    allocation_widths: tuple[int, ...] = ()  # with allocation="bops": widths of products to choose from as well
    allocation_rest: Rest = "float"  # the model around the operand whose effect is measured
    upper_bound: bool = False  # a quantiser of its own for every channel and row of every image (the paper's bound)
    seed: int = 0  # of k-means++

    def widths(self) -> tuple[int, int]:
        """Bits of weights and of activations."""
        return widths(self.bits, self.weight_bits, self.act_bits)

    def __post_init__(self) -> None:
        check_choice("method.linear", self.linear, LINEAR)
        check_choice("method.softmax", self.softmax, TREATMENTS)
        check_choice("method.qkv", self.qkv, QKV)
        check_choice("method.qkv_range", self.qkv_range, RANGES)
        check_choice("method.allocation", self.allocation, BUDGETS)
        check_choice("method.allocation_rest", self.allocation_rest, RESTS)
        if not self.candidates or min(self.candidates) < 1:
            raise ValueError(f"method.candidates: got {self.candidates}, must be numbers of groups, at least one")
        if self.allocation != "none" and (self.sequential or self.upper_bound):
            which = "sequential" if self.sequential else "upper_bound"
            raise ValueError(f"method.allocation: '{self.allocation}' cannot be used with method.{which}")
        check_choice("method.weight_range", self.weight_range, RANGES)
        if self.allocation_widths:
            if self.allocation != "bops" or self.allocation_rest != "float" or self.ladder:
                raise ValueError("method.allocation_widths needs method.allocation 'bops', the rest float, no ladder")
            if not all(1 <= b <= 16 for b in self.allocation_widths):
                raise ValueError(f"method.allocation_widths: got {self.allocation_widths}, must be from 1 to 16 bits")


def recipe(options: Options, known: Sites) -> Recipe:
    """One rule an address: weights, edges, and then by role."""
    check_letters("method.linear_along", options.linear_along, known)
    check_letters("method.softmax_along", options.softmax_along, known)
    return [(address, quantizer(options, o)) for address, o in known.items()]


def quantizer(options: Options, o: Operand) -> Quantizer | None:
    """What an operand is quantised by, None where it stays float."""
    weight_bits, act_bits = edges(options) if is_edge(o) else options.widths()
    if o.path is not None:
        return _weight(options, o, weight_bits)
    if is_edge(o):
        return at(act_bits, Uniform(act_bits))
    if o.role in ("q", "k", "v"):
        keep = "h" if options.qkv == "head" else ""
        static = Uniform(act_bits, keep, range=_qkv_range(options), percentile=CUTS)
        return at(minmax.FLOAT if options.qkv == "float" else act_bits, static)
    rows = o.role == "p"
    treatment = options.softmax if rows else options.linear
    if treatment == "float" or act_bits == minmax.FLOAT:
        return None
    if treatment == "layer":
        return Uniform(act_bits)
    along = options.linear_along
    if rows:  # rows of different windows are different rows; a linear input's statistics run over all windows
        along = ("m" if "m" in o.letters and "m" not in options.softmax_along else "") + options.softmax_along
    if options.upper_bound:
        return Dynamic(act_bits, "b" + along, nonnegative=rows, zero_point=options.zero_point)
    if treatment in GROUPINGS:
        return StaticGrouped(
            act_bits,
            options.groups,
            along,
            treatment,
            options.mstep,
            zero_point=options.zero_point,
            restarts=options.restarts,
            iterations=options.iterations,
            seed=options.seed,
        )
    groups = options.groups if not rows or options.softmax_groups is None else options.softmax_groups
    return Grouped(
        act_bits,
        groups,
        along,
        nonnegative=rows,
        **{
            name: getattr(options, name)
            for name in (
                "mstep",
                "zero_point",
                "ladder",
                "distance",
                "start",
                "restarts",
                "iterations",
                "statistics",
                "seed",
            )
        },
    )


def _qkv_range(options: Options) -> Range:
    """How the ranges of query, key and value are found: cutting costs the real ViT-S/14 more than it saves at 6 bits.

    There the features lose 0.039 of their square with the percentile and 0.030 with the maximum (seed 0).
    """
    if options.qkv_range == "auto":
        return "max" if options.widths()[1] >= 6 else "percentile"
    return options.qkv_range


def _weight(options: Options, o: Operand, bits: int) -> Quantizer | None:
    chosen = _weight_range(options, bits)
    return at(bits, Uniform(bits, outputs(o), range=chosen, percentile=(options.weight_percentile,)))


def _weight_range(options: Options, bits: int) -> Range:
    """How the range of a weight of that width is found.

    At 4 bits the least error costs the real ViT-S/14 more than it saves (NMSE 0.34 against 0.27 by min-max): a weight's
    own error says little about the product's where inputs have outlier channels. On the embedded ViT and DeiT the two
    are equal.
    """
    if options.weight_range == "auto":
        return "max" if bits >= 4 else "mse"
    return options.weight_range


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
    """The calibrated state of every quantiser of the plan, whose numbers of groups change where they are allocated."""
    if options.allocation_widths:
        own = dict(recipe(options, known))  # what a rule of the run changed stays as it is
        free = {a for a, q in plan.items() if q == own[a]}
        wide = {b: recipe(_at_width(options, b), known) for b in sorted(set(options.allocation_widths))}
        at = {b: {a: q for a, q in rules if a in free} for b, rules in wide.items()}
        given = forward, params, images, plan, known
        return allocate_widths(at, options.candidates, *given, track=track, journal=journal, mesh=mesh)
    if options.allocation != "none":
        return allocate(
            options.allocation,
            options.candidates,
            options.allocation_rest,
            forward,
            params,
            images,
            plan,
            known,
            track=track,
            journal=journal,
            mesh=mesh,
        )
    state = calibrate(forward, params, images, plan, known, sequential=options.sequential, track=track, mesh=mesh)
    return Fitted(plan, state)


def _at_width(options: Options, bits: int) -> Options:
    """The same with that width wherever it is not float."""
    weight_bits, act_bits = (b if b == minmax.FLOAT else bits for b in options.widths())
    return dataclasses.replace(options, weight_bits=weight_bits, act_bits=act_bits)


def calibrates(options: Options) -> bool:
    """Whether fitting is calibration on float activations alone, which rows of a table can share."""
    return not options.sequential and options.allocation == "none"


def baselines(options: Options) -> dict[str, tuple[str, Any]]:
    """Rows shown beside this method: min-max at the same widths, and the bound that groups approach.

    Beside allocated groups also the fixed number that sets the budget (the paper's dagger).
    """
    plain = minmax.Options(options.bits, options.weight_bits, options.act_bits, options.edge_bits)
    fixed = dataclasses.replace(options, allocation="none", allocation_widths=())
    bound = dataclasses.replace(fixed, upper_bound=True)
    rows = {"minmax": ("minmax", plain), "igq_upper_bound": ("igq", bound)}
    return rows if options.allocation == "none" else {"igq_fixed": ("igq", fixed), **rows}


def protocol(options: Options) -> dict[str, Any]:
    """What has to be known to compare a result of this method."""
    weight_bits, act_bits = options.widths()
    softmax_groups = options.groups if options.softmax_groups is None else options.softmax_groups
    cut = f" {options.weight_percentile} %" if options.weight_range == "percentile" else ""
    found = _weight_range(options, weight_bits)
    em = f"{options.start}, {options.restarts} restarts, {options.iterations} iterations, {options.distance} distance"
    return {
        "weights": f"{width(weight_bits)}, affine, per output channel, range by {found}{cut}",
        "linear inputs": _treated(options, options.linear, options.groups, options.linear_along),
        "softmax": _treated(options, options.softmax, softmax_groups, options.softmax_along) + ", lower bound 0",
        "groups": f"{_bounds(options)}; {em}, points per {options.statistics}",
        "number of groups": _allocated(options),
        "query, key, value": "float"
        if "float" in (options.qkv, width(act_bits))
        else f"{act_bits} bits, per {options.qkv}, static, {_qkv_words(options)}",
        "patch embedding and head": f"{edge_words(options)}, input per tensor",
        "float": "LayerNorm, softmax, GELU, biases, residual additions",
        "calibration order": "sequential" if options.sequential else "parallel, float activations",
    }


def _allocated(options: Options) -> str:
    """How the number of groups of each operand is found, in words."""
    if options.allocation == "none":
        return "fixed"
    if options.allocation_widths:
        return (
            f"of {options.candidates}, and widths of products of {options.allocation_widths} bits, by integer program: "
            "least sum of KL(float || quantised) of predictions, each operand quantised alone, at most the "
            "bit-operations of the fixed plan"
        )
    unit = {"bops": "bit-operations", "mean_groups": "mean number of groups"}[options.allocation]
    return (
        f"of {options.candidates} by integer program: least sum of KL(float || quantised) of predictions, each operand "
        f"quantised alone, the rest {options.allocation_rest}, at most the {unit} of the fixed number"
    )


def _qkv_words(options: Options) -> str:
    found = _qkv_range(options)
    return f"percentile of {CUTS} by error" if found == "percentile" else f"range by {found}"


def _bounds(options: Options) -> str:
    """How the groups' quantisers are found, in words."""
    if options.ladder:
        return "scales a power of two apart, by error"
    return f"bounds by {options.mstep}, zero point {options.zero_point}"


def _treated(options: Options, treatment: str, groups: int, along: str) -> str:
    """How linear inputs or attention maps are quantised, in words."""
    _, act_bits = options.widths()
    if treatment == "float" or act_bits == minmax.FLOAT:
        return "float"
    if treatment == "layer":
        return f"{act_bits} bits, per tensor, min-max"
    if treatment in GROUPINGS:
        return f"{act_bits} bits, {groups} groups along '{along}', the same in every image ({treatment})"
    if options.upper_bound:
        return f"{act_bits} bits, a range of the moment for every index along '{along}' (upper bound)"
    return f"{act_bits} bits, {groups} groups along '{along}', chosen per image"
