"""One run: load, plan, fit, freeze, evaluate, report."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvq import accounting, evaluate, evaluate_maps
from jvq.config import Run
from jvq.core.freeze import freeze
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Sites, matching, resolve, sites
from jvq.data import Loader, Preprocess, Source, open_source, sample, train_batches
from jvq.data.augment import flip_and_shift
from jvq.environment import environment
from jvq.methods import METHODS, supervised
from jvq.methods.minmax import FLOAT
from jvq.models import Model, build
from jvq.models.weights import Checkpoint, open_weights, save
from jvq.report import SCHEMA, Console, draw_maps, show, write

WEIGHTS = "weights.safetensors"  #: what training writes
TASKS: dict[str, Any] = {"logits": evaluate, "map": evaluate_maps}  #: what a model gives, and what evaluates that
PICTURED = 6  #: images whose maps are drawn, evenly spaced
SITE_IMAGES = 64  #: images on which the error of every site is measured, the first of the evaluated ones

Work = Callable[[Run, Path, Console], dict[str, Any]]


@dataclasses.dataclass
class Stages:
    """Seconds by stage, in order."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``name``."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a method with its options, and its plan."""

    name: str
    method: Any  # module of jvq.methods
    options: Any
    plan: Mapping[str, Quantizer]


def run(cfg: Run, workdir: Path, console: Console, command: str = "", work: Work | None = None) -> dict[str, Any]:
    """The report of a run, also written to ``workdir`` and shown. Raises ``ValueError`` for what the user can mend.

    ``work`` makes the report's parts; without it the config says whether to train or to quantise.
    """
    if work is None and (cfg.widths or cfg.seeds > 1):
        raise ValueError("config: 'widths' and 'seeds' make a table of several runs: jvq.sweep.work")
    work = work or (_train if cfg.method_name == "supervised" else _quantize)
    workdir.mkdir(parents=True, exist_ok=True)
    report = {"schema": SCHEMA, "command": command or "jvq.run", **environment(), "seed": cfg.seed}
    report |= work(cfg, workdir, console)
    write(report, workdir)
    show(report, console)
    console.say(f"report: {workdir / 'report.md'}")
    return report


def plans(cfg: Run, checkpoint: Checkpoint) -> tuple[Sites, list[Row]]:
    """The model's operands, and the rows that this run compares, each with its resolved plan."""
    known = sites(checkpoint.model.forward, checkpoint.params, checkpoint.model.image)
    wanted = {cfg.method_name: (cfg.method_name, cfg.method), **METHODS[cfg.method_name].baselines(cfg.method)}
    wanted |= cfg.rows
    rows = [
        Row(name, METHODS[kind], options, planned(kind, options, cfg.rules, known))
        for name, (kind, options) in wanted.items()
    ]
    order = ["minmax", cfg.method_name]
    return known, sorted(rows, key=lambda row: order.index(row.name) if row.name in order else len(order))


def planned(kind: str, options: Any, rules: str, known: Sites) -> dict[str, Quantizer]:
    """The plan of a method, with the run's ``rules`` ("pattern=bits,pattern=float") laid over its recipe."""
    recipe = list(METHODS[kind].recipe(options, known))
    for rule in filter(None, (part.strip() for part in rules.split(","))):
        pattern, equals, width = rule.rpartition("=")
        if not equals or not (width == "float" or (width.isascii() and width.isdigit())):
            raise ValueError(f"rules: '{rule}' must read 'pattern=bits' or 'pattern=float'")
        chosen = {a: q for p, q in recipe for a in matching(p, known)}
        for address in matching(pattern, known):
            old = chosen.get(address)
            if width == "float" or int(width) == FLOAT:
                recipe.append((address, None))
            elif old is None:
                raise ValueError(f"rules: '{rule}': {address} is float in method '{kind}', it has no bits to change")
            else:
                recipe.append((address, dataclasses.replace(old, bits=int(width))))  # type: ignore[type-var]
    return resolve(recipe, known)


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
    _fits(test, checkpoint.model, preprocess)
    return checkpoint, _loader(cfg, test, preprocess), train


