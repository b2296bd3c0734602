"""The variants in the order of the table: jvq's own and JAX's here, those of others in ``others``."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvq.accounting import tree_bytes
from jvq.bench import others
from jvq.bench.bed import Bed, Prepared, Run, Variant
from jvq.core.dot import Dot, float_dot, lowered
from jvq.core.errors import nearest
from jvq.core.freeze import freeze
from jvq.core.quantizer import State
from jvq.core.recipe import Plan, Sites, path_of, resolve
from jvq.integer import compiled, integer_dot, prepared
from jvq.methods import bivit, igq, minmax
from jvq.models import build

BASE = "jvq-float32"  #: what ratios are to

DotOf = Callable[[Plan, Mapping[str, State]], Dot]


class Served(NamedTuple):
    """A model in JAX as it is run."""

    architecture: str
    spec: Mapping[str, Any]
    params: Any
    plan: Plan
    qstate: Mapping[str, State]


def served(bed: Bed, params: Any, plan: Plan, qstate: Mapping[str, State]) -> Prepared:
    """The model with these parameters, arrays on the host."""
    host, state = jax.tree.map(np.asarray, (params, dict(qstate)))
    spec = dataclasses.asdict(bed.model.spec)
    return Prepared(Served(bed.model.architecture, spec, host, plan, state), tree_bytes(params, qstate))


def plain(bed: Bed, plan: Plan, qstate: Mapping[str, State]) -> Prepared:
    """The float parameters."""
    return served(bed, bed.params, plan, qstate)


def halved(bed: Bed, plan: Plan, qstate: Mapping[str, State]) -> Prepared:
    """The float parameters, what is multiplied in bfloat16."""
    paths = {o.path for o in bed.known.values() if o.path is not None}

    def narrow(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        multiplied = path_of(path) in paths
        return leaf.astype(jnp.bfloat16) if multiplied else leaf

    return served(bed, jax.tree_util.tree_map_with_path(narrow, bed.params), plan, qstate)


def frozen(weights: Any, bed: Bed, plan: Plan, qstate: Mapping[str, State]) -> Prepared:
    """Integer weights as the kernels read them, ``weights`` as in :func:`jvq.integer.prepared`."""
    packed, rest, state = freeze(bed.params, plan, qstate, bed.known)
    return served(bed, prepared(packed, bed.known, weights), rest, state)


def start(dot: DotOf, model: Served, threads: int, jit: Any = jax.jit) -> Run:
    """The jitted forward; JAX takes as many threads as the process may run on."""
    forward = build(model.architecture, model.spec).forward
    params, qstate = jax.device_put((model.params, model.qstate))
    run = jit(lambda p, s, x: forward(p, x, dot(model.plan, s)))
    return lambda images: jax.block_until_ready(run(params, qstate, images))


def w8a8(known: Sites) -> Plan:
    """Min-max, weights symmetric: what onnxruntime's own quantisation does, and the fastest form everywhere."""
    plan = resolve(minmax.recipe(minmax.Options(bits=8), known), known)
    weights = {a for a, o in known.items() if o.path is not None}
    return {a: dataclasses.replace(q, symmetric=True) if a in weights else q for a, q in plan.items()}  # type: ignore


def w4a8(known: Sites) -> Plan:
    """Min-max with weights of 4 bits and activations of 8."""
    return resolve(minmax.recipe(minmax.Options(weight_bits=4, act_bits=8), known), known)


def igq_w4a4(known: Sites) -> Plan:
    """IGQ-ViT at 4 bits, the scales of its groups a power of two apart."""
    return resolve(igq.recipe(igq.Options(bits=4, ladder=True), known), known)


def binary(known: Sites) -> Plan:
    """Bi-ViT's signs and steps on the model as it is, without what training adds to it; its ends stay float."""
    return resolve(bivit.recipe(bivit.Options(), known), known)


_in_float = partial(start, lambda plan, state: float_dot)
_in_bf16 = partial(start, lambda plan, state: lowered(jnp.bfloat16))
_in_integers = partial(start, integer_dot, jit=compiled)
_in_bits = partial(start, partial(integer_dot, count=True), jit=compiled)
_fast, _small = partial(frozen, "fast"), partial(frozen, "small")

VARIANTS: tuple[Variant, ...] = (
    Variant(BASE, "float32", plain, _in_float),
    Variant("jvq-int8", "W8A8, static min-max, integer products", _fast, _in_integers, w8a8),
    Variant("jvq-w4a8", "W4A8, weights unpacked to bytes at load", _fast, _in_integers, w4a8),
    Variant("jvq-w4a8-small", "W4A8, weights held packed", _small, _in_integers, w4a8),
    Variant("jvq-igq-w4a4", "IGQ, groups a power of two apart", _fast, _in_integers, igq_w4a4),
    Variant("jvq-binary", "signs and steps as int8, ends in float32", _fast, _in_integers, binary),
    Variant("jvq-binary-small", "signs and steps as bits, counted", _small, _in_bits, binary),
    Variant("jax-bf16", "products of bfloat16, sums in float32", halved, _in_bf16),
    *others.variants(w8a8),
)


def chosen(patterns: Iterable[str]) -> list[Variant]:
    """The variants that the globs name, and the base of ratios; all without globs. ``ValueError``: no hit."""
    patterns, names = list(patterns), [v.name for v in VARIANTS]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(f"--only: '{pattern}' is no variant{nearest(pattern, names)}")
    return [v for v in VARIANTS if not patterns or v.name == BASE or any(fnmatch(v.name, p) for p in patterns)]
