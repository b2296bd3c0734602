"""VVTQ: variation-aware training of quantised ViTs (Huang et al. 2024), and LSQ as its baseline.

Learned scales (module by module: query, key and value apart, heads apart), distillation, and a regulariser against
oscillating weights. Presets: ``released`` is what the authors' code does (for a Swin with the rules that
configs/vvtq_swint.py gives), ``paper`` what the paper describes, ``lsq`` the baseline without either. What each part
gives is measured in configs/vvtq_ablation.py.
"""

import dataclasses
from collections.abc import Mapping, MutableMapping
from fnmatch import fnmatch
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jvq.core.axes import ordered
from jvq.core.calibrate import Fitted, Track, calibrate, leaf, silent
from jvq.core.mesh import single
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Forward, Operand, Plan, Recipe, Sites
from jvq.methods import distillation, latent, minmax, oscillation, transitions
from jvq.methods.annealing import annealed
from jvq.methods.bins import AGGREGATES, VARIANCES, Aggregate, Variance, bin_loss, strength
from jvq.methods.distillation import DISTILLATIONS, Distillation
from jvq.methods.learning import Course, Learning
from jvq.methods.minmax import at, edge_words, edges, is_edge, outputs, width
from jvq.quantizers import Learned
from jvq.quantizers.learned import GRADIENTS, STARTS, Gradient, Start
from jvq.quantizers.uniform import check_choice
from jvq.schedule import Schedule

