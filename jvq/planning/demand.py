"""What a ViT asks for, counted by abstract traces: nothing is computed, and the largest model takes seconds.

Everything but parameters is of one image, float32. What takes a long trace (what is kept for a backward pass, what
calibration keeps) is traced on two and on three blocks: each further block adds the same.

Memory of a device is counted with the padding of its tiles, as :func:`padded` says; what hosts hold, and parameters,
without: a ViT's have multiples of 64 along some axis, and XLA's own sum for v5e is within 0.1 % of theirs.
"""

import itertools
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
from jvq.planning.pods import TILE, Tile
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
    lying: tuple[int, int, int]  # left, right, out as they lie in a device's memory
    chunk: int  # ``captured`` as it lies there


class Workload(NamedTuple):
    """A model under a plan."""

    params: int  # numbers
    wide: int  # of these in parts where docs/devices.md's rules are given
    kernels: int  # numbers that the plan quantises
    depth: int
    stream: int  # numbers in the residual stream, as they lie in a device's memory
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
        """Bytes of all products, as the sweep counts them."""
        return FLOAT * sum(p.out for p in self.products)

    @property
    def recorded(self) -> int:
        """Bytes of all products, as they lie in a device's memory."""
        return FLOAT * sum(p.lying[2] for p in self.products)

    @property
    def traffic(self) -> int:
        """Bytes that a forward pass reads and writes: activations into products, products out, each once."""
        return sum(moved(p) for p in self.products)

    @property
    def largest(self) -> int:
        """Bytes of the largest product with its operands."""
        return max(moved(p) for p in self.products)


def moved(p: Product) -> int:
    """Bytes of the activations that a product reads, and of what it writes."""
    left, right, out = p.lying
    return FLOAT * (left + out + (0 if p.weight else right))


def padded(shape: tuple[int, ...], tile: Tile, size: int = FLOAT) -> int:
    """Numbers that an array of numbers of ``size`` bytes takes in tiles of ``(rows, columns)`` float32.

    Of the two axes along a tile the last one is filled up to columns, the other to rows, of which narrower numbers have
    more (16 of 2 bytes, 32 of one) and a short axis fewer: a power of two. XLA chooses the order of axes itself; here
    it is the one that pads least, which is what it was seen to choose (docs/scale.md).
    """
    whole = math.prod(shape)
    if tile == TILE or not whole:
        return whole

    def filled(rows: int, columns: int) -> int:
        high = min(tile[0] * max(1, FLOAT // size), 2 ** (rows - 1).bit_length())
        return -(-rows // high) * high * -(-columns // tile[1]) * tile[1]

    lengths = (1,) * (2 - len(shape)) + shape
    return min(whole // (r * c) * filled(r, c) for r, c in itertools.permutations(lengths, 2))


def sizes(o: Operand) -> tuple[int, ...]:
    """An operand's shape without its image axis."""
    return tuple(n for a, n in zip(o.letters, o.shape, strict=True) if a != "b")


def workload(
    name: str | Mapping[str, Any],
    method: Any,
    options: Any,
    images: int = 1,
    rows: int | None = 16,
    tile: Tile = TILE,
) -> Workload:
    """What the model (a name of ``MODELS``, or fields of a ViT's Spec) asks for under the method's plan.

    ``tile`` is that of the chip (``CHIPS``).
    """
    fields = dict(MODELS[name] if isinstance(name, str) else name)
    model = build("vit", fields)
    counted = counted_in(sites(model.forward, model.shapes(), model.image), model, method, options, rows, tile)
    trains = bool(getattr(method, "TRAINS", False))
    few, more = ((_traced(build("vit", fields | {"depth": d}), method, options, images, trains, tile)) for d in (2, 3))
    kept, residuals = (a + (model.spec.depth - 2) * (b - a) for a, b in zip(few, more, strict=True))
    return counted._replace(kept=kept, residuals=residuals)


def _plan(model: Model, method: Any, options: Any) -> tuple[Sites, Plan]:
    known = sites(model.forward, model.shapes(), model.image)
    return known, resolve(method.recipe(options, known), known)


def counted_in(
    known: Sites, model: Model, method: Any, options: Any, rows: int | None = 16, tile: Tile = TILE
) -> Workload:
    """What needs no trace but the one that found the operands: all but ``kept`` and ``residuals``."""
    plan = {a: q for a, q in method.recipe(options, known) if q is not None}
    names = {"/".join(str(k.key) for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(model.shapes())}
    wide = sum(math.prod(x.shape) for name, x in names.items() if _is_wide(name))
    products = tuple(_product(left, right, rows, tile) for left, right in pairs(known).values())
    maps = [o for o in known.values() if o.role == "p"]
    spec = model.spec
    tokens = math.prod(spec.grid) + spec.prefix
    stream = padded((tokens, spec.dim), tile)
    hidden = padded((tokens, round(spec.dim * spec.mlp_ratio)), tile)
    between = 2 * 8 * stream + 8 * hidden  # two norms, GELU, additions
    quantised = sum(4 * padded(sizes(known[a]), tile) for a in plan if known[a].path is None)
    ops = spec.depth * between + sum(6 * padded(sizes(o), tile) for o in maps) + quantised
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


def _product(left: Operand, right: Operand, rows: int | None, tile: Tile) -> Product:
    """What the search keeps: its activations, of the left one (and what is beside it) some rows."""
    pair = Pair(left, right)
    count, extent = pair.count(rows), dict(zip(left.letters, left.shape, strict=True))
    share = 1.0 if count is None else count / extent[pair.sampled]
    kept = []
    for o in pair.kept:
        some = {pair.sampled: count} if o is left and count is not None else {}
        kept.append(tuple(some.get(a, n) for a, n in zip(o.letters, o.shape, strict=True) if a != "b"))
    out = tuple(n for a, n in zip(left.out, left.product, strict=True) if a != "b")
    numbers = math.prod(left.shape), math.prod(right.shape), math.prod(left.product)
    lying = padded(sizes(left), tile), padded(sizes(right), tile), padded(out, tile)
    captured, chunk = FLOAT * sum(map(math.prod, kept)), FLOAT * sum(padded(x, tile) for x in kept)
    return Product(left.site, macs(left, right), *numbers, right.path is not None, captured, share, lying, chunk)


def _traced(model: Model, method: Any, options: Any, images: int, trains: bool, tile: Tile = TILE) -> tuple[int, int]:
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

    one, two = (jax.tree.leaves(jax.eval_shape(pulled, params, states, batch(n))) for n in (1, 2))
    return kept, sum(_of_image(few, more, tile) for few, more in zip(one, two, strict=True))


def _of_image(few: Any, more: Any, tile: Tile) -> int:
    """Bytes that an image adds to an array: of one image it is ``few``, of two ``more``."""
    at = [i for i, (n, m) in enumerate(zip(few.shape, more.shape, strict=True)) if n != m]
    if not at:
        return 0
    size = jnp.dtype(few.dtype).itemsize
    shape = tuple(n for i, n in enumerate(few.shape) if i != at[0])
    return (more.shape[at[0]] - few.shape[at[0]]) * size * padded(shape, tile, size)


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
