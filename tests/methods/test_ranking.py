"""Ranking-aware distillation (Bi-ViT, spec 3.2 and R1-R5): NumPy's double loop in float64, and numbers by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jvq.evaluate_order import kendall
from jvq.methods.ranking import PAIRS, SPACES, check_ranking, rank_distillation, rank_loss

STATIC = ("theta", "pairs", "space", "chunk")
compiled = jax.jit(jax.value_and_grad(rank_loss), static_argnames=STATIC)
PLACE = "block00/attn/pv.p"


def ranked(student, teacher, **options):
    """The loss, and its gradient to the student."""
    value, gradient = compiled(*(jnp.asarray(x, jnp.float32) for x in (student, teacher)), **options)
    return float(value), np.asarray(gradient)


def pairs_of(row, pairs):
    """The indices (lesser, greater) of a teacher's row that are compared."""
    order = np.argsort(row, kind="stable")
    found = itertools.pairwise(order) if pairs == "adjacent" else itertools.permutations(range(len(row)), 2)
    return [(i, j) for i, j in found if row[j] - row[i] > 1e-6 / len(row) and row[i] >= 1e-20]


def double_loop(student, teacher, theta, pairs, space) -> float:
    """Row by row and pair by pair."""
    keys = student.shape[-1]
    student, teacher = (np.asarray(x, np.float64).reshape(-1, keys) for x in (student, teacher))
    said = student * keys if space == "prob" else np.log(np.maximum(student, 1e-20))
    rows = []
    for s, a in zip(said, teacher, strict=True):
        hinges = [max(0.0, theta - (s[j] - s[i])) for i, j in pairs_of(a, pairs)]
        rows.append(np.mean(hinges) if hinges else 0.0)
    return float(np.mean(rows))


def differences(student, teacher, theta, pairs, space, step=1e-7):
    """The gradient of :func:`double_loop` to the student, by central differences."""
    got = np.zeros(student.shape)
    for at in np.ndindex(student.shape):
        moved = [np.array(student, np.float64) for _ in range(2)]
        moved[0][at] += step
        moved[1][at] -= step
        up, down = (double_loop(x, teacher, theta, pairs, space) for x in moved)
        got[at] = (up - down) / (2 * step)
    return got


def maps(rng, *shape):
    """A student's and a teacher's map; the teacher's has ties, masked keys, and a row whose keys are all tied."""
    student, teacher = softmax(rng.normal(0, 1.5, (2, *shape)), axis=-1).astype(np.float32)
    teacher[..., 0, 2] = teacher[..., 0, 4] = teacher[..., 0, 5]
    teacher[..., 1, [0, 3]] = 0.0
    teacher[..., 1, 4] = 9e-21
    teacher[..., -1, :] = 1 / shape[-1]
    return student, teacher


@pytest.fixture
def tied(rng):
    return maps(rng, 2, 2, 3, 7)


@pytest.mark.parametrize("theta", [0.0, 0.1])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("pairs", PAIRS)
def test_value_and_gradient_are_those_of_the_double_loop(pairs, space, theta, tied):
    student, teacher = tied
    value, gradient = ranked(student, teacher, theta=theta, pairs=pairs, space=space)
    assert value == pytest.approx(double_loop(student, teacher, theta, pairs, space), rel=1e-6)
    want = differences(student, teacher, theta, pairs, space)
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-7 * np.abs(want).max())


@pytest.mark.parametrize("pairs", PAIRS)
def test_windows_are_rows_like_any(pairs, rng):
    student, teacher = maps(rng, 2, 3, 2, 3, 7)  # [b m h q k]
    value, gradient = ranked(student, teacher, pairs=pairs)
    assert value == pytest.approx(double_loop(student, teacher, 0.1, pairs, "prob"), rel=1e-6)
    merged, flat = ranked(*(x.reshape(6, 2, 3, 7) for x in (student, teacher)), pairs=pairs)
    assert merged == value
    np.testing.assert_array_equal(flat.reshape(gradient.shape), gradient)


@pytest.mark.parametrize("theta", [0.0, 0.1])
def test_the_gradient_is_what_jax_derives_from_the_hinge(theta, rng):
    """The loss is written as linear in counts that are held fixed; here nothing is."""
    student, teacher = maps(rng, 1, 2, 4, 12)

    def plain(student, teacher):
        said = student * 12
        less = (teacher[..., None, :] - teacher[..., None] > 1e-6 / 12) & (teacher[..., None] >= 1e-20)
        short = theta - (said[..., None, :] - said[..., None])
        hinge = jnp.where(less & (short > 0), short, 0.0).sum(axis=(-2, -1))
        return (hinge / jnp.maximum(less.sum(axis=(-2, -1)), 1).astype(jnp.float32)).mean()

    value, gradient = ranked(student, teacher, theta=theta)
    want, derived = jax.jit(jax.value_and_grad(plain))(student, teacher)
    assert value == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_allclose(gradient, derived, rtol=1e-5, atol=1e-7)


