"""Training a quantised model: from a calibrated row to the row with trained parameters and scales."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jvq import evaluate, tapes
from jvq.checkpoints import Keeper
from jvq.core.calibrate import Fitted, calibrate
from jvq.core.mesh import local, own_copies
from jvq.core.recipe import Sites, sites
from jvq.data import Loader, Preprocess, Source, train_batches
from jvq.data.augment import preparation
from jvq.data.crops import CropPolicy
from jvq.data.records import Gathers, split
from jvq.data.soft_labels import SoftLabels, crop_batches, image_digest, recover, write
from jvq.data.soft_labels import steps as crop_steps
from jvq.journal import fingerprint
from jvq.methods.learning import Course, drop
from jvq.metrics import Log, read
from jvq.models import Model
from jvq.models.weights import Checkpoint
from jvq.opening import fits, teacher_of
from jvq.report import Console
from jvq.rows import Material, Row
from jvq.schedule import Schedule
from jvq.train import Objective, averaged, run

STORED = 4  #: crops of an image that are stored for each that is seen at a time
Batches = Callable[[int], Iterable[Mapping[str, Any]]]


def trained(row: Row, fit: Fitted, material: Material) -> Fitted:
    """The row after training: states and parameters, and under ``notes["training"]`` what happened.

    A method trains in one course or in several, each from where the one before it ended, its scales begun anew.
    Checkpoints and metrics are in a folder of ``workdir`` with the row's name, widths and seed, from where an
    interrupted run goes on.
    """
    m, options, method = material, row.options, row.method
    student, known = row.subject(m.checkpoint, m.known)
    weights, acts = options.widths()
    folder = m.workdir / f"{row.name}-W{weights}A{acts}-seed{options.seed}"
    if not getattr(student.model.spec, "classes", 0) or getattr(student.model.spec, "output", "logits") != "logits":
        raise ValueError(f"{row.name}: training needs a model that gives logits of classes")
    fits(m.train, student.model, m.preprocess, training=method.labelled(options, known))
    source, held = split(m.train, options.holdout)
    teacher = _teacher(row, m.checkpoint, m.preprocess)
    if teacher is not None and method.beside(options) and (seen := method.watched(options, known)):
        _compare(seen, known, teacher)
    labels = _labels(options, source, m.preprocess, teacher, folder, m.console, student.model.spec.classes)
    lesson = Lesson(row, known, source, held, m.preprocess, teacher, labels, m.console, m.mesh, m.workers)
    params, states, done, courses = student.params, fit.qstate, 0, {}
    for i, course in enumerate(method.courses(options, row.plan, known)):
        if i:
            shown: Any = {"track": m.console.track, "mesh": m.mesh}
            states = calibrate(student.model.forward, params, m.images, course.plan, known, **shown)
        begun = dataclasses.replace(student, params=params), {a: dict(states[a]) for a in course.plan}
        final, note = _taken(lesson, course, *begun, folder / course.name, done, i)
        params, states, done = final["params"], final["q"], done + note["steps"]
        courses[course.name] = note
    left = {a: q for a, q in row.plan.items() if a not in states}
    shown = {"track": m.console.track, "mesh": m.mesh}
    fresh = calibrate(student.model.forward, params, m.images, left, known, **shown) if left else {}
    both, note = {**states, **fresh}, courses.pop(course.name)
    note |= {"courses": courses} if courses else {}
    note["labels"] = None if labels is None else {k: labels.header[k] for k in ("teacher", "digest", "crops", "keep")}
    return Fitted(row.plan, {a: both[a] for a in row.plan}, {**fit.notes, "training": note}, params)


class Lesson(NamedTuple):
    """What all courses of a row's training have."""

    row: Row
    known: Sites
    source: Source
    held: Source
    preprocess: Preprocess
    teacher: Checkpoint | None
    labels: SoftLabels | None
    console: Console
    mesh: Mesh | None
    workers: int


