"""The rows that a run compares: methods with their plans, packed models, and what is measured of them."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvq import accounting, evaluate, evaluate_maps
from jvq.config import Run
from jvq.core.calibrate import Fitted
from jvq.core.freeze import freeze
from jvq.core.mesh import everywhere
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Sites, matching, resolve, sites
from jvq.data import Loader, Preprocess, Source
from jvq.journal import Journal, fingerprint
from jvq.methods import METHODS
from jvq.methods.minmax import FLOAT
from jvq.models import Model
from jvq.models.altering import altered
from jvq.models.weights import Checkpoint
from jvq.opening import first
from jvq.report import Console, draw_maps

TASKS: dict[str, Any] = {"logits": evaluate, "map": evaluate_maps}  #: what a model gives, and what evaluates that
PICTURED = 6  #: images whose maps are drawn, evenly spaced


class Subject(NamedTuple):
    """What is quantised: a checkpoint, and the operands of its model."""

    checkpoint: Checkpoint
    known: Sites


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a method with its options, its plan, and where it has one a model of its own."""

    name: str
    method: Any  # module of jvq.methods
    options: Any
    plan: Mapping[str, Quantizer]
    own: Subject | None = None  # None: what the run has opened

    def subject(self, checkpoint: Checkpoint, known: Sites) -> Subject:
        """What the row quantises, in a run that has opened ``checkpoint``."""
        return self.own or Subject(checkpoint, known)

    def planned(self, plan: Mapping[str, Quantizer]) -> "Row":
        """The row with the plan that fitting made of its own."""
        return dataclasses.replace(self, plan=plan)

    def journal(self, workdir: Path, params: Any, images: np.ndarray) -> Journal | None:
        """Where fitting keeps what takes it long, to go on after an interruption; None where it takes no time.

        Seeds have journals of their own; rows whose method says that what they measure is the same share one.
        """
        if self.method.calibrates(self.options):
            return None
        name, what = self.name, ({a: repr(q) for a, q in self.plan.items()}, repr(self.options))
        if hasattr(self.method, "measures"):
            name, what = self.method.__name__.rpartition(".")[2], self.method.measures(self.options)
        mark = fingerprint(params, images, *what)
        return Journal(workdir / f"{name}-{mark[:8]}.jsonl", mark)


class Material(NamedTuple):
    """What fitting a row may draw on."""

    checkpoint: Checkpoint  # the run's own, float
    known: Sites
    images: np.ndarray  # for calibration, float [b y x c]
    train: Source
    preprocess: Preprocess
    workdir: Path
    console: Console
    mesh: Mesh | None = None  # None: one device
    workers: int = 0  # processes that read images; 0: threads


def plans(cfg: Run, checkpoint: Checkpoint) -> tuple[Sites, list[Row]]:
    """The model's operands, and the rows that this run compares, each with its resolved plan."""
    opened = subject_of(checkpoint)
    subjects: dict[tuple[Any, ...], Subject] = {(): opened}  # rows of one model share it, and with it executables
    wanted = {cfg.method_name: (cfg.method_name, cfg.method), **METHODS[cfg.method_name].baselines(cfg.method)}
    wanted |= cfg.rows
    keys = {}
    for name, (kind, options) in wanted.items():
        method = METHODS[kind]
        fields = method.student(options, opened.known) if hasattr(method, "student") else {}
        key = tuple(sorted(fields.items()))
        if key not in subjects:
            model, params = altered(checkpoint.model, checkpoint.params, where=f"{name}: the model", **fields)
            subjects[key] = subject_of(dataclasses.replace(checkpoint, model=model, params=params))
        keys[name] = key
    anywhere = list(dict.fromkeys(a for subject in subjects.values() for a in subject.known))
    rows = [
        Row(
            name,
            METHODS[kind],
            options,
            planned(kind, options, cfg.rules, subjects[keys[name]].known, anywhere),
            subjects[keys[name]] if keys[name] else None,
        )
        for name, (kind, options) in wanted.items()
    ]
    order = ["minmax", cfg.method_name]
    return opened.known, sorted(rows, key=lambda row: order.index(row.name) if row.name in order else len(order))


def subject_of(checkpoint: Checkpoint) -> Subject:
    """The checkpoint with the operands of its model."""
    return Subject(checkpoint, sites(checkpoint.model.forward, checkpoint.params, checkpoint.model.image))


