"""What calibration keeps of an operand: which values, how they are weighed, and that extremes are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.calibrate import fresh
from jvq.core.samples import joined, some, thin, whole
from jvq.quantizers import Grouped, StaticGrouped, Uniform

pytestmark = pytest.mark.once

_some = jax.jit(some, static_argnums=(1, 2, 3))


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """[b n d] = 8, 50, 64: heavy tails, channels of very different width, other ones in every image."""
    rng = np.random.default_rng(0)
    width = np.exp(rng.normal(size=64)) * np.exp(rng.normal(0, 0.5, (8, 1, 64)))
    return (rng.standard_t(5, (8, 50, 64)) * width).astype(np.float32)


@pytest.mark.parametrize("over", [(0,), (1,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_thinning_keeps_about_so_many_values_of_every_index(over):
    shape = (6, 20, 16)
    place = jnp.arange(6 * 20 * 16).reshape(shape)
    left = np.asarray(thin(place, over, 480))
    kept = [i for i in range(3) if i not in over]
    assert [left.shape[i] for i in kept] == [shape[i] for i in kept]
    assert left.shape.count(1) >= len(over) - 1
    assert 480 / 3 <= left.size <= 480 * 1.5
    where = np.unravel_index(left, shape)
    for i in kept:  # a value stays at its index of the axes that are kept
        assert (where[i] == np.arange(shape[i]).reshape([-1 if j == i else 1 for j in range(3)])).all()
    many = left.size // int(np.prod([shape[i] for i in kept]))
    if len(over) > 1:  # the first axis is there from end to end; of the last, no index twice before each once
        assert len(set(where[over[0]].ravel())) == shape[over[0]]
        assert len(set(where[over[-1]].ravel())) >= min(many, shape[over[-1]])
    assert thin(place, over, place.size) is place


@pytest.mark.parametrize(("apart", "keep"), [("", ""), ("d", "d"), ("d", "bd"), ("d", ""), ("n", "bn")])
def test_extremes_are_exact_and_weights_are_those_of_all_values(x, apart, keep):
    got = _some(x, "bnd", apart, 400)
    over = tuple(i for i, a in enumerate("bnd") if a not in keep)
    low, high = got.bounds(keep)
    np.testing.assert_array_equal(low, x.min(axis=over, keepdims=True))
    np.testing.assert_array_equal(high, x.max(axis=over, keepdims=True))
    values, weight = (np.asarray(a) for a in got.weighted())
    extremes = 2 * got.lower.size
    assert np.broadcast_to(weight, values.shape).sum() == pytest.approx(x.size + extremes, rel=1e-5)
    assert values.max() == x.max()
    assert values.min() == x.min()
    assert values.size - extremes < x.size / 3
    assert np.isin(values, x).all()


@pytest.mark.parametrize("apart", ["", "d", "n"])
def test_few_enough_values_are_kept_as_they_are(x, apart):
    for got in (_some(x, "bnd", apart, 50 * 64), whole(jnp.asarray(x), "bnd", apart)):
        values, weight = got.weighted()
        np.testing.assert_array_equal(values, x)
        assert (np.asarray(weight) == 1).all()
    assert whole(got, "bnd", apart) is got


@pytest.mark.parametrize("apart", ["", "d"])
def test_which_values_depends_on_the_number_of_the_image_alone(x, apart):
    """The same batches or others; but two images are looked at in different places."""
    together = _some(x, "bnd", apart, 400)
    parts = joined([jax.device_get(_some(x[i : i + 3], "bnd", apart, 400, first=i)) for i in range(0, 8, 3)])
    for name in ("values", "lower", "upper"):
        np.testing.assert_array_equal(getattr(together, name), getattr(parts, name))
    place = np.broadcast_to(np.arange(50 * 64).reshape(1, 50, 64), (8, 50, 64))
    seen = np.asarray(_some(place, "bnd", apart, 400).values).reshape(8, -1)
    assert len({tuple(sorted(row)) for row in seen}) > 4


def test_windows_and_heads_are_told_apart():
    """Rows of attention maps [b m h q k]."""
    maps = np.random.default_rng(0).dirichlet(np.full(16, 0.3), size=(2, 3, 2, 16)).astype(np.float32)
    got = _some(maps, "bmhqk", "mhq", 3 * 2 * 16 * 4)
    assert got.values.shape == (2, 3, 2, 16, 4)
    np.testing.assert_array_equal(got.bounds("bmhq")[1], maps.max(axis=-1, keepdims=True))
    assert (got.values[..., None] == maps[..., None, :]).any(axis=-1).all()


QUANTIZERS = {
    "a range a tensor by error": Uniform(bits=4, range="mse"),
    "a range a channel by error": Uniform(bits=4, keep="d", range="mse"),
    "groups by error": Grouped(bits=4, restarts=1),
    "groups on a ladder": Grouped(bits=4, restarts=1, ladder=True),
    "static groups by error": StaticGrouped(bits=4, bounds="mse"),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_an_error_search_over_some_of_the_values_stays_near_that_over_all(x, name):
    """A third of the tokens of each channel. On the calibration set the search over all cannot lose by much."""
    q = QUANTIZERS[name]
    kept = whole(jnp.asarray(x), "bnd", q.apart), _some(x, "bnd", q.apart, 50 * 64 // 3)

    def error(state):
        return float(jnp.square(q.apply(state, jnp.asarray(x), "bnd") - x).mean())

    full, found = (error(fresh(q, samples, "bnd")) for samples in kept)
    assert full * (1 - 1e-3) < found < 1.25 * full


@pytest.mark.parametrize("range", ["mse", "percentile"])
def test_a_search_over_some_values_still_sees_outlier_channels(x, range):
    """A strided sample that left out a channel would clip it."""
    x = x.copy()
    x[:, :, 1] *= 30
    q = Uniform(bits=8, range=range, percentile=(0.0,))
    scale = [float(fresh(q, s, "bnd")["scale"]) for s in (_some(x, "bnd", "", 100), whole(jnp.asarray(x), "bnd", ""))]
    assert scale[0] > 0.3 * scale[1]


def test_a_search_over_a_sample_does_not_clip_the_tails_that_it_missed():
    """At 8 bits clipped rare values cost more than all others: far worse than covering, were they left out."""
    x = np.random.default_rng(0).standard_t(4, (8, 500, 16)).astype(np.float32)
    error = {}
    for kind in ("mse", "max"):
        q = Uniform(bits=8, keep="d", range=kind)
        state = fresh(q, _some(x, "bnd", "d", 500 * 16 // 20), "bnd")
        error[kind] = float(jnp.square(q.apply(state, jnp.asarray(x), "bnd") - x).mean())
    assert error["mse"] < 1.1 * error["max"]
