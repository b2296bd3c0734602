"""Synthetic activations (spec 8) and quantisation written in NumPy, the oracle of all these tests."""

from types import SimpleNamespace

import numpy as np
import pytest


def channels(rng, images: int, tokens: int = 50, width: int = 64):
    """A source of [b n d]: log-normal scale per channel, log-normal jitter per image, an offset, 1.5 % outliers."""
    scale = np.exp(rng.normal(0, 1, width))
    scale[rng.choice(width, max(1, round(0.015 * width)), replace=False)] *= 15
    offset = rng.normal(0, 1, width) * scale

    def draw(images):
        jitter = np.exp(rng.normal(0, 0.5, (images, 1, width)))
        return (rng.normal(size=(images, tokens, width)) * scale * jitter + offset).astype(np.float32)

    return draw


def maps(rng, images: int, heads: int = 2, tokens: int = 20) -> np.ndarray:
    """Attention maps [b h q k], rows from nearly flat to nearly one-hot."""
    logits = rng.normal(size=(images, heads, tokens, tokens)) * np.exp(rng.normal(0.3, 0.8, (images, heads, tokens, 1)))
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (p / p.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def draw_channels():
    """``draw_channels(rng, images) -> draw``, and ``draw(images) -> [b n d]``: one source of images."""
    return channels


@pytest.fixture(scope="session")
def data() -> list[SimpleNamespace]:
    """Three draws of ``seen held`` [b n d] and ``seen_maps held_maps`` [b h q k], of eight and of four images."""
    draws = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        draw = channels(rng, 8)
        draws.append(SimpleNamespace(seen=draw(8), held=draw(4), seen_maps=maps(rng, 8), held_maps=maps(rng, 4)))
    return draws


def fake(x, scale, zero, bits):
    """Codes and values of uniform quantisation in float64."""
    scale, zero = np.asarray(scale, np.float64), np.asarray(zero, np.float64)
    codes = np.clip(np.round(np.asarray(x, np.float64) / scale) + zero, 0, 2**bits - 1)
    return codes, scale * (codes - zero)


def affine(lower, upper, bits):
    """Scale and zero point (spec 1) of bounds that are made to contain 0, float64."""
    lower, upper = np.minimum(np.asarray(lower, np.float64), 0), np.maximum(np.asarray(upper, np.float64), 0)
    scale = np.maximum((upper - lower) / (2**bits - 1), 1e-8)
    return scale, np.clip(np.round(-lower / scale), 0, 2**bits - 1)


def matches(got, x, scale, zero, bits) -> None:
    """Asserts that ``got`` is ``x`` quantised; where x / scale is at the edge of two codes either will do."""
    codes, value = fake(x, scale, zero, bits)
    scale = np.broadcast_to(np.asarray(scale, np.float64), codes.shape)
    steps = np.asarray(x, np.float64) / scale
    edge = np.abs(steps - np.floor(steps) - 0.5) < 2.0 ** (bits - 20)
    assert edge.mean() < 0.05 + 2.0 ** (bits - 18)
    off = np.abs(np.asarray(got, np.float64) - value) / scale
    assert off[~edge].max() < 2.0 ** (bits - 20)
    assert off.max() < 1 + 2.0 ** (bits - 20)


def error(got, x) -> float:
    """Squared error over squared norm."""
    x = np.asarray(x, np.float64)
    return float(np.square(np.asarray(got, np.float64) - x).sum() / np.square(x).sum())


@pytest.fixture(scope="session")
def oracle() -> SimpleNamespace:
    """``fake affine matches error``."""
    return SimpleNamespace(fake=fake, affine=affine, matches=matches, error=error)
