"""Loaders: order, padding, masks, corrupt images, and streams that a seed determines."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from jvq.data import (
    CorruptImage,
    Fashion,
    ImageFolder,
    InMemory,
    Loader,
    Preprocess,
    Record,
    Source,
    batches,
    sample,
    train_batches,
    transforms,
)
from jvq.data.records import Some

Paint = Callable[..., Path]
GREY = Preprocess((2, 2), None, "bicubic", (0.0,), (1 / 255,))  # gives back the pixels themselves
RGB = Preprocess((4, 6), None, "bicubic", (0.0,) * 3, (1 / 255,) * 3)


def counting(n: int) -> InMemory:
    """``n`` images [2,2,1] of which number i is all i, with label 2 i."""
    images = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
    return InMemory("counting", images, np.arange(0, 2 * n, 2))


class OneByOne:
    """The same records without the gathering: what a folder or a TFDS set is to the loader."""

    def __init__(self, source: InMemory, corrupt: Sequence[int] = ()) -> None:
        self.name, self.classes, self._source, self._corrupt = source.name, source.classes, source, corrupt

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> Record:
        if i in self._corrupt:
            raise CorruptImage(f"number {i}")
        return self._source[i]


@pytest.fixture(params=["gathered", "one by one"])
def seven(request: pytest.FixtureRequest) -> Source:
    return counting(7) if request.param == "gathered" else OneByOne(counting(7))


# evaluation


def test_batches_come_in_order_and_the_last_is_padded(seven: Source) -> None:
    loader = batches(seven, GREY, 3)
    assert len(loader) == 3
    for _ in range(2):  # as often as one likes
        found = list(loader)
        assert [b["mask"].tolist() for b in found] == [[True] * 3, [True] * 3, [True, False, False]]
        assert [b["label"].tolist() for b in found] == [[0, 2, 4], [6, 8, 10], [12, 0, 0]]
        np.testing.assert_allclose(found[2]["image"][:, 0, 0, 0], [6, 0, 0], rtol=1e-6)
        assert {b["image"].shape for b in found} == {(3, 2, 2, 1)}
        assert {(b["image"].dtype, b["label"].dtype, b["mask"].dtype) for b in found} == {
            (np.dtype("float32"), np.dtype("int32"), np.dtype("bool"))
        }
    assert loader.skipped == []


def test_batches_of_chosen_images(seven: Source) -> None:
    found = list(batches(seven, GREY, 2, [5, 0, 5]))
    assert [b["label"].tolist() for b in found] == [[10, 0], [10, 0]]
    assert found[1]["mask"].tolist() == [True, False]
    assert list(batches(seven, GREY, 2, [])) == []


def test_corrupt_images_are_masked_out_and_listed(paint: Paint, tmp_path: Path) -> None:
    for i in range(5):
        paint(f"{i}.png", 10 * i)
    for i in (1, 4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    loader = batches(ImageFolder(tmp_path), RGB, 2)
    for _ in range(2):  # and are counted anew each time
        found = list(loader)
        assert [b["mask"].tolist() for b in found] == [[True, False], [True, True], [False, False]]
        assert [b["label"].tolist() for b in found] == [[-1, 0], [-1, -1], [0, 0]]
        assert [b["image"][:, 0, 0, 2].round(3).tolist() for b in found] == [[0, 0], [20, 30], [0, 0]]
        assert len(loader.skipped) == 2
        assert loader.skipped[0].startswith(f"{tmp_path}/1.png: not a readable image")
        assert loader.skipped[1].startswith(f"{tmp_path}/4.png: ")


def test_images_that_preprocessing_refuses_are_masked_out_and_listed(
    paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "LARGEST", 200)  # pixels; a row of 40 would have 640 at 4 on its short side
    for i in range(3):
        paint(f"{i}.png", 10 * i, (1, 40) if i == 1 else (4, 4))
    source, grown = ImageFolder(tmp_path), Preprocess((4, 4), 4, "bicubic", (0.0,) * 3, (1 / 255,) * 3)
    refused = "preprocess: an image of 1x40 pixels would be 4x160 at 4 on its short side"

    loader = batches(source, grown, 2)
    assert [b["mask"].tolist() for b in loader] == [[True, False], [True, False]]
    assert loader.skipped == [f"{tmp_path}/1.png: {refused}"]
    assert sorted(sample(source, grown, 2, 0).indices.tolist()) == [0, 2]
    with pytest.raises(CorruptImage, match=f"1.png: {refused}"):
        list(train_batches(source, 3, 0, 1, grown))

    part = batches(
        Some(OneByOne(InMemory("long", np.zeros((2, 1, 40, 3), np.uint8), np.arange(2))), np.array([1])), grown, 1
    )
    assert not next(iter(part))["mask"].any()
    assert part.skipped == [f"number 1 of source 'long': {refused}"]


def test_a_loader_that_is_left_early_starts_again(seven: Source) -> None:
    loader = batches(seven, GREY, 2)
    assert next(iter(loader))["label"].tolist() == next(iter(loader))["label"].tolist() == [0, 2]


def test_loader_mistakes(seven: Source) -> None:
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        Loader(seven, GREY, 0)
    with pytest.raises(ValueError, match="index 7 is outside source 'counting' of 7 images"):
        Loader(seven, GREY, 2, [0, 7])
    with pytest.raises(ValueError, match="index -1 is outside"):
        Loader(seven, GREY, 2, [-1])


def test_the_embedded_test_images_are_all_there(fashion: Fashion) -> None:
    preprocess = Preprocess((28, 28), None, "bicubic", (0.286,), (0.353,))
    found = list(batches(fashion, preprocess, 768))
    keep = np.concatenate([b["mask"] for b in found])
    images = np.concatenate([b["image"] for b in found])[keep]
    assert keep.sum() == 10_000
    assert (np.concatenate([b["label"] for b in found])[keep] == fashion.labels).all()
    assert ((images * 0.353 + 0.286) * 255).round().astype(np.uint8).tobytes() == fashion.images.tobytes()


# calibration


def test_a_sample_is_the_generators(seven: Source) -> None:
    drawn = sample(seven, GREY, 4, 11)
    assert drawn.indices.tolist() == np.random.default_rng(11).permutation(7)[:4].tolist()
    assert (drawn.labels == 2 * drawn.indices).all()
    np.testing.assert_allclose(drawn.images[:, 1, 1, 0], drawn.indices, rtol=1e-6)
    assert drawn.images.shape == (4, 2, 2, 1)
    assert sorted(sample(seven, GREY, 7, 3).indices) == list(range(7))
    assert sample(seven, GREY, 7, 3).indices.tolist() != sample(seven, GREY, 7, 4).indices.tolist()


def test_a_corrupt_image_is_replaced_by_the_next_drawn() -> None:
    order = np.random.default_rng(0).permutation(9)
    bad = order[[0, 2, 3]].tolist()
    drawn = sample(OneByOne(counting(9), bad), GREY, 4, 0)
    assert drawn.indices.tolist() == order[[1, 4, 5, 6]].tolist()
    assert (drawn.labels == 2 * drawn.indices).all()
    with pytest.raises(ValueError, match="wanted 7 images, source 'counting' has 6 of 9 that can be read"):
        sample(OneByOne(counting(9), bad), GREY, 7, 0)


def test_a_sample_that_cannot_be_is_refused(seven: Source) -> None:
    with pytest.raises(ValueError, match="wanted 8 images, source 'counting' has 7 of 7"):
        sample(seven, GREY, 8, 0)
    with pytest.raises(ValueError, match="wanted 0 images"):
        sample(seven, GREY, 0, 0)


def test_a_sample_with_nan_is_refused(seven: Source) -> None:
    class Broken(Preprocess):
        def _normalise(self, images: np.ndarray) -> np.ndarray:
            return np.where(images == 3, np.float32(np.nan), images.astype(np.float32))

    broken = Broken((2, 2), None, "bicubic", (0.0,), (1.0,))
    assert sample(
        InMemory("ones", np.ones((2, 2, 2, 1), np.uint8), np.zeros(2, int)), broken, 2, 0
    ).labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match="NaN or infinite values out of source 'counting' with .*Broken"):
        sample(seven, broken, 7, 0)


# training


def epochs_of(source: Source, batch: int, seed: int, epochs: int) -> list[list[int]]:
    labels = [b["label"].tolist() for b in train_batches(source, batch, seed, epochs)]
    assert {len(row) for row in labels} == {batch}
    return np.reshape(labels, (epochs, -1)).tolist()


def test_training_epochs_are_permutations_without_the_remainder(seven: Source) -> None:
    found = epochs_of(seven, 3, 0, 20)
    assert {len(epoch) for epoch in found} == {6}
    assert {len(set(epoch)) for epoch in found} == {6}
    assert set().union(*found) == set(range(0, 14, 2))  # what one epoch drops another has
    assert len({tuple(epoch) for epoch in found}) > 15


def test_training_images_go_with_their_labels_as_they_were_stored(seven: Source) -> None:
    for batch in train_batches(seven, 2, 5, 2):
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        assert (batch["image"] == batch["label"][:, None, None, None] // 2).all()
        assert batch["image"].shape == (2, 2, 2, 1)


def test_a_seed_determines_the_stream_and_neighbouring_seeds_share_no_epoch() -> None:
    source = counting(100)
    streams = {seed: epochs_of(source, 10, seed, 4) for seed in range(4)}
    assert epochs_of(source, 10, 2, 4) == streams[2] == epochs_of(OneByOne(source), 10, 2, 4)
    assert max(Counter(tuple(epoch) for stream in streams.values() for epoch in stream).values()) == 1


def test_training_on_images_of_different_sizes_needs_a_size(paint: Paint, tmp_path: Path) -> None:
    paint("a/0.png", 3, (4, 6))
    paint("b/0.png", 5, (8, 8))
    source = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match=r"images of source 'folder' differ, .*\(8, 8, 3\).*: give preprocess"):
        list(train_batches(source, 2, 0, 1))
    (batch,) = train_batches(source, 2, 0, 1, Preprocess((4, 4), 4, "bicubic", (9.0,) * 3, (9.0,) * 3))
    assert batch["image"].shape == (2, 4, 4, 3)
    assert sorted(zip(batch["label"].tolist(), batch["image"][:, 0, 0, 0].tolist(), strict=True)) == [(0, 3), (1, 5)]


def test_training_stops_at_a_corrupt_image() -> None:
    with pytest.raises(CorruptImage, match="number 3"):
        list(train_batches(OneByOne(counting(8), [3]), 4, 0, 1))


def test_a_training_batch_must_fit_the_source(seven: Source) -> None:
    for size in (0, 8):
        with pytest.raises(ValueError, match=rf"batch_size must be 1 to 7 \('counting'\), got {size}"):
            train_batches(seven, size, 0, 1)
