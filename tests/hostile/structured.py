"""Changes that keep a format's outside whole, so that what is inside is reached: headers, directories, opcodes."""

import ast
import contextlib
import io
import itertools
import json
import lzma
import pickletools
import random
import struct
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np

from . import mutations

DESCRIPTIONS = ("|O", "O", "<f8", "<U8", "|V2", "|S4", "V1000000000", "<m8[s]", [("a", "<f4"), ("b", "|O")], "f4,f4", 7)
SHAPES = ((), (0,), (2**20,), (2**40,), (2**60,), (2**62, 4), (-1,), (-4, -2), (1,) * 40, (1,) * 100, (2.0,), ("3",), 5)
DTYPES = ("F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "X9", "")


# --- safetensors ----------------------------------------------------------------------------------------------------


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header says something else."""
    if rng.random() < 0.3:
        return mutations.of_bytes(rng, data)
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    entry = header[rng.choice(names)]
    what = rng.randrange(8)
    if what == 0:
        entry["data_offsets"] = [rng.choice((*mutations.NUMBERS, n)) for n in entry["data_offsets"]]
    elif what == 1:
        entry["shape"] = rng.choice(([], [0], [2**60], [2**62, 4], entry["shape"][::-1], [1, *entry["shape"]], [-1]))
    elif what == 2:
        entry["dtype"] = rng.choice(DTYPES)
    elif what == 3:
        header[rng.choice((*mutations.TEXTS, "x" * 100_000, rng.choice(names) + "/x"))] = entry
    elif what == 4:  # overlapping, or out of order
        a, b = (header[rng.choice(names)] for _ in range(2))
        a["data_offsets"], b["data_offsets"] = b["data_offsets"], a["data_offsets"]
    elif what == 5:
        header = metadata(rng, header)
    elif what == 6:
        header = mutations.value(rng, header)
    text = json.dumps(header).encode()
    if what == 7:  # the same name twice
        name = json.dumps(rng.choice(names)).encode()
        text = text.replace(b"{", b"{" + name + b': {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, ', 1)
    text += b" " * (-len(text) % 8)
    length = len(text) if rng.random() < 0.95 else rng.choice(mutations.NUMBERS) % 2**64
    return length.to_bytes(8, "little") + text + body


def metadata(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """The header with a value of its metadata changed, which may be JSON itself."""
    about = header.get("__metadata__")
    if not about:
        return {**header, "__metadata__": {rng.choice(("format", "x")): rng.choice(mutations.TEXTS)}}
    name = rng.choice(list(about))
    try:
        new = json.dumps(mutations.value(rng, json.loads(about[name]))) if rng.random() < 0.8 else about[name] + "]"
    except ValueError:
        new = rng.choice(mutations.TEXTS)
    if rng.random() < 0.05:
        new = "[" * 100_000
    return {**header, "__metadata__": {**about, name: new}}


def packed(rng: random.Random, data: bytes) -> bytes:
    """A packed file whose header says something else and whose digest is right: made by somebody who knows how."""
    from safetensors.numpy import load, save

    from jvq.export import packed_file
    from jvq.export.contents import Contents

    if rng.random() < 0.3:
        return safetensors(rng, data)
    tensors = load(data)
    header = json.loads(lzma.decompress(tensors[packed_file.LISTED].tobytes()))
    part = rng.choice((*header, "model", "quantizers", "packed", "model"))
    header[part] = mutations.value(rng, header[part])
    if rng.random() < 0.05:
        header = mutations.value(rng, header)
    small = tensors[packed_file.SMALL]
    try:
        arrays, at, raw = {}, 0, small.tobytes()
        for name, dtype, shape in header["arrays"]:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays[name] = tensors[name] if name in tensors else np.frombuffer(raw[at : at + size], dtype)
            at += 0 if name in tensors else size
        text = json.dumps(header, separators=(",", ":")).encode()
        digest = Contents(header, arrays).digest
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError):
        text, digest = json.dumps(header, separators=(",", ":")).encode(), "00" * 32
    options: dict[str, Any] = {}
    if rng.random() < 0.03:  # a bomb, and a dictionary of gigabytes
        text, options = b" " * 2**24, {"filters": [{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}]}
    tensors[packed_file.LISTED] = np.frombuffer(lzma.compress(text, **options), np.uint8)
    tensors[packed_file.DIGEST] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    return save(tensors, packed_file.METADATA)


# --- zip, npy, npz --------------------------------------------------------------------------------------------------


def npy_header(rng: random.Random, data: bytes) -> bytes:
    """An .npy file whose header says something else."""
    size = int.from_bytes(data[8:10], "little")
    body = data[10 + size :]
    header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (2,)}
    with contextlib.suppress(SyntaxError, ValueError):
        header = ast.literal_eval(data[10 : 10 + size].decode("latin-1"))
    what = rng.randrange(7)
    if what == 0:
        header["shape"] = rng.choice(SHAPES)
    elif what == 1:
        header["descr"] = rng.choice(DESCRIPTIONS)
    elif what == 2:
        header["fortran_order"] = rng.choice((True, 1, "yes", None))
    elif what == 3:
        del header[rng.choice(list(header))]
    elif what == 4:
        header["more"] = rng.choice(mutations.TEXTS)
    text = repr(header).encode("utf-8", "replace")
    if what == 5:
        text = rng.choice(
            (b"(" * 9000, b"{" * 9000, b"__import__('os').system('touch canary')", b"-" * 9000 + b"1", b"\0")
        )
    elif what == 6:
        text = mutations.of_bytes(rng, text)
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    length = len(text) + 1
    counted = struct.pack("<I" if version > b"\x01\x00" else "<H", min(length, 65535))
    return data[:6] + version + counted + text + b"\n" + body


def zipped(rng: random.Random, data: bytes, member: mutations.Change) -> bytes:
    """A zip file with one of its members changed, or whose directory lies."""
    what = rng.random()
    if what < 0.25:
        return mutations.of_bytes(rng, data)
    if what < 0.45:
        return directory(rng, data)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(name, file.read(name)) for name in file.namelist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    how = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    if what < 0.8:
        members[at] = (name, member(rng, content))
    elif what < 0.85:
        members[at] = (rng.choice((*mutations.TEXTS[:5], "../../x.npy", "/x.npy", "x\\..\\y", "\u202e")), content)
    elif what < 0.9:
        del members[at]
    elif what < 0.95:
        members.append((name, members[rng.randrange(len(members))][1]))
    else:
        members[at] = (name, content + bytes(rng.choice((10**5, 10**7))))
    out = io.BytesIO()
    how = how if rng.random() < 0.5 else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w", how) as file:  # of a name that is there
        for name, content in members:
            try:
                info = zipfile.ZipInfo(name)
                info.compress_type = file.compression
                file.writestr(info, content)
            except (ValueError, UnicodeError):  # a name that cannot be written
                file.writestr("x", content)
    return out.getvalue()


def directory(rng: random.Random, data: bytes) -> bytes:
    """A zip file with another number in a header of a member, or in its directory."""
    marks = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22}
    mark = rng.choice((b"PK\x01\x02", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"))
    places = [i for i in range(len(data) - 3) if data[i : i + 4] == mark]
    if not places:
        return mutations.of_bytes(rng, data)
    at = rng.choice(places)
    offset, size = at + rng.randrange(2, marks[mark] // 2) * 2, rng.choice((2, 4))
    return (
        data[:offset]
        + (rng.choice(mutations.NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")
        + data[offset + size :]
    )


def npz(rng: random.Random, data: bytes) -> bytes:
    """An .npz file with another header in one of its arrays, or another directory."""
    return zipped(rng, data, lambda rng, x: npy_header(rng, x) if rng.random() < 0.8 else mutations.of_bytes(rng, x))


# --- pickles --------------------------------------------------------------------------------------------------------

EVIL = (
    b"cos\nsystem\n(X\x0c\0\0\0touch canarytR",
    b"cbuiltins\neval\n(X\x04\0\0\0open tR",
    b"(X\x0c\0\0\0touch canaryios\nsystem\n",  # INST
    b"cposix\nsystem\n\x85R",
    b"c__builtin__\ngetattr\n0",
    b"ctorch\nload\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"\x82\x01",  # EXT1
    b"((((((((((((tttttttttttt",
    b")" + b"22\x87" * 60,  # tuples of tuples, three times as many at each step
    b"J\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",  # LONG4 of two gigabytes
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f",  # BINBYTES8
    b"I" + b"9" * 6000 + b"\n",
    b"P../../etc/passwd\n",
    b"b",
    b"u",
    b"e",
    b"0",
    b"R",
    b"Q",
    b"\x81",
    b"\x90",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
)


def pickled(rng: random.Random, data: bytes) -> bytes:
    """A pickle with operations left out, doubled, moved, of other numbers, or with others in between."""
    ends = [pos for _, _, pos in pickletools.genops(data) if pos is not None] + [len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(ends)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, what = rng.randrange(len(parts)), rng.randrange(6)
        if what == 0:
            del parts[at]
        elif what == 1:
            parts.insert(at, parts[rng.randrange(len(parts))])
        elif what == 2:
            parts.insert(at, rng.choice(EVIL))
        elif what == 3 and len(parts[at]) > 1:
            parts[at] = parts[at][:1] + mutations.of_bytes(rng, parts[at][1:])
        elif what == 4 and parts[at][:1] in (b"J", b"K", b"M"):
            parts[at] = b"J" + struct.pack("<I", rng.choice(mutations.NUMBERS) % 2**32)
        else:
            parts[at] = bytes([rng.randrange(256)]) + parts[at][1:]
        parts = parts or [b"."]
    return b"".join(parts)


def pth(rng: random.Random, data: bytes) -> bytes:
    """A torch checkpoint with another pickle, other storages, or another directory."""
    return zipped(rng, data, lambda rng, x: pickled(rng, x) if x[:1] == b"\x80" else mutations.of_bytes(rng, x))


# --- ONNX and images ------------------------------------------------------------------------------------------------


def onnx_graph(rng: random.Random, data: bytes) -> bytes:
    """An ONNX file with another tensor or node."""
    import onnx

    if rng.random() < 0.35:
        return mutations.of_bytes(rng, data)
    model = onnx.load_from_string(data)
    tensor = rng.choice(model.graph.initializer)
    node = rng.choice(model.graph.node)
    what = rng.randrange(10)
    if what == 0:
        tensor.dims[:] = [rng.choice((0, -1, 1, 2**31, 2**60, 7)) for _ in range(rng.randint(0, 4))]
    elif what == 1:
        tensor.data_type = rng.choice((0, 2, 3, 7, 8, 9, 10, 11, 14, 16, 17, 20, 21, 22, 23, 99, 2**31 - 1))
    elif what == 2:
        tensor.name = rng.choice((*mutations.TEXTS[:6], rng.choice(model.graph.initializer).name))
    elif what in (3, 4):
        tensor.data_location = onnx.TensorProto.EXTERNAL
        if rng.random() < 0.5:
            tensor.ClearField("raw_data")
        places = (
            "../../etc/passwd",
            "/etc/passwd",
            "a.onnx",
            "",
            ".",
            "..",
            "missing",
            "a\0b",
            "/dev/zero",
            "x" * 5000,
        )
        for key, value in {
            "location": rng.choice(places),
            "offset": rng.choice(("0", "-1", "x", str(2**60))),
            "length": rng.choice(("4", "-1", "x", str(2**60), str(2**40))),
        }.items():
            if rng.random() < 0.9:
                tensor.external_data.add(key=key, value=value)
    elif what == 5:
        del node.output[:]
    elif what == 6:
        del node.input[:]
    elif what == 7:
        node.op_type = rng.choice(("Identity", "Constant", "MatMul", "Gemm", "Add", ""))
        node.attribute.add(name="value")
    elif what == 8:
        tensor.ClearField("raw_data")
        tensor.float_data[:] = [1.0] * rng.choice((0, 1, 12))
    else:
        tensor.raw_data = mutations.of_bytes(rng, tensor.raw_data or b"0")
    return model.SerializeToString()


BOMB = zlib.compress(bytes(3 * 10**6))  #: of text, more than Pillow unfolds


def png(rng: random.Random, data: bytes) -> bytes:
    """A PNG with other chunks whose checksums are right: sizes, kinds, text and profiles that unfold without end."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    what, place = rng.randrange(6), rng.randrange(len(chunks))
    if what == 0:
        kind, body = chunks[0]
        sizes = [rng.choice((0, 1, 2**14, 2**31 - 1, 2**32 - 1, 1, 8)) for _ in range(2)]
        depth = bytes(rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5))
        chunks[0] = (kind, struct.pack(">II", *sizes) + (depth if rng.random() < 0.5 else body[8:]))
    elif what == 1:
        extra = (
            (b"zTXt", b"a\0\0" + BOMB),
            (b"iCCP", b"a\0\0" + BOMB),
            (b"iTXt", b"a\0\1\0\0\0" + BOMB),
            (b"tRNS", b"\0"),
        )
        chunks.insert(rng.randint(1, len(chunks)), rng.choice(extra))
    elif what == 2:
        kind, body = chunks[place]
        chunks[place] = (kind, mutations.of_bytes(rng, body) if body else b"x")
    elif what == 3:
        chunks.insert(place, rng.choice(chunks))
    elif what == 4:
        del chunks[place]
    else:
        kinds = (b"acTL", b"fcTL", b"fdAT", b"eXIf", b"PLTE", b"cHRM", b"xxxx", b"IEND")
        chunks.insert(rng.randint(0, len(chunks)), (rng.choice(kinds), rng.randbytes(rng.choice((0, 4, 26, 300)))))
    return data[:8] + b"".join(
        struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in chunks
    )
