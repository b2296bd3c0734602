"""A packed model put to use: what it holds, how well and how fast it runs in integers, and its exports.

  python -m jvq.deploy runs/igq_demo/packed.safetensors --images=2000
  python -m jvq.deploy FILE --weights=small
  python -m jvq.deploy FILE --onnx=model.onnx --stablehlo=model.zip --platform=cpu

Every run that quantises one model writes such a file. ``--onnx`` writes QDQ for onnxruntime, ``--stablehlo`` a compiled
form that runs without this package; both refuse what they cannot express.
"""

import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jvq import accounting, export, usage
from jvq.core.calibrate import Track, silent
from jvq.data import Loader
from jvq.export import Deployment
from jvq.integer.rows import WEIGHTS, Weights
from jvq.mistakes import one_line

FLAGS = flags.FLAGS
OWN = ("images", "batch", "workers", "weights", "data", "dir", "onnx", "stablehlo", "stablehlo_batch", "platform")
"""What stands in the help."""
if __name__ == "__main__":
    flags.DEFINE_string("data", "fashion", "fashion, folder, npz or tfds:NAME: what the model is evaluated on")
    flags.DEFINE_string("dir", None, "of that data")
    flags.DEFINE_integer("images", 1000, "of the test split; 0: none, the model is only exported", lower_bound=0)
    flags.DEFINE_integer("batch", 100, "images at a time", lower_bound=1)
    flags.DEFINE_integer("workers", 0, "processes that read images; 0: threads, -1: as the cores ask", lower_bound=-1)
    flags.DEFINE_enum("weights", "fast", WEIGHTS, "a byte a weight code in memory, or 2 to 4 bits packed")
    flags.DEFINE_string("onnx", None, "file to write for onnxruntime")
    flags.DEFINE_string("stablehlo", None, "file to write for any process with jax")
    flags.DEFINE_integer(
        "stablehlo_batch", None, "images at a time of the latter; by default any number", lower_bound=1
    )
    flags.DEFINE_enum("platform", "cpu", ["cpu", "cuda", "tpu"], "what the latter is compiled for")


def described(deployment: Deployment, weights: Weights = "fast") -> str:
    """How the products are computed, in words: ``32 products: 20 groups, 12 int8``."""
    found = Counter(deployment.ways(weights).values())
    parts = ", ".join(f"{count} {way}" for way, count in found.most_common())
    return f"{sum(found.values())} products: {parts}"


def compared(deployment: Deployment, images: jax.Array, fake: jax.Array) -> str:
    """Integer inference beside fake quantisation's outputs [b ...] for ``images``, in words."""
    got = deployment.integer()(images)
    apart = np.abs(np.asarray(got - fake)).reshape(len(images), -1).max(axis=1)
    text = f"{described(deployment)}; outputs differ by {np.median(apart):.1e} (median image)"
    if getattr(deployment.model.spec, "classes", 0):
        same = int((jnp.argmax(got, axis=1) == jnp.argmax(fake, axis=1)).sum())
        text += f", decisions on {len(images) - same} of {len(images)} images"
    return text


