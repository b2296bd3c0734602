"""What the methods do with a model, as phases of equal steps: what each multiplies, moves, exchanges and waits for.

Numbers are of one device and one step unless they say otherwise. Between phases everybody waits for everybody.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jvq.core.errors import nearest
from jvq.core.samples import VALUES
from jvq.methods import METHODS, igq
from jvq.planning.demand import FLOAT, Workload, moved
from jvq.planning.pods import Number, Pod
from jvq.quantizers.kmeans import SOME

KINDS = ("minmax", "igq", "sweep", "liu21", "vvtq", "bivit")  #: sweep: igq with allocation by bit-operations
THREADS = 4  #: that read calibration images (jvq.data.workers)
MEMORY = 2**30  #: bytes of products or operands that are held at once (sweep, liu21)
LLOYD = 30  #: iterations of k-means, taken to be so many
TRIED = 97  #: bounds of groups that are tried by error (jvq.core.ranges.least_error)
POINT = 9  #: bytes that a point moves for each group that it is compared with: its place among them is written out
BESIDES = 9  #: numbers that clustering holds of a point beside one for each group
ROUNDS = 3  #: of Liu et al.'s search, until nothing is gained
UPDATE = 12  #: times that a step reads or writes a number a parameter: gradient, moments, update, tracks
REREAD = 5  #: times that each part of a batch reads or writes parameters and gradients
BESIDE = 0.4  #: of what is kept for the backward pass, the part that is whole on all devices of a layer: the stream
PAIR = 8  #: operations of a pair in the ranking loss
TRACK = 7  #: bytes that the oscillation tracker keeps of a weight
EVALUATED = 50_000
TRAINED = 1_281_167


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps of one kind."""

    name: str
    steps: int
    flops: Number = 0.0  # of products
    ops: Number = 0.0  # operations one by one
    traffic: Number = 0.0  # bytes to and from the device's memory
    blocking: Number = 0.0  # bytes exchanged between devices, which the next product waits for
    exchanged: Number = 0.0  # bytes exchanged beside the backward pass
    staged: Number = 0.0  # bytes between host and device
    calls: Number = 1.0  # programs that the host starts
    programs: int = 0  # that are compiled, in the whole phase
    images: Number = 0.0  # decoded, by all hosts together
    whole: bool = False  # every host decodes all of them, whatever the pod says
    readers: int = 0  # of a host; 0: as many as the pod has
    alone: bool = False  # one device works, the others do the same or wait
    saved: Number = 0.0  # bytes of a checkpoint, all devices together
    every: int = 0  # steps between checkpoints; 0: none
    held: Mapping[str, Number] = dataclasses.field(default_factory=dict)  # bytes of the device's memory
    hosted: Number = 0.0  # bytes of each host's memory


@dataclasses.dataclass(frozen=True)
class Job:
    """A method on a model."""

    kind: str
    options: Any = None  # the method's; None: its defaults
    images: int = 32  # of calibration
    batch: int = 8  # of these, on a device at a time
    evaluated: int = EVALUATED
    trained: int = TRAINED
    divided: bool = False  # operands are clustered by different devices: jvq does not do that yet

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"method '{self.kind}' is not known{nearest(self.kind, KINDS)}")
        if self.options is None:
            made = igq.Options(allocation="bops") if self.kind == "sweep" else self.method.Options()
            object.__setattr__(self, "options", made)

    @property
    def method(self) -> Any:
        return METHODS["igq" if self.kind == "sweep" else self.kind]


def phases(job: Job, w: Workload, pod: Pod, batch: int = 128) -> list[Phase]:
    """The phases of the job, in order, the last of which evaluates ``batch`` images at a time.

    ``ValueError`` where a batch of training cannot be split over the devices.
    """
    fits = [reading(job), observing(job, w, pod)]
    if job.kind in ("igq", "sweep"):
        fits.append(clustering(job, w, pod))
    if job.kind == "sweep":
        fits += sweeping(job, w, pod)
    if job.kind == "liu21":
        fits += searching(job, w, pod)
    if job.kind in ("vvtq", "bivit"):
        fits.append(training(job, w, pod))
    return [*fits, evaluating(job, w, pod, batch)]


def held(phase: Phase) -> Number:
    """Bytes of a device's memory."""
    return sum(phase.held.values())


def reading(job: Job) -> Phase:
    """Calibration images, one a step: every host reads them all, in threads."""
    return Phase("read", job.images, calls=0, images=1, whole=True, readers=THREADS)


