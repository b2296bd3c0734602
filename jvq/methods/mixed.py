"""A width for each attention and MLP of a model at a given size: Liu et al. 2021, section 3.3."""

import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jvq.core.calibrate import Fitted, Track, silent
from jvq.core.recipe import Forward, Plan, Sites
from jvq.methods.intervals import Settings, fitted, searched
from jvq.methods.knapsack import Choice, front, within
from jvq.methods.nuclear import Looked, Module, modules, omegas
from jvq.methods.sensitivity import sweep_modules

By = Literal["nuclear", "kl"]
UNITS = {"nuclear": "nuclear norm times squared error", "kl": "KL of predictions, nats"}
BYS: tuple[By, ...] = ("nuclear", "kl")


class MixedSettings(NamedTuple):
    """What the choice of widths has to know."""

    target: int  # the equal width whose size is the budget
    candidates: tuple[int, ...]
    slack: float = 0.0  # part of the budget by which it may be exceeded
    images: int = 32  # at most, on which sensitivities are measured
    norm_of: Looked = "map"
    error_of: Looked = "map"
    normalized: bool = False
    by: By = "nuclear"


def mixed(
    mixed: MixedSettings,
    settings: Settings,
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    known: Sites,
    *,
    track: Track = silent,
    journal: MutableMapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Fitted:
    """The plan with the chosen widths, fitted; how they were chosen under ``notes["mixed"]``.

    Every module is searched at every candidate width, its sensitivity measured alone; sizes are those of its weights.
    """
    shared: dict[str, Any] = {"track": track, "journal": {} if journal is None else journal, "mesh": mesh}
    found = [m for m in modules(known) if any(a in plan for a in m.addresses)]
    if not found:
        raise ValueError("method.mixed: the model has no attention or MLP whose width could be chosen")
    limit = mixed.target * sum(m.parameters for m in found) * (1 + mixed.slack)
    least = min(mixed.candidates) * sum(m.parameters for m in found)
    if least > limit:
        raise ValueError(
            f"method.mixed_bits: {min(mixed.candidates)} bits everywhere are {least:,} bits of weights, more than the "
            f"budget of {limit:,.0f} ({mixed.target} bits; nearest: a candidate of at most {mixed.target})"
        )
    inside = {a for m in found for a in m.addresses}
    states = []
    for b in mixed.candidates:
        wide = {a: dataclasses.replace(q, bits=b) for a, q in plan.items() if a in inside}  # type: ignore[type-var]
        states.append(searched(settings, forward, params, images, wide, known, **shared)[0])
    moved = {a: q for a, q in plan.items() if a in inside}
    some = images[: mixed.images]
    norms: Mapping[str, float] = {}
    if mixed.by == "kl":
        parts = {m.name: m.addresses for m in found}
        raw = sweep_modules(forward, params, some, parts, moved, states, batch=settings.batch, track=track, mesh=mesh)
    else:
        how: Any = {"looked": (mixed.norm_of, mixed.error_of), "batch": settings.batch, "track": track, "mesh": mesh}
        raw, norms = omegas(forward, params, some, moved, states, known, **how)
    loss = normalized(raw, found) if mixed.normalized else raw
    sizes = [[b * m.parameters for b in mixed.candidates] for m in found]
    choices = front([loss[m.name] for m in found], sizes)
    chosen = within(choices, limit)
    bits = {m.name: mixed.candidates[i] for m, i in zip(found, chosen.chosen, strict=True)}
    width_of = {a: bits[m.name] for m in found for a in m.addresses}
    final = {a: dataclasses.replace(q, bits=width_of.get(a, q.bits)) for a, q in plan.items()}  # type: ignore[type-var]
    fit = fitted(settings, forward, params, images, final, known, **shared)
    notes = {**fit.notes, "mixed": _notes(mixed, found, loss, norms, bits, chosen, choices, limit)}
    return Fitted(final, fit.qstate, notes, fit.params)


def normalized(loss: Mapping[str, Sequence[float]], found: Sequence[Module]) -> dict[str, list[float]]:
    """Sensitivities as parts of their sum over all modules of the same kind."""
    total = {m.kind: sum(sum(loss[o.name]) for o in found if o.kind == m.kind) for m in found}
    return {m.name: [x / total[m.kind] if total[m.kind] else x for x in loss[m.name]] for m in found}


def _notes(
    mixed: MixedSettings,
    found: Sequence[Module],
    loss: Mapping[str, list[float]],
    norms: Mapping[str, float],
    bits: Mapping[str, int],
    chosen: Choice,
    choices: Sequence[Choice],
    limit: float,
) -> dict[str, Any]:
    """What the report shows of the choice; sizes in bytes of the modules' weights."""
    at = {b: i for i, b in enumerate(mixed.candidates)}
    equal = {b: [b * sum(m.parameters for m in found) / 8, sum(loss[m.name][i] for m in found)] for b, i in at.items()}
    return {
        "target": mixed.target,
        "unit": UNITS[mixed.by] + (", part of all of its kind" if mixed.normalized else ""),
        "candidates": list(mixed.candidates),
        "limit": limit / 8,
        "size": chosen.size / 8,
        "loss": chosen.loss,
        "modules": {
            m.name: {"bits": bits[m.name], "parameters": m.parameters, "norm": norms.get(m.name), "loss": loss[m.name]}
            for m in found
        },
        "equal": {str(b): pair for b, pair in equal.items()},
        "front": [[c.size / 8, c.loss] for c in choices],
    }
