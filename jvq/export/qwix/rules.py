"""A plan as qwix quantisation rules, and what of it they cannot say.

A rule of qwix 0.1 names a module by its path, and says how the weight and the activations of its products are
quantised: their dtype, and a method that finds the range. What it has (``qwix._src.qconfig``, ``core.qarray``):
weights, a range for each index that is not summed over, from the extremes; activations the same, of the moment; and one
fixed range a tensor. One of two operands may have a zero point, in 4 or 8 bits.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jvq.core import axes
from jvq.core.errors import nearest
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Operand, Plan, Sites
from jvq.export.qwix.naming import check_rename, theirs
from jvq.export.qwix.package import qwix
from jvq.quantizers import Dynamic, Grouped, Learned, ShiftedSigns, Signs, StaticGrouped, Steps, Ternary, Uniform

WIDTHS = range(2, 9)  #: bits that a type of qwix has: int4 and int8, and by name int2, int3, int5, int6, int7
AFFINE = (4, 8)  #: those that may have a zero point
SHOWN = 6  #: reasons in an error
NEAR = 3  #: floats to either side that are tried for the end of a range
WHY = {  # quantisers that no rule describes
    Grouped: "groups are chosen anew for every image",
    StaticGrouped: "a range for each group; a fixed range is one a tensor",
    Signs: "signs: one bit has no type in qwix",
    Steps: "steps: one bit has no type in qwix",
    ShiftedSigns: "signs: one bit has no type in qwix",
    Ternary: "three values: no method of qwix finds their scale",
}
ATTENTION = "a product of two activations: rules name modules, and one rule is for all of a module's activations"
UNWEIGHTED = "the weight stays float, and qwix quantises nothing of a product whose weight is float"
TWO_ZEROS = "the weight has a zero point, and qwix multiplies with one at most"
CARRY = "the weight itself goes over with to_qwix (carried=True)"


class Translation(NamedTuple):
    """A plan in qwix's words."""

    rules: list[Any]  # qwix.QuantizationRule, one a module
    unsaid: dict[str, str]  # address: why no rule says it; it stays float under the rules


class Said(NamedTuple):
    """How one operand is quantised, as a rule says it."""

    bits: int
    method: str
    zero: bool  # it has a zero point


class Unsaid(Exception):
    """Why no rule says it."""


def rules(
    plan: Plan,
    known: Sites,
    qstate: Mapping[str, State] | None = None,
    *,
    rename: Mapping[str, str] = {},
    carried: bool = False,
    partial: bool = False,
) -> Translation:
    """The rules that quantise a model of the same modules as the plan does, and the addresses that they leave out.

    ``qstate`` holds the static ranges, which go into the rules as numbers. ``rename`` gives a module's path in the
    other model. With ``carried`` the weights go over as arrays (:func:`~jvq.export.qwix.trees.to_qwix`): a rule then
    says their width alone, and how their range was found is no matter. ``ValueError`` where a part of the plan cannot
    be said, by address; with ``partial`` it stays float.
    """
    kind, state = qwix().QuantizationRule, qstate or {}
    for address in plan:
        if address not in known:
            raise ValueError(f"qwix: the model has no operand '{address}'{nearest(address, known)}")
    modules = {o.site: "/".join(o.path[:-1]) for o in known.values() if o.path is not None}
    check_rename(rename, list(modules.values()))
    paths = {site: theirs(module, rename) for site, module in modules.items()}
    shared = Counter(paths.values())
    made, unsaid = [], {}
    for site in dict.fromkeys(known[address].site for address in plan):
        operands = [o for o in known.values() if o.site == site and o.address in plan]
        if site not in modules:
            unsaid |= {o.address: ATTENTION for o in operands}
            continue
        if shared[paths[site]] > 1:
            why = f"{shared[paths[site]]} products in the module {paths[site]}: a rule is for all of them"
            unsaid |= {o.address: why for o in operands}
            continue
        weight, activation = _operands(operands, plan, state, unsaid, carried)
        if weight is not None:
            made.append(_rule(kind, paths[site], weight, activation))
    unsaid = {a: unsaid[a] for a in plan if a in unsaid}
    if unsaid and not partial:
        raise ValueError(_complaint(unsaid, len(plan)))
    return Translation(made, unsaid)


