"""A run that trains a float model, and evaluates it."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jvq import accounting, kept
from jvq.checkpoints import Keeper
from jvq.config import Run
from jvq.core.mesh import gathered
from jvq.core.recipe import sites
from jvq.data import Preprocess, Source, open_source, train_batches
from jvq.data.augment import preparation
from jvq.journal import fingerprint
from jvq.methods import METHODS, supervised
from jvq.models import build
from jvq.models.weights import Checkpoint, save
from jvq.opening import data_of, described, devices, fits, laid, loader_of, teacher_of, warnings_of
from jvq.report import Console
from jvq.rows import float_row
from jvq.stages import Stages

WEIGHTS = "weights.safetensors"  #: what training writes


def work(cfg: Run, workdir: Path, console: Console) -> dict[str, Any]:
    """Trains a float model from scratch and writes ``weights.safetensors`` and ``metrics.jsonl``."""
    stages, options = Stages(), cfg.method
    console.say(f"loading {cfg.data.name} ...")
    with stages.stage("load"):
        spec = {name: value for name, value in cfg.model.items() if name != "architecture"}
        model = build(cfg.model.get("architecture", "vit"), spec)
        preprocess = _preprocess(cfg.preprocess)
        train = open_source(cfg.data.name, cfg.data.train, cfg.data.dir)
        test = open_source(cfg.data.name, cfg.data.test, cfg.data.dir)
        fits(train, model, preprocess, training=True)
        fits(test, model, preprocess)
        loader = loader_of(cfg, test, preprocess)
        teacher = teacher_of(options.teacher, preprocess, model.spec.classes) if options.teacher else None
        init_key, train_key = jax.random.split(jax.random.key(cfg.seed))
        params, mesh = laid(model.init(init_key), cfg), devices(cfg)
        images = getattr(train, "images", None)  # in memory: gathered as they are where nothing has to be resized
        crop = None if images is not None and preprocess.is_arithmetic(images.shape[1:]) else preprocess

        where: Any = {"workers": cfg.data.workers, "mesh": mesh}

        def batches(start: int) -> Any:
            return train_batches(train, options.batch, cfg.seed, options.epochs, crop, start, **where)

        batches(0)  # a batch beyond the data is an error now, before anything is written
    steps = options.schedule(len(train)).steps
    keeper = Keeper(kept.folder(workdir) / "training", _about(cfg, params, train, teacher), options.save_every)
    with stages.stage("train"), console.steps(steps, f"training {options.epochs} epochs") as bar:
        prepare = preparation(preprocess, options.shift)
        with contextlib.closing(keeper):
            params = supervised.train(
                options,
                model.heads,
                params,
                batches,
                prepare,
                len(train),
                train_key,
                teacher=None if teacher is None else lambda x: teacher.model.forward(teacher.params, x),
                keeper=keeper,
                log=workdir / "metrics.jsonl",
                on_step=bar.at,
                stopping=console.stopping,
                mesh=mesh,
            )
    notes = {"command": f"configs/{cfg.name}.py", "seed": cfg.seed, "data": cfg.data.name}
    checkpoint = Checkpoint(model, params, preprocess.to_dict(), notes)
    written = dataclasses.replace(checkpoint, params=gathered(params))
    save(written, workdir / WEIGHTS)  # before anything else can fail
    with stages.stage("evaluate"):
        known = sites(model.forward, params, model.image)
        reference, row = float_row(checkpoint, known, loader, console, mesh)
    save(dataclasses.replace(written, notes={**notes, "top1": row["top1"]}), workdir / WEIGHTS)
    return {
        "seconds": stages.seconds,
        "method": cfg.method_name,
        "model": described(checkpoint, cfg.name),
        "data": data_of(cfg, loader, len(reference[0])),
        "protocol": METHODS[cfg.method_name].protocol(options),
        "bops_formula": accounting.FORMULA,
        "rows": [row],
        "sites": {},
        "pictures": [],
        "figures": [],
        "warnings": warnings_of(loader),
    }


def _about(cfg: Run, params: Any, train: Source, teacher: Checkpoint | None) -> dict[str, Any]:
    """What the checkpoints are of: all that the trained parameters depend on."""
    return {
        "model": dict(cfg.model),
        "begin": fingerprint(params),
        "preprocess": dict(cfg.preprocess),
        "data": {"name": train.name, "images": len(train), "digest": kept.seen(train)},
        "teacher": None if teacher is None else fingerprint(teacher.params),
        "method": {k: v for k, v in dataclasses.asdict(cfg.method).items() if k != "save_every"},
        "seed": cfg.seed,
    }


def _preprocess(fields: Mapping[str, Any]) -> Preprocess:
    """The config's preprocessing; ``ValueError`` where a field has the wrong type."""
    try:
        return Preprocess.from_dict(fields)
    except TypeError as error:
        raise ValueError(f"config: preprocess cannot be read: {error}") from None
