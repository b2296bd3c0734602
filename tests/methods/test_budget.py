"""The exact choice under a budget against brute force."""

import itertools

import numpy as np
import pytest

from jvq.methods.budget import choose


def brute(loss, cost, budget):
    """The least sum of losses over all choices within the budget."""
    kept = [
        sum(row[i] for row, i in zip(loss, pick, strict=True))
        for pick in itertools.product(*(range(len(row)) for row in loss))
        if sum(row[i] for row, i in zip(cost, pick, strict=True)) <= budget
    ]
    return min(kept, default=None)


def total(table, pick):
    return sum(row[i] for row, i in zip(table, pick, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_optimum_by_brute_force(seed):
    """Spec 8.22; losses need not fall with the cost."""
    rng = np.random.default_rng(seed)
    sites = int(rng.integers(1, 7))
    loss = [rng.exponential(size=rng.integers(1, 5)) * 10.0 ** rng.integers(-9, 3) for _ in range(sites)]
    cost = [rng.integers(1, 10**9, len(row)) for row in loss]
    least, most = (sum(f(row) for row in cost) for f in (min, max))
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        budget = float(least) + share * (most - least)
        pick = choose(loss, cost, budget)
        assert total(cost, pick) <= budget
        np.testing.assert_allclose(total(loss, pick), brute(loss, cost, budget), rtol=1e-6)


def test_all_the_money_buys_the_least_loss_and_none_the_cheapest():
    """Spec 8.23."""
    rng = np.random.default_rng(1)
    loss, cost = rng.exponential(size=(123, 9)), np.arange(1, 10) * rng.integers(1, 99, (123, 1))
    assert choose(loss, cost, float(cost.sum())) == loss.argmin(axis=1).tolist()
    assert choose(loss, cost, float(cost[:, 0].sum())) == [0] * 123


def test_a_larger_budget_never_costs_more_loss():
    """Spec 8.23, at the size of Swin-B: 123 sites, nine candidates."""
    rng = np.random.default_rng(2)
    loss, cost = np.sort(rng.exponential(size=(123, 9)))[:, ::-1], np.sort(rng.integers(1, 10**10, (123, 9)))
    budgets = np.linspace(cost[:, 0].sum(), cost[:, -1].sum(), 7)
    reached = [total(loss, choose(loss, cost, budget)) for budget in budgets]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(reached))


def test_a_feasible_choice_is_never_better():
    """Spec 8.21."""
    rng = np.random.default_rng(3)
    loss, cost = rng.exponential(size=(60, 9)), np.sort(rng.integers(1, 1000, (60, 9)))
    for uniform in range(9):
        pick = choose(loss, cost, float(cost[:, uniform].sum()))
        assert total(loss, pick) <= loss[:, uniform].sum() * (1 + 1e-9)


def test_no_sites_no_choice():
    assert choose([], [], 0) == []


@pytest.mark.parametrize(
    ("loss", "cost", "said"),
    [
        ([[1.0]], [[5.0]], "cheapest candidates cost 5, more than the budget of 4"),
        ([[np.nan, 1.0]], [[1.0, 2.0]], "not finite"),
        ([[]], [[]], "without candidates"),
    ],
)
def test_what_cannot_be_chosen_is_said(loss, cost, said):
    with pytest.raises(ValueError, match=said):
        choose(loss, cost, 4.0)