def _quantize(cfg: Run, workdir: Path, console: Console) -> dict[str, Any]:
    stages = Stages()
    console.say(f"loading {cfg.weights} and {cfg.data.name} ...")
    with stages.stage("load"):
        checkpoint, loader, train = opened(cfg)
        known, rows = plans(cfg, checkpoint)
        drawn = sample(train, loader.preprocess, cfg.data.calibration, cfg.seed)
    with stages.stage("evaluate"):
        reference, plain = float_row(checkpoint, known, loader, console)
    main = next(row for row in rows if row.name == cfg.method_name)
    forward, table, apart, state = checkpoint.model.forward, [plain], 0.0, {}
    task, outputs = task_of(checkpoint.model), {"float": reference}
    first = next(iter(loader))["image"]
    for row in rows:
        with stages.stage("fit"):
            console.say(f"{row.name}: fitting {len(row.plan)} quantisers on {len(drawn.images)} images")
            fitted = row.method.fit(
                row.options, forward, checkpoint.params, drawn.images, row.plan, known, track=console.track
            )
        with stages.stage("freeze"):
            packed = Frozen.of(checkpoint, row.plan, fitted, known)
        with stages.stage("evaluate"):
            line, outputs[row.name] = _row(row, packed, known, loader, reference, console)
            table.append(line)
        if row is main:
            state = fitted
            with stages.stage("check"):  # that packing changes nothing
                fake = task.runner(forward, row.plan)(checkpoint.params, fitted, jnp.asarray(first))
                apart = _apart(packed(jnp.asarray(first)), fake)
    console.say(f"measuring every site of {main.name} ...")
    with stages.stage("sites"):
        found = _sites(main, state, checkpoint, known, _first(loader, SITE_IMAGES))
    if task is evaluate_maps:
        draw(workdir / "maps.png", outputs, loader)
    report = {
        "seconds": stages.seconds,
        "method": cfg.method_name,
        "model": described(checkpoint, cfg.weights),
        "data": data_of(cfg, loader, len(reference[0])),
        "protocol": main.method.protocol(main.options)
        | {
            "rules": cfg.rules or "none",
            "calibration": f"{len(drawn.images)} images of {train.name} ({cfg.data.train}), drawn by seed {cfg.seed}",
            "packed against fake quantisation": f"largest difference of outputs {apart:.1e}",
        },
        "bops_formula": accounting.FORMULA,
        "rows": table,
        "sites": found,
        "warnings": warnings_of(loader),
    }
    return report


@contextmanager
def _needing(cfg: Run) -> Iterator[None]:
    """Adds what the config says that it needs to an error about what is missing."""
    try:
        yield
    except ValueError as error:
        if not cfg.needs:
            raise
        raise ValueError(f"{error}. {cfg.name} needs {cfg.needs}") from error


def _loader(cfg: Run, source: Source, preprocess: Preprocess) -> Loader:
    count = len(source) if cfg.data.images is None else min(cfg.data.images, len(source))
    return Loader(source, preprocess, min(cfg.data.batch, count), np.arange(count))


def _fits(source: Source, model: Model, preprocess: Preprocess, training: bool = False) -> None:
    """Raises ``ValueError`` where images or labels are not what the model takes; training also needs the labels."""
    if (*preprocess.size, preprocess.channels) != model.image:
        made = (*preprocess.size, preprocess.channels)
        raise ValueError(f"preprocess: makes images of {made} (y, x, channels), the model takes {model.image}")
    classes, labels = model.spec.classes, getattr(source, "labels", None)
    highest = max(len(source.classes), int(max(labels, default=-1)) + 1 if labels is not None else 0)
    if highest > classes:
        raise ValueError(f"data: {source.name} has labels of {highest} classes, the model's head has {classes}")
    if training and labels is not None and min(labels) < 0:
        raise ValueError(f"data: {source.name} has images without a label, which training needs")


def task_of(model: Model) -> Any:
    """The module that evaluates what the model gives: ``runner``, ``predict`` and ``score``, and their types."""
    return TASKS[getattr(model.spec, "output", "logits")]


