"""Peak memory of one variant, in a process of its own: ``python -m jvq.bench.memory FILE``.

What is counted is what the process holds at most while it runs the model, beyond what it held with all packages
imported and no model: weights, the compiled program, activations, scratch. On Linux the peak is counted from after
loading and compiling, which the kernel allows; elsewhere they are in it.
"""

import ctypes
import gc
import importlib
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvq.bench.bed import Prepared

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Job(NamedTuple):
    """What a process is to run."""

    variant: str
    shape: tuple[int, ...]  # of the images
    threads: int


def peak(job: Job, prepared: Prepared) -> int:
    """Peak bytes of a variant, from a process that runs it."""
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job"
        with path.open("wb") as file:
            pickle.dump(job, file)
            pickle.dump(prepared.what, file)
        command = [sys.executable, "-m", "jvq.bench.memory", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    if done.returncode:
        raise RuntimeError(f"{job.variant}: {done.stderr.strip().splitlines()[-1]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def measure(path: Path) -> int:
    """Peak bytes of the job in a file, which this process runs."""
    from jvq.bench.variants import VARIANTS

    with path.open("rb") as file:
        job: Job = pickle.load(file)
        variant = next(v for v in VARIANTS if v.name == job.variant)
        for package in variant.needs:
            importlib.import_module(package)
        jax.block_until_ready(jnp.zeros(()))
        _forget()  # what importing left behind is no model's
        before = _now()
        what: Any = pickle.load(file)
    run = variant.start(what, job.threads)
    del what
    images = np.zeros(job.shape, np.float32)
    run(images)
    _forget()
    for _ in range(2):
        run(images)
    return _most() - before


def _forget() -> None:
    """Gives back what is free, and starts counting the peak from here, where the system can."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        RESET.write_text("5")
    except (OSError, AttributeError):
        return


def _now() -> int:
    """Bytes that the process holds."""
    return _status("VmRSS") if STATUS.exists() else _most()


def _most() -> int:
    """The most bytes that the process has held."""
    if STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
