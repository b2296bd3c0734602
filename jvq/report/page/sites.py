"""The table of a run's operands: where it loses, and what each costs the predictions alone."""

import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from jvq.report.page.grid import Cell, Grid, Line, aligned
from jvq.report.tables import SITE_HEAD, site_cells

LEAST = 1e-12  #: an error below is drawn as one of this size
DECADES = 4  #: that bars span at most: the operands at 8 bits would make all others look alike


class Sensitivity(NamedTuple):
    """What quantising an operand, alone or with those of its product or module, does to the model."""

    head: str
    says: str
    values: Mapping[str, float]


def sensitivity(report: Mapping[str, Any]) -> Sensitivity | None:
    """By address, from what an allocation has measured; None where none was made."""
    addresses = report["sites"]
    if "allocation" in report:
        found = report["allocation"]["sites"]
        values = {a: dict(zip(s["candidates"], s["kl"], strict=True))[s["groups"]] for a, s in found.items()}
        return Sensitivity("KL alone", "of the predictions, this operand quantised alone, at its groups", values)
    if "joint" in report:
        found = report["joint"]["sites"]
        values = {a: found[p]["kl"] for a in addresses if (p := a.rpartition(".")[0]) in found}
        return Sensitivity("KL of the product", "both operands quantised alone, summed", values)
    if "mixed" in report:
        mixed = report["mixed"]
        loss = {name: m["loss"][mixed["candidates"].index(m["bits"])] for name, m in mixed["modules"].items()}
        values = {a: loss[m] for a in addresses for m in loss if a.startswith(f"{m}/")}
        return Sensitivity("of the module", f"{mixed['unit']}, the module quantised alone at its width", values)
    return None


def site_grid(report: Mapping[str, Any]) -> Grid:
    """A line an operand: first what it loses, with a bar on a logarithmic scale, last how it is quantised."""
    sites, sensitive = report["sites"], sensitivity(report)
    low, high = ends([site["relative_error"] for site in sites.values()])
    lines = []
    for address, site in sites.items():
        name, quantizer, bits, groups, error, order = map(Cell, site_cells(address, site))
        error = error._replace(bar=length(site["relative_error"], low, high))
        alone = [Cell(f"{sensitive.values[address]:.1e}" if address in sensitive.values else "")] if sensitive else []
        lines.append(Line([name, error, bits, groups, *alone, order, quantizer, Cell(site["letters"])]))
    name, quantizer, bits, groups, error, order = SITE_HEAD
    scale = f"logarithmic, from 1e{low} to 1e{high}"
    head = [name, error, bits, groups, *([sensitive.head] if sensitive else []), order, quantizer, "letters"]
    says = ["", scale, "", "", *([sensitive.says] if sensitive else []), "Kendall's tau", "", "axes of the operand"]
    return aligned(head, lines, says)


def spread_of(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """Where the errors lie, in words."""
    errors = {address: site["relative_error"] for address, site in sites.items()}
    worst = sorted(errors, key=lambda a: -errors[a])[:3]
    named = ", ".join(f"{address} ({errors[address]:.1e})" for address in worst)
    return f"{len(errors)} operands, median error {statistics.median(errors.values()):.1e}; the largest: {named}."


def ends(errors: list[float | int]) -> tuple[int, int]:
    """The powers of ten around the errors, the largest of them; what is no error at all does not count."""
    logs = [math.log10(max(e, LEAST)) for e in errors if e > 0] or [0.0]
    high = math.ceil(max(logs))
    return min(max(math.floor(min(logs)), high - DECADES), high - 1), high


def length(error: float | int, low: int, high: int) -> float:
    """The length of an error's bar, 0..1."""
    return 0.0 if error <= 0 else min(max((math.log10(max(error, LEAST)) - low) / (high - low), 0.0), 1.0)