def _taken(
    lesson: Lesson, course: Course, student: Checkpoint, states: Any, folder: Path, done: int, number: int
) -> tuple[Any, dict[str, Any]]:
    """What is trained at the end of a course that follows ``done`` steps of others, and what there is to say of it."""
    row, known, source, held, preprocess, teacher, labels, console, mesh, workers = lesson
    options, method, model, plan = row.options, row.method, student.model, course.plan
    schedule, batches, prepare = _stream(options, source, preprocess, labels, mesh, workers)
    begun = round(course.begin * schedule.steps)
    schedule = dataclasses.replace(schedule, steps=round(course.end * schedule.steps) - begun)
    begin = {"params": student.params, "q": states}
    beside = teacher if method.beside(options) else None
    objective = _objective(row.planned(plan), model, begin, known, prepare, beside, schedule)
    if options.holdout:
        objective = objective._replace(validate=_validation(row.planned(plan), model, held, preprocess, mesh))
    about = _about(row.planned(plan), student, source, schedule, teacher, labels)
    keeper = Keeper(folder, about, options.save_every, scored=options.holdout > 0)
    log = Log(folder / "metrics.jsonl", folder / "events" if options.tensorboard else None)
    text, key = f"training {row.name} {course.name}".strip(), jax.random.key(options.seed)
    try:
        with console.steps(schedule.steps, text) as bar:
            progress = run(
                objective,
                begin,
                lambda start: batches(done + start),
                schedule,
                jax.random.fold_in(key, number) if number else key,
                keeper=keeper,
                log=log,
                on_step=bar.at,
                stopping=console.stopping,
                mesh=mesh,
            )
        best = keeper.best()
        if options.take == "best" and best is not None:
            progress = keeper.restored(progress, best)
        progress = own_copies(progress)
    finally:
        keeper.close()
    final = averaged(progress)
    return final, {
        "steps": schedule.steps,
        "taken": int(progress.step),
        "best": best,
        **_curves(read(log.path)),
        "weights": method.summary(plan, known, final, progress.carried),
    }


def _compare(seen: Iterable[str], known: Sites, teacher: Checkpoint) -> None:
    """Raises ``ValueError`` where the loss looks at an operand that the teacher lacks or has in another shape."""
    theirs = sites(teacher.model.forward, teacher.params, teacher.model.image)
    for a in seen:
        shape = theirs[a].shape[1:] if a in theirs else "none"
        if shape != known[a].shape[1:]:
            what = f"the student's {a} has shape {known[a].shape[1:]}, the teacher's {shape}"
            raise ValueError(f"method.teacher: {what}; what the loss compares must be alike")


def _objective(
    row: Row,
    model: Model,
    begin: Any,
    known: Sites,
    prepare: tapes.Prepare,
    beside: Checkpoint | None,
    schedule: Schedule,
) -> Objective:
    """What the row's method minimises and does besides; ``beside`` is the teacher of the same images."""
    options, method = row.options, row.method
    told, seen = method.tape_loss(options, known), frozenset(method.watched(options, known))

    def loss(student: tapes.Tape, taught: tapes.Tape, batch: Mapping[str, Any]) -> Any:
        if "index" in batch:
            classes = student[tapes.OUTPUT].shape[-1]
            batch = {**batch, "soft": recover(batch["index"], batch["value"], classes, "smooth")}
        return told(student, taught, batch)

    run_both = tapes.on_tapes(
        loss,
        model.heads,
        row.plan,
        prepare,
        where=seen.__contains__,
        teacher=None if beside is None else beside.model.heads,
        precision=options.precision,
        drop=drop(options, known),
        heads=True,
    )
    return Objective(
        run_both,
        () if beside is None else beside.params,
        method.regularizer(options, row.plan, known, schedule.steps),
        method.after(options, row.plan, known),
        method.carried(row.plan, known, begin),
        tapes.locator(model.forward, row.plan, prepare, known, options.precision),
        reweighting=method.reweighting(options, row.plan, known, schedule),
    )