def _apart(a: Any, b: Any) -> float:
    """The largest difference of two outputs."""
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def draw(path: Path, outputs: Mapping[str, Any], loader: Loader) -> None:
    """A picture of the maps of some images, evenly spaced, as each row's model makes them."""
    count = len(outputs["float"].maps)
    some = np.arange(0, count, -(-count // PICTURED))
    made, seen = loader.preprocess, _first(loader, count)[some]
    images = seen * np.asarray(made.std, np.float32) + np.asarray(made.mean, np.float32)
    draw_maps(path, images, {name: got.maps[some] for name, got in outputs.items()})


def float_row(checkpoint: Checkpoint, known: Sites, loader: Loader, console: Console) -> tuple[Any, dict[str, Any]]:
    task = task_of(checkpoint.model)
    run = task.runner(checkpoint.model.forward, {})
    reference = task.predict(lambda x: run(checkpoint.params, {}, x), loader, "evaluating float", track=console.track)
    got = task.score(reference, reference)
    size = accounting.tree_bytes(checkpoint.params)
    return reference, {"name": "float", **got._asdict(), "bytes": size, "bops": accounting.bops(known, {})}


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A model with packed weights, ready to run: ``frozen(images [b y x c]) -> outputs``."""

    params: Any
    qstate: Mapping[str, State]
    run: Any
    task: Any

    @classmethod
    def of(cls, checkpoint: Checkpoint, plan: Mapping[str, Quantizer], qstate: Any, known: Sites) -> "Frozen":
        """The checkpoint under a plan."""
        params, rest, state = freeze(checkpoint.params, plan, qstate, known)
        task = task_of(checkpoint.model)
        return cls(params, state, task.runner(checkpoint.model.forward, rest), task)

    def __call__(self, images: jax.Array) -> Any:
        return self.run(self.params, self.qstate, images)


def _row(
    row: Row, frozen: Frozen, known: Sites, loader: Loader, reference: Any, console: Console
) -> tuple[dict[str, Any], Any]:
    """The table's line of a method, evaluated with its weights packed, and what the model gave."""
    got = frozen.task.predict(frozen, loader, f"evaluating {row.name}", track=console.track)
    costs = {"bytes": accounting.tree_bytes(frozen.params, frozen.qstate), "bops": accounting.bops(known, row.plan)}
    return {"name": row.name, **frozen.task.score(reference, got)._asdict(), **costs}, got


def _first(loader: Loader, count: int) -> np.ndarray:
    """The first ``count`` images that can be read [n y x c]."""
    parts, held = [], 0
    for batch in Loader(loader.source, loader.preprocess, loader.batch_size, loader.indices):  # keeps what was skipped
        parts.append(batch["image"][batch["mask"]])
        held += len(parts[-1])
        if held >= count:
            break
    return np.concatenate(parts)[:count]


def _sites(
    row: Row, qstate: Mapping[str, State], checkpoint: Checkpoint, known: Sites, images: np.ndarray
) -> dict[str, dict[str, Any]]:
    letters = {address: o.letters for address, o in known.items()}
    forward = checkpoint.model.forward
    errors = evaluate.site_errors(forward, checkpoint.params, row.plan, qstate, letters, images)
    return {
        address: {
            "quantizer": type(q).__name__,
            "letters": known[address].letters,
            "bits": q.bits,
            "groups": getattr(q, "groups", None),
            "relative_error": errors[address],
        }
        for address, q in row.plan.items()
    }


def _train(cfg: Run, workdir: Path, console: Console) -> dict[str, Any]:
    """Trains a float model from scratch and writes ``weights.safetensors`` and ``metrics.jsonl``."""
    stages, options = Stages(), cfg.method
    console.say(f"loading {cfg.data.name} ...")
    with stages.stage("load"):
        spec = {name: value for name, value in cfg.model.items() if name != "architecture"}
        model = build(cfg.model.get("architecture", "vit"), spec)
        preprocess = _preprocess(cfg.preprocess)
        train = open_source(cfg.data.name, cfg.data.train, cfg.data.dir)
        test = open_source(cfg.data.name, cfg.data.test, cfg.data.dir)
        _fits(train, model, preprocess, training=True)
        _fits(test, model, preprocess)
        loader = _loader(cfg, test, preprocess)
        teacher = _teacher(options, model, preprocess)
        init_key, train_key = jax.random.split(jax.random.key(cfg.seed))
        params = model.init(init_key)
    log = workdir / "metrics.jsonl"
    log.unlink(missing_ok=True)
    steps = options.schedule(len(train)).steps
    with stages.stage("train"), console.steps(steps, f"training {options.epochs} epochs") as bar:
        images = getattr(train, "images", None)  # in memory: gathered as they are where nothing has to be resized
        crop = None if images is not None and preprocess.is_arithmetic(images.shape[1:]) else preprocess
        stream = train_batches(train, options.batch, cfg.seed, options.epochs, crop)
        prepare = _prepare(preprocess, options)
        params = supervised.train(
            options,
            model.heads,
            params,
            stream,
            prepare,
            len(train),
            train_key,
            teacher=teacher,
            log=log,
            on_step=bar.at,
        )
    notes = {"command": f"configs/{cfg.name}.py", "seed": cfg.seed, "data": cfg.data.name}
    checkpoint = Checkpoint(model, params, preprocess.to_dict(), notes)
    save(checkpoint, workdir / WEIGHTS)  # before anything else can fail
    with stages.stage("evaluate"):
        known = sites(model.forward, params, model.image)
        reference, row = float_row(checkpoint, known, loader, console)
    save(dataclasses.replace(checkpoint, notes={**notes, "top1": row["top1"]}), workdir / WEIGHTS)
    return {
        "seconds": stages.seconds,
        "method": cfg.method_name,
        "model": described(checkpoint, cfg.name),
        "data": data_of(cfg, loader, len(reference[0])),
        "protocol": METHODS[cfg.method_name].protocol(options),
        "bops_formula": accounting.FORMULA,
        "rows": [row],
        "sites": {},
        "warnings": warnings_of(loader),
    }


def _teacher(options: Any, model: Model, preprocess: Preprocess) -> Any:
    """``teacher(images [b y x c]) -> logits [b o]`` of the weights that the options name, or None."""
    if not options.teacher:
        return None
    known = open_weights(options.teacher)
    name, spec = f"method.teacher '{options.teacher}'", known.model.spec
    if Preprocess.from_dict(known.preprocess) != preprocess:
        raise ValueError(f"{name} sees images prepared by {known.preprocess}, the student by {preprocess.to_dict()}")
    if spec.classes != model.spec.classes:
        raise ValueError(f"{name} knows {spec.classes} classes, the student {model.spec.classes}")
    return lambda images: known.model.forward(known.params, images)


def _preprocess(fields: Mapping[str, Any]) -> Preprocess:
    """The config's preprocessing; ``ValueError`` where a field has the wrong type."""
    try:
        return Preprocess.from_dict(fields)
    except TypeError as error:
        raise ValueError(f"config: preprocess cannot be read: {error}") from None


def _prepare(preprocess: Preprocess, options: Any) -> Any:
    """``prepare(key, uint8 images [b y x c])``: augmented and normalised, for use inside a jitted step."""
    mean = np.asarray(preprocess.mean, np.float32).reshape(1, 1, 1, -1)
    std = np.asarray(preprocess.std, np.float32).reshape(1, 1, 1, -1)

    def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
        moved = flip_and_shift(key, images, options.shift).astype(jnp.float32)
        return (moved / 255.0 - mean) / std

    return prepare


def data_of(cfg: Run, loader: Loader, images: int) -> dict[str, Any]:
    """What was evaluated."""
    return {"name": loader.source.name, "split": cfg.data.test, "images": images, "skipped": loader.skipped}


def described(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    count = sum(int(x.size) for x in jax.tree.leaves(checkpoint.params))
    spec = dataclasses.asdict(checkpoint.model.spec)
    return {"name": name, "architecture": checkpoint.model.architecture, "parameters": count, "spec": spec}


def warnings_of(loader: Loader) -> list[str]:
    skipped = loader.skipped
    return [f"{len(skipped)} images could not be read and were left out, the first: {skipped[0]}"] if skipped else []
