"""Groups that are fixed at calibration against NumPy, and in spec 8.13's order with the instance-aware ones."""

import copy
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.calibrate import fresh
from jvq.core.quantizer import Overhead
from jvq.quantizers import Grouped, StaticGrouped, Uniform
from jvq.quantizers.grouped import MSTEPS
from jvq.quantizers.static_groups import GROUPINGS

BITS, GROUPS = 4, 8
LINEAR = StaticGrouped(bits=BITS, groups=GROUPS)
ROWS = StaticGrouped(bits=BITS, groups=GROUPS, along="hq", nonnegative=True)

_apply = jax.jit(lambda q, s, x, letters: q.apply(s, x, letters), static_argnums=(0, 3))
_encode = jax.jit(lambda q, s, x, letters: q.encode(s, x, letters), static_argnums=(0, 3))
decode = jax.jit(lambda codes: codes.decode())


def init(q, x, letters="bnd"):
    return fresh(q, jnp.asarray(x), letters)


def membership(q, points):
    """The quantiser's own groups; the k-means inside is compiled once for all seeds and kinds of bounds."""
    return np.asarray(q.membership(jnp.asarray(points)))


def plain(q):
    """The quantiser without what only calibration reads: one compiled function serves all that share the rest."""
    return StaticGrouped(along=q.along) if isinstance(q, StaticGrouped) else q


def apply(q, state, x, letters="bnd"):
    return np.asarray(_apply(plain(q), state, x, letters))


def encode(q, state, x, letters="bnd"):
    return _encode(plain(q), state, x, letters)


def variant(grouping, bounds, q=LINEAR):
    return dataclasses.replace(q, grouping=grouping, bounds=bounds)


def ends(x, along, letters, nonnegative=False):
    """(min, max) of each index along over all other axes, one after the other: float32 [p 2]."""
    values = by_index(x, along, letters)
    return np.array([[0 if nonnegative else v.min(), v.max()] for v in values], np.float32)


def by_index(x, along, letters):
    """The values of each index along [p n], the axes along in the operand's order."""
    first = [i for i, a in enumerate(letters) if a in along]
    rest = [i for i, a in enumerate(letters) if a not in along]
    count = int(np.prod([x.shape[i] for i in first]))
    return x.transpose(first + rest).reshape(count, -1)


def expected_membership(q, points):
    """The group of each point: by loops, but for k-means, whose outcome is checked by itself."""
    count = len(points)
    if q.grouping == "kmeans":
        return membership(q, points)
    order = list(range(count))
    if q.grouping == "sorted":
        order.sort(key=lambda i: points[i, 1] - points[i, 0])
    assert count % q.groups == 0
    group = np.zeros(count, int)
    for place, i in enumerate(order):
        group[i] = place // (count // q.groups)
    return group


def expected_bounds(q, points, group):
    """Lower and upper bound of each group [g 2] that covers its members, or has their means."""
    found = []
    for g in range(q.groups):
        of = points[group == g].astype(np.float64)
        found.append((of[:, 0].min(), of[:, 1].max()) if q.bounds == "cover" else of.mean(axis=0))
    return np.array(found)


def onto(t, along, letters):
    """``t`` [along] on the operand's axes."""
    return np.expand_dims(np.asarray(t), tuple(i for i, a in enumerate(letters) if a not in along))


def errors_of_groups(state, values, group, oracle):
    """Squared error of the values [p n] of each group, with the scale and the zero point of each index."""
    scale, zero = (np.asarray(state[name]).reshape(-1, 1) for name in ("scale", "zero"))
    off = np.square(oracle.fake(values, scale, zero, BITS)[1] - values).sum(axis=1)
    return np.array([off[group == g].sum() for g in range(GROUPS)])


# --- membership


@pytest.mark.parametrize("grouping", ["consecutive", "sorted"])
@pytest.mark.parametrize("groups", [1, 5, 12])
def test_runs_are_ordered_and_of_equal_length_up_to_one(rng, grouping, groups):
    points = np.sort(rng.normal(size=(12, 2)).astype(np.float32), axis=1)
    group = membership(StaticGrouped(groups=groups, grouping=grouping), points)
    assert group.dtype == np.int32
    sizes = [int((group == g).sum()) for g in range(groups)]
    assert sum(sizes) == 12
    assert max(sizes) - min(sizes) <= 1
    width = points[:, 1] - points[:, 0]
    walk = list(range(12)) if grouping == "consecutive" else sorted(range(12), key=lambda i: width[i])
    assert all(group[i] <= group[j] for i, j in itertools.pairwise(walk))


