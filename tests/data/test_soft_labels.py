"""Soft labels: what is stored is what the teacher said, damage is found, and batches keep crops and labels together."""

import dataclasses
import hashlib
import json
import math
import os
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.data import (
    CorruptImage,
    CropPolicy,
    InMemory,
    Preprocess,
    Record,
    SoftLabels,
    Source,
    crop_batches,
    label_folder,
    soft_labels,
)
from jvq.data.crops import cut
from jvq.data.soft_labels import passes, recover, steps, write

GREY = Preprocess((5, 4), None, "bicubic", (0.3,), (0.25,))
CLASSES, CROPS, KEEP, SHARD, BATCH, IMAGES = 7, 6, 3, 4, 8, 11
SHARDS = 3  # of 4, 4 and 3 images
WEIGHTS = np.random.default_rng(42).normal(size=(20, CLASSES)).astype(np.float32)


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


class Said:
    """A linear teacher that keeps the shapes of its batches and fails after ``calls``."""

    def __init__(self, calls: float = math.inf) -> None:
        self.calls, self.shapes = calls, list[tuple[int, ...]]()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if len(self.shapes) >= self.calls:
            raise KeyboardInterrupt
        self.shapes.append(images.shape)
        return logits(images)


def logits(images: np.ndarray) -> np.ndarray:
    return (images.reshape(len(images), 20, 1) * WEIGHTS).sum(axis=1)  # row by row: no batch changes a row


def pictures(n: int = IMAGES, seed: int = 0) -> InMemory:
    images = np.random.default_rng(seed).integers(0, 256, (n, 12, 15, 1), np.uint8)
    return InMemory("noise", images, np.arange(n) % 4 * 10)


def make(folder: Path, source: Source, teacher: Callable[[np.ndarray], Any] = logits, **changed: Any) -> SoftLabels:
    given = dict(
        teacher_name="linear", teacher_digest="abc", classes=CLASSES, crops=CROPS, keep=KEEP, shard=SHARD, batch=BATCH
    )
    preprocess = changed.pop("preprocess", GREY)
    return write(folder, source, preprocess, teacher, **(given | changed))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(params=["gathered", "one by one"])
def source(request: pytest.FixtureRequest) -> Source:
    return pictures() if request.param == "gathered" else OneByOne(pictures())


@pytest.fixture
def labels(tmp_path: Path) -> SoftLabels:
    return make(tmp_path / "labels", pictures())


# what is stored


def test_a_record_is_what_the_teacher_says_of_the_crops(tmp_path: Path, source: Source) -> None:
    policy = CropPolicy((0.3, 0.7), flip=0.4)
    labels = make(tmp_path, source, seed=5, policy=policy)
    assert (len(labels), labels.classes, labels.crops, labels.keep) == (IMAGES, CLASSES, CROPS, KEEP)
    assert labels.indices.tolist() == list(range(IMAGES))
    flipped = 0
    for i in range(IMAGES):
        image = source[i]["image"]
        record = labels.record(i, image)
        boxes, flips = policy.draw(np.random.default_rng([5, i]), CROPS, (12, 15))
        np.testing.assert_array_equal(record["box"], boxes)
        np.testing.assert_array_equal(record["flip"], flips)
        flipped += int(flips.sum())
        for r in range(CROPS):
            seen = cut(image, boxes[r], flips[r], GREY).astype(np.float64) / 255
            z = logits(((seen - 0.3) / 0.25)[None].astype(np.float32))[0].tolist()
            total = sum(math.exp(v) for v in z)
            best = sorted(range(CLASSES), key=lambda c, z=z: -z[c])[:KEEP]
            assert record["index"][r].tolist() == best
            np.testing.assert_allclose(record["value"][r], [math.exp(z[c]) / total for c in best], rtol=6e-4)
    assert 0 < flipped < IMAGES * CROPS


