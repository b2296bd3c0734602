"""Calibration: from a plan and images to the state of every quantiser."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvq.core.dot import packed_dot, quantized, recording
from jvq.core.packed import Packed
from jvq.core.quantizer import Codes, Overhead, Quantizer, State
from jvq.core.recipe import Forward, Operand, Plan, Sites


class Fitted(NamedTuple):
    """What fitting a method gives: the plan, as far as fitting changed it, and the state of all its quantisers."""

    plan: Plan
    qstate: Mapping[str, State]
    notes: Mapping[str, Any] = {}  # what else the report should say


Track = Callable[[Iterable[Any], str], Iterable[Any]]
"""``track(items, text)`` hands on the items while it shows how far things are."""


def silent(items: Iterable[Any], text: str) -> Iterable[Any]:
    """The items: a :data:`Track` that shows nothing."""
    return items


def calibrate(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    known: Sites,
    *,
    batch: int = 32,
    sequential: bool = False,
    memory: int = 2**30,
    track: Track = silent,
) -> dict[str, State]:
    """The state of every quantiser of the plan, from float images [b y x c].

    Weights are calibrated on themselves. Activations come from the float model, all from the same forward passes
    (independent of order), or with ``sequential`` from the model whose earlier sites are quantised already. Operands
    are captured in as few passes as keep what is held below about ``memory`` bytes. Raises ``ValueError`` naming the
    address, or the image, where a number is not finite.
    """
    if sequential:
        _check(images, plan, known)
        return _sequential(forward, params, images, plan, known, batch, track)
    return calibrate_all(forward, params, images, [plan], known, batch=batch, memory=memory, track=track)[0]


def calibrate_all(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plans: Sequence[Plan],
    known: Sites,
    *,
    batch: int = 32,
    memory: int = 2**30,
    track: Track = silent,
) -> list[dict[str, State]]:
    """The states of several plans from the same forward passes: as ``calibrate`` gives them one by one.

    Every operand is captured once; quantisers that are equal are initialised once.
    """
    wanted: dict[str, dict[Quantizer, State]] = {}
    for plan in plans:
        for address, quantizer in plan.items():
            wanted.setdefault(address, {})[quantizer] = {}
    _check(images, wanted, known)
    activations = [a for a in known if a in wanted and known[a].path is None]
    for address in (a for a in wanted if known[a].path is not None):
        _init_all(wanted[address], _leaf(params, known[address]), known[address].letters, address)
    passes = _passes(activations, known, len(images), memory)
    for i, addresses in enumerate(passes):
        text = "calibrating" if len(passes) == 1 else f"calibrating, pass {i + 1} of {len(passes)}"
        tape = capture(forward, params, images, addresses, known, batch)
        for address in track(addresses, text):
            _init_all(wanted[address], jnp.asarray(tape.pop(address)), known[address].letters, address)
    return [{address: wanted[address][quantizer] for address, quantizer in plan.items()} for plan in plans]


def _check(images: np.ndarray, addresses: Iterable[str], known: Sites) -> None:
    """Raises ``ValueError`` where the images, or an operand, are nothing to calibrate on."""
    if not len(images):
        raise ValueError("calibration: no images, at least one is needed")
    bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
    if bad.size:
        raise ValueError(f"calibration image {bad[0]} has values that are not finite ({bad.size} such images)")
    for address in addresses:
        if known[address].path is None and not known[address].batched:
            raise ValueError(f"{address}: neither a parameter nor an activation (axis 'b'): nothing to calibrate on")


def fresh(quantizer: Quantizer, samples: jax.Array, letters: str) -> State:
    """The quantiser's state for the samples, compiled once per shape and quantiser up to its ``traced`` fields."""
    numbers = {name: getattr(quantizer, name) for name in getattr(quantizer, "traced", ())}
    form = dataclasses.replace(quantizer, **dict.fromkeys(numbers, 0))  # type: ignore[type-var]
    return _fresh(form, numbers, samples, letters)


@partial(jax.jit, static_argnums=(0, 3))
def _fresh(form: Quantizer, numbers: Mapping[str, jax.Array], samples: jax.Array, letters: str) -> State:
    quantizer = copy.copy(form)
    for name, number in numbers.items():
        object.__setattr__(quantizer, name, number)  # a constructor would want an int, and this is a tracer
    return quantizer.init(samples, letters)


def _init(quantizer: Quantizer, samples: jax.Array, letters: str, address: str) -> State:
    states: dict[Quantizer, State] = {quantizer: {}}
    _init_all(states, samples, letters, address)
    return states[quantizer]


