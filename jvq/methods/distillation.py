"""What a quantised model learns from: a teacher's predictions, its features, stored soft labels, labels.

Sources: Hinton et al. 2015; Shen and Xing 2022 (stored soft labels, FKD); Liang et al. 2025 (features, GPLQ).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

Distillation = Literal["teacher", "stored", "features", "none"]
"""teacher: cross-entropy with a float model's predictions of the same images. stored: with soft labels of crops on
disk. features: squared difference from what the float model's heads see. none: labels alone."""
DISTILLATIONS: tuple[Distillation, ...] = get_args(Distillation)
TAUGHT = ("teacher", "features")  #: with a float model beside
Loss = Callable[[Any, Any, Mapping[str, Any]], tuple[jax.Array, dict[str, jax.Array]]]


def loss(kind: Distillation, hard: float, heads: Sequence[str]) -> Loss:
    """The loss on two tapes (:mod:`jvq.tapes`), ``hard`` of it cross-entropy with labels where the rest is another.

    Stored labels are ``batch["soft"]`` [b o]. ``heads`` are the addresses of the heads' inputs, which "features" needs
    on both tapes; their squared difference is over the teacher's mean square.
    """

    def told(student: Any, teacher: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = student["output"]
        top1 = {"top1": (logits.argmax(axis=-1) == batch["label"]).mean()}
        labelled = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        if kind == "none":
            return labelled, top1
        if kind == "features":
            parts = [jnp.square(student[a] - teacher[a]).mean() / jnp.square(teacher[a]).mean() for a in heads]
            apart = jnp.stack(parts).mean()
            return (1 - hard) * apart + hard * labelled, {**top1, "features": apart}
        soft = batch["soft"] if kind == "stored" else jax.nn.softmax(teacher["output"])
        cross = optax.softmax_cross_entropy(logits, soft).mean()
        entropy = -(soft * jnp.log(jnp.maximum(soft, 1e-30))).sum(axis=-1).mean()
        return (1 - hard) * cross + hard * labelled, {**top1, "kl": cross - entropy}

    return told
