"""Similarity and the ranking loss (Liu et al. 2021, spec 9.2 S1-S2 and 9.3): goldens, and NumPy in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.methods.similarity import SIMILARITIES, ranking_loss, similarity

compiled = {
    "similarity": jax.jit(similarity, static_argnums=(2, 3)),
    "ranking_loss": jax.jit(ranking_loss, static_argnums=2),
}


def f32(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def alike(a, b, over, kind="pearson"):
    return np.asarray(compiled["similarity"](*f32(a, b), over, kind))


def ranked(reference, got, theta):
    return np.asarray(compiled["ranking_loss"](*f32(reference, got), theta))


def pearson(a, b) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def cosine(a, b) -> float:
    a, b = (np.ravel(x).astype(np.float64) for x in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def double_loop(reference, got, theta) -> float:
    """Eq. 13 of one row, pair by pair."""
    reference, got = (np.asarray(x, np.float64) for x in (reference, got))
    pairs = itertools.combinations(range(len(reference)), 2)
    return sum(max(0.0, theta - (got[i] - got[j]) * np.sign(reference[i] - reference[j])) for i, j in pairs)


GOLDEN = np.array([[1, 2, 3, 4], [2, 0, 1, 5.0]]), np.array([[1, 2, 3, 5], [2, 0, 2, 4.0]])


def test_similarity_of_images_is_the_golden_one():
    """S1: every image is centred by its own mean; centring the batch gives another number."""
    got = alike(*GOLDEN, (1,))
    np.testing.assert_allclose(got, [0.982707630, 0.944911183], rtol=1e-6)
    np.testing.assert_allclose(got.mean(), 0.963809406, rtol=1e-6)
    o, p = (x - x.mean() for x in GOLDEN)
    together = [pearson(*GOLDEN), np.mean([cosine(a, b) for a, b in zip(o, p, strict=True)])]
    assert np.abs(np.array(together) - 0.963809406).min() > 1e-3


@pytest.fixture
def products(rng):
    """A product [b n o] and what a coarse quantiser might make of it."""
    o = rng.normal(1.0, 2.0, (5, 7, 6))
    return o, np.round(o) + 0.5 * rng.normal(size=o.shape)


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_similarity_is_that_of_numpy(kind, products):
    want = [{"pearson": pearson, "cosine": cosine}[kind](a, b) for a, b in zip(*products, strict=True)]
    np.testing.assert_allclose(alike(*products, (1, 2), kind), want, rtol=1e-5)


def test_the_two_similarities_are_told_apart(products):
    assert abs(pearson(*products) - cosine(*products)) > 3e-3


@pytest.mark.parametrize("kind", SIMILARITIES)
@pytest.mark.parametrize(("factor", "sign"), [(1.0, 1), (0.01, 1), (300.0, 1), (-0.5, -1)])
def test_a_product_is_as_similar_to_itself_as_can_be_whatever_its_size(kind, factor, sign, products):
    """S2."""
    x, _ = products
    np.testing.assert_allclose(alike(x, factor * x, (1, 2), kind), np.full(5, float(sign)), rtol=1e-6)


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_similarity_stays_between_minus_one_and_one(kind, rng):
    """S2, up to a last bit."""
    a, b = rng.normal(size=(2, 2000, 3))
    got = np.asarray(alike(a, b, (1,), kind))
    assert np.abs(got).max() <= 1 + 1e-6
    assert got.min() < -0.99
    assert got.max() > 0.99


@pytest.mark.parametrize("factor", [0.03, 1.0, 70.0, -1.0, -20.0])
@pytest.mark.parametrize("offset", [0.0, -4.0, 30.0])
def test_correlation_sees_neither_factor_nor_offset_but_the_sign(factor, offset, products):
    """S2."""
    o, p = products
    want = np.sign(factor) * alike(o, p, (1, 2))
    np.testing.assert_allclose(alike(o, factor * p + offset, (1, 2)), want, rtol=1e-5)


def test_cosine_sees_an_offset_but_no_factor(products):
    o, p = products
    plain, larger, moved = (alike(o, x, (1, 2), "cosine") for x in (p, 9.0 * p, p + 4.0))
    np.testing.assert_allclose(larger, plain, rtol=1e-6)
    assert np.abs(moved - plain).min() > 0.05


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 0.1, 1e6, -1e6, 1e-30, 3e38])
@pytest.mark.parametrize("length", [3, 42, 1009])
def test_what_does_not_vary_has_no_correlation(value, length, rng):
    """Exactly 0, of either array or both, and not what rounding leaves of a mean."""
    flat, varies = np.full((2, length), value), rng.normal(size=(2, length))
    for pair in ((flat, varies), (varies, flat), (flat, flat)):
        np.testing.assert_array_equal(alike(*pair, (1,)), np.zeros(2))


def test_what_is_zero_everywhere_has_no_cosine(rng):
    zero, varies = np.zeros((2, 42)), rng.normal(size=(2, 42))
    for pair in ((zero, varies), (varies, zero), (zero, zero)):
        np.testing.assert_array_equal(alike(*pair, (1,), "cosine"), np.zeros(2))


def test_constants_point_the_same_way():
    a, b = np.full((2, 42), 0.1), np.full((2, 42), [[7.0], [-3.0]])
    np.testing.assert_allclose(alike(a, b, (1,), "cosine"), [1.0, -1.0], rtol=1e-6)


def test_an_image_that_does_not_vary_leaves_the_others_alone(products):
    o, p = (x.copy() for x in products)
    o[2], p[3] = 5.0, 0.0
    want = [0.0 if i in (2, 3) else pearson(o[i], p[i]) for i in range(5)]
    np.testing.assert_allclose(alike(o, p, (1, 2)), want, rtol=1e-5)


@pytest.mark.parametrize("kind", SIMILARITIES)
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30, 1e38])
def test_squares_neither_overflow_nor_vanish(kind, size, products):
    o, p = (x / np.abs(x).max() for x in products)
    want = alike(o, p, (1, 2), kind)
    for pair in ((size * o, size * p), (o, size * p), (size * o, p)):
        np.testing.assert_allclose(alike(*pair, (1, 2), kind), want, rtol=1e-5)


def test_a_spread_far_below_the_mean_is_still_seen(products):
    o, p = products
    want = [pearson(a, b) for a, b in zip(o, p, strict=True)]
    np.testing.assert_allclose(alike(o + 2000.0, p - 3000.0, (1, 2)), want, atol=1e-3)


@pytest.mark.parametrize(("kind", "oracle"), [("pearson", pearson), ("cosine", cosine)])
def test_every_unit_has_a_similarity_of_its_own(kind, oracle, rng):
    """Over tokens, heads and channels of ``bnshe``: one for each image, and query, key and value."""
    o = rng.normal(0.3, 1.0, (2, 5, 3, 2, 4)) * np.array([1.0, 5.0, 0.2])[:, None, None]
    p = np.round(2 * o) + rng.normal(size=o.shape)
    want = [[oracle(o[b, :, s], p[b, :, s]) for s in range(3)] for b in range(2)]
    got = alike(o, p, (1, 3, 4), kind)
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, want, rtol=1e-5)


A = np.array([[3.0, 1.0, 2.0], [0.5, 0.4, 0.1]])


@pytest.mark.parametrize(
    ("got", "want"), [([[2.5, 1.0, 1.5], [0.5, 0.5, 0.0]], [0.0, 0.2]), (A, [0.0, 0.1]), (-A, [4.6, 1.4])]
)
def test_ranking_loss_is_the_golden_one(got, want):
    """R1: sums of 0.2 (a tie), 0.1 (the reference has a floor of its own) and 6.0."""
    np.testing.assert_allclose(ranked(A, got, 0.2), want, rtol=1e-5, atol=1e-7)


def shuffled(rng, rows: int, keys: int):
    """Rows of distinct whole numbers."""
    return np.stack([rng.permutation(3 * keys)[:keys] for _ in range(rows)]).astype(np.float64)


def test_the_loss_is_zero_where_every_pair_is_in_order_and_the_margin_apart(rng):
    """R2."""
    reference = shuffled(rng, 8, 17)
    rank = reference.argsort(axis=1).argsort(axis=1)
    np.testing.assert_array_equal(ranked(reference, 0.25 * rank, 0.25), np.zeros(8))
    np.testing.assert_allclose(ranked(reference, 0.9 * 0.25 * rank, 0.25), np.full(8, 16 * 0.025), rtol=1e-4)


def test_the_loss_is_zero_nowhere_else(rng):
    """R2: one pair too close, or two neighbours exchanged, is seen, and at no margin only the order counts."""
    reference = shuffled(rng, 8, 17)
    rank = reference.argsort(axis=1).argsort(axis=1).astype(np.float64)
    for place in (0, 7, 15):
        close = 0.25 * np.where(rank > place, rank - 0.5, rank)
        np.testing.assert_array_equal(ranked(reference, close, 0.25), np.full(8, 0.125))
        np.testing.assert_array_equal(ranked(reference, close, 0.0), np.zeros(8))
        swapped = np.where(rank == place, place + 1, np.where(rank == place + 1, place, rank))
        np.testing.assert_array_equal(ranked(reference, swapped, 0.0), np.ones(8))


@pytest.fixture
def dyadic(rng):
    """Rows of references and quarters, so that sums are exact; some entries of either are equal."""
    return rng.integers(-6, 7, (8, 17)) / 4, rng.integers(-9, 10, (8, 17)) / 4


def test_only_the_order_of_the_reference_counts(dyadic):
    """R3."""
    reference, got = dyadic
    want = ranked(reference, got, 0.25)
    for mapped in (np.exp(reference), reference**3, 1e-3 * reference - 5.0):
        np.testing.assert_array_equal(ranked(mapped, got, 0.25), want)
    assert (np.asarray(ranked(-reference, got, 0.25)) != want).all()


def test_what_is_added_to_a_row_does_not_count(dyadic):
    """R3."""
    reference, got = dyadic
    shifts = np.arange(-20.0, 20.0, 5.0)[:, None]
    want = ranked(reference, got, 0.25)
    np.testing.assert_array_equal(ranked(reference, got + shifts, 0.25), want)
    np.testing.assert_array_equal(ranked(reference + shifts, got, 0.25), want)


def test_the_order_in_which_keys_stand_does_not_count(dyadic, rng):
    """R3."""
    reference, got = dyadic
    order = rng.permutation(17)
    want = ranked(reference, got, 0.25)
    np.testing.assert_array_equal(ranked(reference[:, order], got[:, order], 0.25), want)
    assert (np.asarray(ranked(reference, got[:, order], 0.25)) != want).any()


@pytest.mark.parametrize("keys", [2, 17, 50])
@pytest.mark.parametrize("ties", [False, True])
def test_sorting_gives_what_a_double_loop_gives(keys, ties, rng):
    """R4, with equal entries in the reference, in the other, and in both at once."""
    reference, got = rng.normal(0.0, 1.0, (2, 4, 3, keys))
    if ties:
        reference, got = np.round(reference), np.round(2 * got) / 2
        reference[0, 0], got[0, 1] = 1.0, -0.5
    reference, got = (x.astype(np.float32) for x in (reference, got))
    rows = zip(reference.reshape(12, keys), got.reshape(12, keys), strict=True)
    want = np.reshape([double_loop(a, b, 0.2) for a, b in rows], (4, 3))
    np.testing.assert_allclose(ranked(reference, got, 0.2), want, rtol=1e-5, atol=1e-6)


def test_rows_do_not_see_one_another(dyadic):
    """R4: chunked is unchunked."""
    whole = ranked(*dyadic, 0.25)
    np.testing.assert_array_equal([ranked(a, b, 0.25) for a, b in zip(*dyadic, strict=True)], whole)


def test_a_tie_costs_the_margin():
    """Of the reference, whatever became of the two; or of what became of two that differ."""
    reference, got = [[1.0, 1.0, 5.0], [1.0, 2.0, 9.0]], [[9.0, -9.0, 20.0], [4.0, 4.0, 30.0]]
    np.testing.assert_allclose(ranked(reference, got, 0.2), [0.2, 0.2], rtol=1e-6)


def test_extreme_scores_stay_finite():
    """In order they cost nothing; out of order what the distance is."""
    rows = np.array([[-1e30, 0.0, 1e30], [-1e-30, 0.0, 1e-30]])
    np.testing.assert_allclose(ranked(rows, rows, 0.2), [0.0, 0.6], rtol=1e-6)
    np.testing.assert_allclose(ranked(rows, -rows, 0.2), [4e30, 0.6], rtol=1e-6)
    np.testing.assert_allclose(ranked(np.full((2, 3), 1e30), rows, 0.2), [0.6, 0.6], rtol=1e-6)


def quantised(x, bits: int):
    """Eq. 8, the interval by the maximum."""
    top = 2 ** (bits - 1)
    delta = np.abs(x).max() / (top - 1)
    return delta * np.clip(np.rint(x / delta), -top, top - 1)


def mean_loss(reference, got) -> float:
    """Over pairs, rows and heads."""
    keys = reference.shape[-1]
    return float(ranked(reference, got, 0.2).mean()) / (keys * (keys - 1) / 2)


def test_more_bits_rank_better_down_to_the_margins_own_floor(rng):
    """R6: attention scores before the softmax."""
    q, k = rng.normal(size=(2, 3, 40, 16))
    a = q @ k.swapaxes(1, 2)
    loss = {b: mean_loss(a, quantised(q, b) @ quantised(k, b).swapaxes(1, 2)) for b in (4, 6, 8, 16)}
    floor = mean_loss(a, a)
    assert loss[4] > 2 * loss[6] > 4 * floor
    assert loss[6] > loss[8] > floor
    np.testing.assert_allclose(loss[16], floor, rtol=1e-3)
    assert floor > 1e-4


@pytest.mark.parametrize("std", [2.0, 4.0])
def test_the_margin_tells_attention_maps_hardly_apart(std, rng):
    """R7: almost every two probabilities are closer than it, at any width."""
    q, k = rng.normal(size=(197, 32)), rng.normal(0.0, std / np.sqrt(32), (197, 32))

    def softmax(x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return (e / e.sum(axis=-1, keepdims=True))[::16]

    p = softmax(q @ k.T)
    loss = [mean_loss(p, softmax(quantised(q, b) @ quantised(k, b).T)) for b in (4, 6, 8, 16)]
    assert 0.18 < min(loss) <= max(loss) < 0.20
