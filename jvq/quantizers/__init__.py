"""Quantisers: frozen dataclasses with pure functions; one family a file."""

from jvq.quantizers.binary import ShiftedSigns, Signs, Steps
from jvq.quantizers.grouped import Grouped
from jvq.quantizers.learned import Learned
from jvq.quantizers.static_groups import StaticGrouped
from jvq.quantizers.ternary import Ternary
from jvq.quantizers.uniform import Dynamic, Uniform

__all__ = [
    "Dynamic",
    "Grouped",
    "Learned",
    "ShiftedSigns",
    "Signs",
    "StaticGrouped",
    "Steps",
    "Ternary",
    "Uniform",
]
