"""Calibration: from a plan and images to the state of every quantiser."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvq.core import axes
from jvq.core.dot import Dot, packed_dot, quantized
from jvq.core.mesh import Rounds, everywhere, gathered, single
from jvq.core.packed import Packed
from jvq.core.quantizer import Codes, Overhead, Quantizer, State
from jvq.core.recipe import Forward, Operand, Plan, Sites
from jvq.core.samples import VALUES, Samples, chosen, joined, some, whole


class Fitted(NamedTuple):
    """What fitting a method gives: the plan, as far as fitting changed it, and the state of all its quantisers."""

    plan: Plan
    qstate: Mapping[str, State]
    notes: Mapping[str, Any] = {}  # what else the report should say
    params: Any = None  # the parameters, where fitting changed some (biases)


Apart = Mapping[str, Collection[str]]
"""Address to the axes whose indices are told apart, of which there may be several kinds."""

Tape = MutableMapping[str, dict[str, Samples]]
"""What an observed forward pass leaves: by address and axes told apart."""

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
    batch: int = 8,
    sequential: bool = False,
    values: int = VALUES,
    track: Track = silent,
    mesh: Mesh | None = None,
) -> dict[str, State]:
    """The state of every quantiser of the plan, from float images [b y x c].

    Weights are calibrated on themselves. Activations come from the float model, all from the same forward passes
    (independent of order), or with ``sequential`` from the model whose earlier sites are quantised already. Of an
    activation only its extremes and about ``values`` values are kept, so that a single pass does for all. On the
    devices of a ``mesh`` each sees ``batch`` images at a time; their number does not change the state. Raises
    ``ValueError`` naming the address, or the image, where a number is not finite.
    """
    if sequential:
        _check(images, plan, known)
        return _sequential(forward, params, images, plan, known, batch, values, track, mesh)
    return calibrate_all(forward, params, images, [plan], known, batch=batch, values=values, track=track, mesh=mesh)[0]


def calibrate_all(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plans: Sequence[Plan],
    known: Sites,
    *,
    batch: int = 8,
    values: int = VALUES,
    track: Track = silent,
    mesh: Mesh | None = None,
) -> list[dict[str, State]]:
    """The states of several plans from the same forward passes: as ``calibrate`` gives them one by one.

    Every operand is captured once; quantisers that are equal are initialised once.
    """
    wanted: dict[str, dict[Quantizer, State]] = {}
    for plan in plans:
        for address, quantizer in plan.items():
            wanted.setdefault(address, {})[quantizer] = {}
    _check(images, wanted, known)
    for address in track([a for a in wanted if known[a].path is not None], "calibrating weights"):
        weight = single(leaf(params, known[address]))
        for quantizer in wanted[address]:
            wanted[address][quantizer] = _init(quantizer, weight, known[address].letters, address)
    apart = {a: {q.apart for q in wanted[a]} for a in known if a in wanted and known[a].path is None}
    kept = observe(forward, params, images, apart, known, batch=batch, values=values, track=track, mesh=mesh)
    for address in track(list(apart), "calibrating"):
        samples = kept.pop(address)
        for quantizer in wanted[address]:
            wanted[address][quantizer] = _init(quantizer, samples[quantizer.apart], known[address].letters, address)
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


def fresh(quantizer: Quantizer, samples: jax.Array | Samples, letters: str) -> State:
    """The quantiser's state for the samples, compiled once per shape and quantiser up to its ``traced`` fields."""
    numbers = {name: getattr(quantizer, name) for name in getattr(quantizer, "traced", ())}
    form = dataclasses.replace(quantizer, **dict.fromkeys(numbers, 0))  # type: ignore[type-var]
    return _fresh(form, numbers, samples, letters)


@partial(jax.jit, static_argnums=(0, 3))
def _fresh(form: Quantizer, numbers: Mapping[str, jax.Array], samples: jax.Array | Samples, letters: str) -> State:
    quantizer = copy.copy(form)
    for name, number in numbers.items():
        object.__setattr__(quantizer, name, number)  # a constructor would want an int, and this is a tracer
    return quantizer.init(samples, letters)


def _init(quantizer: Quantizer, samples: jax.Array | Samples, letters: str, address: str) -> State:
    samples = whole(samples, letters, quantizer.apart)
    if not bool(jnp.isfinite(samples.lower).all() & jnp.isfinite(samples.upper).all()):
        raise ValueError(f"{address}: calibration data has values that are not finite (NaN or infinite)")
    return fresh(quantizer, samples, letters)


def leaf(params: Any, operand: Operand) -> jax.Array:
    """The weight that is the operand. Raises ``ValueError`` where it is packed."""
    assert operand.path is not None
    for key in operand.path:
        params = params[key]
    if isinstance(params, Packed):
        raise ValueError(f"{operand.address}: the weight is packed already; quantise the float checkpoint")
    return params


