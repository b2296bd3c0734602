"""Packed models as one safetensors file: small for a small model too, read back to the bit, refused where damaged.

The schema, and a reader without jvq, are in ``docs/packed_format.md``. A tensor's name, dtype and shape take about 90
bytes of a safetensors header, a tenth of a small model in 2 bits. Arrays below 16 KiB therefore lie end to end in one
tensor, as the compressed header lists them; so the file is within 3 % of what its numbers take at any size.
"""

import lzma
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jvq.core import reading
from jvq.export.contents import FORMAT, Arrays, Contents, contents, parsed, restored
from jvq.export.deployment import Deployment
from jvq.models import Model
from jvq.models.weights import native

OURS = LISTED, SMALL, DIGEST = "jvq.header", "jvq.small", "jvq.digest"  #: tensors that are none of the model's
METADATA = {"format": f'"{FORMAT}"'}  #: one key, since safetensors has no fixed order for more
OWN = 2**14  #: bytes from which an array is a tensor of its own
LONGEST = 2**26  #: bytes of a header
MEMORY = 2**27  #: bytes that unfolding it may take: its own first bytes say how much


def save(deployment: Deployment, path: str | Path) -> None:
    """Writes the deployment to ``path`` (.safetensors), whole or not at all; what cannot be read back is refused."""
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"packed: {path} cannot be written: it must be a file in a folder that exists")
    write(contents(deployment), path)


def write(found: Contents, path: Path) -> None:
    """Writes contents as they are; the same contents are the same bytes."""
    small = [x.tobytes() for x in found.arrays.values() if x.nbytes < OWN]
    tensors = {name: np.ascontiguousarray(x) for name, x in found.arrays.items() if x.nbytes >= OWN}
    tensors[LISTED] = np.frombuffer(lzma.compress(found.text.encode()), np.uint8)
    tensors[SMALL] = np.frombuffer(b"".join(small), np.uint8)
    tensors[DIGEST] = np.frombuffer(bytes.fromhex(found.digest), np.uint8)
    native.write(tensors, path, METADATA)


def load(path: str | Path, model: Model | None = None) -> Deployment:
    """The deployment at ``path``, its numbers to the bit.

    ``model``: the one that it must be for. ``ValueError`` says in one line what is wrong: no safetensors, another
    format, a newer schema, an edited or damaged file, another model; nothing is loaded in part.
    """
    path = Path(path)
    with reading.shown(f"packed: {path}"):
        return _load(path, model)


def _load(path: Path, model: Model | None) -> Deployment:
    """The same, its errors with whatever letters are in the file."""
    tensors = _tensors(path)
    text = _inflated(tensors.pop(LISTED), path)
    header, digest = parsed(text, str(path)), tensors.pop(DIGEST)
    found = Contents(header, _arrays(header["arrays"], tensors, path))
    if found.text.encode() != text or bytes.fromhex(found.digest) != digest.tobytes():
        raise ValueError(f"packed: {path} is damaged or was edited: its digest is not that of its contents")
    return restored(found, str(path), model)


def _tensors(path: Path) -> Arrays:
    """What the file holds: jvq's own three, uint8 [n], and arrays of the model."""
    if not path.is_file():
        raise ValueError(f"packed: there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as f:
            about = f.metadata() or {}
            if about.get("format") != METADATA["format"]:
                got = about.get("format", "none")
                raise ValueError(f'packed: {path} is no packed model of jvq: its format is {got}, not "{FORMAT}"')
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
        with path.open("rb") as file:
            text = file.read(int.from_bytes(file.read(8), "little"))
    except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"packed: {path} cannot be read as safetensors: {error}") from None
    lacking = [name for name in OURS if name not in tensors]
    if lacking:
        raise ValueError(f"packed: {path} lacks {', '.join(lacking)}")
    plain = all(tensors[name].dtype == np.uint8 and tensors[name].ndim == 1 for name in OURS)
    if not plain or about != METADATA or not text.rstrip(b" ").endswith(b"}"):
        raise ValueError(f"packed: {path} is damaged or was edited: its first bytes are not as jvq writes them")
    return tensors


def _inflated(stored: np.ndarray, path: Path) -> bytes:
    """The text behind the compressed header."""
    try:
        opened = lzma.LZMADecompressor(memlimit=MEMORY)
        text = opened.decompress(stored.tobytes(), LONGEST)
    except lzma.LZMAError as error:
        raise ValueError(f"packed: {path} is damaged or was edited: its header does not unfold: {error}") from None
    if not opened.eof or opened.unused_data:
        raise ValueError(f"packed: {path} is damaged or was edited: its header is cut, too long, or not alone")
    return text


def _arrays(listed: list[Any], tensors: Arrays, path: Path) -> Arrays:
    """The arrays that the header lists: tensors of their own, or the next piece of the one for small ones."""
    small, at, found = tensors.pop(SMALL).tobytes(), 0, {}
    for name, dtype, shape in listed:
        if name in tensors:
            found[name] = tensors.pop(name)
            if (str(found[name].dtype), found[name].shape) != (dtype, tuple(shape)):
                raise ValueError(f"packed: {path} is damaged or was edited: {name} is not as its header lists it")
            continue
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if at + size > len(small):
            raise ValueError(f"packed: {path} lacks the array {name} or has not all of it")
        found[name] = np.frombuffer(small[at : at + size], dtype).reshape(shape)
        at += size
    if tensors or at != len(small):
        more = ", ".join(tensors) or f"{len(small) - at} bytes"
        raise ValueError(f"packed: {path} holds more than its header lists: {more}")
    return found