def _init_all(states: dict[Quantizer, State], samples: jax.Array, letters: str, address: str) -> None:
    """Fills in the state of every quantiser of one operand."""
    if not bool(jnp.isfinite(samples).all()):
        raise ValueError(f"{address}: calibration data has values that are not finite (NaN or infinite)")
    for quantizer in states:
        states[quantizer] = fresh(quantizer, samples, letters)


def _leaf(params: Any, operand: Operand) -> jax.Array:
    assert operand.path is not None
    for key in operand.path:
        params = params[key]
    if isinstance(params, Packed):
        raise ValueError(f"{operand.address}: the weight is packed already; quantise the float checkpoint")
    return params


def _passes(addresses: Iterable[str], known: Sites, images: int, memory: int) -> list[list[str]]:
    """The addresses in runs whose operands together stay below ``memory`` bytes (or are single)."""
    runs: list[list[str]] = []
    held = 0
    for address in addresses:
        size = 4 * images * math.prod(known[address].shape)
        if not runs or held + size > memory:
            runs.append([])
            held = 0
        runs[-1].append(address)
        held += size
    return runs


def capture(
    forward: Forward, params: Any, images: np.ndarray, addresses: list[str], known: Sites, batch: int
) -> dict[str, np.ndarray]:
    """The named operands of the float model, images along ``b``."""

    @jax.jit
    def run(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        tape: dict[str, jax.Array] = {}
        forward(params, x, recording(tape, set(addresses).__contains__, packed_dot()))
        return tape

    return _over_batches(lambda x: run(params, x), images, known, batch)


def _over_batches(
    run: Callable[[jax.Array], Mapping[str, jax.Array]], images: np.ndarray, known: Sites, batch: int
) -> dict[str, np.ndarray]:
    """The tapes of all batches, concatenated along each operand's ``b``."""
    tapes = [jax.device_get(run(jnp.asarray(images[i : i + batch]))) for i in range(0, len(images), batch)]
    return {a: np.concatenate([t[a] for t in tapes], axis=known[a].letters.index("b")) for a in tapes[0]}


@dataclasses.dataclass(frozen=True)
class _Gated:
    """A quantiser that does nothing until ``state["on"]``: one executable for every stage of sequential calibration."""

    inner: Quantizer

    @property
    def bits(self) -> int:
        return self.inner.bits

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        self.inner.check(letters, shape)

    def init(self, samples: jax.Array, letters: str) -> State:
        return {**self.inner.init(samples, letters), "on": jnp.array(False)}

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        return jnp.where(state["on"], self.inner.apply(state, x, letters), x)

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        return self.inner.encode(state, x, letters)

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        return self.inner.overhead(letters, shape, contracted, product, beta)


def _sequential(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    known: Sites,
    batch: int,
    track: Track,
) -> dict[str, State]:
    """Site by site in the model's order, all operands of earlier sites quantised (the first author's later habit)."""
    weights = {
        a: _init(q, _leaf(params, known[a]), known[a].letters, a) for a, q in plan.items() if known[a].path is not None
    }
    gated = {a: _Gated(q) for a, q in plan.items()}
    activations = {a for a in plan if known[a].path is None}

    @jax.jit
    def run(params: Any, qstate: Mapping[str, State], x: jax.Array) -> dict[str, jax.Array]:
        tape: dict[str, jax.Array] = {}
        forward(params, x, recording(tape, activations.__contains__, quantized(gated, qstate, packed_dot())))
        return tape

    off, on = jnp.array(False), jnp.array(True)
    qstate: dict[str, State] = {}
    for address, quantizer in plan.items():
        letters, shape = known[address].letters, jax.ShapeDtypeStruct(known[address].shape, "float32")
        blank = jax.eval_shape(lambda x, q=quantizer, a=letters: q.init(x, a), shape)
        start = weights.get(address) or {name: jnp.ones(s.shape, s.dtype) for name, s in blank.items()}
        qstate[address] = {**start, "on": off}
    order = [list(group) for _, group in itertools.groupby(plan, lambda a: known[a].site)]
    for addresses in track(order, "calibrating site by site"):
        if any(a in activations for a in addresses):
            tape = _over_batches(lambda x: run(params, qstate, x), images, known, batch)
        for address in addresses:
            if address in activations:
                start = _init(plan[address], jnp.asarray(tape[address]), known[address].letters, address)
                qstate[address] = start
            qstate[address] = {**qstate[address], "on": on}
    return {a: {name: x for name, x in state.items() if name != "on"} for a, state in qstate.items()}
