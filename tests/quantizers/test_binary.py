"""One bit: levels, starts, factors and packed forms against NumPy, and what becomes of gradients through attention."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jvq.checkpoints import Keeper
from jvq.core.calibrate import fresh
from jvq.core.packed import Packed
from jvq.core.samples import some
from jvq.quantizers import ShiftedSigns, Signs, Steps
from jvq.schedule import Schedule

HEADS, WEIGHT = "bhqe", "do"
SHAPE = (4, 3, 10, 8)


@pytest.fixture(scope="module")
def x():
    """[b h q e], heads of different width, not centred."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(0.2, 1, SHAPE) * np.array([0.3, 1.0, 4.0]).reshape(1, 3, 1, 1), jnp.float32)


@pytest.fixture(scope="module")
def w():
    """[d o]"""
    return jnp.asarray(np.random.default_rng(1).normal(0.1, 0.7, (13, 6)), jnp.float32)


@pytest.fixture(scope="module")
def maps():
    """[b h q k], attention after softmax."""
    return jax.nn.softmax(jnp.asarray(np.random.default_rng(2).normal(0, 1.5, (4, 3, 10, 10)), jnp.float32), axis=-1)


def levels(y, axis):
    """The distinct values of each index of ``axis``."""
    return [np.unique(part).tolist() for part in np.moveaxis(np.asarray(y), axis, 0)]


def test_inputs_of_linear_layers_are_signs(x):
    """K5."""
    for smooth in (True, False):
        y = Signs(smooth=smooth).apply({}, x, HEADS)
        assert np.unique(y).tolist() == [-1, 1]
        np.testing.assert_array_equal(y > 0, x >= 0)


@pytest.mark.parametrize("centred", [False, True])
def test_weights_have_two_values_an_output_channel(centred, w):
    """K5, with the mean magnitude by hand."""
    q = Signs(scale="mean", keep="o", centred=centred)
    y, wide = np.asarray(q.apply({}, w, WEIGHT)), np.asarray(w, np.float64)
    wide = wide - centred * wide.mean(axis=0)
    scale = np.abs(wide).mean(axis=0)
    np.testing.assert_allclose(y, scale * np.where(wide >= 0, 1, -1), rtol=1e-6)
    assert [len(values) for values in levels(y, 1)] == [2] * 6
    assert all(low == -high for low, high in levels(y, 1))


def test_a_weights_gradient_is_cut_off_at_one_and_centring_takes_its_mean_off(w):
    g = np.random.default_rng(2).normal(size=w.shape).astype(np.float32)
    plain, centred = (
        jax.grad(lambda w, c=c: (g * Signs(scale="mean", keep="o", centred=c).apply({}, w, WEIGHT)).sum())(w)
        for c in (False, True)
    )
    np.testing.assert_array_equal(plain, g * (np.abs(w) <= 1))
    wide = np.asarray(w, np.float64)
    passed = g * (np.abs(wide - wide.mean(axis=0)) <= 1)
    np.testing.assert_allclose(centred, passed - passed.mean(axis=0), atol=1e-6)


def test_queries_have_two_values_a_head_and_maps_zero_and_the_scale(x, maps):
    """K5."""
    q = Signs(scale="learned", keep="h")
    state = q.init(x, HEADS)
    assert levels(q.apply(state, x, HEADS), 1) == [[-a, a] for a in state["scale"].tolist()]
    p = Steps(keep="h")
    state = p.init(maps, "bhqk")
    assert levels(p.apply(state, maps, "bhqk"), 1) == [[0, a] for a in state["scale"].tolist()]
    assert np.unique(Steps(scale="one").apply({}, 3.0 * maps, "bhqk")).tolist() == [0, 1]
    np.testing.assert_array_equal(
        Steps(scale="one", threshold="zero").apply({}, x, HEADS), (np.asarray(x) >= 0).astype(np.float32)
    )


@pytest.mark.parametrize("keep", ["", "h", "he"])
def test_scales_start_at_multiples_of_the_mean_magnitude(keep, x, maps):
    over = tuple(i for i, a in enumerate(HEADS) if a not in keep)
    want = 2 * np.abs(np.asarray(x, np.float64)).mean(axis=over)
    got = Signs(scale="learned", keep=keep).init(x, HEADS)["scale"]
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(Steps(keep=keep).init(x, HEADS)["scale"], 2 * want, rtol=1e-5)
    if keep == "h":  # each row of a map sums to 1
        np.testing.assert_allclose(Steps(keep="h").init(maps, "bhqk")["scale"], [4 / 10] * 3, rtol=1e-5)


