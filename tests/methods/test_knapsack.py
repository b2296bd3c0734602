"""Exact choices under a size against brute force, and the sizes that Liu et al. 2021 report (spec 5.3, 5.5, 9.5)."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest

from jvq.core.calibrate import Fitted
from jvq.methods import knapsack as exact
from jvq.methods import mixed as mixing
from jvq.methods.intervals import Settings
from jvq.methods.knapsack import Choice, front, within
from jvq.methods.mixed import MixedSettings, mixed
from jvq.methods.nuclear import Module
from jvq.quantizers import Uniform

UNITS = [1, 2, 1, 2]
BITS = [4, 6, 8]
OMEGA = [[8.0, 2.0, 0.5], [4.0, 1.0, 0.25], [16.0, 4.0, 1.0], [1.0, 0.25, 0.06]]


def knapsack(loss, size, budget):
    return exact.knapsack(loss, size, float(budget))


def sizes(units, bits):
    return [[b * unit for b in bits] for unit in units]


def total(table, chosen):
    return sum(row[j] for row, j in zip(table, chosen, strict=True))


def every(loss, size):
    """All choices as (loss, size, chosen), the best first: of equal losses the smaller, then the first in order."""
    picks = itertools.product(*(range(len(row)) for row in loss))
    return sorted((total(loss, p), total(size, p), p) for p in picks)


def brute(loss, size, budget):
    return next((Choice(s, x, p) for x, s, p in every(loss, size) if s <= budget), None)


def budgets(size):
    """From below the least size to above the greatest, each."""
    return range(sum(map(min, size)) - 1, sum(map(max, size)) + 2)


def instance(seed, ties=False):
    """Up to six modules of up to five candidates in any order, losses that need not fall with the size."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, rng.integers(1, 7))
    size = [rng.integers(0, 9, n).tolist() for n in lengths]
    draw = (lambda n: rng.integers(0, 3, n).astype(float)) if ties else rng.exponential
    return [(draw(n) if ties else draw(size=n)).tolist() for n in lengths], size


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_it_is_brute_force_at_every_budget(seed, ties):
    """M3; whole losses make ties, of which the smaller size is taken, then the first in lexicographic order."""
    loss, size = instance(seed, ties)
    ranked = every(loss, size)
    choices = front(loss, size)
    least, *fitting = budgets(size)
    with pytest.raises(ValueError, match="the smallest candidates take"):
        knapsack(loss, size, least)
    for budget in fitting:
        want = next(Choice(s, x, p) for x, s, p in ranked if s <= budget)
        for got in (knapsack(loss, size, budget), within(choices, float(budget))):
            assert (got.chosen, got.size) == (want.chosen, want.size)
            assert math.isclose(got.loss, want.loss, rel_tol=1e-12)


def test_random_instances_have_ties():
    """What the test above is about: equal losses of several sizes, and several choices of equal loss and size."""
    tables = [every(*instance(seed, ties=True)) for seed in range(40)]
    best = [[(s, p) for x, s, p in table if x == table[0][0]] for table in tables]
    assert sum(len({s for s, _ in ties}) > 1 for ties in best) > 10
    assert sum(len(ties) > len({s for s, _ in ties}) for ties in best) > 5


@pytest.mark.parametrize(("loss", "size", "budget", "want"), [
    ([[1.0, 1.0]], [[5, 3]], 6, (1,)),  # the smaller
    ([[2.0, 1.0], [1.0, 2.0]], [[3, 3], [3, 3]], 6, (1, 0)),  # the better
    ([[2.0, 1.0], [2.0, 1.0]], [[1, 2], [1, 2]], 3, (0, 1)),  # equal sums: the first module keeps its first candidate
    ([[1.0, 1.0], [1.0, 1.0]], [[3, 3], [3, 3]], 6, (0, 0)),
])  # fmt: skip
def test_ties_by_hand(loss, size, budget, want):
    assert knapsack(loss, size, budget).chosen == want


@pytest.mark.parametrize(("budget", "omega", "bits", "size"), [
    (36, 3.5, (8, 6, 8, 4), 36),
    (35, 5.0, (6, 6, 8, 4), 34),
])  # fmt: skip
def test_the_golden_choices(budget, omega, bits, size):
    """M4."""
    got = knapsack(OMEGA, sizes(UNITS, BITS), budget)
    assert got == brute(OMEGA, sizes(UNITS, BITS), budget)
    assert (got.loss, got.size, tuple(BITS[j] for j in got.chosen)) == (omega, size, bits)


def test_a_budget_below_the_least_size_is_an_error_that_says_both():
    """M4."""
    assert knapsack(OMEGA, sizes(UNITS, BITS), 24) == Choice(24, 29.0, (0, 0, 0, 0))
    with pytest.raises(ValueError, match="the smallest candidates take 24, more than the budget of 23"):
        knapsack(OMEGA, sizes(UNITS, BITS), 23)


def test_a_budget_need_not_be_whole():
    """A part of a size by which it may be exceeded makes it a fraction."""
    table = sizes(UNITS, BITS)
    assert knapsack(OMEGA, table, 35.99) == knapsack(OMEGA, table, 35)
    assert knapsack(OMEGA, table, 36.01) == knapsack(OMEGA, table, 36)


