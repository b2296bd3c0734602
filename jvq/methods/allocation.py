"""The number of groups of every operand under a budget, by its effect on predictions: IGQ-ViT, section 4 of the spec.

The paper names an integer linear program, KL divergence and bit-operations; the rest is ours: each operand is quantised
alone in an otherwise float model, losses are added up, and the budget is what the same model costs with a fixed number
of groups. Rows of attention maps cost almost nothing in bit-operations (a row's scale factors out of the sum), so under
``"bops"`` they get as many groups as there are; ``"mean_groups"`` bounds the mean number instead.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jvq.accounting import BETA
from jvq.core.calibrate import Fitted, Track, calibrate_all, silent
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Forward, Operand, Plan, Sites
from jvq.methods.budget import check, choose
from jvq.methods.sensitivity import Journal, sweep
from jvq.quantizers import Grouped
from jvq.quantizers.grouped import cut, indices

Budget = Literal["none", "bops", "mean_groups"]
Rest = Literal["float", "quantized"]
BUDGETS: tuple[Budget, ...] = ("none", "bops", "mean_groups")
RESTS: tuple[Rest, ...] = ("float", "quantized")


class Offer(NamedTuple):
    """What may be chosen for one operand."""

    candidates: list[Grouped]
    fixed: Grouped  # what it has without allocation, which sets the budget


def allocate(
    budget: Budget,
    groups: Sequence[int],
    rest: Rest,
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
    """The plan with the chosen numbers of groups, its states, and under ``notes["allocation"]`` how they were chosen.

    ``groups`` are the candidates, for every operand that the plan quantises in groups. Raises ``ValueError`` where
    there is none, or an operand has fewer indices than the least candidate.
    """
    offers = _offers(plan, groups, known)
    fixed = {a: offer.fixed for a, offer in offers.items()}
    costs = {a: [_cost(budget, q, known[a]) for q in o.candidates] for a, o in offers.items()}
    limit = sum(_cost(budget, q, known[a]) for a, q in fixed.items())
    check([*costs.values()], limit)
    most = max(len(offer.candidates) for offer in offers.values())
    plans: list[Plan] = [{**plan, **fixed}]
    plans += [{a: o.candidates[i] for a, o in offers.items() if i < len(o.candidates)} for i in range(most)]
    first, *others = calibrate_all(forward, params, images, plans, known, track=track, mesh=mesh)
    states = {a: [others[i][a] for i in range(len(o.candidates))] for a, o in offers.items()}
    activations = {a: q for a, q in plans[0].items() if known[a].path is None}
    base = ({}, {}) if rest == "float" else (activations, {a: first[a] for a in activations})
    offered = {a: o.candidates for a, o in offers.items()}
    how: dict[str, Any] = {"base": base, "track": track, "journal": journal, "mesh": mesh}
    loss = sweep(forward, params, images, offered, states, known, **how)
    chosen = dict(zip(offers, choose([*loss.values()], [*costs.values()], limit), strict=True))
    picked = {a: o.candidates[chosen[a]] for a, o in offers.items()}
    qstate = {a: cut(states[a][chosen[a]], picked[a].groups) if a in offers else first[a] for a in plan}
    final = {a: dataclasses.replace(picked[a], capacity=None) if a in offers else q for a, q in plan.items()}
    warnings = rises(loss, {a: [q.groups for q in o.candidates] for a, o in offers.items()})
    notes = {"allocation": _notes(budget, limit, offers, loss, costs, chosen), "warnings": warnings}
    return Fitted(final, qstate, notes)


def _offers(plan: Plan, groups: Sequence[int], known: Sites) -> dict[str, Offer]:
    """The candidates of every operand in groups; all states have one length, so that they share executables."""
    grouped = {a: q for a, q in plan.items() if isinstance(q, Grouped)}
    if not grouped:
        raise ValueError("method.allocation: no operand is quantised in groups, so there is nothing to allocate")
    length = max(*groups, *(q.groups for q in grouped.values()))
    found = {}
    for address, q in grouped.items():
        found[address] = Offer(grouped_as(q, groups, known[address], length), dataclasses.replace(q, capacity=length))
    return found


def grouped_as(q: Grouped, groups: Sequence[int], o: Operand, length: int) -> list[Grouped]:
    """The quantiser with each of those numbers of groups that the operand has indices for, in states of ``length``.

    Raises ``ValueError`` where it has too few for all of them.
    """
    points = indices(q.along, o.letters, o.shape)
    fitting = [dataclasses.replace(q, groups=g, capacity=length) for g in sorted(set(groups)) if g <= points]
    if not fitting:
        raise ValueError(
            f"method.candidates: the least is {min(groups)}, but {o.address} has only {points} indices to group"
        )
    return fitting


def _cost(budget: Budget, q: Quantizer, o: Operand) -> int:
    """What the quantiser costs at that operand, in the budget's unit."""
    if budget == "mean_groups":
        assert isinstance(q, Grouped)
        return q.groups
    return q.overhead(o.letters, o.shape, o.contracted, int(np.prod(o.product)), BETA).total


def _notes(
    budget: Budget,
    limit: int,
    offers: Mapping[str, Offer],
    loss: Mapping[str, list[float]],
    costs: Mapping[str, list[int]],
    chosen: Mapping[str, int],
) -> dict[str, Any]:
    """What the report shows of the choice."""
    groups = {a: offers[a].candidates[i].groups for a, i in chosen.items()}
    sites = {
        a: {"groups": groups[a], "candidates": [q.groups for q in o.candidates], "kl": loss[a], "cost": costs[a]}
        for a, o in offers.items()
    }
    return {
        "budget": budget,
        "limit": limit,
        "spent": sum(costs[a][i] for a, i in chosen.items()),
        "mean_groups": float(np.mean([*groups.values()])),
        "kl": sum(loss[a][i] for a, i in chosen.items()),
        "sites": sites,
    }


def rises(loss: Mapping[str, Sequence[float]], groups: Mapping[str, Sequence[int]]) -> list[str]:
    """A warning where more groups cause a larger divergence (raw values are used all the same): how many, and worst."""
    found = []
    for address, row in loss.items():
        for i in range(1, len(row)):
            if row[i] > row[i - 1]:
                text = f"{groups[address][i - 1]} to {groups[address][i]} groups: {row[i - 1]:.2e} to {row[i]:.2e}"
                found.append((row[i] - row[i - 1], f"{address}, {text}"))
    if not found:
        return []
    return [
        f"more groups cause a larger divergence in {len(found)} of {sum(len(row) - 1 for row in loss.values())} steps "
        f"(noise of few calibration images, or groups that fit them too well); the largest: {max(found)[1]}"
    ]
