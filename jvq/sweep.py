"""One model at several widths, calibrated on several sets of images: one table of means and spreads."""

import dataclasses
import itertools
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jvq import accounting, evaluate_maps, inspection, looking, opening, ordering, rows, sharing
from jvq.config import Run
from jvq.core.calibrate import Fitted
from jvq.core.recipe import Sites
from jvq.data import Loader, sample
from jvq.kept import Kept
from jvq.models.weights import Checkpoint
from jvq.report import Console, write_partial
from jvq.stages import Stages

Plans = sharing.Plans
COUNTED = ("operations",)  #: of what fitting notes, what is the same with every seed; of the last width


def wanted(cfg: Run) -> bool:
    """Whether the config asks for more than one run."""
    return bool(cfg.widths or cfg.order) or cfg.seeds > 1


def work(cfg: Run, workdir: Path, console: Console) -> dict[str, Any]:
    """The report's parts for ``cfg.widths`` and ``cfg.seeds``; the float model's outputs are computed once."""
    stages = Stages()
    console.say(f"loading {cfg.weights} and {cfg.data.name} ...")
    with stages.stage("load"):
        checkpoint, loader, train = opening.opened(cfg)
        mesh = opening.devices(cfg)
        known, plans = _plans(cfg, checkpoint)
        chains = ordering.parse(cfg.order, [name for _, name in plans])
        keep = Kept.of(cfg, workdir, checkpoint, loader, train, console)
    with stages.stage("evaluate"):
        reference, plain = keep.evaluated("float", loader, rows.float_row, checkpoint, known, loader, console, mesh)
    task = rows.task_of(checkpoint.model)
    runners = sharing.Runners(task.runner, checkpoint, sharing.most_groups(row.plan for row in plans.values()), mesh)
    runs: list[dict[str, Any]] = []
    sites: dict[str, dict[str, Any]] = {}
    pictures: list[str] = []
    looked: inspection.Fits = {}
    warnings: list[str] = []
    outputs: dict[str, dict[str, Any]] = {}
    errors: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
    counted: dict[str, Any] = {}
    for seed in range(cfg.seed, cfg.seed + cfg.seeds):
        seeded = {key: _seeded(row, seed) for key, row in plans.items()}
        with stages.stage("fit"):
            images = sample(train, loader.preprocess, cfg.data.calibration, seed, console.track).images
            material = rows.Material(checkpoint, known, images, train, loader.preprocess, workdir, console, mesh)
            fits = _fitted(seeded, material, seed, keep)
        if seed == cfg.seed:
            with stages.stage("inspect"):  # at the last width, with the first seed
                some = cfg, workdir, seeded, fits, checkpoint, known, loader, images
                looked, sites, pictures, warnings = _inspected(*some)
                main = fits[[*plans][-1][0], cfg.method_name].notes
                counted = {part: main[part] for part in COUNTED if part in main}
        for (width, name), row in seeded.items():
            with stages.stage("evaluate"):
                fit = fits[width, name]
                text = f"evaluating {width} {name}, seed {seed}"
                given = runners.model(row, fit), loader, text, console.track, mesh
                got = keep.evaluated(f"seed {seed}: {width} {name} evaluated", loader, task.predict, *given)
                scores = task.score(reference, got)._asdict()
                for measure, values in task.images(reference, got).items() if chains else ():
                    errors.setdefault((width, name), {}).setdefault(measure, []).append(values)
            mine = row.subject(checkpoint, known)
            found = {**scores, **rows.of_training(fit), **accounting.spent(mine.known, fit.plan)}
            runs.append({"width": width, "name": name, "seed": seed, **found})
            console.say(", ".join(f"{key} {value:.4f}" for key, value in scores.items() if value is not None))
            if seed == cfg.seed:
                outputs.setdefault(width, {"float": reference})[name] = got
                runs[-1]["bytes"] = _bytes(mine, fit)
            some = [key for key in plans if any((r["width"], r["name"]) == key for r in runs)]
            lines = rows.filled([plain, *(_row(runs, key) for key in some)])
            write_partial(workdir, cfg.method_name, cfg.weights, [" ".join(key) for key in plans], lines)
    table = rows.filled([plain, *(_row(runs, key) for key in plans)])
    with stages.stage("inspect"):
        options = {name: row.options for (_, name), row in plans.items()}
        pictures += inspection.draw_table(workdir, table, options, cfg.method_name)
        for width, made in outputs.items() if task is evaluate_maps else ():
            rows.draw(workdir / f"maps_{width}.png", made, loader)
            pictures.append(f"maps_{width}.png")
        last = [*plans][-1][0]
        parts = looked, cfg.method_name, checkpoint, known, loader
        name = f"{last} {cfg.method_name}"
        figures = looking.figures(workdir, *parts, outputs[last], sites, table, name) if cfg.figures else []
    return {
        "seconds": stages.seconds,
        "method": cfg.method_name,
        "model": opening.described(checkpoint, cfg.weights),
        "data": opening.data_of(cfg, loader, len(reference[0])),
        "protocol": _protocol(cfg, plans, train.name),
        "bops_formula": accounting.FORMULA,
        "rows": table,
        "runs": runs,
        "order": _ordered(chains, errors),
        "sites": sites,
        "pictures": pictures,
        "figures": figures,
        "warnings": [*opening.warnings_of(loader), *warnings],
        **counted,
    }