@pytest.fixture
def spaced(rng):
    """R1: a student [1 1 4 50] whose values times 50 are 0.1 apart in the teacher's order, and the teacher."""
    place = np.stack([rng.permutation(50) for _ in range(4)])[None, None]
    return place * 0.1 / 50, softmax(place * 0.05, axis=-1)


@pytest.mark.parametrize(("pairs", "want"), [("all", 4.0e-6), ("adjacent", 1.0e-4)])
def test_the_loss_is_zero_exactly_where_every_gap_is_the_margin(pairs, want, spaced):
    """R1."""
    for theta in (0.0, 0.05, 0.0999):
        value, gradient = ranked(*spaced, theta=theta, pairs=pairs)
        assert value == 0
        assert not gradient.any()
    assert ranked(*spaced, theta=0.1001, pairs=pairs)[0] == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(("pairs", "want"), [("all", 0.1 / (4 * 1225)), ("adjacent", 0.1 / (4 * 49))])
def test_one_swap_costs_its_gap_over_the_pairs(pairs, want, spaced):
    """R2: 2.041e-5 and 5.10e-4."""
    student, teacher = spaced
    order = np.argsort(student[0, 0, 0])
    student[0, 0, 0, order[[20, 21]]] = student[0, 0, 0, order[[21, 20]]]
    value, gradient = ranked(student, teacher, theta=0.0, pairs=pairs)
    assert value == pytest.approx(want, rel=1e-5)
    assert value == pytest.approx({"all": 2.041e-5, "adjacent": 5.10e-4}[pairs], rel=1e-3)
    assert np.flatnonzero(gradient).tolist() == sorted(order[[20, 21]])


@pytest.mark.parametrize("pairs", PAIRS)
def test_without_a_margin_only_the_order_counts(pairs, spaced, rng):
    """R3: increasing transforms keep the zero set, and what every entry is pushed by."""
    inside, teacher = spaced
    outside = (inside + rng.normal(0, 0.1 / 50, inside.shape)).argsort(axis=-1).argsort(axis=-1) * 0.1 / 50
    transforms = [lambda x: x, np.exp, lambda x: softmax(100 * x, axis=-1), lambda x: 5 * x**3]
    pushes = []
    for transform in transforms:
        assert ranked(transform(inside), teacher, theta=0.0, pairs=pairs)[0] == 0
        value, gradient = ranked(transform(outside), teacher, theta=0.0, pairs=pairs)
        assert value > 0
        pushes.append(gradient)
    for push in pushes[1:]:
        np.testing.assert_array_equal(push, pushes[0])


@pytest.mark.parametrize("pairs", PAIRS)
def test_gradients_of_a_row_sum_to_zero_and_none_is_the_teachers(pairs, tied):
    """R3: of S, that is of the probabilities, or of their logarithms."""
    gradient = ranked(*tied, pairs=pairs)[1]
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-6 * np.abs(gradient).max())
    gradient = ranked(*tied, pairs=pairs, space="log")[1] * tied[0]
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-6 * np.abs(gradient).max())
    assert not jax.jit(jax.grad(rank_loss, argnums=1), static_argnames=STATIC)(*tied, pairs=pairs).any()


def test_all_and_adjacent_pairs_are_zero_together():
    """R4: over every order of four keys, and gaps on either side of the margin."""
    gaps = itertools.product((0.05, 0.2), repeat=3)
    rises = np.array([np.concatenate([[0.0], np.cumsum(g)]) for g in gaps])
    orders = np.array(list(itertools.permutations(range(4))))
    student = jnp.asarray(rises[:, orders].reshape(-1, 1, 1, 1, 4) / 4, jnp.float32)
    teacher = jnp.asarray([0.1, 0.2, 0.3, 0.4], jnp.float32)[None, None, None]
    by_row = (jax.jit(jax.vmap(lambda s, p=p: compiled(s, teacher, pairs=p)[0]))(student) for p in PAIRS)
    full, adjacent = (np.asarray(x) == 0 for x in by_row)
    assert full.sum() == 1, "in order, and every gap 0.2"
    np.testing.assert_array_equal(full, adjacent)