def test_the_folder_is_as_documented(tmp_path: Path) -> None:
    folder = make(tmp_path / "a" / "b", pictures()).folder
    assert list(contents(folder)) == ["00000.npy", "00001.npy", "00002.npy", "header.json", "shards.jsonl"]
    lines = [json.loads(line) for line in (folder / "shards.jsonl").read_text().splitlines()]
    assert [(line["shard"], line["rows"]) for line in lines] == [(0, 4), (1, 4), (2, 3)]
    assert [line["sha256"] for line in lines] == [
        hashlib.sha256((folder / f"0000{k}.npy").read_bytes()).hexdigest() for k in range(3)
    ]
    shard = np.load(folder / "00002.npy")
    fields = {name: (shard.dtype[name].base.str, shard.dtype[name].shape) for name in shard.dtype.names}
    assert fields == {
        "box": ("<f4", (CROPS, 4)),
        "flip": ("|u1", (CROPS,)),
        "index": ("<u2", (CROPS, KEEP)),
        "value": ("<f2", (CROPS, KEEP)),
        "crc": ("<u4", ()),
    }
    assert len(shard) == 3
    header = json.loads((folder / "header.json").read_text())
    assert set(header) == label_folder.FIELDS
    fingerprint = header.pop("fingerprint")
    assert len(fingerprint) == 16
    assert header == {
        "schema": 1,
        "source": "noise",
        "of": 11,
        "images": 11,
        "chosen": "all",
        "classes": 7,
        "crops": 6,
        "keep": 3,
        "policy": {"scale": [0.08, 0.936], "ratio": [3 / 4, 4 / 3], "flip": 0.5},
        "preprocess": GREY.to_dict(),
        "seed": 0,
        "teacher": "linear",
        "digest": "abc",
        "shard": 4,
    }


