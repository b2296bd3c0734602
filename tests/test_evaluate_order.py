"""Kendall's tau of attention rows against scipy's."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau

from jvq.core.recipe import sites
from jvq.evaluate_order import kendall, order_agreement
from jvq.quantizers import Uniform


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
