"""The files of a folder of soft labels: each is whole or not there, and a header says what they are.

Every file is written as a whole (:mod:`jvq.core.files`). Which shards are finished, and their SHA-256, stands in
``shards.jsonl``.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jvq.core import files, reading

SCHEMA = 1
HEADER, SHARDS, CHOSEN = "header.json", "shards.jsonl", "chosen.npy"
ALL = "all"  #: in the header's ``chosen``: every image of the source has labels
KINDS = {
    "schema": int, "source": str, "of": int, "images": int, "chosen": str, "fingerprint": str, "classes": int,
    "crops": int, "keep": int, "policy": dict, "preprocess": dict, "seed": int, "teacher": str, "digest": str,
    "shard": int,
}  # fmt: skip
FIELDS = set(KINDS)
LARGEST = 2**16  #: classes that an index can tell apart
ABOVE = 1.1  #: what probabilities, each rounded to float16, add up to at most
POSITIVE = ("of", "images", "classes", "crops", "keep", "shard")

Header = Mapping[str, Any]
Finished = dict[int, tuple[int, str]]
"""Rows and SHA-256 of every finished shard, by its number."""


def record_type(crops: int, keep: int) -> np.dtype:
    """What is stored of an image: R boxes and flips, k indices and values of each, falling, and the image's CRC-32."""
    box, flip = ("box", "<f4", (crops, 4)), ("flip", "u1", (crops,))
    return np.dtype([box, flip, ("index", "<u2", (crops, keep)), ("value", "<f2", (crops, keep)), ("crc", "<u4")])


def shard_name(number: int) -> str:
    """The file of shard ``number``."""
    return f"{number:05d}.npy"


def shard_count(header: Header) -> int:
    """How many shards a whole folder has."""
    return -(-header["images"] // header["shard"])


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(chosen: Int[np.ndarray, " n"]) -> str:
    """What the header says of the places [n] of the labelled images."""
    return hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()[:16]


def replace(path: Path, content: bytes) -> None:
    """Puts ``content`` into the file as a whole: it is on the disk when the name is."""
    files.replace(path, content, "soft labels: ")


def npy(array: np.ndarray) -> bytes:
    """The array as an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def begin(folder: Path, header: Header, chosen: Int[np.ndarray, " n"]) -> None:
    """Makes ``folder`` one of ``header``, or finds that it is; ``chosen`` are the places [n] of the labelled images.

    Raises ``ValueError`` where it holds other labels, with every field that differs.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"soft labels: {folder} cannot be a folder: {error.strerror}") from error
    header, stored = json.loads(json.dumps(header)), read_header(folder)  # tuples become lists, as they come back
    if stored is None:
        (folder / SHARDS).unlink(missing_ok=True)  # shards of nobody knows what
    elif stored != header:
        keys = [key for key in {**header, **stored} if stored.get(key) != header.get(key)]
        differ = "; ".join(f"{key}: stored {stored.get(key)}, wanted {header.get(key)}" for key in keys)
        raise ValueError(f"soft labels: {folder} holds others: {differ}")
    if header["chosen"] != ALL:
        replace(folder / CHOSEN, npy(chosen))
    if stored is None:
        replace(folder / HEADER, (json.dumps(header, indent=1) + "\n").encode())


def read_header(folder: Path) -> dict[str, Any] | None:
    """The header, None where there is none; ``ValueError`` where it cannot be read."""
    path = folder / HEADER
    try:
        header = reading.json_value(path.read_bytes(), f"soft labels: {path} cannot be read")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"soft labels: {path} cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"soft labels: {path} must hold a JSON object, got {type(header).__name__}")
    return header


def note(folder: Path, shards: Finished) -> None:
    """Writes down which shards are finished."""
    lines = [{"shard": number, "rows": rows, "sha256": sha} for number, (rows, sha) in sorted(shards.items())]
    replace(folder / SHARDS, "".join(json.dumps(line) + "\n" for line in lines).encode())


