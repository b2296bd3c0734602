"""Learned scales: how they start and what their gradients are multiplied by, against NumPy; heads; offsets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.calibrate import fresh
from jvq.core.samples import some
from jvq.quantizers import Learned, learned
from jvq.quantizers.learned import GRADIENTS, STARTS

LETTERS, SHAPE = "bnd", (3, 8, 12)
KINDS = [{}, dict(keep="d"), dict(signed=False, offset=True), dict(keep="h", heads=3)]


def ends(bits, signed):
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


def codes_of(x, scale, offset, bits, signed):
    return np.clip(np.rint((np.asarray(x, np.float64) - offset) / scale), *ends(bits, signed))


def value_of(x, scale, offset, bits, signed):
    return scale * codes_of(x, scale, offset, bits, signed) + offset


def error_of(x, scale, offset, bits, signed):
    return np.square(np.asarray(x, np.float64) - value_of(x, scale, offset, bits, signed)).sum()


def by_turns(x, bits, signed, offset):
    """Least squares by turns in float64 (spec 1.4)."""
    x, (low, high) = np.asarray(x, np.float64), ends(bits, signed)
    scale = (x.max() - x.min()) / (high - low) if offset else np.abs(x).max() / high
    shift = x.min() - low * scale if offset else 0.0
    for _ in range(learned.ROUNDS):
        q, before = codes_of(x, scale, shift, bits, signed), scale
        if offset:
            scale, shift = np.polyfit(q.ravel(), x.ravel(), 1)
        else:
            scale = (q * x).sum() / (q * q).sum()
        if abs(scale - before) <= learned.TOLERANCE * before:
            break
    return scale, shift


def began(x, q):
    """Scale and offset of one part by the formulas of spec 1.4, float64."""
    low, high = ends(q.bits, q.signed)
    if q.start == "mse":
        return by_turns(x, q.bits, q.signed, q.offset)
    if q.start == "max" and q.offset:
        scale = (x.max() - x.min()) / (high - low)
        return scale, x.min() - low * scale
    return {
        "mean": 2 * np.abs(x).mean() / np.sqrt(high),
        "released": 2 * np.abs(x).mean() / np.sqrt(2 ** (q.bits - 1) - 1),
        "sigma": max(abs(x.mean() - 3 * x.std()), abs(x.mean() + 3 * x.std())) / 2 ** (q.bits - 1),
        "max": np.abs(x).max() / high,
    }[q.start], 0.0


few = jax.jit(some, static_argnums=(1, 2, 3))


def start(q, x, letters=LETTERS):
    """The state; only least squares by turns is worth compiling as a whole."""
    x = jnp.asarray(x) if isinstance(x, np.ndarray) else x
    return fresh(q, x, letters) if q.start == "mse" else q.init(x, letters)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """[b n d], not centred, channels of different width."""
    rng = np.random.default_rng(0)
    return (rng.normal(0.3, 1, SHAPE) * np.exp(rng.normal(0, 0.5, 12))).astype(np.float32)


def gelu(x):
    return np.asarray(jax.nn.gelu(jnp.asarray(x, jnp.float32), approximate=False))


@pytest.mark.parametrize(("signed", "offset"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("keep", ["", "d"])
@pytest.mark.parametrize("how", STARTS)
def test_scales_start_by_the_formulas(how, keep, signed, offset, x):
    value = x if signed or offset else np.abs(x)
    for bits in (2, 4):
        q = Learned(bits, keep, signed, offset, how)
        state = start(q, value)
        parts = [value] if not keep else list(np.moveaxis(value, 2, 0))
        want = np.array([began(part.astype(np.float64), q) for part in parts])
        shape = (12,) if keep else ()
        assert state["scale"].shape == shape
        np.testing.assert_allclose(np.ravel(state["scale"]), want[:, 0], rtol=1e-4)
        assert set(state) == {"scale", "low", "high"} | ({"offset"} if offset else set())
        if offset:
            assert state["offset"].shape == shape
            np.testing.assert_allclose(np.ravel(state["offset"]), want[:, 1], rtol=1e-4, atol=1e-6)
        assert (float(state["low"]), float(state["high"])) == ends(bits, signed)
        assert all(a.dtype == jnp.float32 for a in state.values())


@pytest.mark.parametrize(("bits", "golden"), [(2, 1.050), (3, 0.603), (4, 0.340)])
def test_least_squares_of_a_normal_weight_and_never_worse_than_lsq(bits, golden):
    """Q8."""
    for seed in range(3):
        w = np.random.default_rng(seed).normal(0, 0.02, (192, 192)).astype(np.float32)
        best, mean = (float(start(Learned(bits, start=s), w, "do")["scale"]) for s in ("mse", "mean"))
        assert best / w.std() == pytest.approx(golden, rel=0.04)
        assert error_of(w, best, 0, bits, True) < error_of(w, mean, 0, bits, True)


@pytest.mark.parametrize(("signed", "offset"), [(True, False), (False, True)])
def test_no_turn_of_least_squares_adds_error(signed, offset, x, monkeypatch):
    """Q8, turn by turn."""
    seen = []

    def loop(going, turn, carry):
        while going(carry):
            seen.append(carry)
            carry = turn(carry)
        return carry

    monkeypatch.setattr(jax.lax, "while_loop", loop)
    state = Learned(3, "", signed, offset).init(jnp.asarray(x), LETTERS)
    turns = [(scale.item(), shift.item()) for scale, shift, *_ in seen]
    turns.append((float(state["scale"]), float(state.get("offset", 0.0))))
    errors = [error_of(x, *turn, 3, signed) for turn in turns]
    assert 4 < len(errors) < learned.ROUNDS
    assert (np.diff(errors) <= 1e-6 * errors[0]).all()
    assert errors[-1] < 0.95 * errors[0]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_an_offset_helps_what_gelu_gives(bits, rng):
    value = gelu(rng.normal(0, 1, SHAPE))
    with_, without, mean = (
        start(Learned(bits, "", False, o, s), value) for o, s in ((True, "mse"), (False, "mse"), (False, "mean"))
    )
    errors = [
        error_of(value, float(s["scale"]), float(s.get("offset", 0)), bits, False) for s in (with_, without, mean)
    ]
    assert errors[0] < min(errors[1:])
    assert float(with_["offset"]) < 0


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_values_are_whole_codes_and_quantising_twice_changes_nothing(kind, bits, x):
    """Q1."""
    q = Learned(bits, **kind)
    state = start(q, x)
    y = q.apply(state, jnp.asarray(x), LETTERS)
    codes = np.asarray(q.codes(state, jnp.asarray(x), LETTERS))
    assert (codes == np.rint(codes)).all()
    assert codes.min() >= ends(bits, q.signed)[0]
    assert codes.max() <= ends(bits, q.signed)[1]
    assert len(np.unique(codes)) > 2 ** (bits - 2)
    np.testing.assert_allclose(q.steps(state, y, LETTERS), codes, atol=1e-5 * max(1, np.abs(codes).max()))
    np.testing.assert_allclose(q.apply(state, y, LETTERS), y, atol=1e-5)
    if not q.keep:
        assert len(np.unique(y)) <= 2**bits


FACTORS = {
    "lsq": lambda x, top: 1 / np.sqrt(x.size * top),
    "l1": lambda x, top: 1 / np.sqrt(top * np.abs(x).sum()),
    "root": lambda x, top: 1 / (np.sqrt(x.size) * top),
    "none": lambda x, top: 1.0,
}


@pytest.mark.parametrize("keep", ["", "d", "h"])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_factors_are_those_of_the_table(gradient, keep, x):
    """Spec 1.3: N and the sum are those of the scale's own part."""
    parts = {"": [x], "d": np.moveaxis(x, 2, 0), "h": np.split(x, 3, axis=2)}[keep]
    for bits, signed in ((2, True), (4, True), (3, False)):
        q = Learned(bits, keep, signed, gradient=gradient, heads=3 if keep == "h" else 0, start="max")
        got = q.factor(start(q, x), jnp.asarray(x), LETTERS)
        want = [FACTORS[gradient](part.astype(np.float64), ends(bits, signed)[1]) for part in parts]
        np.testing.assert_allclose(np.broadcast_to(got, (len(parts),) if keep else ()), np.squeeze(want), rtol=1e-5)


