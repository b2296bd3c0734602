"""k-means on the ranges of channels or rows: the EM of IGQ-ViT (eqs. 4-6), which calibrates a grouped quantiser."""

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Distance = Literal["squared", "absolute", "relative"]
Start = Literal["kmeans++", "quantile"]
DISTANCES: tuple[Distance, ...] = ("squared", "absolute", "relative")
STARTS: tuple[Start, ...] = ("kmeans++", "quantile")
SOME = 2**13  #: points that restarts look at
NARROWEST = 1e-3  #: a point's range counts as at least this part of the widest one's

Groups = int | Int[Array, ""]
"""A number of groups. Where a ``capacity`` stands beside it, it may be traced: arrays have that length."""


class Fit(NamedTuple):
    """What the EM found: points are pairs (min, max), centres the bounds of the groups."""

    centres: Float[Array, "g 2"]
    group: Int[Array, " p"]
    objective: Float[Array, ""]  # sum over points of the distance to their group's bounds
    history: Float[Array, " i"]  # the objective after each E-step; constant behind the last
    quantile: Float[Array, ""]  # the objective that the quantile start reaches, for comparison


def nearest(
    points: Float[Array, "*p 2"], centres: Float[Array, "g 2"], distance: Distance = "squared"
) -> tuple[Int[Array, "*p"], Float[Array, "*p"]]:
    """The group whose bounds are least distant from each point (eqs. 4, 5, 8), and how far they are.

    Ties go to the lowest index; padded groups (inf) are infinitely far. The relative distance is the squared one over
    the square of the point's own range (:func:`_relative`), ours. As all groups share the divisor it is left out here:
    no choice depends on it, nor on the widest of the points at hand.
    """
    size = jnp.abs if distance == "absolute" else jnp.square
    low, high = points[..., 0], points[..., 1]
    least, group = jnp.full_like(low, jnp.inf), jnp.zeros(low.shape, jnp.int32)
    for g in range(centres.shape[0]):  # a running minimum is one vectorised loop; argmin on CPU takes 40 times as long
        away = size(low - centres[g, 0]) + size(high - centres[g, 1])
        group = jnp.where(away < least, g, group)
        least = jnp.minimum(away, least)
    return group, least


def _ranges(points: Float[Array, "p 2"], distance: Distance) -> Float[Array, " p"] | None:
    """What a point's gaps are divided by: max - min, at least 1e-3 of the widest; None where by nothing.

    Less, and a few constant channels would outweigh all others by more than float32 sums can hold: so no weight is
    more than a million times another. Where all points are constant the divisor is 1.
    """
    if distance != "relative":
        return None
    width = points[:, 1] - points[:, 0]
    widest = width.max()
    return jnp.where(widest > 0, jnp.maximum(width, NARROWEST * widest), 1.0)


def _relative(squared: Float[Array, " p"], width: Float[Array, " p"] | None) -> Float[Array, " p"]:
    """Squared distances over the squares of the points' ranges, if any; those may be too small to square."""
    return squared if width is None else jnp.square(jnp.sqrt(squared) / width)


def assign(
    points: Float[Array, "*p 2"], centres: Float[Array, "g 2"], distance: Distance = "squared"
) -> Int[Array, "*p"]:
    """The group at least distance from each point (eq. 5); ties go to the lowest index."""
    return nearest(points, centres, distance)[0]


def quantile_start(points: Float[Array, "p 2"], groups: Groups, capacity: int) -> Float[Array, "g 2"]:
    """Means of ``groups`` equally large chunks of the points sorted by range (max - min); as many as ``capacity``."""
    return _means(points, sorted_runs(points, groups), jnp.zeros((capacity, 2), jnp.float32))


def sorted_runs(points: Float[Array, "p 2"], groups: Groups) -> Int[Array, " p"]:
    """The chunk of each point, of ``groups`` equally large ones of the points sorted by range (max - min)."""
    order = jnp.argsort(points[:, 1] - points[:, 0])
    count = points.shape[0]
    return jnp.zeros(count, jnp.int32).at[order].set(runs(count, groups))


def runs(count: int, groups: Groups) -> Int[Array, " p"]:
    """``groups`` equally long runs of ``count`` neighbours: the run of each."""
    return jnp.arange(count, dtype=jnp.int32) * groups // count


