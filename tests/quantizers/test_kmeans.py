"""The EM of IGQ-ViT: k-means on (min, max) points, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.quantizers import kmeans

pytestmark = pytest.mark.once

POINTS, GROUPS = 200, 5

lloyd = jax.jit(kmeans.lloyd, static_argnums=(2, 3))
assign = jax.jit(kmeans.assign, static_argnums=2)
starts = jax.jit(jax.vmap(kmeans.plus_plus_start, (0, None, None, None)), static_argnums=3)


def widths(points, distance="relative"):
    """What gaps are divided by, [p 1] in float64: the point's range, at least a thousandth of the widest."""
    width = np.diff(points.astype(np.float64), axis=1)
    return np.maximum(width, width.max() / 1000) if distance == "relative" else np.ones_like(width)


def sizes(points, centres, distance="squared"):
    """Distances [p g] by eqs. 4, in float64."""
    gap = points.astype(np.float64)[:, None] - centres.astype(np.float64)[None]
    gap /= widths(points, distance)[:, None]
    return (np.abs(gap) if distance == "absolute" else gap**2).sum(axis=-1)


def numpy_lloyd(points, centres, iterations, distance="squared"):
    """Centres, assignment and objectives of the EM, in loops; a group that lost its points takes the farthest point."""
    points, centres = points.astype(np.float64), centres.astype(np.float64).copy()
    weight, history = 1 / widths(points, distance)[:, 0] ** 2, []
    for i in range(iterations + 1):
        d = sizes(points, centres, distance)
        group = d.argmin(axis=1)
        history.append(d.min(axis=1).sum())
        if i == iterations or (i and history[-2] - history[-1] <= 1e-6 * history[-2]):
            break
        farthest = points[d.min(axis=1).argmax()]
        some = [group == g for g in range(len(centres))]
        centres = np.stack([np.average(points[s], axis=0, weights=weight[s]) if s.any() else farthest for s in some])
    return centres, group, history


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Ranges of channels: lower ends below, upper ends above, a few wide ones."""
    rng = np.random.default_rng(7)
    wide = np.exp(rng.normal(size=(POINTS, 1)))
    return (np.sort(rng.normal(size=(POINTS, 2)), axis=1) * wide).astype(np.float32)


@pytest.mark.parametrize("distance", kmeans.DISTANCES)
def test_the_assignment_is_the_nearest_group_by_brute_force(points, distance):
    """Spec 8.9."""
    centres = points[::40].copy()
    want = np.array([min(range(GROUPS), key=lambda g: sizes(p[None], centres, distance)[0, g]) for p in points])
    np.testing.assert_array_equal(assign(points, centres, distance), want)
    np.testing.assert_array_equal(assign(points.reshape(20, 10, 2), centres, distance), want.reshape(20, 10))


@pytest.mark.parametrize("distance", kmeans.DISTANCES)
def test_ties_go_to_the_lowest_index(distance):
    """Spec 8.9."""
    centres = jnp.asarray([[4.0, 4.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0], [2.0, 2.0]])
    points = jnp.asarray([[0.0, 0.0], [0.0, 1.0], [3.0, 3.0], [1.0, 2.0]])
    assert assign(points, centres, distance).tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize("distance", kmeans.DISTANCES)
def test_padded_groups_are_never_chosen(points, distance):
    padded = np.full((GROUPS + 3, 2), np.inf, np.float32)
    padded[:GROUPS] = points[::40]
    np.testing.assert_array_equal(assign(points, padded, distance), assign(points, points[::40], distance))


@pytest.mark.parametrize("iterations", [3, 50])
@pytest.mark.parametrize("distance", kmeans.DISTANCES)
def test_the_em_is_numpys_from_the_same_start(points, distance, iterations):
    start = points[:GROUPS]
    centres, group, history = lloyd(points, start, iterations, distance)
    want_centres, want_group, want_history = numpy_lloyd(points, start, iterations, distance)
    np.testing.assert_allclose(centres, want_centres, atol=1e-4)
    np.testing.assert_array_equal(group, want_group)
    last = len(want_history)
    np.testing.assert_allclose(history[:last], want_history, rtol=1e-5)
    assert history.shape == (iterations + 1,)
    assert (np.asarray(history[last - 1 :]) == history[last - 1]).all()  # constant behind the last step


def test_neither_half_step_raises_the_objective(points):
    """Spec 8.4: E-step and M-step each, from many starts."""
    for seed in range(4):
        centres = np.random.default_rng(seed).choice(points, GROUPS)
        for _ in range(12):
            after, group, history = (np.asarray(a) for a in lloyd(points, centres, 1, "squared"))
            old = sizes(points, centres)
            before, old_group = old.min(axis=1).sum(), old.argmin(axis=1)
            there = np.isin(np.arange(GROUPS), old_group)
            assert there.all()
            middle = sizes(points, after)[np.arange(POINTS), old_group].sum()
            end = sizes(points, after)[np.arange(POINTS), group].sum()
            np.testing.assert_allclose(history, [before, end], rtol=1e-5)
            assert middle <= before * (1 + 1e-6)
            assert end <= middle * (1 + 1e-6)
            centres = after


def test_after_convergence_one_more_step_changes_nothing(points):
    """Spec 8.5."""
    centres, group, _ = (np.asarray(a) for a in lloyd(points, points[:GROUPS], 200, "squared"))
    for g in range(GROUPS):
        np.testing.assert_allclose(centres[g], points[group == g].astype(np.float64).mean(axis=0), atol=1e-5)
    again, same, _ = lloyd(points, centres, 1, "squared")
    np.testing.assert_allclose(again, centres, atol=1e-5)
    np.testing.assert_array_equal(same, group)
    assert (centres[:, 0] <= centres[:, 1]).all()


def test_more_groups_never_cost_more_from_a_warm_start(points):
    """Spec 8.6: G + 1 groups begin as the G found and the point farthest from them."""
    centres, reached = points[:1], np.inf
    for _ in range(5):
        centres, _, history = (np.asarray(a) for a in lloyd(points, centres, 50, "squared"))
        assert history[-1] <= reached * (1 + 1e-6)
        reached = history[-1]
        centres = np.concatenate([centres, points[[sizes(points, centres).min(axis=1).argmax()]]])


def clustered(seed: int = 0):
    """Five clusters far apart, of unequal number, with the cluster of each point."""
    rng = np.random.default_rng(seed)
    centres = np.array([[-1.0, 1.0], [-9.0, 2.0], [-1.0, 14.0], [-20.0, 25.0], [3.0, 4.0]])
    label = np.repeat(np.arange(GROUPS), [100, 50, 25, 15, 10])
    return (centres[label] + rng.uniform(-0.2, 0.2, (POINTS, 2))).astype(np.float32), label


def pairs(label):
    """Which points share a group: a partition without names."""
    return np.asarray(label)[:, None] == np.asarray(label)[None]


@pytest.mark.parametrize("seed", range(3))
def test_separate_clusters_are_found(seed):
    """Spec 8.7."""
    points, label = clustered(seed)
    fit = kmeans.kmeans(jax.random.key(seed), points, GROUPS)
    np.testing.assert_array_equal(pairs(fit.group), pairs(label))


def test_a_seed_gives_one_result_and_the_order_of_points_none():
    """Spec 8.8: the same seed twice; permuted points reach the same objective."""
    points, _ = clustered()
    fit, again = (kmeans.kmeans(jax.random.key(3), points, GROUPS) for _ in range(2))
    for a, b in zip(fit, again, strict=True):
        np.testing.assert_array_equal(a, b)
    mixed = kmeans.kmeans(jax.random.key(3), np.random.default_rng(0).permutation(points), GROUPS)
    np.testing.assert_allclose(mixed.objective, fit.objective, rtol=1e-4)


def test_the_start_decides_not_the_order_of_points(points):
    order = np.random.default_rng(0).permutation(POINTS)
    centres, group, history = lloyd(points, points[:GROUPS], 50, "squared")
    mixed_centres, mixed_group, mixed_history = lloyd(points[order], points[:GROUPS], 50, "squared")
    np.testing.assert_allclose(mixed_centres, centres, atol=1e-4)
    np.testing.assert_array_equal(mixed_group, group[order])
    np.testing.assert_allclose(mixed_history, history, rtol=1e-4)


def test_the_best_restart_is_kept_and_its_objective_is_true(points):
    fit = kmeans.kmeans(jax.random.key(0), points, GROUPS)
    d = sizes(points, np.asarray(fit.centres))
    np.testing.assert_array_equal(fit.group, d.argmin(axis=1))
    np.testing.assert_allclose(fit.objective, d.min(axis=1).sum(), rtol=1e-5)
    np.testing.assert_allclose(fit.history[-1], fit.objective)
    keys = jax.random.split(jax.random.key(0), 3)
    reached = [numpy_lloyd(points, np.asarray(s), 50)[2][-1] for s in starts(keys, points, GROUPS, GROUPS)]
    assert max(reached) > 1.01 * min(reached)  # starts do matter here
    np.testing.assert_allclose(fit.objective, min(reached), rtol=1e-4)


def test_the_quantile_start_is_the_mean_of_equal_chunks_by_range(points):
    order = np.argsort(points[:, 1] - points[:, 0], kind="stable")
    want = np.stack([points[chunk].astype(np.float64).mean(axis=0) for chunk in order.reshape(GROUPS, -1)])
    np.testing.assert_allclose(kmeans.quantile_start(jnp.asarray(points), GROUPS, GROUPS), want, atol=1e-5)
    fit = kmeans.kmeans(jax.random.key(0), points, GROUPS, start="quantile")
    centres, group, history = numpy_lloyd(points, want, 50)
    np.testing.assert_allclose(fit.centres, centres, atol=1e-4)
    np.testing.assert_array_equal(fit.group, group)
    np.testing.assert_allclose([fit.objective, fit.quantile], [history[-1]] * 2, rtol=1e-5)
    other = kmeans.kmeans(jax.random.key(0), points, GROUPS)
    np.testing.assert_allclose(other.quantile, history[-1], rtol=1e-5)


def test_plus_plus_draws_distinct_points(points):
    drawn = np.asarray(starts(jax.random.split(jax.random.key(0), 64), points, GROUPS, GROUPS))
    for centres in drawn:
        assert all((points == c).all(axis=1).any() for c in centres)
        assert len({tuple(c) for c in centres}) == GROUPS
    assert len({tuple(c[0]) for c in drawn}) > 20


def test_plus_plus_draws_by_squared_distance():
    """From (0, 0) the points at 1, 2 and 3 come second with chances 1, 4 and 9 in 14."""
    points = np.array([[0.0, 0.0]] * 97 + [[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], np.float32)
    drawn = np.asarray(starts(jax.random.split(jax.random.key(1), 6000), points, 2, 2))
    second = drawn[(drawn[:, 0] == 0).all(axis=1)][:, 1]
    share = [(np.abs(second).sum(axis=1) == k).mean() for k in (1, 2, 3)]
    np.testing.assert_allclose(share, [1 / 14, 4 / 14, 9 / 14], atol=0.025)


@pytest.mark.parametrize("start", kmeans.STARTS)
@pytest.mark.parametrize("distinct", [1, 2, 4])
def test_duplicates_and_constants_give_no_nan_and_no_error(start, distinct):
    """Fewer distinct points than groups: every point is met exactly, groups are left over."""
    values = np.random.default_rng(0).normal(size=(distinct, 2)).astype(np.float32)
    points = values[np.arange(POINTS) % distinct]
    fit = kmeans.kmeans(jax.random.key(0), points, GROUPS, start=start)
    for x in fit:
        assert np.isfinite(x).all()
    assert len(np.unique(fit.group)) == distinct
    np.testing.assert_allclose(np.asarray(fit.centres)[np.asarray(fit.group)], points, rtol=1e-5, atol=1e-6)


def test_a_group_that_lost_its_points_restarts_at_the_farthest_one(points):
    start = np.concatenate([np.full((2, 2), 1e4, np.float32), points[:3]])  # the first two get no points
    centres, group, history = lloyd(points, start, 50, "squared")
    want_centres, want_group, want_history = numpy_lloyd(points, start, 50)
    np.testing.assert_allclose(centres, want_centres, atol=1e-4)
    np.testing.assert_array_equal(group, want_group)
    np.testing.assert_allclose(history[-1], want_history[-1], rtol=1e-5)
    assert len(np.unique(group)) == GROUPS
    once, _, _ = lloyd(points, start, 1, "squared")
    farthest = points[sizes(points, start).min(axis=1).argmax()]
    np.testing.assert_array_equal(np.asarray(once)[:2], [farthest, farthest])


@pytest.mark.parametrize("start", kmeans.STARTS)
def test_a_capacity_changes_nothing_and_numbers_of_groups_share_an_executable(points, start):
    before = kmeans._kmeans._cache_size()
    for groups in (1, 3, GROUPS):
        padded = kmeans.kmeans(jax.random.key(0), points, groups, capacity=7, start=start)
        assert np.isinf(padded.centres[groups:]).all()
        fit = kmeans.kmeans(jax.random.key(0), points, groups, start=start)
        np.testing.assert_array_equal(padded.group, fit.group)
        np.testing.assert_allclose(padded.centres[:groups], fit.centres, rtol=1e-5)
        np.testing.assert_allclose(padded.history, fit.history, rtol=1e-5)
    assert kmeans._kmeans._cache_size() - before <= 4  # one for capacity 7, one for each of the others


# --- relative distances: a narrow channel counts as much as a wide one


def test_the_relative_distance_assigns_as_the_squared_one_to_the_last_bit(points):
    """The divisor is the point's own: no choice depends on it, nor on the other points at hand."""
    centres = points[::40]
    got = assign(points, centres, "relative")
    np.testing.assert_array_equal(got, assign(points, centres, "squared"))
    np.testing.assert_array_equal([assign(p[None], centres, "relative")[0] for p in points[:5]], got[:5])