def model(seed, modules=12, bits=(4, 5, 6, 7, 8)):
    """Sensitivities that fall with the width, and the sizes of attention and MLP in turn, as a transformer has them."""
    rng = np.random.default_rng(seed)
    base = 10.0 ** rng.uniform(-2, 2, modules)
    loss = [[float(x * 4.0**-b * rng.uniform(0.7, 1.3)) for b in bits] for x in base]
    return [sorted(row, reverse=True) for row in loss], sizes([4 * 192**2 * (1 + i % 2) for i in range(modules)], bits)


@pytest.mark.parametrize("seed", range(3))
def test_more_budget_never_costs_more_and_no_choice_is_larger_than_its_budget(seed):
    """M5."""
    loss, size = model(seed)
    tried = np.linspace(sum(map(min, size)), 1.1 * sum(map(max, size)), 60)
    got = [knapsack(loss, size, budget) for budget in tried]
    assert all(choice.size <= budget for choice, budget in zip(got, tried, strict=True))
    assert all(b.loss <= a.loss for a, b in itertools.pairwise(got))
    assert len({choice.loss for choice in got}) > 30
    assert got[-1].chosen == (4,) * 12


@pytest.mark.parametrize("seed", range(3))
def test_it_is_at_least_as_good_as_equal_widths_of_its_size(seed):
    """M5."""
    loss, size = model(seed)
    for j in range(5):
        uniform = total(loss, [j] * 12)
        got = knapsack(loss, size, total(size, [j] * 12))
        assert got.loss <= uniform * (1 + 1e-12)
        assert j in (0, 4) or got.loss < uniform


@pytest.mark.parametrize("seed", range(3))
def test_no_point_of_the_front_dominates_another_and_each_is_what_it_says(seed):
    """M5."""
    loss, size = model(seed)
    choices = front(loss, size)
    assert len(choices) > 30
    for a, b in itertools.pairwise(choices):
        assert a.size < b.size
        assert a.loss > b.loss
    for choice in choices:
        assert choice.size == total(size, choice.chosen)
        assert math.isclose(choice.loss, total(loss, choice.chosen), rel_tol=1e-9)
        assert knapsack(loss, size, choice.size) == choice
    for a, b in itertools.pairwise(choices):
        assert knapsack(loss, size, b.size - 1) == a
    assert choices[0].size == total(size, [0] * 12)


def test_the_front_is_all_that_nothing_dominates():
    loss, size = instance(7)
    want, least = [], math.inf
    for x, s, p in sorted(every(loss, size), key=lambda c: (c[1], c[0], c[2])):
        if x < least - 1e-12:
            want.append((s, p))
            least = x
    assert [(c.size, c.chosen) for c in front(loss, size)] == want
    assert len(want) > 3


@pytest.mark.parametrize("at", range(5))
def test_equal_convex_modules_get_equal_widths(at):
    """M6."""
    loss, size = [[4.0**-b for b in (4, 5, 6, 7, 8)]] * 6, sizes([7] * 6, (4, 5, 6, 7, 8))
    assert knapsack(loss, size, 6 * size[0][at]).chosen == (at,) * 6


def test_equal_modules_that_are_not_convex_need_not():
    """The last test can fail: where the first bit saves nothing, some have none and others two."""
    assert set(knapsack([[4.0, 3.9, 0.0]] * 2, sizes([1, 1], (4, 5, 6)), 10).chosen) == {0, 2}


def test_a_module_twice_as_sensitive_never_gets_fewer_bits():
    """M8; at every budget of thirty instances, and sometimes it gets more."""
    rng, bits, rose = np.random.default_rng(8), (2, 3, 4, 5, 6), 0
    for i in range(30):
        size = sizes(rng.integers(1, 4, 4).tolist(), bits)
        loss = [sorted(rng.choice(64, 5, replace=False).astype(float).tolist(), reverse=True) for _ in size]
        doubled = [[2 * x for x in row] if k == i % 4 else row for k, row in enumerate(loss)]
        fronts = front(loss, size), front(doubled, size)
        for budget in budgets(size)[1:]:
            before, after = (within(choices, float(budget)).chosen[i % 4] for choices in fronts)
            assert after >= before
            rose += after > before
    assert rose > 100


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sensitivity_that_is_not_finite_is_an_error(bad):
    with pytest.raises(ValueError, match="a sensitivity is not finite"):
        knapsack([[1.0, 0.5], [1.0, bad]], [[1, 2], [1, 2]], 4)


def test_a_negative_size_is_an_error():
    with pytest.raises(ValueError, match="a size is negative"):
        knapsack([[1.0, 0.5], [1.0, 0.5]], [[1, 2], [1, -2]], 4)


def test_no_modules_no_choice():
    assert front([], []) == [Choice(0, 0.0, ())]
    assert knapsack([], [], 0) == Choice(0, 0.0, ())