@pytest.mark.parametrize("pairs", PAIRS)
def test_rows_may_be_compared_in_chunks(pairs, tied):
    """R4: 12 rows at once, with a remainder, and one by one."""
    value, gradient = ranked(*tied, pairs=pairs, chunk=1000)
    for chunk in (8, 1):
        got, slope = ranked(*tied, pairs=pairs, chunk=chunk)
        assert got == value
        np.testing.assert_array_equal(slope, gradient)


@pytest.mark.parametrize("pairs", PAIRS)
def test_no_pair_is_kept_for_the_gradient(pairs):
    x = jax.ShapeDtypeStruct((4, 2, 40, 40), jnp.float32)
    memory = compiled.lower(x, x, pairs=pairs).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < x.size * 40  # a byte for each pair


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("pairs", PAIRS)
def test_masked_keys_are_in_no_pair(pairs, space, rng):
    """R5: two regions in a window, their scores 100 apart as in Swin; each is ranked as if the other were not there."""
    scores = rng.normal(0, 2, (2, 1, 2, 2, 7, 7))
    region = np.array([0, 1, 0, 0, 1, 1, 0])
    apart = region[:, None] != region
    student, teacher = softmax(scores - 100.0 * apart, axis=-1).astype(np.float32)
    value, gradient = ranked(student, teacher, pairs=pairs, space=space)
    assert value == pytest.approx(double_loop(student, teacher, 0.1, pairs, space), rel=1e-6)
    own = [[x[..., q, :][..., ~apart[q]] for x in (student, teacher)] for q in range(7)]
    scale = [(~apart[q]).sum() / 7 if space == "prob" else 1.0 for q in range(7)]  # S is times all 7 keys
    alone = [double_loop(s, a, 0.1 * f, pairs, space) / f for (s, a), f in zip(own, scale, strict=True)]
    assert value == pytest.approx(np.mean(alone), rel=1e-6)
    changed = np.where(apart, rng.uniform(0, 1, student.shape), student)
    assert np.abs(gradient[np.broadcast_to(~apart, student.shape)]).max() > 0
    for got in (gradient, ranked(changed, teacher, pairs=pairs, space=space)[1]):
        assert not got[np.broadcast_to(apart, student.shape)].any()
    assert ranked(changed, teacher, pairs=pairs, space=space)[0] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("pairs", "want"), [("all", 2 / 5), ("adjacent", 2 / 2)])
def test_tied_keys_are_in_no_pair(pairs, want):
    """R5, by hand: of the tied second and third key one misses its order with the first, the other with the last."""
    student = np.array([0.0, -1.0, 1.0, 0.0])[None, None, None] / 4
    teacher = np.array([0.1, 0.25, 0.25, 0.4])[None, None, None]
    value, gradient = ranked(student, teacher, theta=0.0, pairs=pairs)
    assert value == pytest.approx(want)
    np.testing.assert_allclose(gradient.ravel(), np.array([1, -1, 1, -1]) * want * 2, rtol=1e-6)
    both = [np.concatenate([x, y], axis=2) for x, y in ((student, student), (teacher, np.full_like(teacher, 0.25)))]
    assert ranked(*both, theta=0.0, pairs=pairs)[0] == pytest.approx(want / 2), "a row without pairs counts as 0"


@pytest.mark.parametrize("pairs", PAIRS)
def test_what_counts_as_a_tie(pairs):
    """The teacher's from 1e-6/N on are none; the student's cost the margin, and without one push nothing."""
    student = np.full((1, 1, 1, 8), 1 / 8)
    for gap, cost in ((0.5e-6, 0.0), (4e-6, 0.1)):
        teacher = np.append(np.full(7, 1 / 8), (1 + gap) / 8)[None, None, None]
        assert ranked(student, teacher, theta=0.1, pairs=pairs)[0] == pytest.approx(cost)
    value, gradient = ranked(student, teacher, theta=0.0, pairs=pairs)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("pairs", PAIRS)