def test_neither_half_step_raises_the_relative_objective(points):
    """From many starts; the M-step's means are weighted by the inverse squares of the ranges."""
    for seed in range(4):
        centres = np.random.default_rng(seed).choice(points, GROUPS)
        for _ in range(8):
            after, group, history = (np.asarray(a) for a in lloyd(points, centres, 1, "relative"))
            old = sizes(points, centres, "relative")
            middle = sizes(points, after, "relative")[np.arange(POINTS), old.argmin(axis=1)].sum()
            np.testing.assert_allclose(history[0], old.min(axis=1).sum(), rtol=1e-5)
            assert middle <= history[0] * (1 + 1e-6)
            assert history[1] <= middle * (1 + 1e-6)
            np.testing.assert_array_equal(group, sizes(points, after).argmin(axis=1))
            centres = after
        _, _, history = lloyd(points, centres, 50, "relative")
        assert (np.diff(history) <= 1e-6 * history[0]).all()


def test_relative_centres_are_weighted_means_and_serve_narrow_points_better(points):
    fits = {d: kmeans.kmeans(jax.random.key(0), points, GROUPS, distance=d) for d in ("squared", "relative")}
    weight, found = 1 / widths(points)[:, 0] ** 2, fits["relative"]
    for g in range(GROUPS):
        mine = np.asarray(found.group) == g
        want = np.average(points[mine].astype(np.float64), axis=0, weights=weight[mine])
        np.testing.assert_allclose(found.centres[g], want, rtol=1e-3, atol=1e-4)
    reached = {d: sizes(points, np.asarray(f.centres), "relative").min(axis=1).sum() for d, f in fits.items()}
    np.testing.assert_allclose(found.objective, reached["relative"], rtol=1e-5)
    assert reached["relative"] < 0.5 * reached["squared"]