def observe(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    apart: Apart,
    known: Sites,
    *,
    batch: int = 8,
    values: int = VALUES,
    track: Track = silent,
    mesh: Mesh | None = None,
) -> dict[str, dict[str, Samples]]:
    """Samples of the float model's activations from one pass over the images: {address: {axes told apart: samples}}."""

    if not apart:
        return {}
    kinds = tuple((address, tuple(sorted(kinds))) for address, kinds in apart.items())
    run = partial(_observed, forward, kinds, max(1, values // len(images)), everywhere(mesh, params))
    return _over_batches(run, images, batch, mesh, track)


@partial(jax.jit, static_argnums=range(3))
def _observed(forward: Forward, kinds: Any, count: int, params: Any, x: jax.Array, first: jax.Array) -> Tape:
    tape: dict[str, dict[str, Samples]] = {}
    forward(params, x, observing(tape, dict(kinds), first, count, packed_dot()))
    return tape


def observing(tape: Tape, apart: Apart, first: jax.Array, count: int, inner: Dot) -> Dot:
    """A dot that writes samples of the operands named in ``apart`` into ``tape``: about ``count`` values an image."""

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        letters, _ = axes.split(equation)
        for (role, x), axis in zip(operands.items(), letters, strict=True):
            for wanted in apart.get(f"{site}.{role}", ()):
                tape.setdefault(f"{site}.{role}", {})[wanted] = some(x, axis, wanted, count, first)
        return inner(site, equation, **operands)

    return dot


def _over_batches(
    run: Callable[[jax.Array, jax.Array], Tape],
    images: np.ndarray,
    batch: int,
    mesh: Mesh | None,
    track: Track = silent,
) -> dict[str, dict[str, Samples]]:
    """The samples of all batches, joined in the images' order."""
    tapes = []
    for part in track(Rounds(mesh, images, batch), "observing activations"):
        tape = gathered(run(part.images, jnp.int32(part.first)))
        tapes.append({a: {kind: chosen(s, part.mask) for kind, s in kinds.items()} for a, kinds in tape.items()})
    return {a: {kind: joined([tape[a][kind] for tape in tapes]) for kind in tapes[0][a]} for a in tapes[0]}


@dataclasses.dataclass(frozen=True)
class _Gated:
    """A quantiser that does nothing until ``state["on"]``: one executable for every stage of sequential calibration."""

    inner: Quantizer

    @property
    def bits(self) -> int:
        return self.inner.bits

    @property
    def apart(self) -> str:
        return self.inner.apart

    @property
    def form(self) -> "_Gated":
        return dataclasses.replace(self, inner=self.inner.form)

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        self.inner.check(letters, shape)

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
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
    values: int,
    track: Track,
    mesh: Mesh | None,
) -> dict[str, State]:
    """Site by site in the model's order, all operands of earlier sites quantised (the first author's later habit)."""
    weights = {
        a: _init(q, single(leaf(params, o)), o.letters, a) for a, q in plan.items() if (o := known[a]).path is not None
    }
    gated = {a: _Gated(q) for a, q in plan.items()}
    apart = {a: {q.apart} for a, q in plan.items() if known[a].path is None}

    @jax.jit
    def run(params: Any, qstate: Mapping[str, State], x: jax.Array, first: jax.Array) -> Tape:
        tape: dict[str, dict[str, Samples]] = {}
        inner = quantized(gated, qstate, packed_dot())
        forward(params, x, observing(tape, apart, first, max(1, values // len(images)), inner))
        return tape

    off, on = jnp.array(False), jnp.array(True)
    qstate: dict[str, State] = {}
    for address, quantizer in plan.items():
        letters, shape = known[address].letters, jax.ShapeDtypeStruct(known[address].shape, "float32")
        blank = jax.eval_shape(lambda x, q=quantizer, a=letters: q.init(x, a), shape)
        start = weights.get(address) or {name: jnp.ones(s.shape, s.dtype) for name, s in blank.items()}
        qstate[address] = {**start, "on": off}
    params = everywhere(mesh, params)
    order = [list(group) for _, group in itertools.groupby(plan, lambda a: known[a].site)]
    for addresses in track(order, "calibrating site by site"):
        if any(a in apart for a in addresses):
            tape = _over_batches(lambda x, first: run(params, qstate, x, first), images, batch, mesh)
        for address in addresses:
            if address in apart:
                samples = tape[address][plan[address].apart]
                qstate[address] = _init(plan[address], samples, known[address].letters, address)
            qstate[address] = {**qstate[address], "on": on}
    return {a: {name: x for name, x in state.items() if name != "on"} for a, state in qstate.items()}
