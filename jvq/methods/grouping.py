"""Looking at IGQ-ViT's groups: what the EM did at some operands, and what is wrong anywhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jvq.core.calibrate import observe
from jvq.core.quantizer import State
from jvq.core.recipe import Forward, Plan, Sites
from jvq.quantizers import Grouped


def pictured(plan: Plan, errors: Mapping[str, float], linear: int = 3) -> list[str]:
    """The operands in groups that are worth a look: the linear inputs and the attention map of largest error."""
    grouped = sorted((a for a, q in plan.items() if isinstance(q, Grouped)), key=lambda a: -errors[a])
    inputs = [a for a in grouped if not a.endswith(".p")][:linear]
    return [*inputs, *[a for a in grouped if a.endswith(".p")][:1]]


def grouping(
    forward: Forward, params: Any, images: np.ndarray, plan: Plan, known: Sites, addresses: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """By address the points [p 2] (min, max) of the calibration images, and what the EM made of them.

    ``group`` [p], ``centres`` [g 2], ``history`` [i] the objective by iteration, ``quantile`` [] the objective that the
    quantile start reaches.
    """
    found = {}
    kept = observe(forward, params, images, {a: {plan[a].apart} for a in addresses}, known)
    for address, samples in kept.items():
        quantizer = plan[address]
        assert isinstance(quantizer, Grouped)
        points, fit = quantizer.clustered(samples[quantizer.apart], known[address].letters)
        found[address] = {
            "points": np.asarray(points),
            "group": np.asarray(fit.group),
            "centres": np.asarray(fit.centres),
            "history": np.asarray(fit.history),
            "quantile": np.asarray(fit.quantile),
        }
    return {address: found[address] for address in addresses}


def troubles_of(
    qstate: Mapping[str, State],
    use: Mapping[str, Sequence[int]],
    errors: Mapping[str, float],
    plain: Mapping[str, float],
) -> list[str]:
    """What is wrong with groups, a line an operand and trouble.

    ``use``: how often each group is chosen in evaluated images; ``errors``: each operand's relative error, ``plain``
    with one min-max range a tensor.
    """
    found = []
    for address, counts in use.items():
        lower, upper = (np.asarray(qstate[address][name]).tolist() for name in ("lower", "upper"))
        groups, centres = len(counts), len({*zip(lower, upper, strict=True)})
        if centres < groups:
            found.append(f"{address}: {groups - centres} of {groups} groups are duplicates of others")
        if not all(counts):
            found.append(f"{address}: {list(counts).count(0)} of {groups} groups are never chosen")
        if address in plain and errors[address] > plain[address]:
            found.append(
                f"{address}: groups lose to one range a tensor, relative error {errors[address]:.2e} "
                f"against {plain[address]:.2e}"
            )
    return found
