"""The embedded set is Fashion-MNIST, bit for bit, and its coder gives back whatever it is given."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from jvq.data import Fashion, embed, embedded
from jvq.data.pixel_model import CONTEXTS, FEATURES, PLACES, PixelModel

# sha256 of the published files' pixels and labels, one byte each
SHA256 = {
    "train": (
        "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
        "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    ),
    "test": (
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
}


def digests(source: Fashion) -> tuple[str, str]:
    parts = (source.images.tobytes(), source.labels.astype(np.uint8).tobytes())
    return hashlib.sha256(parts[0]).hexdigest(), hashlib.sha256(parts[1]).hexdigest()


def test_the_test_images_are_as_published(fashion: Fashion) -> None:
    assert fashion.images.shape == (10_000, 28, 28, 1)
    assert digests(fashion) == SHA256["test"]


@pytest.mark.slow
def test_the_training_images_are_as_published() -> None:
    source = Fashion("train")
    assert source.images.shape == (60_000, 28, 28, 1)
    assert digests(source) == SHA256["train"]


def test_the_licence_lies_beside_the_files() -> None:
    text = (Path(embedded.__file__).parents[1] / "assets" / "fashion_mnist" / "LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in text
    assert "The above copyright notice and this permission notice shall be included" in text


def test_the_coder_gives_back_any_images(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    for module in (embed, embedded):
        monkeypatch.setattr(module, "LANES", 10)
    labels = rng.permutation(np.arange(60) % 2).astype(np.uint8)
    images = rng.integers(0, 256, (60, PLACES), dtype=np.uint8)  # noise, then black, then the noise below black
    images[20:40] = 0
    images[40:, :400] = 0
    weights = embed.fit_weights(images, labels)
    words = embed.encode(images, labels, weights)
    decoded = embedded._decode(words, np.bincount(labels), weights)
    np.testing.assert_array_equal(decoded.T, images[np.argsort(labels, kind="stable")])
    assert 2 * len(words) < 0.6 * images.size  # half of the pixels are noise


def test_what_the_model_knows_of_a_place_comes_before_it(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (PLACES, 20), dtype=np.uint8)
    weights = rng.integers(-99, 99, (PLACES, 10, FEATURES)).astype(np.float32)
    other = pixels.copy()
    other[100:] = 255 - other[100:]
    seen = []
    for field in (pixels, other):
        model = PixelModel(np.full(10, 2), weights)
        for place in range(100):
            model.step(place)
            model.learn(place, field[place])
        model.step(100)
        seen.append((model.context, model.cumulative, model.flip(np.zeros(20, np.uint8))))
    for one, two in zip(*seen, strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_symbol_can_be_coded_in_every_context(rng: np.random.Generator) -> None:
    model = PixelModel(np.full(10, 2), np.zeros((PLACES, 10, FEATURES), np.float32))
    for place in range(29):
        model.step(place)
        assert model.cumulative.shape == (CONTEXTS, 257)
        assert (np.diff(model.cumulative.astype(np.int64)) > 0).all()
        assert (model.cumulative[:, [0, -1]] == [0, 1 << 16]).all()
        model.learn(place, rng.integers(0, 256, 20, dtype=np.uint8))
