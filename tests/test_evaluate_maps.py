import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import evaluate_maps
from jvq.core.recipe import resolve, sites
from jvq.evaluate_maps import Predictions, correlations, overlaps, predict, runner, score
from jvq.methods import minmax
from jvq.models import build

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "decoder": (6,)}


@pytest.fixture
def pair(rng):
    maps, features = rng.uniform(size=(5, 4, 6)), rng.normal(size=(5, 3, 2))
    return [
        Predictions((maps + shift).astype(np.float32), (features * (1 + shift)).astype(np.float32))
        for shift in (0.0, rng.normal(0, 0.3, (5, 1, 1)) * rng.uniform(size=(5, 1, 1)))
    ]


def test_scores_are_what_their_names_say(rng):
    a, b = (Predictions(*(rng.uniform(size=s).astype(np.float32) for s in ((5, 4, 6), (5, 3, 2)))) for _ in range(2))
    got = score(a, b)
    alike = [np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a.maps, b.maps, strict=True)]
    assert got.correlation == pytest.approx(np.mean(alike))
    assert got.median_correlation == pytest.approx(np.median(alike))
    assert got.mae == pytest.approx(np.abs(a.maps - b.maps).mean(), rel=1e-6)
    shared = [
        ((x > 0.5) & (y > 0.5)).sum() / ((x > 0.5) | (y > 0.5)).sum() for x, y in zip(a.maps, b.maps, strict=True)
    ]
    assert got.iou == pytest.approx(np.mean(shared))
    assert got.nmse == pytest.approx(((a.features - b.features) ** 2).sum() / (a.features**2).sum(), rel=1e-6)


def test_a_model_is_its_own_equal(pair):
    assert score(pair[0], pair[0]) == pytest.approx((1.0, 1.0, 0.0, 1.0, 0.0))


def test_correlation_is_blind_to_scale_and_zero_for_a_flat_map(rng):
    a = rng.uniform(size=(2, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(correlations(a, 3 * a + 1), 1, rtol=1e-6)
    np.testing.assert_allclose(correlations(a, -a), -1, rtol=1e-6)
    np.testing.assert_array_equal(correlations(a, np.full_like(a, 0.5)), 0)


def test_overlap_by_hand():
    a = np.array([[[0.9, 0.9, 0.1, 0.1]], [[0.1, 0.1, 0.1, 0.1]], [[0.9, 0.1, 0.1, 0.1]]], np.float32)
    b = np.array([[[0.1, 0.9, 0.9, 0.1]], [[0.2, 0.2, 0.2, 0.2]], [[0.1, 0.9, 0.1, 0.1]]], np.float32)
    np.testing.assert_allclose(overlaps(a, b), [1 / 3, 1, 0])


@pytest.fixture(scope="module")
def tiny():
    model = build("saliency", SPEC)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    return model, params, rng.normal(size=(4, 8, 8, 1)).astype(np.float32)


def test_features_are_the_backbone_s_before_the_decoder_quantises_them(tiny):
    model, params, images = tiny
    known = sites(model.forward, params, model.image)
    plan = resolve([("*", None), ("decoder/*", minmax.Uniform(2))], known)
    state = minmax.calibrate(model.forward, params, images, plan, known)
    maps, features = runner(model.forward, plan)(params, state, jnp.asarray(images))
    float_maps, want = runner(model.forward, {})(params, {}, jnp.asarray(images))
    np.testing.assert_array_equal(features, want)
    assert features.shape == (4, 4, 16)
    assert not np.array_equal(maps, float_maps)
    np.testing.assert_allclose(float_maps, model.forward(params, images), rtol=1e-6)


def test_padding_is_left_out(tiny):
    model, params, images = tiny
    run = runner(model.forward, {})
    mask = np.array([True, False, True, True])
    batches = [{"image": images, "mask": mask}, {"image": images, "mask": ~mask}]
    got = predict(lambda x: run(params, {}, x), batches, "float")
    assert got.maps.shape == (4, 8, 8)
    np.testing.assert_array_equal(got.maps[3], run(params, {}, jnp.asarray(images))[0][1])


def test_what_is_not_finite_or_not_there_is_an_error(tiny):
    model, params, images = tiny
    broken = {**params, "norm": jax.tree.map(lambda x: x * jnp.nan, params["norm"])}
    run = runner(model.forward, {})
    batch = {"image": images, "mask": np.ones(4, bool)}
    with pytest.raises(ValueError, match="evaluating x: maps of 4 of 4 images are not finite"):
        predict(lambda x: run(broken, {}, x), [batch], "evaluating x")
    with pytest.raises(ValueError, match="there are no images"):
        predict(lambda x: run(params, {}, x), [{**batch, "mask": np.zeros(4, bool)}], "evaluating x")


def test_the_features_stand_where_the_module_says(tiny):
    model, params, _ = tiny
    assert evaluate_maps.FEATURES in sites(model.forward, params, model.image)