@pytest.mark.parametrize(("bits", "lsq", "l1"), [(2, 5.2e-3, 2.3e-2), (3, 3.0e-3, 1.3e-2), (4, 2.0e-3, 8.8e-3)])
def test_factors_of_a_layer_of_deit(bits, lsq, l1):
    """Spec 1.3 and Q7: 192 x 192, mean magnitude 0.05."""
    w = np.random.default_rng(0).normal(size=(192, 192))
    w = jnp.asarray(w * 0.05 / np.abs(w).mean(), jnp.float32)
    state = {
        "scale": jnp.float32(0.06),
        "low": jnp.float32(-(2 ** (bits - 1))),
        "high": jnp.float32(2 ** (bits - 1) - 1),
    }
    of = {g: float(Learned(bits, gradient=g).factor(state, w, "do")) for g in ("lsq", "l1")}
    assert of["lsq"] == pytest.approx(lsq, rel=0.04)  # the table has two digits
    assert of["l1"] == pytest.approx(l1, rel=0.04)
    assert of["l1"] / of["lsq"] == pytest.approx(0.05**-0.5, rel=1e-5)
    wider = float(Learned(bits, gradient="l1").factor(state, 9.0 * w, "do"))
    assert wider == pytest.approx(of["l1"] / 3, rel=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("keep", ["", "h"])
def test_the_factor_multiplies_the_scales_gradient_and_nothing_else(keep, gradient, x):
    q = Learned(3, keep, False, True, "max", gradient, heads=3 if keep else 0)
    state = start(q, x)
    state = {**state, "scale": 0.7 * state["scale"]}  # some values are clipped
    c = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)

    def grads(quantizer):
        return jax.grad(lambda s, x: (c * quantizer.apply(s, x, LETTERS)).sum(), (0, 1))(state, jnp.asarray(x))

    (got, to_x), (plain, to_x_) = grads(q), grads(dataclasses.replace(q, gradient="none"))
    np.testing.assert_allclose(got["scale"], plain["scale"] * q.factor(state, jnp.asarray(x), LETTERS), rtol=1e-5)
    np.testing.assert_array_equal(got["offset"], plain["offset"])
    np.testing.assert_array_equal(to_x, to_x_)
    assert (np.asarray(got["scale"]) != 0).all()
    assert (np.asarray(got["offset"]) != 0).all()
    assert not np.asarray(got["low"]).any()
    assert not np.asarray(got["high"]).any()


