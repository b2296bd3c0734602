"""Supervised training: the loss by hand, and what its options mean."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jvq.methods import supervised


def test_the_schedule_counts_whole_batches():
    schedule = supervised.Options(
        epochs=3, batch=8, learning_rate=0.5, warmup=0.2, weight_decay=0.1, clip=2.0
    ).schedule(30)
    assert (schedule.steps, schedule.learning_rate, schedule.warmup) == (9, 0.5, 0.2)
    assert (schedule.weight_decay, schedule.clip) == (0.1, 2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(epochs=0),
        dict(batch=0),
        dict(smoothing=1.0),
        dict(smoothing=-0.1),
        dict(alpha=1.5),
        dict(temperature=0.0),
    ],
)
def test_impossible_options_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"method\.{name}: got {value}"):
        supervised.Options(**wrong)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_smoothed_cross_entropy_of_prepared_images(smoothing, rng, monkeypatch):
    images, labels = rng.integers(0, 256, (6, 2, 2, 1), dtype=np.uint8), rng.integers(0, 3, 6)
    params = {"kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    logits = (images.reshape(6, 4) / 255.0) @ np.asarray(params["kernel"], np.float64)
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    want = -(targets * log_softmax(logits, axis=1)).sum(axis=1).mean()

    keys = []

    def prepare(key, images):
        keys.append(key)
        return images.astype(jnp.float32) / 255.0

    handed = {}
    monkeypatch.setattr(supervised, "fit", lambda *args, **more: handed.update(args=args, **more))
    options, batches, log = supervised.Options(epochs=2, batch=3, smoothing=smoothing), [], Path("metrics.jsonl")
    supervised.train(
        options,
        lambda p, x: (x.reshape(6, 4) @ p["kernel"])[:, None],
        params,
        batches,
        prepare,
        7,
        jax.random.key(0),
        log=log,
    )
    loss, *rest = handed["args"]
    assert rest[:3] == [params, batches, options.schedule(7)]
    assert handed["log"] == log

    key = jax.random.key(1)
    value, metrics = loss(params, {"image": jnp.asarray(images), "label": jnp.asarray(labels, jnp.int32)}, key)
    assert float(value) == pytest.approx(want, rel=1e-5)
    assert set(metrics) == {"top1"}
    assert float(metrics["top1"]) == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert keys == [key], "augmentation draws from the step's key"


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("distillation", ["hard", "soft"])
def test_a_teacher_speaks_to_the_last_head(heads, distillation, rng):
    """DeiT, equations 2 and 3, by hand; the soft one up to the teacher's entropy, which no gradient sees."""
    logits, taught = rng.normal(size=(5, heads, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    labels = rng.integers(0, 4, 5)
    options = supervised.Options(smoothing=0.0, distillation=distillation, alpha=0.3, temperature=2.0)
    labelled = -log_softmax(logits[:, 0], axis=1)[np.arange(5), labels].mean()
    if distillation == "hard":
        said = -log_softmax(logits[:, -1], axis=1)[np.arange(5), taught.argmax(axis=1)].mean()
    else:
        said = (
            -4 * (np.exp(log_softmax(taught / 2, axis=1)) * log_softmax(logits[:, -1] / 2, axis=1)).sum(axis=1).mean()
        )
    got = supervised.loss(options, jnp.asarray(logits), jnp.asarray(labels, jnp.int32), jnp.asarray(taught))
    assert float(got) == pytest.approx(0.7 * labelled + 0.3 * said, rel=1e-5)


def test_the_teacher_sees_what_the_student_sees(rng, monkeypatch):
    """The augmented, normalised images, once; and no gradient reaches it."""
    handed, seen = {}, []
    monkeypatch.setattr(supervised, "fit", lambda *args, **more: handed.update(args=args))

    def teacher(x):
        seen.append(x)
        return x @ jnp.eye(3)

    supervised.train(
        supervised.Options(alpha=1.0),
        lambda p, x: (x * p)[:, None],
        jnp.float32(1),
        [],
        lambda key, images: images / 2.0,
        1000,
        jax.random.key(0),
        teacher=teacher,
    )
    images = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    value, _ = handed["args"][0](jnp.float32(1), {"image": images, "label": jnp.zeros(4, jnp.int32)}, jax.random.key(1))
    np.testing.assert_array_equal(seen[0], images / 2)
    want = -log_softmax(np.asarray(images) / 2, axis=1).max(axis=1).mean()
    assert float(value) == pytest.approx(want, rel=1e-5), "the student says what the teacher says, and alpha is 1"


def test_the_protocol_tells_every_option_apart():
    before = supervised.protocol(supervised.Options())
    changes = dict(epochs=1, batch=2, learning_rate=3.0, warmup=0.4, weight_decay=5.0, clip=6.0, smoothing=0.7, shift=8)
    changes |= dict(teacher="fashion_vit", distillation="soft", alpha=0.9, temperature=9.0)
    assert set(changes) == set(before)
    for name, value in changes.items():
        assert supervised.protocol(supervised.Options(**{name: value})) != before
