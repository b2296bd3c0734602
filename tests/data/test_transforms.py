"""``Preprocess`` against the same steps written with Pillow alone."""

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jvq.data import Preprocess

GREY: dict[str, Any] = {"mean": (0.286,), "std": (0.353,)}
RGB: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def picture(y: int, x: int, c: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth gradient with noise, uint8 [y,x,c]: the filters of a resize and the place of a crop show in it."""
    noise = np.random.default_rng(seed).integers(0, 60, (y, x, c))
    ramp = np.linspace(0, 90, y)[:, None, None] + np.linspace(0, 90, x)[None, :, None] + 5 * np.arange(c)
    return (ramp + noise).astype(np.uint8)


def make(size: tuple[int, int], resize: int | None = None, how: str = "bicubic", **colours: Any) -> Preprocess:
    return Preprocess(size, resize, how, **(colours or RGB))


def by_pillow(image: Image.Image, size: tuple[int, int], resize: int, how: int, mean: Any, std: Any) -> np.ndarray:
    """Resize the short side, take the centre, normalise: on a Pillow image, with Pillow's own crop."""
    width, height = image.size
    factor = resize / min(width, height)
    image = image.resize((int(width * factor + 1e-9), int(height * factor + 1e-9)), how)
    left, top = round((image.width - size[1]) / 2), round((image.height - size[0]) / 2)
    image = image.crop((left, top, left + size[1], top + size[0]))
    values = np.array(image, np.float64).reshape(*size, -1)
    return (values / 255 - np.array(mean)) / np.array(std)


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("y", "x"), [(40, 60), (61, 40), (33, 33), (20, 27)])
def test_resize_and_crop_are_pillows(y: int, x: int, how: str) -> None:
    image = picture(y, x)
    got = make((24, 20), 28, how)(image)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    want = by_pillow(Image.fromarray(image), (24, 20), 28, filters[how], **RGB)
    assert got.shape == (24, 20, 3)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_filter_antialiases_and_the_two_filters_differ() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None].repeat(3, -1)
    assert (
        np.ptp(make((16, 16), 16).crop(stripes).astype(int)[:, 2:-2]) < 40
    )  # picking every fourth would give one of 0, 255
    assert (make((24, 24), 24).crop(picture(40, 40)) != make((24, 24), 24, "bilinear").crop(picture(40, 40))).any()


def test_an_odd_margin_is_halved_to_even_as_torchvision_does() -> None:
    image = picture(7, 9)
    assert (make((4, 4)).crop(image) == image[2:6, 2:6]).all()  # margins 3 and 5: halves 1.5 and 2.5 both go to 2


def test_an_image_smaller_than_the_crop_is_padded_with_black() -> None:
    image = picture(5, 6) | 1
    got = make((8, 4)).crop(image)
    assert (got[1:6] == image[:, 1:5]).all()
    assert not got[:1].any()
    assert not got[6:].any()


def test_grey_and_rgb_become_each_other() -> None:
    grey, colour = picture(8, 8, 1), picture(8, 8, 3)
    assert (make((8, 8)).crop(grey) == grey).all()
    luma = np.array(Image.fromarray(colour).convert("L"))[..., None]
    assert (make((8, 8), **GREY).crop(colour) == luma).all()
    assert make((6, 6), 7, **GREY)(colour).shape == (6, 6, 1)
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        make((8, 8))(picture(8, 8, 4))


def test_normalisation_of_an_image_that_needs_no_more_is_exact() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    got = make((16, 16), **GREY)(image)
    want = (np.arange(256, dtype=np.float32) / np.float32(255) - np.float32(0.286)) / np.float32(0.353)
    assert got.dtype == np.float32
    assert (got.ravel() == want).all()
    assert image[0, 1, 0] == 1  # the input was not written to


@pytest.mark.parametrize("preprocess", [make((9, 9)), make((6, 7), 8), make((9, 9), 9), make((9, 9), **GREY)])
def test_a_batch_is_its_images(preprocess: Preprocess) -> None:
    images = np.stack([picture(9, 9, seed=seed) for seed in range(3)])
    assert (preprocess.batch(images) == np.stack([preprocess(image) for image in images])).all()


def test_arithmetic_is_said_only_where_nothing_moves() -> None:
    assert make((9, 9)).is_arithmetic((9, 9, 3))
    assert make((9, 9), 9).is_arithmetic((9, 9, 3))
    assert not make((9, 9)).is_arithmetic((9, 9, 1))
    assert not make((9, 9), 12).is_arithmetic((9, 9, 3))
    assert not make((9, 9)).is_arithmetic((9, 10, 3))


def test_it_goes_through_json_and_back() -> None:
    for preprocess in (make((24, 20), 28, "bilinear"), make((28, 28), **GREY)):
        assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


def test_a_wrong_key_is_named_with_the_nearest() -> None:
    values = make((8, 8)).to_dict()
    with pytest.raises(ValueError, match=r"no key 'interpolate' \(did you mean 'interpolation'\?\)"):
        Preprocess.from_dict(values | {"interpolate": "bicubic"})
    del values["std"]
    with pytest.raises(ValueError, match="no 'std' in .*mean"):
        Preprocess.from_dict(values)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"size": (0, 8)}, r"size must be two positive numbers \(y, x\), got \(0, 8\)"),
        ({"resize": 0}, "resize must be a positive number of pixels or None, got 0"),
        ({"interpolation": "bicubik"}, r"no interpolation 'bicubik' \(did you mean 'bicubic'"),
        ({"mean": (0.5,)}, "mean and std must both have 1 or 3 channels"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "mean and std must both have 1 or 3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean must be finite"),
    ],
)
def test_fields_that_cannot_be_are_refused(change: dict[str, Any], complaint: str) -> None:
    fields: dict[str, Any] = {"size": (8, 8), "resize": None, "interpolation": "bicubic", **RGB}
    Preprocess(**fields)
    with pytest.raises(ValueError, match=complaint):
        Preprocess(**fields | change)
