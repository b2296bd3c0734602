"""One candidate of every module under a size: exact, by dynamic programming (Liu et al. 2021, section 3.3).

Sizes are whole numbers with a large common divisor (parameters times bits), so that the table is small; it holds the
best choice of every budget at once, which is the front of sensitivity against size.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CELLS = 2**26  #: of the table; more is not a problem of this kind


class Choice(NamedTuple):
    """One candidate a module."""

    size: int
    loss: float
    chosen: tuple[int, ...]  # index of each module's candidate


def front(loss: Sequence[Sequence[float]], size: Sequence[Sequence[int]]) -> list[Choice]:
    """Choices of which none is at most as large as another with at most its loss; the smallest first.

    ``loss[i][j]`` and ``size[i][j]`` belong to candidate j of module i. Of equal losses and sizes the choice that comes
    first in lexicographic order. Raises ``ValueError`` where a loss is not finite or a size is negative.
    """
    if not loss:
        return [Choice(0, 0.0, ())]
    assert [len(row) for row in loss] == [len(row) for row in size]
    assert all(map(len, loss))
    if not all(math.isfinite(x) for row in loss for x in row):
        raise ValueError("mixed precision: a sensitivity is not finite")
    if any(s < 0 for row in size for s in row):
        raise ValueError("mixed precision: a size is negative")
    unit = math.gcd(*(s for row in size for s in row)) or 1
    sizes = [[s // unit for s in row] for row in size]
    cells = 1 + sum(max(row) for row in sizes)
    if cells * len(loss) > CELLS:
        raise ValueError(f"mixed precision: sizes share no divisor above {unit}: a table of {cells} x {len(loss)}")
    best = np.full(cells, np.inf)  # of the modules behind, least loss at exactly that size
    best[0] = 0.0
    picks = []
    for losses, needs in zip(reversed(loss), reversed(sizes), strict=True):
        with_each = np.full((len(losses), cells), np.inf)
        for j, (x, s) in enumerate(zip(losses, needs, strict=True)):
            with_each[j, s:] = best[: cells - s] + x
        picks.append(with_each.argmin(axis=0))  # the first of equals
        best = with_each.min(axis=0)
    found: list[Choice] = []
    for total in np.flatnonzero(np.isfinite(best)):
        if not found or best[total] < found[-1].loss:
            chosen, left = [], int(total)
            for pick, needs in zip(reversed(picks), sizes, strict=True):
                chosen.append(int(pick[left]))
                left -= needs[chosen[-1]]
            found.append(Choice(int(total) * unit, float(best[total]), tuple(chosen)))
    return found


def knapsack(loss: Sequence[Sequence[float]], size: Sequence[Sequence[int]], budget: float) -> Choice:
    """The choice of least summed loss whose size is at most ``budget``; of several the smallest.

    Raises ``ValueError`` where even the smallest candidates are larger.
    """
    return within(front(loss, size), budget)


def within(choices: Sequence[Choice], budget: float) -> Choice:
    """The best choice of a front at that budget."""
    fitting = [choice for choice in choices if choice.size <= budget]
    if not fitting:
        raise ValueError(
            f"mixed precision: the smallest candidates take {choices[0].size:,}, more than the budget of {budget:,.0f}"
        )
    return fitting[-1]
