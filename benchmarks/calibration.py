"""What fitting a method costs beside one float forward of the same images, time and memory, in one run.

    python benchmarks/calibration.py [--model=vit --size=B/16] [--images=32] [--bits=8] [--rounds=3]
    python benchmarks/calibration.py --method=liu21 --rounds=1

Weights and images are random: the work is the same. Both are compiled beforehand (the first calibration is shown too)
and then timed in turn; the least of the rounds counts, and of the forwards the least of ten more around them. Peak
memory is that of the whole process, with JAX and weights. Measured with --method=liu21 --rounds=0 on two cores and
nothing else on them: 56.9 float forwards, 2.1 GiB; the limit that we set ourselves is 60.
"""

import resource
import sys
import time

import jax
import numpy as np
from absl import app, flags

from jvq.core.recipe import resolve, sites
from jvq.methods import METHODS
from jvq.models import build

COMPILING = [
    f"/jax/core/compile/{part}_duration" for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
]
FORWARDS = 5  #: before all fitting, and as many behind
FLAGS = flags.FLAGS
flags.DEFINE_enum("method", "igq", ["igq", "liu21", "minmax"], "what is fitted, with its default options")
flags.DEFINE_string("model", "vit", "architecture")
flags.DEFINE_string("size", "B/16", "size of the architecture")
flags.DEFINE_integer("depth", None, "blocks, instead of the size's own", lower_bound=1)
flags.DEFINE_integer("images", 32, "calibration images", lower_bound=1)
flags.DEFINE_integer("batch", 8, "images of one forward pass", lower_bound=1)
flags.DEFINE_integer("bits", 8, "of weights and activations")
flags.DEFINE_integer(
    "rounds", 3, "how often each is timed; 0: fitting once, and its compilation taken off", lower_bound=0
)


def main(argv: list[str]) -> None:
    del argv
    model = build(FLAGS.model, {"size": FLAGS.size} | ({"depth": FLAGS.depth} if FLAGS.depth else {}))
    params = model.init(jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(FLAGS.images, *model.image)).astype(np.float32)
    known = sites(model.forward, params, model.image)
    method = METHODS[FLAGS.method]
    options = method.Options(bits=FLAGS.bits)
    plan = resolve(method.recipe(options, known), known)
    forward = jax.jit(model.forward)

    def once() -> None:
        for i in range(0, FLAGS.images, FLAGS.batch):
            jax.block_until_ready(forward(params, images[i : i + FLAGS.batch]))

    def fit() -> None:
        jax.block_until_ready(method.fit(options, model.forward, params, images, plan, known).qstate)

    compiling: list[float] = []  # seconds, of each executable

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event in COMPILING:
            compiling.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    print(f"{FLAGS.method} at {FLAGS.bits} bits, {FLAGS.model} {FLAGS.size}, {FLAGS.images} images", flush=True)
    start, before = seconds(once), [seconds(once) for _ in range(FORWARDS)]
    compiling.clear()
    first = (start, seconds(fit))
    spent = sum(compiling)
    print(
        f"with compilation: forward {first[0]:.1f} s, fitting {first[1]:.1f} s, {spent:.1f} s of it compiling",
        flush=True,
    )
    timed = [(seconds(once), seconds(fit)) for _ in range(FLAGS.rounds)]
    plain = min([seconds(once) for _ in range(FORWARDS)] + before + [forward for forward, _ in timed])
    whole = min([fitting for _, fitting in timed], default=first[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 / (2**10 if sys.platform == "darwin" else 1)
    if not FLAGS.rounds:
        whole -= spent
    print(f"without it: forward {plain:.2f} s, fitting {whole:.2f} s = {whole / plain:.2f} times")
    print(f"peak memory {peak:.2f} GiB")


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    app.run(main)
