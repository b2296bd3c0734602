"""What a run would take on devices that are not at hand: bytes, hours, and which of its parts decides.

``workload`` counts a model by abstract traces, ``phases`` says what a method does with it, ``times`` how long that
takes in closed form, ``simulated`` how long in a simulation of the same schedule, step by step. Nothing is computed.
"""

from jvq.planning.closed_form import Times, binding, seconds, times
from jvq.planning.demand import MODELS, Workload, padded, workload
from jvq.planning.jobs import KINDS, Job, Phase, held, phases
from jvq.planning.pods import CHIPS, Assumed, Chip, Pod, pod_of
from jvq.planning.simulation import simulated

__all__ = [
    "CHIPS",
    "KINDS",
    "MODELS",
    "Assumed",
    "Chip",
    "Job",
    "Phase",
    "Pod",
    "Times",
    "Workload",
    "binding",
    "held",
    "padded",
    "phases",
    "pod_of",
    "seconds",
    "simulated",
    "times",
    "workload",
]