def _curves(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What a log says, by name: ``curves`` of training, ``validation`` of the images that were kept back."""
    found = {}
    for name, mark in (("curves", "loss"), ("validation", "score")):
        some = [line for line in lines if mark in line]
        keys = [key for key in some[-1] if key not in ("seconds", "rate")] if some else []
        found[name] = {key: [line[key] for line in some if key in line] for key in keys}
    return found


def _stream(
    options: Any, source: Source, preprocess: Preprocess, labels: SoftLabels | None, mesh: Mesh | None, workers: int
) -> tuple[Schedule, Batches, tapes.Prepare]:
    """The schedule, the batches from any step on, and what prepares them inside the step."""
    epochs, steps = options.epochs, options.steps
    where: Any = {"workers": workers, "mesh": mesh}
    if labels is not None:
        while steps > crop_steps(len(labels), options.batch, epochs, options.crops):
            epochs *= 2
        count = steps or crop_steps(len(labels), options.batch, epochs, options.crops)
        schedule = dataclasses.replace(options.schedule(len(labels)), steps=count)
        args = (source, labels, preprocess, options.batch, options.crops, epochs, options.seed)
        return schedule, lambda start: crop_batches(*args, start, **where), preparation(preprocess, None)
    schedule = options.schedule(len(source))
    epochs = max(epochs, -(-schedule.steps // max(len(source) // options.batch, 1)))
    plain = isinstance(source, Gathers) and preprocess.is_arithmetic(source[0]["image"].shape)
    crop = None if plain else preprocess
    return (
        schedule,
        lambda start: train_batches(source, options.batch, options.seed, epochs, crop, start, **where),
        preparation(preprocess, options.shift),
    )


def _labels(
    options: Any,
    source: Source,
    preprocess: Preprocess,
    teacher: Checkpoint | None,
    folder: Path,
    console: Console,
    classes: int,
) -> SoftLabels | None:
    """The stored soft labels that the options name, or those made beside the rows, for all rows that want the same."""
    if options.distillation != "stored":
        return None
    if options.labels:
        labels = SoftLabels.open(Path(options.labels), source)
        if labels.classes != classes:
            raise ValueError(f"method.labels: {options.labels} knows {labels.classes} classes, the model {classes}")
        if labels.crops < options.crops:
            raise ValueError(f"method.crops: got {options.crops}, {options.labels} has {labels.crops} of an image")
        return labels
    assert teacher is not None
    forward, params = jax.jit(teacher.model.forward), local(teacher.params)  # each process asks it of other crops
    crops, keep = STORED * options.crops, min(options.keep, classes)
    digest = fingerprint(params)
    mark = fingerprint(params, source.name, len(source), crops, keep, options.crop_scale, preprocess.to_dict())
    low, high = options.crop_scale
    return write(
        folder.parent / f"labels-{mark[:8]}",
        source,
        preprocess,
        lambda images: forward(params, images),
        teacher_name=f"float weights {digest}",
        teacher_digest=digest,
        classes=classes,
        crops=crops,
        keep=keep,
        policy=CropPolicy(scale=(low, high)),
        track=console.track,
    )


def _teacher(row: Row, checkpoint: Checkpoint, preprocess: Preprocess) -> Checkpoint | None:
    """The float model to learn from; None where nothing is asked of one."""
    options = row.options
    if not row.method.beside(options) and (options.distillation != "stored" or options.labels):
        return None
    if not options.teacher:
        return checkpoint
    return teacher_of(options.teacher, preprocess, checkpoint.model.spec.classes)


def _validation(
    row: Row, model: Model, held: Source, preprocess: Preprocess, mesh: Mesh | None
) -> Callable[[Any], dict[str, float]]:
    """Top-1 on the training images that were kept back."""
    loader = Loader(held, preprocess, min(250, len(held)), mesh=mesh)
    forward = evaluate.runner(model.forward, row.plan)

    def validate(tree: Any) -> dict[str, float]:
        got = evaluate.predict(lambda x: forward(tree["params"], tree["q"], x), loader, "validating", mesh=mesh)
        return {"score": float((got.logits.argmax(axis=1) == got.labels).mean())}

    return validate


def _about(
    row: Row,
    checkpoint: Checkpoint,
    source: Source,
    schedule: Schedule,
    teacher: Checkpoint | None,
    labels: SoftLabels | None,
) -> dict[str, Any]:
    """What the checkpoints of a row are of: all that its numbers depend on."""
    options = {k: v for k, v in dataclasses.asdict(row.options).items() if k not in ("save_every", "tensorboard")}
    known = getattr(source, "labels", None)
    return {
        "model": {"architecture": checkpoint.model.architecture, **dataclasses.asdict(checkpoint.model.spec)},
        "weights": fingerprint(checkpoint.params),
        "preprocess": checkpoint.preprocess,
        "data": {
            "name": source.name,
            "images": len(source),
            "digest": image_digest(source, np.arange(len(source))),
            "labels": None if known is None else fingerprint(np.asarray(known)),
        },
        "teacher": None if teacher is None else fingerprint(teacher.params),
        "labels": None if labels is None else dict(labels.header),
        "method": {"name": row.method.__name__.rpartition(".")[2], **options},
        "schedule": dataclasses.asdict(schedule),
        "plan": {address: repr(q) for address, q in row.plan.items()},
    }
