"""Numbers of groups under a budget (IGQ-ViT, eqs. 9-10; spec 4, 8.21-24): against brute force and the spec's sums."""

import dataclasses
import itertools
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from jvq.accounting import costs, total
from jvq.core.calibrate import calibrate
from jvq.core.dot import quantized
from jvq.core.recipe import resolve, sites
from jvq.methods import igq
from jvq.methods.allocation import rises
from jvq.models import build
from jvq.quantizers import Grouped, Uniform

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
WIDTHS = {"attn/qkv": (16, 48), "attn/proj": (16, 16), "mlp/fc1": (16, 64), "mlp/fc2": (64, 16)}  # in, out
LINEAR = {f"block00/{op}.x": sizes for op, sizes in WIDTHS.items()}
MAPS = "block00/attn/pv.p"  # 2 heads, 5 x 5 tokens: 10 rows
CANDIDATES = {a: [2, 4, 12] for a in LINEAR} | {MAPS: [2, 4]}  # 12 are more than there are rows
OPTIONS = igq.Options(
    bits=3,
    weight_bits=32,
    qkv="float",
    groups=4,
    softmax_groups=2,
    mstep="mean",
    start="quantile",
    iterations=5,
    candidates=(12, 2, 4, 4),
)


def work(address: str, groups: int) -> int:
    """Run-time work of a grouped operand, in bit-operations, as spec 2.6 has it: beta = 16, N = 5 tokens."""
    beta, n, heads = 16, 5, 2
    if address == MAPS:
        return beta * heads * n**2 + beta * heads * n * groups
    c, d = LINEAR[address]
    return 2 * beta * n * c + c * groups * (2 * beta + 2 * beta**2 + beta) + beta * (groups - 1) * n * d


PRICES = {"bops": work, "mean_groups": lambda _, groups: groups}


@pytest.fixture(scope="module")
def tiny():
    """``forward params images known`` of a ViT of one block with random weights, and four images."""
    model, rng = build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.5, s.shape), jnp.float32), model.shapes())
    images = rng.normal(size=(4, *model.image)).astype(np.float32)
    return SimpleNamespace(
        forward=model.forward, params=params, images=images, known=sites(model.forward, params, model.image)
    )


def planned(tiny, options):
    return resolve(igq.recipe(options, tiny.known), tiny.known)


def fit(tiny, journal=None, forward=None, **changes):
    options = dataclasses.replace(OPTIONS, **changes)
    plan = planned(tiny, options)
    return igq.fit(options, forward or tiny.forward, tiny.params, tiny.images, plan, tiny.known, journal=journal)


@pytest.fixture(scope="module")
def journal():
    """What measuring with the rest float found; both budgets share it."""
    return {}


@pytest.fixture(scope="module")
def fits(tiny, journal):
    """By budget and rest."""
    return {
        ("bops", "float"): fit(tiny, journal, allocation="bops"),
        ("mean_groups", "float"): fit(tiny, journal, allocation="mean_groups"),
        ("bops", "quantized"): fit(tiny, allocation="bops", allocation_rest="quantized"),
    }


EACH = pytest.mark.parametrize(
    "case", [("bops", "float"), ("mean_groups", "float"), ("bops", "quantized")], ids="-".join
)


def groups_of(fitted) -> dict[str, int]:
    return {a: q.groups for a, q in fitted.plan.items() if isinstance(q, Grouped)}


def best(budget, loss, limit):
    """The least sum of losses, by trying everything."""
    reached = np.inf
    for pick in itertools.product(*(range(len(row)) for row in loss.values())):
        if sum(PRICES[budget](a, CANDIDATES[a][i]) for a, i in zip(loss, pick, strict=True)) <= limit:
            reached = min(reached, sum(row[i] for row, i in zip(loss.values(), pick, strict=True)))
    return reached


