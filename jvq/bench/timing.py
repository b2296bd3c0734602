"""Times in turn: every variant once a round, CPU time of the whole process and wall time."""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jvq.bench.bed import Run

LEAST = 0.03  #: seconds that are timed at once; short calls are repeated
MOST = 50  #: calls that are timed at once
PAUSE = 0.01  #: seconds between variants: threads of a library that wait for more work spin for a while


class Spent(NamedTuple):
    """Seconds of one call."""

    cpu: float  # of all threads
    wall: float


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        lower, median, upper = np.percentile(list(values), (25, 50, 75))
        return cls(float(median), float(lower), float(upper))


def spent(run: Run, images: np.ndarray, calls: int = 1) -> Spent:
    """Seconds a call, of several together."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run(images)
    return Spent((time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls)


def interleaved(runs: Mapping[str, Run], images: np.ndarray, rounds: Iterable[Any]) -> dict[str, list[Spent]]:
    """Seconds a call of every variant, a value a round. All have been called before."""
    calls = {name: min(MOST, max(1, math.ceil(LEAST / spent(run, images).wall))) for name, run in runs.items()}
    found: dict[str, list[Spent]] = {name: [] for name in runs}
    for _ in rounds:
        for name, run in runs.items():
            time.sleep(PAUSE)
            found[name].append(spent(run, images, calls[name]))
    return found
