"""Choosing one candidate a site under a budget: an integer linear program (IGQ-ViT, eq. 10), solved exactly."""

from collections.abc import Sequence

import numpy as np

Table = Sequence[Sequence[float] | Sequence[int] | np.ndarray] | np.ndarray
"""[site][candidate], sites perhaps of different lengths."""


def choose(loss: Table, cost: Table, budget: float | int) -> list[int]:
    """For each site the index of its candidate: least sum of losses among the choices that cost at most ``budget``.

    ``loss[l][g]`` and ``cost[l][g]`` belong to candidate g of site l; sites may have different numbers of candidates.
    Raises ``ValueError`` where the cheapest choice costs more than the budget, or a number is not finite.
    """
    losses, costs = ([np.asarray(row, np.float64) for row in table] for table in (loss, cost))
    assert [len(row) for row in losses] == [len(row) for row in costs]
    if not all(len(row) and np.isfinite(row).all() for row in (*losses, *costs)):
        raise ValueError("allocation: a site without candidates, or with a loss or a cost that is not finite")
    if not losses:
        return []
    check(costs, budget)
    chosen = _solved(losses, costs, budget)
    spent = sum(row[i] for row, i in zip(costs, chosen, strict=True))
    assert spent <= budget, f"{spent} spent of {budget}"
    return chosen


def check(cost: Table, budget: float | int) -> None:
    """Raises ``ValueError`` where the cheapest choice costs more than the budget."""
    least = sum(min(row) for row in cost)
    if least > budget:
        raise ValueError(f"allocation: the cheapest candidates cost {least:.6g}, more than the budget of {budget:.6g}")


def _solved(losses: list[np.ndarray], costs: list[np.ndarray], budget: float | int) -> list[int]:
    """The program's solution by HiGHS, whose tolerances are absolute (1e-6): costs are scaled to 1, losses to 1e4."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    site = np.repeat(np.arange(len(losses)), [len(row) for row in losses])
    every = np.arange(len(site))
    once = csr_array((np.ones(len(site)), (site, every)))
    spare = [row - row.min() for row in costs]  # above the cheapest candidate
    left = budget - sum(row.min() for row in costs)
    worth = [row - row.min() for row in losses]
    unit = max(max(row.max() for row in spare), 1e-300)
    scale = max(max(row.max() for row in worth), 1e-300)
    rules = [LinearConstraint(once, 1, 1), LinearConstraint(np.concatenate(spare)[None] / unit, -np.inf, left / unit)]
    options = {"mip_rel_gap": 0.0}
    found = milp(
        np.concatenate(worth) / scale * 1e4, integrality=1, bounds=Bounds(0, 1), constraints=rules, options=options
    )
    assert found.success, found.message
    ends = np.cumsum([len(row) for row in losses])[:-1]
    return [int(part.argmax()) for part in np.split(found.x, ends)]