@pytest.mark.parametrize("keep", ["", "h"])
def test_the_released_scale_and_zero_point_start_as_one_number(keep, x):
    scale = 2 * np.abs(np.asarray(x, np.float64)).mean()
    shape = (3,) if keep else ()
    for zero_start, zero in (("released", 0.1 * (float(x.min()) + scale)), ("minus_one", -1)):
        state = ShiftedSigns(keep=keep, zero_start=zero_start).init(x, HEADS)
        assert state["scale"].shape == state["offset"].shape == shape
        np.testing.assert_allclose(state["scale"], np.full(shape, scale), rtol=1e-5)
        np.testing.assert_allclose(state["offset"], np.full(shape, zero), rtol=1e-4)


@pytest.mark.parametrize("q", [Signs(scale="learned", keep="h"), Steps(keep="h"), ShiftedSigns(keep="h")], ids=repr)
def test_samples_of_which_something_is_left_out_start_nearly_alike(q, rng):
    x = jnp.asarray(rng.normal(0.5, 1, (4, 3, 40, 16)), jnp.float32)
    want = q.init(x, HEADS)
    exact = q.init(some(x, HEADS, q.apart, x.size), HEADS)
    few = some(x, HEADS, q.apart, 512)
    assert few.values.size < x.size / 2
    got = q.init(few, HEADS)
    for name in want:
        np.testing.assert_array_equal(exact[name], want[name])
        assert got[name].shape == want[name].shape
        np.testing.assert_allclose(got[name], want[name], rtol=0.1)


MADE = [
    (Signs(), HEADS),
    (Signs(scale="mean", keep="e"), HEADS),
    (Signs(scale="mean", keep="o"), WEIGHT),
    (Signs(scale="mean", keep="o", centred=True), WEIGHT),
    (Signs(scale="learned", keep="h"), HEADS),
    (Signs(scale="learned", keep="o", gradient="true"), WEIGHT),
    (Steps(keep="h"), HEADS),
    (Steps(scale="one"), HEADS),
    (Steps(scale="one", threshold="zero"), HEADS),
    (ShiftedSigns(keep="h"), HEADS),
    (ShiftedSigns(zero_start="minus_one"), HEADS),
]


@pytest.mark.parametrize(("q", "letters"), MADE, ids=str)
def test_codes_decode_to_exactly_what_apply_gives(q, letters, x, w):
    value = x if letters == HEADS else w
    q.check(letters, value.shape)
    state = q.init(value, letters)
    codes = q.encode(state, value, letters)
    y = q.apply(state, value, letters)
    assert codes.codes.dtype == jnp.int32
    assert np.unique(codes.codes).tolist() == [0, 1]
    assert (codes.zero is None) == (type(q) is not Steps)  # signs have no zero point
    np.testing.assert_array_equal(codes.decode(), y)
    if letters == WEIGHT:  # compiled, as packed and as trained
        run = [
            jax.jit(f) for f in (lambda w: q.encode(state, w, letters).decode(), lambda w: q.apply(state, w, letters))
        ]
        np.testing.assert_array_equal(*(f(value) for f in run))
    assert codes.decode().dtype == codes.scale.dtype == jnp.float32


@pytest.mark.parametrize("zero", [-3.0, -2.0, -0.6, 0.0, 1.0, 3.0])
def test_codes_of_any_zero_point_decode_to_exactly_what_apply_gives(zero, x):
    q = ShiftedSigns(keep="h")
    state = {"scale": jnp.asarray([0.3, 0.7, 2.1]), "offset": jnp.full(3, zero)}
    value = x - np.float32(np.rint(zero))
    codes = q.encode(state, value, HEADS)
    assert np.unique(codes.codes).tolist() == [0, 1]
    np.testing.assert_array_equal(codes.decode(), q.apply(state, value, HEADS))


def test_a_map_of_shifted_signs_is_constant_at_first_and_a_step_with_minus_one(maps):
    """G7, and G5 between quantisers."""
    released = ShiftedSigns(keep="h")
    state = released.init(maps, "bhqk")
    np.testing.assert_allclose(state["scale"], [2 / 10] * 3, rtol=1e-5)
    assert levels(released.apply(state, maps, "bhqk"), 1) == [[a] for a in state["scale"].tolist()]
    state = ShiftedSigns(keep="h", zero_start="minus_one").init(maps, "bhqk")
    step = {"scale": 2.0 * state["scale"]}
    np.testing.assert_array_equal(released.apply(state, maps, "bhqk"), Steps(keep="h").apply(step, maps, "bhqk"))


