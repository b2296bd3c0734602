"""How a folder as large as ImageNet is read: its index, its memory, and images a second beside a model's, in one run.

    python benchmarks/input.py [--images=1300000] [--workers=2] [--model=S/16] [--dir=/tmp]

Makes a folder of links to a few dozen JPEGs of 500x375 pixels, made from noise, under a thousand classes. It grows to
1 %, 10 % and all of the images; each time a process of its own makes the index, and another opens the kept one, reads
images here and there and tells its memory. Then images are decoded, resized and normalised for a model of random
weights, in threads and in processes, beside that model in float32 and in 8 bits. Everything is deleted at the end.
"""

import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

FLAGS = flags.FLAGS
CLASSES, PHOTOS = 1000, 48
SETTLING = 6  #: batches that are read before the rate is taken
READ = 64  #: images that are read out of the kept index before memory is told
STEP = """if True:
    import json, sys, time
    import numpy as np
    from pathlib import Path
    import jvq.data
    from jvq.data import ImageFolder

    def memory():
        lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        found = {line[0]: int(line[1]) / 1024 for line in lines}
        return {"Rss": found["Rss:"], "own": found["Anonymous:"]}

    before, start = memory(), time.perf_counter()
    source = ImageFolder(sys.argv[1])
    seconds = time.perf_counter() - start
    for i in np.random.default_rng(0).integers(0, len(source), int(sys.argv[2])).tolist():
        source[i]
    after = memory()
    print(json.dumps({"images": len(source), "kept": source.index.file is not None, "seconds": seconds,
                      "Rss": after["Rss"], "own": after["own"], "more": after["own"] - before["own"]}))
"""


