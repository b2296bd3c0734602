"""The intervals of a whole plan by search, and the biases behind them: what Liu et al. 2021 do at one width."""

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jvq.accounting import pairs
from jvq.core.calibrate import Fitted, Track, calibrate, leaf, silent
from jvq.core.mesh import single
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Forward, Operand, Plan, Sites
from jvq.methods.bias import bias_of, mean_errors, sequential_mean_errors, with_bias_corrections
from jvq.methods.captured import Pair, chunks
from jvq.methods.search import RIGHT, Found, Grid, Objective, form_of, scaled, search
from jvq.quantizers import Uniform

Journal = MutableMapping[str, Any]
"""What is known already, by a key; what is found is put into it at once."""


class Settings(NamedTuple):
    """What the search of one plan has to know."""

    objective: Objective = Objective()
    grid: Grid = Grid()
    halved: bool = False  # begin at max / (2**(bits-1) - 1/2)
    rows: int | None = 16  # of a product, an image
    correct: bool = True  # biases, after each round
    sequential: bool = False  # biases, in a pass at the end
    images: int = 32  # at most, of that pass
    batch: int = 8
    memory: int = 2**30  # bytes of operands held at once


def fitted(
    settings: Settings,
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    known: Sites,
    *,
    track: Track = silent,
    journal: Journal | None = None,
    mesh: Mesh | None = None,
) -> Fitted:
    """The states of all quantisers, the parameters with corrected biases, and under ``notes["search"]`` each site's."""
    shared: dict[str, Any] = {"track": track, "journal": journal, "mesh": mesh}
    qstate, notes, corrections = searched(settings, forward, params, images, plan, known, **shared)
    if settings.sequential:
        some = images[: settings.images]
        corrections = sequential_mean_errors(forward, params, some, plan, qstate, known, mesh)
    elif settings.correct:  # what the search estimated on some rows, on all of them
        how: Any = {"batch": settings.batch, "track": track, "mesh": mesh}
        corrections = mean_errors(forward, params, images, plan, qstate, known, **how)
    corrected = with_bias_corrections(params, known, corrections) if corrections else None
    return Fitted(plan, qstate, {"search": notes}, corrected)


def searched(
    settings: Settings,
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    known: Sites,
    *,
    track: Track = silent,
    journal: Journal | None = None,
    mesh: Mesh | None = None,
) -> tuple[dict[str, State], dict[str, dict[str, Any]], dict[str, np.ndarray]]:
    """The states, what the search of each site came to, and the corrections it ended with.

    Quantisers that are not searched (groups, dynamic ranges) are calibrated, and what they make of their operand is
    what the other one is searched against.
    """
    journal = {} if journal is None else journal
    qstate = calibrate(forward, params, images, plan, known, batch=settings.batch, track=track, mesh=mesh)
    if settings.halved:
        qstate = {a: _halved(plan[a], s) if _searchable(plan[a], known[a]) else s for a, s in qstate.items()}
    sought = _pairs(plan, known, settings.objective)
    fixed = {
        a: (plan[a], qstate[a])
        for pair in sought.values()
        for o in pair.kept
        if (a := o.address) in plan and o is not pair.beside and not _searchable(plan[a], o)
    }
    how = {"rows": settings.rows, "batch": settings.batch, "memory": settings.memory}
    sources = chunks(forward, params, images, sought, fixed, **how, mesh=mesh)
    notes: dict[str, dict[str, Any]] = {}
    corrections: dict[str, np.ndarray] = {}
    for _, (site, source) in zip(track(list(sought), "searching intervals"), sources, strict=True):
        pair = sought[site]
        operands = (pair.left, pair.right)
        quantizers = tuple(q if _searchable(q := plan.get(o.address), o) else None for o in operands)
        states = tuple(None if q is None else qstate[o.address] for q, o in zip(quantizers, operands, strict=True))
        units = "".join(a for a in pair.right.letters if a == "s" and quantizers[RIGHT] is not None)
        form = form_of(pair, quantizers, settings.objective, units)  # type: ignore[arg-type]
        key = f"{site} {' '.join(repr(plan.get(o.address)) for o in operands)}"
        if key not in journal:
            weight, quantised = _weight(params, pair.right, plan, qstate)
            bias = single(bias_of(params, known, site))
            found = search(
                form,
                settings.grid,
                lambda source=source, more=quantised: ({**chunk, **more} for chunk in source()),
                (pair.left.role, pair.right.role),
                states,  # type: ignore[arg-type]
                weight,
                bias,
                settings.correct,
                mesh,
            )
            journal[key] = _plain(found)
        found = _found(journal[key])
        for side, (o, state) in enumerate(zip(operands, states, strict=True)):
            if state is not None:
                qstate[o.address] = scaled(form, side, state, found.ratios[side])
        notes[site] = _note(found)
        if found.mean_error is not None:
            corrections[site] = found.mean_error
    return qstate, notes, corrections


def _pairs(plan: Plan, known: Sites, objective: Objective) -> dict[str, Pair]:
    """Products with a quantised operand, in order; the attention map beside scores whose ranking looks at it."""
    found = {}
    for site, (left, right) in pairs(known).items():
        if left.address in plan or right.address in plan:
            look = objective.ranking is not None and objective.ranking.at == "softmax" and left.role == "q"
            beside = known[f"{site.rpartition('/')[0]}/pv.p"] if look else None
            found[site] = Pair(left, right, beside)
    return found


def _searchable(q: Quantizer | None, o: Operand) -> bool:
    """Whether the interval alone can be scaled: its zero point is fixed."""
    return isinstance(q, Uniform) and q.range == "max" and (q.symmetric or o.role == "p")


def _halved(q: Quantizer, state: State) -> State:
    """The interval ``max / (2**(bits-1) - 1/2)``; of unsigned codes ``max / (2**bits - 1/2)``."""
    top = 2 ** (q.bits - 1) - 1 if getattr(q, "symmetric", False) else 2**q.bits - 1
    return {**state, "scale": state["scale"] * (top / (top + 0.5))}


def _weight(params: Any, o: Operand, plan: Plan, qstate: Mapping[str, State]) -> tuple[Any, dict[str, Any]]:
    """The weight, and where it is quantised but not searched what its quantiser makes of it, by its name in a chunk."""
    if o.path is None:
        return None, {}
    weight = single(leaf(params, o))
    q = plan.get(o.address)
    if q is None or _searchable(q, o):
        return weight, {}
    return weight, {f"{o.role}^": np.asarray(q.apply(qstate[o.address], weight, o.letters))}


def _plain(found: Found) -> dict[str, Any]:
    """As JSON has it."""
    plain = found._asdict()
    plain["ratios"] = [r.tolist() for r in found.ratios]
    plain["mean_error"] = None if found.mean_error is None else found.mean_error.tolist()
    return plain


def _found(plain: Mapping[str, Any]) -> Found:
    left, right = (np.asarray(r, np.float64) for r in plain["ratios"])
    mean = plain["mean_error"]
    values = {**plain, "ratios": (left, right), "mean_error": None if mean is None else np.asarray(mean, np.float32)}
    return Found(**values)


def _note(found: Found) -> dict[str, Any]:
    """What the report says of a site."""
    names = ("left", "right")
    ratios = {name: r.tolist() for name, r in zip(names, found.ratios, strict=True)}
    return {**ratios, "score": found.score, "start": found.start, "gain": found.gain, "rounds": found.rounds}
