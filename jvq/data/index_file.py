"""The file that a folder's index is kept in: used as long as no folder has changed, built anew otherwise.

One is written for a folder of at least ``LEAST`` images, to ``folders/`` in ``JVQ_CACHE`` (else ``XDG_CACHE_HOME/jvq``,
else ``~/.cache/jvq``), under a digest of the folder's real path. A file is the checksum of what follows, a line of JSON
that says what there is, and the arrays. One that is broken, of another version or of another folder counts as none. Any
of them may be deleted at any time.

Adding, removing and renaming change the time of the folder that it happens in, so a time for each folder is all that is
compared. A folder that changed less than ``SETTLES`` before it was read may change once more within the same tick of
its file system's clock: it gets no time in the file, and the next one who opens it reads it again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jvq.core import files, reading
from jvq.data import index
from jvq.data.index import SUFFIXES, Index

FORMAT = "jvq: index of a folder of images, version 1"
LEAST = 10_000  #: images; fewer are found again in the time that the file takes
SETTLES = 2 * 10**9  #: ns, the coarsest clock of a file system
DIGITS = 8  #: of the checksum
ALIGNED = 64  #: the arrays begin at a multiple of so many bytes
LONG, SHORT, BYTES = "<i8", "<i4", "u1"
ARRAYS = {
    "states": LONG, "first": LONG, "folder_ends": LONG, "ends": LONG, "labels": SHORT, "names": BYTES, "folders": BYTES,
}  #: falling, so that each begins where its type may  # fmt: skip
LONGEST = 2**26  #: bytes of the line, which has the classes' names
PIECE = 2**20  #: bytes read at a time: the checksum needs no page of the mapped file


def opened(root: Path) -> Index:
    """The index of the folder: the kept one where nothing has changed since, else of what lies there now.

    ``ValueError`` as of :func:`jvq.data.index.scan`. A cache that cannot be written to only costs time and memory.
    """
    real = os.path.realpath(root)
    file = files.cache() / "folders" / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.index"
    kept = _read(file)
    if kept is not None and kept[0] == real and unchanged(kept[1], root):
        return kept[1]
    began = time.time_ns()
    found = index.scan(root)
    return found if len(found) < LEAST else _keep(found, file, real, began)


def unchanged(kept: Index, root: Path) -> bool:
    """Whether every folder has the times that it had when it was read."""
    try:
        return all(index.state(os.path.join(root, kept.folder(k))) == tuple(s) for k, s in enumerate(kept.states))
    except (OSError, ValueError):  # of a folder that is gone
        return False


def again(file: Path, digest: int) -> Index:
    """The kept index of this digest, in another process. ``ValueError``: it is not there any more."""
    with contextlib.suppress(OSError, *reading.BROKEN):
        _, found = _mapped(file)
        if found.digest == digest:
            return found
    raise ValueError(f"source 'folder': the index {file} was replaced, as its folder has changed: start again")


def _keep(found: Index, file: Path, real: str, began: int) -> Index:
    """The same index out of the file, where it can be written; as it is where it cannot."""
    arrays = {name: np.ascontiguousarray(getattr(found, name), dtype) for name, dtype in ARRAYS.items()}
    settled = (arrays["states"] < began - SETTLES).all(axis=1, keepdims=True)
    arrays["states"] = np.where(settled, arrays["states"], -1)
    counts = {name: made.size for name, made in arrays.items()}
    header = {"format": FORMAT, "folder": real, "suffixes": SUFFIXES, "counts": counts, "classes": found.classes}
    line = json.dumps(header).encode()
    line += b" " * (-(DIGITS + len(line) + 1) % ALIGNED) + b"\n"
    digest = zlib.crc32(line)
    for made in arrays.values():
        digest = zlib.crc32(_bytes(made), digest)
    with contextlib.suppress(OSError, ValueError), _alone(file.parent) as alone:
        if alone:
            with files.replacing(file) as part, part.open("xb") as out:
                out.write(_digits(digest) + line)
                for made in arrays.values():
                    out.write(_bytes(made))
            return _mapped(file)[1]
    return found


def _digits(digest: int) -> bytes:
    return f"{digest:0{DIGITS}x}".encode()


def _bytes(made: np.ndarray) -> np.ndarray:
    return made.reshape(-1).view(np.uint8)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no other process is writing there; nobody waits for another, both have found the same."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        yield alone
    finally:
        os.close(lock)  # which unlocks


def _read(file: Path) -> tuple[str, Index] | None:
    """The folder's real path and its index, None where there is none or it is not as it was written."""
    with contextlib.suppress(OSError, *reading.BROKEN):
        real, found = _mapped(file)
        digest = 0
        with file.open("rb") as stream:
            stream.seek(DIGITS)
            while piece := stream.read(PIECE):
                digest = zlib.crc32(piece, digest)
            stream.seek(0)
            same = stream.read(DIGITS) == _digits(digest)
        if same:
            return real, found
    return None


def _mapped(file: Path) -> tuple[str, Index]:
    """The same, the checksum not compared. Raises ``OSError`` and ``BROKEN``."""
    with file.open("rb") as stream:
        digest, line = int(stream.read(DIGITS), 16), stream.readline(LONGEST)
    header: dict[str, Any] = reading.json_value(line, str(file))
    if header["format"] != FORMAT or header["suffixes"] != list(SUFFIXES):
        raise ValueError(f"{file} is of another version")
    body = np.memmap(file, np.uint8, "r", offset=DIGITS + len(line)).view(np.ndarray)
    arrays, at = {}, 0
    for name, dtype in ARRAYS.items():
        size = header["counts"][name] * np.dtype(dtype).itemsize
        arrays[name] = body[at : at + size].view(dtype)
        at += size
    if at != len(body):
        raise ValueError(f"{file} must have {at} bytes of arrays, got {len(body)}")
    arrays["states"] = arrays["states"].reshape(-1, 2)
    found = Index(classes=tuple(header["classes"]), **arrays, file=file, digest=digest)
    return header["folder"], found