def observing(job: Job, w: Workload, pod: Pod) -> Phase:
    """One float pass; what calibration keeps of it is brought together on every host."""
    batch = min(job.batch, job.images)
    gathered = w.kept * batch * pod.data
    return Phase(
        "observe",
        -(-job.images // (batch * pod.data)),
        **_forward(w, pod, batch),
        staged=batch * FLOAT * w.pixels + gathered,
        programs=1,
        held={"parameters": _lying(w, pod), "activations": _working(w, pod, batch), "samples": gathered},
        hosted=2.0 * w.kept * job.images,  # the parts, and then joined
    )


def clustering(job: Job, w: Workload, pod: Pod) -> Phase:
    """k-means of every operand in groups, and bounds by error, for every number of groups: one device.

    Points beyond ``SOME`` are seen by the last run of k-means alone, the others by all of its restarts. An error looks
    at some values and at both extremes of every point, where values were left out.
    """
    counts = job.options.candidates if job.kind == "sweep" else (job.options.groups,)
    length, starts = max(counts), job.options.restarts + 1
    points = [job.images * n for n, _ in w.grouped.values()]
    values = [_seen(p, job.images * size) for p, (_, size) in zip(points, w.grouped.values(), strict=True)]
    means = sum(LLOYD * (starts * min(p, SOME) + (p if p > SOME else 0)) for p in points)  # points that meet the groups
    tries, looked = TRIED * sum(points), TRIED * sum(values)
    many, shared = max(1, len(points)), pod.devices if job.divided else 1
    return Phase(
        "cluster",
        -(-many * len(counts) // shared),
        ops=(6 * length * means + 10 * looked) / many,
        traffic=(POINT * length * (means + tries) + FLOAT * looked) / many,
        staged=FLOAT * sum(values) / many,
        programs=4,
        alone=not job.divided,
        held={"points": FLOAT * (length + BESIDES) * max(points, default=0)},
    )


def _seen(points: int, size: int) -> int:
    """Values that an error looks at, of an operand of ``size`` numbers in all images."""
    return size if size <= VALUES else max(VALUES, points) + 2 * points


def sweeping(job: Job, w: Workload, pod: Pod) -> list[Phase]:
    """The predictions under every candidate of every operand in groups: products in front of it are not computed."""
    unit = max(1, min(job.images, MEMORY // w.outs))
    rounds = -(-job.images // (unit * pod.data))
    behind = _behind(w)
    flops = sum(f for f, _ in behind) / len(behind)
    traffic = sum(t for _, t in behind) / len(behind)
    full = _forward(w, pod, unit)
    lying = {"parameters": _lying(w, pod), "activations": _working(w, pod, unit)}
    recorded = {**lying, "products": unit * w.recorded}
    return [
        Phase("record", rounds, **{k: 2 * v for k, v in full.items()}, programs=1, held=recorded),
        Phase(
            "sweep",
            rounds * len(behind) * len(job.options.candidates),
            flops=unit * 2 * flops / pod.model,
            ops=full["ops"],
            traffic=unit * (traffic + w.recorded) + _lying(w, pod),
            blocking=full["blocking"],
            programs=1,
            held=recorded,
        ),
    ]


def _behind(w: Workload) -> list[tuple[int, int]]:
    """For every operand in groups: MACs and bytes of the products from its own on."""
    found = []
    for address in w.grouped:
        first = next(i for i, p in enumerate(w.products) if p.site == address.rpartition(".")[0])
        rest = w.products[first:]
        found.append((sum(p.macs for p in rest), sum(map(moved, rest))))
    return found


def searching(job: Job, w: Workload, pod: Pod) -> list[Phase]:
    """Liu et al.'s search: passes that capture operands, then a hundred products of some rows for every interval.

    What of one product is more than ``MEMORY`` bytes is captured anew whenever it is looked at.
    """
    o = job.options
    looks = (3 if o.bias_correction in ("search", "both") else 2) * ROUNDS + 1
    scores = 2 * ROUNDS
    batch = min(job.batch, job.images)
    large = sum(p.captured * job.images > MEMORY for p in w.products)
    together = _groups(w, job.images)
    rounds = -(-job.images // (batch * pod.data))
    kept = sum(p.captured for p in w.products) / max(1, len(w.products))
    capture = Phase(
        "capture",
        (looks * large + together) * rounds,
        **_forward(w, pod, batch),
        staged=batch * (FLOAT * w.pixels + kept * pod.data),
        programs=large + together,  # each captures something else
        held={"parameters": _lying(w, pod), "activations": _working(w, pod, batch)},
        hosted=2.0 * MEMORY,
    )
    total: dict[str, Any] = dict.fromkeys(("steps", "flops", "ops", "traffic", "staged"), 0.0)
    most = 0.0
    for p in w.products:
        size = min(job.images, max(batch, MEMORY // 8 // max(1, p.captured)))
        chunks = math.ceil(math.ceil(job.images / size) / pod.data)
        one = _scored(p, size, w, o)
        calls = scores * chunks
        total["steps"] += calls
        for name, value in one.items():
            total[name] += calls * value
        total["staged"] += (looks - scores) * chunks * size * p.captured
        most = max(most, size * p.chunk + 4 * FLOAT * size * p.share * p.lying[2])
    steps = max(1, round(total.pop("steps")))
    each: dict[str, Any] = {name: value / steps for name, value in total.items()}
    score = Phase("search", steps, **each, programs=12, held={"chunk": most, "weights": 4.0 * FLOAT * w.params / 40})
    bias = Phase("biases", 2 * rounds, **_forward(w, pod, batch), programs=2, held=capture.held)
    return [capture, score, bias]


def _scored(p: Any, size: int, w: Workload, options: Any) -> dict[str, Any]:
    """One call that scores all candidates of one interval on ``size`` images."""
    tried = options.steps + 1
    left, right, out = p.lying
    left, right, out = size * p.share * left, right * (1 if p.weight else size), size * p.share * out
    ranked = 0.0
    if options.ranking and p.site.endswith("/qk"):
        rows = w.rows / w.depth * p.share
        ranked = size * min(rows, (options.ranking_rows or rows) * rows / max(1, w.keys * p.share)) * w.keys**2
    return {
        "flops": tried * 2 * size * p.share * p.macs,
        "ops": tried * (8 * out + 5 * (left + right) / 2 + 4 * ranked),
        "traffic": tried * FLOAT * (3 * out + 1.5 * (left + right)),
        "staged": size * p.captured,
    }


def _groups(w: Workload, images: int) -> int:
    """Passes over the images: operands of as many products as fit into ``MEMORY`` are captured in one."""
    found, left = 0, 0
    for p in w.products:
        size = p.captured * images
        if size > MEMORY:
            left = 0
            continue
        if not found or size > left:
            found, left = found + 1, MEMORY
        left -= size
    return found


def training(job: Job, w: Workload, pod: Pod) -> Phase:
    """Steps of the student, forward and backward, beside a teacher; gradients are added up while they are found."""
    o = job.options
    if o.batch % (pod.data * o.accumulate):
        parts = pod.data * o.accumulate
        raise ValueError(f"method.batch: {o.batch} cannot be split into {parts} equal parts (devices x accumulate)")
    batch, teachers = o.batch / pod.data, 1 if job.method.beside(o) else 0
    forward = _forward(w, pod, batch)
    lying, part = _lying(w, pod), 1 - (1 - 1 / pod.model) * w.wide / w.params
    ranked = job.kind == "bivit" and o.gamma > 0
    pairs = batch * PAIR * w.rows * (w.keys**2 if ranked and o.pairs == "all" else 0)
    residuals = w.residuals * (BESIDE + (1 - BESIDE) / pod.model)
    tracked = TRACK * w.kernels * part if job.kind == "vvtq" and o.bits <= 4 else 0.0
    return Phase(
        "train",
        o.steps or o.epochs * (job.trained // o.batch),
        flops=(3 + teachers) * forward["flops"],
        ops=(3 + teachers) * forward["ops"] + pairs / pod.model,
        traffic=batch * (2 * residuals + (1 + teachers) * w.traffic / pod.model)
        + (UPDATE + (REREAD + teachers) * o.accumulate) * lying,
        blocking=(2 + teachers) * forward["blocking"],
        exchanged=2 * (1 - 1 / pod.data) * lying,
        staged=batch * w.pixels,  # uint8
        programs=1,
        images=o.batch,
        saved=FLOAT * (3 + (1 if o.ema else 0)) * w.params + (TRACK * w.kernels if tracked else 0),
        every=o.save_every,
        held={
            "parameters": lying,
            "gradients": lying,
            "moments": 2 * lying,
            "average": lying if o.ema else 0.0,
            "teacher": teachers * lying,
            "tracks": tracked,
            "activations": batch / o.accumulate * (residuals + 2 * w.largest / pod.model),
        },
    )


def evaluating(job: Job, w: Workload, pod: Pod, batch: int) -> Phase:
    """The float model and the quantised one, each over the whole set."""
    batch = max(batch, pod.data)
    each = -(-batch // pod.data)
    forward = _forward(w, pod, each)
    held = {"parameters": _lying(w, pod), "activations": _working(w, pod, each)}
    steps = 2 * -(-job.evaluated // batch)
    return Phase("evaluate", steps, **forward, staged=each * FLOAT * w.pixels, programs=2, images=batch, held=held)


def _forward(w: Workload, pod: Pod, batch: Number) -> dict[str, Any]:
    """A pass of ``batch`` images. In parts along ``model`` a block adds up its two outputs over these devices."""
    exchange = 2 * (1 - 1 / pod.model) * batch * FLOAT * w.stream
    return {
        "flops": 2 * batch * w.macs / pod.model,
        "ops": batch * w.ops / pod.model,
        "traffic": batch * w.traffic / pod.model + _lying(w, pod),
        "blocking": 2 * w.depth * exchange,
    }


def _lying(w: Workload, pod: Pod) -> Number:
    """Bytes of the parameters on one device."""
    return FLOAT * (w.params - w.wide + w.wide / pod.model)


def _working(w: Workload, pod: Pod, batch: Number) -> Number:
    """Bytes that a forward pass needs at a time: the largest product twice (before and behind softmax), the stream."""
    return batch * (2 * w.largest / pod.model + 4 * FLOAT * w.stream + FLOAT * w.pixels)


def passes(phase: Phase, w: Workload) -> Number:
    """How many float forward passes of one image have as many operations, on one device."""
    return phase.steps * phase.flops / (2 * w.macs) if w.macs else math.nan