def finished(folder: Path, header: Header) -> Finished:
    """The shards that are there, as ``shards.jsonl`` has them; their content is not looked at.

    What stands after a line that cannot be read, or is of a shard that cannot be, is not there.
    """
    found: Finished = {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        for line in map(json.loads, (folder / SHARDS).read_text().splitlines()):
            number, rows = int(line["shard"]), int(line["rows"])
            if number >= 0 and rows == min(header["shard"], header["images"] - number * header["shard"]):
                found[number] = (rows, str(line["sha256"]))
    return {number: found[number] for number in sorted(found) if (folder / shard_name(number)).is_file()}


def opened(folder: Path) -> tuple[dict[str, Any], Finished, Int[np.ndarray, " n"]]:
    """The header, the finished shards and the places of the labelled images in the source, of a whole folder.

    Raises ``ValueError`` for a folder that is missing, not finished, damaged, or of an unknown schema.
    """
    with reading.shown(f"soft labels: {folder}"):
        return _opened(folder)


def _opened(folder: Path) -> tuple[dict[str, Any], Finished, Int[np.ndarray, " n"]]:
    """The same, its errors with whatever letters are in the folder."""
    header = read_header(folder)
    if header is None:
        raise ValueError(f"soft labels: no {HEADER} in {folder}: no labels were written there")
    if header.get("schema") != SCHEMA:
        raise ValueError(f"soft labels: {folder} has schema {header.get('schema')}, this version reads {SCHEMA}")
    if missing := FIELDS - set(header):
        raise ValueError(f"soft labels: {folder / HEADER} has no {', '.join(sorted(missing))}")
    for name, kind in KINDS.items():
        if type(header[name]) is not kind or (name in POSITIVE and header[name] < 1):
            raise ValueError(f"soft labels: {folder / HEADER}: {name} cannot be {header[name]!r}")
    if not header["keep"] <= header["classes"] <= LARGEST:
        raise ValueError(
            f"soft labels: {folder / HEADER}: {header['keep']} of {header['classes']} classes cannot be kept"
        )
    shards, count = finished(folder, header), shard_count(header)
    if len(shards) < count:
        raise ValueError(f"soft labels: {folder} has {len(shards)} of {count} shards: write again, it goes on there")
    held = sum((folder / shard_name(number)).stat().st_size for number in shards)
    if header["images"] > held or header["crops"] * header["keep"] > held:  # a byte each, at the very least
        raise ValueError(f"soft labels: {folder / HEADER} claims {header['images']} images, in {held} bytes of shards")
    if header["chosen"] == ALL:
        return header, shards, np.arange(header["images"])
    path = folder / CHOSEN
    try:
        chosen = reading.npy_file(path)
        if chosen.dtype.kind not in "iu" or digest_of(chosen) != header["chosen"]:
            raise ValueError("it holds other numbers")
        if chosen.shape != (header["images"],) or chosen.min() < 0 or chosen.max() >= header["of"]:
            raise ValueError(f"it must hold {header['images']} places of {header['of']}")
    except (OSError, ValueError) as error:
        raise ValueError(f"soft labels: {path} is not as it was written: {error}") from error
    return header, shards, chosen


def problem(records: np.ndarray, rows: int, kind: np.dtype, classes: int) -> str:
    """What is wrong with the records of a shard, whoever wrote them; empty where nothing is."""
    if records.shape != (rows,) or records.dtype != kind:
        return f"must hold {rows} of {kind}, got {records.dtype} {records.shape}"
    if (most := records["index"].max()) >= classes:
        return f"has labels of class {most}, of {classes}"
    value = records["value"].astype(np.float32)
    if not ((0 <= value) & (value <= 1)).all() or value.sum(axis=-1).max() > ABOVE:
        return "has values that are no probabilities"
    return "" if np.isfinite(records["box"]).all() else "has boxes that are not finite"
