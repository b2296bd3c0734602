"""How many changed inputs each loader was given, how many it refused in one clear line, accepted, or failed at.

    python benchmarks/fuzz.py [--inputs=20000] [--loader=npz] [--seed=0] [--minutes=20] [--keep=DIR]

Inputs are whole files with bytes or fields changed (tests/hostile), the same ones for the same seed. Every loader runs
in a process of its own with 4 GiB more memory than it starts with; slow loaders get fewer inputs. A defect is any other
error than the one that the loader promises, a crash, a time limit passed, or something wrong that was accepted: it is
shown, and with --keep its input is written there. Exit code 1 where there is one.
"""

import collections
import contextlib
import faulthandler
import hashlib
import json
import logging
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

FLAGS = flags.FLAGS
flags.DEFINE_integer("inputs", 20_000, "for the quickest loaders; slow ones get a part", lower_bound=1)
flags.DEFINE_string("loader", "", "only those with this in their name")
flags.DEFINE_integer("seed", 0, "of the changes")
flags.DEFINE_float("minutes", 20.0, "for all loaders together; what is left out is not tried", lower_bound=0.0)
flags.DEFINE_string("keep", "", "a folder for the inputs that a loader failed at")
flags.DEFINE_string("only", "", "for the command itself: a loader's name, tried in this process")
flags.DEFINE_float("share", 0.0, "for the command itself: seconds")

MEMORY = 4 * 2**30  #: bytes that a loader may reserve
COLUMNS = ("tried", "refused", "accepted", "defects", "seconds")


def main(argv: list[str]) -> None:
    del argv
    if FLAGS.only:
        one(FLAGS.only)
        return
    from hostile.targets import TARGETS  # pyright: ignore[reportMissingImports]

    chosen = [target for target in TARGETS if FLAGS.loader in target.name]
    if not chosen:
        raise app.UsageError(f"--loader={FLAGS.loader}: there are {', '.join(target.name for target in TARGETS)}")
    end, total, failed = time.time() + 60 * FLAGS.minutes, collections.Counter[str](), False
    print("| loader |" + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * len(COLUMNS))
    start = 0.0  # what the one before took beside its trials
    for i, target in enumerate(chosen):
        begun = time.time()
        share = (end - begun) / (len(chosen) - i) - start  # what a quick one leaves is the others'
        row = ran(target.name, share)
        start = time.time() - begun - row["seconds"]
        print(f"| {target.name} | " + " | ".join(f"{row[column]:,}" for column in COLUMNS) + " |", flush=True)
        for what in row["what"]:
            print(f"    {what}", flush=True)
        total.update({column: row[column] for column in COLUMNS})
        failed |= bool(row["defects"])
    print("| in all | " + " | ".join(f"{total[column]:,}" for column in COLUMNS) + " |")
    sys.exit(int(failed))


def ran(name: str, share: float) -> dict[str, Any]:
    """The row of a loader, tried in another process; one that dies is a defect of its own."""
    command = [sys.executable, __file__, f"--only={name}", f"--inputs={FLAGS.inputs}", f"--seed={FLAGS.seed}"]
    command += [f"--share={share}", f"--keep={FLAGS.keep}"]
    begun = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    said = " / ".join(done.stderr.splitlines()[-6:])
    row = dict.fromkeys(COLUMNS, 0) | {"seconds": round(time.time() - begun), "defects": 1}
    return {**row, "what": [f"the process ended with {done.returncode}: {said}"]}


def one(name: str) -> None:
    """Tries one loader in this process and prints its row as JSON."""
    from hostile import trial  # pyright: ignore[reportMissingImports]
    from hostile.targets import NAMED  # pyright: ignore[reportMissingImports]

    logging.disable(logging.ERROR)  # orbax's, of every damaged folder
    target = NAMED[name]
    with tempfile.TemporaryDirectory() as folder:
        given, begun = trial.whole(target, Path(folder)), time.time()  # what it takes to begin is no trial
        with contextlib.suppress(ValueError):  # what is there before loads libraries is theirs
            now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
        found = trial.Found()
        for i in range(max(1, FLAGS.inputs // target.weight)):
            if time.time() - begun > FLAGS.share:
                break
            faulthandler.dump_traceback_later(600, exit=True)  # where no signal reaches
            trial.one(target, given, random.Random(f"{name} {FLAGS.seed} {i}"), f"input {i}", found)
        faulthandler.cancel_dump_traceback_later()
    if FLAGS.keep:
        for what, (_, data) in found.defects.items():
            Path(FLAGS.keep).mkdir(parents=True, exist_ok=True)
            (Path(FLAGS.keep) / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:8]}").write_bytes(data)
    row = {"tried": found.tried.total(), "seconds": round(time.time() - begun)}
    row |= {name: found.tried[name] for name in ("refused", "accepted")} | {"defects": found.tried["defect"]}
    print(json.dumps({**row, "what": [f"{what} ({which})" for what, (which, _) in found.defects.items()]}))


if __name__ == "__main__":
    app.run(main)
