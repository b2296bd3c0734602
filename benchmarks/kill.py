"""Whether a run that is killed again and again ends as one that was never killed.

    python benchmarks/kill.py [--kills=24] [--seed=0] [--only=sweep]

Small runs go through calibration, an allocation sweep, the writing of soft labels, training, and export. Each is run
once to its end; then ``kill -9`` reaches it at random moments, the same command is started again and killed again,
three times at most, and at last left alone. Everything in its folder must then be as it was without kills: the report
but for its times, packed weights, labels, metrics and pictures byte by byte, and no file more. Exit code 1 where it is
not.
"""

import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "survival")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jvq" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import killing  # noqa: E402  # pyright: ignore[reportMissingImports]  (after the path, in tests/survival)

FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_integer("kills", 24, "at least, spread evenly over the kinds of runs", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the moments")
    flags.DEFINE_string("only", "", "one kind of run")
MOST = 3  #: kills of one run before it is left alone


def main(argv: list[str]) -> None:
    """Prints a line for every kind of run."""
    del argv
    rng, names = random.Random(FLAGS.seed), [FLAGS.only] if FLAGS.only else [*killing.RUNS, killing.EXPORT]
    wanted, start, wrong, total = -(-FLAGS.kills // len(names)), time.monotonic(), 0, 0
    print(f"{'run':12} {'CPU s':>6} {'kills':>6} {'runs':>5} {'as without':>11}  killed at")
    with tempfile.TemporaryDirectory() as folder:
        root, server = Path(folder), killing.Server()
        killing.prepare(root)
        for name in names:
            whole, seconds = killing.whole(server, root, name)
            chains: list[killing.Chain] = []
            while sum(len(c.kills) for c in chains) < wanted:
                workdir = root / f"{name}{len(chains)}"
                moments = killing.moments(rng, rng.randint(1, MOST), seconds)
                chains.append(killing.chain(server, root, name, workdir, moments, whole))
                shutil.rmtree(workdir)
            kills = [said for c in chains for said in c.kills]
            good = sum(not c.wrong for c in chains)
            wrong, total = wrong + len(chains) - good, total + len(kills)
            said = f"{good} of {len(chains)}"
            print(
                f"{name:12} {seconds:6.1f} {len(kills):6} {len(chains):5} {said:>11}  {killing.stages(kills)}",
                flush=True,
            )
            for c in chains:
                for line in c.wrong:
                    print(f"    {line}")
    print(f"{total} kills, {wrong} runs that did not end as without, {time.monotonic() - start:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    app.run(main)
