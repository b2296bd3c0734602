"""What XLA makes of programs for a v5e that is not there, beside what the plan says: memory, bytes, layouts.

    pip install -e '.[test,aot]'
    python benchmarks/compiled.py [--cases=clustering,forward]       # the table of docs/scale.md; training: 3 minutes

Nothing runs: XLA compiles ahead of time and says what the program would hold. Models have two blocks. "Moved" is what
XLA's own analysis adds up, which counts a loop once and a slice as the array it is of: left out where that misleads.
"Padding" is the largest part of an array of points that is padding, in the layouts that XLA chose.
"""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import app, flags

TOPOLOGY = "v5e:2x2"
GIGA = 1e9
CASES = ("iteration", "clustering", "forward", "observing", "training")
FLAGS = flags.FLAGS
flags.DEFINE_list("cases", list(CASES), f"of {', '.join(CASES)}")
WIDE = {"patch": 14, "dim": 1408, "heads": 16, "mlp_ratio": 6144 / 1408, "depth": 2}
MODELS = {
    "ViT-B": {"patch": 16, "dim": 768, "heads": 12, "depth": 2},
    "ViT-g": WIDE,
    "ViT-g, 518 px": WIDE | {"image": (518, 518)},
}
POINTS = ((16, 257, 12), (16, 257, 32), (16, 1370, 12), (16, 1370, 32))  # heads, tokens, groups; of 1,000 images


class Program(NamedTuple):
    """What is compiled, and what the plan says of it."""

    text: str
    run: Callable[..., Any]
    shapes: Any
    held: float | None  # bytes
    moved: float | None
    points: int = 0  # arrays of so many numbers are looked at for padding


def main(argv: list[str]) -> None:
    """A line for every program."""
    del argv
    os.environ.update(TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost", JAX_PLATFORMS="cpu")
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    made = {"iteration": iterations, "clustering": clustering, "training": training}
    made |= {"forward": lambda: passes(False), "observing": lambda: passes(True)}
    print("| program | XLA: GB held | the plan | XLA: GB moved | the plan | padding |")
    print("|---|---:|---:|---:|---:|---:|")
    for case in FLAGS.cases:
        for program in made[case]():
            print(line(program), flush=True)


def line(program: Program) -> str:
    """A line of the table."""
    done = compiled(program.run, program.shapes)
    cells = [program.text]
    for mine, real in zip((program.held, program.moved), sizes(done), strict=True):
        cells += ["", ""] if mine is None else [f"{real:.2f}", f"{mine / GIGA:.2f}"]
    cells.append(f"{100 * padding(done.as_text(), program.points):.0f} %" if program.points else "")
    return f"| {' | '.join(cells)} |"


def compiled(program: Callable[..., Any], shapes: Any) -> Any:
    """The program for one chip."""
    import jax
    from jax.experimental.topologies import get_topology_desc

    chip = get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[0]
    there = jax.sharding.SingleDeviceSharding(chip)
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), shapes)
    return jax.jit(program).lower(*structs).compile()


def sizes(done: Any) -> tuple[float, float]:
    """GB of arguments, results and what is between; GB that XLA's own analysis says are moved, loops once."""
    m = done.memory_analysis()
    return (m.argument_size_in_bytes + m.temp_size_in_bytes) / GIGA, done.cost_analysis()["bytes accessed"] / GIGA


