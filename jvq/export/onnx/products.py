"""The products of a graph: what ``dot`` is to a model.

A quantised operand is a QuantizeLinear and a DequantizeLinear with one scale and zero point: where both operands of a
product have them, onnxruntime makes it one product of integers (MatMulIntegerToFloat), and it does so for nothing
else. So everything that is not one number for the whole operand is taken out of the product, exactly:

- scales along what the product sums over (groups of channels): a product for each group, added up;
- other scales (heads, rows): factors behind the product;
- offsets, and zero points that differ: ``(A + a)(B + b) = A B + a sum(B) + b sum(A) + a b K``. Where B is a weight
  ``a sum(B)`` is one more bias.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jvq.core.packed import Packed
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Sites
from jvq.export.onnx.graph import Graph
from jvq.export.onnx.grids import TOP, Grid, grid

MOST = 32  #: products that one is split into, at most
MIDDLE = 128  #: the zero point of operands whose own differ


@dataclasses.dataclass(frozen=True)
class Side:
    """An operand in a product: ``factor * value + offset``, of which ``value`` is multiplied."""

    value: str
    factor: np.ndarray | None = None  # along axes that the product keeps; None: 1
    offset: np.ndarray | None = None  # as well; None: 0
    weight: "Weight | None" = None  # which the value is


@dataclasses.dataclass(frozen=True)
class Weight:
    """A kernel [d n]: float, or int8 codes with scale and zero point [d|1 n]."""

    name: str
    codes: np.ndarray
    scale: np.ndarray | None = None
    zero: np.ndarray | None = None

    @property
    def kinds(self) -> np.ndarray | None:
        """A row of numbers for each row of the kernel, equal where it is quantised alike; None: everywhere."""
        if self.scale is None or self.zero is None or len(self.scale) == 1:
            return None
        return np.concatenate([self.scale, self.zero.astype(np.float32)], axis=1)

    def part(self, rows: np.ndarray | None, name: str) -> "Weight":
        """Some of its rows, which are quantised alike; None: all."""
        first = 0 if rows is None else int(rows[0])
        scale, zero = (x if x is None or len(x) == 1 else x[first : first + 1] for x in (self.scale, self.zero))
        if rows is None:
            return dataclasses.replace(self, scale=scale, zero=zero)
        return Weight(f"{self.name}{name}", self.codes[rows], scale, zero)

    def sums(self) -> np.ndarray:
        """The sums of its columns [n], float64; its rows are quantised alike."""
        wide = self.codes.sum(axis=0, dtype=np.float64)
        if self.scale is None or self.zero is None:
            return wide
        return (wide - len(self.codes) * self.zero[0].astype(np.float64)) * self.scale[0]

    def side(self, graph: Graph, *, integers: bool) -> Side:
        """The kernel in the graph, under its name; ``integers``: the other side of its product is quantised too.

        A float product gets it as [1 d n]: of a kernel [d n] onnxruntime makes MatMulNBits, which quantises the
        activations after all, in its own way.
        """
        if self.scale is None or self.zero is None:
            return Side(graph.constant(self.codes, self.name), weight=self)
        # constants of its own: onnxruntime fails to turn a weight into uint8 whose zero point others share
        ends = graph.constant(self.scale[0], f"{self.name}/scale"), graph.constant(self.zero[0], f"{self.name}/zero")
        codes = graph.constant(self.codes if integers else self.codes[None], self.name)
        return Side(graph.add("DequantizeLinear", codes, *ends, axis=-1), weight=self)


@dataclasses.dataclass
class Products:
    """Writes products into a graph, their operands quantised by the plan."""

    graph: Graph
    params: Mapping[str, Any]
    plan: Mapping[str, Quantizer]
    qstate: Mapping[str, State]
    known: Sites
    sites: list[str] = dataclasses.field(default_factory=list)  # that are written

    def param(self, path: str) -> np.ndarray:
        """The float parameter at a path of the model's tree."""
        return np.asarray(_leaf(self.params, path), np.float32)

    def linear(self, site: str, x: str, letters: str, *, bias: bool = True) -> str:
        """``x`` [letters] times the kernel of ``site``, plus its bias where it has one and ``bias`` says so.

        What the kernel gives is one axis.
        """
        kernel = weight(_leaf(self.params, f"{site}/kernel"), site)
        y, constant = self._product(site, {"x": (x, letters)}, kernel)
        there = _leaf(self.params, site)
        if bias and "bias" in there:
            constant = constant + self.param(f"{site}/bias").reshape(-1)
        if not np.any(constant):
            return y
        name = f"{site}/bias" if bias else f"{site}/offset"
        return self.graph.add("Add", y, self.graph.constant(np.asarray(constant, np.float32), name))

    def head(self, site: str, x: str) -> str:
        """The same for ``x`` [b d]. Of two axes onnxruntime makes product and bias one float Gemm, of three not."""
        token = self.graph.add("Unsqueeze", x, self.graph.integers([1]))
        y = self.linear(site, token, "bnd")
        return self.graph.add("Squeeze", y, self.graph.integers([1]))

    def pair(self, site: str, **operands: tuple[str, str]) -> str:
        """The product of two activations, each with its letters; the axis summed over is last and last but one."""
        return self._product(site, operands, None)[0]

    def _product(
        self, site: str, operands: Mapping[str, tuple[str, str]], kernel: Weight | None
    ) -> tuple[str, np.ndarray]:
        """The product without what is a constant of the weight's outputs, and that, float64."""
        self.sites.append(site)
        grids = {role: self._grid(f"{site}.{role}", letters) for role, (_, letters) in operands.items()}
        groups = _groups(site, [x.kinds for x in (*grids.values(), kernel) if x is not None])
        first = self.known[f"{site}.{next(iter(operands))}"]
        summed, length = first.contracted, first.shape[first.letters.index(first.contracted)]
        whole, constant = "", np.zeros(1)
        for i, rows in enumerate(groups):
            sides = [self._side(x, grids[r], rows, letters.index(summed)) for r, (x, letters) in operands.items()]
            if kernel is not None:
                quantised = all(x is not None for x in grids.values())
                sides.append(kernel.part(rows, f"/{i}").side(self.graph, integers=quantised))
            y, more = self._times(sides[0], sides[1], length if rows is None else len(rows))
            whole, constant = self.graph.add("Add", whole, y) if whole else y, constant + more
        return whole, constant

    def _grid(self, address: str, layout: str) -> Grid | None:
        quantizer = self.plan.get(address)
        if quantizer is None:
            return None
        operand = self.known[address]
        return grid(quantizer, self.qstate[address], operand, layout)

    def _side(self, x: str, there: Grid | None, rows: np.ndarray | None, axis: int) -> Side:
        """The activation, or the given part of what is summed over, quantised."""
        if rows is not None:
            x = self.graph.add("Gather", x, self.graph.integers(rows.tolist()), axis=axis)
        return Side(x) if there is None else encoded(self.graph, x, there.at(0 if rows is None else int(rows[0])))

    def _times(self, left: Side, right: Side, length: int) -> tuple[str, np.ndarray]:
        """The product of two sides; and what of it is a constant, which is left out, float64."""
        g = self.graph
        y, constant = g.add("MatMul", left.value, right.value), np.zeros(1)
        factors = [s.factor for s in (left, right) if s.factor is not None]
        if factors:
            factor = factors[0] if len(factors) == 1 else factors[0] * factors[1]
            y = g.add("Mul", y, g.constant(factor))
        for one, other, axis in ((left, right, -2), (right, left, -1)):
            if one.offset is None:
                continue
            if other.weight is not None:  # its sums are known
                more = one.offset.astype(np.float64) * other.weight.sums()
                if one.offset.size == 1:
                    constant = constant + more.reshape(-1)
                else:
                    y = g.add("Add", y, g.constant(more.astype(np.float32)))
                continue
            total = g.add("ReduceSum", other.value, g.integers([axis]), keepdims=1)
            by = one.offset if other.factor is None else one.offset * other.factor
            y = g.add("Add", y, g.add("Mul", total, g.constant(by)))
        if left.offset is not None and right.offset is not None:
            y = g.add("Add", y, g.constant(np.float32(length) * left.offset * right.offset))
        return y, constant


