"""Bi-ViT: weights and activations of one bit, trained (Li et al., AAAI 2024).

Attention maps and query, key and value are binarised with a learned scale a head; a ranking loss teaches the student's
attention the teacher's order of tokens. The released code lacks that loss and begins with a constant attention map
(``release``); what stands in their place here is ours (specification sections 2.3 and 3.2). Presets are the baselines:
``sign`` and ``half`` have unit scales, ``scale`` learned ones without the ranking loss, ``ranking`` that loss without
them, ``bit`` and ``bibert`` are in the manner of Liu et al. 2022 (BiT) and Qin et al. 2022 (BiBERT).
"""

import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jvq.core.calibrate import Fitted, Track, calibrate, leaf, silent
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Forward, Operand, Plan, Recipe, Sites
from jvq.core.signs import Slope
from jvq.methods.learning import Course, Learning
from jvq.methods.minmax import FLOAT, at, edge_words, edges, is_edge, outputs, width
from jvq.methods.ranking import Pairs, Space, check_ranking, rank_distillation
from jvq.operations import body_bytes, operations
from jvq.quantizers import Learned, ShiftedSigns, Signs, Steps, Ternary
from jvq.quantizers.uniform import check_choice
from jvq.schedule import Schedule

Attention = Literal["learned", "release", "release_minus", "half", "sign", "boolean"]
"""What an attention map becomes. learned: 0 or a scale a head. release: the published code's signs with a learned zero
point; release_minus: the same, that point at -1 from the start. half: 1 where at least 1/2. sign: its sign, which is 1
everywhere. boolean: no softmax, 1 where the score is not negative."""
Distillation = Literal["auto", "token", "soft", "none"]
"""token: labels for the class token's head, the teacher's class for the distillation token's (DeiT). soft: the
teacher's distribution alone. auto: token where the model has one. none: labels alone."""
TRAINS = True  #: fitting takes training images
ATTENDS = True  #: its report shows attention
PRESETS: dict[str, dict[str, Any]] = {
    "sign": dict(attention="sign", qkv="sign", gamma=0.0),
    "half": dict(attention="half", qkv="sign", gamma=0.0),
    "scale": dict(gamma=0.0),
    "ranking": dict(attention="sign", qkv="sign"),
    "release": dict(attention="release", gamma=0.0),
    "release_minus": dict(attention="release_minus", gamma=0.0),
    "bit": dict(kernels="centred", inputs="learned", slope="true", qk_norm="no", gamma=0.0),
    "bibert": dict(kernels="centred", attention="boolean", qkv="sign", qk_norm="no", gamma=0.0),
}


@dataclasses.dataclass(frozen=True)
class Options(Learning):
    """How to train: all that Learning has, and what is Bi-ViT's. Widths of 2 and more have learned scales (LSQ)."""

    bits: int = 1
    edge_bits: int | None = FLOAT
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    kernels: Literal["mean", "centred", "learned", "ternary"] = "mean"  # scale of an output channel; ternary: 2 bits
    inputs: Literal["sign", "learned"] = "sign"  # of linear layers; learned: a scale a tensor
    qkv: Literal["learned", "sign"] = "learned"  # query, key and value: a scale a head, or none
    attention: Attention = "learned"
    slope: Slope = "lsq"  # gradient of the scales of signs: as released, or the derivative
    merge: Literal["same", "learned"] = "same"  # Swin's merges; learned: scales as released, of each input channel too
    qk_norm: Literal["auto", "yes", "no"] = "auto"  # LayerNorm of queries and keys; auto: not in windows (as released)
    gelu_clip: float = 10.0  # bound of what fc2 sees (as released); 0: none
    first: float = 0.0  # share of the steps in which activations stay float: the first of two courses
    distillation: Distillation = "auto"
    alpha: float = 0.5  # weight of the teacher's class, with distillation "token"
    gamma: float = 1.0  # weight of the ranking loss; 0: none
    theta: float = 0.1  # its margin
    pairs: Pairs = "all"
    space: Space = "prob"

    def __post_init__(self) -> None:
        for name, known in (
            ("kernels", ("mean", "centred", "learned", "ternary")),
            ("inputs", ("sign", "learned")),
            ("qkv", ("learned", "sign")),
            ("attention", get_args(Attention)),
            ("slope", get_args(Slope)),
            ("merge", ("same", "learned")),
            ("qk_norm", ("auto", "yes", "no")),
            ("distillation", get_args(Distillation)),
        ):
            check_choice(f"method.{name}", getattr(self, name), known)
        super().__post_init__()
        self.check_shares("first")
        self.check_nonnegative("gelu_clip", "gamma")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"method.alpha: got {self.alpha}, must be in [0, 1]")
        try:
            check_ranking(self.theta, self.pairs, self.space, 1)
        except ValueError as error:
            raise ValueError(f"method.{error}") from None
        if self.kernels == "ternary" and self.widths()[0] != 2:
            raise ValueError(f"method.kernels: 'ternary' has 2 bits, set weight_bits=2 (got {self.widths()[0]})")
        if 1 in edges(self):
            raise ValueError("method.edge_bits: the ends of the model have no form of 1 bit, must be at least 2")
        if self.attention == "boolean" and self.first:
            raise ValueError("method.first: attention 'boolean' has no softmax, which float activations need")
        if self.attention == "boolean" and self.gamma:
            raise ValueError("method.gamma: the ranking loss needs a softmax, which attention 'boolean' lacks")
        if self.teacher and not beside(self):
            raise ValueError(f"method.teacher: '{self.teacher}' is not asked anything with these options")


