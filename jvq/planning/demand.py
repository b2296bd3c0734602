"""What a ViT asks for, counted by abstract traces: nothing is computed, and the largest model takes seconds.

Everything but parameters is of one image, float32. What takes a long trace (what is kept for a backward pass, what
calibration keeps) is traced on two and on three blocks: each further block adds the same.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvq.accounting import macs, pairs
from jvq.core.calibrate import observing
from jvq.core.dot import packed_dot, quantized
from jvq.core.mesh import rules_of
from jvq.core.recipe import Operand, Plan, Sites, resolve, sites
from jvq.core.samples import VALUES
from jvq.methods.captured import Pair
from jvq.models import Model, build
from jvq.quantizers import Grouped
from jvq.quantizers.grouped import indices

FLOAT = 4  #: bytes
MODELS: dict[str, dict[str, Any]] = {
    "deit_t": {"size": "Ti/16", "distill_token": True},
    "vit_s": {"size": "S/16"},
    "vit_b": {"size": "B/16"},
    "vit_l": {"size": "L/16"},
    "vit_g": {"patch": 14, "dim": 1408, "depth": 40, "heads": 16, "mlp_ratio": 6144 / 1408},
    "vit_g_518": {"patch": 14, "dim": 1408, "depth": 40, "heads": 16, "mlp_ratio": 6144 / 1408, "image": (518, 518)},
}
WIDE = (  # the rules of docs/devices.md
    "block.*/attn/qkv/kernel=..m.,block.*/attn/qkv/bias=.m.,block.*/attn/proj/kernel=m.,"
    "block.*/mlp/fc1/kernel=.m,block.*/mlp/fc1/bias=m,block.*/mlp/fc2/kernel=m."
)


class Product(NamedTuple):
    """One product of the model."""

    site: str
    macs: int
    left: int  # numbers in the left operand
    right: int  # in the right one, a weight or an activation
    out: int
    weight: bool
    captured: int  # bytes that Liu et al.'s search keeps of it, with ``rows`` rows
    share: float  # part of the rows that is kept


class Workload(NamedTuple):
    """A model under a plan."""

    params: int  # numbers
    wide: int  # of these in parts where docs/devices.md's rules are given
    kernels: int  # numbers that the plan quantises
    depth: int
    stream: int  # numbers in the residual stream
    pixels: int  # numbers in an image
    rows: int  # of all attention maps
    keys: int  # in one of these
    products: tuple[Product, ...]
    grouped: Mapping[str, tuple[int, int]]  # address of an operand in groups: channels or rows, and all numbers
    ops: int  # operations one by one, forward: norms, softmax, GELU, quantisers
    kept: int = 0  # bytes of samples, in the host's memory, with as many values an image as ``images`` leave
    residuals: int = 0  # bytes for the backward pass of the quantised model

    @property
    def macs(self) -> int:
        return sum(p.macs for p in self.products)

    @property
    def outs(self) -> int:
        """Bytes of all products."""
        return FLOAT * sum(p.out for p in self.products)

    @property
    def traffic(self) -> int:
        """Bytes that a forward pass reads and writes: activations into products, products out, each once."""
        return self.outs + FLOAT * sum(p.left + (0 if p.weight else p.right) for p in self.products)

    @property
    def largest(self) -> int:
        """Bytes of the largest product with its operands."""
        return FLOAT * max(p.left + p.out + (0 if p.weight else p.right) for p in self.products)


def workload(
    name: str | Mapping[str, Any], method: Any, options: Any, images: int = 1, rows: int | None = 16
) -> Workload:
    """What the model (a name of ``MODELS``, or fields of a ViT's Spec) asks for under the method's plan."""
    fields = dict(MODELS[name] if isinstance(name, str) else name)
    model = build("vit", fields)
    counted = counted_in(sites(model.forward, model.shapes(), model.image), model, method, options, rows)
    trains = bool(getattr(method, "TRAINS", False))
    few, more = ((_traced(build("vit", fields | {"depth": d}), method, options, images, trains)) for d in (2, 3))
    kept, residuals = (a + (model.spec.depth - 2) * (b - a) for a, b in zip(few, more, strict=True))
    return counted._replace(kept=kept, residuals=residuals)


def _plan(model: Model, method: Any, options: Any) -> tuple[Sites, Plan]:
    known = sites(model.forward, model.shapes(), model.image)
    return known, resolve(method.recipe(options, known), known)


def counted_in(known: Sites, model: Model, method: Any, options: Any, rows: int | None = 16) -> Workload:
    """What needs no trace but the one that found the operands: all but ``kept`` and ``residuals``."""
    plan = {a: q for a, q in method.recipe(options, known) if q is not None}
    names = {"/".join(str(k.key) for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(model.shapes())}
    wide = sum(math.prod(x.shape) for name, x in names.items() if _is_wide(name))
    products = tuple(_product(left, right, rows) for left, right in pairs(known).values())
    maps = [o for o in known.values() if o.role == "p"]
    spec = model.spec
    tokens = math.prod(spec.grid) + spec.prefix
    stream = tokens * spec.dim
    between = 2 * 8 * stream + 8 * round(tokens * spec.dim * spec.mlp_ratio)  # two norms, GELU, additions
    quantised = sum(4 * math.prod(known[a].shape) for a in plan if known[a].path is None)
    ops = spec.depth * between + sum(6 * math.prod(o.shape) for o in maps) + quantised
    return Workload(
        sum(math.prod(x.shape) for x in names.values()),
        wide,
        sum(math.prod(known[a].shape) for a in plan if known[a].path is not None),
        spec.depth,
        stream,
        math.prod(model.image),
        sum(math.prod(o.shape[:-1]) for o in maps),
        tokens,
        products,
        {
            a: (indices(q.along, known[a].letters, known[a].shape), math.prod(known[a].shape))
            for a, q in plan.items()
            if isinstance(q, Grouped)
        },
        ops,
    )


def _is_wide(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern, _ in rules_of(WIDE))


def _product(left: Operand, right: Operand, rows: int | None) -> Product:
    """What the search keeps: its activations, of the left one (and what is beside it) some rows."""
    pair = Pair(left, right)
    count, extent = pair.count(rows), dict(zip(left.letters, left.shape, strict=True))
    share = 1.0 if count is None else count / extent[pair.sampled]
    kept = sum(math.prod(o.shape) * (share if o is left else 1.0) for o in pair.kept)
    sizes = math.prod(left.shape), math.prod(right.shape), math.prod(left.product)
    return Product(left.site, macs(left, right), *sizes, right.path is not None, round(FLOAT * kept), share)


def _traced(model: Model, method: Any, options: Any, images: int, trains: bool) -> tuple[int, int]:
    """Bytes of an image that calibration keeps, and that a quantised training step keeps for its backward pass."""
    known, plan = _plan(model, method, options)
    apart = {a: {q.apart} for a, q in plan.items() if known[a].path is None}
    params = model.shapes()

    def seen(params: Any, x: jax.Array) -> Any:
        tape: dict[str, Any] = {}
        model.forward(params, x, observing(tape, apart, jnp.int32(0), max(1, VALUES // images), packed_dot()))
        return tape

    def batch(n: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((n, *model.image), jnp.float32)

    kept = _bytes(jax.eval_shape(seen, params, batch(2))) - _bytes(jax.eval_shape(seen, params, batch(1)))
    if not trains:
        return kept, 0
    states = {
        a: jax.eval_shape(
            lambda x, q=q, a=a: q.init(x, known[a].letters), jax.ShapeDtypeStruct(known[a].shape, "float32")
        )
        for a, q in plan.items()
    }

    def pulled(params: Any, states: Any, x: jax.Array) -> Any:
        return jax.vjp(lambda p, s: model.forward(p, x, quantized(plan, s)), params, states)[1]

    residuals = [_bytes(jax.eval_shape(pulled, params, states, batch(n))) for n in (1, 2)]
    return kept, residuals[1] - residuals[0]


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