def evaluate(deployment: Deployment, loader: Loader, track: Track = silent) -> dict[str, Any]:
    """Accuracy in integers, how many decisions differ from fake quantisation, images a second without compiling.

    One batch is in memory at a time, and of the outputs only the decisions are kept; reading images is not timed.
    """
    integer, fake = deployment.integer(FLAGS.weights), jax.jit(deployment.forward)
    blank = np.zeros((loader.batch_size, *deployment.model.image), np.float32)  # every batch has this shape
    for run in track([integer, fake], "compiling"):
        jax.block_until_ready(run(blank))
    seconds, parts, apart = 0.0, [], 0.0
    for batch in track(loader, "evaluating in integers and fake quantisation"):
        start = time.perf_counter()
        got = jax.block_until_ready(integer(batch["image"]))
        seconds += time.perf_counter() - start
        pair = [np.asarray(y).reshape(loader.batch_size, -1) for y in (got, fake(batch["image"]))]
        apart = max(apart, float(np.abs(pair[0] - pair[1])[batch["mask"]].max(initial=0.0)))
        outputs = [y.argmax(axis=1) for y in pair]
        parts.append(np.stack([*outputs, batch["label"]])[:, batch["mask"]])
    got, reference, labels = np.concatenate(parts, axis=1)
    if not len(labels):
        raise ValueError(f"{loader.source.name}: none of its images can be read, the first: {loader.skipped[0]}")
    rate = loader.batch_size * len(loader) / seconds  # the last batch takes its time whole
    rows: dict[str, Any] = {"images": len(labels), "images a second": f"{rate:.0f}"}
    if loader.skipped:
        rows["not readable"] = f"{len(loader.skipped)}, the first: {loader.skipped[0]}"
    if getattr(deployment.model.spec, "classes", 0):
        if (labels >= 0).all():
            rows["top-1 %, integers"] = f"{100 * np.mean(got == labels):.2f}"
            rows["top-1 %, fake quantisation"] = f"{100 * np.mean(reference == labels):.2f}"
        rows["decisions that differ"] = int((got != reference).sum())
    else:
        rows["largest difference from fake quantisation"] = f"{apart:.1e}"
    return rows


def main(argv: list[str]) -> None:
    """Shows the table and writes what is asked for."""
    if len(argv) != 2:
        raise ValueError("one argument is needed, a packed file: python -m jvq.deploy runs/igq_demo/packed.safetensors")
    import rich.box
    from rich.table import Table

    from jvq.data import Preprocess, open_source
    from jvq.report import Console

    console = Console()
    deployment = export.load(argv[1])
    for name in ("onnx", "stablehlo"):
        path = None if getattr(FLAGS, name) is None else Path(getattr(FLAGS, name)).absolute()
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"{name}: {path} cannot be written: it must be a file in a folder that exists")
    source = open_source(FLAGS.data, "test", FLAGS.dir) if FLAGS.images else None
    size = accounting.tree_bytes(deployment.params, deployment.qstate)
    rows: dict[str, Any] = {
        "model": f"{deployment.model.architecture}, {deployment.model.image[0]}x{deployment.model.image[1]} pixels",
        "file": f"{Path(argv[1]).stat().st_size / 1024:.1f} KiB; in memory {size / 1024:.1f} KiB",
        "in integers": described(deployment, FLAGS.weights),
    }
    if FLAGS.onnx is not None:
        from jvq.export.onnx import save_onnx

        console.say(f"writing {FLAGS.onnx} ...")
        save_onnx(deployment, FLAGS.onnx)
        rows["onnx"] = FLAGS.onnx
    if FLAGS.stablehlo is not None:
        from jvq.export.stablehlo import save_stablehlo

        console.say(f"compiling {FLAGS.stablehlo} ...")
        save_stablehlo(deployment, FLAGS.stablehlo, platform=FLAGS.platform, batch=FLAGS.stablehlo_batch)
        rows["stablehlo"] = FLAGS.stablehlo
    if source is not None:
        drawn = np.random.default_rng(0).permutation(len(source))[: FLAGS.images]
        preprocess = Preprocess.from_dict(dict(deployment.preprocess))
        loader = Loader(source, preprocess, min(FLAGS.batch, len(drawn)), drawn, FLAGS.workers)
        rows |= evaluate(deployment, loader, console.track)
    table = Table(box=rich.box.SIMPLE_HEAD, show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.out.print(table)


def entry() -> None:
    """``python -m jvq.deploy``."""
    logging.getLogger("jax").setLevel(logging.WARNING)  # else every start tells which accelerators are not there

    def guarded(argv: list[str]) -> None:
        with one_line(ValueError):
            main(argv)

    app.run(guarded, flags_parser=usage.reader(__doc__ or "", OWN))


if __name__ == "__main__":
    entry()
