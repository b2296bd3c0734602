"""Random resized crops: torchvision's draws, and boxes that cut what they say."""

import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from jvq.data import CropPolicy, Preprocess
from jvq.data.crops import cut

GREY = Preprocess((6, 5), None, "bicubic", (0.0,), (1.0,))
RGB = Preprocess((6, 5), None, "bicubic", (0.0,) * 3, (1.0,) * 3)


def pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes in pixels; the draws are of whole ones."""
    exact = boxes.astype(np.float64) * np.array([*size, *size])
    np.testing.assert_allclose(exact, np.rint(exact), atol=1e-3)
    return np.rint(exact).astype(int)


def box(*edges: float) -> np.ndarray:
    return np.array(edges, np.float32)


# drawing


def one_by_one(policy: CropPolicy, seed: int, count: int, size: tuple[int, int]) -> tuple[list[list[int]], list[int]]:
    """torchvision's get_params, a crop and a try at a time, fed with the numbers that ``draw`` draws."""
    rng, (y, x) = np.random.default_rng(seed), size
    scale = rng.uniform(*policy.scale, (count, 10))
    logs = rng.uniform(math.log(policy.ratio[0]), math.log(policy.ratio[1]), (count, 10))
    shapes: list[tuple[int, int, bool]] = []
    for n in range(count):
        for t in range(10):
            area, aspect = y * x * scale[n, t], math.exp(logs[n, t])
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= x and 0 < h <= y:
                shapes.append((h, w, True))
                break
        else:
            if x / y < min(policy.ratio):
                w, h = x, round(x / min(policy.ratio))
            elif x / y > max(policy.ratio):
                w, h = round(y * max(policy.ratio)), y
            else:
                w, h = x, y
            shapes.append((h, w, False))
    tops = rng.integers(0, np.array([y - h + 1 for h, _, _ in shapes]))
    lefts = rng.integers(0, np.array([x - w + 1 for _, w, _ in shapes]))
    found = []
    for (h, w, fits), top, left in zip(shapes, tops.tolist(), lefts.tolist(), strict=True):
        found.append([top, left, h, w] if fits else [(y - h) // 2, (x - w) // 2, h, w])
    return found, [int(u < policy.flip) for u in rng.random(count)]


@pytest.mark.parametrize(
    ("policy", "size", "fallback"),
    [
        (CropPolicy(), (28, 28), 0),
        (CropPolicy(), (30, 200), 20),  # wide: many tries are too tall
        (CropPolicy(), (200, 30), 20),
        (CropPolicy((0.9, 1.0), (1.0, 1.0)), (20, 40), 200),  # none ever fits
        (CropPolicy((0.9, 1.0), (1.0, 1.0), 1.0), (40, 20), 200),
        (CropPolicy((1.0, 1.0), (1.0, 4.0), 0.0), (20, 40), 150),  # the whole image is allowed, and rarely drawn
        (CropPolicy(), (1, 1), 0),
        (CropPolicy(), (3, 2), 0),
    ],
)
def test_crops_are_those_of_torchvisions_loop(policy: CropPolicy, size: tuple[int, int], fallback: int) -> None:
    boxes, flips = policy.draw(np.random.default_rng(7), 200, size)
    assert (boxes.dtype, boxes.shape, flips.dtype, flips.shape) == (np.float32, (200, 4), np.uint8, (200,))
    want, want_flips = one_by_one(policy, 7, 200, size)
    assert pixels(boxes, size).tolist() == want
    assert flips.tolist() == want_flips
    most = max(Counter(map(tuple, want)).values())
    assert most >= fallback, "the case must be one where the centre is taken that often"


def test_a_crop_lies_in_the_image_and_has_the_area_and_ratio_of_the_policy() -> None:
    policy, size = CropPolicy((0.2, 0.5), (0.8, 1.25)), (200, 300)
    boxes, _ = policy.draw(np.random.default_rng(0), 4000, size)
    top, left, height, width = pixels(boxes, size).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 200).all()
    assert (left + width <= 300).all()
    area, ratio = height * width / 60_000, width / height
    assert 0.197 < area.min() < 0.21  # up to a pixel's rounding
    assert 0.49 < area.max() < 0.503
    assert 0.79 < ratio.min() < 0.82
    assert 1.22 < ratio.max() < 1.27
    assert abs(area.mean() - 0.35) < 0.01  # uniform
    assert abs(np.log(ratio).mean()) < 0.01  # as often wide as tall
    assert (top == 0).any()
    assert (top + height == 200).any()
    assert (left == 0).any()
    assert (left + width == 300).any()


@pytest.mark.parametrize("flip", [0.0, 0.25, 1.0])
def test_flips_are_as_frequent_as_the_policy_says(flip: float) -> None:
    _, flips = CropPolicy(flip=flip).draw(np.random.default_rng(1), 2000, (9, 9))
    assert abs(flips.mean() - flip) < (0.04 if 0 < flip < 1 else 1e-9)


def test_a_generator_determines_the_crops() -> None:
    first, again, other = (CropPolicy().draw(np.random.default_rng(seed), 5, (28, 28)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scale": (0.0, 0.5)}, r"scale must be .*, got \(0.0, 0.5\)"),
        ({"scale": (0.5, 0.4)}, r"scale .*\(0.5, 0.4\)"),
        ({"scale": (0.5, 1.1)}, r"scale .*\(0.5, 1.1\)"),
        ({"scale": (float("nan"), 1.0)}, "scale .*nan"),
        ({"ratio": (0.0, 1.0)}, r"ratio must be .*, got \(0.0, 1.0\)"),
        ({"ratio": (2.0, 1.0)}, r"ratio .*\(2.0, 1.0\)"),
        ({"ratio": (1.0, float("inf"))}, "ratio .*inf"),
        ({"flip": 1.5}, "flip must be a probability, got 1.5"),
        ({"flip": -0.1}, "flip .*-0.1"),
        ({"flip": float("nan")}, "flip .*nan"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(fields: dict[str, tuple[float, float]], said: str) -> None:
    with pytest.raises(ValueError, match=f"^crops: {said}") as caught:
        CropPolicy(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# cutting


def bilinear(image: np.ndarray, size: tuple[int, int], edges: tuple[float, float, float, float]) -> np.ndarray:
    """The crop [y,x,c] by sums over a tent filter, in loops: Pillow's resampling, from its documentation."""

    def rows(values: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
        scale = (high - low) / count
        out = np.zeros((count, *values.shape[1:]))
        for i in range(count):
            centre, total = low + (i + 0.5) * scale, 0.0
            for j in range(len(values)):
                weight = max(0.0, 1 - abs(j + 0.5 - centre) / max(scale, 1.0))
                out[i] += weight * values[j]
                total += weight
            out[i] /= total
        return out

    upper, start, lower, end = edges
    wide = np.swapaxes(rows(np.swapaxes(image.astype(np.float64), 0, 1), start, end, size[1]), 0, 1)
    return rows(np.rint(wide), upper, lower, size[0])


@pytest.mark.parametrize("where", [(0, 0, 1, 1), (0.25, 0.1, 0.5, 0.4), (0, 0, 0.1, 0.1), (0.9, 0.9, 0.1, 0.1)])
@pytest.mark.parametrize("preprocess", [GREY, RGB], ids=["grey", "rgb"])
def test_a_box_is_resized_bilinearly(
    where: tuple[float, ...], preprocess: Preprocess, rng: np.random.Generator
) -> None:
    image = rng.integers(0, 256, (20, 30, preprocess.channels), np.uint8)
    top, left, height, width = where
    edges = (20 * top, 30 * left, 20 * (top + height), 30 * (left + width))
    got = cut(image, box(*where), 0, preprocess)
    assert (got.dtype, got.shape) == (np.uint8, (6, 5, preprocess.channels))
    np.testing.assert_allclose(got, bilinear(image, (6, 5), edges), atol=1.01)
    mirrored = cut(image, box(*where), 1, preprocess)
    np.testing.assert_array_equal(mirrored, got[:, ::-1])
    assert (mirrored != got).any()


def test_a_box_of_whole_pixels_and_the_final_size_is_copied_exactly(rng: np.random.Generator) -> None:
    for y, x in [(13, 29), (37, 487), (333, 501)]:  # fractions that float32 does not hold
        image = rng.integers(0, 256, (y, x, 1), np.uint8)
        for top, left in [(0, 0), (3, 7), (y - 6, x - 5)]:
            got = cut(image, box(top / y, left / x, 6 / y, 5 / x), 0, GREY)
            np.testing.assert_array_equal(got, image[top : top + 6, left : left + 5])


def test_every_drawn_box_is_cut_as_the_pixels_that_it_was_drawn_as(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (37, 53, 1), np.uint8)
    boxes, _ = CropPolicy().draw(rng, 50, (37, 53))
    for at, (top, left, height, width) in zip(boxes, pixels(boxes, (37, 53)).tolist(), strict=True):
        edges = (left, top, left + width, top + height)
        want = Image.fromarray(image[..., 0]).resize((5, 6), Image.Resampling.BILINEAR, edges)
        np.testing.assert_array_equal(cut(image, at, 0, GREY)[..., 0], np.asarray(want))


def test_channels_are_the_models(rng: np.random.Generator) -> None:
    grey, colour = rng.integers(0, 256, (9, 9, 1), np.uint8), rng.integers(0, 256, (9, 9, 3), np.uint8)
    whole = box(0, 0, 1, 1)
    np.testing.assert_array_equal(cut(grey, whole, 0, RGB), cut(grey, whole, 0, GREY).repeat(3, axis=-1))
    luma = np.asarray(Image.fromarray(colour).convert("L"))[..., None]
    np.testing.assert_array_equal(cut(colour, whole, 1, GREY), cut(luma, whole, 1, GREY))
    with pytest.raises(ValueError, match="must have 1 or 3 channels, got 2"):
        cut(grey.repeat(2, axis=-1), whole, 0, RGB)


def test_a_box_may_be_thinner_than_a_pixel_at_the_very_edge(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (9, 9, 1), np.uint8)
    got = cut(image, box(0.9999, 0.9999, 1e-4, 1e-4), 0, GREY)
    np.testing.assert_allclose(got, int(image[-1, -1, 0]), atol=1)


@pytest.mark.parametrize(
    "where", [(-0.1, 0, 1, 1), (0, -0.1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0), (0.5, 0, 0.6, 1), (0, 0.5, 1, 0.6)]
)
def test_a_box_outside_the_image_is_refused(where: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"^crops: a box must lie in the image.*, got \["):
        cut(np.zeros((9, 9, 1), np.uint8), box(*where), 0, GREY)
    with pytest.raises(ValueError, match="nan"):
        cut(np.zeros((9, 9, 1), np.uint8), box(float("nan"), 0, 1, 1), 0, GREY)
