"""No file runs code: pickles, arrays of objects, graphs and headers that try to, under a hook that would tell."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from . import models

WATCHED = """
import json, os, sys
from pathlib import Path
from jvq.export import load, load_folder
from jvq.models.weights import open_weights
from jvq.data import open_source
from jvq.data.folder import read_image
import onnx, orbax.checkpoint, PIL.Image
PIL.Image.init()
for name in sys.argv[2:]:  # once, so that what is imported late is there
    try:
        open_weights(name)
    except ValueError:
        pass
seen, files = [], set(sys.argv[2:])

def hook(event, arguments):
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class"):
        seen.append([event, repr(arguments)[:200]])
    elif event == "exec" and "<string>" in repr(arguments):
        seen.append([event, repr(arguments)[:200]])
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        if str(arguments[0]).startswith(("/dev/null", "/proc")):
            return
        seen.append([event, repr(arguments)[:200]])
    elif event == "import" and str(arguments[0]).startswith("evil"):
        seen.append([event, repr(arguments)[:200]])

sys.addaudithook(hook)
said = {}
for name in sys.argv[2:]:
    for loader in (open_weights, load, load_folder, read_image, lambda p: open_source("npz", "test", p)):
        try:
            loader(name)
        except ValueError as error:
            said.setdefault(name, []).append(str(error)[:200])
if sys.argv[1] == "canary":  # the hook works
    import subprocess
    os.system("true")
    subprocess.run(["true"])
    open("written", "w").close()
print(json.dumps([seen, said]))
"""


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def torch_zip(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", bytes(16))
    return out.getvalue()


def attacks() -> dict[str, bytes]:
    """Files that run a command, or import a module, in a reader that lets them."""
    command = "touch canary"
    calls = {
        "system": Call(os.system, command),
        "eval": Call(eval, f"__import__('os').system('{command}')"),
        "exec": Call(exec, f"import os; os.system('{command}')"),
        "popen": Call(subprocess.Popen, ["touch", "canary"]),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "nested": {"model": {"a": [Call(os.system, command)]}},
    }
    found = {
        f"{name}{protocol}.pth": torch_zip(pickle.dumps(call, protocol))
        for name, call in calls.items()
        for protocol in range(6)
    }
    found |= {
        "inst.pth": torch_zip(b"(S'touch canary'\nios\nsystem\n."),
        "module.pth": torch_zip(b"cevil_module\nname\n."),
        "dotted.pth": torch_zip(b"\x80\x04\x8c\x0bcollections\x8c\x1aOrderedDict.__init__.x\x93."),
        "extension.pth": torch_zip(b"\x80\x02\x82\x01."),
        "old.pth": pickle.dumps(Call(os.system, command)),
        "bare.bin": pickle.dumps(Call(os.system, command), 2),
    }
    for allow, name in ((True, "objects.npz"),):
        stream = io.BytesIO()
        np.savez(
            stream,
            images=np.array([Call(os.system, command)], dtype=object),
            labels=np.zeros(1, int),
            allow_pickle=allow,
        )
        found[name] = stream.getvalue()
    stream = io.BytesIO()
    np.save(stream, np.array([Call(os.system, command)], dtype=object), allow_pickle=True)
    found["array.npz"] = stream.getvalue()
    header = b"__import__('os').system('touch canary')".ljust(117) + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("images.npy", b"\x93NUMPY\x01\x00v\x00" + header)
    found["header.npz"] = out.getvalue()
    found["shell.png"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(canary) (w) file\n%%EOF\n"
    return found


def written(folder: Path) -> list[str]:
    for name, data in attacks().items():
        (folder / name).write_bytes(data)
    whole = models.packed_file(folder.parent / "made")["a.safetensors"]
    import lzma

    from safetensors.numpy import load

    header = lzma.decompress(load(whole)["jvq.header"].tobytes())
    at = header.index(b"Uniform")
    (folder / "quantiser.safetensors").write_bytes(repacked(whole, header[:at] + EVIL + header[at + 7 :]))
    (folder / "external.onnx").write_bytes(external("../../../etc/passwd"))
    (folder / "absolute.onnx").write_bytes(external("/etc/passwd"))
    return sorted(str(p) for p in folder.iterdir())


EVIL = b"__import__('os').system('touch canary')"


def repacked(whole: bytes, text: bytes) -> bytes:
    """The packed file with another header and the digest that is right for it."""
    import hashlib
    import lzma

    from safetensors.numpy import load, save

    tensors = load(whole)
    digest = hashlib.sha256(text)
    raw = tensors["jvq.small"].tobytes()
    digest.update(raw)  # the tiny model's arrays are all small
    tensors["jvq.header"] = np.frombuffer(lzma.compress(text), np.uint8)
    tensors["jvq.digest"] = np.frombuffer(digest.digest(), np.uint8)
    return save(tensors, {"format": '"jvq-packed"'})


def external(location: str) -> bytes:
    import onnx

    model = onnx.load_from_string(models.onnx_file(Path())["a.onnx"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model.SerializeToString()


def watched(word: str, paths: list[str], cwd: Path) -> tuple[list[list[str]], dict[str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, word, *paths],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_no_file_runs_code_or_writes(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "cwd").mkdir()
    paths = written(tmp_path / "files")
    seen, said = watched("quiet", paths, tmp_path / "cwd")
    assert not seen
    assert set(said) == set(paths)  # each refused by at least one loader
    assert not list((tmp_path / "cwd").iterdir())
    assert not list(tmp_path.rglob("canary"))


def test_the_hook_would_tell(tmp_path: Path) -> None:
    seen, _ = watched("canary", [], tmp_path)
    assert {event for event, _ in seen} >= {"os.system", "subprocess.Popen", "open"}


@pytest.mark.parametrize("name", [name for name in attacks() if name.endswith(".pth")])
def test_a_pickle_that_calls_something_is_refused_by_name(name: str, untouched: Path) -> None:
    from jvq.models.weights import open_weights

    path = untouched / name
    path.write_bytes(attacks()[name])
    with pytest.raises(
        ValueError, match=r"it is refused|cannot be read as a torch checkpoint|needs torch|cannot be read by"
    ):
        open_weights(str(path))
