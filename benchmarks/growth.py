"""How fitting, evaluation and a training step grow with images, sites, width and tokens, on random ViTs.

    python benchmarks/growth.py [--methods=igq,sweep] [--only=depth8]       # the table of docs/scale.md, 24 processes
    python benchmarks/growth.py --measure=sweep --dim=128 --depth=4 --side=64 --images=16,32
    python benchmarks/growth.py --fit=docs/scale.md           # rates from the page's rows of base, errors of the others

CPU seconds of the process, each a process of its own. Everything runs once for every number of images, so that its
programs are compiled and kept, and then ``--repeats`` times again, of which the least counts: what else a machine does
only adds. "first" is what the first took more. A float forward of the same images is timed beside it and is the unit.
Peak memory is that of the whole process, up to then.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

MODELS = {  # name: dim, depth, side in pixels (patches of 8)
    "base": (128, 4, 64),
    "depth8": (128, 8, 64),
    "dim256": (256, 4, 64),
    "side128": (128, 4, 128),
}
METHODS = ("minmax", "igq", "sweep", "liu21", "vvtq", "evaluate")
FORWARDS = 5  #: times that a forward is timed
HEAD = 32  #: channels of a head
FLAGS = flags.FLAGS
flags.DEFINE_list("methods", list(METHODS), "what is measured")
flags.DEFINE_list("only", list(MODELS), "the models")
flags.DEFINE_enum("measure", None, METHODS, "one of them, in this process: prints JSON")
flags.DEFINE_integer("dim", 128, "width", lower_bound=HEAD)
flags.DEFINE_integer("depth", 4, "blocks", lower_bound=1)
flags.DEFINE_integer("side", 64, "pixels of an image's side", lower_bound=8)
flags.DEFINE_list("images", ["32", "64"], "numbers of images, the least first")
flags.DEFINE_integer("repeats", 3, "times that each is timed; the least counts", lower_bound=1)
flags.DEFINE_string("fit", None, "a page with the table: what the model says of its rows")


def main(argv: list[str]) -> None:
    """A line for every method, model and number of images, as the page has them."""
    del argv
    if FLAGS.fit:
        said(Path(FLAGS.fit).read_text("utf-8"))
        return
    if FLAGS.measure:
        print(json.dumps(measured(FLAGS.measure, FLAGS.dim, FLAGS.depth, FLAGS.side, [*map(int, FLAGS.images)])))
        return
    print("| method | model | images | CPU s | first + | forward | times | GiB |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": folder}
        env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(Path(__file__).parents[1])}
        for method in FLAGS.methods:
            for name in FLAGS.only:
                dim, depth, side = MODELS[name]
                size = [f"--dim={dim}", f"--depth={depth}", f"--side={side}", f"--images={','.join(FLAGS.images)}"]
                command = [sys.executable, __file__, f"--measure={method}", *size, f"--repeats={FLAGS.repeats}"]
                done = subprocess.run(command, capture_output=True, text=True, env=env)
                if done.returncode:
                    sys.exit(done.stderr)
                for row in json.loads(done.stdout.splitlines()[-1]):
                    print(
                        f"| {method} | {name} | {row['images']} | {row['seconds']:.3f} | {row['first']:.1f} "
                        f"| {row['forward']:.4f} | {row['seconds'] / row['forward']:.1f} | {row['peak']:.2f} |",
                        flush=True,
                    )


def said(page: str) -> None:
    """The rates that the rows of base ask for, and what the model then says over what was measured."""
    from jvq.planning import growth

    rows = growth.rows(page)
    rates = growth.rates([row for row in rows if row.model == growth.BASE], MODELS)
    print("seconds of a core for", ", ".join(f"{name} {value:.3g}" for name, value in rates._asdict().items()))
    print("\n".join(growth.errors(rows, MODELS)))


def measured(method: str, dim: int, depth: int, side: int, counts: list[int]) -> list[dict[str, float]]:
    """What the method costs with each number of images: seconds, first, forward, evaluated, peak (GiB)."""
    import jax
    import numpy as np

    from jvq.models import build

    shape = {"dim": dim, "depth": depth, "heads": dim // HEAD, "image": (side, side), "patch": 8, "classes": 100}
    model = build("vit", shape)
    params = model.init(jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(counts[-1], *model.image)).astype(np.float32)
    forward = jax.jit(model.forward)
    rows = []
    for count in counts:
        some = images[:count]
        fit = work(method, model, params, some)

        def plain(some: Any = some) -> None:
            for i in range(0, len(some), 8):
                jax.block_until_ready(forward(params, some[i : i + 8]))

        first, _ = seconds(fit), seconds(plain)
        again = min(seconds(fit) for _ in range(FLAGS.repeats))
        once = min(seconds(plain) for _ in range(FORWARDS))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 / (2**10 if sys.platform == "darwin" else 1)
        rows.append({"images": count, "seconds": again, "first": first - again, "forward": once, "peak": peak})
    return rows


def work(method: str, model: Any, params: Any, images: Any) -> Callable[[], None]:
    """What is timed."""
    import jax

    from jvq.core.recipe import resolve, sites
    from jvq.methods import METHODS as ALL

    kind = ALL["igq" if method in ("sweep", "evaluate") else method]
    options = {
        "sweep": {"allocation": "bops", "candidates": (4, 8, 12)},
        "vvtq": {"batch": len(images)},
    }.get(method, {})
    options = kind.Options(bits=4, **options)
    known = sites(model.forward, model.shapes(), model.image)
    plan = resolve(kind.recipe(options, known), known)
    if method == "vvtq":
        return step(options, model, params, images, plan, known)
    if method == "evaluate":
        return both(kind.fit(options, model.forward, params, images[:8], plan, known), model, params, images)
    return lambda: jax.block_until_ready(kind.fit(options, model.forward, params, images, plan, known).qstate)


def both(fitted: Any, model: Any, params: Any, images: Any) -> Callable[[], None]:
    """The float model and the quantised one over the images, 32 at a time."""
    import numpy as np

    from jvq.evaluate import predict, runner

    count = min(32, len(images))
    known = {"label": np.zeros(count, np.int32), "mask": np.ones(count, bool)}
    batches = [{"image": images[i : i + count], **known} for i in range(0, len(images), count)]
    runs = [(runner(model.forward, plan), state) for plan, state in (({}, {}), (fitted.plan, fitted.qstate))]

    def work() -> None:
        for run, state in runs:
            predict(lambda x, run=run, state=state: run(params, state, x), batches, "evaluating")

    return work


def step(options: Any, model: Any, params: Any, images: Any, plan: Any, known: Any) -> Callable[[], None]:
    """A training step with the float model as teacher, all images in one batch."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jvq import tapes
    from jvq.methods import vvtq
    from jvq.train import Objective, beginning, stepper

    fit = vvtq.fit(options, model.forward, params, images[:8], plan, known)
    trained = {"params": params, "q": {a: dict(s) for a, s in fit.qstate.items()}}
    schedule = options.schedule(1000 * len(images))

    def prepare(key: Any, images: Any) -> Any:
        return images

    objective = Objective(
        tapes.on_tapes(vvtq.tape_loss(options, known), model.forward, plan, prepare, teacher=model.forward),
        params,
        vvtq.regularizer(options, plan, known, schedule.steps),
        vvtq.after(options, plan, known),
        vvtq.carried(plan, known, trained),
    )
    optimizer = schedule.optimizer()
    run = jax.jit(stepper(objective, optimizer, schedule))
    progress = beginning(objective, trained, optimizer, schedule)
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(np.zeros(len(images), np.int32))}
    return lambda: jax.block_until_ready(run(progress, params, batch, jax.random.key(0)))


def seconds(work: Callable[[], None]) -> float:
    """Of the CPU, all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    app.run(main)