def encoded(graph: Graph, x: str, there: Grid) -> Side:
    """An activation on its grid, whose arrays have length 1 along what the product sums over."""
    if there.offset is not None:
        x = graph.add("Sub", x, graph.constant(there.offset))
    scale, zero = there.scale, there.zero
    if scale.size == zero.size == 1 and 0 <= zero.item() <= TOP:
        if there.levels < TOP:  # the container saturates at 8 bits
            ends = scale.item() * (0 - zero.item()), scale.item() * (there.levels - zero.item())
            x = graph.add("Clip", x, *map(graph.number, ends))
        constants = graph.number(scale.item()), graph.constant(np.uint8(zero.item()))
        value = graph.add("DequantizeLinear", graph.add("QuantizeLinear", x, *constants), *constants)
        return Side(value, offset=there.offset)
    steps = graph.add("Round", graph.add("Mul", x, graph.constant(np.float32(1) / scale)))
    codes = graph.add("Add", steps, graph.constant(zero))
    codes = graph.add("Clip", codes, graph.number(0.0), graph.number(float(there.levels)))
    first = zero.reshape(-1)[0]
    shared = first if (zero == first).all() and 0 <= first <= TOP else np.float32(MIDDLE)
    one = graph.number(1.0)
    quantised = graph.add("QuantizeLinear", codes, one, graph.constant(np.uint8(0)))
    value = graph.add("DequantizeLinear", quantised, one, graph.constant(np.uint8(shared)))
    offset = scale * (shared - zero) + (0 if there.offset is None else there.offset)
    return Side(value, scale, offset.astype(np.float32) if np.any(offset) else None)


