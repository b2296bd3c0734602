"""How long phases take, in closed form: of everything that goes on side by side the slowest."""

import math
from typing import NamedTuple

from jvq.planning.jobs import Phase
from jvq.planning.pods import Number, Pod

FORWARD = 1 / 3  #: of a training step, behind which gradients are ready one after the other


class Times(NamedTuple):
    """Seconds of one step, each as if it were alone; ``saving`` and ``filling`` of the whole phase."""

    products: Number
    vector: Number  # operations one by one
    bandwidth: Number  # of the device's memory
    dispatch: Number  # by the host
    staging: Number  # between host and device
    blocking: Number  # exchanges that the next product waits for
    gradients: Number  # exchanges beside the backward pass
    decoding: Number
    copying: Number  # a checkpoint from the devices
    writing: Number  # and to the disk
    filling: Number  # the first batch


def times(pod: Pod, phase: Phase) -> Times:
    """The parts of one step of a phase."""
    chip, a = pod.chip, pod.assumed
    links = chip.links * a.links
    shared = pod.sharded and not phase.whole
    each = phase.images / pod.hosts if shared else phase.images  # images of a step that a host decodes
    return Times(
        phase.flops / (chip.products * a.products),
        phase.ops / (chip.products * a.vector),
        phase.traffic / (chip.bandwidth * a.bandwidth),
        phase.calls * a.dispatch,
        phase.staged / a.staging,
        phase.blocking / links,
        phase.exchanged / links,
        each / ((phase.readers or pod.readers) * a.decode),
        phase.saved / pod.hosts / (a.staging * chip.siblings),
        phase.saved / a.disk,
        each / a.decode,  # a reader makes whole batches
    )


def seconds(pod: Pod, phase: Phase) -> Number:
    """Of the whole phase: steps, which wait for the slowest device and for images; checkpoints; compiling.

    A device's step is longer by an exponential: of n devices the slowest by its mean times 1 + 1/2 + ... + 1/n.
    """
    t = times(pod, phase)
    waiting = _harmonic(1 if phase.alone else pod.devices)
    busy = busiest(t) * (1 + pod.assumed.jitter * waiting) + t.blocking
    device = t.staging + max(busy, FORWARD * busy + t.gradients)
    computing = t.filling * bool(phase.images) + phase.steps * device
    readers = phase.readers or pod.readers
    decoding = math.ceil(phase.steps / readers) * t.filling + device if phase.images else 0.0
    total = max(computing, decoding)
    saves = phase.steps // phase.every if phase.every else 0
    if saves:
        interval = phase.every * total / phase.steps + t.copying
        total += saves * t.copying + (saves - 1) * max(0.0, t.copying + t.writing - interval) + t.writing
    return total + phase.programs * pod.assumed.compiling


def busiest(t: Times) -> Number:
    """Of what a device does side by side the slowest."""
    return max(t.products, t.vector, t.bandwidth, t.dispatch)


def binding(pod: Pod, phase: Phase) -> str:
    """Which part decides: the largest of one step, or checkpoints or compiling where they take more than all steps."""
    t = times(pod, phase)
    parts = t._asdict()
    step = max(list(Times._fields[:8]), key=parts.__getitem__)
    steps = phase.steps * parts[step]
    saves = phase.steps // phase.every if phase.every else 0
    rest = {"compiling": phase.programs * pod.assumed.compiling, "checkpoints": saves * t.writing}
    most = max(rest, key=rest.__getitem__)
    return most if rest[most] > max(steps, t.filling) else step


def _harmonic(n: int) -> Number:
    return sum(1 / i for i in range(1, n + 1))
