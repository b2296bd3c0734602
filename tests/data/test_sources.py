"""Sources: what they hold, and the one line that each mistake gives."""

import io
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jvq.data import CorruptImage, Fashion, ImageFolder, Npz, Preprocess, Source, Tfds, batches, open_source

Paint = Callable[..., Path]


def one_line(action: Callable[[], Any]) -> str:
    """The text of the ``ValueError`` that ``action`` raises, which must be a single line."""
    with pytest.raises(ValueError, match=".") as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    return text


# the embedded set


def test_fashion_is_a_source(fashion: Fashion) -> None:
    assert isinstance(fashion, Source)
    assert len(fashion) == 10_000
    assert fashion.classes[9] == "Ankle boot"
    record = fashion[0]
    assert record["image"].shape == (28, 28, 1)
    assert record["label"] == 9  # the first test image is an ankle boot
    rows = fashion.__getitems__(np.array([5, 0]))
    assert (rows["image"][1] == record["image"]).all()
    assert rows["label"].tolist() == [fashion[5]["label"], 9]


def test_fashion_has_two_splits() -> None:
    assert one_line(lambda: Fashion("tets")) == "source 'fashion': no split 'tets' (did you mean 'test'?)"


def test_importing_the_package_leaves_the_slow_ones_alone() -> None:
    code = "import sys, jvq.data; print(*({'grain', 'tensorflow', 'tensorflow_datasets'} & sys.modules.keys()), '.')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == ".\n"


# folders


def test_sub_folders_are_classes_in_sorted_order(paint: Paint, tmp_path: Path) -> None:
    paint("b/2.PNG", (1, 2, 3))
    paint("b/1.jpeg", 200)
    paint("a/deep/x.bmp", 7, (3, 5))
    (tmp_path / "aa").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "b" / "._1.jpeg").write_text("what macOS leaves behind")
    (tmp_path / ".cache").mkdir()
    source = ImageFolder(tmp_path)
    assert isinstance(source, Source)
    assert source.classes == ("a", "aa", "b")
    assert [Path(path).name for path in source.paths] == ["x.bmp", "1.jpeg", "2.PNG"]
    assert source.labels.tolist() == [0, 2, 2]
    assert (source[0]["image"] == np.full((3, 5, 3), 7)).all()
    assert source[2]["image"][0, 0].tolist() == [1, 2, 3]
    assert source[2]["label"] == 2


def test_a_flat_folder_has_no_labels(paint: Paint, tmp_path: Path) -> None:
    paint("2.webp", 9)
    paint("1.jpg", 9)
    (tmp_path / "empty").mkdir()
    source = ImageFolder(tmp_path)
    assert source.classes == ()
    assert [(Path(p).name, source[i]["label"]) for i, p in enumerate(source.paths)] == [("1.jpg", -1), ("2.webp", -1)]


def test_images_of_every_mode_come_as_rgb(tmp_path: Path) -> None:
    Image.new("1", (2, 2), 1).save(tmp_path / "1.png")
    Image.new("L", (2, 2), 255).save(tmp_path / "L.png")
    Image.new("LA", (2, 2), (255, 0)).save(tmp_path / "LA.png")
    Image.new("L", (2, 2), 255).convert("P").save(tmp_path / "P.png", transparency=bytes([0, 1]))
    Image.new("RGBA", (2, 2), (255, 255, 255, 3)).save(tmp_path / "RGBA.png")
    source = ImageFolder(tmp_path)
    assert len(source) == 5
    for i, path in enumerate(source.paths):
        assert (source[i]["image"] == np.full((2, 2, 3), 255)).all(), path


def test_grey_of_16_bits_keeps_its_high_byte(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0x40FF, np.uint16)).save(tmp_path / "deep.png")
    assert (ImageFolder(tmp_path)[0]["image"] == np.full((2, 2, 3), 0x40)).all()


