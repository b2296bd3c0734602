"""How fast crops with soft labels are read beside how fast a float model trains on them, in one run.

    python benchmarks/soft_labels.py [--batch=128] [--per_image=4] [--steps=10] [--rounds=3]

Crops are cut out of the embedded Fashion-MNIST's training images and the model is the embedded fashion_vit; the labels
are a made-up teacher's, written to a temporary folder first: reading them is the same work. The two are timed in turn,
then both at once, as training does it; the fastest of the rounds counts. A ratio above 1 means that reading is faster.
One or two minutes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jvq
from jvq.data import Preprocess, crop_batches, open_source
from jvq.data.soft_labels import recover, steps, write

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch", 128, "crops of one training step", lower_bound=1)
flags.DEFINE_integer("per_image", 4, "crops of an image that are seen together; divides the batch", lower_bound=1)
flags.DEFINE_integer("crops", 16, "crops of an image that are stored", lower_bound=1)
flags.DEFINE_integer("images", 2048, "images that have labels", lower_bound=1)
flags.DEFINE_integer("steps", 10, "training steps that are timed at once", lower_bound=1)
flags.DEFINE_integer("reads", 200, "batches whose reading is timed at once", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "how often each is timed", lower_bound=1)

KEEP = 5


def main(argv: list[str]) -> None:
    del argv
    checkpoint = jvq.open_weights("fashion_vit")
    preprocess = Preprocess.from_dict(checkpoint.preprocess)
    classes = checkpoint.model.spec.classes
    source = open_source("fashion", "train")
    step, carried = training(checkpoint, preprocess, classes)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        labels = write(
            folder,
            source,
            preprocess,
            lambda images: images.reshape(len(images), -1)[:, :classes],
            teacher_name="made up",
            teacher_digest="",
            classes=classes,
            crops=FLAGS.crops,
            keep=KEEP,
            indices=np.linspace(0, len(source) - 1, FLAGS.images).astype(int),
        )
        written = FLAGS.images * FLAGS.crops / (time.perf_counter() - start)
        epochs = 100 * FLAGS.per_image
        total = steps(FLAGS.images, FLAGS.batch, epochs, FLAGS.per_image)

        def stream(count: int) -> Iterator[Any]:
            """The last batches of a long training and one to warm up: beyond them nothing is read ahead."""
            first = max(0, total - count - 1)
            return crop_batches(source, labels, preprocess, FLAGS.batch, FLAGS.per_image, epochs, 0, first)

        held = next(stream(0))
        carried = jax.block_until_ready(step(carried, held))  # compiles

        def read(batches: Iterator[Any]) -> int:
            return sum(len(batch["image"]) for batch in batches)

        def train(batches: Iterator[Any]) -> int:
            nonlocal carried
            seen = 0
            for batch in batches:
                carried, seen = step(carried, batch), seen + len(batch["image"])
            jax.block_until_ready(carried)
            return seen

        print(f"batch {FLAGS.batch}, {FLAGS.per_image} of {FLAGS.crops} crops an image; {written:.0f} crops/s written")
        best = {"reading": 0.0, "training": 0.0, "both": 0.0}
        for _ in range(FLAGS.rounds):
            for name, work, batches in (
                ("reading", read, stream(FLAGS.reads)),
                ("training", train, iter([held] * (FLAGS.steps + 1))),
                ("both", train, stream(FLAGS.steps)),
            ):
                best[name] = max(best[name], rate(work, batches))
    for name, crops in best.items():
        print(f"{name}: {crops:.0f} crops/s, {1000 * FLAGS.batch / crops:.1f} ms a batch")
    print(f"reading / training = {best['reading'] / best['training']:.2f}; both / training = ", end="")
    print(f"{best['both'] / best['training']:.2f}")


def training(checkpoint: jvq.Checkpoint, preprocess: Preprocess, classes: int) -> tuple[Callable[..., Any], Any]:
    """A jitted float step on soft labels, ``step(carried, batch) -> carried``, and what it starts from."""
    optimizer = optax.adamw(5e-4, weight_decay=1e-4)
    mean, std = (np.asarray(x, np.float32) for x in (preprocess.mean, preprocess.std))

    def loss(params: Any, batch: Any) -> jax.Array:
        images = (batch["image"].astype(jnp.float32) / 255 - mean) / std
        label = recover(batch["index"], batch["value"], classes, "smooth")
        return -(label * jax.nn.log_softmax(checkpoint.model.forward(params, images))).sum(axis=1).mean()

    @jax.jit
    def step(carried: Any, batch: Any) -> Any:
        params, state = carried
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, checkpoint.params)
    return step, (params, optimizer.init(params))


def rate(work: Callable[[Iterator[Any]], int], batches: Iterator[Any]) -> float:
    """Crops a second, without the first batch, before which threads and files are opened."""
    next(batches)
    start = time.perf_counter()
    crops = work(batches)
    return crops / (time.perf_counter() - start)


if __name__ == "__main__":
    app.run(main)
