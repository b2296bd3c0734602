"""The most damaged images against sorting by hand."""

import numpy as np
import pytest
from scipy import special

from jvq.report.figures import damaged


def predictions(rng, count=5, classes=("cat", "dog", "cow"), labels=True):
    plain, got = (damaged.probabilities(rng.normal(0, 3, (count, 6))) for _ in range(2))
    images = [rng.uniform(0, 1, (9, 7, 3)) for _ in range(count)]
    named = rng.integers(0, 6, count) if labels else np.full(count, -1)
    kl = np.sort(rng.uniform(0, 4, count))[::-1]
    return damaged.Damaged("igq", images, np.arange(count) * 11, named, plain, got, kl, classes, 7, 250)


def test_flipped_decisions_come_first_then_the_largest_divergence(rng):
    flipped, kl = rng.integers(0, 2, 50).astype(bool), rng.uniform(0, 1, 50)
    want = sorted(range(50), key=lambda i: (not flipped[i], -kl[i]))
    assert damaged.order(flipped, kl, 8).tolist() == want[:8]
    assert damaged.order(flipped, kl, 99).tolist() == want


def test_probabilities_are_scipys(rng):
    logits = rng.normal(0, 50, (4, 9)).astype(np.float32)
    np.testing.assert_allclose(damaged.probabilities(logits), special.softmax(logits.astype(float), axis=1), atol=1e-12)


@pytest.mark.parametrize("label", [-1, 0, 7])
def test_both_predictions_and_the_label_are_always_shown(rng, label):
    for _ in range(20):
        plain, got = rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(8))
        shown = damaged.shown_classes(plain, got, label)
        assert len(shown) == len({*shown}) == damaged.CLASSES
        assert {int(plain.argmax()), int(got.argmax())} <= {*shown}
        assert label == -1 or label in shown
        assert sorted(shown, key=lambda i: -plain[i]) == shown
    assert damaged.shown_classes(np.array([0.3, 0.7]), np.array([0.6, 0.4]), 1) == [1, 0]


def test_classes_are_named_where_they_are_known(rng, drawn):
    texts = drawn(damaged.draw, predictions(rng))
    assert {"cat", "class 4"} & {*texts}
    assert {"float", "igq", "no. 0, KL " + f"{predictions(np.random.default_rng(0)).kl[0]:.2f}"} <= {*texts}
    assert not {"cat", "dog", "cow"} & {*drawn(damaged.draw, predictions(rng, classes=()))}


def test_the_caption_s_numbers(rng):
    data = predictions(rng)._replace(plain=np.eye(6)[[0, 0, 1, 2, 5]], got=np.eye(6)[[1, 1, 0, 2, 5]])
    said = damaged.caption(data)
    assert said.startswith("7 of 250 images (2.8 %) have another prediction")
    assert f"the 5 with the largest KL, flipped ones first, from {data.kl[0]:.2f} on" in said
    assert "2 of them go from cat to dog" in said
    assert "in bold" in said
    assert "in bold" not in damaged.caption(data._replace(labels=np.full(5, -1)))


@pytest.mark.parametrize("shape", [(28, 28, 1), (300, 200, 3), (5, 90, 1)])
def test_large_images_are_made_small_and_small_ones_stay(rng, shape):
    image = rng.uniform(-0.1, 1.1, shape)
    got = damaged.small(image)
    assert max(got.shape[:2]) <= damaged.PIXELS
    assert got.dtype == np.uint8
    if max(shape) <= damaged.PIXELS:
        np.testing.assert_array_equal(got, np.round(255 * image.clip(0, 1)).squeeze(-1))


def test_one_grey_image_alone_is_drawn(rng, drawn):
    drawn(damaged.draw, predictions(rng, 1)._replace(images=[rng.uniform(0, 1, (28, 28, 1))]))


def test_maps_are_drawn_beside_their_images(rng, drawn):
    images, maps = [rng.uniform(0, 1, (90, 90, 3)) for _ in range(4)], list(rng.uniform(0, 1, (4, 30, 30)))
    alike = np.array([-0.25, 0.1, 0.5, 0.75])
    data = damaged.DamagedMaps("igq", images, np.array([3, 1, 4, 0]), maps, maps[::-1], alike, 0.9)
    assert {"no. 4", "corr. -0.25", "float", "igq"} <= {*drawn(damaged.draw_maps, data)}
    said = damaged.caption_maps(data)
    assert "The 4 images" in said
    assert "-0.25 to 0.75; the mean of all images is 0.90" in said