def padding(text: str, least: int) -> float:
    """The largest part that is padding, of float32 arrays of at least so many numbers."""
    worst = 0.0
    for numbers, order, tile in re.findall(r"f32\[([\d,]+)\]\{([\d,]+):T\((\d+(?:,\d+)?)\)", text):
        shape = [*map(int, numbers.split(","))]
        lengths = [shape[int(i)] for i in order.split(",")]  # the last axis first
        whole = lying = 1
        for i, n in enumerate(lengths):
            steps = [*map(int, tile.split(","))][::-1]
            whole, lying = whole * n, lying * (-(-n // steps[i]) * steps[i] if i < len(steps) else n)
        if whole >= least:
            worst = max(worst, 1 - whole / lying)
    return worst


def struct(*shape: int, dtype: str = "float32") -> Any:
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def iterations() -> Any:
    """One iteration of k-means over all points, and one error that is looked at."""
    import jax.numpy as jnp

    from jvq.core.samples import Samples
    from jvq.planning.jobs import POINT
    from jvq.quantizers import kmeans
    from jvq.quantizers.grouped import group_error

    def iteration(points: Any, centres: Any) -> Any:
        group, least = kmeans.nearest(points, centres)
        return kmeans._means(points, group, centres), least.sum()

    def error(x: Any, low: Any, high: Any, weight: Any, group: Any, scale: Any, zero: Any) -> Any:
        samples = Samples(x, weight, low, high, "bhqk", "hq")
        return group_error(samples, "bhq", group, len(scale), jnp.float32(15))(scale, zero)

    for heads, tokens, groups in POINTS:
        points, g = 1000 * heads * tokens, struct(groups)
        what, bytes_of = f"{points / 1e6:.1f} M points in {groups} groups", POINT * groups * points
        yield Program(
            f"an iteration, {what}", iteration, (struct(points, 2), struct(groups, 2)), None, bytes_of, points
        )
        x, group = struct(1000, heads, tokens, 1), struct(1000, heads, tokens, dtype="int32")
        yield Program(
            f"an error, {what}", error, (x, x, x, struct(), group, g, g), None, bytes_of + 12 * points, points
        )


def clustering() -> Any:
    """Rows of attention maps of 1,000 images into groups."""
    from jvq.core.calibrate import _fresh
    from jvq.core.samples import Samples
    from jvq.methods import igq
    from jvq.planning import Job, held, jobs, pod_of
    from jvq.quantizers import Grouped

    for heads, tokens, groups in POINTS:
        form = Grouped(bits=0, groups=0, along="hq", nonnegative=True, capacity=groups)
        x, points = struct(1000, heads, tokens, 1), 1000 * heads * tokens
        numbers = {name: struct(dtype="int32") for name in ("bits", "seed", "groups")}
        shapes = numbers, Samples(x, struct(), x, x, "bhqk", "hq")
        job = Job("igq", igq.Options(groups=groups), images=1000)
        w = counted("ViT-g", igq, job.options)._replace(grouped={"a": (heads * tokens, heads * tokens**2)})
        mine = held(jobs.clustering(job, w, pod_of("v5e", 1)))
        text = f"clustering, {points / 1e6:.1f} M points in {groups} groups"
        yield Program(text, lambda n, s, f=form: _fresh(f, n, s, "bhqk"), shapes, mine, None, points)


def counted(name: str, method: Any, options: Any, images: int = 1) -> Any:
    from jvq.planning import CHIPS, workload

    return workload(MODELS[name], method, options, images, tile=CHIPS["v5e"].tile)


def passes(observed: bool) -> Any:
    """A float forward of eight images, and the same that keeps samples."""
    from jvq.core.calibrate import _observed
    from jvq.core.recipe import resolve, sites
    from jvq.core.samples import VALUES
    from jvq.methods import igq
    from jvq.models import build
    from jvq.planning import Job, held, jobs, pod_of

    for name, fields in MODELS.items():
        model, job = build("vit", fields), Job("igq", images=1000)
        known = sites(model.forward, model.shapes(), model.image)
        plan = resolve(igq.recipe(job.options, known), known)
        kinds = tuple((a, (q.apart,)) for a, q in plan.items() if known[a].path is None)
        phase = jobs.observing(job, counted(name, igq, job.options, 1000), pod_of("v5e", 1))
        shapes: Any = (model.shapes(), struct(8, *model.image))
        if observed:
            run = lambda *x, m=model, k=kinds: _observed(m.forward, k, VALUES // 1000, *x)  # noqa: E731
            yield Program(f"forward and samples, {name}", run, (*shapes, struct(dtype="int32")), held(phase), None)
        else:
            yield Program(f"forward, {name}", model.forward, shapes, held(phase), phase.traffic)


def training(batch: int = 16) -> Any:
    """A step of VVTQ with a teacher."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jvq import tapes
    from jvq.core.recipe import resolve, sites
    from jvq.methods import vvtq
    from jvq.models import build
    from jvq.planning import Job, held, jobs, pod_of
    from jvq.train import Objective, beginning, stepper

    model, options = build("vit", MODELS["ViT-B"]), vvtq.Options(bits=4, batch=batch, epochs=1)
    known = sites(model.forward, model.shapes(), model.image)
    plan = resolve(vvtq.recipe(options, known), known)
    first = {a: lambda q=q, a=a: q.init(jnp.ones(known[a].shape), known[a].letters) for a, q in plan.items()}
    q = {a: jax.eval_shape(made) for a, made in first.items()}
    trained = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), {"params": model.shapes(), "q": q})
    schedule = options.schedule(1000 * batch)
    loss = tapes.on_tapes(vvtq.tape_loss(options, known), model.forward, plan, lambda key, x: x, teacher=model.forward)
    extra = vvtq.regularizer(options, plan, known, schedule.steps), vvtq.after(options, plan, known)
    objective = Objective(loss, trained["params"], *extra, vvtq.carried(plan, known, trained))
    optimizer = schedule.optimizer()
    progress = jax.eval_shape(lambda t: beginning(objective, t, optimizer, schedule), trained)
    rows = {"image": struct(batch, *model.image), "label": struct(batch, dtype="int32")}
    shapes = progress, model.shapes(), rows, jax.eval_shape(lambda: jax.random.key(0))
    phase = jobs.training(Job("vvtq", options), counted("ViT-B", vvtq, options), pod_of("v5e", 1))
    text, step = f"training step of {batch} images, ViT-B", stepper(objective, optimizer, schedule)
    yield Program(text, step, shapes, held(phase), None)


if __name__ == "__main__":
    app.run(main)