def widths(text: str) -> list[tuple[str, int, int]]:
    """``"W8A8,W4A8"`` as [("W8A8", 8, 8), ("W4A8", 4, 8)]. ``ValueError`` for what does not read so."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"W(\d+)A(\d+)", part)
        if not match:
            raise ValueError(f"config: widths: '{part}' must read W4A8: bits of the weights, bits of the activations")
        found.append((part, int(match[1]), int(match[2])))
    return found


def _plans(cfg: Run, checkpoint: Checkpoint) -> tuple[Sites, dict[tuple[str, str], rows.Row]]:
    """The operands, and every row of every width with its resolved plan."""
    known, plans = {}, {}
    own = cfg.method.widths()
    for width, weight_bits, act_bits in widths(cfg.widths) or [(f"W{own[0]}A{own[1]}", *own)]:
        wanted = (weight_bits, act_bits)
        others = {name: (kind, _wide(options, own, wanted)) for name, (kind, options) in cfg.rows.items()}
        at = dataclasses.replace(cfg, method=_wide(cfg.method, own, wanted), rows=others)
        known, found = rows.plans(at, checkpoint)
        plans |= {(width, row.name): row for row in found}
    return known, plans


def _wide(options: Any, own: tuple[int, int], wanted: tuple[int, int]) -> Any:
    """The options at other widths (weights, activations), where they are ``own``: a row may have a width of its own."""
    had = options.widths()
    weight, act = (new if old == usual else old for old, usual, new in zip(had, own, wanted, strict=True))
    return dataclasses.replace(options, weight_bits=weight, act_bits=act)


def _seeded(row: rows.Row, seed: int) -> rows.Row:
    """The row with the seed in its options and its quantisers, where they have one."""
    plan = {a: dataclasses.replace(q, seed=seed) if hasattr(q, "seed") else q for a, q in row.plan.items()}  # type: ignore[type-var]
    options = dataclasses.replace(row.options, seed=seed) if hasattr(row.options, "seed") else row.options
    return dataclasses.replace(row, options=options, plan=plan)


def _fitted(plans: Plans, material: rows.Material, seed: int, keep: Kept) -> dict[tuple[str, str], Fitted]:
    """Every row fitted with one seed, in this run or before."""
    found = sharing.fitted(plans, material, lambda key, *work: keep(f"seed {seed}: {key}", *work))
    subjects = {key: row.subject(material.checkpoint, material.known) for key, row in plans.items()}
    return {key: opening.laid_again(fit, subjects[key].checkpoint) for key, fit in found.items()}


def _inspected(
    cfg: Run,
    workdir: Path,
    plans: Plans,
    fits: Mapping[tuple[str, str], Fitted],
    checkpoint: Checkpoint,
    known: Sites,
    loader: Loader,
    images: np.ndarray,
) -> tuple[inspection.Fits, dict[str, dict[str, Any]], list[str], list[str]]:
    """The rows at the last of the widths, and there the main row's sites, pictures, and what is wrong with groups."""
    last = [*plans][-1][0]
    found = {name: (row, fits[width, name]) for (width, name), row in plans.items() if width == last}
    found = {name: (row.planned(fit.plan), fit) for name, (row, fit) in found.items()}
    sites, troubles = inspection.sites(found, cfg.method_name, checkpoint, known, loader)
    pictures = inspection.draw(workdir, found, cfg.method_name, sites, checkpoint, known, images)
    noted = [f"{name}: {line}" for name, (_, fit) in found.items() for line in fit.notes.get("warnings", ())]
    return found, sites, pictures, troubles + noted


def _ordered(chains: list[list[str]], errors: Mapping[tuple[str, str], Any]) -> list[dict[str, Any]]:
    """Every neighbouring pair of every chain at every width, tested."""
    stacked = {key: {m: np.stack(v) for m, v in found.items()} for key, found in errors.items()}
    return [
        {"width": width, "worse": worse, "better": better}
        | ordering.paired(stacked[width, worse], stacked[width, better])
        for width in dict.fromkeys(width for width, _ in stacked)
        for chain in chains
        for worse, better in itertools.pairwise(chain)
    ]


def _bytes(subject: rows.Subject, fit: Fitted) -> int:
    frozen = rows.Frozen.of(subject.checkpoint, fit.plan, fit.qstate, subject.known)
    return accounting.tree_bytes(frozen.params, frozen.qstate)


def _row(runs: list[dict[str, Any]], key: tuple[str, str]) -> dict[str, Any]:
    """The table's line of a width and a method: means over the seeds and, of several, sample standard deviations."""
    mine = [r for r in runs if (r["width"], r["name"]) == key]
    named = ("width", "name", "seed", "bytes", "bops", "cost")
    numbers = {name: [r[name] for r in mine] for name in mine[0] if name not in named}
    spread = {name: statistics.stdev(v) for name, v in numbers.items() if len(v) > 1 and None not in v}
    means = {name: None if None in v else statistics.fmean(v) for name, v in numbers.items()}
    cost = {part: round(statistics.fmean(r["cost"][part] for r in mine)) for part in mine[0]["cost"]}
    costs = {"bytes": mine[0]["bytes"], "bops": round(statistics.fmean(r["bops"] for r in mine)), "cost": cost}
    return {"name": " ".join(key), **means, "spread": spread, **costs}


def _protocol(cfg: Run, plans: Plans, source: str) -> dict[str, Any]:
    """What has to be known to compare the numbers; lines that name a width are those of the last."""
    (width, _), main = next((key, row) for key, row in reversed([*plans.items()]) if key[1] == cfg.method_name)
    seeds = f"seeds {cfg.seed} to {cfg.seed + cfg.seeds - 1}" if cfg.seeds > 1 else f"seed {cfg.seed}"
    return main.method.protocol(main.options) | {
        "widths": f"as in the table; what stands above is of {width}",
        "rules": cfg.rules or "none",
        "calibration": f"{cfg.data.calibration} images of {source} ({cfg.data.train}), drawn by {seeds}",
        "spread": "± is the sample standard deviation over the seeds, which also start k-means",
    }
