"""Evaluation of models whose output is a map: how far it, and the features behind it, are from the float model's."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float

from jvq.core.calibrate import Track, silent
from jvq.core.dot import packed_dot, quantized, recording
from jvq.core.mesh import gathered, split
from jvq.core.quantizer import State
from jvq.core.recipe import Forward, Plan

Run = Callable[[Any, Mapping[str, State], jax.Array], tuple[jax.Array, jax.Array]]
FEATURES = "decoder/up1.x"  #: where a decoder takes the backbone's features, before anything quantises them for it
SALIENT = 0.5  #: what a map shows is where it lies above


class Predictions(NamedTuple):
    """Of a model on a data set; padding is already cut off."""

    maps: Float[np.ndarray, "n y x"]
    features: Float[np.ndarray, "n m d"]


class Score(NamedTuple):
    """A model against the float model, whose own score is 1, 1, 0, 1, 0."""

    correlation: float  # Pearson's, of an image's two maps; mean over the images
    median_correlation: float  # single images may turn over and drag the mean
    mae: float  # mean absolute difference of the maps
    iou: float  # intersection over union of what the maps show; mean over the images
    nmse: float  # squared error of the features over their square, all images together


def runner(forward: Forward, plan: Plan) -> Run:
    """``run(params, qstate, images) -> (maps, features)``, jitted: operands in ``plan`` quantised, packed unpacked."""

    @jax.jit
    def run(params: Any, qstate: Mapping[str, State], images: jax.Array) -> tuple[jax.Array, jax.Array]:
        tape: dict[str, jax.Array] = {}
        maps = forward(params, images, recording(tape, FEATURES.__eq__, packed_dot(quantized(plan, qstate))))
        return maps, tape[FEATURES]

    return run


def predict(
    run: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    batches: Iterable[Mapping[str, Any]],
    text: str,
    track: Track = silent,
    mesh: Mesh | None = None,
) -> Predictions:
    """The predictions over ``{"image", "mask"}`` batches; masked rows are left out. ``mesh``: see ``evaluate.predict``.

    Raises ``ValueError`` where no image is left, or where a map or a feature is not finite.
    """
    maps, features = [], []
    for batch in track(batches, text):
        mask: Bool[np.ndarray, " b"] = batch["mask"]
        images, rows = split(mesh, batch["image"])
        for held, got in zip((maps, features), gathered(run(images)), strict=True):
            held.append(got[rows][mask])
    if not any(map(len, maps)):
        raise ValueError(f"{text}: there are no images, or none that can be read")
    found = Predictions(np.concatenate(maps), np.concatenate(features))
    good = np.isfinite(found.maps).all(axis=(1, 2)) & np.isfinite(found.features).all(axis=(1, 2))
    if not good.all():
        raise ValueError(
            f"{text}: maps of {(~good).sum()} of {len(found.maps)} images are not finite (NaN or infinite)"
        )
    return found


def score(reference: Predictions, got: Predictions) -> Score:
    """``got`` against the float model's predictions on the same images."""
    alike = correlations(reference.maps, got.maps)
    apart = np.abs(reference.maps.astype(np.float64) - got.maps).mean()
    error = np.square(reference.features.astype(np.float64) - got.features).sum()
    power = np.square(reference.features.astype(np.float64)).sum()
    shared = overlaps(reference.maps, got.maps).mean()
    return Score(float(alike.mean()), float(np.median(alike)), float(apart), float(shared), float(error / power))


def images(reference: Predictions, got: Predictions) -> dict[str, Float[np.ndarray, " n"]]:
    """Errors image by image, larger is worse: ``mae`` of the maps, ``nmse`` of the features."""
    square = tuple(range(1, reference.features.ndim))
    error = np.square(reference.features.astype(np.float64) - got.features).sum(axis=square)
    power = np.square(reference.features.astype(np.float64)).sum(axis=square)
    apart = np.abs(reference.maps.astype(np.float64) - got.maps).mean(axis=(1, 2))
    return {"mae": apart, "nmse": error / power}


def correlations(a: Float[np.ndarray, "n y x"], b: Float[np.ndarray, "n y x"]) -> Float[np.ndarray, " n"]:
    """Pearson's correlation of each pair of maps, float64; 0 where one of them is the same everywhere."""
    a, b = (m.astype(np.float64) - m.mean(axis=(1, 2), keepdims=True, dtype=np.float64) for m in (a, b))
    power = np.sqrt(np.square(a).sum(axis=(1, 2)) * np.square(b).sum(axis=(1, 2)))
    return np.where(power > 0, (a * b).sum(axis=(1, 2)) / np.where(power > 0, power, 1.0), 0.0)


def overlaps(a: Float[np.ndarray, "n y x"], b: Float[np.ndarray, "n y x"]) -> Float[np.ndarray, " n"]:
    """Intersection over union of what each pair of maps shows; 1 where both show nothing."""
    a, b = a > SALIENT, b > SALIENT
    both, either = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
