"""Scores against scipy, site errors against a computation by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from jvq.core.freeze import freeze
from jvq.core.recipe import sites
from jvq.evaluate import Predictions, predict, runner, score, site_errors
from jvq.quantizers import Dynamic, Uniform

LETTERS = {"fc1.x": "bnd", "fc1.w": "do", "fc2.x": "bnd", "fc2.w": "do"}
PLAN = {"fc1.x": Uniform(3), "fc1.w": Uniform(2, "o"), "fc2.x": Dynamic(2, "b"), "fc2.w": Uniform(4)}


def forward(params, images, dot):
    """Two linear layers over the rows of images [b y x 1], logits [b o] of the first row."""
    x = dot("fc1", "bnd,do->bno", x=images[..., 0], w=params["fc1"]["kernel"])
    return dot("fc2", "bnd,do->bno", x=jnp.maximum(x, 0.0), w=params["fc2"]["kernel"])[:, 0]


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    params = {"fc1": {"kernel": rng.normal(size=(4, 6))}, "fc2": {"kernel": rng.normal(size=(6, 3))}}
    params = {name: {"kernel": jnp.asarray(p["kernel"], jnp.float32)} for name, p in params.items()}
    images = rng.normal(size=(5, 2, 4, 1)).astype(np.float32)
    x = {"fc1.x": jnp.asarray(images[..., 0]), "fc1.w": params["fc1"]["kernel"], "fc2.w": params["fc2"]["kernel"]}
    x["fc2.x"] = jnp.maximum(jnp.einsum("bnd,do->bno", x["fc1.x"], x["fc1.w"]), 0.0)
    qstate = {a: q.init(x[a], LETTERS[a]) for a, q in PLAN.items()}
    return params, images, x, qstate


@pytest.fixture
def predictions(rng):
    reference, logits = rng.normal(0, 2, (50, 7)), rng.normal(0, 2, (50, 7))
    logits[:20] = reference[:20] + 0.01
    labels = rng.integers(0, 7, 50)
    return Predictions(reference.astype(np.float32), labels), Predictions(logits.astype(np.float32), labels)


def test_divergence_is_scipys(predictions):
    reference, got = predictions
    p, q = (softmax(x.logits.astype(np.float64), axis=1) for x in predictions)
    assert score(reference, got).kl == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), rel=1e-9)
    assert score(got, reference).kl != pytest.approx(score(reference, got).kl, rel=1e-3)  # float model first


def test_accuracy_and_agreement_are_counted(predictions):
    reference, got = predictions
    found = score(reference, got)
    right = sum(int(row.argmax()) == label for row, label in zip(got.logits, got.labels, strict=True))
    same = sum(a.argmax() == b.argmax() for a, b in zip(reference.logits, got.logits, strict=True))
    assert 20 <= same < 50
    assert found.top1 == right / 50
    assert found.agreement == same / 50


def test_a_model_agrees_with_itself(predictions):
    reference, _ = predictions
    found = score(reference, reference)
    assert (found.agreement, found.kl) == (1.0, 0.0)


def test_unknown_labels_count_in_agreement_only(predictions):
    reference, got = predictions
    labels = np.where(np.arange(50) % 2, -1, got.labels)
    found = score(reference._replace(labels=labels), got._replace(labels=labels))
    assert found.top1 == (got.logits.argmax(axis=1) == got.labels)[::2].mean()
    assert found[1:] == score(reference, got)[1:]
    assert score(reference, got._replace(labels=np.full(50, -1))).top1 is None


def test_huge_logits_stay_finite():
    logits = np.float32([[1e5, 0.0, -1e5], [3e4, 3e4, 0.0]])
    reference, got = (Predictions(x, np.array([0, 1])) for x in (logits, logits[:, ::-1].copy()))
    assert np.isfinite(score(reference, got).kl)


def batch(values, labels, mask):
    image = np.float32(values).reshape(-1, 1, 1, 1)
    return {"image": image, "label": np.int32(labels), "mask": np.array(mask)}


def double(x):
    return jnp.concatenate([2 * x[:, 0, 0], -x[:, 0, 0]], axis=1)


def test_masked_rows_are_left_out_and_the_rest_keeps_its_order():
    batches = [batch([1, 2, 3], [0, 1, 2], [True, False, True]), batch([4, 0, 0], [5, 0, 0], [True, False, False])]
    told = []

    def track(items, text):
        told.append(text)
        return items

    found = predict(double, batches, "evaluating", track)
    np.testing.assert_array_equal(found.logits, [[2, -1], [6, -3], [8, -4]])
    np.testing.assert_array_equal(found.labels, [0, 2, 5])
    assert told == ["evaluating"]


@pytest.mark.parametrize("batches", [[], [batch([1, 2], [0, 1], [False, False])]], ids=["none", "all masked"])
def test_no_images_is_an_error(batches):
    with pytest.raises(ValueError, match="evaluating x: there are no images"):
        predict(double, batches, "evaluating x")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_unless_masked(value):
    bad = batch([1, value, 3], [0, 1, 2], [True, True, True])
    with pytest.raises(ValueError, match="evaluating x: the logits of 1 of 3 images are not finite"):
        predict(double, [bad], "evaluating x")
    assert len(predict(double, [{**bad, "mask": np.array([True, False, True])}], "x").labels) == 2


def test_site_errors_are_those_of_the_float_models_operands(network):
    params, images, x, qstate = network
    found = site_errors(forward, params, PLAN, qstate, LETTERS, images)
    assert list(found) == list(PLAN)
    for address, value in found.items():
        a = np.asarray(x[address], np.float64)
        q = np.asarray(PLAN[address].apply(qstate[address], x[address], LETTERS[address]), np.float64)
        assert value == pytest.approx(((q - a) ** 2).sum() / (a**2).sum(), rel=1e-5)
        assert 1e-4 < value < 1


def test_an_operand_of_zeros_has_no_error(network):
    params, images, _, qstate = network
    plan = {"fc1.x": PLAN["fc1.x"]}
    assert site_errors(forward, params, plan, qstate, LETTERS, 0 * images) == {"fc1.x": 0.0}


def test_the_runner_quantises_what_the_plan_names(network):
    params, images, x, qstate = network
    q = {a: PLAN[a].apply(qstate[a], x[a], LETTERS[a]) for a in ("fc1.x", "fc1.w", "fc2.w")}
    between = jnp.maximum(jnp.einsum("bnd,do->bno", q["fc1.x"], q["fc1.w"]), 0.0)
    between = PLAN["fc2.x"].apply(qstate["fc2.x"], between, "bnd")
    want = jnp.einsum("bnd,do->bno", between, q["fc2.w"])[:, 0]
    fake = runner(forward, PLAN)(params, qstate, jnp.asarray(images))
    np.testing.assert_allclose(fake, want, rtol=1e-5, atol=1e-6)
    plain = runner(forward, {})(params, {}, jnp.asarray(images))
    np.testing.assert_allclose(plain, jnp.einsum("bnd,do->bno", x["fc2.x"], x["fc2.w"])[:, 0], rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(fake - plain)).max() > 0.1


def test_packed_weights_run_as_fake_quantised_ones(network):
    params, images, _, qstate = network
    packed, plan, state = freeze(params, PLAN, qstate, sites(forward, params, (2, 4, 1)))
    assert set(plan) == {"fc1.x", "fc2.x"}
    got = runner(forward, plan)(packed, state, jnp.asarray(images))
    np.testing.assert_array_equal(got, runner(forward, PLAN)(params, qstate, jnp.asarray(images)))