def student(options: Options, known: Sites) -> dict[str, Any]:
    """Fields of the model's Spec that are otherwise in the model that is trained."""
    windows = any("m" in o.letters for o in known.values())
    norm = options.qk_norm == "yes" or (options.qk_norm == "auto" and not windows)
    fields: dict[str, Any] = {"qk_norm": True} if norm else {}
    if options.gelu_clip:
        fields["clip"] = options.gelu_clip
    if options.attention == "boolean" and options.widths()[1] == 1:
        fields["softmax"] = False
    return fields


def recipe(options: Options, known: Sites) -> Recipe:
    """One rule an address."""
    return [(a, _weight(options, o) if o.path is not None else _activation(options, o)) for a, o in known.items()]


def _weight(options: Options, o: Operand) -> Quantizer | None:
    if is_edge(o):
        bits = edges(options)[0]
        return at(bits, Learned(bits, outputs(o)))
    bits, kept = options.widths()[0], outputs(o)
    if bits == 2 and options.kernels == "ternary":
        return Ternary(keep=kept)
    if bits != 1:
        return at(bits, Learned(bits, kept))
    if options.kernels == "learned" or (options.merge == "learned" and _is_merge(o)):
        return Signs(keep=kept, scale="learned", gradient=options.slope)
    return Signs(keep=kept, scale="mean", centred=options.kernels == "centred")


def _activation(options: Options, o: Operand) -> Quantizer | None:
    if is_edge(o):
        bits = edges(options)[1]
        return at(bits, Learned(bits))
    bits, kept = options.widths()[1], "h" if "h" in o.letters else ""
    if bits != 1:
        gelu = o.site.endswith("/fc2")
        return at(bits, Learned(bits, kept, signed=not (gelu or o.role == "p"), offset=gelu))
    if o.role == "p":
        return _attention(options.attention)
    if o.role in "qkv":
        return _learned(options, kept) if options.qkv == "learned" else Signs(smooth=False, size=_unit(o))
    if options.merge == "learned" and _is_merge(o):
        return _learned(options, "d")
    return _learned(options, "") if options.inputs == "learned" else Signs()


def _learned(options: Options, kept: str) -> Signs:
    return Signs(keep=kept, scale="learned", gradient=options.slope)