def test_logarithms_are_safe_where_the_student_is_zero(pairs, tied):
    student, teacher = tied
    student[..., 1] = 0.0
    value, gradient = ranked(student, teacher, pairs=pairs, space="log")
    assert value == pytest.approx(double_loop(student, teacher, 0.1, pairs, "log"), rel=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[..., 1].any()


@pytest.mark.parametrize(("pairs", "space"), [("all", "prob"), ("adjacent", "prob"), ("all", "log")])
def test_binary_queries_and_keys_learn_the_teachers_order(pairs, space, rng):
    """T2 in small: nothing but the loss, on scores of signs. Kendall's tau rises from 0 to 0.6 or more."""
    teacher = jnp.asarray(softmax(rng.normal(0, 1, (1, 2, 9, 9)), axis=-1), jnp.float32)
    latent = jnp.asarray(rng.normal(0, 0.5, (2, 1, 2, 9, 16)), jnp.float32)

    def attention(latent):
        inside = jnp.clip(latent, -1, 1)
        q, k = inside + jax.lax.stop_gradient(jnp.where(latent >= 0, 1.0, -1.0) - inside)
        return jax.nn.softmax(jnp.einsum("bhqe,bhke->bhqk", q, k) / 4, axis=-1)

    @jax.jit
    def learn(latent):
        def step(latent, _):
            slope = jax.grad(lambda x: rank_loss(attention(x), teacher, pairs=pairs, space=space))(latent)
            return latent - 0.1 * slope / jnp.abs(slope).max(), None

        return jax.lax.scan(step, latent, length=150)[0]

    agreement = jax.jit(lambda latent: kendall(teacher, attention(latent)).mean())
    before, after = float(agreement(latent)), float(agreement(learn(latent)))
    assert after > before + 0.3


def test_a_model_is_the_mean_of_its_layers(rng):
    """Layers may differ in shape, as Swin's stages do; what else is on the tapes does not count."""
    other = "block01/attn/pv.p"
    shapes = {PLACE: (2, 3, 2, 3, 7), other: (2, 1, 4, 3, 7), "block02/attn/pv.p": (2, 1, 1, 3, 7)}
    both = {a: [jnp.asarray(x) for x in maps(rng, *shape)] for a, shape in shapes.items()}
    student, teacher = ({a: x[i] for a, x in both.items()} | {"output": jnp.zeros((2, 5))} for i in range(2))
    options = {"theta": 0.2, "pairs": "adjacent", "space": "log"}
    got = jax.jit(lambda s, t: rank_distillation(s, t, [PLACE, other], **options))(student, teacher)
    want = [double_loop(student[a], teacher[a], 0.2, "adjacent", "log") for a in (PLACE, other)]
    assert float(got) == pytest.approx(np.mean(want), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pairs": "every"}, r"pairs: got 'every' \(there are: all, adjacent\)"),
        ({"space": "logs"}, r"space: got 'logs' \(did you mean 'log'\?\)"),
        ({"theta": -0.1}, "theta: got -0.1, must be at least 0"),
        ({"theta": float("nan")}, "theta: got nan"),
        ({"chunk": 0}, "chunk: got 0, must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        check_ranking(**{"theta": 0.1, "pairs": "all", "space": "prob", "chunk": 8, **options})


def test_the_loss_checks_its_options():
    x = jax.ShapeDtypeStruct((1, 1, 2, 3), jnp.float32)
    with pytest.raises(ValueError, match="theta: got -1.0, must be at least 0"):
        jax.eval_shape(lambda s, t: rank_loss(s, t, -1.0), x, x)


def test_more_keys_than_are_counted_are_refused():
    x = jax.ShapeDtypeStruct((1, 1, 2, 1024), jnp.float32)
    with pytest.raises(ValueError, match=r"pairs: 'all' counts at most 1023 keys, got 1024 \(did you mean 'adjacent'"):
        jax.eval_shape(rank_loss, x, x)
    assert jax.eval_shape(lambda s, t: rank_loss(s, t, pairs="adjacent"), x, x).shape == ()


def test_as_many_keys_as_can_be_counted_do_not_overflow():
    """Each key has a pair with each other, and each pair misses its order."""
    rise = jnp.arange(1, 1024, dtype=jnp.float32)[None, None, None] / 1023
    value, gradient = ranked(-rise, rise, theta=0.0)
    assert value == pytest.approx(1023 * 1024 / 3 / 1023, rel=1e-5)  # the mean distance of two of 1..n is (n + 1) / 3
    np.testing.assert_allclose(gradient.ravel(), np.arange(1022, -1023, -2) * 1023 / (1023 * 1022 / 2), rtol=1e-5)


def test_tapes_that_do_not_match_are_refused():
    x = jnp.full((1, 1, 2, 3), 1 / 3)
    full = {PLACE: x}
    with pytest.raises(ValueError, match=r"the teacher recorded no 'block00/attn/pv.p' \(did you mean 'block01/"):
        rank_distillation(full, {"block01/attn/pv.p": x}, [PLACE])
    with pytest.raises(ValueError, match=r"the student recorded no 'block00/attn/pv.p' \(there are none\)"):
        rank_distillation({}, full, [PLACE])
    with pytest.raises(
        ValueError, match=r"block00/attn/pv.p the student's map is \[1, 1, 2, 3\], the teacher's \[2, 1,"
    ):
        rank_distillation(full, {PLACE: jnp.concatenate([x, x])}, [PLACE])
    with pytest.raises(ValueError, match="no address of an attention map"):
        rank_distillation(full, full, [])