def test_relative_draws_are_by_relative_distance():
    """From (0, 1) the points of ranges 2 and 4, one and three away, come second with chances 1/4 and 9/16."""
    points = np.array([[0.0, 1.0]] * 98 + [[0.0, 2.0], [0.0, 4.0]], np.float32)
    draw = jax.jit(jax.vmap(lambda k: kmeans.plus_plus_start(k, jnp.asarray(points), 2, 2, "relative")))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(1), 6000)))
    second = drawn[drawn[:, 0, 1] == 1][:, 1, 1]
    share = [(second == k).mean() for k in (2, 4)]
    np.testing.assert_allclose(share, [4 / 13, 9 / 13], atol=0.025)


@pytest.mark.parametrize("start", kmeans.STARTS)
def test_points_without_range_give_no_nan(start):
    """Constant channels count a million times the widest at most; rows (lower bound 0) have their maximum as range."""
    rng = np.random.default_rng(0)
    constant = np.repeat(rng.normal(size=(POINTS, 1)), 2, axis=1)
    some = np.sort(rng.normal(size=(POINTS, 2)), axis=1)
    some[:50] = constant[:50]
    rows = np.stack([np.zeros(POINTS), rng.uniform(size=POINTS)], axis=1)
    for points in (constant, some, rows, np.zeros((POINTS, 2)), some * 1e-30):
        points = points.astype(np.float32)
        fit = kmeans.kmeans(jax.random.key(0), points, GROUPS, distance="relative", start=start)
        for x in fit:
            assert np.isfinite(x).all()
        assert (np.diff(fit.history) <= 1e-5 * fit.history[0]).all()
    assert (np.asarray(fit.centres) >= points.min()).all()
    assert (np.asarray(fit.centres) <= points.max()).all()