def test_the_teacher_always_gets_as_many_images(tmp_path: Path) -> None:
    teacher = Said()
    make(tmp_path, pictures(), teacher, batch=7)
    assert set(teacher.shapes) == {(7, 5, 4, 1)}
    assert len(teacher.shapes) == 4 + 4 + 3  # ceil(24 / 7) twice, ceil(18 / 7)
    for batch in (1, 100):
        other = make(tmp_path / str(batch), pictures(), batch=batch).folder
        for name in ("00000.npy", "00001.npy", "00002.npy"):
            assert (other / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_jax_teacher_of_few_bits_serves_too(tmp_path: Path) -> None:
    labels = make(tmp_path, pictures(), jax.jit(lambda images: jnp.asarray(logits_of_jax(images), jnp.bfloat16)))
    value = labels.record(0, pictures()[0]["image"])["value"]
    assert (np.diff(value.astype(float), axis=1) <= 0).all()
    assert (value[:, 0] > 1 / CLASSES).all()


def logits_of_jax(images: jax.Array) -> jax.Array:
    return (images.reshape(len(images), 20, 1) * jnp.asarray(WEIGHTS)[None]).sum(axis=1)


def test_images_of_any_size_are_cut_to_the_models_and_only_normalised(tmp_path: Path, rng: np.random.Generator) -> None:
    class Mixed:
        name, classes = "mixed", ()

        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> Record:
            made = np.random.default_rng(i).integers(0, 256, (9 + i, 20 - 3 * i, 1), np.uint8)
            return {"image": made, "label": i}

    seen = []

    def teacher(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return np.tile(np.arange(2, dtype=np.float32), (len(images), 1))

    rgb = Preprocess((4, 4), 6, "bicubic", (0.5,) * 3, (0.5,) * 3)  # evaluation would make 6 and cut 4 out of it
    labels = make(tmp_path, Mixed(), teacher, preprocess=rgb, classes=2, keep=2, crops=2, batch=2)
    for i in range(3):
        record = labels.record(i, Mixed()[i]["image"])
        for r in range(2):
            crop = cut(Mixed()[i]["image"], record["box"][r], record["flip"][r], rgb)
            np.testing.assert_allclose(seen[i][r], crop / 127.5 - 1, atol=1e-6)
    (batch,) = crop_batches(Mixed(), labels, rgb, 6, 2, 2, 0)
    assert batch["image"].shape == (6, 4, 4, 3)
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1, 2, 2]


def test_chosen_images_have_the_crops_that_they_have_among_all(tmp_path: Path) -> None:
    source, chosen = pictures(), [9, 2, 5, 3, 0]
    every, some = make(tmp_path / "all", source), make(tmp_path / "some", source, indices=chosen)
    assert len(some) == 5
    assert some.indices.tolist() == chosen
    for position, i in enumerate(chosen):
        np.testing.assert_array_equal(some.record(position, source[i]["image"]), every.record(i, source[i]["image"]))
    found = [b["label"].tolist() for b in crop_batches(source, some, GREY, 5, 1, 1, 0)]
    assert sorted(found[0]) == sorted(source.labels[chosen].tolist())
    with pytest.raises(ValueError, match="holds others: images: stored 5, wanted 11; chosen: stored .*, wanted all"):
        make(tmp_path / "some", source)
    with pytest.raises(ValueError, match="holds others: chosen: stored .*, wanted"):
        make(tmp_path / "some", source, indices=[9, 2, 5, 4, 0])
    np.save(tmp_path / "some" / "chosen.npy", np.array([9, 2, 5, 3, 1]))
    with pytest.raises(ValueError, match="chosen.npy is not as it was written: it holds other numbers"):
        SoftLabels.open(tmp_path / "some", source)
    (tmp_path / "some" / "chosen.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="chosen.npy is not as it was written"):
        SoftLabels.open(tmp_path / "some", source)
    assert make(tmp_path / "some", source, indices=chosen).indices.tolist() == chosen


def test_k3_the_stored_crop_gives_the_stored_label_again(labels: SoftLabels) -> None:
    for batch in crop_batches(pictures(), labels, GREY, 6, 2, 2, 0):
        seen = (batch["image"].astype(np.float32) / 255 - np.float32(0.3)) / np.float32(0.25)
        z = logits(seen).astype(np.float64)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        assert (p.argmax(axis=1) == batch["index"][:, 0]).all()
        np.testing.assert_allclose(np.take_along_axis(p, batch["index"], axis=1), batch["value"], atol=3e-4)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"classes": 65_537}, r"classes must be 1 to 65536 \(an index has 16 bits\), got 65537"),
        ({"classes": 0}, "classes must be .*, got 0"),
        ({"keep": 8}, "keep must be 1 to 7, the classes, got 8"),
        ({"keep": 0}, "keep must be .*, got 0"),
        ({"crops": 0}, "crops must be positive, got 0"),
        ({"shard": 0}, "shard must be positive, got 0"),
        ({"batch": -1}, "batch must be positive, got -1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"indices": [3, 11]}, "index 11 is outside source 'noise' of 11 images"),
        ({"indices": [-1]}, "index -1 is outside"),
        ({"indices": []}, "source 'noise' has no image to label"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    teacher = Said()
    with pytest.raises(ValueError, match=f"^soft labels: {said}"):
        make(tmp_path / "new", pictures(), teacher, **changed)
    assert not teacher.shapes
    assert not (tmp_path / "new").exists()


def test_the_largest_index_is_stored(tmp_path: Path) -> None:
    def teacher(images: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.where(np.arange(65_536) == 65_535, np.float32(30), np.float32(0)), (1, 65_536))

    labels = make(tmp_path, pictures(1), teacher, classes=65_536, keep=1, crops=1, batch=1)
    record = labels.record(0, pictures(1)[0]["image"])
    assert record["index"].tolist() == [[65_535]]


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the teacher must give \(8, 7\), got \(8, 6\)"):
        make(tmp_path, pictures(), lambda images: logits(images)[:, :6])
    nan = Said()

    def later(images: np.ndarray) -> np.ndarray:
        return nan(images) if len(nan.shapes) < 4 else np.full((BATCH, CLASSES), np.nan)

    with pytest.raises(ValueError, match="the teacher's logits are not finite at image 5 or soon after"):
        make(tmp_path, pictures(), later)  # the fifth batch: crops 8 to 15 of the second shard, whose image 4 has 6


def test_an_image_that_cannot_be_read_stops_the_writing(tmp_path: Path) -> None:
    with pytest.raises(CorruptImage, match="number 7"):
        make(tmp_path, OneByOne(pictures(40), [7]))  # not one of the 16 that the header's fingerprint reads
    assert [line["shard"] for line in map(json.loads, (tmp_path / "shards.jsonl").read_text().splitlines())] == [0]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be a folder: File exists"):
        make(tmp_path / "file", pictures())


# going on


@pytest.mark.parametrize("calls", range(9))  # a shard takes 3 batches, the last one too
def test_killed_anywhere_it_goes_on_to_the_same_files(tmp_path: Path, calls: int) -> None:
    make(tmp_path / "whole", pictures())
    teacher, rest = Said(calls), Said()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed", pictures(), teacher)
    with pytest.raises(ValueError, match=f"has {calls // 3} of 3 shards: write again, it goes on there"):
        SoftLabels.open(tmp_path / "killed", pictures())
    make(tmp_path / "killed", pictures(), rest)
    assert len(rest.shapes) == 9 - calls // 3 * 3
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["header.json", "00000.npy", "00001.npy", "shards.jsonl"])
def test_a_file_is_whole_or_not_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "whole", pictures())
    real = os.replace

    def killed(part: Path, to: Path) -> None:
        if to.name == name:
            part.write_bytes(part.read_bytes()[:20])  # nothing but the temporary file may be in such a state
            raise KeyboardInterrupt
        real(part, to)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "killed", pictures())
    left = contents(tmp_path / "killed")
    assert f"{name}.part" in left
    assert name not in left
    with pytest.raises(ValueError, match="no header.json|of 3 shards"):
        SoftLabels.open(tmp_path / "killed", pictures())
    make(tmp_path / "killed", pictures())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_finished_shards_are_kept_and_shown_as_such(labels: SoftLabels) -> None:
    teacher, shown = Said(0), []

    def track(items: Any, text: str) -> Any:
        shown.append((list(items), text))
        return items

    before = contents(labels.folder)
    make(labels.folder, pictures(), teacher, track=track)
    assert shown == [([], "labelling crops")]
    (labels.folder / "00001.npy").unlink()
    make(labels.folder, pictures(), track=track)
    assert shown[1] == ([1], "labelling crops")
    assert contents(labels.folder) == before


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[-20] ^= 1
    path.write_bytes(content[:-1] if how == "truncated" else content)


