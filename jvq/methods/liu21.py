"""Liu et al. 2021: intervals by similarity and ranking of products, bias correction, widths by nuclear norm.

Source: Liu, Wang, Han, Zhang, Ma, Gao, Post-Training Quantization for Vision Transformer, NeurIPS 2021. No code of the
authors is public; where the paper is silent the defaults are ours and the alternatives are options. What departs from
the letter: the ranking loss is a mean over pairs (as a sum it leaves the similarity no say), candidates are parts of
where the search began, and on large models products are scored with some of their rows (``rows``). Query, key and
value weights have an interval each and share their input's.
"""

import dataclasses
from collections.abc import MutableMapping
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh

from jvq.core.calibrate import Fitted, Track, silent
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Forward, Operand, Plan, Recipe, Sites
from jvq.methods import igq, minmax
from jvq.methods.intervals import Settings, fitted
from jvq.methods.minmax import at, edge_words, edges, is_edge, outputs, width, widths
from jvq.methods.mixed import BYS, By, MixedSettings, mixed
from jvq.methods.nuclear import Looked
from jvq.methods.search import At, Grid, Objective, Ranking, Sum
from jvq.methods.similarity import SIMILARITIES, Similarity
from jvq.quantizers import Uniform
from jvq.quantizers.uniform import check_choice

Correction = Literal["none", "search", "sequential", "both"]
AROUND = 2  #: bits that a module may have more or less than the target, by default


