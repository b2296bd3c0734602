"""torch's files without torch: the same arrays, and nothing but arrays is ever loaded."""

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from jvq.models.weights import torch_file

GOLDEN = Path(__file__).parents[2] / "golden" / "tensors.pth"  # by tests/golden/make.py
WANT = {
    **dict.fromkeys(("float64", "float16", "bfloat16", "int64", "int32", "uint8"), np.arange(4)),
    "turned": np.arange(12).reshape(3, 4).T,
    "part": np.array([5, 7]),
    "empty": np.zeros((0, 3)),
    "number": np.array(7),
    "parameter": np.arange(3),
}


def expect(found):
    assert set(found) == set(WANT)
    for name, want in WANT.items():
        assert found[name].shape == want.shape
        np.testing.assert_array_equal(found[name].astype(np.float64), want, err_msg=name)


def test_every_kind_of_tensor_without_torch():
    found = torch_file.state(torch_file.unpickled(GOLDEN), GOLDEN)
    expect(found)
    assert {str(x.dtype) for x in found.values()} == {*list(WANT)[:6], "float32"}


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_every_kind_of_tensor_with_torch_where_there_is_one():
    expect(torch_file.read(GOLDEN))


def written(folder, found, files=None):
    """A zip like torch's around a pickle that Python wrote."""
    path = folder / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", found if isinstance(found, bytes) else pickle.dumps(found, protocol=2))
        for name, data in (files or {}).items():
            file.writestr(f"archive/{name}", data)
    return path


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (Evil(), "wants to load '(posix|nt).system'"),
        ({"args": argparse.Namespace(lr=1)}, "wants to load 'argparse.Namespace', which is no weight; it is refused"),
        ({"x": np.zeros(2)}, "wants to load 'numpy.*'"),
        ({"x": eval}, "wants to load '(__builtin__|builtins).eval'"),
    ],
    ids=["a command", "arguments", "numpy", "eval"],
)
def test_anything_else_is_refused_by_name(found, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        torch_file.unpickled(written(tmp_path, found))


def tensor(key="0", offset=0, shape=(2, 2), strides=(2, 1), numel=4):
    """The pickle of one tensor, as torch writes it."""
    out = io.BytesIO()
    name = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX" + len(key).to_bytes(4, "little") + key.encode()
    storage += b"X\3\0\0\0cpuJ" + numel.to_bytes(4, "little") + b"tQ"
    numbers = b"".join(
        b"(" + b"".join(b"J" + n.to_bytes(4, "little", signed=True) for n in ns) + b"t" for ns in (shape, strides)
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    start = b"J" + offset.to_bytes(4, "little", signed=True)
    out.write(b"\x80\2}X\1\0\0\0x" + name + b"(" + storage + start + numbers + b"\x89" + hooks + b"tRs.")
    return out.getvalue()


DATA = {"data/0": np.arange(4, dtype=np.float32).tobytes()}


def test_a_tensor_made_by_hand(tmp_path):
    found = torch_file.unpickled(written(tmp_path, tensor(), DATA))
    np.testing.assert_array_equal(found["x"], [[0, 1], [2, 3]])
    assert found["x"].flags.owndata


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"offset": 1}, "reaches beyond its storage"),
        ({"shape": (2, 3)}, "reaches beyond its storage"),
        ({"strides": (1 << 20, 1)}, "reaches beyond its storage"),
        ({"strides": (-2, 1)}, "a tensor without a storage"),
        ({"shape": (2,)}, "strides do not fit its shape"),
        ({"key": "9"}, "cannot be read as a torch checkpoint"),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(change, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        torch_file.unpickled(written(tmp_path, tensor(**change), DATA))


@pytest.mark.parametrize(
    ("files", "says"),
    [({"byteorder": b"big"}, "big-endian"), ({"more/data.pkl": b""}, "zip file without torch's data.pkl")],
)
def test_other_zip_files_are_refused(files, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        torch_file.unpickled(written(tmp_path, {}, files))


@pytest.mark.parametrize("bad", [b"", b"\x80\2", b"\x80\2}(K\1R.", b"\x80\2K\1K\2R."])
def test_a_broken_pickle_is_one_line(bad, tmp_path):
    with pytest.raises(ValueError, match=r"a\.pth cannot be read as a torch checkpoint"):
        torch_file.unpickled(written(tmp_path, bad))


def test_the_format_before_the_zip_needs_torch(tmp_path, monkeypatch):
    path = tmp_path / "old.pth"
    path.write_bytes(pickle.dumps(119547037146038801333356))
    monkeypatch.setattr(torch_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="old.pth is not in torch's zip format: .* needs torch to read it; save it again"
    ):
        torch_file.read(path)


@pytest.mark.filterwarnings("ignore")  # torch's own
def test_the_format_before_the_zip_with_torch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "old.pth"
    torch.save({"state_dict": {"a": torch.arange(3)}}, path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(torch_file.read(path)["a"], [0, 1, 2])
    torch.save({"args": argparse.Namespace()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="old.pth cannot be read by torch"):
        torch_file.read(path)
    torch.save({"args": argparse.Namespace()}, path)
    with pytest.raises(ValueError, match="wants to load 'argparse.Namespace'"):
        torch_file.read(path)


def test_averaged_weights_come_first_and_prefixes_go():
    x, y = np.zeros(1), np.ones(1)
    found = {"epoch": 1, "model": {"a": x}, "teacher": OrderedDict({"module.backbone.a": y, "module.head.b": x})}
    assert torch_file.state(found, Path("a.pth")) == {"a": y}
    with pytest.raises(ValueError, match="a.pth holds no state_dict under .*; it holds epoch, best"):
        torch_file.state({"epoch": 1, "best": {}}, Path("a.pth"))
