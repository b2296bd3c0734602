"""What a student learns from: cross-entropies and features against NumPy, and the example of the specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jvq.methods import distillation, vvtq
from jvq.methods.vvtq import Options

HEADS = ["head.x", "head_dist.x"]


@pytest.fixture
def tapes(rng):
    """Logits of student and teacher, stored labels, and right answers."""
    student, teacher = rng.normal(0, 2, (2, 6, 5)).astype(np.float32)
    batch = {"label": rng.integers(0, 5, 6), "soft": softmax(rng.normal(0, 2, (6, 5)), axis=1)}
    return student, teacher, batch


def told(kind, hard, student, teacher, batch):
    given = {"label": jnp.asarray(batch["label"], jnp.int32), "soft": jnp.asarray(batch["soft"], jnp.float32)}
    taught = {"output": jnp.asarray(teacher)} if kind == "teacher" else {}
    return distillation.loss(kind, hard, [])({"output": jnp.asarray(student)}, taught, given)


@pytest.mark.parametrize("hard", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["teacher", "stored", "none"])
def test_the_loss_is_cross_entropy_with_soft_labels_and_labels(kind, hard, tapes):
    student, teacher, batch = tapes
    value, metrics = told(kind, hard, *tapes)
    said = log_softmax(student.astype(np.float64), axis=1)
    labelled = -said[np.arange(6), batch["label"]].mean()
    soft = softmax(teacher.astype(np.float64), axis=1) if kind == "teacher" else batch["soft"]
    cross, entropy = -(soft * said).sum(axis=1).mean(), -(soft * np.log(soft)).sum(axis=1).mean()
    want = labelled if kind == "none" else (1 - hard) * cross + hard * labelled
    assert float(value) == pytest.approx(want, rel=1e-5)
    assert float(metrics["top1"]) == pytest.approx((student.argmax(axis=1) == batch["label"]).mean())
    assert set(metrics) == ({"top1"} if kind == "none" else {"top1", "kl"})
    if kind != "none":
        assert float(metrics["kl"]) == pytest.approx(cross - entropy, rel=1e-4)


@pytest.mark.parametrize("hard", [0.0, 0.3])
def test_features_are_compared_at_every_head(hard, tapes, rng):
    student, _, batch = tapes
    mine, theirs = rng.normal(0, 2, (2, len(HEADS), 6, 4)).astype(np.float32)
    tape = {"output": jnp.asarray(student), **{a: jnp.asarray(x) for a, x in zip(HEADS, mine, strict=True)}}
    taught = {a: jnp.asarray(x) for a, x in zip(HEADS, theirs, strict=True)}
    label = {"label": jnp.asarray(batch["label"], jnp.int32)}
    value, metrics = distillation.loss("features", hard, HEADS)(tape, taught, label)
    parts = [
        ((a - b).astype(np.float64) ** 2).mean() / (b.astype(np.float64) ** 2).mean()
        for a, b in zip(mine, theirs, strict=True)
    ]
    labelled = -log_softmax(student.astype(np.float64), axis=1)[np.arange(6), batch["label"]].mean()
    assert float(value) == pytest.approx((1 - hard) * np.mean(parts) + hard * labelled, rel=1e-5)
    assert float(metrics["features"]) == pytest.approx(np.mean(parts), rel=1e-5)


def test_cross_entropy_is_least_at_the_labels():
    """K2, with the example of the spec: five classes of 1000 known, 1.5370."""
    soft = np.full((1, 1000), 0.05 / 995)
    soft[0, :5] = [0.6, 0.2, 0.1, 0.03, 0.02]
    batch = {"label": np.array([0]), "soft": soft}
    least, metrics = told("stored", 0.0, np.log(soft).astype(np.float32), None, batch)
    assert float(least) == pytest.approx(1.5370, abs=1e-4)
    assert float(metrics["kl"]) == pytest.approx(0, abs=1e-5)
    slope = jax.grad(lambda z: told("stored", 0.0, z, None, batch)[0])(jnp.asarray(np.log(soft), jnp.float32))
    np.testing.assert_allclose(slope, np.zeros((1, 1000)), atol=1e-5)
    for seed in range(3):
        off = np.random.default_rng(seed).normal(0, 0.3, soft.shape)
        value, metrics = told("stored", 0.0, (np.log(soft) + off).astype(np.float32), None, batch)
        assert float(value) > float(least)
        assert float(metrics["kl"]) > 0


def test_labels_with_probabilities_of_zero_give_no_nan(tapes):
    student, _, batch = tapes
    batch = {**batch, "soft": np.eye(5)[batch["label"]]}
    value, metrics = told("stored", 0.0, student, None, batch)
    said = log_softmax(student.astype(np.float64), axis=1)
    want = -said[np.arange(6), batch["label"]].mean()
    assert [float(value), float(metrics["kl"])] == pytest.approx([want, want], rel=1e-5)


def test_only_features_look_at_the_heads(known):
    assert vvtq.watched(Options(distillation="features"), known) == ["head.x"]
    assert [vvtq.watched(Options(distillation=kind), known) for kind in ("teacher", "stored", "none")] == [[], [], []]
