"""Evaluation: accuracy, agreement with the float model, divergence of its predictions, error of every site."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jvq.core.calibrate import Track, silent
from jvq.core.dot import packed_dot, quantized, recording
from jvq.core.mesh import gathered, split
from jvq.core.quantizer import State
from jvq.core.recipe import Forward, Plan


class Predictions(NamedTuple):
    """Logits [n o] of a model on a data set, the labels [n] (-1: unknown); padding is already cut off."""

    logits: Float[np.ndarray, "n o"]
    labels: Int[np.ndarray, " n"]


class Score(NamedTuple):
    """A model against the labels and against the float model."""

    top1: float | None  # share of right predictions; None without labels
    agreement: float  # share of images with the same prediction as the float model
    kl: float  # mean over images of KL(float model || this model), nats


def runner(forward: Forward, plan: Plan) -> Callable[[Any, Mapping[str, State], jax.Array], jax.Array]:
    """``run(params, qstate, images) -> logits``, jitted: operands in ``plan`` quantised, packed weights unpacked."""

    @jax.jit
    def run(params: Any, qstate: Mapping[str, State], images: jax.Array) -> jax.Array:
        return forward(params, images, packed_dot(quantized(plan, qstate)))

    return run


def predict(
    run: Callable[[jax.Array], jax.Array],
    batches: Iterable[Mapping[str, Any]],
    text: str,
    track: Track = silent,
    mesh: Mesh | None = None,
) -> Predictions:
    """The predictions over ``{"image", "label", "mask"}`` batches; masked rows are left out.

    On the devices of a ``mesh`` a batch is split, filled up where it cannot be; what ``run`` holds has to lie there
    (:func:`~jvq.core.mesh.everywhere`). Raises ``ValueError`` where no image is left, or where logits are not finite.
    """
    logits, labels = [], []
    for batch in track(batches, text):
        mask: Bool[np.ndarray, " b"] = batch["mask"]
        images, rows = split(mesh, batch["image"])
        logits.append(gathered(run(images))[rows][mask])
        labels.append(batch["label"][mask])
    if not any(map(len, labels)):
        raise ValueError(f"{text}: there are no images, or none that can be read")
    found = Predictions(np.concatenate(logits), np.concatenate(labels))
    bad = int((~np.isfinite(found.logits).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{text}: the logits of {bad} of {len(found.labels)} images are not finite (NaN or infinite)")
    return found


def score(reference: Predictions, got: Predictions) -> Score:
    """``got`` against the labels and against the float model's predictions on the same images."""
    known = got.labels >= 0
    right = got.logits.argmax(axis=1) == got.labels
    same = got.logits.argmax(axis=1) == reference.logits.argmax(axis=1)
    top1 = float(right[known].mean()) if known.any() else None
    return Score(top1, float(same.mean()), float(divergences(reference, got).mean()))


def images(reference: Predictions, got: Predictions) -> dict[str, Float[np.ndarray, " n"]]:
    """What ``score`` averages, image by image, larger is worse: ``wrong`` (where labels are known), ``kl``."""
    wrong = (got.logits.argmax(axis=1) != got.labels).astype(np.float64)
    apart = {"kl": divergences(reference, got)}
    return apart | ({"wrong": wrong} if (got.labels >= 0).all() else {})


def divergences(reference: Predictions, got: Predictions) -> Float[np.ndarray, " n"]:
    """KL(float model || this model) of every image, nats, float64."""
    log_p, log_q = _log_softmax(reference.logits), _log_softmax(got.logits)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def _log_softmax(logits: Float[np.ndarray, "n o"]) -> Float[np.ndarray, "n o"]:
    """In float64."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def site_errors(
    forward: Forward, params: Any, plan: Plan, qstate: Mapping[str, State], letters: Mapping[str, str], images: Any
) -> dict[str, float]:
    """Per address ``sum (q(x) - x)**2 / sum x**2`` on the operands that the *float* model has for ``images``."""

    @jax.jit
    def run(params: Any, qstate: Mapping[str, State], images: jax.Array) -> dict[str, jax.Array]:
        tape: dict[str, jax.Array] = {}
        forward(params, images, recording(tape, plan.__contains__))
        return {a: _relative(x, plan[a].apply(qstate[a], x, letters[a])) for a, x in tape.items()}

    found = run(params, dict(qstate), jnp.asarray(images))
    return {address: float(found[address]) for address in plan}


def group_use(
    forward: Forward, params: Any, plan: Plan, qstate: Mapping[str, State], letters: Mapping[str, str], images: Any
) -> dict[str, list[int]]:
    """Per address whose quantiser has groups, how many channels or rows of the float model's operands choose each."""
    grouped = {address: q for address, q in plan.items() if hasattr(q, "assignment")}

    @jax.jit
    def run(params: Any, qstate: Mapping[str, State], images: jax.Array) -> dict[str, jax.Array]:
        tape: dict[str, jax.Array] = {}
        forward(params, images, recording(tape, grouped.__contains__))
        chosen = {a: grouped[a].assignment(qstate[a], x, letters[a]) for a, x in tape.items()}  # type: ignore[attr]
        return {a: jnp.bincount(group.reshape(-1), length=len(qstate[a]["scale"])) for a, group in chosen.items()}

    found = gathered(run(params, dict(qstate), jnp.asarray(images)))
    return {address: found[address].tolist() for address in grouped}


def _relative(x: jax.Array, y: jax.Array) -> jax.Array:
    power = jnp.square(x).sum()
    return jnp.where(power > 0, jnp.square(y - x).sum() / jnp.maximum(power, 1e-38), 0.0)