def apart(x, heads):
    """Axis d of [b n d] as [b n h e]."""
    return jnp.asarray(x).reshape(*x.shape[:-1], heads, -1)


@pytest.mark.parametrize("kind", [{}, dict(signed=False, offset=True), dict(gradient="l1")], ids=str)
def test_heads_are_what_a_scale_per_head_of_the_split_operand_is(kind, x):
    side, split = Learned(3, "h", heads=3, start="max", **kind), Learned(3, "h", start="max", **kind)
    state = start(side, x)
    assert state["scale"].shape == (3,)
    for name, value in start(split, apart(x, 3), "bnhe").items():
        np.testing.assert_allclose(state[name], value, rtol=1e-6)
    for call in ("apply", "codes", "steps", "factor"):
        got, want = (
            getattr(side, call)(state, jnp.asarray(x), LETTERS),
            getattr(split, call)(state, apart(x, 3), "bnhe"),
        )
        np.testing.assert_allclose(np.ravel(got), np.ravel(want), rtol=1e-6)
    part, count = side.parts(state, jnp.asarray(x), LETTERS)
    assert count == 3
    np.testing.assert_array_equal(part, np.broadcast_to(np.repeat(np.arange(3), 4), SHAPE))


@pytest.mark.parametrize(("keep", "letters", "shape", "count"), [("", "do", (6, 4), 1), ("o", "do", (6, 4), 4),
    ("sh", "dshe", (6, 3, 2, 2), 6), ("s", "dshe", (6, 3, 2, 2), 3)])  # fmt: skip
