"""What a run opens: the checkpoint, the images, the batches; every mismatch between them is said before computing."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jvq.config import Run
from jvq.core.calibrate import Fitted
from jvq.core.mesh import lying_as, mesh_of, placed, rules_of
from jvq.data import Loader, Preprocess, Source, open_source
from jvq.models import Model
from jvq.models.weights import Checkpoint, open_weights


def load(cfg: Run) -> tuple[Checkpoint, Preprocess]:
    """The checkpoint and its preprocessing."""
    if not cfg.weights:
        raise ValueError("config: 'weights' is empty: name an embedded checkpoint (fashion_vit) or a file")
    image = {} if cfg.resolution is None else {"image": (cfg.resolution, cfg.resolution)}
    checkpoint = open_weights(cfg.weights, model={**cfg.model, **image}, preprocess=cfg.preprocess)
    return checkpoint, Preprocess.from_dict(checkpoint.preprocess)


def opened(cfg: Run) -> tuple[Checkpoint, Loader, Source]:
    """The checkpoint, the batches that are evaluated, and where calibration images come from."""
    with _needing(cfg):
        test = open_source(cfg.data.name, cfg.data.test, cfg.data.dir)
        train = open_source(cfg.data.name, cfg.data.train, cfg.data.dir)
        checkpoint, preprocess = load(cfg)  # last: it may take a download
    fits(test, checkpoint.model, preprocess)
    checkpoint = dataclasses.replace(checkpoint, params=laid(checkpoint.params, cfg))
    return checkpoint, loader_of(cfg, test, preprocess), train


def devices(cfg: Run) -> Mesh | None:
    """The devices of a run; None: the only one that there is."""
    alone = cfg.mesh.data is None and cfg.mesh.model == 1 and jax.device_count() == 1
    mesh = None if alone else mesh_of(cfg.mesh.data, cfg.mesh.model)
    if mesh is not None and len(there := {d.process_index for d in mesh.devices.flat}) < jax.process_count():
        raise ValueError(f"mesh: its devices are those of {len(there)} of {jax.process_count()} processes: use all")
    return mesh


def laid(params: Any, cfg: Run) -> Any:
    """The parameters, wide ones in parts where the run's rules say so."""
    rules, mesh = rules_of(cfg.mesh.rules), devices(cfg)
    if not rules:
        return params
    if cfg.mesh.model == 1 or mesh is None:
        raise ValueError("mesh.rules needs mesh.model of at least 2: the number of parts")
    return placed(params, mesh, rules)


def laid_again(fit: Fitted, checkpoint: Checkpoint) -> Fitted:
    """What fitting gave for the checkpoint, its parameters where those lie: a run that goes on has read them."""
    return fit if fit.params is None else fit._replace(params=lying_as(fit.params, checkpoint.params))


@contextmanager
def _needing(cfg: Run) -> Iterator[None]:
    """Adds what the config says that it needs to an error about what is missing."""
    try:
        yield
    except ValueError as error:
        if not cfg.needs:
            raise
        raise ValueError(f"{error}. {cfg.name} needs {cfg.needs}") from error


def loader_of(cfg: Run, source: Source, preprocess: Preprocess) -> Loader:
    """The images that are evaluated, in batches: the source's first, as many as the config says."""
    count = len(source) if cfg.data.images is None else min(cfg.data.images, len(source))
    return Loader(source, preprocess, min(cfg.data.batch, count), np.arange(count), cfg.data.workers, devices(cfg))


def fits(source: Source, model: Model, preprocess: Preprocess, training: bool = False) -> None:
    """Raises ``ValueError`` where images or labels are not what the model takes; training also needs the labels."""
    if (*preprocess.size, preprocess.channels) != model.image:
        made = (*preprocess.size, preprocess.channels)
        raise ValueError(f"preprocess: makes images of {made} (y, x, channels), the model takes {model.image}")
    classes, labels = model.spec.classes, getattr(source, "labels", None)
    highest = max(len(source.classes), int(np.max(labels, initial=-1)) + 1 if labels is not None else 0)
    if highest > classes:
        raise ValueError(f"data: {source.name} has labels of {highest} classes, the model's head has {classes}")
    if training and labels is not None and np.min(labels) < 0:
        raise ValueError(f"data: {source.name} has images without a label, which training needs")


def teacher_of(name: str, preprocess: Preprocess, classes: int) -> Checkpoint:
    """The float model to learn from. ``ValueError`` where its images or its classes are not the student's."""
    known = open_weights(name)
    what = f"method.teacher '{name}'"
    if Preprocess.from_dict(known.preprocess) != preprocess:
        raise ValueError(f"{what} sees images prepared by {known.preprocess}, the student by {preprocess.to_dict()}")
    if known.model.spec.classes != classes:
        raise ValueError(f"{what} knows {known.model.spec.classes} classes, the student {classes}")
    return known


def whole(loader: Loader) -> Loader:
    """The same batches, read by this process alone; what is skipped is its own."""
    return Loader(loader.source, loader.preprocess, loader.batch_size, loader.indices)


def first(loader: Loader, count: int) -> np.ndarray:
    """The first ``count`` images that can be read [n y x c]."""
    parts, held = [], 0
    for batch in whole(loader):  # keeps what was skipped
        parts.append(batch["image"][batch["mask"]])
        held += len(parts[-1])
        if held >= count:
            break
    return np.concatenate(parts)[:count]


def data_of(cfg: Run, loader: Loader, images: int) -> dict[str, Any]:
    """What was evaluated."""
    return {"name": loader.source.name, "split": cfg.data.test, "images": images, "skipped": loader.skipped}


def described(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """What was quantised: its name, architecture, number of parameters, and Spec."""
    count = sum(int(x.size) for x in jax.tree.leaves(checkpoint.params))
    spec = dataclasses.asdict(checkpoint.model.spec)
    return {"name": name, "architecture": checkpoint.model.architecture, "parameters": count, "spec": spec}


def warnings_of(loader: Loader) -> list[str]:
    """A line for the images that could not be read; none where all could."""
    skipped = loader.skipped
    return [f"{len(skipped)} images could not be read and were left out, the first: {skipped[0]}"] if skipped else []
