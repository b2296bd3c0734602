"""What unfolds to far more than it is, or claims to, is refused before the memory is taken."""

import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jvq.core import reading
from jvq.data import Preprocess, open_source
from jvq.data.folder import ImageFolder, read_image
from jvq.data.records import CorruptImage
from jvq.export import load
from jvq.models.weights import open_weights, torch_file

from . import inputs, loading, models, structured

MUCH = 2**26  #: bytes that no refusal needs


def refused(call, *arguments, kind=ValueError, match=".") -> str:
    """The line of the refusal, for which little memory was taken."""
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=match) as caught:
            call(*arguments)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MUCH
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zeros(name: str, size: int) -> bytes:
    """A zip file of a member of zeros, a thousandth of its size; written as a stream, never in memory."""
    out = io.BytesIO()
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + repr({"descr": "|u1", "fortran_order": False, "shape": (size,)}).encode().ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file, file.open(name, "w", force_zip64=True) as member:
        member.write(header)
        for _ in range(size // 2**20):
            member.write(bytes(2**20))
    return out.getvalue()


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """300 MB in 300 KB."""
    return zeros("images.npy", 300 * 2**20)


def test_zeros_in_an_npz(bomb, untouched) -> None:
    (untouched / "a.npz").write_bytes(bomb)
    refused(
        open_source, "npz", "test", untouched / "a.npz", match="would unfold to 314572928 bytes, 1028 times its size"
    )
    refused(open_weights, str(untouched / "a.npz"), match="would unfold to")


def test_zeros_in_a_pth(bomb, untouched) -> None:
    (untouched / "a.pth").write_bytes(bomb)
    refused(open_weights, str(untouched / "a.pth"), match="would unfold to")


def test_a_member_that_is_longer_than_its_directory_says(untouched) -> None:
    data = zeros("images.npy", 2**20)
    at = data.rindex(b"PK\x01\x02") + 24
    (untouched / "a.npz").write_bytes(data[:at] + struct.pack("<I", 200) + data[at + 4 :])
    refused(open_source, "npz", "test", untouched / "a.npz", match="must hold uint8|Bad CRC-32")


def test_what_may_unfold_grows_with_the_file() -> None:
    assert reading.allowed(0) == reading.FREE
    assert reading.allowed(10**9) == reading.RATIO * 10**9


@pytest.mark.parametrize("shape", ["(1152921504606846976,)", "(4294967296, 4294967296)", "(68719476736,)"])
def test_a_claimed_shape(shape, untouched) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile(untouched / "a.npz", "w") as file:
        file.writestr("images.npy", b"\x93NUMPY\x01\x00v\x00" + header + bytes(64))
    assert "it must hold float32" in refused(open_source, "npz", "test", untouched / "a.npz")


def pickled(body: bytes, untouched: Path) -> Path:
    with zipfile.ZipFile(untouched / "a.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", body)
        file.writestr("a/data/0", bytes(16))
    return untouched / "a.pth"


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"
REPEATED = (
    b"\x80\2}X\1\0\0\0xctorch._utils\n_rebuild_tensor_v2\n("
    + STORAGE
    + b"K\0(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft(K\0K\0t\x89}tRs."
)
ORDERED = b"ccollections\nOrderedDict\nq\0"
THOUSAND = b"}q\1(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(1000)) + b"u"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (REPEATED, "far more bytes than the file has"),  # a number repeated by strides of zero
        (b"\x80\2})" + b"22\x87" * 200 + b"K\1s.", "DUP|a tuple as a key"),
        (b"\x80\2)q\0" + b"h\0h\0\x86q\0" * 200 + b"}h\0K\1s.", "a tuple as a key"),  # 2**200 tuples to hash
        (b"\x80\2\x8b" + struct.pack("<I", 2**23) + b"\1" * 2**23 + b"q\0}h\0Ns.", "bits as a key"),  # slow to hash
        (b"\x80\2" + ORDERED + THOUSAND + b"h\0h\1\x85R" * 1000 + b".", "calls with more"),  # a million things
        (b"\x80\2" + ORDERED + b"(" + b"N" * 1000 + b"tR.", "a call with 1000 arguments"),
        (b"\x80\2}q\0X\5\0\0\0modelh\0s.", "dictionaries in dictionaries"),  # holds itself
        (b"\x80\2" + b"K\0" * (2**18 + 9) + b".", "more than 262144 operations"),
        (b"\x80\2" + b"N" * 2**25 + b".", "its pickle has 33554435 bytes"),
        (b"\x80\2\x8e" + struct.pack("<Q", 2**60) + b".", "expected"),
    ],
)  # fmt: skip
def test_a_pickle_that_grows(body, says, untouched) -> None:
    refused(open_weights, str(pickled(body, untouched)), match=says)


def test_a_storage_of_many_types_is_held_once(untouched) -> None:
    path, size = untouched / "a.pth", 2**24
    kinds = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    body = b"".join(STORAGE.replace(b"Float", kind.encode()) for kind in kinds)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\x80\2" + body + b"}.")
        file.writestr("a/data/0", bytes(size))
    tracemalloc.start()
    assert torch_file.unpickled(path) == {}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size  # unfolding takes it twice for a moment


