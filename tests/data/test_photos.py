import importlib.util

import numpy as np
import pytest
from PIL import Image

from jvq.data import open_source
from jvq.data.photos import CALIBRATION, EVALUATION, SPLITS, Photos, View, cut, names


def test_no_photo_is_in_both_splits():
    assert not {*CALIBRATION} & {*EVALUATION}
    assert SPLITS["train"][0] == CALIBRATION
    assert SPLITS["test"][0] == EVALUATION
    assert len(set(names("train"))) == 80
    assert len(set(names("test"))) == 24
    assert names("test")[4:6] == ["chelsea 1", "chelsea 2"]


@pytest.mark.parametrize(
    ("view", "top", "left", "side"),
    [
        (View(1.0, 0.5, 0.5), 0, 2, 6),
        (View(1.0, 0.0, 1.0), 0, 4, 6),
        (View(0.5, 0.0, 0.0), 0, 0, 3),
        (View(0.5, 1.0, 1.0), 3, 7, 3),
    ],
)
def test_a_view_is_a_square_of_the_photo(rng, view, top, left, side):
    photo = rng.integers(0, 256, (6, 10, 3), np.uint8)
    want = photo[top : top + side, left : left + side]
    np.testing.assert_array_equal(cut(photo, view), want)
    np.testing.assert_array_equal(cut(photo, view._replace(mirrored=True)), want[:, ::-1])


@pytest.fixture
def wheel(tmp_path, monkeypatch, rng):
    """A scikit-image with photos of noise, one of them broken."""
    (tmp_path / "data").mkdir()
    for i, file in enumerate((*CALIBRATION, *EVALUATION)):
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(tmp_path / "data" / file)
    Image.fromarray(rng.integers(0, 256, (24, 24), np.uint8)).save(tmp_path / "data" / "camera.png")  # grey
    (tmp_path / "data" / "cell.png").write_bytes(b"no picture")
    spec = importlib.util.spec_from_file_location("skimage", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_a_source_of_views(wheel):
    source = open_source("photos", "test")
    assert (source.name, source.classes, len(source)) == ("photos", (), 24)
    first = source[0]
    assert first["label"] == -1
    assert first["image"].shape == (24, 24, 3)
    assert first["image"].dtype == np.uint8
    np.testing.assert_array_equal(source[4]["image"], source[4]["image"])
    assert len(open_source("photos", "train")) == 80


def test_a_broken_photo_is_named(wheel):
    with pytest.raises(ValueError, match=r"cell.png: not a readable image"):
        Photos("test")[23]


def test_without_scikit_image_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs scikit-image: pip install 'jvq\[photos\]'"):
        open_source("photos", "test")
    with pytest.raises(ValueError, match="no split 'tset'.*test"):
        open_source("photos", "tset")


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="needs jvq[photos]")
@pytest.mark.parametrize("split", SPLITS)
def test_every_photo_is_in_the_wheel(split):
    source = Photos(split)
    for i in range(0, len(source), len(source.views)):
        image = source[i]["image"]
        assert image.shape[0] == image.shape[1] >= 224
