"""A number that is another in the file is another in the model: that one, to the bit, and no other.

Formats without a checksum cannot tell; those in zip files have one, which is made right again here.
"""

import io
import json
import random
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from . import targets, trial

FORMATS = [f"weights: {name}" for name in ("jvq", "safetensors", "npz", "pth", "ONNX")]
COUNT = 24  #: changed numbers of a format
NOT_FINITE = [np.float32(x).tobytes() for x in (np.nan, np.inf, -np.inf)]


def unzipped(data: bytes) -> dict[str, bytes]:
    """The members of a zip file; the file itself, without a name, where it is none."""
    if data[:2] != b"PK":
        return {"": data}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zipped(members: dict[str, bytes]) -> bytes:
    """The inverse, with the right checksums."""
    if "" in members:
        return members[""]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def numbers(kind: str, data: bytes) -> list[tuple[str, int]]:
    """Member and first byte of every float32 in it, found without the loader."""
    spans = []
    for name, content in unzipped(data).items():
        if name.endswith(".npy"):
            spans.append((name, 10 + int.from_bytes(content[8:10], "little"), len(content)))
        elif "/data/" in name:
            spans.append((name, 0, len(content)))
    if kind == "weights: ONNX":
        import onnx

        raw = [tensor.raw_data for tensor in onnx.load_from_string(data).graph.initializer]
        spans = [("", data.index(x), data.index(x) + len(x)) for x in raw]
    elif not spans:
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        spans = [("", *(begin + n for n in header[x]["data_offsets"])) for x in header if x != "__metadata__"]
    return [(name, at) for name, begin, end in spans for at in range(begin, end, 4)]


def differing(a: dict, b: dict) -> list[tuple[bytes, bytes]]:
    """The bytes of every parameter that is not the same in both."""
    flat = [np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(tree)]).view(np.uint32) for tree in (a, b)]
    return [(x.tobytes(), y.tobytes()) for x, y in zip(*flat, strict=True) if x != y]


@pytest.mark.parametrize("kind", FORMATS)
def test_exactly_the_number_that_was_changed_differs(kind: str, tmp_path: Path) -> None:
    target = targets.NAMED[kind]
    files, path, right = trial.whole(target, tmp_path)
    (data,) = files.values()
    members, places = unzipped(data), numbers(kind, data)
    assert len(places) == sum(x.size for x in jax.tree.leaves(right.params))
    accepted = 0
    for i in range(COUNT):
        rng = random.Random(f"{kind} {i}")
        name, first = rng.choice(places)
        content = bytearray(members[name])
        old = bytes(content[first : first + 4])
        if i % 6:
            content[first + rng.randrange(4)] ^= 1 << rng.randrange(8)
        else:
            content[first : first + 4] = NOT_FINITE[i // 6 % 3]
        new = bytes(content[first : first + 4])
        path.write_bytes(zipped({**members, name: bytes(content)}))
        if np.isfinite(np.frombuffer(new, "<f4")).all():
            assert differing(right.params, target.load(path).params) == [(old, new)]
            accepted += 1
        else:
            with pytest.raises(ValueError, match="not finite"):
                target.load(path)
    assert accepted > COUNT // 2


@pytest.mark.parametrize("kind", ["weights: npz", "weights: pth"])
def test_the_checksum_of_a_zip_file_is_compared(kind: str, tmp_path: Path) -> None:
    target = targets.NAMED[kind]
    files, path, right = trial.whole(target, tmp_path)
    (data,), same = files.values(), 0
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        infos = [info for info in file.infolist() if info.filename.endswith(".npy") or "/data/" in info.filename]
    for i in range(COUNT):
        rng = random.Random(f"{kind} {i}")
        info = rng.choice(infos)
        at = info.header_offset + 30 + int.from_bytes(data[info.header_offset + 28 :][:2], "little")
        at += len(info.filename) + rng.randrange(info.compress_size)
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        try:
            assert not differing(right.params, target.load(path).params)
            same += 1  # deflate has bits that nobody reads
        except ValueError as error:
            assert "weights: " in str(error)  # noqa: PT017 (either is right)
    assert same <= (COUNT // 4 if kind == "weights: npz" else 0)
