"""k-means on the ranges of channels or rows: the EM of IGQ-ViT (eqs. 4-6), which calibrates a grouped quantiser."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Distance = Literal["squared", "absolute"]
Start = Literal["kmeans++", "quantile"]
DISTANCES: tuple[Distance, ...] = ("squared", "absolute")
STARTS: tuple[Start, ...] = ("kmeans++", "quantile")


Groups = int | Int[Array, ""]
"""A number of groups. Where a ``capacity`` stands beside it, it may be traced: arrays have that length."""


class Fit(NamedTuple):
    """What the EM found: points are pairs (min, max), centres the bounds of the groups."""

    centres: Float[Array, "g 2"]
    group: Int[Array, " p"]
    objective: Float[Array, ""]  # sum over points of the distance to their group's bounds
    history: Float[Array, " i"]  # the objective after each E-step; constant behind the last
    quantile: Float[Array, ""]  # the objective that the quantile start reaches, for comparison


def distances(
    points: Float[Array, "*p 2"], centres: Float[Array, "g 2"], distance: Distance = "squared"
) -> Float[Array, "*p g"]:
    """Distance of each point (min, max) to each group's bounds (eqs. 4, 8); padded groups (inf) are infinitely far."""
    gap = points[..., None, :] - centres.reshape((1,) * (points.ndim - 1) + centres.shape)
    return (jnp.square(gap) if distance == "squared" else jnp.abs(gap)).sum(axis=-1)


def assign(
    points: Float[Array, "*p 2"], centres: Float[Array, "g 2"], distance: Distance = "squared"
) -> Int[Array, "*p"]:
    """The group at least distance from each point (eq. 5); ties go to the lowest index."""
    return distances(points, centres, distance).argmin(axis=-1)


def quantile_start(points: Float[Array, "p 2"], groups: Groups, capacity: int) -> Float[Array, "g 2"]:
    """Means of ``groups`` equally large chunks of the points sorted by range (max - min); as many as ``capacity``."""
    order = jnp.argsort(points[:, 1] - points[:, 0])
    count = points.shape[0]
    label = jnp.zeros(count, jnp.int32).at[order].set(jnp.arange(count, dtype=jnp.int32) * groups // count)
    return _means(points, label, jnp.zeros((capacity, 2), jnp.float32))


def plus_plus_start(
    key: Key[Array, ""], points: Float[Array, "p 2"], groups: Groups, capacity: int
) -> Float[Array, "g 2"]:
    """Centres drawn from the points, each with probability proportional to its squared distance to those before it.

    Arthur & Vassilvitskii 2007. Once every point is a centre the rest repeat the first point and stay empty.
    """
    count = points.shape[0]
    first = jax.random.randint(jax.random.fold_in(key, 0), (), 0, count)
    centres = jnp.zeros((capacity, 2), jnp.float32).at[0].set(points[first])
    nearest = jnp.square(points - points[first][None]).sum(axis=-1)

    def draw(i: Int[Array, ""], carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        centres, nearest = carry
        logits = jnp.where(nearest > 0, jnp.log(jnp.maximum(nearest, 1e-38)), -1e9)
        chosen = points[jax.random.categorical(jax.random.fold_in(key, i), logits)]
        return centres.at[i].set(chosen), jnp.minimum(nearest, jnp.square(points - chosen[None]).sum(axis=-1))

    return jax.lax.fori_loop(1, groups, draw, (centres, nearest))[0]


def _means(points: Float[Array, "p 2"], group: Int[Array, " p"], empty: Float[Array, "g 2"]) -> Float[Array, "g 2"]:
    """Mean of each group's points (eq. 6); a group without points takes its row of ``empty``."""
    member = jax.nn.one_hot(group, empty.shape[0], dtype=jnp.float32)
    count = member.sum(axis=0)[:, None]
    total = jnp.einsum("pg,pk->gk", member, points, precision=jax.lax.Precision.HIGHEST)
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
    used = jnp.arange(start.shape[0])[:, None] < (start.shape[0] if groups is None else groups)
    start = jnp.where(used, start, jnp.inf)

    def evaluate(centres: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        d = distances(points, centres, distance)
        group = d.argmin(axis=-1)
        nearest = d.min(axis=-1)
        return group, nearest.sum(), points[nearest.argmax()]

    def going(carry: tuple[jax.Array, ...]) -> jax.Array:
        i, _, _, _, history = carry
        change = history[i - 1] - history[i]
        return (i < iterations) & ((i == 0) | (change > 1e-6 * history[i - 1]))

    def step(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i, centres, group, farthest, history = carry
        centres = _means(points, group, jnp.where(used, farthest[None], jnp.inf))
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

    Arrays are as long as ``capacity`` (``groups`` unless given), so that all numbers of groups up to it share one
    executable; centres that are not used are infinite.
    With ``distance="absolute"`` the mean is not the minimiser and the objective need not fall at every step.
    """
    if capacity is None:
        capacity = int(groups)
    return _kmeans(key, jnp.asarray(points), jnp.int32(groups), capacity, start, restarts, iterations, distance)


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
    starts = quantile_start(points, groups, capacity)[None]
    if start == "kmeans++":
        drawn = jax.vmap(lambda k: plus_plus_start(k, points, groups, capacity))(jax.random.split(key, restarts))
        starts = jnp.concatenate([starts, drawn])
    centres, group, history = jax.vmap(lambda s: lloyd(points, s, iterations, distance, groups))(starts)
    reached = history[:, -1]
    best = 0 if start == "quantile" else 1 + reached[1:].argmin()
    return Fit(centres[best], group[best], reached[best], history[best], reached[0])
