"""The same phases step by step: readers, queues, devices of different pace, exchanges, checkpoints written beside.

A discrete-event simulation in which everybody's next event follows from others' last ones: a reader begins a batch when
it is done with one and there is room; a step begins when the last has ended and all hosts have its batch.
"""

import numpy as np

from jvq.planning.closed_form import FORWARD, Times, busiest, times
from jvq.planning.jobs import Phase
from jvq.planning.pods import Number, Pod

SLICES = 24  #: into which a step is cut: between them devices that share a layer's weights wait for each other
SPREAD = 0.05  #: deviation of the logarithm of how long a batch takes to decode


def simulated(pod: Pod, phase: Phase, seed: int = 0) -> Number:
    """Seconds of the phase, steps drawn with ``seed``."""
    rng, t, a = np.random.default_rng(seed), times(pod, phase), pod.assumed
    data, model = (1, 1) if phase.alone else (pod.data, pod.model)
    hosts = pod.hosts if pod.sharded and not phase.whole else 1  # what all do alike is done at once
    readers = _Readers(hosts, phase.readers or pod.readers, a.ahead, t.filling if phase.images else 0.0, rng)
    now = written = phase.programs * a.compiling
    for k in range(phase.steps):
        now = max(now, readers.ready(k, now))
        now = _step(now, t, busiest(t), (data, model), a.jitter, rng)
        if phase.every and (k + 1) % phase.every == 0:
            now = max(now, written) + t.copying  # the last checkpoint is out before the next is begun
            written = now + t.writing
    return float(max(now, written))


def _step(
    now: Number, t: Times, busy: Number, mesh: tuple[int, int], jitter: Number, rng: np.random.Generator
) -> Number:
    """When a step that begins now has ended on all devices."""
    staging, blocking, gradients = t.staging, t.blocking, t.gradients
    at = np.full(mesh, now + staging)
    late = rng.exponential(jitter * busy, mesh) if jitter else np.zeros(mesh)
    link = now
    for i in range(SLICES):
        at = at + (busy + late) / SLICES
        if blocking:
            at = np.repeat(at.max(axis=1, keepdims=True), mesh[1], axis=1) + blocking / SLICES
        done = (i + 1) / SLICES
        if gradients and done > FORWARD:
            link = max(link, float(at.max())) + gradients / (SLICES * (1 - FORWARD))
    return max(float(at.max()), link)


class _Readers:
    """Of every host some processes, each of which makes whole batches in turn and is some ahead."""

    def __init__(self, hosts: int, count: int, ahead: int, each: Number, rng: np.random.Generator) -> None:
        self.each, self.rng, self.room = each, rng, count * ahead
        self.free = np.zeros((hosts, count))  # when each is done with its last batch: they begin while others compile
        self.taken: list[float] = []  # when each step took its batch

    def ready(self, k: int, now: Number) -> Number:
        """When all hosts have batch ``k``, which is asked for now."""
        if not self.each:
            return now
        reader, room = k % self.free.shape[1], self.taken[k - self.room] if k >= self.room else 0.0
        noise = self.rng.lognormal(-(SPREAD**2) / 2, SPREAD, len(self.free))
        self.free[:, reader] = np.maximum(self.free[:, reader], room) + self.each * noise
        self.taken.append(max(now, float(self.free[:, reader].max())))
        return self.taken[-1]
