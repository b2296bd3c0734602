"""The seam: each dot does what it says, and dots nest in any order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core import axes
from jvq.core.dot import Dot, dropping, float_dot, lowered, onto, outside, packed_dot, perturbed, quantized, recording
from jvq.core.packed import Packed
from jvq.core.quantizer import Codes
from jvq.quantizers import Learned, ShiftedSigns, Signs, Steps, Uniform

X = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
W1 = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
W2 = np.random.default_rng(2).normal(size=(6, 2)).astype(np.float32)
JX, J1, J2 = (jnp.asarray(a) for a in (X, W1, W2))
EQUATION = "bnd,do->bno"


def everything(address: str) -> bool:
    return True


def model(x, w1, w2, dot):
    hidden = jnp.tanh(dot("one", EQUATION, x=x, w=w1))
    return dot("two", EQUATION, x=hidden, w=w2)


def loss(x, w1, w2, dot):
    return jnp.square(model(x, w1, w2, dot)).sum()


def minmax(x: np.ndarray, bits: int) -> np.ndarray:
    """Affine fake quantisation of a tensor between its extremes (which enclose 0), in float32."""
    levels = np.float32(2**bits - 1)
    scale = (x.max() - x.min()) / levels
    zero = np.clip(np.round(-x.min() / scale), 0, levels)
    return scale * (np.clip(np.round(x / scale) + zero, 0, levels) - zero)


@pytest.mark.parametrize("equation", ["bnd,do->bno", "bqhe,bkhe->bhqk", "bnd,dshe->sbnhe"])
def test_float_dot_is_the_product_in_the_order_written(equation, rng):
    sizes = dict(zip("bndoqkhes", (2, 3, 4, 5, 3, 6, 2, 4, 3), strict=True))
    shapes = [[sizes[a] for a in letters] for letters in equation.split("->")[0].split(",")]
    a, b = (rng.normal(size=s).astype(np.float32) for s in shapes)
    want = np.einsum(equation, a.astype(np.float64), b.astype(np.float64))
    # names in the reverse of the alphabet: the order of writing counts
    np.testing.assert_allclose(float_dot("s", equation, z=jnp.asarray(a), a=jnp.asarray(b)), want, atol=1e-5)


def test_every_dot_is_a_dot():
    for dot in (float_dot, packed_dot(), recording({}, everything), perturbed({}), quantized({}, {})):
        assert isinstance(dot, Dot)


def test_recording_keeps_the_chosen_operands_and_products():
    @jax.jit
    def run(x, w1, w2):
        tape = {}
        model(x, w1, w2, recording(tape, lambda a: a.startswith("one.") and a != "one.w"))
        return tape

    tape = run(X, W1, W2)
    assert list(tape) == ["one.x", "one.y"]
    np.testing.assert_array_equal(tape["one.x"], X)
    np.testing.assert_allclose(tape["one.y"], np.einsum("bnd,do->bno", X, W1), atol=1e-5)


def test_an_address_recorded_twice_is_an_error():
    tape = {}
    dot = recording(tape, everything)
    dot("one", EQUATION, x=JX, w=J1)
    with pytest.raises(ValueError, match=r"one\.x is recorded twice"):
        dot("one", EQUATION, x=JX, w=J1)


def test_recording_changes_no_product():
    plain = jax.jit(lambda *a: model(*a, float_dot))(X, W1, W2)
    np.testing.assert_array_equal(jax.jit(lambda *a: model(*a, recording({}, everything)))(X, W1, W2), plain)


def test_the_gradient_of_a_perturbation_is_the_gradient_of_the_product():
    eps = {"one.y": jnp.zeros((3, 4, 6)), "two.y": jnp.zeros((3, 4, 2))}
    got = jax.jit(jax.grad(lambda e: loss(JX, J1, J2, perturbed(e))))(eps)
    x, w1, w2 = (a.astype(np.float64) for a in (X, W1, W2))
    y1 = x @ w1
    y2 = np.tanh(y1) @ w2
    np.testing.assert_allclose(got["two.y"], 2 * y2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["one.y"], (2 * y2 @ w2.T) * (1 - np.tanh(y1) ** 2), rtol=1e-4, atol=1e-4)
    step = 1e-5  # and a central difference in float64, at one value
    for at in [(0, 0, 0), (2, 3, 5)]:
        up, down = y1.copy(), y1.copy()
        up[at] += step
        down[at] -= step
        slope = (((np.tanh(up) @ w2) ** 2).sum() - ((np.tanh(down) @ w2) ** 2).sum()) / (2 * step)
        np.testing.assert_allclose(got["one.y"][at], slope, rtol=1e-3)


def test_a_perturbation_is_added_to_its_product_only():
    e = jnp.full((3, 4, 2), 0.5)
    moved = jax.jit(lambda e: model(JX, J1, J2, perturbed({"two.y": e})))(e)
    np.testing.assert_allclose(moved, np.tanh(X @ W1) @ W2 + 0.5, atol=1e-5)


def test_quantized_passes_the_planned_operands_through_their_quantiser():
    plan = {"one.x": Uniform(bits=3), "one.w": Uniform(bits=4)}
    qstate = {"one.x": plan["one.x"].init(JX, "bnd"), "one.w": plan["one.w"].init(J1, "do")}
    got = jax.jit(lambda q, x: model(x, J1, J2, quantized(plan, q)))(qstate, X)
    np.testing.assert_allclose(got, np.tanh(minmax(X, 3) @ minmax(W1, 4)) @ W2, atol=1e-5)


def test_quantized_lets_gradients_through():
    plan = {"one.x": Uniform(bits=8)}
    qstate = {"one.x": plan["one.x"].init(JX, "bnd")}
    grad = jax.jit(jax.grad(loss), static_argnums=3)
    exact = grad(JX, J1, J2, float_dot)
    through = jax.jit(jax.grad(lambda x: loss(x, J1, J2, quantized(plan, qstate))))(JX)
    np.testing.assert_allclose(through, exact, atol=0.05 * np.abs(exact).max())
    assert np.abs(through).min() > 0


CODES = np.random.default_rng(3).integers(0, 16, (5, 6)).astype(np.int32)
SCALE = np.linspace(0.1, 0.2, 6, dtype=np.float32)[None]
ZERO = np.full((1, 6), 7, np.int32)
EPS = np.random.default_rng(4).normal(size=(3, 4, 6)).astype(np.float32)


ORDERS = list(itertools.permutations(["recording", "perturbed", "quantized", "packed"]))


@pytest.fixture(scope="module")
def nested():
    """By order, outermost first: the product and what was recorded. One compilation for all."""
    leaf = Packed.of(Codes(jnp.asarray(CODES), jnp.asarray(SCALE), jnp.asarray(ZERO)), 4)
    plan = {"one.x": Uniform(bits=3)}
    qstate = {"one.x": plan["one.x"].init(JX, "bnd")}

    @jax.jit
    def run(x, w, eps, qstate):
        found = []
        for order in ORDERS:
            tape = {}
            nest = {
                "recording": lambda inner, tape=tape: recording(tape, everything, inner),
                "perturbed": lambda inner: perturbed({"one.y": eps}, inner),
                "quantized": lambda inner: quantized(plan, qstate, inner),
                "packed": packed_dot,
            }
            dot = float_dot
            for name in reversed(order):
                dot = nest[name](dot)
            found.append((dot("one", EQUATION, x=x, w=w), tape))
        return found

    return dict(zip(ORDERS, run(X, leaf, EPS, qstate), strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_dots_nest_in_any_order(nested, order):
    """The product is the same, and a recording sees what reaches it."""
    product, tape = nested[order]
    bare = minmax(X, 3) @ (SCALE * (CODES - ZERO).astype(np.float32))
    np.testing.assert_allclose(product, bare + EPS, atol=1e-5)
    outside = {name: order.index("recording") < order.index(name) for name in order}
    np.testing.assert_allclose(tape["one.x"], X if outside["quantized"] else minmax(X, 3), rtol=1e-6)
    assert isinstance(tape["one.w"], Packed) == outside["packed"]
    np.testing.assert_allclose(tape["one.y"], bare + EPS if outside["perturbed"] else bare, atol=1e-5)


def test_dropping_takes_whole_products_of_single_images_and_keeps_the_mean(rng):
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((4000, 2, 3), (3, 5)))
    dot = dropping({"a": 0.25, "b": 0.25, "c": 0.0}, jax.random.key(0))
    plain = float_dot("a", "bnd,do->bno", x=x, w=w)
    found = {site: dot(site, "bnd,do->bno", x=x, w=w) for site in "abcd"}
    for site in "cd":
        np.testing.assert_array_equal(found[site], plain)
    gone = {site: np.asarray((found[site] == 0).all(axis=(1, 2))) for site in "ab"}
    for site, dropped in gone.items():
        np.testing.assert_allclose(found[site][~dropped], plain[~dropped] / 0.75, rtol=1e-6)
        assert abs(dropped.mean() - 0.25) < 0.03
    assert (gone["a"] != gone["b"]).any()


SIZES = dict(zip("bhmnqkdeso", (2, 3, 2, 3, 4, 6, 8, 4, 3, 5), strict=True))
VALUES, WINDOWS = "bhqk,bhke->bhqe", "bmnd,dshe->bmnshe"
MEAN, LEARNED = Signs(scale="mean", keep="o"), Signs(scale="learned")
ONE_BIT = {  # equation, quantisers of its operands, and what of them is signs or steps without a scale inside
    "signs": (EQUATION, Signs(), MEAN, "ab"),
    "learned scale": (EQUATION, LEARNED, MEAN, "ab"),
    "a scale an image": (EQUATION, Signs(scale="mean"), Signs(scale="mean", centred=True), "ab"),
    "fixed scale": (EQUATION, Signs(smooth=False, size=0.3), MEAN, "ab"),
    "8-bit inputs": (EQUATION, Uniform(8), MEAN, "b"),
    "one bit with a zero point": (EQUATION, Uniform(1), Uniform(1, "o"), "ab"),
    "learned, one bit": (EQUATION, Learned(1, signed=False), Uniform(4, "o"), "a"),
    "scale a channel": (EQUATION, Signs(scale="learned", keep="d"), MEAN, "b"),
    "scale of a row": (EQUATION, LEARNED, Signs(scale="mean", keep="d"), "a"),
    "one key for all heads": ("bhqd,bkd->bhqk", Signs(scale="learned", keep="h"), Signs(scale="mean"), "ab"),
    "windows": (WINDOWS, LEARNED, Signs(scale="mean", keep="she"), "ab"),
    "other order": ("bnd,dehs->bnshe", LEARNED, Signs(scale="mean", keep="ehs"), "ab"),
    "steps": (VALUES, Steps(keep="h"), Signs(scale="learned", keep="h"), "ab"),
    "shifted signs": (VALUES, ShiftedSigns(keep="h"), Signs(scale="learned", keep="h"), "ab"),
}


def drawn(rng, equation, quantizers):
    """The operands a and b of an equation, and the state of each; an attention map is positive."""
    (left, right), _ = axes.split(equation)
    found = []
    for letters, q in zip((left, right), quantizers, strict=True):
        x = rng.normal(0.05, 0.7, [SIZES[i] for i in letters])
        x = jnp.asarray(np.abs(x) if letters == "bhqk" else x, jnp.float32)
        spread = {
            n: s * jnp.asarray(rng.uniform(0.5, 1.5, s.shape), jnp.float32) for n, s in q.init(x, letters).items()
        }
        found.append((x, spread if isinstance(q, Signs | Steps | ShiftedSigns) else q.init(x, letters)))
    return found


@pytest.mark.parametrize("name", ONE_BIT)
def test_scales_of_one_bit_multiply_the_product_and_nothing_else_changes(rng, name):
    """Against the product of what the quantisers give: values, and gradients of operands and scales."""
    equation, qa, qb, bare = ONE_BIT[name]
    (left, right), out = axes.split(equation)
    (a, sa), (b, sb) = drawn(rng, equation, (qa, qb))
    upstream = jnp.asarray(rng.normal(size=[SIZES[i] for i in out]), jnp.float32)
    plan = {"s.a": qa, "s.b": qb}

    def ours(a, sa, b, sb):
        tape = {}
        dot = quantized(plan, {"s.a": sa, "s.b": sb}, recording(tape, everything))
        y = dot("s", equation, a=a, b=b)
        return (y * upstream).sum(), (y, tape)

    def plain(a, sa, b, sb):
        through = {"s.a": qa.apply(sa, a, left), "s.b": qb.apply(sb, b, right)}
        y = jnp.einsum(equation, *through.values())
        return (y * upstream).sum(), (y, through)

    @jax.jit
    def both(*arguments):
        return [jax.grad(f, argnums=(0, 1, 2, 3), has_aux=True)(*arguments) for f in (ours, plain)]

    (got, (y, inside)), (want, (reference, through)) = both(a, sa, b, sb)
    np.testing.assert_allclose(y, reference, rtol=0, atol=1e-6 * np.abs(reference).max())
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=1e-5 * max(np.abs(w).max(), 1e-3))
    assert all(np.abs(want[i]).max() > 0 for i in (0, 2))
    for role in "ab":
        if role in bare:
            np.testing.assert_array_equal(inside[f"s.{role}"], np.round(inside[f"s.{role}"]))
        else:
            np.testing.assert_array_equal(inside[f"s.{role}"], through[f"s.{role}"])


def signs_of(x) -> np.ndarray:
    return np.where(np.asarray(x, np.float64) >= 0, 1, -1)


@pytest.mark.parametrize(
    ("kind", "packed"),
    [("float32", False), ("bfloat16", False), ("lowered", False), ("float32", True), ("lowered", True)],
)
def test_balanced_signs_give_exact_zeros_and_sums_their_own_sign(rng, kind, packed):
    """Counted as whole numbers; float32 sums of 22 times +-scale leave something of either sign instead."""
    dtype = jnp.bfloat16 if kind == "bfloat16" else jnp.float32
    x, w = (jnp.asarray(rng.normal(size=s), dtype) for s in ((2, 32, 22), (22, 16)))
    plan, state = {"s.x": LEARNED, "s.w": MEAN}, {"s.x": {"scale": jnp.float32(0.1234567)}, "s.w": {}}
    second = w
    if packed:
        second = Packed.of(MEAN.encode({}, w, "do"), 1)
        del plan["s.w"]
    inner = lowered(jnp.bfloat16) if kind == "lowered" else float_dot
    run = jax.jit(lambda x, w: packed_dot(quantized(plan, state, inner))("s", EQUATION, x=x, w=w))
    got = run(x, second)
    assert got.dtype == dtype
    sums = signs_of(x) @ signs_of(w)
    assert (sums == 0).sum() > 50
    np.testing.assert_array_equal(np.sign(np.asarray(got, np.float64)), np.sign(sums))
    scale = 0.1234567 * np.abs(np.asarray(w, np.float64)).mean(axis=0)
    np.testing.assert_allclose(np.asarray(got, np.float64), scale * sums, rtol=2e-2 if kind == "bfloat16" else 1e-6)


PACKED = {  # quantiser of a weight "do"; whether its scale multiplies the product
    "signs": (MEAN, True),
    "signs, one scale": (Signs(scale="mean"), True),
    "a scale a row": (Signs(scale="mean", keep="d"), False),
    "with a zero point": (Uniform(1, "o"), False),
    "4 bits": (Uniform(4, "o"), False),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_signs_go_on_without_their_scale(name):
    quantizer, bare = PACKED[name]
    leaf = Packed.of(quantizer.encode(quantizer.init(J1, "do"), J1, "do"), quantizer.bits)
    tape = {}
    got = packed_dot(recording(tape, everything))("s", EQUATION, x=JX, w=leaf)
    value = np.asarray(leaf.unpack(), np.float64)
    np.testing.assert_allclose(got, X @ value, atol=1e-5)
    np.testing.assert_array_equal(tape["s.w"], signs_of(W1) if bare else leaf.unpack())


ONTO = [("bhqd", "bhqk"), ("bkd", "bhqk"), ("dshe", "bmnshe"), ("dehs", "bnshe"), ("dshe", "sbnhe"), ("kqd", "qk")]


@pytest.mark.parametrize(("letters", "out"), ONTO)
def test_a_scale_is_laid_on_the_axes_of_the_product(rng, letters, out):
    kept = [i for i in letters if i in out]
    for with_scale in itertools.chain.from_iterable(itertools.combinations(kept, n) for n in range(len(kept) + 1)):
        scale = jnp.asarray(rng.uniform(1, 2, [SIZES[i] if i in with_scale else 1 for i in letters]), jnp.float32)
        assert outside(scale, letters, out)
        laid = np.asarray(onto(scale, letters, out))
        assert laid.shape == tuple(SIZES[i] if i in with_scale else 1 for i in out)
        for at in np.ndindex(*laid.shape):
            own = dict(zip(out, at, strict=True))
            assert laid[at] == scale[tuple(own.get(i, 0) for i in letters)]
    summed = next(i for i in letters if i not in out)
    assert not outside(jnp.ones([2 if i == summed else 1 for i in letters]), letters, out)


def test_weights_that_are_all_zero_give_zeros(rng):
    """Their mean magnitude is 0: no division by it."""
    dot = quantized({"s.w": MEAN}, {"s.w": {}})
    value, grad = jax.value_and_grad(lambda x, w: dot("s", EQUATION, x=x, w=w).sum(), argnums=(0, 1))(JX, 0 * J1)
    assert value == 0
    assert all(np.isfinite(g).all() for g in grad)


def test_weights_that_are_all_zero_have_the_gradient_of_the_plain_formula():
    dot = quantized({"s.w": MEAN}, {"s.w": {}})
    got = jax.grad(lambda w: dot("s", EQUATION, x=JX, w=w).sum())(0 * J1)
    want = jax.grad(lambda w: jnp.einsum(EQUATION, JX, MEAN.apply({}, w, "do")).sum())(0 * J1)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_one_bit_with_a_learned_offset_is_left_alone():
    quantizer = Learned(1, signed=False, offset=True)
    state = quantizer.init(JX, "bnd")
    got = quantized({"s.x": quantizer}, {"s.x": state})("s", EQUATION, x=JX, w=J1)
    np.testing.assert_allclose(got, jnp.einsum(EQUATION, quantizer.apply(state, JX, "bnd"), J1), atol=1e-5)
