"""Integer inference against fake quantisation: single products in float64, and whole models of every method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core import axes
from jvq.core.dot import quantized
from jvq.core.freeze import freeze
from jvq.core.recipe import Operand
from jvq.integer import Rows, integer_dot, prepared
from jvq.quantizers import Dynamic, Grouped, Learned, ShiftedSigns, Signs, StaticGrouped, Steps, Ternary, Uniform

LINEAR, SCORES, VALUES, WINDOWS = "bnd,do->bno", "bhqe,bhke->bhqk", "bhqk,bhke->bhqe", "bmnd,dshe->bmnshe"
SIZES = {"b": 3, "m": 2, "n": 5, "q": 5, "k": 5, "d": 16, "o": 7, "s": 3, "h": 2, "e": 8}

W4 = Uniform(4, "o")
QUICK = {"mstep": "mean", "restarts": 1, "iterations": 2}  # how groups are found is not the matter here
PRODUCTS = {  # equation, quantiser of the first and of the second operand, how it is computed
    "per tensor, 8 bits": (LINEAR, Uniform(8), Uniform(8, "o"), "int8"),
    "zero points of 8 bits": (LINEAR, Uniform(8, zero_point="free"), Uniform(8, "o", range="mse"), "int8"),
    "symmetric": (LINEAR, Uniform(8, symmetric=True), Uniform(8, "o", symmetric=True), "int8"),
    "an image's range": (LINEAR, Dynamic(8, "b"), W4, "int8"),
    "a token's range": (LINEAR, Dynamic(6, "bn"), W4, "int8"),
    "windows, fused kernel": (WINDOWS, Uniform(5), Uniform(3, "she"), "int8"),
    "learned": (LINEAR, Learned(4), Learned(4, "o"), "int8"),
    "learned, 8 bits": (LINEAR, Learned(8), Learned(8, "o"), "int8"),
    "learned offset": (LINEAR, Learned(3, signed=False, offset=True), Learned(3, "o"), "int8"),
    "heads": (LINEAR, Learned(4, "h", heads=2), Learned(4, "o"), "int8"),
    "heads of both": (LINEAR, Learned(4, "h", heads=2), Learned(4, "ho", heads=4), "int8"),
    "heads of the weight": (LINEAR, Learned(8), Learned(8, "h", heads=4), "int8"),
    "heads with an offset": (LINEAR, Learned(4, "h", heads=4, signed=False, offset=True), Uniform(8, "o"), "int8"),
    "groups of channels": (LINEAR, Grouped(4, 4, **QUICK), W4, "groups"),
    "groups of 8 bits": (LINEAR, Grouped(8, 4, **QUICK), Uniform(8, "o"), "groups"),
    "groups, windows": (WINDOWS, Grouped(4, 4, **QUICK), Uniform(4, "she"), "groups"),
    "groups of the windows' channels": (WINDOWS, Grouped(4, 4, along="md", **QUICK), Uniform(4, "she"), "groups"),
    "ladder": (LINEAR, Grouped(4, 4, ladder=True), W4, "ladder"),
    "ladder with room": (LINEAR, Grouped(4, 3, ladder=True, capacity=6), W4, "ladder"),
    "static groups": (LINEAR, StaticGrouped(4, 4), W4, "groups"),
    "static groups, windows": (
        WINDOWS,
        StaticGrouped(6, 4, grouping="kmeans", restarts=1, iterations=2),
        Uniform(8, "she"),
        "groups",
    ),
    "scores, per head": (SCORES, Uniform(8, "h"), Uniform(8, "h"), "int8"),
    "scores, learned": (SCORES, Learned(4, "h"), Learned(4, "h"), "int8"),
    "values": (VALUES, Uniform(8, "h"), Uniform(8, "h"), "int8"),
    "values, rows in groups": (VALUES, Grouped(4, 4, "hq", nonnegative=True, **QUICK), Uniform(4, "h"), "int8"),
    "values, both with offsets": (
        VALUES,
        Learned(4, "h", signed=False, offset=True),
        Learned(4, "h", offset=True),
        "int8",
    ),
    "signs": (LINEAR, Signs(), Signs(scale="mean", keep="o"), "binary"),
    "learned signs": (LINEAR, Signs(scale="learned"), Signs(scale="mean", keep="o", centred=True), "binary"),
    "sign scores": (SCORES, Signs(scale="learned", keep="h"), Signs(scale="learned", keep="h"), "binary"),
    "steps": (VALUES, Steps(keep="h"), Signs(scale="learned", keep="h"), "binary"),
    "shifted signs of both": (
        SCORES,
        ShiftedSigns(keep="h", zero_start="minus_one"),
        ShiftedSigns(keep="h", zero_start="minus_one"),
        "binary",
    ),
    "shifted keys": (
        SCORES,
        Signs(scale="learned", keep="h"),
        ShiftedSigns(keep="h", zero_start="minus_one"),
        "binary",
    ),
    "shifted signs": (VALUES, ShiftedSigns(keep="h"), Signs(scale="learned", keep="h"), "binary"),
    "signs of 8-bit inputs": (LINEAR, Uniform(8), Signs(scale="mean", keep="o"), "int8"),
    "ternary": (LINEAR, Uniform(4), Ternary(keep="o"), "int8"),
    "steps of 8-bit values": (VALUES, Steps(keep="h"), Uniform(8, "h"), "int8"),
    "a range a channel": (LINEAR, Dynamic(8, "bd"), W4, "float"),
    "a scale a channel": (LINEAR, Signs(scale="learned", keep="d"), Signs(scale="mean", keep="o"), "float"),
    "16 bits": (LINEAR, Uniform(16), W4, "float"),
    "a weight's channel": (LINEAR, Uniform(8), Uniform(8, "d"), "float"),
}


WEIGHTED = [n for n, (e, *_) in PRODUCTS.items() if "b" not in axes.split(e)[0][1]]
CASES = [(n, "fast") for n in PRODUCTS] + [(n, "small") for n in WEIGHTED if PRODUCTS[n][2].bits <= 4]
CASES += [(n, "small") for n, (*_, way) in PRODUCTS.items() if way == "binary" and n not in WEIGHTED]


def operand(rng, letters):
    """Values of unequal channels; attention is positive."""
    shape = tuple(SIZES[a] for a in letters)
    x = rng.normal(0.1, 1, shape) * np.logspace(-1, 0.5, shape[-1])
    return jnp.asarray(np.exp(x) / np.exp(x).sum(-1, keepdims=True) if letters == "bhqk" else x, jnp.float32)


@pytest.mark.parametrize(("name", "weights"), CASES)
def test_a_product_is_that_of_the_decoded_codes(rng, name, weights):
    equation, qa, qb, expected = PRODUCTS[name]
    (left, right), out = axes.split(equation)
    weight = "b" not in right
    a, b = operand(rng, left), operand(rng, right)
    sa, sb = jax.jit(qa.init, static_argnums=1)(a, left), jax.jit(qb.init, static_argnums=1)(b, right)
    plan, state = {"here.a": qa}, {"here.a": sa}
    product = tuple(SIZES[i] for i in out)
    if weight:
        there = Operand("here.b", right, b.shape, out, product, ("b",))
        params, _rest, state = freeze(
            {"b": b},
            {**plan, "here.b": qb},
            {**state, "here.b": sb},
            {"here.a": Operand("here.a", left, a.shape, out, product, None), "here.b": there},
        )
        second = prepared(params, {"here.b": there}, weights)["b"]
        assert isinstance(second, Rows) == (name != "a weight's channel")
    else:
        plan["here.b"], state["here.b"], second = qb, sb, b
    tape: dict[str, str] = {}
    dot = functools.partial(integer_dot, count=weights == "small")
    got = jax.jit(lambda a, b: dot(plan, state, tape=tape)("here", equation, a=a, b=b))(a, second)
    wide = [
        np.asarray(q.encode(s, x, axis).decode(), np.float64)
        for q, s, x, axis in ((qa, sa, a, left), (qb, sb, b, right))
    ]
    want = np.einsum(equation, *wide)
    assert got.shape == want.shape
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-6 * np.abs(want).max())
    if weights == "fast":
        expected = "int8" if expected == "binary" else expected
    elif expected == "int8" and qb.bits > 1 and name != "heads":  # whose rows are divided further than they are packed
        expected = "packed"
    assert tape["here"].partition(":")[0] == expected


@pytest.mark.parametrize("count", [False, True])
def test_sums_of_shifted_signs_keep_their_exact_zeros(rng, count):
    """What comes next may be signs again: 1e-8 of either sign in the place of 0 would be decided otherwise."""
    left, right = ShiftedSigns(keep="h", zero_start="minus_one"), Signs(scale="learned", keep="h")
    p = jnp.asarray(rng.dirichlet(np.ones(17), size=(4, 2, 6)), jnp.float32)
    v = jnp.asarray(rng.normal(size=(4, 2, 17, 8)), jnp.float32)
    plan = {"here.p": left, "here.v": right}
    state = {"here.p": left.init(p, "bhqk"), "here.v": right.init(v, "bhke")}
    fake = jax.jit(lambda p, v: quantized(plan, state)("here", VALUES, p=p, v=v))(p, v)
    got = jax.jit(lambda p, v: integer_dot(plan, state, count=count)("here", VALUES, p=p, v=v))(p, v)
    assert (fake == 0).sum() > 10
    np.testing.assert_array_equal(got == 0, fake == 0)
    np.testing.assert_allclose(got, fake, rtol=1e-6)


@pytest.mark.parametrize(("name", "weights"), [case for case in CASES if case[0] in WEIGHTED])
def test_rows_stand_for_their_weight(rng, name, weights):
    equation, _, q, _ = PRODUCTS[name]
    (_, letters), out = axes.split(equation)
    w = operand(rng, letters)
    there = Operand("here.w", letters, w.shape, out, (), ("w",))
    params, _, _ = freeze({"w": w}, {"here.w": q}, {"here.w": q.init(w, letters)}, {"here.w": there})
    rows = prepared(params, {"here.w": there}, weights)["w"]
    assert rows.shape == w.shape
    np.testing.assert_array_equal(rows.unpack(), params["w"].unpack())
