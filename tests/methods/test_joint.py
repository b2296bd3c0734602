"""Widths and groups of products under one budget: against brute force."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.accounting import costs
from jvq.core.recipe import resolve, sites
from jvq.methods import igq
from jvq.models import build
from jvq.quantizers import Grouped

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
OPTIONS = igq.Options(
    bits=4,
    groups=4,
    mstep="mean",
    start="quantile",
    iterations=5,
    qkv_range="max",
    weight_range="max",
    allocation="bops",
    allocation_widths=(5, 3),
    candidates=(2, 6),
)


@pytest.fixture(scope="module")
def fitted():
    model, rng = build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), model.shapes())
    images = rng.normal(size=(6, 8, 8, 1)).astype(np.float32)
    known = sites(model.forward, params, model.image)
    plan = resolve(igq.recipe(OPTIONS, known), known)
    journal = {}
    return known, plan, igq.fit(OPTIONS, model.forward, params, images, plan, known, journal=journal), journal


def inner(known):
    return {o.site: None for o in known.values() if o.site not in ("patch", "head")}


def test_products_have_one_width_and_edges_keep_theirs(fitted):
    known, plan, fit, _ = fitted
    assert list(fit.plan) == list(plan)
    for address, q in fit.plan.items():
        site = known[address].site
        if site in ("patch", "head"):
            assert q == plan[address]
            continue
        assert q.bits == fit.notes["joint"]["sites"][site]["bits"]
        assert q.bits in (3, 5)
        assert fit.qstate[address]["levels"] == 2**q.bits - 1
        if isinstance(q, Grouped):
            assert q.groups == fit.notes["joint"]["sites"][site]["groups"]
            assert q.groups in (2, 6)
            assert q.capacity is None
            assert len(fit.qstate[address]["scale"]) == q.groups
        else:
            assert dataclasses.replace(q, bits=4) == plan[address]


def test_the_choice_is_the_best_of_all_within_the_budget(fitted):
    known, plan, fit, journal = fitted
    notes = fit.notes["joint"]
    losses = {key.split()[0]: np.asarray(sums) / 6 for key, sums in journal.items()}  # 6 images
    fixed = costs(known, plan)
    assert notes["limit"] == sum(fixed[s].bops for s in inner(known))
    tables = []
    for site in inner(known):
        mine = [o for o in known.values() if o.site == site]
        grouped = any(isinstance(plan[o.address], Grouped) for o in mine)
        table = []
        for i, (bits, groups) in enumerate(itertools.product((3, 5), (2, 6) if grouped else (None,))):
            loss, changed = 0.0, {}
            for o in mine:
                q = dataclasses.replace(plan[o.address], bits=bits)
                is_grouped = isinstance(q, Grouped)
                changed[o.address] = dataclasses.replace(q, groups=groups) if is_grouped else q
                loss += losses[o.address][i if is_grouped or not grouped else (3, 5).index(bits)]
            table.append((loss, costs({o.address: o for o in mine}, changed)[site].bops))
        tables.append(table)
    fitting = (c for c in itertools.product(*tables) if sum(bops for _, bops in c) <= notes["limit"])
    best = min(sum(loss for loss, _ in c) for c in fitting)
    assert notes["kl"] == pytest.approx(best, rel=1e-6)
    assert notes["spent"] <= notes["limit"]
    assert notes["spent"] == sum(costs(known, fit.plan)[s].bops for s in inner(known))


def test_what_it_cannot_be_combined_with_is_named():
    with pytest.raises(ValueError, match=r"allocation_widths needs method\.allocation 'bops'"):
        igq.Options(allocation_widths=(3, 4))
    with pytest.raises(ValueError, match="allocation_widths: got .* from 1 to 16"):
        igq.Options(allocation="bops", allocation_widths=(0, 4))


def test_operands_that_a_rule_changed_stay(fitted):
    known, plan, _, _ = fitted
    model = build("vit", SPEC)
    params = jax.tree.map(lambda s: jnp.ones(s.shape, jnp.float32), model.shapes())
    plan = plan | {"block00/mlp/fc1.w": dataclasses.replace(plan["block00/mlp/fc1.w"], bits=7)}
    images = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)
    changed = igq.fit(OPTIONS, model.forward, params, images, plan, known)
    assert changed.plan["block00/mlp/fc1.w"].bits == 7
    assert changed.notes["joint"]["spent"] <= changed.notes["joint"]["limit"]
