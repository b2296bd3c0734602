"""Whether one row of a table is better than another: paired over the images, averaged over the calibration seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jvq.core.errors import nearest

RESAMPLES = 2000

Errors = Mapping[str, Float[np.ndarray, "s n"]]
"""By measure: errors of every seed and image, larger is worse."""


def parse(text: str, known: Sequence[str]) -> list[list[str]]:
    """``"minmax<igq_8<igq_12,mean<igq_8"`` as chains of rows from worse to better; ``ValueError`` for unknown names."""
    chains = [[name.strip() for name in chain.split("<")] for chain in text.split(",") if chain.strip()]
    for chain in chains:
        for name in chain:
            if name not in known:
                raise ValueError(f"config: order: there is no row '{name}'{nearest(name, known)}")
        if len(chain) < 2:
            raise ValueError(f"config: order: '{chain[0]}' alone is no order; write 'worse<better'")
    return chains


def paired(worse: Errors, better: Errors, seed: int = 0) -> dict[str, dict[str, Any]]:
    """By measure how much smaller the second row's error is: mean over seeds and images, and how sure that is.

    ``gain``: mean of worse - better, positive where the order holds. ``low``, ``high``: its 95 % interval by paired
    bootstrap over the images, each averaged over the seeds first. ``seeds``: in how many seeds the gain is positive.
    """
    found = {}
    for name in worse:
        gain = worse[name] - better[name]
        each = gain.mean(axis=0)
        means = bootstrap(each, seed)
        low, high = np.percentile(means, [2.5, 97.5])
        found[name] = {
            "gain": float(each.mean()),
            "low": float(low),
            "high": float(high),
            "seeds": int((gain.mean(axis=1) > 0).sum()),
            "of": len(gain),
        }
    return found


def bootstrap(values: Float[np.ndarray, " n"], seed: int, resamples: int = RESAMPLES) -> Float[np.ndarray, " r"]:
    """Means of samples of the same size drawn with replacement."""
    rng = np.random.default_rng(seed)
    count = len(values)
    return np.array([values[rng.integers(0, count, count)].mean() for _ in range(resamples)])