@EACH
def test_every_operand_in_groups_gets_one_of_the_candidates_and_nothing_else_changes(case, fits, tiny):
    """Spec 8.21. A candidate larger than the number of indices is left out."""
    fitted, before = fits[case], planned(tiny, OPTIONS)
    found = groups_of(fitted)
    assert found.keys() == CANDIDATES.keys()
    assert all(g in CANDIDATES[a] for a, g in found.items())
    want = {a: dataclasses.replace(q, groups=found[a]) if a in found else q for a, q in before.items()}
    assert dict(fitted.plan) == want
    assert list(fitted.plan) == list(before)


@EACH
def test_the_notes_say_what_was_chosen_from_what(case, fits):
    notes = fits[case].notes["allocation"]
    chosen = groups_of(fits[case])
    assert notes["budget"] == case[0]
    assert {a: site["candidates"] for a, site in notes["sites"].items()} == CANDIDATES
    assert {a: site["groups"] for a, site in notes["sites"].items()} == chosen
    assert notes["mean_groups"] == np.mean([*chosen.values()])
    at = {a: CANDIDATES[a].index(g) for a, g in chosen.items()}
    np.testing.assert_allclose(notes["kl"], sum(site["kl"][at[a]] for a, site in notes["sites"].items()), rtol=1e-12)
    rows, groups = ({a: site[name] for a, site in notes["sites"].items()} for name in ("kl", "candidates"))
    assert fits[case].notes["warnings"] == rises(rows, groups)
    assert json.loads(json.dumps(fits[case].notes)) == fits[case].notes


@EACH
def test_costs_are_the_specs_and_what_is_spent_is_within_the_limit(case, fits, tiny):
    """Spec 2.6, 8.21: the budget is what the fixed numbers cost; in bit-operations as the plan's accounting has it."""
    notes, price = fits[case].notes["allocation"], PRICES[case[0]]
    assert {a: site["cost"] for a, site in notes["sites"].items()} == {
        a: [price(a, g) for g in row] for a, row in CANDIDATES.items()
    }
    assert notes["limit"] == price(MAPS, 2) + sum(price(a, 4) for a in LINEAR)
    assert notes["spent"] == sum(price(a, g) for a, g in groups_of(fits[case]).items()) <= notes["limit"]
    if case[0] == "bops":
        assert notes["spent"] == total(costs(tiny.known, fits[case].plan)).overhead.total
        assert notes["limit"] == total(costs(tiny.known, planned(tiny, OPTIONS))).overhead.total
    else:
        assert notes["mean_groups"] <= np.mean([4, 4, 4, 4, 2])


@EACH
def test_the_choice_is_the_optimum_and_no_worse_than_the_fixed_numbers(case, fits):
    """Spec 8.21-22."""
    notes = fits[case].notes["allocation"]
    loss = {a: site["kl"] for a, site in notes["sites"].items()}
    np.testing.assert_allclose(notes["kl"], best(case[0], loss, notes["limit"]), rtol=1e-6)
    assert notes["kl"] <= loss[MAPS][0] + sum(loss[a][1] for a in LINEAR)


@pytest.mark.parametrize(("budget", "groups"), [("bops", 5), ("mean_groups", 4), ("mean_groups", 7)])
def test_any_losses_are_balanced_against_the_budget(budget, groups, tiny, journal, fits):
    """The optimum of losses that the journal makes up, under fixed numbers that need not be candidates."""
    rng = np.random.default_rng(groups)
    made_up = {key: rng.exponential(size=len(row)).tolist() for key, row in journal.items()}
    fitted = fit(tiny, made_up, allocation=budget, groups=groups, softmax_groups=None)
    notes = fitted.notes["allocation"]
    loss = {key.split()[0]: np.array(row) / 4 for key, row in made_up.items()}
    limit = sum(PRICES[budget](a, groups) for a in CANDIDATES)
    assert notes["limit"] == limit
    assert {a: site["kl"] for a, site in notes["sites"].items()} == {a: row.tolist() for a, row in loss.items()}
    np.testing.assert_allclose(notes["kl"], best(budget, loss, limit), rtol=1e-6)
    chosen = {a: CANDIDATES[a].index(g) for a, g in groups_of(fitted).items()}
    np.testing.assert_allclose(sum(loss[a][i] for a, i in chosen.items()), notes["kl"], rtol=1e-12)
    assert len(set(groups_of(fitted).values())) > 1


