"""Looking at what a method did: the error of every site, what is wrong with its groups, and pictures of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvq import evaluate, evaluate_order
from jvq.core.calibrate import Fitted
from jvq.core.recipe import Sites
from jvq.data import Loader
from jvq.methods.grouping import grouping, pictured, troubles_of
from jvq.models.weights import Checkpoint
from jvq.opening import first
from jvq.report import (
    draw_allocation,
    draw_attention,
    draw_error,
    draw_fronts,
    draw_grouping,
    draw_joint,
    draw_training,
    draw_widths,
)
from jvq.report.tables import COLUMNS
from jvq.rows import Row, fitted_checkpoint, site_table

SITE_IMAGES = 64  #: images on which the error of every site is measured, the first of the evaluated ones
ORDER_IMAGES = 16  #: of these, on which the order of attention rows is compared
ATTENDED = 3  #: rows whose attention is drawn
SCORES = ("top1", "correlation")  #: what a front shows, the first that a row has; larger is better
LOSSES = ("kl", "nmse")  #: what the number of groups is held against; smaller is better

PICTURES = {  # of what a method notes: the name of the file, and what draws it
    "allocation": ("allocation", draw_allocation),
    "joint": ("widths_and_groups", draw_joint),
    "mixed": ("widths", draw_widths),
    "training": ("training", draw_training),
}

Fits = Mapping[str, tuple[Row, Fitted]]
"""By name the row, with the plan that fitting made, and what fitting gave."""


def sites(
    fits: Fits, name: str, checkpoint: Checkpoint, known: Sites, loader: Loader
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The operands of the row ``name`` with their errors on float operands, and what is wrong with its groups."""
    images = first(loader, SITE_IMAGES)

    def looked(name: str, look: Any) -> Any:
        row, fit = fits[name]
        mine = row.subject(checkpoint, known)
        letters = {a: o.letters for a, o in mine.known.items()}
        forward, params = mine.checkpoint.model.forward, mine.checkpoint.params
        return look(forward, params, row.plan, fit.qstate, letters, images)

    row, fit = fits[name]
    errors, use = looked(name, evaluate.site_errors), looked(name, evaluate.group_use)
    plain = looked("minmax", evaluate.site_errors) if use and "minmax" in fits and name != "minmax" else {}
    mine = row.subject(checkpoint, known)
    own = fitted_checkpoint(mine.checkpoint, fit)
    models = (checkpoint.model.forward, checkpoint.params), (own.model.forward, own.params)
    order = evaluate_order.order_agreement(*models, row.plan, fit.qstate, known, images[:ORDER_IMAGES])
    return site_table(row.plan, mine.known, errors, order), troubles_of(fit.qstate, use, errors, plain)


def draw(
    workdir: Path,
    fits: Fits,
    name: str,
    found: Mapping[str, Mapping[str, Any]],
    checkpoint: Checkpoint,
    known: Sites,
    images: np.ndarray,
) -> list[str]:
    """Pictures of the groups of the row ``name``, and of every allocation; the names of the files.

    ``found`` are the row's sites, ``images`` those of its calibration.
    """
    made = []
    row, _ = fits[name]
    chosen = pictured(row.plan, {address: site["relative_error"] for address, site in found.items()})
    if chosen:
        mine = row.subject(checkpoint, known)
        forward, params = mine.checkpoint.model.forward, mine.checkpoint.params
        draw_grouping(workdir / "groups.png", grouping(forward, params, images, row.plan, mine.known, chosen))
        made.append("groups.png")
    if getattr(row.method, "ATTENDS", False):
        _draw_attention(workdir / "attention.png", fits, name, checkpoint, known, images)
        made.append("attention.png")
    for other, (_, fit) in fits.items():
        for note, (file, picture) in PICTURES.items():
            if note in fit.notes:
                made.append(f"{file}.png" if other == name else f"{file}_{other}.png")
                picture(workdir / made[-1], fit.notes[note])
    return made


def _draw_attention(
    path: Path, fits: Fits, name: str, checkpoint: Checkpoint, known: Sites, images: np.ndarray
) -> None:
    """Writes the first image's attention, first head and window, of the float model, the row ``name`` and its like."""
    addresses = [a for a, o in known.items() if o.role == "p"]
    plain = checkpoint.model.forward, checkpoint.params
    like = [other for other, (row, _) in fits.items() if row.method is fits[name][0].method and row.plan]
    chosen, maps, order = [name, *(other for other in like if other != name)], {}, {}

    def some(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {a: np.asarray(x[(0,) * (x.ndim - 2)]) for a, x in found.items()}

    maps["float"] = some(evaluate_order.attention_maps(plain, {}, {}, addresses, images[:1]))
    for other in chosen[:ATTENDED]:
        row, fit = fits[other]
        own = fitted_checkpoint(row.subject(checkpoint, known).checkpoint, fit)
        model = own.model.forward, own.params
        maps[other] = some(evaluate_order.attention_maps(model, row.plan, fit.qstate, addresses, images[:1]))
        found = images[:ORDER_IMAGES]
        order[other] = evaluate_order.order_agreement(plain, model, row.plan, fit.qstate, known, found)
    draw_attention(path, maps, order)


def draw_table(workdir: Path, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any], name: str) -> list[str]:
    """Pictures of a table over widths: error against groups at each of them, accuracy against bit-operations.

    ``options`` are those of every row by its name without the width, ``name`` the main row's.
    """
    by_width: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        width, _, label = row["name"].partition(" ")
        if label:  # not the float model
            by_width.setdefault(width, {})[label] = row
    made = []
    loss = next(measure for measure in LOSSES if measure in rows[0])
    varied = {label: options[label].groups for label in options if _differ_in_groups(options[label], options[name])}
    beside = [label for label in options if label not in varied and label in ("minmax", f"{name}_upper_bound")]
    for width, found in by_width.items():
        if len({*varied.values()}) > 2:
            file = f"groups_error_{width}.png"
            points = sorted((groups, found[label]) for label, groups in varied.items())
            draw_error(workdir / file, points, {label: found[label] for label in beside}, loss, COLUMNS[loss])
            made.append(file)
    score = next((measure for measure in SCORES if rows[0].get(measure) is not None), None)
    if len(by_width) > 2 and score is not None:
        draw_fronts(workdir / "front.png", [row for f in by_width.values() for row in f.values()], score, rows[0])
        made.append("front.png")
    return made


def _differ_in_groups(options: Any, main: Any) -> bool:
    """Whether the options are those of the main row but for the number of groups."""
    if type(options) is not type(main) or not hasattr(main, "groups"):
        return False
    return dataclasses.replace(options, groups=main.groups) == main