@pytest.mark.parametrize("how", ["flipped", "truncated"])
def test_a_damaged_shard_is_found_and_made_again(labels: SoftLabels, how: str) -> None:
    before, path = contents(labels.folder), labels.folder / "00001.npy"
    damaged(path, how)
    assert path.read_bytes() != before[path.name]
    with pytest.raises(ValueError, match="^soft labels: .*/00001.npy is not as it was written: its SHA-256 is another"):
        SoftLabels.open(labels.folder, pictures())
    teacher = Said()
    make(labels.folder, pictures(), teacher)
    assert len(teacher.shapes) == 3
    assert contents(labels.folder) == before


def test_a_shard_is_verified_when_it_is_first_touched_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, looked, real = pictures(40), [], label_folder.digest
    folder = make(tmp_path, source, shard=1, crops=1).folder
    monkeypatch.setattr(label_folder, "digest", lambda path: looked.append(path.name) or real(path))
    monkeypatch.setattr(soft_labels, "OPEN", 2)  # shards are mapped and let go all the time
    labels = SoftLabels.open(folder, source)
    assert len(looked) == len(set(looked)) == 16
    unseen = next(k for k in range(40) if f"{k:05d}.npy" not in looked)
    damaged(folder / f"{unseen:05d}.npy", "flipped")
    for k in [*range(40), *range(40)]:
        if k == unseen:
            with pytest.raises(ValueError, match=f"{unseen:05d}.npy is not as it was written"):
                labels.record(k, source[k]["image"])
        else:
            labels.record(k, source[k]["image"])
    assert set(Counter(name for name in looked if name != f"{unseen:05d}.npy").values()) == {1}
    assert isinstance(labels._map(0), np.memmap)


def test_a_shard_of_another_form_is_refused(labels: SoftLabels) -> None:
    path, lines = labels.folder / "00000.npy", labels.folder / "shards.jsonl"
    old = label_folder.digest(path)
    np.save(path, np.load(path)["box"])
    lines.write_text(lines.read_text().replace(old, label_folder.digest(path)))
    with pytest.raises(ValueError, match="00000.npy must hold 4 of .*, got float32"):
        SoftLabels.open(labels.folder, pictures())