def _operands(
    operands: list[Operand], plan: Plan, state: Mapping[str, State], unsaid: dict[str, str], carried: bool
) -> tuple[Said | None, Said | None]:
    """Weight and activation of one product as a rule says them; why not goes into ``unsaid``."""
    said: dict[bool, Said] = {}
    for o in sorted(operands, key=lambda o: o.path is None):  # the weight first: without it nothing is quantised
        heavy = o.path is not None
        try:
            if heavy and carried:
                found = _carried(plan[o.address])
            else:
                found = (_weight if heavy else _activation)(plan[o.address], o, state.get(o.address))
            if not heavy and True not in said:
                raise Unsaid(UNWEIGHTED)
            if not heavy and found.zero and said[True].zero:
                raise Unsaid(TWO_ZEROS)
        except Unsaid as why:
            unsaid[o.address] = str(why)
        else:
            said[heavy] = found
    return said.get(True), said.get(False)


def _rule(kind: Any, path: str, weight: Said, activation: Said | None) -> Any:
    fields: dict[str, Any] = {"module_path": re.escape(path), "weight_qtype": f"int{weight.bits}"}
    fields["weight_calibration_method"] = weight.method
    if activation is not None:
        fields |= {"act_qtype": f"int{activation.bits}", "act_calibration_method": activation.method}
    return kind(**fields)


