"""Kendall's tau of attention rows against scipy's."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau

from jvq.core.recipe import sites
from jvq.evaluate_order import attention_maps, kendall, order_agreement
from jvq.quantizers import Steps, Uniform


@pytest.mark.parametrize("decimals", [8, 1])
def test_tau_is_scipys(rng, decimals):
    reference, got = (np.round(rng.uniform(0.1, 1, (3, 4, 17)), decimals) for _ in range(2))
    want = [
        [kendalltau(a, b).statistic for a, b in zip(*rows, strict=True)] for rows in zip(reference, got, strict=True)
    ]
    np.testing.assert_allclose(kendall(jnp.asarray(reference), jnp.asarray(got)), want, atol=1e-6)


def test_the_same_order_gives_one_and_the_opposite_minus_one(rng):
    x = jnp.asarray(rng.uniform(0.1, 1, (5, 9)))
    np.testing.assert_allclose(kendall(x, jnp.log(x)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(kendall(x, -x), -1.0, rtol=1e-6)


def test_masked_keys_do_not_count(rng):
    reference, got = rng.uniform(0.1, 1, 8), rng.uniform(0.1, 1, 8)
    masked = np.concatenate([reference, np.zeros(3)])
    want = kendalltau(reference, got).statistic
    assert kendall(jnp.asarray(masked), jnp.asarray(np.r_[got, rng.uniform(0.1, 1, 3)])) == pytest.approx(
        want, abs=1e-6
    )


def test_constant_rows_are_defined():
    flat, x = jnp.full(4, 0.25), jnp.asarray([0.1, 0.2, 0.3, 0.4])
    assert kendall(flat, x) == 1.0, "nothing to get wrong"
    assert kendall(x, flat) == 0.0, "all order is lost"


def attend(params, images, dot):
    """Attention of 6 tokens with 4 channels, twice: logits [b o]."""
    x = images[..., 0]
    for name in ("one", "two"):
        s = dot(f"{name}/qk", "bqe,bke->bqk", q=x, k=x @ params[name])
        e = jnp.exp(s)
        x = x + dot(f"{name}/pv", "bqk,bke->bqe", p=e / e.sum(axis=-1, keepdims=True), v=x)
    return x[:, 0]


def test_maps_are_compared_behind_quantised_sites_and_batches_do_not_matter(rng):
    params = {name: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for name in ("one", "two")}
    images = rng.normal(size=(7, 6, 4, 1)).astype(np.float32)
    known = sites(attend, params, images.shape[1:])
    x = jnp.asarray(images[..., 0])
    state = Uniform(4).init(x, "bqe")
    plan, qstate = {"one/qk.q": Uniform(4)}, {"one/qk.q": state}

    def maps(q):
        s = np.einsum("bqe,bke->bqk", q, x @ params["one"])
        return np.exp(s) / np.exp(s).sum(axis=-1, keepdims=True)

    want = [
        kendalltau(a, b).statistic
        for a, b in zip(maps(x).reshape(-1, 6), maps(Uniform(4).apply(state, x, "bqe")).reshape(-1, 6), strict=True)
    ]
    found = order_agreement((attend, params), (attend, params), plan, qstate, known, images, rows=6, batch=3)
    assert list(found) == ["one/pv.p", "two/pv.p"]
    assert found["one/pv.p"] == pytest.approx(np.mean(want), abs=1e-5)
    assert found["two/pv.p"] < 1, "what is behind the quantised site has changed too"
    together = order_agreement((attend, params), (attend, params), plan, qstate, known, images, rows=6, batch=7)
    assert found == pytest.approx(together)
    assert order_agreement((attend, params), (attend, params), {}, {}, known, images) == {
        "one/pv.p": 1.0,
        "two/pv.p": 1.0,
    }
    other = {**params, "one": -params["one"]}
    assert order_agreement((attend, params), (attend, other), {}, {}, known, images)["one/pv.p"] < 0, (
        "its own parameters"
    )


def test_attention_maps_are_a_softmax_and_behind_a_quantiser_what_it_gives(rng):
    params = {name: jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for name in ("one", "two")}
    images = rng.normal(size=(3, 6, 4, 1)).astype(np.float32)
    beta = 4 / 6
    plan = {"one/pv.p": Steps(), "two/qk.q": Uniform(4)}
    qstate = {"one/pv.p": {"scale": jnp.float32(beta)}, "two/qk.q": Uniform(4).init(jnp.asarray(images[..., 0]), "bqe")}
    found = attention_maps((attend, params), plan, qstate, ["two/pv.p", "one/pv.p"], images)
    assert list(found) == ["two/pv.p", "one/pv.p", "one/pv.p^"], "a map without a quantiser is there once"
    assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 and x.shape == (3, 6, 6) for x in found.values())

    def maps(q, k, name):
        e = np.exp(np.einsum("bqe,bke->bqk", np.asarray(q, np.float64), k @ np.asarray(params[name], np.float64)))
        return e / e.sum(axis=-1, keepdims=True)

    x = images[..., 0].astype(np.float64)
    soft = maps(x, x, "one")
    seen = np.where(soft >= beta / 2, beta, 0.0)
    np.testing.assert_allclose(found["one/pv.p"], soft, atol=1e-5)
    np.testing.assert_allclose(found["one/pv.p^"], seen, rtol=1e-6)
    assert 0 < (seen > 0).mean() < 1
    x = x + seen @ x
    q = Uniform(4).apply(qstate["two/qk.q"], jnp.asarray(x, jnp.float32), "bqe")
    np.testing.assert_allclose(found["two/pv.p"], maps(q, x, "two"), atol=1e-4)
    with pytest.raises(ValueError, match=r"three/pv.p is no attention map of the model.*two/pv.p"):
        attention_maps((attend, params), {}, {}, ["three/pv.p"], images)


def test_attention_maps_have_their_own_axes_whatever_the_precision(rng):
    def windows(params, images, dot):
        p = jnp.abs(images).astype(jnp.bfloat16)
        return dot("only/pv", "bmhqk,bmhke->bmhqe", p=p, v=p)

    images = rng.uniform(size=(2, 3, 2, 4, 4)).astype(np.float32)
    found = attention_maps((windows, {}), {}, {}, ["only/pv.p"], images)
    assert found["only/pv.p"].dtype == np.float32
    np.testing.assert_allclose(found["only/pv.p"], images, rtol=2**-8)
