"""What a step of quantised training costs beside a float step of the same model and batch, in one run.

    python benchmarks/training.py [--weights=fashion_vit] [--bits=4] [--batch=128] [--rounds=8]

"quantised" learns from labels as the float step does; "distilled" has the float model as its teacher, the bin
regulariser and the oscillation tracker: all that VVTQ does by default. Each is compiled once (counted), then all are
timed in turn; the median counts. The limit we set ourselves is 2.5 times the float step.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import app, flags

import jvq
from jvq import tapes
from jvq.core.recipe import resolve, sites
from jvq.data import Preprocess, open_source, sample, train_batches
from jvq.data.augment import preparation
from jvq.methods import vvtq
from jvq.train import Objective, beginning, stepper

FLAGS = flags.FLAGS
flags.DEFINE_string("weights", "fashion_vit", "embedded checkpoint")
flags.DEFINE_integer("bits", 4, "of weights and activations")
flags.DEFINE_integer("batch", 128, "images of a step", lower_bound=1)
flags.DEFINE_integer("rounds", 8, "how often each is timed", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    checkpoint = jvq.open_weights(FLAGS.weights)
    forward, params = checkpoint.model.forward, checkpoint.params
    known = sites(forward, params, checkpoint.model.image)
    options = vvtq.Options(bits=FLAGS.bits, batch=FLAGS.batch)
    plan = resolve(vvtq.recipe(options, known), known)
    source, preprocess = open_source("fashion", "train"), Preprocess.from_dict(checkpoint.preprocess)
    fit = vvtq.fit(options, forward, params, sample(source, preprocess, 32, 0).images, plan, known)
    trained = {"params": params, "q": {a: dict(s) for a, s in fit.qstate.items()}}
    schedule, prepare = options.schedule(len(source)), preparation(preprocess, options.shift)

    def labelled(student: tapes.Tape, teacher: tapes.Tape, batch: Mapping[str, Any]) -> Any:
        logits = student[tapes.OUTPUT]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), {}

    told = tapes.on_tapes(vvtq.tape_loss(options, known), forward, plan, prepare, teacher=forward)
    objectives = {
        "float": Objective(tapes.on_tapes(labelled, forward, {}, prepare)),
        "quantised": Objective(tapes.on_tapes(labelled, forward, plan, prepare)),
        "distilled": Objective(
            told,
            params,
            vvtq.regularizer(options, plan, known, schedule.steps),
            vvtq.after(options, plan, known),
            vvtq.carried(plan, known, trained),
        ),
    }
    batches = train_batches(source, FLAGS.batch, 0, 1)
    held = [{k: jnp.asarray(v) for k, v in next(batches).items()} for _ in range(2)]
    optimizer, runs = schedule.optimizer(), {}
    for name, objective in objectives.items():
        step = jax.jit(stepper(objective, optimizer, schedule))
        progress = beginning(objective, trained, optimizer, schedule)
        start = time.perf_counter()
        jax.block_until_ready(step(progress, objective.fixed, held[0], jax.random.key(0)))
        print(f"{name}: compiled in {time.perf_counter() - start:.1f} s", flush=True)
        runs[name] = step, progress, objective.fixed, []
    for i in range(FLAGS.rounds):
        for step, progress, fixed, times in runs.values():
            start = time.perf_counter()
            jax.block_until_ready(step(progress, fixed, held[i % 2], jax.random.key(i)))
            times.append(time.perf_counter() - start)
    base = statistics.median(runs["float"][3])
    for name, (step, _, _, times) in runs.items():
        middle = statistics.median(times)
        print(
            f"{name}: {1000 * middle:.0f} ms a step = {middle / base:.2f} times float; {step._cache_size()} executable"
        )


if __name__ == "__main__":
    app.run(main)
