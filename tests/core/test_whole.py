"""Products of whole numbers against float64, and that they are exact where sums of scaled values are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvq
from jvq.core.dot import packed_dot, quantized
from jvq.core.freeze import freeze
from jvq.core.recipe import resolve, sites
from jvq.core.whole import whole_dot
from jvq.quantizers import Dynamic, Grouped, Learned, Signs, StaticGrouped, Uniform

IMAGES, N, D, OUT = 3, 5, 96, 7

ACTIVATIONS = {
    "uniform": Uniform(bits=8),
    "channels of images": Dynamic(bits=4, keep="bn"),
    "groups": Grouped(bits=4, groups=3, along="d"),
    "ladder": Grouped(bits=4, groups=3, along="d", ladder=True),
    "static groups": StaticGrouped(bits=6, groups=3, along="d"),
    "offset": Learned(bits=4, offset=True),
    "signs": Signs(),
    "every channel": Dynamic(bits=4, keep="bd"),
    "wide": Uniform(bits=12),
}
WEIGHTS = {
    "per channel": Uniform(bits=4, keep="o"),
    "signs": Signs(keep="o", scale="mean"),
    "wide": Uniform(bits=12, keep="o"),
}


def forward(params, x, dot):
    return dot("fc", "bnd,do->bno", x=x, w=params["fc"])


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(IMAGES, N, D)) * np.exp(rng.normal(size=(1, 1, D)))
    return {"fc": jnp.asarray(rng.normal(size=(D, OUT)), jnp.float32)}, jnp.asarray(x, jnp.float32)


def frozen(inputs, activation, weight):
    params, x = inputs
    known = sites(forward, params, (N, D))
    plan = resolve([("fc.x", activation), ("fc.w", weight)], known)
    return freeze(params, plan, jvq.calibrate(forward, params, np.asarray(x), plan, known), known), known


def exact(params, plan, state, x):
    """The product of what the codes stand for, float64."""
    w = np.float64(params["fc"].unpack()) if hasattr(params["fc"], "unpack") else np.float64(params["fc"])
    codes = plan["fc.x"].encode(state["fc.x"], x, "bnd")
    values = np.asarray(codes.decode())
    return np.einsum("bnd,do->bno", np.float64(values), w)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_product_is_that_of_the_values(inputs, activation, weight):
    (params, plan, state), _ = frozen(inputs, ACTIVATIONS[activation], WEIGHTS[weight])
    got = jax.jit(lambda x: forward(params, x, whole_dot(plan, state)))(inputs[1])
    want = exact(params, plan, state, inputs[1])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("activation", ["uniform", "channels of images", "ladder", "groups", "signs", "offset"])
def test_a_sum_does_not_depend_on_its_order(inputs, activation):
    """Of scaled values it does: the same channels in another order give other last bits."""
    (params, plan, state), _ = frozen(inputs, ACTIVATIONS[activation], WEIGHTS["per channel"])
    turn = np.random.default_rng(1).permutation(D)

    def turned(dot):
        def permuted(site, equation, /, x, w):
            w = w.unpack() if hasattr(w, "unpack") else w
            return jnp.einsum(equation, x[..., turn], w[turn])

        return jax.jit(lambda x: forward(params, x, dot(plan, state, permuted)))(inputs[1])

    def straight(dot):
        return jax.jit(lambda x: forward(params, x, dot(plan, state)))(inputs[1])

    np.testing.assert_array_equal(turned(whole_dot), straight(whole_dot))
    if activation != "signs":  # there the scales of signs come last in both, and each product is whole already
        scaled = [run(lambda *a: packed_dot(quantized(*a))) for run in (turned, straight)]
        assert (scaled[0] != scaled[1]).any()


@pytest.mark.parametrize(
    ("activation", "weight"), [("every channel", "per channel"), ("wide", "per channel"), ("uniform", "wide")]
)
def test_what_integers_cannot_multiply_is_left_to_scaled_values(inputs, activation, weight):
    (params, plan, state), _ = frozen(inputs, ACTIVATIONS[activation], WEIGHTS[weight])
    got, want = (
        jax.jit(lambda x, dot=dot: forward(params, x, dot))(inputs[1])
        for dot in (whole_dot(plan, state), packed_dot(quantized(plan, state)))
    )
    np.testing.assert_array_equal(got, want)


def test_both_operands_may_be_activations(inputs):
    def attend(params, x, dot):
        return dot("qk", "bnd,bkd->bnk", q=x, k=2.0 * x)

    x = inputs[1]
    known = sites(attend, {}, (N, D))
    plan = resolve([("qk.q", Learned(bits=4, offset=True)), ("qk.k", Learned(bits=4, offset=True))], known)
    state = jvq.calibrate(attend, {}, np.asarray(x), plan, known)
    got = attend({}, x, whole_dot(plan, state))
    q, k = (np.float64(plan[a].encode(state[a], y, "bnd").decode()) for a, y in (("qk.q", x), ("qk.k", 2.0 * x)))
    want = np.einsum("bnd,bkd->bnk", q, k)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