@pytest.mark.parametrize("q", [Signs(scale="learned", keep="h"), Steps(keep="h"), ShiftedSigns(keep="h")], ids=repr)
def test_a_scales_gradient_is_divided_by_the_root_of_all_values(q, x):
    """Of the whole tensor, whatever a scale's own part of it: all values at hand lie above every window."""
    state = {"scale": jnp.full(3, 0.5), **({"offset": jnp.zeros(3)} if type(q) is ShiftedSigns else {})}
    got = jax.grad(lambda s: q.apply(s, jnp.full(SHAPE, 9.0), HEADS).sum())(state)
    each = math.prod(SHAPE) / 3
    np.testing.assert_allclose(got["scale"], [each / math.sqrt(math.prod(SHAPE))] * 3, rtol=1e-5)
    if "offset" in state:
        np.testing.assert_allclose(got["offset"], [-0.5 * each / math.sqrt(math.prod(SHAPE))] * 3, rtol=1e-5)


def test_projection_keeps_scales_positive_and_leaves_the_rest():
    state = {"scale": jnp.asarray([-1.0, 0.0, 2e-6, 0.5]), "offset": jnp.asarray([-1.0, 0.0, 2e-6, 0.5])}
    for q in (Signs(scale="learned", keep="h"), Steps(keep="h"), ShiftedSigns(keep="h")):
        got = q.projected(state)
        np.testing.assert_array_equal(got["scale"], np.float32([1e-5, 1e-5, 1e-5, 0.5]))
        assert got["offset"] is state["offset"]
    assert Signs().projected({}) == {}


def test_a_packed_weight_is_planes_and_a_scale_an_output_channel(w):
    q = Signs(scale="mean", keep="o")
    leaf = Packed.of(q.encode({}, w, WEIGHT), q.bits)
    assert leaf.nbytes == 6 * 2 + 6 * 4  # 13 bits are two bytes
    assert leaf.zero is None
    assert [a.dtype.name for a in jax.tree.leaves(leaf)] == ["uint8", "float32"]
    np.testing.assert_array_equal(leaf.unpack(), q.apply({}, w, WEIGHT))


@pytest.mark.parametrize(("q", "says"), [
    (Signs(bits=2), "bits must be 1, got 2: Signs has no other width"),
    (Steps(bits=8), "bits must be 1, got 8"),
    (dict(scale="men"), "scale: got 'men'.*mean"),
    (dict(gradient="lsc"), "gradient: got 'lsc'.*lsq"),
    (Signs(keep="h"), "keep: got 'h', but with scale 'one' nothing has a scale of its own"),
    (Steps(scale="one", keep="h"), "keep: got 'h', but with scale 'one'"),
    (Signs(scale="learned", keep="b"), "keep: got 'b', but a learned scale is that of all images"),
    (Signs(scale="mean", keep="b"), "a mean is each image's own"),
    (Signs(scale="mean", keep="o"), "keep: no axis 'o' in an operand with letters 'bhqe'"),
    (Signs(centred=True), "centred: only scale 'mean' has it, not 'one'"),
    (Signs(scale="mean", smooth=False), "smooth: only scale 'one' has it, not 'mean'"),
    (Signs(scale="mean", size=2.0), "size: only scale 'one' has it, not 'mean'"),
    (Signs(size=2.0), "size: got 2.0, must be positive, and 1 where the gradient is smooth"),
    (Signs(smooth=False, size=-1.0), "size: got -1.0, must be positive"),
    (Signs(gradient="true"), "gradient: only scale 'learned' has it, not 'one'"),
    (Steps(threshold="zero"), "threshold: 'zero' needs scale 'one', not 'learned'"),
], ids=str)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(q, says):
    if isinstance(q, dict):  # tests check types, and these are not all of theirs
        fields, q = q, Signs()
        for name, value in fields.items():
            object.__setattr__(q, name, value)
    with pytest.raises(ValueError, match=says) as caught:
        q.check(HEADS, SHAPE)
    assert "\n" not in str(caught.value)


