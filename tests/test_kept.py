"""What a run keeps of its work comes back to the bit, to the same run alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import kept
from jvq.core.calibrate import Fitted
from jvq.data import CorruptImage, InMemory, Loader, Preprocess
from jvq.evaluate import Predictions
from jvq.export.quantizer_text import KINDS
from jvq.kept import Kept
from jvq.quantizers import Grouped, Uniform
from jvq.report import Console

PREPROCESS = Preprocess((4, 4), None, "bicubic", (0.5,), (0.25,))


def keeping(folder, mark="mark"):
    """A ``Kept`` and what it says."""
    console, said = Console(quiet=True), []
    console.say = said.append
    return Kept(folder, mark, console), said


def never():
    raise AssertionError("computed again")


def alike(a, b):
    """Whether two values are of one form, their numbers equal to the bit and of one type."""
    if isinstance(a, np.ndarray | jax.Array):
        assert isinstance(b, jax.Array) == isinstance(a, jax.Array)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return (type(a), repr(a)) == (type(b), repr(b))


def values():
    rng = np.random.default_rng(0)
    wild = np.array([0.0, -0.0, np.nan, np.inf, 5e-324, 1 / 3], np.float64)
    plan = {"a.x": Grouped(4, groups=3, along="d"), "a.w": Uniform(4, "o", percentile=(0.1, 1.0))}
    state = {"a.x": {"scale": jnp.asarray(rng.normal(size=3), jnp.float32), "n": jnp.int32(4)}}
    params = {"fc": {"kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32), "bias": np.zeros(3, np.float32)}}
    notes = {"warnings": ["ü\n"], "sites": {"a": {"groups": 3, "kl": [0.1, 1e-300], "none": None, "is": True}}}
    line = {"top1": None, "kl": np.float32(0.3), "spent": np.int64(2**60), "wild": wild, ("W4A4", "igq"): (1, [2.5])}
    outputs = Predictions(rng.normal(size=(5, 3)).astype(np.float32), np.arange(5, dtype=np.int32))
    return Fitted(plan, state, notes, params), (line, outputs)


def test_a_value_comes_back_to_the_bit(tmp_path):
    for key, value in zip("ab", values(), strict=True):
        keep, said = keeping(tmp_path)
        assert keep(key, lambda v=value: v) is value
        assert said == []
        found = keeping(tmp_path)[0](key, never)
        assert alike(value, found)
        assert type(found) is type(value)
    assert all(p.suffix == ".npz" for p in kept.folder(tmp_path).iterdir())


@pytest.mark.parametrize("name", KINDS)
def test_every_quantiser_comes_back(name, tmp_path):
    kind = KINDS[name]
    given = {f.name: 3 for f in dataclasses.fields(kind) if f.name in ("bits", "groups", "group")}
    quantizer = kind(**given)
    keep, said = keeping(tmp_path)
    keep("plan", lambda: {"a": quantizer})
    assert said == []
    assert keeping(tmp_path)[0]("plan", never) == {"a": quantizer}


def test_what_is_taken_is_said(tmp_path):
    keeping(tmp_path)[0]("igq fitted", lambda: 1)
    keep, said = keeping(tmp_path)
    assert keep("igq fitted", never) == 1
    assert [line.partition(": ")[0] for line in said] == ["igq fitted"]


def test_another_run_and_another_key_begin_anew(tmp_path):
    keeping(tmp_path)[0]("a", lambda: 1)
    assert keeping(tmp_path, "other")[0]("b", lambda: 2) == 2
    assert keeping(tmp_path)[0]("b", lambda: 3) == 3
    assert keeping(tmp_path, "other")[0]("a", lambda: 4) == 4
    assert keeping(tmp_path)[0]("a", lambda: 5) == 5, "a folder is of one run, the latest"


def test_a_file_cut_off_anywhere_or_changed_is_made_again(tmp_path):
    keep, _ = keeping(tmp_path)
    keep("a", lambda: {"x": np.arange(4)})
    (path,) = kept.folder(tmp_path).iterdir()
    whole = path.read_bytes()
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        assert keeping(tmp_path)[0]("a", lambda: "again") == "again"
    path.write_bytes(whole)
    assert keeping(tmp_path)[0]("a", never)["x"].tolist() == [0, 1, 2, 3]


def test_a_value_that_no_file_can_hold_is_told_and_used(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Mine(Uniform):
        pass

    keep, said = keeping(tmp_path)
    assert keep("a", lambda: {"a": Mine(4)}) == {"a": Mine(4)}
    assert said == ["a: an interruption would lose it: Mine cannot be kept"]
    assert not kept.folder(tmp_path).exists()


def test_a_value_that_is_too_large_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "LARGEST", 1000)
    keep, _ = keeping(tmp_path)
    keep("small", lambda: np.zeros(1000, np.uint8))
    keep("large", lambda: np.zeros(1001, np.uint8))
    keep, _ = keeping(tmp_path)
    assert keep("small", never).shape == (1000,)
    assert keep("large", lambda: 1) == 1


def test_nothing_is_run_from_a_file(tmp_path):
    """An .npz with a pickle, and kinds that nobody knows."""
    keeping(tmp_path)[0]("a", lambda: 1)
    (path,) = kept.folder(tmp_path).iterdir()
    np.savez(path, text=np.array([{"mark": "mark"}], object), allow_pickle=True)
    assert keeping(tmp_path)[0]("a", lambda: 2) == 2
    for value in (["os.system", ["true"]], ["quantizer", ["Popen", {}]], ["Fitted", [["plain", 1]] * 9], ["jax", "no"]):
        text = json.dumps({"mark": "mark", "key": "a", "value": value})
        np.savez(path, text=np.frombuffer(text.encode(), np.uint8))
        assert keeping(tmp_path)[0]("a", lambda: 3) == 3


class Torn(InMemory):
    """Six images of which the third cannot be read, one at a time."""

    __getitems__ = None  # type: ignore[assignment]

    def __getitem__(self, i):
        if i == 2:
            raise CorruptImage("2.png: not a readable image")
        return super().__getitem__(i)


def source(kind=InMemory, add=0):
    images = (np.arange(6 * 16, dtype=np.uint8) + np.uint8(add)).reshape(6, 4, 4, 1)
    return kind("made", images, np.arange(6, dtype=np.int32))


def test_what_a_pass_skipped_is_kept_with_it(tmp_path):
    def passed(loader):
        loader.skipped = ["2.png"]
        return 5

    loader = Loader(source(), PREPROCESS, 2)
    keep, _ = keeping(tmp_path)
    assert keep.evaluated("a", loader, passed, loader) == 5
    loader.skipped = ["of another pass"]
    keep, _ = keeping(tmp_path)
    assert keep.evaluated("a", loader, never) == 5
    assert loader.skipped == ["2.png"]


def test_a_source_is_known_by_its_images_and_labels():
    same = kept.seen(source())
    assert kept.seen(source()) == same != kept.seen(source(add=1))
    torn = kept.seen(source(Torn))
    assert torn not in (same, kept.seen(source(add=1)))


def test_code_counts(tmp_path, monkeypatch):
    (tmp_path / "jvq").mkdir()
    (tmp_path / "jvq" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(kept, "__file__", str(tmp_path / "jvq" / "kept.py"))
    before = kept.sources()
    assert kept.sources() == before
    (tmp_path / "jvq" / "a.py").write_text("x = 2\n")
    assert kept.sources() != before


def test_nothing_is_left_when_the_report_is_there(tmp_path):
    keeping(tmp_path)[0]("a", lambda: 1)
    (tmp_path / "report.json").write_text("{}")
    kept.clear(tmp_path)
    kept.clear(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