def test_clusters_far_apart_are_found_by_kmeans_alone(rng):
    """Neighbours belong to different clusters, and all intervals have about one width."""
    cluster = np.arange(64) % GROUPS
    low = 100.0 * cluster + rng.normal(0, 0.01, 64)
    group = membership(variant("kmeans", "cover"), np.stack([low, low + 10], axis=-1).astype(np.float32))
    for i, j in itertools.combinations(range(64), 2):
        assert (group[i] == group[j]) == (cluster[i] == cluster[j])


def test_channels_are_nearest_to_the_mean_range_of_their_own_kmeans_group(data):
    """Over all images at once, a fixed point of the EM; another seed may find another."""
    points, q = ends(data[0].seen, "d", "bnd"), variant("kmeans", "cover")
    group = membership(q, points)
    means = {g: points[group == g].mean(axis=0, dtype=np.float64) for g in np.unique(group)}
    assert len(means) > 4
    for point, g in zip(points, group, strict=True):
        assert min(means, key=lambda k: ((point - means[k]) ** 2).sum()) == g
    assert (membership(dataclasses.replace(q, seed=1), points) != group).any()


# --- bounds and what they make of an operand


@pytest.mark.parametrize("bounds", ["cover", "mean"])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_channel_is_quantised_with_the_bounds_of_its_group(data, oracle, grouping, bounds):
    q, x, held = variant(grouping, bounds), data[0].seen, data[0].held
    state = init(q, x, "bnd")
    assert {name: (t.shape, t.dtype) for name, t in state.items()} == {
        "scale": ((64,), jnp.float32),
        "zero": ((64,), jnp.float32),
        "levels": ((), jnp.float32),
    }
    points = ends(x, "d", "bnd")
    group = expected_membership(q, points)
    scale, zero = (t[group] for t in oracle.affine(*expected_bounds(q, points, group).T, BITS))
    np.testing.assert_allclose(state["scale"], scale, rtol=1e-5)
    np.testing.assert_array_equal(state["zero"], zero)
    got = apply(q, state, held)
    oracle.matches(got, held, onto(state["scale"], "d", "bnd"), onto(zero, "d", "bnd"), BITS)
    assert got.dtype == np.float32


@pytest.mark.parametrize("grouping", ["consecutive", "sorted"])
def test_a_row_is_quantised_with_the_greatest_value_of_its_group(data, oracle, grouping):
    """Rows of each head for themselves, along two axes at once."""
    q, x, held = variant(grouping, "cover", ROWS), data[0].seen_maps, data[0].held_maps
    state = init(q, x, "bhqk")
    assert state["scale"].shape == state["zero"].shape == (2, 20)
    assert (np.asarray(state["zero"]) == 0).all()
    points = ends(x, "hq", "bhqk", nonnegative=True)
    group = expected_membership(q, points)
    highest = expected_bounds(q, points, group)[group, 1].reshape(2, 20)
    np.testing.assert_allclose(state["scale"], highest / 15, rtol=1e-5)
    scale = onto(state["scale"], "hq", "bhqk")
    oracle.matches(apply(q, state, held, "bhqk"), held, scale, 0.0, BITS)
    turned = init(dataclasses.replace(q, along="qh"), x, "bhqk")  # the operand's order of the axes counts
    np.testing.assert_array_equal(turned["scale"], state["scale"])


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_bounds_of_least_error_beat_covering_ones_in_every_group_and_mean_ones_in_all(data, oracle, grouping):
    x = data[0].seen
    group = expected_membership(variant(grouping, "mse"), ends(x, "d", "bnd"))
    values = by_index(x, "d", "bnd").astype(np.float64)
    found, cover, mean = (
        errors_of_groups(init(variant(grouping, b), x, "bnd"), values, group, oracle) for b in ("mse", "cover", "mean")
    )
    assert (found <= cover * (1 + 1e-5)).all()
    assert found.sum() < 0.95 * min(cover.sum(), mean.sum())


