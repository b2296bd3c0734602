"""Instance-aware group quantisation: frozen quantisers, chosen anew for every channel or row of every image.

Source: Moon et al., Instance-Aware Group Quantization for Vision Transformers, CVPR 2024. The bounds of the groups are
found once by EM (:mod:`jvq.quantizers.kmeans`); at run time each channel's or row's (min, max) picks the nearest group.
Departures from the paper, each with its literal form as an option: ``mstep="mse"`` (the paper's mean clips half of the
channels), ``zero_point="extend"`` (the clamp clips intervals without 0).
"""

import dataclasses
import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jvq.core import axes, ranges
from jvq.core.quantizer import Codes, Overhead, State
from jvq.core.rounding import fake_quantize
from jvq.core.samples import Samples, whole
from jvq.quantizers import kmeans
from jvq.quantizers.ladder import GroupError, fit_ladder
from jvq.quantizers.uniform import check_bits, check_choice, integers

MStep = Literal["mse", "mean", "cover"]
Statistics = Literal["image", "pooled"]
MSTEPS: tuple[MStep, ...] = ("mse", "mean", "cover")
STATISTICS: tuple[Statistics, ...] = ("image", "pooled")


@dataclasses.dataclass(frozen=True)
class Grouped:
    """``groups`` frozen uniform quantisers; each index of the axes ``along``, in each image, uses the nearest one.

    ``along="d"``: channels of a linear input, (min, max) over the image's tokens. ``along="hq"`` with ``nonnegative``:
    rows of an attention map, each head for itself; ``along="q"``: one group a token, over heads.
    State, float32, g = capacity: ``lower upper`` [g] the centres that points are assigned to (inf where padded),
    ``scale zero`` [g] the groups' quantisers, ``levels`` [] = 2**bits - 1.
    """

    bits: int = 4
    groups: int = 8
    along: str = "d"
    nonnegative: bool = False  # the lower bound is 0 and points are assigned by their maximum alone (eq. 8)
    mstep: MStep = "mse"  # final bounds, given the groups that the EM found with means; with a ladder it is ignored
    zero_point: ranges.ZeroPoint = "extend"  # with a ladder it is ignored too: 0 is always among the values
    ladder: bool = False  # scales are s0 * 2**k, chosen by error: one integer operand and accumulator serve all groups
    distance: kmeans.Distance = "squared"  # "relative" differs in the EM alone: narrow channels count as wide ones do
    start: kmeans.Start = "kmeans++"
    restarts: int = 3
    iterations: int = 50
    statistics: Statistics = "image"  # a point per channel and calibration image, or one pooled over the images
    capacity: int | None = None  # length of the state's arrays, at least ``groups``; None: equal
    seed: int = 0

    @property
    def traced(self) -> tuple[str, ...]:
        """Fields that ``init`` reads as numbers only: with a capacity, numbers of groups share one executable."""
        return ("bits", "seed") if self.capacity is None else ("bits", "seed", "groups")

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_bits(self.bits)
        axes.require(self.along, letters, what="along")
        if self.ladder and self.bits >= 8:
            raise ValueError(f"ladder: {self.bits} bits leave no room in int8, must be at most 7")
        check_groups(self.groups, self.along, letters, shape)
        if self.capacity is not None and self.capacity < self.groups:
            raise ValueError(f"capacity: got {self.capacity}, must be at least groups = {self.groups}")
        for name in ("restarts", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, must be at least 1")
        check_choice("mstep", self.mstep, MSTEPS)
        check_choice("zero_point", self.zero_point, ranges.ZERO_POINTS)
        check_choice("distance", self.distance, kmeans.DISTANCES)
        check_choice("start", self.start, kmeans.STARTS)
        check_choice("statistics", self.statistics, STATISTICS)

    @property
    def apart(self) -> str:
        return self.along

    @property
    def form(self) -> "Grouped":
        distance = "absolute" if self.distance == "absolute" else "squared"
        return Grouped(along=self.along, nonnegative=self.nonnegative, distance=distance)

    def clustered(self, samples: jax.Array | Samples, letters: str) -> tuple[jax.Array, kmeans.Fit]:
        """The points (min, max) [p 2] of the calibration samples, and what the EM makes of them."""
        points = self._points(*whole(samples, letters, self.apart).bounds("b" + self.along), letters)
        if self.statistics == "pooled" and "b" in letters:
            image = axes.indices("b", axes.ordered("b" + self.along, letters))
            ends = points[..., 0].min(image, keepdims=True), points[..., 1].max(image, keepdims=True)
            points = jnp.stack(ends, axis=-1)
        flat = points.reshape(-1, 2)
        return flat, kmeans.kmeans(
            jax.random.key(self.seed),
            flat,
            self.groups,
            capacity=self.length,
            start=self.start,
            restarts=self.restarts,
            iterations=self.iterations,
            distance=self.distance,
        )

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        samples = whole(samples, letters, self.apart)
        points, found = self.clustered(samples, letters)
        levels = ranges.level_count(self.bits)
        scale, zero = self._quantisers(samples, letters, found, points, levels)
        used = jnp.arange(self.length) < self.groups
        return {
            "lower": found.centres[:, 0],
            "upper": found.centres[:, 1],
            "scale": jnp.where(used, scale, 1.0),
            "zero": jnp.where(used, zero, 0.0),
            "levels": levels,
        }

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        scale, zero = self._chosen(state, x, letters)
        return fake_quantize(x, scale, zero, state["levels"], jnp.float32(1.0))

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        scale, zero = self._chosen(state, x, letters)
        return integers(x, scale, zero, state["levels"])

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        """Minima and maxima, assignment, and partial sums where the groups divide the contracted axis (spec 2.6).

        Per image: ``2 beta N C`` + ``C G (3 beta + 2 beta**2)`` + ``beta (G-1) N D`` for linear inputs; for attention
        rows ``beta H N**2`` + ``beta H N G``: a row's scale factors out of the sum. With a ladder there are no partial
        sums: codes are shifted into one operand, and shifts of integers are free in this accounting.
        """
        points = indices(self.along, letters, shape)
        find = beta * math.prod(shape) * (1 if self.nonnegative else 2)
        choose = points * self.groups * (beta if self.nonnegative else 3 * beta + 2 * beta**2)
        divided = not self.ladder and any(a in contracted for a in self.along)
        return Overhead(find, choose, beta * (self.groups - 1) * product if divided else 0)

    @property
    def length(self) -> int:
        """Length of the state's arrays."""
        return self.groups if self.capacity is None else self.capacity

    def points(self, x: jax.Array, letters: str) -> jax.Array:
        """(min, max) over all other axes, float32: [b along 2]; the minimum is 0 where ``nonnegative``."""
        return self._points(*ranges.extremes(x, axes.others("b" + self.along, letters)), letters)

    def _points(self, lower: jax.Array, upper: jax.Array, letters: str) -> jax.Array:
        if self.nonnegative:
            lower = jnp.zeros_like(upper)
        return jnp.stack([lower, upper], axis=-1).squeeze(axes.others("b" + self.along, letters))

    def assignment(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        """The group of every index ``along`` in every image: int32 [b along], letters in the operand's order."""
        centres = jnp.stack([state["lower"], state["upper"]], axis=-1)
        # barriers: the same choice whatever is compiled around it; a product and a sum may become one, or not
        points = jax.lax.optimization_barrier(self.points(x, letters))
        return jax.lax.optimization_barrier(kmeans.assign(points, centres, self.distance).astype(jnp.int32))

    def _chosen(self, state: State, x: jax.Array, letters: str) -> tuple[jax.Array, jax.Array]:
        """Each point's scale and zero point, expanded onto the operand's axes."""
        group = self.assignment(state, jax.lax.stop_gradient(x), letters)
        kept = axes.ordered("b" + self.along, letters)
        scale, zero = (jnp.take(state[name], group, axis=0) for name in ("scale", "zero"))
        return axes.expand(scale, kept, letters), axes.expand(zero, kept, letters)

    def _quantisers(
        self, samples: Samples, letters: str, found: kmeans.Fit, points: jax.Array, levels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The groups' scales [g] and zero points [g], by the ladder or from the chosen M-step's bounds."""
        lower, upper = self._bounds(found, points)
        if self.ladder:
            error = self._error(samples, letters, found, levels)
            return fit_ladder(lower, upper, levels, error, nonnegative=self.nonnegative)
        if self.mstep == "mse":
            error = self._error(samples, letters, found, levels)
            affine = partial(ranges.affine, levels=levels, zero_point=self.zero_point)
            means = jnp.where(jnp.arange(self.length) < self.groups, found.centres.T, 0.0)
            lower, upper = ranges.least_error(
                lower, upper, lambda low, high: error(*affine(low, high)), also=(means[0], means[1])
            )
        return ranges.affine(lower, upper, levels, self.zero_point)

    def _bounds(self, found: kmeans.Fit, points: jax.Array) -> ranges.Bounds:
        """The groups' mean or covering bounds [g], [g]; a group without points keeps its centre."""
        used = (jnp.arange(self.length) < self.groups)[:, None]
        lower, upper = jnp.where(used, found.centres, 0.0).T
        if self.mstep == "mean" and not self.ladder:
            return lower, upper
        member = jax.nn.one_hot(found.group, self.length, dtype=bool)
        there = member.any(axis=0)
        lowest = jnp.where(member, points[:, :1], jnp.inf).min(axis=0)
        highest = jnp.where(member, points[:, 1:], -jnp.inf).max(axis=0)
        return jnp.where(there, lowest, lower), jnp.where(there, highest, upper)

    def _error(self, samples: Samples, letters: str, found: kmeans.Fit, levels: jax.Array) -> GroupError:
        """The squared error of the values in each group, [g] of scales [g] and zero points [g]."""
        kept = axes.ordered("b" + self.along, letters)
        shape = tuple(samples.lower.shape[i] for i in axes.indices(kept, letters))
        if self.statistics == "pooled" and "b" in letters:
            pooled = tuple(1 if a == "b" else n for a, n in zip(kept, shape, strict=True))
            group = jnp.broadcast_to(found.group.reshape(pooled), shape)
        else:
            group = found.group.reshape(shape)
        return group_error(samples, kept, group, self.length, levels)


def padded(state: State, length: int) -> State:
    """A state whose arrays have ``length`` groups: those that are added are never chosen."""
    more = length - len(state["lower"])
    filler = {"lower": jnp.inf, "upper": jnp.inf, "scale": 1.0, "zero": 0.0}
    return {n: jnp.pad(x, (0, more), constant_values=filler[n]) if n in filler else x for n, x in state.items()}


def cut(state: State, groups: int) -> State:
    """The state without its padding."""
    return {name: x[:groups] if x.ndim else x for name, x in state.items()}


def indices(along: str, letters: str, shape: tuple[int, ...]) -> int:
    """How many channels or rows an image has that each belong to a group."""
    size = dict(zip(letters, shape, strict=True))
    return math.prod(size[a] for a in along)


def check_groups(groups: int, along: str, letters: str, shape: tuple[int, ...]) -> None:
    """Raises ``ValueError`` where ``along`` names no axes of one image, or there are more groups than indices."""
    if not along or "b" in along:
        raise ValueError(f"along: got '{along}', must name axes of the operand other than the image's 'b'")
    count = indices(along, letters, shape)
    if not 1 <= groups <= count:
        raise ValueError(f"groups: got {groups}, must be from 1 to the {count} indices along '{along}'")


def group_error(samples: Samples, kept: str, group: jax.Array, groups: int, levels: jax.Array) -> GroupError:
    """The squared error of the values in each group, [g] of scales [g] and zero points [g].

    ``group`` [kept] says which each index belongs to.
    """
    over = axes.others(kept, samples.letters)
    values, weight = (jnp.moveaxis(y, over, range(len(over))) for y in samples.weighted())
    weight = jnp.broadcast_to(weight, (*values.shape[: len(over)], *(1,) * group.ndim)).reshape(-1)
    x = values.reshape(-1, group.size)  # indices that have a group stand last: what follows is one vectorised loop
    member = jax.nn.one_hot(group.reshape(-1), groups, dtype=jnp.float32)

    def error(scale: jax.Array, zero: jax.Array) -> jax.Array:
        s, z = (jnp.take(t, group.reshape(-1), axis=0)[None] for t in (scale, zero))
        off = jnp.square(x - fake_quantize(x, s, z, levels, jnp.float32(1.0)))
        return jnp.einsum("k,kp,pg->g", weight, off, member, precision=jax.lax.Precision.HIGHEST)

    return error