def _unit(o: Operand) -> float:
    """The size of a sign without scale: a query comes multiplied by ``e**-0.5`` (attention's 1 / sqrt(e))."""
    extent = dict(zip(o.letters, o.shape, strict=True))
    if o.role != "q":
        return 1.0
    return (extent["e"] if "e" in extent else extent["d"] // extent["h"]) ** -0.5  # d: of a merged query


def _attention(kind: Attention) -> Quantizer:
    return {
        "learned": Steps(keep="h"),
        "release": ShiftedSigns(keep="h"),
        "release_minus": ShiftedSigns(keep="h", zero_start="minus_one"),
        "half": Steps(scale="one"),
        "sign": Signs(smooth=False),
        "boolean": Steps(scale="one", threshold="zero"),
    }[kind]


def _is_merge(o: Operand) -> bool:
    return o.site.endswith("merge/reduce")


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
    """Where training begins: every learned scale on float operands, and what the model will cost."""
    notes = {"operations": {**operations(known, plan).row(), "stored": body_bytes(known, plan)._asdict()}}
    return Fitted(plan, calibrate(forward, params, images, plan, known, track=track, mesh=mesh), notes)


def calibrates(options: Options) -> bool:
    """Fitting is training."""
    return False


def baselines(options: Options) -> dict[str, tuple[str, Any]]:
    """None: at one bit a calibrated model says nothing; :data:`PRESETS` are what this method is compared with."""
    return {}


def courses(options: Options, plan: Plan, known: Sites) -> list[Course]:
    """One, or with ``first`` two: weights alone, then all."""
    if not options.first:
        return [Course(plan)]
    weights = {a: q for a, q in plan.items() if known[a].path is not None}
    return [Course(weights, "weights", 0.0, options.first), Course(plan, "", options.first, 1.0)]


def beside(options: Options) -> bool:
    """Whether a float model runs beside the student."""
    return options.distillation != "none" or options.gamma > 0


def labelled(options: Options, known: Sites) -> bool:
    """Whether the loss needs the images' labels."""
    return _distillation(options, known) != "soft"


def watched(options: Options, known: Sites) -> list[str]:
    """The addresses that the loss looks at: attention maps, to rank."""
    return [a for a, o in known.items() if o.role == "p"] if options.gamma else []


def _distillation(options: Options, known: Sites) -> Distillation:
    two = any(o.site == "head_dist" for o in known.values())
    if options.distillation == "token" and not two:
        raise ValueError("method.distillation: 'token' needs a model with a distillation token (did you mean 'soft'?)")
    if options.distillation != "auto":
        return options.distillation
    return "token" if two else "soft"


def tape_loss(options: Options, known: Sites) -> Any:
    """The loss on two tapes, which need the addresses of :func:`watched`: specification section 3.3."""
    kind, maps = _distillation(options, known), watched(options, known)

    def told(student: Any, teacher: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits, heads, labels = student["output"], student["heads"], batch["label"]
        metrics = {"top1": (logits.argmax(axis=-1) == labels).mean()}
        labelled = optax.softmax_cross_entropy_with_integer_labels(heads[:, 0], labels).mean()
        if teacher:
            taught = jax.nn.softmax(teacher["output"])
            cross = optax.softmax_cross_entropy(logits, taught).mean()
            entropy = -(taught * jnp.log(jnp.maximum(taught, 1e-30))).sum(axis=-1).mean()
            metrics["kl"] = cross - entropy
        if kind == "soft":
            value = cross
        elif kind == "token":
            named = teacher["output"].argmax(axis=-1)
            said = optax.softmax_cross_entropy_with_integer_labels(heads[:, -1], named).mean()
            value = (1 - options.alpha) * labelled + options.alpha * jnp.asarray(said)
        else:
            value = labelled
        if maps:
            ranked = rank_distillation(
                student, teacher, maps, theta=options.theta, pairs=options.pairs, space=options.space
            )
            metrics["ranking"] = ranked
            value = value + options.gamma * ranked
        return jnp.asarray(value), metrics

    return told


def regularizer(options: Options, plan: Plan, known: Sites, steps: int) -> None:
    """None: latent weights are drawn nowhere."""


def after(options: Options, plan: Plan, known: Sites) -> Any:
    """What follows each update: positive scales, and how many weights of one bit changed their sign."""

    def follow(trained: Any, carried: Any, step: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
        q = {a: getattr(plan[a], "projected", lambda s: s)(s) for a, s in trained["q"].items()}
        trained = {**trained, "q": q}
        now = _signs(plan, known, trained)
        if not now:
            return trained, now, {}
        flipped = jnp.stack([(now[a] != carried[a]).sum() for a in now]).sum() / sum(x.size for x in now.values())
        return trained, now, {"flips": flipped}

    return follow


def _signs(plan: Plan, known: Sites, trained: Any) -> dict[str, jax.Array]:
    """The signs of the weights of one bit, as they are packed: behind the mean where that is taken off."""
    ones = {a: q for a, q in plan.items() if known[a].path is not None and q.bits == 1}
    at = {a: (trained["q"][a], leaf(trained["params"], known[a]), known[a].letters) for a in ones}
    return {a: q.encode(*at[a]).codes == 1 for a, q in ones.items()}


def carried(plan: Plan, known: Sites, trained: Any) -> dict[str, jax.Array]:
    """The signs before the first step."""
    return _signs(plan, known, trained)


def reweighting(options: Options, plan: Plan, known: Sites, schedule: Schedule) -> None:
    """None: updates stay as they are."""


def summary(plan: Plan, known: Sites, trained: Any, carried: Any) -> dict[str, Any]:
    """Nothing a weight: a sign has no place among codes."""
    return {}


def protocol(options: Options) -> dict[str, Any]:
    """What has to be known to compare a result of this method."""
    weight_bits, act_bits = options.widths()
    said = {
        "auto": f"as token where the model has that token (weight {options.alpha:g}), else as soft",
        "token": f"labels, and the teacher's class on the distillation token's head (weight {options.alpha:g})",
        "soft": "the teacher's distribution alone",
        "none": "labels",
    }
    ranking = f"{options.gamma:g} times the hinge of {options.pairs} pairs of the map ({options.space}), margin "
    binary, learned = act_bits == 1, "learned scale"
    kernels = options.kernels if weight_bits == 1 or options.kernels == "ternary" else learned
    norm = f"LayerNorm of query and key: {options.qk_norm}"
    return {
        "weights": f"{width(weight_bits)}, {kernels}, per output channel",
        "linear inputs": f"{width(act_bits)}, {options.inputs if binary else learned}; merges: {options.merge}; "
        f"GELU within {options.gelu_clip:g}",
        "softmax": f"{width(act_bits)}, {options.attention if binary else learned}",
        "query, key, value": f"{width(act_bits)}, {options.qkv if binary else learned}; {norm}",
        "slope of scales": options.slope,
        "patch embedding and head": edge_words(options),
        "float": "LayerNorm, softmax, GELU, biases, residual additions, relative positions",
        **options.words(),
        "courses": f"two, activations float for {options.first:.0%} of the steps" if options.first else "one",
        "learned from": f"{said[options.distillation]}; {options.teacher or 'its own float checkpoint'}",
        "ranking": f"{ranking}{options.theta:g}" if options.gamma else "none",
    }