def test_bounds_of_least_error_are_near_the_best_of_a_grid(data, oracle):
    x = data[0].seen
    state, group = init(variant("consecutive", "mse"), x, "bnd"), np.repeat(np.arange(GROUPS), 8)
    values = by_index(x, "d", "bnd").astype(np.float64)
    found = errors_of_groups(state, values, group, oracle)
    for g in range(GROUPS):
        v = values[group == g]
        assert len(np.unique(np.asarray(state["scale"])[group == g])) == 1
        low, high, best = min(v.min(), 0), max(v.max(), 0), np.inf
        for up in np.linspace(0, 1, 33)[1:]:
            for down in np.linspace(0, 1, 17):
                scale, zero = oracle.affine(down * low, up * high, BITS)
                best = min(best, np.square(oracle.fake(v, scale, zero, BITS)[1] - v).sum())
        assert found[g] <= 1.06 * best


def test_row_bounds_of_least_error_keep_zero_and_beat_covering_ones(data, oracle):
    x = data[0].seen_maps
    state, cover = (init(variant("consecutive", b, ROWS), x, "bhqk") for b in ("mse", "cover"))
    assert (np.asarray(state["zero"]) == 0).all()
    assert (np.asarray(state["scale"]) <= np.asarray(cover["scale"]) * (1 + 1e-6)).all()
    values, group = by_index(x, "hq", "bhqk").astype(np.float64), np.repeat(np.arange(GROUPS), 5)
    found, wide = (errors_of_groups(s, values, group, oracle) for s in (state, cover))
    assert (found <= wide * (1 + 1e-5)).all()
    assert found.sum() < 0.95 * wide.sum()


def test_codes_decode_to_exactly_what_apply_gives(data):
    for q, seen, held, letters in (
        (LINEAR, data[0].seen, data[0].held, "bnd"),
        (ROWS, data[0].seen_maps, data[0].held_maps, "bhqk"),
    ):
        state = init(q, seen, letters)
        codes = encode(q, state, held, letters)
        assert codes.codes.dtype == jnp.int32
        assert 0 <= codes.codes.min()
        assert codes.codes.max() == 15
        np.testing.assert_array_equal(decode(codes), apply(q, state, held, letters))


def test_the_image_axis_may_stand_anywhere(data):
    q = variant("sorted", "cover")
    state, turned = init(q, data[0].seen, "bnd"), init(q, data[0].seen.transpose(2, 1, 0), "dnb")
    for name in ("scale", "zero"):
        np.testing.assert_array_equal(turned[name], state[name])
    got = apply(q, state, data[0].held.transpose(2, 1, 0), "dnb")
    np.testing.assert_array_equal(got, apply(q, state, data[0].held).transpose(2, 1, 0))


def test_weights_have_no_image_axis(rng, oracle):
    w = (rng.normal(size=(40, 24)) * np.exp(rng.normal(size=24))).astype(np.float32)
    q = StaticGrouped(bits=BITS, groups=6, along="o", grouping="sorted")
    points = ends(w, "o", "do")
    group = expected_membership(q, points)
    scale, zero = (t[group] for t in oracle.affine(*expected_bounds(q, points, group).T, BITS))
    oracle.matches(apply(q, init(q, w, "do"), w, "do"), w, scale[None], zero[None], BITS)


# --- limits


@pytest.mark.parametrize(("groups", "keep"), [(1, ""), (64, "d")])
def test_one_covering_group_is_a_range_a_tensor_and_as_many_as_channels_a_range_a_channel(data, groups, keep):
    """To the last bit, whatever the grouping: nothing but the (min, max) of Uniform."""
    uniform = Uniform(bits=BITS, keep=keep)
    want = init(uniform, data[0].seen, "bnd")
    for grouping in ("consecutive", "sorted"):
        q = dataclasses.replace(LINEAR, groups=groups, grouping=grouping)
        state = init(q, data[0].seen, "bnd")
        for name in ("scale", "zero"):
            np.testing.assert_array_equal(state[name], np.broadcast_to(want[name], 64))
        np.testing.assert_array_equal(apply(q, state, data[0].held), apply(uniform, want, data[0].held))


@pytest.mark.parametrize("bounds", MSTEPS)
def test_an_empty_kmeans_group_is_harmless(rng, bounds):
    """Two distinct channels in eight groups; the shape is that of the other tests, whose executable this shares."""
    x = np.tile(rng.normal(size=(8, 50, 2)), (1, 1, 32)).astype(np.float32)
    q = variant("kmeans", bounds)
    for operand in (x, np.zeros_like(x), 1e-30 * x):
        state = init(q, operand, "bnd")
        assert all(np.isfinite(t).all() for t in state.values())
        assert np.isfinite(apply(q, state, operand)).all()
    if bounds == "cover":
        state, low, high = init(q, x, "bnd"), x.min(axis=(0, 1)), x.max(axis=(0, 1))
        np.testing.assert_allclose(state["scale"], (high - low) / 15, rtol=1e-5)