def test_parts_number_the_scales(keep, letters, shape, count):
    q = Learned(4, keep, start="max")
    state = q.init(jnp.ones(shape), letters)
    part, parts = q.parts(state, jnp.ones(shape), letters)
    assert parts == count == state["scale"].size
    at = np.array([i for i, a in enumerate(letters) if a in keep], int)
    for i in np.ndindex(shape):
        where = tuple(np.array(i)[at])
        assert int(part[i]) == (np.ravel_multi_index(where, [shape[j] for j in at]) if keep else 0)


def test_permuted_heads_have_permuted_states_and_gradients(x):
    """Q9."""
    q, order = Learned(3, "h", gradient="l1", start="mean"), np.array([2, 0, 1])
    c = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 3, 4)), jnp.float32)

    def slope(c, x):
        state = start(q, x, "bnhe")
        return state["scale"], jax.grad(lambda s: (c * q.apply(s, x, "bnhe")).sum())(state)["scale"]

    for got, want in zip(slope(c[:, :, order], apart(x, 3)[:, :, order]), slope(c, apart(x, 3)), strict=True):
        np.testing.assert_allclose(got, np.asarray(want)[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [0, 3])
def test_equal_scales_a_head_do_what_one_does(heads, x):
    """Q9."""
    q, value, letters = Learned(3, "h", heads=heads), jnp.asarray(x), LETTERS
    if not heads:
        value, letters = apart(x, 3), "bnhe"
    one = start(Learned(3, start="mean"), value, letters)
    state = {**one, "scale": jnp.full(3, one["scale"])}
    np.testing.assert_allclose(q.apply(state, value, letters), Learned(3).apply(one, value, letters), atol=1e-6)


CODED = [
    (dict(keep="h", heads=3), LETTERS),
    (dict(keep="h", heads=3, signed=False, offset=True), LETTERS),
    (dict(keep="e", heads=3, signed=False, offset=True), LETTERS),
    (dict(keep="hn", heads=3, signed=False, offset=True), LETTERS),
    (dict(heads=3, offset=True), LETTERS),
    (dict(keep="d", signed=False, offset=True), LETTERS),
    (dict(keep="h", offset=True), "bnhe"),
]


@pytest.mark.parametrize(("kind", "letters"), CODED, ids=str)
def test_codes_decode_to_exactly_what_apply_gives(kind, letters, x):
    value = jnp.asarray(x) if letters == LETTERS else apart(x, 3)
    for bits in (1, 4, 16):
        q = Learned(bits, start="max", **kind)
        q.check(letters, value.shape)
        state = start(q, value, letters)
        codes = q.encode(state, value, letters)
        assert codes.codes.dtype == codes.zero.dtype == jnp.int32
        assert (0 <= codes.codes).all()
        assert (codes.codes <= 2**bits - 1).all()
        assert (codes.offset is not None) == q.offset
        np.testing.assert_array_equal(codes.codes - codes.zero, q.codes(state, value, letters).astype(jnp.int32))
        np.testing.assert_array_equal(codes.decode(), q.apply(state, value, letters))


@pytest.mark.parametrize(("kind", "letters", "says"), [
    (dict(bits=0), LETTERS, "bits must be a whole number from 1 to 16, got 0"),
    (dict(start="mze"), LETTERS, "start: got 'mze'.*mse"),
    (dict(gradient="l2"), LETTERS, "gradient: got 'l2'.*l1"),
    (dict(heads=3), "bnhe", "heads: no axis 'd' in an operand with letters 'bnhe'"),
    (dict(heads=5), LETTERS, "heads: got 5, must divide the 12 of axis 'd'"),
    (dict(heads=-3), LETTERS, "heads: got -3"),
    (dict(keep="h"), LETTERS, "keep: no axis 'h' in an operand with letters 'bnd'"),
    (dict(keep="d", heads=3), LETTERS, "keep: no axis 'd' in an operand with letters 'bnhe'"),
    (dict(keep="dd"), LETTERS, "keep: a letter stands twice in 'dd'"),
    (dict(keep="b"), LETTERS, "keep: 'b' would be a scale per image of the batch"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(kind, letters, says):
    q = Learned()
    for name, value in kind.items():
        object.__setattr__(q, name, value)  # tests check types, and these are not all of theirs
    with pytest.raises(ValueError, match=says) as caught:
        q.check(letters, SHAPE if letters == LETTERS else (3, 8, 3, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "letters", "shape", "contracted", "parts"), [
    ({}, LETTERS, (1, 8, 12), "d", 1),
    (dict(offset=True), LETTERS, (1, 8, 12), "d", 1),  # one more bias
    (dict(keep="h", heads=3), LETTERS, (1, 8, 12), "d", 3),
    (dict(keep="he", heads=3), LETTERS, (1, 8, 12), "d", 12),
    (dict(keep="n"), LETTERS, (1, 8, 12), "d", 1),
    (dict(keep="d"), LETTERS, (1, 8, 12), "d", 12),
    (dict(keep="h"), "bnhe", (1, 8, 3, 4), "e", 1),
    (dict(keep="h", heads=3), "do", (12, 5), "d", 1),  # those sums are the activation's already
    (dict(keep="o"), "do", (12, 5), "d", 1),
    (dict(keep="sh"), "dshe", (12, 3, 3, 4), "d", 1),
])  # fmt: skip
def test_overheads_are_the_partial_sums_of_scales_along_what_is_summed(kind, letters, shape, contracted, parts):
    got = Learned(**kind).overhead(letters, shape, contracted, 480, 16)
    assert (got.find, got.choose, got.add) == (0, 0, 16 * (parts - 1) * 480)


@pytest.mark.parametrize("kind", [{}, dict(keep="h", heads=3), dict(signed=False, offset=True)], ids=str)
@pytest.mark.parametrize("how", STARTS)
def test_samples_of_which_nothing_is_left_out_start_alike(how, kind, x):
    q = Learned(4, start=how, **kind)
    want = start(q, x)
    got = start(q, some(jnp.asarray(x), LETTERS, q.apart, 96))
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize("kind", [dict(keep="h", heads=4), dict(signed=False, offset=True)], ids=str)
def test_samples_of_which_much_is_left_out_start_nearly_alike(kind, rng):
    """The extremes are exact; the mean of magnitudes, and the error on all values, are nearly those of all."""
    x = gelu(rng.normal(0.5, 1, (4, 64, 32)))
    for how, close in (("max", 1e-6), ("mean", 0.1)):
        q = Learned(4, start=how, **kind)
        samples = few(jnp.asarray(x), LETTERS, q.apart, 512)
        assert samples.values.size < x.size / 3
        np.testing.assert_allclose(start(q, samples)["scale"], start(q, x)["scale"], rtol=close)
    q = Learned(4, **kind)
    lost = [jnp.square(q.apply(s, jnp.asarray(x), LETTERS) - x).mean() for s in (start(q, samples), start(q, x))]
    assert lost[0] < 1.2 * lost[1]


def test_apart_are_the_axes_that_calibration_tells_apart():
    assert [Learned(keep=k).apart for k in ("", "d", "h")] == ["", "d", "h"]
    assert [set(Learned(keep=k, heads=3).apart) for k in ("", "h", "e", "hn")] == [{"d"}, {"d"}, {"d"}, {"d", "n"}]


def test_projection_keeps_scales_at_a_ten_thousandth():
    state = {"scale": jnp.asarray([-1.0, 0.0, 5e-5, 1e-4, 2e-4]), "low": jnp.float32(-2), "high": jnp.float32(1)}
    state["offset"] = -state["scale"]
    got = Learned(2, "d", offset=True).projected(state)
    np.testing.assert_array_equal(got["scale"], np.float32([1e-4, 1e-4, 1e-4, 1e-4, 2e-4]))
    for name in ("low", "high", "offset"):
        np.testing.assert_array_equal(got[name], state[name])


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize("kind", [{}, dict(signed=False, offset=True)], ids=str)
def test_constants_give_finite_states_and_values(kind, how):
    for value in (0.0, 2.0, -2.0):
        x, q = np.full(SHAPE, value, np.float32), Learned(3, start=how, **kind)
        state = start(q, x)
        assert all(np.isfinite(a).all() for a in state.values())
        assert float(state["scale"]) > 0
        assert np.isfinite(q.apply(state, jnp.asarray(x), LETTERS)).all()
        if how == "mse":
            np.testing.assert_allclose(q.apply(state, jnp.asarray(x), LETTERS), x, rtol=1e-5)