def test_the_states_are_those_of_calibrating_the_final_plan(fits, tiny):
    """Spec 4: after allocation each site has its own number of groups, without the padding of the search."""
    fitted, before = fits["bops", "quantized"], planned(tiny, OPTIONS)
    changed = next((a for a in LINEAR if fitted.plan[a] != before[a]), next(iter(LINEAR)))
    some = {a: fitted.plan[a] for a in (changed, MAPS, "head.x", "head.w")}
    for a, state in calibrate(tiny.forward, tiny.params, tiny.images, some, tiny.known).items():
        assert state.keys() == fitted.qstate[a].keys()
        for name, x in state.items():
            np.testing.assert_allclose(fitted.qstate[a][name], x, rtol=1e-5, atol=1e-6, err_msg=f"{a} {name}")


@EACH
def test_the_states_are_as_long_as_there_are_groups(case, fits):
    fitted = fits[case]
    assert list(fitted.qstate) == list(fitted.plan)
    for a, g in groups_of(fitted).items():
        shapes = {name: x.shape for name, x in fitted.qstate[a].items()}
        assert shapes == {"lower": (g,), "upper": (g,), "scale": (g,), "zero": (g,), "levels": ()}
        assert all(np.isfinite(x).all() for x in fitted.qstate[a].values())


@dataclasses.dataclass(frozen=True)
class Switched(Uniform):
    """Does what ``inner`` does where the state is ``on``."""

    inner: Any = None

    def apply(self, state, x, letters):
        return jnp.where(state["on"], self.inner.apply(state, x, letters), x)


@pytest.fixture(scope="module")
def oracle(tiny):
    """``oracle(address, groups, base)``: the divergence of the operand alone, or in the fixed plan's activations."""
    plan = {a: q for a, q in planned(tiny, OPTIONS).items() if tiny.known[a].path is None}
    states = {}
    for g in (2, 4, 12):
        changes = {a: {"groups": g if g in CANDIDATES[a] else 2, "capacity": 12} for a in CANDIDATES}
        at = {a: dataclasses.replace(q, **changes.get(a, {})) for a, q in plan.items()}
        found = calibrate(tiny.forward, tiny.params, tiny.images, at, tiny.known)
        states |= {(a, q.groups): found[a] for a, q in at.items() if isinstance(q, Grouped)}
    fixed = {a: states[a, q.groups] if isinstance(q, Grouped) else found[a] for a, q in plan.items()}
    switches = {a: Switched(inner=q) for a, q in plan.items()}
    logits = jax.jit(lambda s: tiny.forward(tiny.params, tiny.images, quantized(switches, s)))

    def log_p(base, **changed):
        states = {a: {**s, "on": base} for a, s in fixed.items()}
        return log_softmax(np.asarray(logits(states | changed), np.float64), axis=-1)

    def measure(address, groups, base):
        p, q = log_p(False), log_p(base, **{address: {**states[address, groups], "on": True}})
        return float(rel_entr(np.exp(p), np.exp(q)).sum(axis=-1).mean())

    return measure


@pytest.mark.parametrize("rest", ["float", "quantized"])
def test_losses_are_what_the_operand_alone_does_to_predictions(rest, fits, oracle):
    """Eq. 9; with ``quantized`` all activations of the fixed plan are, weights are not (spec 7.12, 7.16)."""
    for a, site in fits["bops", rest].notes["allocation"]["sites"].items():
        want = [oracle(a, g, rest == "quantized") for g in CANDIDATES[a]]
        np.testing.assert_allclose(site["kl"], want, rtol=2e-3, err_msg=a)


def test_with_the_rest_quantised_the_fixed_number_is_one_model_whichever_operand_is_looked_at(fits):
    sites = fits["bops", "quantized"].notes["allocation"]["sites"]
    same = [site["kl"][0 if a == MAPS else 1] for a, site in sites.items()]
    np.testing.assert_allclose(same, same[0], rtol=1e-4)


