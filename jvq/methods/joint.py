"""Widths and numbers of groups chosen together under one budget of bit-operations.

Ours: IGQ-ViT's perturbation metric and integer program (:mod:`jvq.methods.allocation`) over the width of each product
as well, which the paper fixes. Both operands of a product have its width: its bit-operations are their product.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jvq.accounting import BETA, costs, pairs
from jvq.core.calibrate import Fitted, Track, calibrate_all, silent
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Forward, Operand, Plan, Sites
from jvq.methods.allocation import grouped_as
from jvq.methods.budget import check, choose
from jvq.methods.minmax import is_edge
from jvq.methods.sensitivity import Journal, sweep
from jvq.quantizers import Grouped
from jvq.quantizers.grouped import cut


class Offer(NamedTuple):
    """What one product may have."""

    bits: int
    groups: int | None  # of the operand in groups, None where it has none


def allocate_widths(
    widths: Mapping[int, Mapping[str, Quantizer | None]],
    groups: Sequence[int],
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
    """The plan with the chosen widths and numbers of groups, at most as many bit-operations as it had.

    ``widths``: by the width, the quantiser of every operand. What was chosen is under ``notes["joint"]``. Patch
    embedding and head keep theirs, and so does what ``widths`` does not name.
    """
    named = [a for a in plan if not is_edge(known[a]) and all(a in wide for wide in widths.values())]
    inner = {a: plan[a] for a in named}
    if not inner:
        raise ValueError("method.allocation_widths: no product inside the model is quantised: nothing to choose")
    both = pairs(known)
    candidates = {a: _candidates([w[a] for w in widths.values()], known[a], groups) for a in inner}
    most = max(map(len, candidates.values()))
    plans: list[Plan] = [{a: q for a, q in plan.items() if a not in inner}]
    plans += [{a: c[i] for a, c in candidates.items() if i < len(c)} for i in range(most)]
    edge, *others = calibrate_all(forward, params, images, plans, known, track=track, mesh=mesh)
    states = {a: [others[i][a] for i in range(len(c))] for a, c in candidates.items()}
    loss = sweep(forward, params, images, candidates, states, known, track=track, journal=journal, mesh=mesh)
    at = {a: {_offer(q): i for i, q in enumerate(c)} for a, c in candidates.items()}
    sites = list(dict.fromkeys(known[a].site for a in inner))
    operands = {site: [o.address for o in both[site] if o.address in inner] for site in sites}
    offers = {site: _offers(mine, candidates) for site, mine in operands.items()}
    summed = {s: [sum(_of(loss, at, a, offer) for a in operands[s]) for offer in offers[s]] for s in sites}
    spent = {}
    for s, mine in operands.items():
        kept = {o.address: plan[o.address] for o in both[s] if o.address in plan}
        picks = [{a: candidates[a][_index(at[a], offer)] for a in mine} for offer in offers[s]]
        spent[s] = [_cost(both[s], kept | pick) for pick in picks]
    limit = sum(costs(known, plan, BETA)[s].bops for s in sites)
    check([*spent.values()], limit)
    chosen = dict(zip(sites, choose([*summed.values()], [*spent.values()], limit), strict=True))
    place = {a: _index(at[a], offers[s][chosen[s]]) for s in sites for a in operands[s]}
    picked = {a: candidates[a][i] for a, i in place.items()}
    final = {a: _trimmed(picked[a]) if a in picked else q for a, q in plan.items()}
    qstate = {}
    for a, q in final.items():
        state = states[a][place[a]] if a in place else edge[a]
        qstate[a] = cut(state, q.groups) if isinstance(q, Grouped) else state
    notes = {
        "limit": limit,
        "spent": sum(spent[s][i] for s, i in chosen.items()),
        "kl": sum(summed[s][i] for s, i in chosen.items()),
        "sites": {s: {**offers[s][i]._asdict(), "kl": summed[s][i], "bops": spent[s][i]} for s, i in chosen.items()},
    }
    return Fitted(final, qstate, {"joint": notes})


def _candidates(wide: Sequence[Quantizer | None], o: Operand, groups: Sequence[int]) -> list[Quantizer]:
    """The operand's quantisers at every width, and of those in groups with every number of groups."""
    assert all(q is not None for q in wide), f"{o.address} is float at some widths"
    if not isinstance(wide[0], Grouped):
        return [q for q in wide if q is not None]
    return [q for w in wide if isinstance(w, Grouped) for q in grouped_as(w, groups, o, max(groups))]


def _offer(q: Quantizer) -> Offer:
    return Offer(q.bits, q.groups if isinstance(q, Grouped) else None)


def _offers(addresses: Sequence[str], candidates: Mapping[str, Sequence[Quantizer]]) -> list[Offer]:
    """Those of the operand in groups where there is one; a product has at most one."""
    return max(([_offer(q) for q in candidates[a]] for a in addresses), key=len)


def _index(at: Mapping[Offer, int], offer: Offer) -> int:
    return at[offer] if offer in at else at[Offer(offer.bits, None)]


def _of(loss: Mapping[str, Sequence[float]], at: Mapping[str, Any], address: str, offer: Offer) -> float:
    return loss[address][_index(at[address], offer)]


def _cost(both: tuple[Operand, Operand], plan: Plan) -> int:
    """Bit-operations of a product, an image."""
    return next(iter(costs({o.address: o for o in both}, plan, BETA).values())).bops


def _trimmed(q: Quantizer) -> Quantizer:
    return dataclasses.replace(q, capacity=None) if isinstance(q, Grouped) else q
