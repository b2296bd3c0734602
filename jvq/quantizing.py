"""A run that quantises: every row fitted, frozen and evaluated; the method's own sites measured."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jvq import accounting, deploy, evaluate_maps, inspection, looking
from jvq.config import Run
from jvq.core.calibrate import Fitted
from jvq.core.mesh import single
from jvq.data import sample
from jvq.export import Deployment, save
from jvq.fitting import fitted_row
from jvq.kept import Kept
from jvq.opening import data_of, described, devices, laid_again, opened, warnings_of, whole
from jvq.report import Console, write_partial
from jvq.rows import (
    Frozen,
    Material,
    Row,
    apart,
    draw,
    filled,
    fitted_checkpoint,
    float_row,
    of_training,
    plans,
    scored,
    task_of,
)
from jvq.stages import Stages

PACKED = "packed.safetensors"  #: in the workdir: the method's model, ready to run in integers (jvq.deploy)


def work(cfg: Run, workdir: Path, console: Console) -> dict[str, Any]:
    """The report's parts."""
    stages = Stages()
    console.say(f"loading {cfg.weights} and {cfg.data.name} ...")
    with stages.stage("load"):
        checkpoint, loader, train = opened(cfg)
        mesh = devices(cfg)
        known, compared = plans(cfg, checkpoint)
        drawn = sample(train, loader.preprocess, cfg.data.calibration, cfg.seed, console.track)
        keep = Kept.of(cfg, workdir, checkpoint, loader, train, console)
    with stages.stage("evaluate"):
        plainly = checkpoint, known, loader, console, mesh
        reference, plain = keep.evaluated("float", loader, float_row, *plainly)
    table = [plain]
    task, outputs = task_of(checkpoint.model), {"float": reference}
    batch = jnp.asarray(next(iter(whole(loader)))["image"])
    fits: dict[str, tuple[Row, Fitted]] = {}
    images = drawn.images, train, loader.preprocess
    material = Material(checkpoint, known, *images, workdir, console, mesh, cfg.data.workers)
    for row in compared:
        with stages.stage("fit"):
            console.say(f"{row.name}: fitting {len(row.plan)} quantisers on {len(drawn.images)} images")
            subject = row.subject(checkpoint, known)
            fit = laid_again(keep(f"{row.name} fitted", fitted_row, row, material), subject.checkpoint)
            row = row.planned(fit.plan)
            fits[row.name] = row, fit
        with stages.stage("freeze"):
            own = fitted_checkpoint(subject.checkpoint, fit)
            packed = Frozen.of(own, row.plan, fit.qstate, subject.known)
        with stages.stage("evaluate"):
            subjects = row, packed, subject.known, loader, reference, console, mesh
            line, outputs[row.name] = keep.evaluated(f"{row.name} evaluated", loader, scored, *subjects)
            table.append(line | of_training(fit))
            write_partial(workdir, cfg.method_name, cfg.weights, [r.name for r in compared], filled(table))
        if row.name == cfg.method_name:
            with stages.stage("check"):  # that packing changes nothing
                main_model, main_known = own, subject.known
                fake = task.runner(own.model.forward, row.plan)(own.params, fit.qstate, batch)
                difference = apart(packed(batch), fake)
    console.say(f"measuring every site of {cfg.method_name} ...")
    main, fitted = fits[cfg.method_name]
    with stages.stage("sites"):
        found, troubles = inspection.sites(fits, cfg.method_name, checkpoint, known, loader)
    notes = dict(fitted.notes)
    console.say("drawing ...")
    with stages.stage("draw"):
        pictures = inspection.draw(workdir, fits, cfg.method_name, found, checkpoint, known, drawn.images)
        if task is evaluate_maps:
            draw(workdir / "maps.png", outputs, loader)
            pictures.append("maps.png")
        parts = fits, cfg.method_name, checkpoint, known, loader
        figures = looking.figures(workdir, *parts, outputs, found, filled(table)) if cfg.figures else []
    protocol = main.method.protocol(main.options) | {
        "rules": cfg.rules or "none",
        "calibration": f"{len(drawn.images)} images of {train.name} ({cfg.data.train}), drawn by seed {cfg.seed}",
        "packed against fake quantisation": f"largest difference of outputs {difference:.1e}",
    }
    console.say("packing, and comparing with integer inference ...")
    with stages.stage("deploy"):
        deployment = Deployment.of(main_model, main.plan, fitted.qstate, main_known, protocol)
        held = {"params": single(deployment.params), "qstate": single(deployment.qstate)}  # packed, one device holds it
        deployment = dataclasses.replace(deployment, **held)
        protocol["integer inference"] = deploy.compared(deployment, batch, jax.jit(deployment.forward)(batch))
        save(deployment, workdir / PACKED)
    return {
        "seconds": stages.seconds,
        "method": cfg.method_name,
        "model": described(checkpoint, cfg.weights),
        "data": data_of(cfg, loader, len(reference[0])),
        "protocol": protocol,
        "bops_formula": accounting.FORMULA,
        "rows": filled(table),
        "sites": found,
        "pictures": pictures,
        "figures": figures,
        "warnings": [*warnings_of(loader), *troubles, *notes.pop("warnings", [])],
        **notes,
    }
