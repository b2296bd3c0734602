"""What a run would take on devices that are not at hand: the plans of docs/scale.md, or one of them in phases.

    python benchmarks/scale.py                                                  # the tables of the page
    python benchmarks/scale.py --model=vit_g --method=sweep --images=1000 --devices=64 --chip=v5e

Nothing is computed of a model; CHIPS, and what is assumed beside data sheets, are in jvq/planning/pods.py. "simulated"
is a step-by-step simulation of the same schedule over the closed form, of at most 1,000 steps, without compiling.
"""

import dataclasses
import math
from typing import Any

from absl import app, flags

from jvq import planning
from jvq.methods import METHODS
from jvq.models import build
from jvq.planning import CHIPS, KINDS, MODELS, Job, Phase, Pod, Workload
from jvq.planning.jobs import passes

GIGA = 1e9
ROOM = 0.9  #: of a device's memory; the rest is the compiler's
MOST = 1000  #: steps that are simulated
CASES = (  # model, method, images or (training) epochs, batch, whether hosts share the decoding
    ("vit_b", "sweep", 1000, 0, False),
    ("vit_b", "sweep, clustering divided", 1000, 0, False),
    ("vit_b", "liu21", 1000, 0, False),
    ("vit_b", "vvtq", 300, 1024, False),
    ("vit_b", "vvtq", 300, 1024, True),
    ("deit_t", "bivit", 300, 512, False),
    ("deit_t", "bivit", 300, 512, True),
    ("vit_g", "sweep", 1000, 0, False),
    ("vit_g", "sweep, clustering divided", 1000, 0, False),
    ("vit_g", "liu21", 1000, 0, False),
    ("vit_g", "vvtq", 300, 1024, False),
    ("vit_g_518", "sweep", 1000, 0, False),
    ("vit_g_518", "sweep, clustering divided", 1000, 0, False),
    ("vit_g_518", "liu21", 1000, 0, False),
    ("vit_g_518", "vvtq", 30, 1024, False),
)
FLAGS = flags.FLAGS
flags.DEFINE_enum("model", None, list(MODELS), "one plan, of this model")
flags.DEFINE_enum("method", "sweep", list(KINDS), "what is done with it; sweep: igq with allocation")
flags.DEFINE_enum("chip", "v5e", list(CHIPS), "the device")
flags.DEFINE_integer("devices", 64, "how many", lower_bound=1)
flags.DEFINE_integer("parts", 0, "devices that wide weights lie on; 0: as many as are needed", lower_bound=0)
flags.DEFINE_integer("images", 1000, "of calibration", lower_bound=1)
flags.DEFINE_integer("epochs", 300, "of training", lower_bound=1)
flags.DEFINE_integer("batch", 1024, "of training", lower_bound=1)
flags.DEFINE_bool("sharded", True, "every host decodes its part of a batch, not all of it")


def main(argv: list[str]) -> None:
    """One plan in phases, or the page's tables."""
    del argv
    if FLAGS.model:
        training = FLAGS.method in ("vvtq", "bivit")
        case = FLAGS.model, FLAGS.method, FLAGS.epochs if training else FLAGS.images, FLAGS.batch, FLAGS.sharded
        job, w, pod = planned(case, FLAGS.chip, FLAGS.devices, FLAGS.parts)
        print(f"{FLAGS.method} on {FLAGS.model}: {mesh(pod, job)}, {pod.hosts} hosts")
        shown(job, w, pod)
        return
    print("| model | method | mesh | GB a device | GB a host | hours | most of it | what decides | simulated |")
    print("|---|---|---|---:|---:|---:|---|---|---:|")
    for case in CASES:
        job, w, pod = planned(case, FLAGS.chip, FLAGS.devices, FLAGS.parts)
        print(row(case, job, w, pod), flush=True)


