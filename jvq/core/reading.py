"""Reading what somebody else wrote: nothing is unfolded before its size is known, what is wrong is said in one line.

A file may say that it holds 2**60 numbers, or hold a gigabyte of zeros in a megabyte. What it says is therefore
compared with what it has, and what it unfolds to with its size, before anything is allocated.
"""

import ast
import contextlib
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FREE = 2**28  #: bytes to which any file may unfold
RATIO = 64  #: beyond these, times its own size: deflate reaches 1032, trained weights not 2, drawings about 50
LONGEST = 800  #: letters of an error: a name in a file may have a million
HEADER = 10_000  #: bytes of an .npy header, as in NumPy
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  #: NumPy's and torch's; others reserve memory by their own word
ENCRYPTED = 1  #: bit of a member's flags
BROKEN = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    OSError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)  #: what the readers of formats raise for a broken file

Arrays = dict[str, np.ndarray]


def line(error: object) -> str:
    """What an error says as one line that a terminal can show: nothing unprintable, the middle of a long one left out.

    An error that says nothing is named by its type.
    """
    said = str(error) or type(error).__name__
    said = " ".join(part.strip() for part in said.splitlines() if part.strip())
    said = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in said)
    return said if len(said) <= LONGEST else f"{said[: LONGEST // 2]} ... {said[-LONGEST // 2 :]}"


@contextlib.contextmanager
def shown(what: str = "", *kinds: type[Exception]) -> Iterator[None]:
    """Errors of the kinds come out as ``ValueError(f"{what}: {their line}")``, ours as they are but for odd letters.

    Names and values out of a file stand in many errors; here they become harmless. An error is one of ours where it
    begins as ``what`` does.
    """
    try:
        yield
    except (ValueError, *kinds) as error:
        ours = type(error) is ValueError and str(error).startswith(what.split(":")[0])
        raise ValueError(line(error) if ours else f"{what}: {line(error)}") from None


def json_value(data: bytes | str, what: str) -> Any:
    """The JSON value in UTF-8 text. ``ValueError(f"{what}: ...")``: it is none, is nested too deep, or has NaN."""

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {line(error)}") from None


def allowed(size: int) -> int:
    """Bytes to which a file of ``size`` bytes may unfold."""
    return max(FREE, RATIO * size)


# --- zip ------------------------------------------------------------------------------------------------------------


class Members:
    """The members of a zip file by name, each once, of a bearable size together, none of them encrypted."""

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        self.file = file
        self.sizes: dict[str, int] = {}
        for info in file.infolist():
            if info.filename in self.sizes:
                raise ValueError(f"it has two members '{info.filename}'")
            if info.compress_type not in METHODS or info.flag_bits & ENCRYPTED:
                raise ValueError(f"its member '{info.filename}' is encrypted, or packed in a way that is not read")
            self.sizes[info.filename] = info.file_size
        if (total := sum(self.sizes.values())) > allowed(size):
            raise ValueError(f"it would unfold to {total} bytes, {total // max(size, 1)} times its size; it is refused")

    def read(self, name: str) -> bytes:
        """All of a member, its checksum compared."""
        return self.file.read(name)


@contextlib.contextmanager
def members(path: Path) -> Iterator[Members]:
    """The members of the zip file at ``path``. Raises ``BROKEN``; nothing is unfolded yet."""
    with path.open("rb") as stream, zipfile.ZipFile(stream) as file:
        yield Members(file, path.stat().st_size)


# --- NumPy's formats ------------------------------------------------------------------------------------------------


def npz(path: Path, what: str) -> Arrays:
    """The arrays of an ``.npz`` file by name. ``ValueError`` in one line; no Python objects are made."""
    with shown(what, *BROKEN), members(path) as found:
        arrays: Arrays = {}
        for name, size in found.sizes.items():
            if not name.endswith(".npy"):
                raise ValueError(f"{what}: it has a member '{name}', which is no array")
            with found.file.open(name) as stream:
                try:
                    arrays[name.removesuffix(".npy")] = npy(stream, size)
                except ValueError as error:
                    raise ValueError(f"{what}: array '{name}': {error}") from None
        return arrays


def npy(stream: Any, size: int) -> np.ndarray:
    """The array of an ``.npy`` stream of ``size`` bytes. ``ValueError``: it does not hold what its header says."""
    dtype, shape, fortran, start = npy_header(stream, size)
    data = stream.read(size - start)
    if len(data) != size - start or stream.read(1):  # reads to the end, where a zip file compares the checksum
        raise ValueError(f"it ends after {start + len(data)} of {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def npy_header(stream: io.BufferedIOBase, size: int) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Type, shape, whether columns come first, and where the numbers begin. ``ValueError``: ``size`` is another.

    Stricter than NumPy's own, which evaluates what Python 2 wrote and reserves the memory that is claimed.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its version is {version}")
    form = "<H" if version == (1, 0) else "<I"
    (length,) = struct.unpack(form, stream.read(struct.calcsize(form)))
    if length > HEADER:
        raise ValueError(f"its header has {length} bytes")
    try:
        text = stream.read(length).decode("utf-8" if version == (3, 0) else "latin-1")
        header = ast.literal_eval(text.strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
        dtype = np.lib.format.descr_to_dtype(descr)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"its header cannot be read: {type(error).__name__}") from None  # the text may be anything
    plain = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not plain or len(shape) > 32 or type(fortran) is not bool or len(header) != 3:
        raise ValueError("its header is none of an array's")
    if dtype.hasobject or not dtype.itemsize or dtype.subdtype:
        raise ValueError(f"it holds {dtype}, which is no number")
    start = len(np.lib.format.magic(*version)) + struct.calcsize(form) + length
    if math.prod(shape) * dtype.itemsize != size - start:
        raise ValueError(f"it must hold {dtype} {shape}, and has {size - start} bytes of it")
    return dtype, shape, fortran, start


def npy_file(path: Path) -> np.ndarray:
    """The array in an ``.npy`` file. Raises ``ValueError`` and ``OSError``."""
    with path.open("rb") as stream, shown("", *BROKEN):
        return npy(stream, path.stat().st_size)


def npy_mapped(path: Path) -> np.ndarray:
    """The array in an ``.npy`` file, read-only, mapped into memory. Raises ``ValueError`` and ``OSError``."""
    with path.open("rb") as stream, shown("", *BROKEN):
        dtype, shape, fortran, start = npy_header(stream, path.stat().st_size)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