def test_a_folder_with_another_header_says_what_differs(labels: SoftLabels) -> None:
    before, teacher = contents(labels.folder), Said()
    for changed, said in [
        ({"seed": 3}, "seed: stored 0, wanted 3"),
        ({"keep": 2, "crops": 9}, "crops: stored 6, wanted 9; keep: stored 3, wanted 2"),
        ({"teacher_name": "other"}, "teacher: stored linear, wanted other"),
        ({"teacher_digest": "x"}, "digest: stored abc, wanted x"),
        ({"shard": 5}, "shard: stored 4, wanted 5"),
        ({"classes": 5}, "classes: stored 7, wanted 5"),
        ({"policy": CropPolicy(flip=0.1)}, "policy: stored {.*'flip': 0.5}, wanted {.*'flip': 0.1}"),
        ({"preprocess": dataclasses.replace(GREY, mean=(0.1,))}, "preprocess: stored .*, wanted .*"),
    ]:
        with pytest.raises(ValueError, match=f"^soft labels: {labels.folder} holds others: {said}$"):
            make(labels.folder, pictures(), teacher, **changed)
    with pytest.raises(ValueError, match="holds others: fingerprint: stored .*, wanted .*"):
        make(labels.folder, pictures(seed=1), teacher)
    with pytest.raises(ValueError, match="holds others: of: stored 11, wanted 9; images: stored 11, wanted 9; fing"):
        make(labels.folder, pictures(9), teacher)
    assert not teacher.shapes
    assert contents(labels.folder) == before


def test_shards_without_a_header_are_not_trusted(labels: SoftLabels) -> None:
    (labels.folder / "header.json").unlink()
    teacher = Said()
    make(labels.folder, pictures(), teacher, seed=1)
    assert len(teacher.shapes) == 9


@pytest.mark.parametrize(
    ("line", "there"),
    [
        ('{"shard": 1, "ro', 1),
        ("7", 1),
        ('{"shard": 1}', 1),
        ('{"shard": 1, "rows": 3, "sha256": "x"}', 2),
        ('{"shard": -1, "rows": 4, "sha256": "x"}', 2),
        ('{"shard": 3, "rows": 4, "sha256": "x"}', 2),
    ],
)
def test_a_list_of_shards_that_is_damaged_counts_up_to_there(labels: SoftLabels, line: str, there: int) -> None:
    path = labels.folder / "shards.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(ValueError, match=f"has {there} of 3 shards"):
        SoftLabels.open(labels.folder, pictures())
    before = contents(labels.folder)
    assert (
        contents(make(labels.folder, pictures()).folder).items()
        >= {name: content for name, content in before.items() if name != "shards.jsonl"}.items()
    )


# opening


def test_a_folder_that_is_not_there_or_not_one_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"no header.json in {folder}: no labels were written there"):
            SoftLabels.open(folder, pictures())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: {**h, "schema": 2}, "has schema 2, this version reads 1"),
        (lambda h: {}, "has schema None, this version reads 1"),
        (lambda h: {k: v for k, v in h.items() if k not in ("keep", "of")}, "header.json has no keep, of"),
        (lambda h: [h], "header.json must hold a JSON object, got list"),
    ],
)
def test_an_unknown_header_is_refused(labels: SoftLabels, change: Callable[[Any], Any], said: str) -> None:
    path = labels.folder / "header.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=f"^soft labels: .*{said}$"):
        SoftLabels.open(labels.folder, pictures())


def test_a_header_that_is_cut_off_is_refused(labels: SoftLabels) -> None:
    path = labels.folder / "header.json"
    path.write_text(path.read_text()[:50])
    for use in (SoftLabels.open, make):
        with pytest.raises(ValueError, match="header.json cannot be read: "):
            use(labels.folder, pictures())


def test_labels_of_other_images_are_refused(labels: SoftLabels) -> None:
    with pytest.raises(ValueError, match="is of a source of 11 images, source 'noise' has 12"):
        SoftLabels.open(labels.folder, pictures(12))
    with pytest.raises(ValueError, match="is of 11 images, got 12"):
        crop_batches(pictures(12), labels, GREY, 4, 2, 2, 0)
    other = pictures()
    other.images = other.images.copy()
    other.images[10, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="is of other images: image 10 has CRC-32 [0-9a-f]{8}, the labels are of one"):
        SoftLabels.open(labels.folder, other)