def test_modules_without_weights_take_nothing():
    assert knapsack([[2.0, 1.0], [3.0, 1.0]], [[0, 0], [0, 0]], 0) == Choice(0, 2.0, (1, 1))


def test_a_table_that_would_be_too_large_is_refused_at_once():
    """Sizes without a common divisor, as no transformer's modules have."""
    primes = [[1_000_000_007, 2_000_000_011], [1_000_000_009, 2_000_000_033]]
    with pytest.raises(ValueError, match="sizes share no divisor above 1: a table of .* x 2"):
        knapsack([[1.0, 0.5]] * 2, primes, 3e9)


def test_a_common_divisor_makes_the_largest_sizes_small():
    scaled = [[s * 10**12 for s in row] for row in sizes(UNITS, BITS)]
    assert knapsack(OMEGA, scaled, 36e12) == Choice(36 * 10**12, 3.5, (2, 1, 2, 0))
    assert knapsack(OMEGA, scaled, 36e12 - 1) == Choice(34 * 10**12, 5.0, (1, 1, 2, 0))


def test_a_large_model_is_chosen_for():
    """ViT-L: 48 modules, at least as well as by the greatest gain for its size."""
    loss, size = model(0, modules=48)
    budget = total(size, [2] * 48)
    got = knapsack(loss, size, budget)
    steps = ((i, k) for i in range(48) for k in range(4))
    gain = {(i, k): (loss[i][k] - loss[i][k + 1]) / (size[i][k + 1] - size[i][k]) for i, k in steps}
    at, left = [0] * 48, budget - total(size, [0] * 48)
    for i, k in sorted(gain, key=gain.get, reverse=True):  # the greatest gain for its size first
        if at[i] == k and size[i][k + 1] - size[i][k] <= left:
            left -= size[i][k + 1] - size[i][k]
            at[i] += 1
    assert left >= 0
    assert got.loss <= total(loss, at) * (1 + 1e-12) < total(loss, [2] * 48)
    assert math.isclose(got.loss, total(loss, got.chosen), rel_tol=1e-9)


@pytest.fixture
def chosen(monkeypatch):
    """``chosen(parameters, target, slack)``: the notes of a choice of widths for modules of so many weights."""

    def run(parameters, target, slack=0.0, omega=None):
        found = [Module(f"block{i:02d}/mlp", "mlp", (f"block{i:02d}/mlp/fc1.w",), n) for i, n in enumerate(parameters)]
        plan = {m.addresses[0]: Uniform(target, symmetric=True) for m in found}
        loss = {m.name: [4.0**-b for b in range(2, 17)] if omega is None else omega[i] for i, m in enumerate(found)}
        monkeypatch.setattr(mixing, "modules", lambda known: found)
        monkeypatch.setattr(mixing, "searched", lambda *args, **how: ({}, {}, {}))
        monkeypatch.setattr(mixing, "omegas", lambda *args, **how: (loss, dict.fromkeys(loss, 1.0)))
        monkeypatch.setattr(mixing, "fitted", lambda s, f, params, images, plan, known, **how: Fitted(plan, {}))
        candidates = tuple(range(2, 17)) if omega is None else (4, 6, 8)
        how = MixedSettings(target, candidates, slack, by="nuclear")
        fit = mixed(how, Settings(), lambda *_: None, {}, np.zeros((1, 8, 8, 1)), plan, {})
        return SimpleNamespace(plan=fit.plan, **fit.notes["mixed"])

    return run


PUBLISHED = {  # millions of parameters: megabytes by width
    86: {6: 64.5, 8: 86.0, 4: 43.0},
    22: {6: 16.5, 8: 22.0},
    307: {6: 230.25, 8: 307.0},
    41: {6: 30.75, 8: 41.0},
}


@pytest.mark.parametrize(("millions", "bits"), [(m, b) for m, row in PUBLISHED.items() for b in row])
def test_sizes_are_the_published_ones(millions, bits, chosen):
    """M7: parameters times bits / 8, in millions of bytes; 32 bits are four bytes each."""
    notes = chosen([millions * 10**6 // 2] * 2, bits)
    assert notes.size == notes.limit == PUBLISHED[millions][bits] * 1e6
    assert notes.equal[str(bits)][0] == PUBLISHED[millions][bits] * 1e6
    assert notes.equal["16"][0] * 2 == millions * 4e6


def test_the_budget_is_the_size_of_equal_widths_and_a_part_more(chosen):
    """M4's modules through the choice of widths: 6 bits everywhere are 36."""
    parameters = [u * 10**6 for u in UNITS]
    notes = chosen(parameters, 6, omega=OMEGA)
    assert (notes.limit, notes.size, notes.loss) == (36e6 / 8, 36e6 / 8, 3.5)
    assert [q.bits for q in notes.plan.values()] == [8, 6, 8, 4]
    assert [m["bits"] for m in notes.modules.values()] == [8, 6, 8, 4]
    more = chosen(parameters, 6, slack=0.12, omega=OMEGA)
    assert more.limit == pytest.approx(36e6 / 8 * 1.12)
    assert (more.size, more.loss) == (40e6 / 8, 2.75)