def main(argv: list[str]) -> None:
    del argv
    if FLAGS.images < CLASSES or FLAGS.read < 10 * FLAGS.batch:
        raise app.UsageError(f"at least {CLASSES} images, and ten batches of them read")
    with tempfile.TemporaryDirectory(prefix="jvq_input_", dir=FLAGS.dir) as work:
        os.environ["JVQ_CACHE"] = os.path.join(work, "cache")
        root = Path(work, "set")
        photos = painted(Path(work, "photos"))
        size = sum(photo.stat().st_size for photo in photos) / len(photos) / 1024
        say(f"{len(photos)} photos of 500x375 pixels, {size:.0f} KiB each, linked into {CLASSES} classes")
        say("    images   index s   again s   MiB in memory (own)   MiB more than before opening")
        there = 0
        for count in sorted({max(CLASSES, FLAGS.images // part) for part in (100, 10, 1)}):
            link(photos, root, range(there, count))
            there = count
            time.sleep(2.1)  # an index of what changed within two seconds is not trusted
            made, kept = step(root, 0), step(root, READ)
            mine = f"{kept['Rss']:.0f} ({kept['own']:.0f})"
            say(f"{count:10d}{made['seconds']:10.2f}{kept['seconds']:10.2f}{mine:>22}{kept['more']:26.1f}")
        rates(root)


def say(text: str) -> None:
    print(text, flush=True)


def step(root: Path, reads: int) -> dict[str, Any]:
    """What a process of its own finds when it opens the folder and reads so many images."""
    command = [sys.executable, "-c", STEP, str(root), str(reads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def painted(folder: Path) -> list[Path]:
    """JPEGs of soft shapes with some grain: as large as ImageNet's, and as much work."""
    folder.mkdir()
    rng, files = np.random.default_rng(0), []
    for k in range(PHOTOS):
        soft = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), 3)
        fine = Image.fromarray(rng.integers(0, 256, (125, 167, 3), dtype=np.uint8)).resize((500, 375), 3)
        pixels = 0.7 * np.asarray(soft) + 0.2 * np.asarray(fine) + rng.normal(0, 9, (375, 500, 3)) + 12
        files.append(folder / f"{k}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1], quality=92)
    return files


def link(photos: list[Path], root: Path, numbers: Iterable[int]) -> None:
    """Hard links, which take no inodes; a file system that has had enough of them gets symbolic ones."""
    for number in numbers:
        folder = root / f"n{number % CLASSES:08d}"
        if number < CLASSES:
            folder.mkdir(parents=True)
        photo, name = photos[number % len(photos)], f"{folder}/n{number % CLASSES:08d}_{number}.JPEG"
        try:
            os.link(photo, name)
        except OSError:
            os.symlink(photo, name)


def rates(root: Path) -> None:
    """Images a second: read in threads and in processes, computed in float and in integers."""
    import jax
    import jax.numpy as jnp

    from jvq.core.recipe import resolve, sites
    from jvq.data import ImageFolder, Loader, Preprocess
    from jvq.export import Deployment
    from jvq.methods import METHODS
    from jvq.models import build
    from jvq.models.weights import Checkpoint

    logging.getLogger("jax").setLevel(logging.WARNING)
    model = build("vit", {"size": FLAGS.model})
    preprocess = Preprocess(model.image[:2], 256, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    source, read = ImageFolder(root), dict[str, float]()
    chosen = np.random.default_rng(1).choice(len(source), min(FLAGS.read, len(source)), replace=False)
    for workers in range(FLAGS.workers + 1):
        name = f"{workers} processes" if workers else "4 threads"
        loader, start = Loader(source, preprocess, FLAGS.batch, chosen, workers), time.perf_counter()
        stream = iter(loader)
        next(stream)
        first = time.perf_counter() - start
        for _ in range(SETTLING - 1):  # until as much is under way as always
            next(stream)
        left = FLAGS.batch * (len(loader) - SETTLING)
        took, cpu = seconds(lambda stream=stream: [batch["mask"].sum() for batch in stream])
        read[name] = left / took
        cost = "" if workers else f", {1000 * cpu / left:.1f} ms of a core an image"
        say(f"read in {name}: {read[name]:.0f} images/s{cost}; the first {FLAGS.batch} after {first:.1f} s")
    params = model.init(jax.random.key(0))
    images = jnp.asarray(next(iter(Loader(source, preprocess, FLAGS.batch, chosen)))["image"])
    known, method = sites(model.forward, params, model.image), METHODS["minmax"]
    options = dataclasses.replace(method.Options(), bits=8)
    plan = resolve(method.recipe(options, known), known)
    fitted = method.fit(options, model.forward, params, np.asarray(images[:8]), plan, known)
    deployment = Deployment.of(Checkpoint(model, params, preprocess.to_dict(), {}), plan, fitted.qstate, known)
    float_forward = jax.jit(model.forward)
    runs = {"float32": lambda: float_forward(params, images), "int8": lambda: integer(images)}
    integer = deployment.integer()
    for name, run in runs.items():
        jax.block_until_ready(run())  # compiles
        least, cpu = min(seconds(lambda run=run: jax.block_until_ready(run())) for _ in range(FLAGS.rounds))
        rate, cost = FLAGS.batch / least, 1000 * cpu / FLAGS.batch
        ratios = ", ".join(f"{found / rate:.1f} in {how}" for how, found in read.items())
        say(f"ViT-{FLAGS.model} in {name}: {rate:.1f} images/s, {cost:.1f} ms of a core an image")
        say(f"    read / computed = {ratios}")


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Of the clock, and of this process's cores."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":  # the processes that read import this file as well
    flags.DEFINE_integer("images", 1_300_000, "links in the end", lower_bound=1)
    flags.DEFINE_integer("workers", 2, "processes that read, up to so many", lower_bound=0)
    flags.DEFINE_string("model", "S/16", "size of the ViT")
    flags.DEFINE_string("dir", None, "where the folder is made; by default where temporary files are")
    flags.DEFINE_integer("read", 1280, "images that are read for the rates, ten batches at least", lower_bound=10)
    flags.DEFINE_integer("batch", 32, "images at a time", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "batches computed; the fastest counts", lower_bound=1)
    app.run(main)
