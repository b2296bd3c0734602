"""Training a float model on labels: how the embedded checkpoints are made, through the same entry point as the rest."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import optax
from jaxtyping import Array, Key

from jvq.train import Schedule, fit


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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"method.{name}: got {getattr(self, name)}, must be at least 1")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"method.smoothing: got {self.smoothing}, must be in [0, 1)")

    def schedule(self, images: int) -> Schedule:
        """The schedule for a training set of that many images, remainders of epochs dropped."""
        steps = self.epochs * (images // self.batch)
        return Schedule(steps, self.learning_rate, self.warmup, self.weight_decay, self.clip)


def train(
    options: Options,
    forward: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    batches: Iterable[Mapping[str, Any]],
    prepare: Callable[[Key[Array, ""], jax.Array], jax.Array],
    images: int,
    key: Key[Array, ""],
    *,
    log: Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> Any:
    """The trained parameters. ``prepare(key, uint8 images)`` augments and normalises, inside the step."""

    def loss(
        params: Any, batch: Mapping[str, jax.Array], key: Key[Array, ""]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = forward(params, prepare(key, batch["image"]))
        labels = batch["label"]
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), options.smoothing)
        top1 = (logits.argmax(axis=-1) == labels).mean()
        return optax.softmax_cross_entropy(logits, targets).mean(), {"top1": top1}

    return fit(loss, params, batches, options.schedule(images), key, log=log, on_step=on_step)


def protocol(options: Options) -> dict[str, Any]:
    """What has to be known to compare a result of this method."""
    return {name: str(value) for name, value in dataclasses.asdict(options).items()}