def test_a_corrupt_image_is_named_when_it_is_read(paint: Paint, tmp_path: Path) -> None:
    whole = paint("whole.jpg", 100, (64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    png = paint("fine.png", 100).read_bytes()
    (tmp_path / "torn.png").write_bytes(png[:40] + b"\x00" * 8 + png[48:])
    source = ImageFolder(tmp_path)
    for i, path in enumerate(source.paths):
        if Path(path).stem in ("whole", "fine"):
            assert source[i]["image"].dtype == np.uint8
            continue
        with pytest.raises(CorruptImage, match=re.escape(f"{path}: not a readable image (")):
            source[i]


def test_a_missing_folder_is_said_with_what_is_spelt_alike(tmp_path: Path) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    text = one_line(lambda: ImageFolder(tmp_path / "image" / "train"))
    assert text == (f"source: no folder {tmp_path}/image/train: {tmp_path} has no 'image' (did you mean 'images'?)")
    assert "has no 'x' (there are: train)" in one_line(lambda: ImageFolder(tmp_path / "images" / "x"))


def test_folders_without_images_are_refused(tmp_path: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{tmp_path} is empty; images end in .jpg" in one_line(lambda: ImageFolder(tmp_path))
    (tmp_path / "a.tiff").touch()
    (tmp_path / "sub").mkdir()
    assert f"no image in {tmp_path}, got 1 files (.tiff) and 1 folders" in one_line(lambda: ImageFolder(tmp_path))
    assert "a.tiff is a file, not a folder" in one_line(lambda: ImageFolder(tmp_path / "a.tiff"))
    paint("top.png")
    paint("sub/low.png")
    assert "holds images ('top.png') beside classes ('sub')" in one_line(lambda: ImageFolder(tmp_path))

    def refuse(path: Any) -> Iterator[os.DirEntry[str]]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    assert f"cannot read {tmp_path} (Permission denied)" in one_line(lambda: ImageFolder(tmp_path))


def test_open_source_finds_the_split_of_a_folder(paint: Paint, tmp_path: Path) -> None:
    paint("set/train/a/0.png")
    paint("set/val/a/0.png")
    paint("set/val/a/1.png")
    paint("flat/0.png")
    assert len(open_source("folder", "train", tmp_path / "set")) == 1
    for split in ("test", "validation", "val"):
        assert len(open_source("folder", split, str(tmp_path / "set"))) == 2
    assert len(open_source("folder", "train", tmp_path / "flat")) == 1
    (tmp_path / "half" / "train").mkdir(parents=True)
    text = one_line(lambda: open_source("folder", "test", tmp_path / "half"))
    assert text == f"source 'folder': no split 'test' in {tmp_path}/half (there are: train)"
    assert "no split 'tran' (did you mean 'train'" in one_line(lambda: open_source("folder", "tran", tmp_path))


def test_open_source_knows_four_names() -> None:
    assert "source 'fashion': no split 'tset'" in one_line(lambda: open_source("fashion", "tset"))
    assert one_line(lambda: open_source("fashoin", "test")) == "no source 'fashoin' (did you mean 'fashion'?)"
    assert "no source 'tfds'" in one_line(lambda: open_source("tfds", "test"))
    assert one_line(lambda: open_source("folder", "test")) == "source 'folder' needs a directory: give dir"


# .npz


def test_npz_takes_both_spellings_and_grey_without_channel(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (5, 3, 4), dtype=np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    np.savez(tmp_path / "test.npz", image=images, labels=labels)
    np.savez_compressed(tmp_path / "bare.npz", images=images[..., None])
    source = open_source("npz", "val", tmp_path)
    assert source[3]["image"].shape == (3, 4, 1)
    assert (source[3]["image"][..., 0] == images[3]).all()
    assert [source[i]["label"] for i in range(len(source))] == [0, 1, 2, 3, 4]
    assert open_source("npz", "train", tmp_path / "bare.npz")[4]["label"] == -1


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"imges": np.zeros((1, 2, 2), np.uint8)}, "no array 'images' (did you mean 'imges'?)"),
        ({}, "no array 'images' (there are none)"),
        ({"image": np.zeros((1, 2, 2), np.float32)}, "got float32 (1, 2, 2, 1)"),
        ({"image": np.zeros((1, 2, 2, 2), np.uint8)}, "with c 1 or 3, got uint8 (1, 2, 2, 2)"),
        ({"image": np.zeros((0, 2, 2), np.uint8)}, "got uint8 (0, 2, 2, 1)"),
        (
            {"image": np.zeros((2, 2, 2), np.uint8), "lable": np.zeros(2, int)},
            "no array 'labels' (did you mean 'lable'?)",
        ),
        ({"image": np.zeros((2, 2, 2), np.uint8), "label": np.zeros(3, int)}, "integers [2], got int64 (3,)"),
        ({"image": np.zeros((2, 2, 2), np.uint8), "label": np.zeros(2)}, "integers [2], got float64 (2,)"),
        ({"image": np.zeros((1, 2, 2), np.uint8), "images": np.zeros(1)}, "both 'image' and 'images' are there"),
    ],
)
def test_npz_says_what_is_wrong_with_its_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    text = one_line(lambda: Npz(tmp_path / "x.npz"))
    assert text.startswith(f"source 'npz': {tmp_path}/x.npz: ")
    assert complaint in text


