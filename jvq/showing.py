"""Anything of jvq as a table, on a terminal or in a notebook: ``jvq.show(plan)``."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.core import Tracer

from jvq.core.calibrate import Fitted
from jvq.core.packed import Encoded, is_encoded
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Operand, Sites
from jvq.export import Deployment
from jvq.models import Model
from jvq.models.weights import Checkpoint
from jvq.report import Console, show_plan, show_sites
from jvq.report import show as show_report
from jvq.report.terminal import describe, table

SHOWN = "sites, a plan, a recipe, a state, parameters, a packed weight, a model, a checkpoint, a deployment, a report"
ROWS = 400  #: of a table of parameters


def show(thing: Any, known: Sites | None = None, *, console: Console | None = None) -> None:
    """Prints ``thing`` as a table; ``known`` are the model's sites, which a plan is shown beside.

    Sites, plans, recipes, states, what a calibration returns, parameter trees and their packed leaves, models,
    checkpoints, deployments, configs, and what ``report.json`` holds. Raises ``ValueError`` for anything else.
    """
    console = Console() if console is None else console
    match thing:
        case Checkpoint():
            console.say(repr(thing))
            _pairs(console, {**_fields(thing.model), **_under("preprocess", thing.preprocess)})
        case Deployment():
            console.say(repr(thing))
            by = Counter(describe(q) for q in thing.plan.values())
            kinds = {**_packed(thing.params), **{name: f"{n} activations" for name, n in by.items()}}
            _pairs(console, kinds, ("quantised by", "how many"))
            _pairs(console, thing.protocol, ("protocol", ""))
        case Model():
            _pairs(console, _fields(thing))
        case Fitted():
            show(thing.plan, known, console=console)
            show(thing.qstate, console=console)
        case Encoded():
            console.say(repr(thing))
        case ml_collections.ConfigDict():
            _pairs(console, dict(_flat(thing)), ("option", "value"))
        case Mapping() if "rows" in thing and "method" in thing:
            show_report(thing, console)
        case Mapping() if thing and all(isinstance(v, Operand) for v in thing.values()):
            show_sites(thing, console)
        case Mapping() if thing and all(isinstance(v, Quantizer) for v in thing.values()):
            if known is not None:
                show_plan(thing, known, console)
            else:
                _pairs(console, {a: describe(q) for a, q in thing.items()}, ("address", "quantiser"))
        case Mapping() if all(isinstance(v, Mapping) and "." in str(k) for k, v in thing.items()):
            _pairs(console, {a: _arrays(state) for a, state in thing.items()}, ("address", "state"))
        case Mapping() if all(_stored(x) for x in jax.tree.leaves(thing, is_leaf=is_encoded)):
            _parameters(thing, console)
        case [*rules] if rules and all(_rule(rule) for rule in rules):
            cells = [(pattern, "float" if q is None else describe(q)) for pattern, q in rules]
            _rows(console, ("pattern", "quantiser"), cells)
        case _:
            raise ValueError(f"show: got {type(thing).__name__}, which is none of: {SHOWN}")


def _rows(console: Console, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    made = table(head, left=True)
    for row in rows:
        made.add_row(*row)
    console.out.print(made)


def _pairs(console: Console, pairs: Mapping[str, Any], head: Sequence[str] = ("field", "value")) -> None:
    _rows(console, head, [(str(name), str(value)) for name, value in pairs.items()])


def _fields(model: Model) -> dict[str, Any]:
    """What fixes a model's shape."""
    return {"architecture": model.architecture, **dataclasses.asdict(model.spec)}


def _under(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items()}


def _flat(tree: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The values of a config by dotted keys."""
    for key, value in tree.items():
        yield from (
            _flat(value, f"{prefix}{key}.") if isinstance(value, ml_collections.ConfigDict) else [(prefix + key, value)]
        )


def _rule(rule: Any) -> bool:
    """Whether it is a recipe's: a pattern and a quantiser, or None."""
    return (
        isinstance(rule, tuple)
        and len(rule) == 2
        and isinstance(rule[0], str)
        and (rule[1] is None or isinstance(rule[1], Quantizer))
    )


def _stored(x: Any) -> bool:
    """Whether it can be a leaf of a parameter tree: an array, what stands for one, or its shape."""
    return is_encoded(x) or (hasattr(x, "shape") and hasattr(x, "dtype"))


def _packed(params: Any) -> dict[str, str]:
    """How many weights have which width."""
    bits = Counter(getattr(x, "bits", None) for x in jax.tree.leaves(params, is_leaf=is_encoded))
    named = {"float32" if b is None else f"packed, {b} bits": n for b, n in sorted(bits.items(), key=lambda p: str(p))}
    return {name: f"{n} parameters" for name, n in named.items()}


def _parameters(params: Any, console: Console) -> None:
    """A line for each leaf, packed ones as they are."""
    found, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_encoded)
    rows = [("/".join(str(getattr(k, "key", k)) for k in path), _leaf(x)) for path, x in found]
    _rows(console, ("parameter", "what it is"), rows[:ROWS])
    if len(rows) > ROWS:
        console.say(f"... {len(rows)} in all")


def _leaf(x: Any) -> str:
    return repr(x) if is_encoded(x) else f"{x.dtype} [{','.join(map(str, x.shape))}]"


def _arrays(state: Mapping[str, Any]) -> str:
    """``bits 4, scale 0.0123 .. 0.41 [3,1,1]``: the numbers of a state, of many the least and the greatest."""
    return ", ".join(f"{name} {_numbers(x)}" for name, x in state.items())


def _numbers(x: Any) -> str:
    shape = f"[{','.join(map(str, getattr(x, 'shape', ())))}]"
    if not isinstance(x, jax.Array | np.ndarray | np.generic) or isinstance(x, Tracer):
        return shape
    values = np.asarray(x)
    if not values.size:
        return shape
    low, high = (f"{float(v):.4g}" for v in (values.min(), values.max()))
    return low if not values.ndim else f"{low if low == high else f'{low} .. {high}'} {shape}"
