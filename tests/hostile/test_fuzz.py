"""Every loader refuses changed input in one clear line, or accepts what is right; and the judge sees what is wrong."""

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import mutations, targets, trial

pytestmark = pytest.mark.once

COUNT = 100  #: inputs of a quick loader


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of threads that orbax ends
@pytest.mark.parametrize("name", targets.NAMED)
def test_changed_input_is_refused_in_one_line_or_right(name: str, tmp_path: Path) -> None:
    target = targets.NAMED[name]
    found = trial.tried(target, tmp_path, max(6, COUNT // target.weight))
    assert not found.defects, "\n".join(f"{what} ({which})" for what, (which, _) in found.defects.items())
    if target.weight == 1 and target.errors:  # else the changes change nothing that matters, or all of it
        assert found.tried["refused"]
        assert found.tried["accepted"]


@pytest.mark.parametrize("name", ["weights: jvq", "weights: npz", "weights: pth", "packed: file", "npz data set"])
def test_every_beginning_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    target = targets.NAMED[name]
    made, found = trial.whole(target, tmp_path), trial.Found()
    ((file, data),) = made[0].items()
    for end in (*range(64), *range(64, len(data), max(1, len(data) // 100)), len(data) - 1):
        trial.given(target, made, file, data[:end], f"{end} bytes", found)
    assert set(found.tried) == {"refused"}, found.defects


@given(st.binary(max_size=300))
@settings(max_examples=40, deadline=None)
def test_what_is_no_file_at_all_is_refused(data: bytes) -> None:
    import tempfile

    for name in (
        "weights: jvq",
        "weights: npz",
        "weights: pth",
        "weights: ONNX",
        "packed: file",
        "npz data set",
        "image: png",
    ):
        target = targets.NAMED[name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / {"weights: npz": "a.npz", "npz data set": "a.npz", "weights: pth": "a.pth"}.get(
                name, "a.onnx" if "ONNX" in name else "a.safetensors"
            )
            path.write_bytes(data)
            verdict, line = trial.judged(target, path, None)
        assert verdict == "refused", line


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=100))
@settings(max_examples=100, deadline=None)
def test_a_change_depends_on_its_seed_alone(seed: int, data: bytes) -> None:
    for change in (mutations.of_bytes, mutations.lines):
        assert change(random.Random(seed), data) == change(random.Random(seed), data)


def a_loader(does):
    return trial.Target(
        "made up",
        lambda _: {"a": b"x"},
        targets.one(mutations.of_bytes),
        does,
        lambda a, b: "" if a == b else "other",
        seconds={spins: 0.2, waits: 0.01}.get(does, 5),
    )


def fails(error):
    def load(path):
        if path.read_bytes() != b"x":
            raise error

    return load


def spins(path):
    changed = path.read_bytes() != b"x"
    while changed:
        pass


def waits(path):
    if path.read_bytes() != b"x":
        time.sleep(60)


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (fails(KeyError("a")), "KeyError from test_fuzz"),
        (fails(UnicodeDecodeError("utf-8", b"", 0, 1, "no")), "UnicodeDecodeError"),
        (fails(MemoryError()), "MemoryError"),
        (fails(RecursionError()), "RecursionError"),
        (fails(ValueError("two\nlines")), "not one printable line"),
        (fails(ValueError("")), "not one printable line"),
        (fails(ValueError("x" * 2000)), "a line of 2000 letters"),
        (Path.read_bytes, "accepted: other"),
        (spins, "hangs"),
        (waits, "hangs"),
    ],
)
def test_the_judge_sees_what_is_wrong(load, says, tmp_path) -> None:
    found = trial.tried(a_loader(load), tmp_path, 1)
    assert found.tried["defect"] == 1
    assert says in next(iter(found.defects))


def test_the_judge_lets_a_clear_line_pass(tmp_path) -> None:
    found = trial.tried(a_loader(fails(ValueError("weights: a: it is no file"))), tmp_path, 3)
    assert found.tried == {"refused": 3}