def test_an_image_that_opening_does_not_look_at_is_compared_when_it_is_used(tmp_path: Path) -> None:
    source = pictures(40)
    make(tmp_path, source, crops=2)
    looked = set(np.linspace(0, 39, 16).round().astype(int).tolist())
    assert {0, 39} <= looked
    odd = min(set(range(40)) - looked)
    source.images = source.images.copy()
    source.images[odd, 3, 3, 0] ^= 1
    labels = SoftLabels.open(tmp_path, source)
    with pytest.raises(ValueError, match=f"other images: image {odd} has CRC-32"):
        list(crop_batches(source, labels, GREY, 4, 2, 2, 0))


def test_an_image_that_cannot_be_read_stops_the_batches(labels: SoftLabels) -> None:
    with pytest.raises(CorruptImage, match="number 7"):
        list(crop_batches(OneByOne(pictures(), [7]), labels, GREY, 4, 2, 2, 0))


# recovering

jitted = jax.jit(recover, static_argnums=(2, 3))


def whole(index: np.ndarray, value: np.ndarray, classes: int, mode: str) -> np.ndarray:
    """The labels by their definition, a class at a time, in float64."""
    out = np.zeros((len(index), classes))
    for n, (places, shares) in enumerate(zip(index.tolist(), value.astype(np.float64).tolist(), strict=True)):
        rest = 1 - sum(shares)
        for c in range(classes):
            if mode == "hard":
                out[n, c] = c == places[shares.index(max(shares))]
            elif c in places:
                share = shares[places.index(c)]
                scaled = mode == "renorm" or len(places) == classes or rest < 0
                out[n, c] = share / sum(shares) if scaled else share
            elif mode == "smooth":
                out[n, c] = max(rest, 0.0) / (classes - len(places))
    return out


@pytest.mark.parametrize(("classes", "keep"), [(1, 1), (9, 4), (6, 6), (6, 5)])
@pytest.mark.parametrize("mode", ["smooth", "renorm", "hard"])
def test_k1_recovered_labels_are_their_definition_and_sum_to_1(
    mode: str, classes: int, keep: int, rng: np.random.Generator
) -> None:
    z = rng.normal(size=(500, classes)) * np.linspace(0, 12, 500)[:, None]  # from uniform to all but certain
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    index = np.argsort(-p, axis=1)[:, :keep].astype(np.int32)
    value = np.take_along_axis(p, index, axis=1).astype(np.float16)
    got = np.asarray(jitted(index, value, classes, mode))
    assert (got.shape, got.dtype) == ((500, classes), np.float32)
    np.testing.assert_allclose(got, whole(index, value, classes, mode), atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-6)
    assert (got >= 0).all()
    if classes > 1:
        above = value.astype(np.float64).sum(axis=1) > 1
        assert 10 < above.sum() < 490, "both sides of 1 must be among the cases"


def test_k1_the_stored_are_kept_exactly_and_the_others_equal() -> None:
    value = np.array([[0.6, 0.2, 0.1, 0.03, 0.02]], np.float32)
    index = np.array([[7, 999, 0, 41, 3]], np.uint16)
    got = np.asarray(jitted(index, value, 1000, "smooth"))[0]
    assert got[index[0]].tolist() == value[0].tolist()
    others = np.delete(got, index[0])
    assert len(set(others.tolist())) == 1
    np.testing.assert_allclose(others[0], 0.05 / 995, rtol=1e-5)


def test_k1_values_whose_rounded_sum_is_above_1_leave_the_others_nothing() -> None:
    value = np.array([[0.9, 0.1002]], np.float16)
    assert value.astype(float).sum() > 1.0001
    got = np.asarray(jitted(np.array([[2, 0]]), value, 4, "smooth"))[0]
    assert got[1] == got[3] == 0
    np.testing.assert_allclose(got.sum(), 1, atol=1e-7)
    np.testing.assert_allclose(got[[2, 0]], value[0], rtol=3e-4)


