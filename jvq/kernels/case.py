"""A case of a kernel: operands of one shape, for the shared suite, the compilers of devices and the benchmark."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """What a kernel is called with: ``kernel(**arrays(rng), **static)``."""

    name: str  # of the shape: "ViT-B fc1, batch 8", "ragged"
    arrays: Callable[[np.random.Generator], Mapping[str, Any]]  # fresh operands by argument name; None where optional
    static: Mapping[str, Any] = {}  # arguments that are Python values
    macs: int = 0  # multiply-accumulates of the whole product, what a benchmark divides by
    real: bool = False  # the size of a real model: compiled for devices and benchmarked; others run in the tests
    tolerance: float = 0.0  # of float outputs, relative to their greatest magnitude; integers are always equal