def planned(
    kind: str, options: Any, rules: str, known: Sites, anywhere: Iterable[str] | None = None
) -> dict[str, Quantizer]:
    """The plan of a method, with the run's ``rules`` ("pattern=bits,pattern=float") laid over its recipe.

    A rule has to name an address that is ``anywhere`` in the run's models: here, where nothing else is said.
    """
    recipe = list(METHODS[kind].recipe(options, known))
    for rule in filter(None, (part.strip() for part in rules.split(","))):
        pattern, equals, width = rule.rpartition("=")
        if not equals or not (width == "float" or (width.isascii() and width.isdigit())):
            raise ValueError(f"rules: '{rule}' must read 'pattern=bits' or 'pattern=float'")
        chosen = {a: q for p, q in recipe for a in matching(p, known)}
        for address in (a for a in matching(pattern, known if anywhere is None else anywhere) if a in known):
            old = chosen.get(address)
            if width == "float" or int(width) == FLOAT:
                recipe.append((address, None))
            elif old is None:
                raise ValueError(f"rules: '{rule}': {address} is float in method '{kind}', it has no bits to change")
            else:
                recipe.append((address, dataclasses.replace(old, bits=int(width))))  # type: ignore[type-var]
    return resolve(recipe, known)


def task_of(model: Model) -> Any:
    """The module that evaluates what the model gives: ``runner``, ``predict`` and ``score``, and their types."""
    return TASKS[getattr(model.spec, "output", "logits")]


def draw(path: Path, outputs: Mapping[str, Any], loader: Loader) -> None:
    """A picture of the maps of some images, evenly spaced, as each row's model makes them."""
    count = len(outputs["float"].maps)
    some = np.arange(0, count, -(-count // PICTURED))
    made, seen = loader.preprocess, first(loader, count)[some]
    images = seen * np.asarray(made.std, np.float32) + np.asarray(made.mean, np.float32)
    draw_maps(path, images, {name: got.maps[some] for name, got in outputs.items()})


def float_row(
    checkpoint: Checkpoint, known: Sites, loader: Loader, console: Console, mesh: Mesh | None = None
) -> tuple[Any, dict[str, Any]]:
    """What the float model gives, and its line of the table."""
    task = task_of(checkpoint.model)
    run = task.runner(checkpoint.model.forward, {})
    params = everywhere(mesh, checkpoint.params)
    reference = task.predict(lambda x: run(params, {}, x), loader, "evaluating float", console.track, mesh)
    got = task.score(reference, reference)
    size = accounting.tree_bytes(checkpoint.params)
    return reference, {"name": "float", **got._asdict(), "bytes": size, **accounting.spent(known, {})}


def fitted_checkpoint(checkpoint: Checkpoint, fit: Fitted) -> Checkpoint:
    """The checkpoint with the parameters that fitting changed."""
    return checkpoint if fit.params is None else dataclasses.replace(checkpoint, params=fit.params)


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

    def on(self, mesh: Mesh | None) -> "Frozen":
        """The model with its arrays on the devices of a mesh."""
        params, qstate = everywhere(mesh, (self.params, self.qstate))
        return dataclasses.replace(self, params=params, qstate=qstate)

    def __call__(self, images: jax.Array) -> Any:
        return self.run(self.params, self.qstate, images)


def scored(
    row: Row,
    frozen: Frozen,
    known: Sites,
    loader: Loader,
    reference: Any,
    console: Console,
    mesh: Mesh | None = None,
) -> tuple[dict[str, Any], Any]:
    """The table's line of a method, evaluated with its weights packed, and what the model gave."""
    got = frozen.task.predict(frozen.on(mesh), loader, f"evaluating {row.name}", console.track, mesh)
    costs = {"bytes": accounting.tree_bytes(frozen.params, frozen.qstate), **accounting.spent(known, row.plan)}
    return {"name": row.name, **frozen.task.score(reference, got)._asdict(), **costs}, got


def of_training(fit: Fitted) -> dict[str, float]:
    """The share of weights that oscillated when training ended, for the row's line; nothing without training."""
    shares = fit.notes.get("training", {}).get("curves", {}).get("oscillating")
    return {"oscillating": shares[-1]} if shares else {}


def filled(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a table, with None where only others have a share of oscillating weights."""
    some = any("oscillating" in row for row in table)
    return [{"name": row["name"], "oscillating": None} | row if some else row for row in table]


def apart(a: Any, b: Any) -> float:
    """The largest difference of two outputs."""
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def site_table(
    plan: Mapping[str, Quantizer], known: Sites, errors: Mapping[str, float], order: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """The report's ``sites``: every operand's quantiser, its relative error, and of attention maps the rows' order."""
    return {
        address: {
            "quantizer": type(q).__name__,
            "letters": known[address].letters,
            "bits": q.bits,
            "groups": getattr(q, "groups", None),
            "relative_error": errors[address],
            "order": order.get(address),
        }
        for address, q in plan.items()
    }
