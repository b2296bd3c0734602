"""Training a float model on labels and a teacher: how the embedded checkpoints are made, through the same entry point.

Distillation is DeiT's (Touvron et al. 2021): the class token's head learns the labels, the distillation token's head
what the teacher says of the same augmented image; a model with one head learns both with it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from jvq.checkpoints import Keeper
from jvq.quantizers.uniform import check_choice
from jvq.schedule import Schedule
from jvq.train import fit

DISTILLATIONS = ("hard", "soft")


@dataclasses.dataclass(frozen=True)
class Options:
    """How to train."""

    epochs: int = 30
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: float = 0.05  # fraction of the steps
    weight_decay: float = 0.05
    clip: float = 1.0  # global norm of the gradient
    smoothing: float = 0.1  # of the labels
    shift: int = 2  # pixels, each way; every other image is mirrored
    teacher: str = ""  # weights of a float model to learn from besides the labels
    distillation: Literal["hard", "soft"] = "hard"  # the teacher's class (DeiT's better one), or its distribution
    alpha: float = 0.5  # weight of the teacher's part of the loss; the labels have the rest
    temperature: float = 3.0  # of soft distillation
    save_every: int = 500  # steps between checkpoints, from which an interrupted run goes on

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be at least 1")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"method.smoothing: got {self.smoothing}, must be in [0, 1)")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"method.alpha: got {self.alpha}, must be in [0, 1]")
        if self.temperature <= 0:
            raise ValueError(f"method.temperature: got {self.temperature}, must be positive")
        check_choice("method.distillation", self.distillation, DISTILLATIONS)

    def schedule(self, images: int) -> Schedule:
        """The schedule for a training set of that many images, remainders of epochs dropped."""
        steps = self.epochs * (images // self.batch)
        return Schedule(steps, self.learning_rate, self.warmup, self.weight_decay, self.clip)


def train(
    options: Options,
    forward: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    batches: Iterable[Mapping[str, Any]] | Callable[[int], Iterable[Mapping[str, Any]]],
    prepare: Callable[[Key[Array, ""], jax.Array], jax.Array],
    images: int,
    key: Key[Array, ""],
    *,
    teacher: Callable[[jax.Array], jax.Array] | None = None,
    keeper: Keeper | None = None,
    log: Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    stopping: Callable[[], bool] = lambda: False,
    mesh: Mesh | None = None,
) -> Any:
    """The trained parameters; with a ``keeper`` (and ``batches`` by step) an interrupted training goes on.

    ``forward`` gives the logits of every head [b t o]; ``prepare(key, uint8 images)`` augments and normalises, inside
    the step; ``teacher`` gives logits [b o] of the prepared images.
    """

    def step_loss(
        params: Any, batch: Mapping[str, jax.Array], key: Key[Array, ""]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = prepare(key, batch["image"])
        heads = forward(params, x)
        value = loss(options, heads, batch["label"], None if teacher is None else teacher(x))
        return value, {"top1": (heads.mean(axis=1).argmax(axis=-1) == batch["label"]).mean()}

    shown: Any = {"log": log, "on_step": on_step, "stopping": stopping, "mesh": mesh}
    return fit(step_loss, params, batches, options.schedule(images), key, keeper=keeper, **shown)


def loss(
    options: Options, heads: Float[Array, "b t o"], labels: Int[Array, " b"], taught: Float[Array, "b o"] | None
) -> Float[Array, ""]:
    """The batch's mean loss: cross-entropy of the first head with smoothed labels, of the last with the teacher.

    Touvron et al. 2021, eq. 2 (soft: Kullback-Leibler up to the teacher's entropy, times temperature squared), eq. 3.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, heads.shape[-1]), options.smoothing)
    labelled = optax.softmax_cross_entropy(heads[:, 0], targets).mean()
    if taught is None:
        return labelled
    if options.distillation == "hard":
        said = optax.softmax_cross_entropy_with_integer_labels(heads[:, -1], taught.argmax(axis=-1)).mean()
    else:
        t = options.temperature
        soft = jax.nn.softmax(jax.lax.stop_gradient(taught) / t)
        said = t * t * optax.softmax_cross_entropy(heads[:, -1] / t, soft).mean()
    return (1 - options.alpha) * labelled + options.alpha * jnp.asarray(said)


def protocol(options: Options) -> dict[str, Any]:
    """What has to be known to compare a result of this method."""
    return {name: str(value) for name, value in dataclasses.asdict(options).items() if name != "save_every"}
