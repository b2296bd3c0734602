"""Nothing is written outside of the folder that it belongs into, whatever names and links say."""

import http.client
import os
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvq.data import label_folder
from jvq.data.folder import ImageFolder
from jvq.models.weights import download, names, open_weights

from . import loading, models

PIECES = st.sampled_from(
    [
        "..",
        ".",
        "/",
        "//",
        "timm/",
        "hf:",
        "augreg/",
        "x",
        "@",
        "\0",
        "\n",
        "%2e%2e",
        "a" * 300,
        "~",
        "é",
        "B_16",
        "-i21k-",
    ]
)


@given(
    st.lists(PIECES, min_size=1, max_size=8).map("".join),
    st.sampled_from(["", "timm/", "hf:", "hf:a/", "augreg/", "timm/x@"]),
)
@settings(max_examples=400, deadline=None)
def test_a_public_name_stays_in_the_cache(text: str, prefix: str) -> None:
    try:
        remote = names.located(prefix + text)
    except ValueError:
        return
    if remote is not None:
        cache = Path("/cache")
        folder = download.folder_of(remote, cache)
        for file in remote.files:
            place = Path(os.path.normpath(folder / file.filename))
            assert place.is_relative_to(cache / "weights")
            assert place.parent == folder
            assert "\0" not in str(place)


@pytest.mark.parametrize(
    "name", ["hf:../../x", "hf:a/../x", "timm/../../x", "timm/x@../y", "augreg/../x", "a\0b", "hf:a/b\0", "/no/\0/x"]
)
def test_a_name_that_leads_elsewhere_is_refused(name, untouched, monkeypatch) -> None:
    monkeypatch.setenv("JVQ_CACHE", str(untouched / "cache"))
    monkeypatch.setenv("JVQ_OFFLINE", "1")
    with pytest.raises(ValueError, match="weights: "):
        open_weights(name)
    assert not (untouched / "cache").exists() or not list((untouched / "cache").rglob("*.safetensors"))


def test_a_link_in_the_cache_is_not_written_through(untouched, monkeypatch) -> None:
    remote = names.located("timm/x")
    assert remote is not None
    folder = download.folder_of(remote, untouched / "cache")
    folder.mkdir(parents=True)
    (folder / "config.json.part").symlink_to(untouched.parent / "beside")
    (folder / "config.json.part.json").write_text('{"etag": "x"}')

    ours, theirs = socket.socketpair()  # a server that goes on behind what is there
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 9-12/13\r\nContent-Length: 4\r\n\r\nmore")
        response = http.client.HTTPResponse(ours)
        response.begin()
        client = download._Client(download.Network())
        monkeypatch.setattr(client, "rest", lambda url, part: response)
        with pytest.raises(download._Unwritable):
            download._attempt(remote.files[0], folder / "config.json.part", lambda *_: None, client)


@pytest.mark.parametrize("member", ["../beside", "/beside", "..\\beside", "a/../../beside", "beside\0.npy"])
def test_members_of_a_zip_file_are_never_files(member, untouched) -> None:
    for name in ("a.npz", "a.pth"):
        with zipfile.ZipFile(untouched / name, "w") as file:
            file.writestr(member, b"x")
            file.writestr("archive/data.pkl", b"\x80\2}.")
        with pytest.raises(ValueError, match=rf"weights: .*{name}"):
            open_weights(str(untouched / name))
    assert sorted(p.name for p in untouched.iterdir()) == ["a.npz", "a.pth"]


def test_a_file_of_labels_replaces_a_link(untouched) -> None:
    (untouched / "header.json").symlink_to(untouched.parent / "beside")
    (untouched / "header.json.part").symlink_to(untouched.parent / "beside")
    label_folder.replace(untouched / "header.json", b"new")
    assert not (untouched / "header.json").is_symlink()


def test_a_packed_folder_reads_its_own_arrays_only(untouched) -> None:
    import json

    from jvq.export import load_folder

    models.packed_folder(untouched)
    about = json.loads((untouched / "a" / "deployment.json").read_text())
    for name in ("../a/arrays0", "/etc", "arrays0/..", "arrays0/../../..", "arrays\0", "..", ""):
        (untouched / "a" / "deployment.json").write_text(json.dumps({**about, "arrays": name}))
        with pytest.raises(ValueError, match="packed: "):
            load_folder(untouched / "a")


@pytest.mark.parametrize("location", ["../beside", "link", "/etc/passwd", "", "."])
def test_the_numbers_of_a_graph_lie_in_its_folder(location, untouched) -> None:
    import onnx

    (untouched / "link").symlink_to(untouched.parent / "beside")
    model = onnx.load_from_string(models.onnx_file(untouched)["a.onnx"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (untouched / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="no file of its folder"):
        open_weights(str(untouched / "a.onnx"))


def test_numbers_beside_a_graph_are_read(untouched) -> None:
    import onnx

    model = onnx.load_from_string(models.onnx_file(untouched)["a.onnx"])
    want = loading.foreign_checkpoint_of(untouched / "a.onnx", model.SerializeToString())
    onnx.save_model(model, str(untouched / "b.onnx"), save_as_external_data=True, location="b.data", size_threshold=0)
    got = open_weights(str(untouched / "b.onnx"), model={"heads": 2})
    assert not loading.identical(want.params, got.params)


def test_names_with_lines_in_them_stay_in_one_line(untouched) -> None:
    from jvq.data.folder import read_image

    path = untouched / "two\nlines\x1b[2J.png"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="not a readable image") as caught:
        read_image(path)
    assert str(caught.value).isprintable()


def test_links_out_of_a_folder_of_images_are_read(untouched) -> None:
    """A folder of links is how a data set is arranged anew."""
    from PIL import Image

    (untouched / "images").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(untouched / "images" / "a.png")
    (untouched / "set" / "x").mkdir(parents=True)
    (untouched / "set" / "x" / "b.png").symlink_to(untouched / "images" / "a.png")
    (untouched / "set" / "y").symlink_to(untouched / "images", target_is_directory=True)
    assert len(ImageFolder(untouched / "set")) == 2