@pytest.mark.parametrize(("zero_point", "scale", "zero"), [("extend", 5.0, 0), ("free", 2.0, -22), ("clamp", 2.0, 0)])
def test_an_interval_without_zero_is_treated_as_the_zero_point_option_says(zero_point, scale, zero):
    x = np.linspace(45, 75, 24, dtype=np.float32).reshape(1, 12, 2)
    state = init(StaticGrouped(bits=BITS, groups=1, zero_point=zero_point), x, "bnd")
    np.testing.assert_allclose(state["scale"], [scale] * 2, rtol=1e-6)
    np.testing.assert_array_equal(state["zero"], [zero] * 2)


def test_width_and_seed_are_read_as_numbers_only(data):
    """Calibration that traces them gives what it gives with them as they are."""
    x = jnp.asarray(data[0].seen)
    for bits, seed in ((3, 0), (5, 1)):
        q = dataclasses.replace(variant("kmeans", "cover"), bits=bits, seed=seed)
        want, got = q.init(x, "bnd"), init(q, x)
        assert got["levels"] == 2**bits - 1
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-6)


REFUSED = [
    (dict(groups=0), "groups: got 0, must be from 1 to the 64 indices along 'd'"),
    (dict(groups=65), "groups: got 65, must be from 1 to the 64 indices along 'd'"),
    (dict(along=""), "along: got '', must name axes of the operand other than the image's 'b'"),
    (dict(along="bd"), "along: got 'bd', must name axes of the operand other than the image's 'b'"),
    (dict(along="h"), "along: no axis 'h' in an operand with letters 'bnd'"),
    (dict(along="dd"), "along: a letter stands twice in 'dd'"),
    (dict(bits=0), "bits must be a whole number from 1 to 16, got 0"),
    (dict(restarts=0), "restarts: got 0, must be at least 1"),
    (dict(iterations=0), "iterations: got 0, must be at least 1"),
    (dict(grouping="sort"), r"grouping: got 'sort' \(did you mean 'sorted'\?\)"),
    (dict(bounds="max"), r"bounds: got 'max' \(there are: mse, mean, cover\)"),
    (dict(zero_point="extended"), r"zero_point: got 'extended' \(did you mean 'extend'\?\)"),
]


def altered(q, options):
    """The quantiser with fields that its constructor would refuse where types are checked."""
    q = copy.copy(q)
    for name, value in options.items():
        object.__setattr__(q, name, value)
    return q


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        altered(LINEAR, options).check("bnd", (8, 50, 64))


def test_what_fits_is_not_refused():
    for grouping in GROUPINGS:
        for bounds in MSTEPS:
            variant(grouping, bounds, dataclasses.replace(ROWS, groups=40)).check("bhqk", (1, 2, 20, 20))


def test_only_partial_sums_cost_anything():
    """As Grouped without minima, maxima and assignment (spec 2.6): beta (G-1) N D, and nothing for rows."""
    product, beta = 197 * 96, 16
    assert LINEAR.overhead("nd", (197, 64), "d", product, beta) == Overhead(add=beta * 7 * product)
    assert StaticGrouped(groups=1).overhead("nd", (197, 64), "d", product, beta) == Overhead()
    assert ROWS.overhead("hqk", (3, 197, 197), "k", product, beta) == Overhead()


# --- spec 8.13


def test_consecutive_groups_lose_to_those_by_range_and_these_to_groups_by_the_image(data, oracle):
    """Held-out images, all with the same kind of bounds.

    Sorting is compared with mean bounds alone. With covering ones it does not reliably beat consecutive groups here: it
    puts the widest other channels, which weigh most in a squared error, into the group of the outlier.
    """

    def lost(init, q):
        return np.mean([oracle.error(apply(q, init(q, d.seen, "bnd"), d.held), d.held) for d in data])

    aware_init = jax.jit(lambda q, x, letters: q.init(x, letters), static_argnums=(0, 2))  # compiled as in test_grouped
    for bounds in ("mean", "mse"):
        consecutive, by_range, kmeans = (lost(init, variant(g, bounds)) for g in GROUPINGS)
        aware = lost(aware_init, Grouped(bits=BITS, groups=GROUPS, mstep=bounds))
        assert consecutive > kmeans > 1.2 * aware
        assert bounds == "mse" or consecutive > 2 * by_range > 2 * aware