@pytest.mark.parametrize("distance", ["squared", "relative"])
@pytest.mark.parametrize("start", kmeans.STARTS)
def test_restarts_on_some_points_end_near_those_on_all(monkeypatch, start, distance):
    """Channels of 40 images: each channel is among the points that are looked at, and the last EM sees all points."""
    rng = np.random.default_rng(0)
    width = np.exp(rng.normal(size=256)) * np.exp(rng.normal(0, 0.3, (40, 256)))
    points = np.stack([-width, width * rng.uniform(0.5, 2, width.shape)], axis=-1).reshape(-1, 2).astype(np.float32)
    assert len(set((kmeans._spread(len(points)) % 256).tolist())) == 256
    options = dict(start=start, distance=distance, iterations=200)
    some = kmeans.kmeans(jax.random.key(0), points, GROUPS, **options)
    np.testing.assert_array_equal(some.group, kmeans.assign(jnp.asarray(points), some.centres, distance))
    assert some.group.shape == (len(points),)
    monkeypatch.setattr(kmeans, "SOME", len(points))
    every = kmeans.kmeans(jax.random.key(0), points, GROUPS, **{**options, "iterations": 201})  # compiled anew
    assert some.objective < 1.03 * every.objective
    assert some.quantile < 1.05 * every.quantile
    assert (np.diff(some.history) <= 1e-5 * some.history[0]).all()


def test_nearest_is_the_first_of_the_least_distant_and_never_a_padded_one():
    rng = np.random.default_rng(0)
    points, centres = rng.normal(size=(7, 30, 2)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32)
    centres[3], centres[5] = centres[1], np.inf
    for distance in kmeans.DISTANCES:
        gap = np.abs(points[:, :, None] - centres)
        want = (gap if distance == "absolute" else gap**2).sum(axis=-1)
        group, away = kmeans.nearest(jnp.asarray(points), jnp.asarray(centres), distance)
        np.testing.assert_array_equal(group, want.argmin(axis=-1))
        np.testing.assert_allclose(away, want.min(axis=-1), rtol=1e-6)
        assert not np.isin(group, [3, 5]).any()
