"""What is measured: models with random weights, and the form of a variant."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jvq.core.errors import nearest
from jvq.core.quantizer import State
from jvq.core.recipe import Plan, Sites, sites
from jvq.models import Model, build

MODELS: dict[str, dict[str, Any]] = {
    "vit_b": {"size": "B/16"},
    "deit_t": {"size": "Ti/16"},
    "tiny": {"image": (32, 32), "patch": 8, "dim": 32, "depth": 1, "heads": 2, "classes": 10},  # for tests
}
CALIBRATION = 4  #: images


class Bed(NamedTuple):
    """A model with random weights, which all variants start from."""

    name: str
    model: Model
    params: Any
    known: Sites
    images: np.ndarray  # to calibrate on
    folder: Path  # for files that variants write

    @classmethod
    def of(cls, name: str, folder: Path) -> "Bed":
        """A model of ``MODELS``. ``ValueError``: there is none of that name."""
        if name not in MODELS:
            raise ValueError(f"--models: '{name}' is not known{nearest(name, MODELS)}")
        model, rng = build("vit", MODELS[name]), np.random.default_rng(0)
        params = dict(model.init(jax.random.key(0)))
        head = params["head"]["kernel"]  # begins at zero, which no trained one is
        params["head"] = {**params["head"], "kernel": jax.random.normal(jax.random.key(1), head.shape) * 0.02}
        return cls(
            name, model, params, sites(model.forward, params, model.image), random(model, CALIBRATION, rng), folder
        )


def random(model: Model, count: int, rng: np.random.Generator) -> np.ndarray:
    """Images float32 [b y x c]."""
    return rng.normal(size=(count, *model.image)).astype(np.float32)


class Prepared(NamedTuple):
    """What a variant computes with, made once a model; it can be pickled and started in another process."""

    what: Any
    nbytes: int  # of weights and state, or of the file that holds them


Run = Callable[[np.ndarray], Any]
"""Images [b y x c] to outputs, which are there when it returns."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run a model."""

    name: str
    does: str  # for readers of the table
    prepare: Callable[[Bed, Plan, Mapping[str, State]], Prepared]
    start: Callable[[Any, int], Run]  # of ``Prepared.what`` and a number of threads (0: the library's own choice)
    plan: Callable[[Sites], Plan] | None = None  # what is quantised, and how; None: nothing
    needs: tuple[str, ...] = ()  # packages beyond jvq's own
