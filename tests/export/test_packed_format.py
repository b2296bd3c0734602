"""docs/packed_format.md keeps its promises: the reader without jvq finds what jvq finds, the digest is as it says."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jvq.core.packed import Packed
from jvq.export import packed_file, save
from jvq.export.contents import HEADER, VERSION, contents, flattened

DOCS = (Path(__file__).parents[2] / "docs" / "packed_format.md").read_text()
(READER,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
DRIVER = """
import sys
for name in ("jvq", "jax", "jaxlib", "flax"):
    sys.modules[name] = None
exec(open(sys.argv[1]).read())
for number, path in enumerate(sys.argv[2:]):
    header, arrays = read(path)
    np.savez(path + ".npz", header=json.dumps(header), **{name.replace("/", "|"): x for name, x in arrays.items()})
print(*sorted(name for name, module in sys.modules.items() if module and name.split(".")[0] in ("jvq", "jax")))
"""
NAMES = ["uniform", "dynamic", "learned", "binary", "grouped"]


@pytest.fixture(scope="module")
def read(deployment, tmp_path_factory):
    """What the documented reader finds in a file of every kind, in a process that cannot import jvq or jax."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "reader.py").write_text(READER)
    paths = [str(folder / f"{name}.safetensors") for name in NAMES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_file, "OWN", 300)
        for name, path in zip(NAMES, paths, strict=True):
            save(deployment(name), path)
    command = [sys.executable, "-I", "-c", DRIVER, str(folder / "reader.py"), *paths]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert said.stdout.split() == []
    found = {}
    for name, path in zip(NAMES, paths, strict=True):
        with np.load(path + ".npz") as file:
            arrays = {n.replace("|", "/"): file[n] for n in file.files}
        found[name] = json.loads(str(arrays.pop("header"))), arrays
    return found


def test_the_reader_is_short():
    assert len(READER.splitlines()) <= 35
    assert len([line for line in READER.splitlines() if line]) <= 30


@pytest.mark.parametrize("name", NAMES)
def test_the_reader_finds_the_weights_to_the_bit(name, read, deployment):
    header, arrays = read[name]
    want = {n: x.unpack() if isinstance(x, Packed) else x for n, x in flattened(deployment(name).params).items()}
    want |= {f"state/{a}/{n}": x for a, s in deployment(name).qstate.items() for n, x in s.items()}
    assert set(arrays) == set(want)
    for n, x in jax.device_get(want).items():
        assert (arrays[n].dtype, arrays[n].shape) == (x.dtype, x.shape), n
        assert arrays[n].tobytes() == x.tobytes(), n
    assert header == contents(deployment(name)).header


def test_the_digest_is_as_documented(deployment):
    made = contents(deployment("learned"))
    text = json.dumps(made.header, separators=(",", ":")).encode("ascii")
    arrays = b"".join(made.arrays[name].tobytes() for name, _, _ in made.header["arrays"])
    assert hashlib.sha256(text + arrays).hexdigest() == made.digest


def test_every_key_of_the_header_is_documented():
    rows = re.findall(r"^\| (`.*?) \|", re.search(r"## The header\n(.*?)\n\*\*", DOCS, re.DOTALL)[1], re.MULTILINE)
    assert [key.strip("`") for row in rows for key in row.split(", ")] == list(HEADER)
    assert f"This is version {VERSION} of the schema" in DOCS
    assert "16 KiB" in DOCS
    assert packed_file.OWN == 16 * 1024