def weight(leaf: Any, site: str) -> Weight:
    """The kernel [d ...] of a site as [d n]. ``ValueError`` where QDQ has no such codes."""
    name = f"{site}/kernel"
    if not isinstance(leaf, Packed):
        return Weight(name, np.asarray(leaf, np.float32).reshape(np.shape(leaf)[0], -1))
    if leaf.zero is None:
        raise ValueError(f"{site}.w: its codes are signs, QDQ has integers with a zero point; use Uniform or Ternary")
    if leaf.bits > 8:
        raise ValueError(f"{site}.w: {leaf.bits} bits, QDQ's integer products take 8 at most; use bits=8")
    codes = np.asarray(leaf.codes().codes)
    middle = 2 ** (leaf.bits - 1)
    rows = max(part.shape[0] if part.ndim else 1 for part in (leaf.scale, leaf.zero))
    shape = (rows, *leaf.shape[1:])
    scale, zero = (np.broadcast_to(np.asarray(part), shape).reshape(rows, -1) for part in (leaf.scale, leaf.zero))
    zero = zero - middle
    if zero.min() < -128 or zero.max() > 127:
        raise ValueError(
            f"{site}.w: a zero point lies outside of the codes, QDQ has none there; use zero_point='extend'"
        )
    flat = (codes - middle).astype(np.int8).reshape(leaf.shape[0], -1)
    return Weight(name, flat, scale.astype(np.float32), zero.astype(np.int8))


def _groups(site: str, found: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """The parts of what a product sums over, in each of which every operand is quantised alike; [None]: all of it."""
    kinds = [x for x in found if x is not None]
    if not kinds:
        return [None]
    _, group = np.unique(np.concatenate(kinds, axis=1), axis=0, return_inverse=True)
    count = int(group.max()) + 1
    if count == 1:
        return [None]
    if count > MOST:
        raise ValueError(
            f"{site}: {count} different scales along the axis that the product sums over, each a product of its own "
            f"in QDQ, {MOST} at most; use StaticGrouped with fewer groups, or Uniform with keep of other axes"
        )
    return [np.flatnonzero(group.reshape(-1) == i) for i in range(count)]


def _leaf(params: Any, path: str) -> Any:
    for key in path.split("/"):
        params = params[key]
    return params