def plus_plus_start(
    key: Key[Array, ""], points: Float[Array, "p 2"], groups: Groups, capacity: int, distance: Distance = "squared"
) -> Float[Array, "g 2"]:
    """Centres drawn from the points, each with probability proportional to its squared distance to those before it.

    Arthur & Vassilvitskii 2007. Once every point is a centre the rest repeat the first point and stay empty.
    With ``distance="relative"`` that one, also a square, takes the place of the squared distance.
    """
    count, width = points.shape[0], _ranges(points, distance)
    first = jax.random.randint(jax.random.fold_in(key, 0), (), 0, count)
    centres = jnp.zeros((capacity, 2), jnp.float32).at[0].set(points[first])
    nearest = _relative(jnp.square(points - points[first][None]).sum(axis=-1), width)

    def draw(i: Int[Array, ""], carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, nearest = carry
        logits = jnp.where(nearest > 0, jnp.log(jnp.maximum(nearest, 1e-38)), -1e9)
        chosen = points[jax.random.categorical(jax.random.fold_in(key, i), logits)]
        away = _relative(jnp.square(points - chosen[None]).sum(axis=-1), width)
        return centres.at[i].set(chosen), jnp.minimum(nearest, away)

    return jax.lax.fori_loop(1, groups, draw, (centres, nearest))[0]


def _means(
    points: Float[Array, "p 2"],
    group: Int[Array, " p"],
    empty: Float[Array, "g 2"],
    width: Float[Array, " p"] | None = None,
) -> Float[Array, "g 2"]:
    """Mean of each group's points (eq. 6); a group without points takes its row of ``empty``.

    With ``width`` the mean is weighted by its inverse square: the minimiser of the relative distance.
    """
    member = jax.nn.one_hot(group, empty.shape[0], dtype=jnp.float32)
    if width is not None:  # weights from 1, that of the widest point, so that no sum of them is lost
        member = member * jnp.square(width.max() / width)[:, None]
    rows = jnp.concatenate([points, jnp.ones_like(points[:, :1])], axis=1)  # one product sums and counts
    sums = jnp.einsum("pg,pk->gk", member, rows, precision=jax.lax.Precision.HIGHEST)
    total, count = sums[:, :2], sums[:, 2:]
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), empty)


def lloyd(
    points: Float[Array, "p 2"],
    start: Float[Array, "g 2"],
    iterations: int,
    distance: Distance,
    groups: Groups | None = None,
) -> tuple[Float[Array, "g 2"], Int[Array, " p"], Float[Array, " i"]]:
    """Centres, assignment and objective history of the EM from ``start``, of which the first ``groups`` are used.

    Stops after ``iterations`` or when the objective changes by less than 1e-6 of itself. A group that has lost all its
    points restarts at the point that is farthest from its own group's bounds. Unused centres are infinite.
    """
    width = _ranges(points, distance)
    used = jnp.arange(start.shape[0])[:, None] < (start.shape[0] if groups is None else groups)
    start = jnp.where(used, start, jnp.inf)

    def evaluate(centres: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        group, least = nearest(points, centres, distance)
        away = _relative(least, width)
        return group, away.sum(), points[away.argmax()]

    def going(carry: tuple[jax.Array, ...]) -> jax.Array:
        i, _, _, _, history = carry
        change = history[i - 1] - history[i]
        return (i < iterations) & ((i == 0) | (change > 1e-6 * history[i - 1]))

    def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i, centres, group, farthest, history = carry
        centres = _means(points, group, jnp.where(used, farthest[None], jnp.inf), width)
        group, objective, farthest = evaluate(centres)
        return i + 1, centres, group, farthest, history.at[i + 1].set(objective)

    group, objective, farthest = evaluate(start)
    history = jnp.zeros(iterations + 1, jnp.float32).at[0].set(objective)
    last, centres, group, _, history = jax.lax.while_loop(going, step, (jnp.int32(0), start, group, farthest, history))
    steps = jnp.arange(iterations + 1)
    return centres, group, jnp.where(steps > last, history[last], history)


def kmeans(
    key: Key[Array, ""],
    points: Float[Array | np.ndarray, "p 2"],
    groups: Groups,
    *,
    capacity: int | None = None,
    start: Start = "kmeans++",
    restarts: int = 3,
    iterations: int = 50,
    distance: Distance = "squared",
) -> Fit:
    """The best of ``restarts`` runs of the EM on points (min, max); the ``quantile`` start is deterministic, one run.

    Of more than ``SOME`` points the runs see so many, evenly spread, and the best goes on with all: an approximation.

    Arrays are as long as ``capacity`` (``groups`` unless given), so that all numbers of groups up to it share one
    executable; centres that are not used are infinite.
    With ``distance="absolute"`` the mean is not the minimiser and the objective need not fall at every step.
    """
    if capacity is None:
        capacity = int(groups)
    return _kmeans(key, jnp.asarray(points), jnp.int32(groups), capacity, start, restarts, iterations, distance)


def _spread(count: int) -> np.ndarray:
    """SOME of ``count`` indices, all different and evenly spread: steps of the golden section."""
    step = round(0.618 * count)
    while math.gcd(step, count) > 1:
        step += 1
    return np.arange(SOME) * step % count


@partial(jax.jit, static_argnums=range(3, 8))
def _kmeans(
    key: Key[Array, ""],
    points: Float[Array, "p 2"],
    groups: Int[Array, ""],
    capacity: int,
    start: Start,
    restarts: int,
    iterations: int,
    distance: Distance,
) -> Fit:
    few = points if len(points) <= SOME else points[_spread(len(points))]
    starts = quantile_start(few, groups, capacity)[None]
    if start == "kmeans++":
        keys = jax.random.split(key, restarts)
        drawn = jax.vmap(lambda k: plus_plus_start(k, few, groups, capacity, distance))(keys)
        starts = jnp.concatenate([starts, drawn])
    centres, group, history = jax.vmap(lambda s: lloyd(few, s, iterations, distance, groups))(starts)
    best = 0 if start == "quantile" else 1 + history[1:, -1].argmin()
    if few is points:
        return Fit(centres[best], group[best], history[best, -1], history[best], history[0, -1])
    plain = _relative(nearest(points, centres[0], distance)[1], _ranges(points, distance)).sum()
    found, group, history = lloyd(points, centres[best], iterations, distance, groups)
    return Fit(found, group, history[-1], history, plain)
