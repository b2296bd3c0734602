"""Static group quantisation: every channel or row keeps the group that it got at calibration, in every image.

The baselines of Moon et al., Instance-Aware Group Quantization for Vision Transformers, CVPR 2024, table 5:
consecutive channels, and channels sorted by their range (the range-based permutation of Bondarenko et al., EMNLP
2021). ``grouping="kmeans"`` is ours: the groups of :class:`jvq.quantizers.Grouped`, frozen; what remains between the
two is the choice by the image. How the paper bounds its static groups is not known to us: ``bounds`` has three ways.
"""

import dataclasses
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from jvq.core import axes, ranges
from jvq.core.quantizer import Codes, Overhead, State
from jvq.core.samples import Samples, whole
from jvq.quantizers import kmeans
from jvq.quantizers.grouped import MSTEPS, MStep, check_groups, group_error
from jvq.quantizers.uniform import Uniform, check_bits, check_choice

Grouping = Literal["consecutive", "sorted", "kmeans"]
GROUPINGS: tuple[Grouping, ...] = ("consecutive", "sorted", "kmeans")


@dataclasses.dataclass(frozen=True)
class StaticGrouped:
    """``groups`` frozen uniform quantisers; each index of the axes ``along`` uses the same one in every image.

    An index is described by its (min, max) over all else, calibration images included. ``grouping``: equal runs of
    neighbouring indices (along several axes: flattened in the operand's order), of indices sorted by ``max - min``, or
    k-means. ``bounds`` of a group: of all its members' values, the means of its members' bounds, or of least error.
    State, float32: ``scale zero`` [along], those of each index's group, and ``levels`` [] = 2**bits - 1.
    """

    bits: int = 4
    groups: int = 8
    along: str = "d"
    grouping: Grouping = "consecutive"
    bounds: MStep = "cover"
    nonnegative: bool = False  # the lower bound is 0 and indices are grouped by their maximum alone
    zero_point: ranges.ZeroPoint = "extend"
    restarts: int = 3  # of k-means
    iterations: int = 50  # of k-means, at most
    seed: int = 0  # of k-means

    traced: ClassVar[tuple[str, ...]] = ("bits", "seed")

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_bits(self.bits)
        axes.require(self.along, letters, what="along")
        check_groups(self.groups, self.along, letters, shape)
        for name in ("restarts", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, must be at least 1")
        check_choice("grouping", self.grouping, GROUPINGS)
        check_choice("bounds", self.bounds, MSTEPS)
        check_choice("zero_point", self.zero_point, ranges.ZERO_POINTS)

    @property
    def apart(self) -> str:
        return self.along

    @property
    def form(self) -> Uniform:
        return self._frozen.form

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        samples = whole(samples, letters, self.apart)
        points = self.points(samples)
        group = self.membership(points)
        levels = ranges.level_count(self.bits)
        lower, upper = self._group_bounds(samples, points, group, levels)
        scale, zero = ranges.affine(lower, upper, levels, self.zero_point)
        shape = [samples.lower.shape[i] for i in axes.indices(axes.ordered(self.along, letters), letters)]
        return {"scale": scale[group].reshape(shape), "zero": zero[group].reshape(shape), "levels": levels}

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        return self._frozen.apply(state, x, letters)

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        return self._frozen.encode(state, x, letters)

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        """Partial sums where the groups divide the contracted axis; what an image is like is never looked at."""
        divided = any(a in contracted for a in self.along)
        return Overhead(add=beta * (self.groups - 1) * product if divided else 0)

    def points(self, samples: Samples) -> jax.Array:
        """(min, max) of each index along, over all else, float32 [p 2]; the minimum is 0 where ``nonnegative``."""
        lower, upper = samples.bounds(self.along)
        if self.nonnegative:
            lower = jnp.zeros_like(upper)
        return jnp.stack([lower, upper], axis=-1).reshape(-1, 2)

    def membership(self, points: jax.Array) -> jax.Array:
        """The group of each point, int32 [p]."""
        if self.grouping == "kmeans":
            key = jax.random.key(self.seed)
            found = kmeans.kmeans(key, points, self.groups, restarts=self.restarts, iterations=self.iterations)
            return found.group.astype(jnp.int32)
        if self.grouping == "consecutive":
            return kmeans.runs(points.shape[0], self.groups)
        return kmeans.sorted_runs(points, self.groups)

    @property
    def _frozen(self) -> Uniform:
        """What is left after calibration: a range an index."""
        return Uniform(self.bits, self.along)

    def _group_bounds(self, samples: Samples, points: jax.Array, group: jax.Array, levels: jax.Array) -> ranges.Bounds:
        """The groups' bounds [g], [g]; 0 where k-means left a group without members."""
        member = jax.nn.one_hot(group, self.groups, dtype=bool)
        count = member.sum(axis=0)
        low, high = points[:, :1], points[:, 1:]
        some = jnp.maximum(count, 1).astype(jnp.float32)
        mean = jnp.where(member, low, 0.0).sum(axis=0) / some, jnp.where(member, high, 0.0).sum(axis=0) / some
        if self.bounds == "mean":
            return mean
        lower = jnp.where(count > 0, jnp.where(member, low, jnp.inf).min(axis=0), 0.0)
        upper = jnp.where(count > 0, jnp.where(member, high, -jnp.inf).max(axis=0), 0.0)
        if self.bounds == "cover":
            return lower, upper
        return self._least_error(samples, (lower, upper), mean, group, levels)

    def _least_error(
        self, samples: Samples, cover: ranges.Bounds, mean: ranges.Bounds, group: jax.Array, levels: jax.Array
    ) -> ranges.Bounds:
        """Bounds of least squared error of the values in each group, searched from the covering and the mean ones."""
        kept = axes.ordered(self.along, samples.letters)
        where = group.reshape([samples.lower.shape[i] for i in axes.indices(kept, samples.letters)])
        error = group_error(samples, kept, where, self.groups, levels)
        affine = partial(ranges.affine, levels=levels, zero_point=self.zero_point)
        return ranges.least_error(*cover, lambda low, high: error(*affine(low, high)), also=mean)