def test_k2_cross_entropy_is_least_at_the_label_itself(rng: np.random.Generator) -> None:
    value = np.array([[0.6, 0.2, 0.1, 0.03, 0.02]], np.float32)
    label = jitted(np.arange(5)[None], value, 1000, "smooth")

    @jax.jit
    def both(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda z: -(label * jax.nn.log_softmax(z)).sum(axis=1).mean())(z)

    p = np.asarray(label, np.float64)
    entropy = -(p * np.log(p)).sum()
    assert abs(entropy - 1.5370) < 1e-4
    least, slope = both(jnp.asarray(np.log(p), jnp.float32))
    assert abs(float(least) - entropy) < 1e-5
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    for size in (0.1, 0.3, 1.0, 3.0):
        z = np.log(p) + rng.normal(size=(1, 1000)) * size
        q = np.exp(z) / np.exp(z).sum()
        divergence = (p * np.log(p / q)).sum()
        assert divergence > 1e-4
        more, _ = both(jnp.asarray(z, jnp.float32))
        assert abs(float(more) - entropy - divergence) < 2e-5


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"soft labels: no mode 'smoth' \(did you mean 'smooth'\?\)"):
        recover(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)), 2, "smoth")


# batches


def test_k4_epochs_and_steps_are_the_papers() -> None:
    assert passes(150, 4) == [4] * 37 + [1, 1]
    assert sum(passes(150, 4)) == 150
    assert passes(8, 4) == [4, 4]
    assert passes(3, 4) == [1, 1, 1]
    assert passes(3, 1) == [1, 1, 1]
    assert steps(1_281_167, 1024, 150, 4) == 37 * 5005 + 2 * 1252 == 187_689
    assert steps(10, 4, 3, 2) == 5 + 3
    assert steps(10, 5, 4, 2) == 4 + 4  # ceil(5 / 2) = 3 images a step
    assert steps(1, 100, 1, 1) == 1
    for bad in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="must be positive, got"):
            passes(*bad)
        with pytest.raises(ValueError, match="must be positive, got"):
            steps(*bad, 1, 1)


class Recogniser:
    """Which crop of which image every row is, by its pixels; the labels in the row must be those of that crop."""

    def __init__(self, source: Source, labels: SoftLabels) -> None:
        self.source, self.labels, self.known = source, labels, dict[bytes, tuple[int, int]]()
        for i in range(len(source)):
            record = labels.record(i, source[i]["image"])
            for r in range(labels.crops):
                crop = cut(source[i]["image"], record["box"][r], record["flip"][r], GREY)
                self.known[np.ascontiguousarray(crop).tobytes()] = (i, r)
        assert len(self.known) == len(source) * labels.crops, "the crops must be told apart by their pixels"

    def __call__(self, batch: Any) -> list[tuple[int, int]]:
        found = [self.known[image.tobytes()] for image in batch["image"]]
        for n, (i, r) in enumerate(found):
            image = self.source[i]
            record = self.labels.record(i, image["image"])
            assert batch["label"][n] == image["label"]
            assert batch["index"][n].tolist() == record["index"][r].tolist()
            assert batch["value"][n].tolist() == record["value"][r].astype(np.float32).tolist()
        return found