Granularity = Literal["tensor", "head", "channel"]
Offset = Literal["gelu", "all", "none"]
Stage = Literal["both", "activations"]
Mdq = Literal["grad", "lr", "off"]
PLAIN_BITS = 8  #: from which on nothing is regularised
HEADS = ("head", "head_dist")
BARS = 96  #: of a histogram of weights
LEFT = {  # what "leave" keeps float: patterns of addresses
    "": (),
    "mlp": ("*/mlp/*",),
    "attention": ("*/attn/*",),
    "query": ("*/qk.q",),
    "key": ("*/qk.k",),
    "value": ("*/pv.v",),
}
TRAINS = True  #: fitting takes training images
CROPS = dict(distillation="stored", crop_scale=(0.08, 0.936))
PRESETS: dict[str, dict[str, Any]] = {
    "released": dict(granularity="tensor", act_start="released", act_gradient="root", mdq="grad", bins="mean",
                     bin_variance="unbiased", bin_strength=0.01, warmup=0.0, clip=None, drop_path=0.1, **CROPS),
    "paper": dict(granularity="head", mdq="grad", bins="sum", bin_variance="sum_sq", warmup=0.0, clip=None,
                  drop_path=0.1, **CROPS),
    "lsq": dict(granularity="tensor", mdq="off", bin_strength=0.0, distillation="none"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options(Learning):
    """How to train: all that Learning has, and what is VVTQ's."""

    granularity: Granularity = "channel"  # scales of weights: a tensor, a head of attention, an output channel
    leave: Literal["", "mlp", "attention", "query", "key", "value"] = ""  # operands that stay float
    merged: bool = False  # query and key as one matrix a head (OFQ, jvq.models.merging)
    offset: Offset = "gelu"  # which activations have a learned offset
    weight_start: Start = "mse"
    act_start: Start = "mse"
    act_gradient: Gradient = "lsq"  # what the gradients of activations' scales are multiplied by
    mdq: Mdq = "grad"  # weights' scales weighed by the module: by gradient, by learning rate, or as in LSQ
    distillation: Distillation = "teacher"
    labels: str = ""  # folder of stored soft labels; "": made in the workdir
    crops: int = 4  # stored crops an image, of each image an epoch sees one
    crop_scale: tuple[float, ...] = (0.5, 1.0)  # share of the image's area in a crop
    keep: int = 5  # probabilities stored of a soft label, the rest spread evenly
    hard: float = 0.0  # weight of the labels in the loss beside distillation
    bins: Aggregate = "sum"  # how the bin regulariser adds up
    bin_variance: Variance = "sum_sq"
    bin_strength: float = 1e-2  # of the regulariser at the end; 0: none
    bin_start: float = 0.25  # share of the steps without it
    transitions: float = 0.0  # share of codes that change a step, at the top of the schedule; 0: by learning rate alone
    anneal: float = 0.0  # share of the steps, at the end, that train weights next to a boundary only
    anneal_band: float = 0.005  # how near, in steps of the scale
    stage: Stage = "both"  # "activations": weights stay float in training and are quantised behind it

    def __post_init__(self) -> None:
        for name, known in (
            ("granularity", get_args(Granularity)),
            ("offset", get_args(Offset)),
            ("mdq", get_args(Mdq)),
            ("leave", tuple(LEFT)),
            ("distillation", DISTILLATIONS),
            ("stage", get_args(Stage)),
            ("bins", AGGREGATES),
            ("bin_variance", VARIANCES),
            ("weight_start", STARTS),
            ("act_start", STARTS),
            ("act_gradient", GRADIENTS),
        ):
            check_choice(f"method.{name}", getattr(self, name), known)
        for name in ("crops", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be at least 1")
        super().__post_init__()
        self.check_shares("bin_start", "hard", "transitions", "anneal")
        self.check_nonnegative("bin_strength")
        if self.anneal_band <= 0:
            raise ValueError(f"method.anneal_band: got {self.anneal_band}, must be positive")
        if self.distillation == "stored" and self.batch % self.crops:
            raise ValueError(f"method.batch: got {self.batch}, must be a multiple of {self.crops} (crops)")
        if self.labels and self.distillation != "stored":
            raise ValueError(f"method.labels: only distillation 'stored' reads them, not '{self.distillation}'")
        if self.teacher and (self.distillation == "none" or self.labels):
            raise ValueError(f"method.teacher: '{self.teacher}' is not asked anything with these options")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"method.crop_scale: got {self.crop_scale}, must be two shares of an area, in order")
        if self.stage == "activations" and (self.transitions or self.anneal):
            raise ValueError(
                "method.stage: 'activations' trains float weights, which have no transitions or boundaries"
            )


def student(options: Options, known: Sites) -> dict[str, Any]:
    """Fields of the model's Spec that are otherwise in the model that is trained."""
    return {"merged": True} if options.merged else {}


def recipe(options: Options, known: Sites) -> Recipe:
    """One rule an address."""
    rules: list[tuple[str, Quantizer | None]] = []
    heads = {o.site.rpartition("/")[0]: o.shape[o.letters.index("h")] for o in known.values() if o.role == "p"}
    for address, o in known.items():
        if any(fnmatch(address, pattern) for pattern in LEFT[options.leave]):
            continue
        weight_bits, act_bits = edges(options) if is_edge(o) else options.widths()
        if o.path is not None:
            rules.append((address, at(weight_bits, _weight(options, o, weight_bits, heads))))
        else:
            rules.append((address, at(act_bits, _activation(options, o, act_bits, heads))))
    return rules


def _weight(options: Options, o: Operand, bits: int, heads: Mapping[str, int]) -> Learned:
    gradient: Gradient = "l1" if options.mdq == "grad" else "lsq"
    plain = Learned(bits, "", start=options.weight_start, gradient=gradient)
    own = ordered(set("s") & set(o.letters), o.letters)  # query, key and value are matrices of their own
    if options.granularity == "channel":
        return dataclasses.replace(plain, keep=outputs(o))
    if options.granularity == "tensor" or is_edge(o):
        return dataclasses.replace(plain, keep=own)
    if "h" in o.letters:
        return dataclasses.replace(plain, keep=own + "h")
    behind = heads.get(o.site.rpartition("/")[0], 0)  # the output projection takes the heads side by side
    return dataclasses.replace(plain, keep="h", heads=behind) if behind else plain


def _activation(options: Options, o: Operand, bits: int, heads: Mapping[str, int]) -> Learned:
    positive = o.role == "p"
    gelu = o.site.endswith("/fc2")
    offset = not positive and ((options.offset == "all" and o.site != "patch") or (options.offset != "none" and gelu))
    start = options.act_start
    plain = Learned(bits, "", not (positive or gelu), offset, start, options.act_gradient)
    if options.granularity == "tensor" or is_edge(o):
        return plain
    if "h" in o.letters:
        return dataclasses.replace(plain, keep="h")
    behind = heads.get(o.site.rpartition("/")[0], 0) if o.site.endswith("/proj") else 0
    return dataclasses.replace(plain, keep="h", heads=behind) if behind and options.granularity == "head" else plain


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
    """Where training begins: every quantiser's scale on float operands."""
    return Fitted(plan, calibrate(forward, params, images, plan, known, track=track, mesh=mesh))


def calibrates(options: Options) -> bool:
    """Fitting is training."""
    return False


def baselines(options: Options) -> dict[str, tuple[str, Any]]:
    """Min-max after training, at the same widths."""
    return {
        "minmax": ("minmax", minmax.Options(options.bits, options.weight_bits, options.act_bits, options.edge_bits))
    }


def beside(options: Options) -> bool:
    """Whether a float model runs beside the student."""
    return options.distillation in distillation.TAUGHT


def labelled(options: Options, known: Sites) -> bool:
    """Whether the loss needs the images' labels."""
    return options.distillation == "none" or options.hard > 0


def tape_loss(options: Options, known: Sites) -> distillation.Loss:
    """The loss on two tapes, which need the addresses of :func:`watched`."""
    return distillation.loss(options.distillation, options.hard, watched(options, known))


def watched(options: Options, known: Sites) -> list[str]:
    """The addresses that the loss looks at: the heads' inputs, to learn features."""
    heads = [a for a, o in known.items() if o.role == "x" and o.site in HEADS]
    return heads if options.distillation == "features" else []


def courses(options: Options, plan: Plan, known: Sites) -> list[Course]:
    """What is trained under which part of the plan."""
    return [Course({a: q for a, q in plan.items() if options.stage == "both" or known[a].path is None})]


def regularizer(options: Options, plan: Plan, known: Sites, steps: int) -> Any:
    """The bin regulariser of all weights below 8 bits; None without one."""
    drawn = {a: q for a, q in latent.weights(plan, known).items() if q.bits < PLAIN_BITS}
    if not options.bin_strength or not drawn:
        return None

    def regularize(trained: Any, step: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        factor = strength(options.bin_strength, options.bin_start, step, steps)
        total = jnp.float32(0.0)
        for a, q in drawn.items():
            w, o = leaf(trained["params"], known[a]), known[a]
            total += bin_loss(q, trained["q"][a], w, o.letters, o.contracted, options.bins, options.bin_variance)
        return factor * total, {"bin_strength": factor}

    return regularize


def after(options: Options, plan: Plan, known: Sites) -> Any:
    """What follows each update: positive scales, and the tracks of the weights' codes."""
    learned, tracked = latent.learned(plan), latent.followed(plan, known)

    def follow(trained: Any, carried: Any, step: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
        q = {a: learned[a].projected(s) if a in learned else s for a, s in trained["q"].items()}
        trained = {**trained, "q": q}
        tracks = {a: oscillation.follow(t, latent.codes(tracked[a], trained, known[a])) for a, t in carried.items()}
        if not tracks:
            return trained, tracks, {}
        count = sum(t.code.size for t in tracks.values())
        back = jnp.stack([oscillation.oscillating(t).sum() for t in tracks.values()]).sum()
        moved = jnp.stack([(t.code != carried[a].code).sum() for a, t in tracks.items()]).sum()
        return trained, tracks, {"oscillating": back / count, "transitions": moved / count}

    return follow


def reweighting(options: Options, plan: Plan, known: Sites, schedule: Schedule) -> optax.GradientTransformation | None:
    """What happens to updates behind the schedule's rule; None where nothing does."""
    every, weights, parts = latent.weights(plan, known), latent.followed(plan, known), []
    if options.mdq == "lr" and every:
        parts.append(module_rates(every, known))
    if options.transitions and weights:
        parts.append(
            transitions.scheduled(weights, known, options.transitions, schedule.learning_rate, schedule.rate())
        )
    if options.anneal and weights:
        start = schedule.steps - round(options.anneal * schedule.steps)
        parts.append(annealed(weights, known, start, options.anneal_band))
    return optax.chain(*parts) if parts else None


def module_rates(weights: Mapping[str, Learned], known: Sites) -> optax.GradientTransformation:
    """Updates of weights' scales times their module's factor over the mean of all modules' (``mdq="lr"``).

    Adam undoes a constant factor of a gradient, so this is how module-dependent scales act under it (spec, section 4).
    """
    mine = {a: dataclasses.replace(q, gradient="l1") for a, q in weights.items()}

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        found = {
            a: q.factor(params["q"][a], leaf(params["params"], known[a]), known[a].letters) for a, q in mine.items()
        }
        mean = jnp.stack([f.mean() for f in found.values()]).mean()
        q = {a: {**s, "scale": s["scale"] * (found[a] / mean)} if a in found else s for a, s in updates["q"].items()}
        return {**updates, "q": q}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def carried(plan: Plan, known: Sites, trained: Any) -> dict[str, oscillation.Track]:
    """The tracks before the first step."""
    return {a: oscillation.begin(latent.codes(q, trained, known[a])) for a, q in latent.followed(plan, known).items()}


def summary(plan: Plan, known: Sites, trained: Any, tracks: Mapping[str, oscillation.Track]) -> dict[str, Any]:
    """By weight the shares that oscillate and that lie next to where their code changes; how all lie among the codes.

    ``histogram`` counts ``w / scale`` from ``low - 1`` to ``high + 1``.
    """
    found = {}
    for a, q in latent.followed(plan, known).items():
        state, steps = trained["q"][a], single(latent.steps(q, trained, known[a]))
        low, high = state["low"], state["high"]
        near, back = oscillation.near_boundary(steps, low, high), oscillation.oscillating(tracks[a])
        counts, _ = np.histogram(np.clip(steps, low - 1, high + 1), BARS, (float(low) - 1, float(high) + 1))
        found[a] = {
            "oscillating": float(back.mean()),
            "near": float(near.mean()),
            "weights": int(steps.size),
            "ends": [float(low), float(high)],
            "histogram": counts.tolist(),
        }
    return found


def protocol(options: Options) -> dict[str, Any]:
    """What has to be known to compare a result of this method."""
    weight_bits, act_bits = options.widths()
    said = {
        "teacher": f"distilled from {options.teacher or 'its own float checkpoint'} on the same images",
        "features": f"distilled from the features of {options.teacher or 'its own float checkpoint'}",
        "stored": f"distilled from stored soft labels {options.labels}, {options.crops} crops an image at a time",
        "none": "trained on labels",
    }
    taught = said[options.distillation]
    return {
        "weights": f"{width(weight_bits)}, learned scale per {options.granularity}, start {options.weight_start}",
        "linear inputs": f"{width(act_bits)}, learned scale, start {options.act_start}, offset: {options.offset}",
        "softmax": f"{width(act_bits)}, unsigned",
        "query, key, value": f"{width(act_bits)}, a quantiser each",
        "patch embedding and head": f"{edge_words(options)}",
        "float": "LayerNorm, softmax, GELU, biases, residual additions"
        + (f", {options.leave}" if options.leave else ""),
        **options.words(),
        "learned from": taught,
        "weights in training": {"both": "quantised", "activations": "float, quantised at the end"}[options.stage],
        "steps of weights": f"so that {options.transitions:g} of codes change"
        if options.transitions
        else "learning rate",
        "annealing": f"the last {options.anneal:.0%} of the steps, {options.anneal_band:g} of a scale from a boundary"
        if options.anneal
        else "none",
        "module-dependent scales": options.mdq,
        "bin regulariser": f"{options.bins} + {options.bin_variance}, {options.bin_strength}, below 8 bits"
        if options.bin_strength
        else "none",
    }