@dataclasses.dataclass(frozen=True)
class Options:
    """Liu et al. 2021. Widths: 2 to 16 bits, or 32 for float."""

    bits: int = 8  # of weights and activations
    weight_bits: int | None = None  # instead of bits
    act_bits: int | None = None  # instead of bits
    edge_bits: int | None = None  # of the patch embedding and the head; None: as all others (the paper's sizes)
    patch_input: Literal["quantized", "float"] = "quantized"
    granularity: Literal["tensor", "channel"] = "channel"  # weights: what has an interval (channels share a search)
    qkv: Literal["tensor", "head"] = "head"  # of query, key, value, and of the attention map
    softmax: Literal["signed", "unsigned"] = "unsigned"  # signed: the paper's letter, half of the codes unused
    activations: Literal["uniform", "groups"] = "uniform"  # groups: IGQ-ViT's, of linear inputs and attention rows
    groups: int = 8  # of each operand, with activations="groups"
    similarity: Similarity = "pearson"  # cosine: EasyQuant
    alpha: float = 0.5  # least interval that is tried, as a part of the first
    beta: float = 1.2  # greatest
    steps: int = 100  # candidates between them
    rounds: int = 20  # of both operands in turn, at most; 0: no search, intervals by the maximum
    tolerance: float = 1e-6  # the last round gains less
    anchor: Literal["initial", "current"] = "initial"  # what candidates are parts of
    start: Literal["max", "half"] = "max"  # first interval: max / (2**(bits-1) - 1), or less: 1/2 instead of 1
    rows: int | None = 16  # tokens or queries of an image that are scored; None: all
    ranking: bool = True  # search query and key with the ranking loss too
    gamma: float = 0.1  # its weight
    theta: float = 0.2  # its margin
    ranking_at: At = "scores"  # before 1 / sqrt(e); "scaled": after; "softmax": on the attention map
    ranking_pairs: Sum = "mean"  # sum: the paper's letter
    ranking_rows: int | None = 4  # of each head and image, of those that are scored; None: all of these
    bias_correction: Correction = "both"  # search: after each round; sequential: once, behind quantised sites
    bias_images: int = 32  # at most, of the pass at the end
    mixed: bool = False  # a width for each attention and MLP, at the size of the fixed one
    mixed_bits: tuple[int, ...] = ()  # to choose from; none given: the width and two more and less
    mixed_slack: float = 0.0  # part of the size by which it may be exceeded (published models: up to 0.016)
    mixed_images: int = 32  # at most, on which sensitivities are measured
    sensitivity: By = "kl"  # of the predictions, as IGQ-ViT allocates groups; nuclear: the paper's
    norm_of: Looked = "map"  # whose nuclear norm an attention has: of its map, its scores, or its output
    error_of: Looked = "map"  # whose squared error
    normalized: bool = False  # sensitivities of attentions, and of MLPs, each as parts of their sum

    def widths(self) -> tuple[int, int]:
        """Bits of weights and of activations."""
        return widths(self.bits, self.weight_bits, self.act_bits)

    def __post_init__(self) -> None:
        check_choice("method.similarity", self.similarity, SIMILARITIES)
        check_choice("method.sensitivity", self.sensitivity, BYS)
        if not 0 < self.alpha <= self.beta:
            raise ValueError(f"method.alpha: got {self.alpha}, must be above 0 and at most beta = {self.beta}")
        for name, least in (("steps", 1), ("rounds", 0), ("bias_images", 1), ("mixed_images", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be at least {least}")
        for name in ("rows", "ranking_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be at least 1")
        if self.theta < 0 or self.gamma < 0:
            raise ValueError(f"method.theta and method.gamma must be at least 0, got {self.theta}, {self.gamma}")
        if self.mixed:
            self._check_mixed()

    def _check_mixed(self) -> None:
        weight_bits, act_bits = self.widths()
        if act_bits not in (weight_bits, minmax.FLOAT):
            raise ValueError(
                f"method.mixed: a module has one width for weights and activations, got {weight_bits} and {act_bits}"
            )
        for b in self.candidates():
            if not 2 <= b <= 16:
                raise ValueError(f"method.mixed_bits: got {b}, must be whole numbers from 2 to 16")

    def candidates(self) -> tuple[int, ...]:
        """Widths that a module may have, the least first."""
        target = self.widths()[0]
        most = min(16, target + AROUND) if target <= 16 else target
        return tuple(sorted(set(self.mixed_bits))) or tuple(range(max(2, target - AROUND), most + 1))


def recipe(options: Options, known: Sites) -> Recipe:
    """One rule an address."""
    return [(address, _quantizer(options, o)) for address, o in known.items()]


def _quantizer(options: Options, o: Operand) -> Quantizer | None:
    edge = is_edge(o)
    weight_bits, act_bits = edges(options) if edge else options.widths()
    if o.path is not None:
        parts = "".join(a for a in o.letters if a == "s")  # query, key and value are tensors of their own
        keep = outputs(o) if options.granularity == "channel" else parts
        return at(weight_bits, Uniform(weight_bits, keep, symmetric=True))
    if options.patch_input == "float" and o.site == "patch":
        return None
    if options.activations == "groups" and not edge and o.role in ("x", "p"):
        return igq.quantizer(_grouped(options), o)
    keep = "h" if options.qkv == "head" and "h" in o.letters else ""
    symmetric = o.role != "p" or options.softmax == "signed"
    return at(act_bits, Uniform(act_bits, keep, symmetric=symmetric))


def _grouped(options: Options) -> igq.Options:
    return igq.Options(options.bits, options.weight_bits, options.act_bits, groups=options.groups)


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
    """Searched intervals, corrected biases, and with ``mixed`` the modules' widths."""
    how, shared = settings(options), {"track": track, "journal": journal, "mesh": mesh}
    if options.mixed:
        return mixed(_mixed_settings(options), how, forward, params, images, plan, known, **shared)  # type: ignore[arg-type]
    return fitted(how, forward, params, images, plan, known, **shared)  # type: ignore[arg-type]


def settings(options: Options) -> Settings:
    """What the search of one plan has to know."""
    ranking = Ranking(options.gamma, options.theta, options.ranking_at, options.ranking_pairs, options.ranking_rows)
    return Settings(
        Objective(options.similarity, ranking if options.ranking else None),
        Grid(options.alpha, options.beta, options.steps, options.rounds, options.tolerance, options.anchor),
        halved=options.start == "half",
        rows=options.rows,
        correct=options.bias_correction in ("search", "both"),
        sequential=options.bias_correction in ("sequential", "both"),
        images=options.bias_images,
    )


def _mixed_settings(options: Options) -> MixedSettings:
    return MixedSettings(
        options.widths()[0],
        options.candidates(),
        options.mixed_slack,
        options.mixed_images,
        options.norm_of,
        options.error_of,
        options.normalized,
        options.sensitivity,
    )


def measures(options: Options) -> tuple[Any, ...]:
    """What the journal's values depend on, apart from the quantisers that its keys name: rows alike in it share one."""
    how = settings(options)
    return (repr(how._replace(sequential=False, images=0)),)


def calibrates(options: Options) -> bool:
    """Whether fitting is calibration on float activations alone, which rows of a table can share."""
    return False


def baselines(options: Options) -> dict[str, tuple[str, Any]]:
    """Rows shown beside this method: the paper's, each at the same widths.

    ``minmax`` and ``percentile`` as everywhere in this project (weights per output channel, zero points), ``max`` with
    this method's own quantisers and no search, ``easyquant`` by cosine. Beside mixed widths also the uniform one.
    """
    plain = minmax.Options(options.bits, options.weight_bits, options.act_bits, options.edge_bits)
    cut = dataclasses.replace(plain, range="percentile", weight_range="percentile")
    uniform = dataclasses.replace(options, mixed=False)
    bare = dataclasses.replace(uniform, ranking=False, bias_correction="none")
    rows = {
        "minmax": ("minmax", plain),
        "percentile": ("minmax", cut),
        "max": ("liu21", dataclasses.replace(bare, rounds=0)),
        "easyquant": ("liu21", dataclasses.replace(bare, similarity="cosine")),
    }
    return {"liu21_uniform": ("liu21", uniform), **rows} if options.mixed else rows


def protocol(options: Options) -> dict[str, Any]:
    """What has to be known to compare a result of this method."""
    weight_bits, act_bits = options.widths()
    own = " per head" if options.qkv == "head" else " per tensor"
    sought = f"{options.similarity} of {'all' if options.rows is None else f'about {options.rows}'} rows an image"
    ends = f"[{options.alpha}, {options.beta}]"
    grid = f"{options.steps} intervals in {ends} of the {options.anchor} one, from {options.start}"
    inputs = f"{width(act_bits)}, symmetric per tensor"
    rows = f"{width(act_bits)}, {options.softmax},{own}"
    if options.activations == "groups":
        inputs = rows = f"{width(act_bits)}, {options.groups} groups chosen per image (IGQ-ViT)"
    return {
        "weights": f"{width(weight_bits)}, symmetric per {options.granularity}",
        "linear inputs": inputs,
        "softmax": rows,
        "query, key, value": f"{width(act_bits)}, symmetric{own}",
        "patch embedding and head": f"{edge_words(options)}; patch embedding's input {options.patch_input}",
        "search": f"{sought}; {grid}; {options.rounds} rounds, gains above {options.tolerance}"
        if options.rounds
        else "none: intervals by the maximum",
        "ranking": _ranking_words(options),
        "bias correction": _bias_words(options),
        "widths of modules": _mixed_words(options),
        "float": "LayerNorm, softmax, GELU, biases, residual additions",
        "calibration order": "parallel, float activations",
    }


def _ranking_words(options: Options) -> str:
    if not options.ranking:
        return "none"
    rows = "all" if options.ranking_rows is None else options.ranking_rows
    where = f"{options.ranking_pairs} over pairs of {options.ranking_at}, {rows} rows a head and image"
    return f"gamma {options.gamma}, theta {options.theta}, {where}"


def _bias_words(options: Options) -> str:
    ends = f", the pass at the end on at most {options.bias_images} images"
    return options.bias_correction + (ends if options.bias_correction in ("sequential", "both") else "")


def _mixed_words(options: Options) -> str:
    if not options.mixed:
        return "equal"
    slack = f" plus {100 * options.mixed_slack:g} %" if options.mixed_slack else ""
    by = "KL of predictions"
    if options.sensitivity == "nuclear":
        by = f"nuclear norm of the {options.norm_of} times squared error of the {options.error_of}"
    kinds = ", parts of the sum over each kind" if options.normalized else ""
    return (
        f"of {options.candidates()} by {by}{kinds}, on at most {options.mixed_images} images, exactly, at most the "
        f"size of equal widths{slack}"
    )