def _complaint(unsaid: Mapping[str, str], planned: int) -> str:
    """One line: every reason with the addresses that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for address, why in unsaid.items():
        by_reason.setdefault(why, []).append(address)
    parts = [f"{', '.join(addresses)}: {why}" for why, addresses in list(by_reason.items())[:SHOWN]]
    more = f"; ... {len(by_reason)} reasons in all" if len(by_reason) > SHOWN else ""
    text = "; ".join(parts) + more
    return f"qwix: {len(unsaid)} of {planned} operands cannot be said in its rules (partial=True: left float): {text}"


# --- One operand -----------------------------------------------------------------------------------------------------


def _weight(quantizer: Quantizer, o: Operand, state: State | None) -> Said:
    """A weight: a range for each of its outputs from its extremes, or a fixed one. :class:`Unsaid` for others."""
    if isinstance(quantizer, Uniform | Dynamic) and set(quantizer.keep) == set(_apart(o)):
        _check_width(quantizer.bits)
        if getattr(quantizer, "range", "max") != "max":
            raise Unsaid(f"range='{getattr(quantizer, 'range', '')}': ranges of qwix are extremes; {CARRY}")
        if getattr(quantizer, "symmetric", False):
            # qwix's scale is absmax / (2**(bits-1) - 0.5), ours absmax / (2**(bits-1) - 1): the factor says ours
            half = 2 ** (quantizer.bits - 1)
            return Said(quantizer.bits, f"absmax,{(half - 0.5) / (half - 1)!r}", False)
        return _extremes(quantizer)
    if isinstance(quantizer, Uniform | Learned) and not quantizer.keep:
        return _fixed(quantizer, state)
    if isinstance(quantizer, Learned):
        raise Unsaid(f"a learned scale for each of '{quantizer.keep}': ranges of qwix are found anew; {CARRY}")
    if isinstance(quantizer, Uniform | Dynamic):
        raise Unsaid(f"a range for each of '{quantizer.keep}': qwix has one for each of '{_apart(o)}'; {CARRY}")
    raise Unsaid(_kind(quantizer))


def _carried(quantizer: Quantizer) -> Said:
    """A weight that comes quantised: its width, and whether it has zero points. Signs are int2 there."""
    bits = max(quantizer.bits, WIDTHS[0])
    _check_width(bits)
    even = isinstance(quantizer, Signs) or (isinstance(quantizer, Learned) and quantizer.signed)
    zero = not (even or getattr(quantizer, "symmetric", False))
    return Said(bits, "minmax" if zero and bits in AFFINE else "absmax", zero)


def _activation(quantizer: Quantizer, o: Operand, state: State | None) -> Said:
    """An activation: one fixed range, or ranges of the moment for each index that is not summed over."""
    if isinstance(quantizer, Dynamic):
        if set(quantizer.keep) != set(_apart(o)):
            raise Unsaid(
                f"a range of the moment for each of '{quantizer.keep}': qwix has one for each of '{_apart(o)}'"
            )
        return _extremes(quantizer)
    if isinstance(quantizer, Uniform | Learned):
        if quantizer.keep:
            raise Unsaid(f"a static range for each of '{quantizer.keep}': a fixed range of qwix is one a tensor")
        return _fixed(quantizer, state)
    raise Unsaid(_kind(quantizer))


def _apart(o: Operand) -> str:
    """The letters for whose every index qwix has a range: those that the product does not sum over."""
    return axes.ordered(set(o.letters) - set(o.contracted), o.letters)


def _kind(quantizer: Quantizer) -> str:
    name = type(quantizer).__name__
    return f"{name}: {WHY.get(type(quantizer), 'not a quantiser that qwix has')}"


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise Unsaid(f"{bits} bit{'s' * (bits != 1)}: types of qwix have {WIDTHS[0]} to {WIDTHS[-1]}")


def _check_affine(bits: int) -> None:
    _check_width(bits)
    if bits not in AFFINE:
        raise Unsaid(f"a zero point at {bits} bits: qwix has them at 4 and 8")


def _extremes(quantizer: Uniform | Dynamic) -> Said:
    """``minmax``: from the least to the greatest value, made to contain 0."""
    _check_affine(quantizer.bits)
    if quantizer.zero_point != "extend":
        raise Unsaid(f"zero_point='{quantizer.zero_point}': ranges of qwix always contain 0")
    if getattr(quantizer, "nonnegative", False):
        raise Unsaid("nonnegative: ranges of qwix begin at the least value")
    return Said(quantizer.bits, "minmax", True)


def _fixed(quantizer: Uniform | Learned, state: State | None) -> Said:
    """``fixed``: the range that makes qwix compute the state's scale and zero point."""
    _check_width(quantizer.bits)
    if isinstance(quantizer, Learned) and quantizer.offset:
        raise Unsaid("a learned offset, any number: zero points of qwix are whole")
    if state is None:
        raise Unsaid("its range is in the state: give rules() the qstate")
    half, levels = 2 ** (quantizer.bits - 1), 2**quantizer.bits - 1
    scale = np.float32(state["scale"])
    zero = -float(state["low"]) if isinstance(quantizer, Learned) else float(np.round(state["zero"]))
    if zero == half:
        top = _nearest_end(scale * np.float32(half - 0.5), scale, np.float32(half - 0.5), np.float32(0))
        return Said(quantizer.bits, f"fixed,{-top!s},{top!s}", False)
    _check_affine(quantizer.bits)
    if not 0 <= zero <= levels:
        raise Unsaid(f"zero point {zero:.0f}, outside the codes: ranges of qwix contain 0")
    low = np.float32(0 - zero) * scale
    top = _nearest_end(np.float32(levels - zero) * scale, scale, np.float32(levels), low)
    return Said(quantizer.bits, f"fixed,{low!s},{top!s}", True)


def _nearest_end(end: np.float32, scale: np.float32, steps: np.float32, low: np.float32) -> np.float32:
    """The float next to ``end`` from which ``(end - low) / steps`` comes nearest to ``scale``, in float32."""
    tried, up, down = [end], end, end
    for _ in range(NEAR):
        up, down = np.nextafter(up, np.float32(np.inf)), np.nextafter(down, np.float32(-np.inf))
        tried += [up] + [down] * bool(down >= 0)
    return min(tried, key=lambda x: abs(float((x - low) / steps) - float(scale)))
