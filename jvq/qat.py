"""Training a quantised model: from a calibrated row to the row with trained parameters and scales."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from jvq import evaluate, tapes
from jvq.checkpoints import Keeper
from jvq.core.calibrate import Fitted
from jvq.core.recipe import Sites
from jvq.data import Loader, Preprocess, Source, train_batches
from jvq.data.augment import preparation
from jvq.data.crops import CropPolicy
from jvq.data.records import part
from jvq.data.soft_labels import SoftLabels, crop_batches, recover, write
from jvq.data.soft_labels import steps as crop_steps
from jvq.journal import fingerprint
from jvq.metrics import Log, read
from jvq.models import Model
from jvq.models.weights import Checkpoint
from jvq.opening import teacher_of
from jvq.report import Console
from jvq.rows import Row
from jvq.schedule import Schedule
from jvq.train import Objective, averaged, run

Batches = Callable[[int], Iterable[Mapping[str, Any]]]


def trained(
    row: Row,
    fit: Fitted,
    checkpoint: Checkpoint,
    known: Sites,
    train: Source,
    preprocess: Preprocess,
    workdir: Path,
    console: Console,
) -> Fitted:
    """The row after training: states and parameters, and under ``notes["training"]`` what happened.

    Its checkpoints and metrics are in a folder of ``workdir`` with the row's name, widths and seed, from where an
    interrupted run goes on.
    """
    options, method, model = row.options, row.method, checkpoint.model
    weights, acts = options.widths()
    folder = workdir / f"{row.name}-W{weights}A{acts}-seed{options.seed}"
    cut = len(train) - options.holdout
    source = part(train, 0, cut)
    teacher = _teacher(options, checkpoint, preprocess)
    schedule, batches, prepare = _stream(options, source, preprocess, teacher, folder, console)
    begin = {"params": checkpoint.params, "q": {a: dict(s) for a, s in fit.qstate.items()}}
    told = method.tape_loss(options)

    def loss(student: tapes.Tape, taught: tapes.Tape, batch: Mapping[str, Any]) -> Any:
        if "index" in batch:
            batch = {
                **batch,
                "soft": recover(batch["index"], batch["value"], student[tapes.OUTPUT].shape[-1], "smooth"),
            }
        return told(student, taught, batch)

    beside = teacher if options.distillation == "teacher" else None
    objective = Objective(
        tapes.on_tapes(
            loss,
            model.forward,
            row.plan,
            prepare,
            teacher=None if beside is None else beside.model.forward,
            precision=options.precision,
            drop=method.drop(options, known),
        ),
        () if beside is None else beside.params,
        method.regularizer(options, row.plan, known, schedule.steps),
        method.after(options, row.plan, known),
        method.carried(row.plan, known, begin),
        tapes.locator(model.forward, row.plan, prepare, known, options.precision),
        _validation(row, model, train, cut, preprocess) if options.holdout else None,
        method.reweighting(options, row.plan, known),
    )
    keeper = Keeper(folder, _about(row, checkpoint, source, schedule), options.save_every, scored=options.holdout > 0)
    log = Log(folder / "metrics.jsonl", folder / "events" if options.tensorboard else None)
    text = f"training {row.name}, {options.epochs} epochs"
    try:
        with console.steps(schedule.steps, text) as bar:
            progress = run(
                objective,
                begin,
                batches,
                schedule,
                jax.random.key(options.seed),
                keeper=keeper,
                log=log,
                on_step=bar.at,
            )
    finally:
        keeper.close()
    final = averaged(progress)
    lines = [line for line in read(log.path) if "loss" in line]
    names = [name for name in lines[-1] if name not in ("seconds", "rate")]
    note = {
        "steps": schedule.steps,
        "curves": {name: [line[name] for line in lines] for name in names},
        "weights": method.summary(row.plan, known, final, progress.carried),
    }
    return Fitted(row.plan, final["q"], {**fit.notes, "training": note}, final["params"])


def _stream(
    options: Any, source: Source, preprocess: Preprocess, teacher: Checkpoint | None, folder: Path, console: Console
) -> tuple[Schedule, Batches, tapes.Prepare]:
    """The schedule, the batches from any step on, and what prepares them inside the step."""
    if options.distillation == "stored":
        assert teacher is not None
        labels = _labels(options, source, preprocess, teacher, folder, console)
        count = crop_steps(len(source), options.batch, options.epochs, options.crops)
        schedule = dataclasses.replace(options.schedule(len(source)), steps=count)
        args = (source, labels, preprocess, options.batch, options.crops, options.epochs, options.seed)
        return schedule, lambda start: crop_batches(*args, start=start), preparation(preprocess, None)
    schedule = options.schedule(len(source))
    images = getattr(source, "images", None)
    crop = None if images is not None and preprocess.is_arithmetic(images.shape[1:]) else preprocess
    return (
        schedule,
        lambda start: train_batches(source, options.batch, options.seed, options.epochs, crop, start),
        preparation(preprocess, options.shift),
    )


def _labels(
    options: Any, source: Source, preprocess: Preprocess, teacher: Checkpoint, folder: Path, console: Console
) -> SoftLabels:
    """The stored soft labels that the options name, or those made beside the rows, for all of them."""
    if options.labels:
        return SoftLabels.open(Path(options.labels), source)
    forward = jax.jit(teacher.model.forward)
    mark = fingerprint(teacher.params)
    low, high = options.crop_scale
    crops = 4 * options.crops
    return write(
        folder.parent / f"labels-{mark[:8]}",
        source,
        preprocess,
        lambda images: forward(teacher.params, images),
        teacher_name=options.teacher or "the float checkpoint",
        teacher_digest=mark,
        classes=teacher.model.spec.classes,
        crops=crops,
        keep=min(options.keep, teacher.model.spec.classes),
        policy=CropPolicy(scale=(low, high)),
        track=console.track,
    )


def _teacher(options: Any, checkpoint: Checkpoint, preprocess: Preprocess) -> Checkpoint | None:
    """The float model to learn from; None where nothing is asked of one."""
    if options.distillation == "none" or (options.distillation == "stored" and options.labels):
        return None
    if not options.teacher:
        return checkpoint
    return teacher_of(options.teacher, preprocess, checkpoint.model.spec.classes)


def _validation(
    row: Row, model: Model, train: Source, cut: int, preprocess: Preprocess
) -> Callable[[Any], dict[str, float]]:
    """Top-1 on the training images that were kept back."""
    held = Loader(part(train, cut, len(train)), preprocess, min(250, len(train) - cut))
    forward = evaluate.runner(model.forward, row.plan)

    def validate(tree: Any) -> dict[str, float]:
        got = evaluate.predict(lambda x: forward(tree["params"], tree["q"], x), held, "validating")
        right = float((got.logits.argmax(axis=1) == got.labels).mean())
        return {"score": right, "validation_top1": right}

    return validate


def _about(row: Row, checkpoint: Checkpoint, source: Source, schedule: Schedule) -> dict[str, Any]:
    """What the checkpoints of a row are of."""
    return {
        "model": {"architecture": checkpoint.model.architecture, **dataclasses.asdict(checkpoint.model.spec)},
        "weights": fingerprint(checkpoint.params),
        "data": {"name": source.name, "images": len(source)},
        "method": {"name": row.method.__name__.rpartition(".")[2], **dataclasses.asdict(row.options)},
        "schedule": dataclasses.asdict(schedule),
        "plan": {address: repr(q) for address, q in row.plan.items()},
    }