def headed(untouched: Path, **fields) -> Path:
    """Our own file whose Spec says something else."""
    data = models.native_file(untouched)["a.safetensors"]
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    about = header["__metadata__"]
    about["spec"] = json.dumps({**json.loads(about["spec"]), **fields})
    text = json.dumps(header).encode()
    (untouched / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return untouched / "a.safetensors"


@pytest.mark.parametrize(
    "fields",
    [
        {"depth": 10**9},
        {"image": [2**20, 2**20]},
        {"dim": 2**40},
        {"mlp_ratio": 1e300},
        {"heads": -2},
        {"patch": 0},
        {"channels": 2**30},
    ],
)
def test_a_model_that_nobody_can_trace(fields, untouched) -> None:
    refused(
        open_weights, str(headed(untouched, **fields)), match="more than|must be above zero|cannot be|is not a multiple"
    )


def test_a_window_whose_table_would_fill_the_memory(untouched) -> None:
    data = models.swin_file(untouched)["a.safetensors"]
    size = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + size].replace(b'\\"window\\": 2', b'\\"window\\": 2000')
    assert len(text) == size + 3
    (untouched / "a.safetensors").write_bytes(
        (len(text) + 5).to_bytes(8, "little") + text + b" " * 5 + data[8 + size :]
    )
    refused(open_weights, str(untouched / "a.safetensors"), match="windows of 64")


def test_the_header_of_a_packed_file(untouched) -> None:
    from safetensors.numpy import load as read
    from safetensors.numpy import save

    whole = read(models.packed_file(untouched)["a.safetensors"])
    for text, filters in ((bytes(2**27), None), (b"{}", [{"id": 0x21, "dict_size": 2**30}])):
        import lzma

        whole["jvq.header"] = np.frombuffer(
            lzma.compress(text, filters=filters, **({} if filters else {"preset": 0})), np.uint8
        )
        (untouched / "a.safetensors").write_bytes(save(whole, {"format": '"jvq-packed"'}))
        with pytest.raises(ValueError, match="too long|Memory usage limit exceeded"):
            load(untouched / "a.safetensors")


def test_soft_labels_that_claim_too_much(untouched) -> None:
    files = inputs.soft_labels(untouched)
    folder = untouched / "a"
    for claims in ({"images": 2**60, "shard": 2**60}, {"classes": 2**31}, {"crops": 2**40}, {"shard": 0}):
        (folder / "header.json").write_text(json.dumps({**json.loads(files["header.json"]), **claims}))
        refused(loading.labels, folder, match="soft labels: ")


# --- Images ---------------------------------------------------------------------------------------------------------


def png(y: int, x: int) -> bytes:
    """A grey PNG of so many pixels, all black."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(x + 1)) for _ in range(y)) + rows.flush()
    parts = ((b"IHDR", struct.pack(">IIBBBBB", x, y, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # its word; ours is the error
@pytest.mark.parametrize("size", [(9500, 9500), (1, 5000), (5000, 1)])
def test_pixels_without_end(size, untouched) -> None:
    (untouched / "a.png").write_bytes(png(*size))
    assert "a.png: not a readable image (" in refused(read_image, untouched / "a.png", kind=CorruptImage)


def test_a_warning_of_pillow_is_an_error(untouched, monkeypatch) -> None:
    (untouched / "a.png").write_bytes(png(40, 40))
    assert read_image(untouched / "a.png").shape == (40, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow raises from twice as many on
    with pytest.raises(CorruptImage, match="not a readable image"):
        read_image(untouched / "a.png")


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_text_that_unfolds_without_end(kind, untouched) -> None:
    data, body = png(4, 4), b"a\0" + (b"\1\0\0\0" if kind == b"iTXt" else b"\0") + structured.BOMB
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (untouched / "a.png").write_bytes(data[:33] + chunk + data[33:])
    try:
        assert read_image(untouched / "a.png").shape == (4, 4, 3)  # the profile is left out
    except CorruptImage as error:
        assert "\n" not in str(error)  # noqa: PT017 (either is right)


def test_a_row_of_pixels_is_not_grown_without_end() -> None:
    preprocess = Preprocess.from_dict({**loading.GREY, "resize": 256, "size": [224, 224]})
    refused(preprocess, np.zeros((1, 10**6, 1), np.uint8), match="an image of 1x1000000 pixels would be 256x256000000")


@pytest.mark.parametrize("kind", ["TIFF", "EPS", "PPM", "ICO", "TGA", "PDF"])
def test_other_formats_under_a_name_that_is_read(kind, untouched) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, kind)
    (untouched / "a.png").write_bytes(out.getvalue())
    with pytest.raises(CorruptImage, match=r"a\.png: not a readable image"):
        read_image(untouched / "a.png")


def test_folders_that_lie_in_themselves(untouched) -> None:
    (untouched / "class").mkdir()
    (untouched / "class" / "a.png").write_bytes(png(4, 4))
    for name in "bc":  # two: each level doubles what there is to walk
        (untouched / "class" / name).symlink_to(untouched / "class", target_is_directory=True)
    with pytest.raises(ValueError, match="source 'folder': .* lies in itself"):
        ImageFolder(untouched)


def test_folders_without_end(untouched) -> None:
    (untouched / "/".join("d" * 200)).mkdir(parents=True)
    with pytest.raises(ValueError, match="more than 64 folders deep"):
        ImageFolder(untouched)