def test_a_weight_has_no_zero_point():
    with pytest.raises(ValueError, match="zero point: a weight has none"):
        ShiftedSigns().check(WEIGHT, (13, 6))


@pytest.mark.parametrize(("q", "letters", "shape", "contracted", "want"), [
    (Signs(), "bnd", (1, 8, 12), "d", (0, 0)),
    (Signs(scale="mean", keep="o"), "do", (12, 5), "d", (0, 0)),
    (Signs(scale="mean"), "bnd", (1, 8, 12), "d", (16 * 96, 0)),  # at run time
    (Signs(scale="learned", keep="h"), "bhqe", (1, 3, 8, 4), "e", (0, 0)),
    (Signs(scale="learned", keep="d"), "bnd", (1, 8, 12), "d", (0, 16 * 11 * 480)),
    (Signs(scale="learned", keep="d"), "do", (12, 5), "d", (0, 16 * 11 * 480)),
    (Steps(keep="h"), "bhqk", (1, 3, 8, 8), "k", (0, 0)),
    (Steps(keep="k"), "bhqk", (1, 3, 8, 8), "k", (0, 16 * 7 * 480)),
    (ShiftedSigns(keep="h"), "bhqk", (1, 3, 8, 8), "k", (0, 0)),
], ids=str)  # fmt: skip
def test_overheads_are_means_of_the_moment_and_partial_sums(q, letters, shape, contracted, want):
    got = q.overhead(letters, shape, contracted, 480, 16)
    assert (got.find, got.choose, got.add) == (want[0], 0, want[1])


def test_apart_are_the_axes_of_learned_scales():
    assert [Signs(scale=s, keep="h").apart for s in ("mean", "learned")] == ["", "h"]
    assert [q(keep="h").apart for q in (Steps, ShiftedSigns)] == ["h", "h"]


def test_quantisers_without_a_state_are_trained_and_restored_beside_others(tmp_path, x):
    """An empty state through compiled calibration, an update of what is learned, and a checkpoint."""
    plan = {"fc.x": Signs(), "pv.p": Steps(keep="h"), "pv.v": ShiftedSigns(keep="h")}
    tree = {"params": {"kernel": jnp.ones((2, 3))}, "q": {a: dict(fresh(q, x, HEADS)) for a, q in plan.items()}}
    assert tree["q"]["fc.x"] == {}
    rule = Schedule(2, 0.1, warmup=0.0, clip=None).optimizer()
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer array
        updates, _ = jax.jit(rule.update)(jax.tree.map(jnp.ones_like, tree), rule.init(tree), tree)
        stepped = optax.apply_updates(tree, updates)
    assert jax.tree.structure(stepped) == jax.tree.structure(tree)
    for address, names in (("pv.p", ["scale"]), ("pv.v", ["scale", "offset"])):
        for name in names:
            assert (stepped["q"][address][name] < tree["q"][address][name]).all()
    keeper = Keeper(tmp_path / "run", {"plan": {a: repr(q) for a, q in plan.items()}})
    keeper.save(1, stepped)
    keeper.wait()
    back = keeper.restored(jax.tree.map(jnp.zeros_like, tree))
    keeper.close()
    assert jax.tree.structure(back) == jax.tree.structure(stepped)
    jax.tree.map(np.testing.assert_array_equal, back, stepped)


# Gradients through one binary attention, spec 2.4.
IMAGES, WIDTH, TOKENS, DEPTH = 4, 3, 198, 64
MEAN = 2 * math.sqrt(2 / math.pi)  # 2 mean|x| of N(0, 1)


def softmax(scores):
    return jax.nn.softmax(scores, axis=-1)


def a_sign(scores):
    return Signs(smooth=False).apply({}, softmax(scores), "bhqk")


def a_half(scores):
    return Steps(scale="one").apply({}, softmax(scores), "bhqk")


def boolean(scores):
    return Steps(scale="one", threshold="zero").apply({}, scores, "bhqk")


def above_zero(scores):
    """As the table was measured, with a sign of 0 that is no 1: scores are multiples of 1/4."""
    return boolean(scores - 1e-4)


def elastic(scores):
    return Steps(keep="h").apply({"scale": jnp.full(WIDTH, 4 / TOKENS)}, softmax(scores), "bhqk")