def test_the_same_options_give_the_same_result(fits, tiny):
    """Spec 8.8: nothing of the first fit is taken over."""
    again, first = fit(tiny, allocation="bops"), fits["bops", "float"]
    assert again.plan == first.plan
    assert again.notes == first.notes
    jax.tree.map(np.testing.assert_array_equal, again.qstate, first.qstate)


def never(*_):
    raise AssertionError("nothing is to be computed")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidates": (12, 24)}, r"method\.candidates: the least is 12, but block00/attn/pv\.p has only 10 indices"),
        ({"candidates": (40,)}, r"method\.candidates: the least is 40, but block00/attn/qkv\.x has only 16 indices"),
        ({"linear": "layer", "softmax": "layer"}, "method.allocation: no operand is quantised in groups"),
        ({"linear": "float", "act_bits": 32}, "method.allocation: no operand is quantised in groups"),
    ],
)
@pytest.mark.parametrize("budget", ["bops", "mean_groups"])
def test_what_cannot_be_allocated_is_said_before_anything_is_computed(changes, said, budget, tiny):
    with pytest.raises(ValueError, match=said):
        fit(tiny, forward=never, allocation=budget, **changes)


def test_a_budget_below_the_cheapest_candidates_is_refused_before_anything_is_computed(tiny):
    """4 groups each, where the fixed numbers are 4, 4, 4, 4 and 2."""
    with pytest.raises(ValueError, match="the cheapest candidates cost 20, more than the budget of 18"):
        fit(tiny, forward=never, allocation="mean_groups", candidates=(4, 12))


@pytest.mark.parametrize("other", ["sequential", "upper_bound"])
@pytest.mark.parametrize("budget", ["bops", "mean_groups"])
def test_allocation_needs_parallel_calibration_of_groups(budget, other):
    with pytest.raises(ValueError, match=rf"method\.allocation: '{budget}' cannot be used with method\.{other}"):
        igq.Options(allocation=budget, **{other: True})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"candidates": ()}, r"method\.candidates: got \(\), must be numbers of groups, at least one"),
        ({"candidates": (4, 0)}, r"method\.candidates: got \(4, 0\)"),
    ],
)
def test_options_that_are_none_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        igq.Options(**changes)


def test_shown_beside_it_is_the_fixed_number_of_groups():
    """The paper's dagger, and the bound that no number of groups passes."""
    options = igq.Options(bits=3, groups=5, allocation="mean_groups", candidates=(2, 9), allocation_rest="quantized")
    rows = igq.baselines(options)
    assert list(rows) == ["igq_fixed", "minmax", "igq_upper_bound"]
    assert rows["igq_fixed"] == ("igq", dataclasses.replace(options, allocation="none"))
    bound = rows["igq_upper_bound"][1]
    assert bound.upper_bound
    assert bound.allocation == "none"
    assert not igq.calibrates(options)
    assert igq.calibrates(rows["igq_fixed"][1])


def test_the_protocol_says_how_the_numbers_were_found():
    said = {
        igq.protocol(igq.Options(allocation=budget, allocation_rest=rest))["number of groups"]
        for budget in ("bops", "mean_groups")
        for rest in ("float", "quantized")
    }
    assert len(said) == 4
    assert igq.protocol(igq.Options())["number of groups"] == "fixed"


def test_no_warning_where_more_groups_never_hurt():
    assert rises({"a.x": [3.0, 2.0, 2.0], "b.x": [1.0]}, {"a.x": [1, 2, 4], "b.x": [4]}) == []


def test_more_groups_that_hurt_are_counted_and_the_worst_is_named():
    """Spec 4: raw values are kept, violations are said."""
    loss = {"a.x": [3e-2, 3.5e-2, 2e-2], "b.x": [1e-2, 4e-2, 5e-2], "c.p": [1.0]}
    (text,) = rises(loss, {"a.x": [2, 4, 8], "b.x": [2, 6, 9], "c.p": [2]})
    assert text.startswith("more groups cause a larger divergence in 3 of 4 steps ")
    assert text.endswith("; the largest: b.x, 2 to 6 groups: 1.00e-02 to 4.00e-02")