def planned(case: Any, chip: str, devices: int, parts: int) -> tuple[Job, Workload, Pod]:
    """The job and the mesh on which it fits and takes least (within 2 %, of fewest parts), else the nearest to it."""
    model, what, length, batch, sharded = case
    kind, _, divided = what.partition(", ")
    images = 32 if batch and kind in ("vvtq", "bivit") else length
    options = METHODS[kind].Options(epochs=length, batch=batch, save_every=2000) if images != length else None
    job = Job(kind, options, images=images, divided=bool(divided))
    w = planning.workload(model, job.method, job.options, images, tile=CHIPS[chip].tile)
    found = []
    heads = build("vit", MODELS[model]).spec.heads
    for part in [parts] if parts else [p for p in (1, 2, 4, 8, 16) if devices % p == heads % p == 0]:
        pod = planning.pod_of(chip, devices, part, sharded=sharded)
        for j in accumulating(job, pod):
            plan = planning.phases(j, w, pod)
            need = max(map(planning.held, plan))
            fits = need <= ROOM * pod.chip.memory
            took = sum(planning.seconds(pod, p) for p in plan) if fits else need
            found.append((not fits, round(math.log(took) / 0.02), part, len(found), j, pod))
    *_, job, pod = min(found, key=lambda f: f[:4])
    return job, w, pod


def accumulating(job: Job, pod: Pod) -> list[Job]:
    """The job with a batch's images on a device at once, in two parts, in four, and so on."""
    if job.kind not in ("vvtq", "bivit"):
        return [job]
    counts = [2**i for i in range(12) if job.options.batch % (2**i * pod.data) == 0]
    return [dataclasses.replace(job, options=dataclasses.replace(job.options, accumulate=n)) for n in counts]


def mesh(pod: Pod, job: Job) -> str:
    """Of the page."""
    extra = getattr(job.options, "accumulate", 1)
    return f"{pod.data} x {pod.model}" + (f", accumulate {extra}" if extra > 1 else "")


def row(case: Any, job: Job, w: Workload, pod: Pod) -> str:
    """A line of the page's table."""
    plan = planning.phases(job, w, pod)
    took = [planning.seconds(pod, p) for p in plan]
    longest = max(range(len(plan)), key=took.__getitem__)
    need, host = max(map(planning.held, plan)) / GIGA, max(p.hosted for p in plan) / GIGA
    fits = "" if need * GIGA <= ROOM * pod.chip.memory else " (does not fit)"
    what = case[1] + (", shared decoding" if pod.sharded else "")
    length = f"{case[2]} {'epochs' if job.kind in ('vvtq', 'bivit') else 'images'}"
    cells = (
        case[0],
        f"{what}, {length}",
        mesh(pod, job),
        f"{need:.1f}{fits}",
        f"{host:.1f}",
        f"{sum(took) / 3600:.2f}",
        f"{plan[longest].name}, {100 * took[longest] / sum(took):.0f} %",
        planning.binding(pod, plan[longest]),
        f"{against(pod, plan):.3f}",
    )
    return f"| {' | '.join(cells)} |"


def shown(job: Job, w: Workload, pod: Pod) -> None:
    """The phases."""
    print(f"{w.params / 1e6:.1f} M parameters, {w.macs / GIGA:.1f} G MACs, {w.outs / 1e6:.0f} MB of products an image")
    head = (
        f"{'phase':9} {'steps':>8} {'passes':>10} {'GB held':>8} {'GB links':>9} {'GB staged':>9} {'hours':>8}  decides"
    )
    print(head)
    plan = planning.phases(job, w, pod)
    for p in plan:
        links, staged = p.steps * (p.blocking + p.exchanged) / GIGA, p.steps * p.staged / GIGA
        print(
            f"{p.name:9} {p.steps:8} {passes(p, w):10.0f} {planning.held(p) / GIGA:8.2f} {links:9.1f} {staged:9.1f} "
            f"{planning.seconds(pod, p) / 3600:8.3f}  {planning.binding(pod, p)}"
        )
    for name, size in max(plan, key=planning.held).held.items():
        if size:
            print(f"    {name}: {size / GIGA:.2f} GB")
    print(f"passes, GB: of one device; simulated / closed form {against(pod, plan):.3f}")


def against(pod: Pod, plan: list[Phase]) -> float:
    """The simulation over the closed form, phases cut to ``MOST`` steps, compiling left out."""
    pod = dataclasses.replace(pod, assumed=dataclasses.replace(pod.assumed, compiling=0.0))
    short = [dataclasses.replace(p, steps=min(p.steps, MOST)) for p in plan]
    return sum(planning.simulated(pod, p) for p in short) / sum(planning.seconds(pod, p) for p in short)


if __name__ == "__main__":
    app.run(main)