@pytest.fixture(scope="module")
def flow():
    """``flow(on_map, alpha)``: what of a map and of gradients is left, relative to float attention."""
    rng = np.random.default_rng(0)
    *qkv, upstream = (jnp.asarray(rng.normal(size=(IMAGES, WIDTH, TOKENS, DEPTH)), jnp.float32) for _ in range(4))

    def attention(on_map, alpha, q, k, v):
        if alpha:
            signs, state = Signs(scale="learned", keep="h"), {"scale": jnp.full(WIDTH, alpha)}
            q, k, v = (signs.apply(state, a, HEADS) for a in (q, k, v))
        p = on_map(jnp.einsum("bhqe,bhke->bhqk", q, k) * DEPTH**-0.5)
        return jnp.einsum("bhqk,bhke->bhqe", p, v), p

    def measured(on_map, alpha):
        (_, p), back = jax.vjp(lambda *a: attention(on_map, alpha, *a), *qkv)
        dq, _, dv = back((upstream, jnp.zeros_like(p)))
        p, dq = np.asarray(p, np.float64), np.asarray(dq)
        return {
            "active": (p > 0).mean(),
            "empty": (p == 0).all(axis=-1).mean(),
            "spread": p.std(axis=-1).mean() / p.mean() if p.any() else 0.0,
            "dq": np.linalg.norm(dq),
            "dv": np.linalg.norm(dv),
            "cut": (dq == 0).mean(),
        }

    plain = measured(softmax, None)

    def relative(on_map, alpha):
        got = plain if alpha is None else measured(on_map, alpha)
        return {name: value / plain[name] if name in ("dq", "dv") else value for name, value in got.items()}

    return relative


TABLE = [  # map, alpha of q, k, v; active, empty rows, coefficient of variation of rows, |dq|, |dv|, share of dq == 0
    (softmax, None, 1.0, 0.0, 1.26, 1.0, 1.0, 0.0),
    (a_sign, 1.0, 1.0, 0.0, 0.0, 0.80, 103, 0.317),
    (a_half, 1.0, 0.0, 1.0, 0.0, 0.80, 0.0, 0.317),
    (above_zero, 1.0, 0.451, 0.0, 1.10, 82, 68, 0.317),
    (elastic, 1.0, 0.119, 0.0, 2.71, 0.57, 0.69, 0.317),
    (elastic, MEAN, 0.078, 0.0, 3.37, 1.00, 0.64, 0.111),
    (boolean, 1.0, 0.550, 0.0, 0.90, 88, 75, 0.317),  # ours: a score of 0, one in ten, counts as 1
]


@pytest.mark.parametrize(("on_map", "alpha", "active", "empty", "spread", "dq", "dv", "cut"), TABLE)
def test_gradients_vanish_where_the_table_says(flow, on_map, alpha, active, empty, spread, dq, dv, cut):
    """G6: within 5 % of spec 2.4."""
    want = dict(active=active, empty=empty, spread=spread, dq=dq, dv=dv, cut=cut)
    got = flow(on_map, alpha)
    assert got == pytest.approx(want, rel=0.05, abs=1e-9), got
    if on_map is elastic:  # G7, and alive forward and backward
        assert 0.03 < got["active"] < 0.3
        assert 0.5 < got["dv"] < 0.9


def test_the_released_start_makes_a_map_of_198_tokens_constant():
    """G7, and the numbers of spec 2.3."""
    rng = np.random.default_rng(0)
    p = softmax(jnp.asarray(rng.normal(size=(2, WIDTH, TOKENS, TOKENS)), jnp.float32))
    q = ShiftedSigns(keep="h")
    state = q.init(p, "bhqk")
    np.testing.assert_allclose(state["scale"], [0.0101] * WIDTH, rtol=1e-3)
    np.testing.assert_allclose(state["offset"], [0.00101 + 0.1 * float(p.min())] * WIDTH, rtol=1e-3)
    assert np.unique(q.apply(state, p, "bhqk")).size == 1
    step = Steps(keep="h")
    active = np.asarray(step.apply(step.init(p, "bhqk"), p, "bhqk") > 0).mean()
    assert 0.03 < active < 0.3


def test_what_a_form_forgets_is_only_how_it_starts():
    assert ShiftedSigns(keep="h", zero_start="minus_one").form == ShiftedSigns(keep="h")
    for q in (Signs(scale="mean", keep="o", centred=True), Signs(smooth=False), Steps(keep="h")):
        assert q.form == q
        assert dataclasses.replace(q, bits=4).form == q