def test_npz_says_which_file_it_cannot_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", a=np.zeros(1))
    whole = (tmp_path / "train.npz").read_bytes()
    assert "no such file (did you mean 'train.npz'?)" in one_line(lambda: Npz(tmp_path / "trian.npz"))
    assert "no test.npz in " in one_line(lambda: open_source("npz", "test", tmp_path))
    np.save(tmp_path / "single.npy", np.zeros(3))
    for content in (b"", b"text", whole[:60], whole[:-30], (tmp_path / "single.npy").read_bytes()):
        (tmp_path / "bad.npz").write_bytes(content)
        assert "bad.npz: not a readable .npz (" in one_line(lambda: Npz(tmp_path / "bad.npz"))


# TensorFlow Datasets, without TensorFlow


def png(value: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (value, 0, 0)).save(file, "PNG")
    file.seek(0)
    return file


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the set "tiny_jvq" of four images, prepared as array_record."""
    import tensorflow_datasets as tfds

    class TinyJvq(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # this file is in no package, and looking for its package takes importlib_resources

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(4), "validation": self._generate_examples(2)}

        def _generate_examples(self, count: int) -> Any:
            for i in range(count):
                yield i, {"image": png(10 * i), "label": i % 2}

    data_dir = tmp_path_factory.mktemp("tfds")
    TinyJvq(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return data_dir


def test_tfds_reads_a_prepared_set(prepared: Path) -> None:
    source = open_source("tfds:tiny_jvq", "train", prepared)
    assert isinstance(source, Source)
    assert (source.name, source.classes, len(source)) == ("tfds:tiny_jvq", ("cat", "dog"), 4)
    values = sorted((int(source[i]["image"][0, 0, 0]), source[i]["label"]) for i in range(4))
    assert values == [(0, 0), (10, 1), (20, 0), (30, 1)]  # TFDS shuffles what it prepares
    assert source[0]["image"].shape == (5, 6, 3)
    assert len(Tfds("tiny_jvq", "train[:75%]+validation", prepared)) == 5
    assert "tensorflow" not in sys.modules


def test_another_process_opens_a_prepared_set_for_itself(prepared: Path) -> None:
    source = Tfds("tiny_jvq", "train[1:]", prepared)
    sent = pickle.dumps(source)
    assert len(sent) < 500
    again = pickle.loads(sent)
    assert (again.name, again.classes, len(again)) == (source.name, source.classes, 3)
    assert [again[i]["image"].tobytes() for i in range(3)] == [source[i]["image"].tobytes() for i in range(3)]


@pytest.mark.once
def test_a_process_reads_a_prepared_set(prepared: Path) -> None:
    source = open_source("tfds:tiny_jvq", "train", prepared)
    preprocess = Preprocess((5, 6), None, "bicubic", (0.0,) * 3, (1 / 255,) * 3)
    threads, processes = (list(batches(source, preprocess, 3, workers=n)) for n in (0, 1))
    for first, second in zip(threads, processes, strict=True):
        assert all((first[key] == second[key]).all() for key in ("image", "label", "mask"))
    assert sorted(np.concatenate([b["image"][b["mask"]][:, 0, 0, 0] for b in processes]).round()) == [0, 10, 20, 30]


def test_tfds_mistakes_are_one_line(prepared: Path, tmp_path: Path) -> None:
    text = one_line(lambda: Tfds("tiny_jvq", "validate", prepared))
    assert "source 'tfds:tiny_jvq': no split 'validate' in " in text
    assert text.endswith("(did you mean 'validation'?)")
    text = one_line(lambda: Tfds("minst", "test", tmp_path))
    assert f"source 'tfds:minst': no such set, nor in {tmp_path} (did you mean 'mnist'" in text
    text = one_line(lambda: Tfds("mnist", "test", tmp_path))
    assert "source 'tfds:mnist': split 'test' is not prepared as array_record in " in text
    assert (
        f"run tfds.builder('mnist', data_dir='{tmp_path}', file_format='array_record').download_and_prepare()" in text
    )


def test_tfds_reads_its_own_mock() -> None:
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=3):
        source = open_source("tfds:mnist", "test")
        assert len(source) == 3
        assert source[2]["image"].shape == (28, 28, 1)
        assert 0 <= source[2]["label"] < 10 == len(source.classes)