@pytest.mark.parametrize("per_image", [1, 2, 3, 6])
def test_k4_a_pass_takes_every_image_once_with_different_crops(
    labels: SoftLabels, source: Source, per_image: int
) -> None:
    epochs, batch = 2 * per_image + (per_image > 1), 6
    plan = passes(epochs, per_image)
    assert plan == ([1, 1] if per_image == 1 else [per_image, per_image, 1])
    stream = crop_batches(source, labels, GREY, batch, per_image, epochs, 3)
    orders, recognised = [], Recogniser(source, labels)
    for m in plan:
        visits = []
        for _ in range(math.ceil(IMAGES / (batch // m))):
            made = next(stream)
            assert {name: (x.shape, x.dtype) for name, x in made.items()} == {
                "image": ((6, 5, 4, 1), np.uint8),
                "label": ((6,), np.int32),
                "index": ((6, KEEP), np.int32),
                "value": ((6, KEEP), np.float32),
            }
            rows = recognised(made)
            for first in range(0, batch, m):
                crops = rows[first : first + m]
                assert len({i for i, _ in crops}) == 1, "crops of an image stand side by side"
                assert len({r for _, r in crops}) == m, "without replacement"
                visits.append(crops[0][0])
        assert sorted(visits[:IMAGES]) == list(range(IMAGES))
        assert visits[IMAGES:] == visits[: len(visits) - IMAGES], "filled up from the start of the pass"
        orders.append(tuple(visits[:IMAGES]))
    assert next(stream, None) is None
    assert len(set(orders)) == len(plan), "every pass is shuffled anew"


def test_all_crops_of_an_image_come_equally_often(tmp_path: Path) -> None:
    source = pictures(1)
    labels = make(tmp_path, source)
    recognised = Recogniser(source, labels)
    stream = crop_batches(source, labels, GREY, 2, 2, 240, 0)
    counts = Counter(crop for batch in stream for crop in recognised(batch))
    assert set(counts) == {(0, r) for r in range(CROPS)}
    assert all(abs(n - 40) < 20 for n in counts.values())


def test_a_batch_may_be_larger_than_the_source(tmp_path: Path) -> None:
    source = pictures(3)
    labels = make(tmp_path, source)
    (batch,) = crop_batches(source, labels, GREY, 16, 2, 2, 0)
    visits = [i for i, _ in Recogniser(source, labels)(batch)][::2]
    assert sorted(visits[:3]) == [0, 1, 2]
    assert visits == (visits[:3] * 3)[:8]


def test_a_stream_starts_anywhere_with_the_batch_that_it_would_have_had(labels: SoftLabels, source: Source) -> None:
    arguments = (source, labels, GREY, 4, 2, 5, 9)
    stream = list(crop_batches(*arguments))
    assert len(stream) == steps(IMAGES, 4, 5, 2) == 6 + 6 + 3
    for start in range(len(stream) + 1):
        rest = list(crop_batches(*arguments, start=start))
        assert len(rest) == len(stream) - start
        for got, want in zip(rest, stream[start:], strict=True):
            for name in ("image", "label", "index", "value"):
                np.testing.assert_array_equal(got[name], want[name])
    other = next(crop_batches(source, labels, GREY, 4, 2, 5, 10))
    assert (other["image"] != stream[0]["image"]).any()


@pytest.mark.once
def test_processes_cut_what_threads_cut(labels: SoftLabels) -> None:
    """Labels that are sent to a process open their shards there."""
    source = OneByOne(pictures())
    stream = list(crop_batches(source, labels, GREY, 4, 2, 2, 9))
    found = list(crop_batches(source, labels, GREY, 4, 2, 2, 9, 1, workers=2))
    assert len(found) == len(stream) - 1
    for got, want in zip(found, stream[1:], strict=True):
        for name in ("image", "label", "index", "value"):
            np.testing.assert_array_equal(got[name], want[name])
    again = pickle.loads(pickle.dumps(labels))
    assert again.record(3, source[3]["image"]) == labels.record(3, source[3]["image"])


def test_more_epochs_begin_with_the_same_batches(labels: SoftLabels) -> None:
    short, long = (crop_batches(pictures(), labels, GREY, 4, 2, epochs, 9) for epochs in (2, 8))
    for got, want in zip(short, long, strict=False):
        np.testing.assert_array_equal(got["image"], want["image"])
        np.testing.assert_array_equal(got["index"], want["index"])


def test_batches_that_cannot_be_are_refused(labels: SoftLabels) -> None:
    for arguments, said in [
        ((5, 2, 2, 0), "crops an image must divide the batch, got 2 and 5"),
        ((14, 7, 7, 0), "holds 6 crops an image, wanted 7"),
        ((4, 2, 2, -1), "seed must not be negative, got -1"),
        ((4, 2, 2, 0, -1), "start must be a step from 0 to 6, got -1"),
        ((4, 2, 2, 0, 7), "start must be a step from 0 to 6, got 7"),
        ((0, 2, 2, 0), "images and batch must be positive, got 11 and 0"),
        ((4, 2, 0, 0), "epochs and crops an image must be positive, got 0 and 2"),
    ]:
        with pytest.raises(ValueError, match=f"^soft labels: .*{said}$"):
            crop_batches(pictures(), labels, GREY, *arguments)
