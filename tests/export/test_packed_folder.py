"""Packed folders: as a file, with orbax for the arrays."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from jvq.export import load_folder, packed_folder, save_folder
from jvq.export.contents import Contents, contents
from jvq.models import build


@pytest.fixture(scope="module")
def whole(deployment, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "a"
    save_folder(deployment("uniform"), path)
    return path


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "a")


def refused(folder, match=".", **kwargs):
    with pytest.raises(ValueError, match=match) as caught:
        load_folder(folder, **kwargs)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("packed: ")
    assert str(folder) in line


@pytest.mark.parametrize("name", ["grouped", "learned", "binary"])
def test_a_folder_comes_back_to_the_bit(name, deployment, same, tmp_path):
    save_folder(deployment(name), str(tmp_path / "b" / "a"))
    same(load_folder(str(tmp_path / "b" / "a"), model=deployment(name).model), deployment(name))


def test_it_holds_what_the_file_holds(whole, deployment):
    about, want = json.loads((whole / "deployment.json").read_text()), contents(deployment("uniform"))
    assert about == {"digest": want.digest, "arrays": "arrays0", "header": want.header}
    assert sorted(p.name for p in whole.iterdir()) == ["arrays0", "deployment.json"]


def test_another_deployment_takes_its_place(folder, deployment, same):
    for name, arrays in (("dynamic", "arrays1"), ("learned", "arrays0")):
        save_folder(deployment(name), folder)
        same(load_folder(folder), deployment(name))
        assert sorted(p.name for p in folder.iterdir()) == [arrays, "deployment.json"]


@pytest.mark.parametrize("where", ["arrays", "header"])
def test_an_interrupted_save_leaves_the_old_deployment(where, folder, deployment, same, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    target = {"arrays": (packed_folder, "_nested"), "header": (packed_folder.files, "replace")}[where]
    with monkeypatch.context() as patch:
        patch.setattr(*target, killed)
        with pytest.raises(KeyboardInterrupt):
            save_folder(deployment("dynamic"), folder)
    same(load_folder(folder), deployment("uniform"))
    save_folder(deployment("dynamic"), folder)
    same(load_folder(folder), deployment("dynamic"))


def test_other_folders_are_left_alone(deployment, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="holds something other than a packed model"):
            save_folder(deployment("uniform"), path)
    refused(tmp_path, "holds no packed model, or not a whole one")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


# orbax closes its loop at the first read that fails, and the others' answers find it closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_damaged_file_of_arrays_is_refused_or_makes_no_difference(folder, deployment, same, rng):
    """orbax keeps what no array needs, too: what is read is right or nothing is."""
    files = sorted(p for p in (folder / "arrays0").rglob("*") if p.is_file() and p.stat().st_size)
    assert files
    refusals = 0
    for path in files:
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[int(rng.integers(len(data)))] ^= 0x55
        for bad in (flipped, data[: len(data) // 2]):
            path.write_bytes(bad)
            try:
                found = load_folder(folder)
            except ValueError:
                refusals += 1
            else:
                same(found, deployment("uniform"))
        path.write_bytes(data)
    assert refusals >= 4, "what holds the arrays is looked at"
    same(load_folder(folder), deployment("uniform"))  # last: by then those answers are there


def test_other_arrays_are_refused(folder, deployment):
    arrays = contents(deployment("uniform")).arrays
    import orbax.checkpoint as ocp

    for changed, says in (
        ({**arrays, "cls": arrays["cls"] + 1}, "its digest is not that of its contents"),
        ({n: x for n, x in arrays.items() if n != "cls"}, "cls is not as the header lists it"),
        ({**arrays, "cls": arrays["cls"][0]}, "cls is not as the header lists it"),
        ({**arrays, "more": np.zeros(3)}, "holds more than the header lists: more"),
    ):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((folder / "arrays0").absolute(), packed_folder._nested(changed), force=True)
        refused(folder, says)
    shutil.rmtree(folder / "arrays0")
    refused(folder, "arrays0 cannot be read")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda a: a["header"]["notes"].update(top1=0.9), "its digest is not that of its contents"),
        (lambda a: a.update(digest="00"), "its digest is not that of its contents"),
        (lambda a: a.update(digest=None), "its digest is not that of its contents"),
        (lambda a: a["header"].update(version=2), "has version 2, this jvq reads up to 1"),
        (lambda a: a["header"].update(format="x"), "is no packed model of jvq"),
        (lambda a: a.update(header=[]), "is no packed model of jvq"),
        (lambda a: a.update(more=1), "must have digest, arrays and header"),
        (lambda a: a.update(arrays="../arrays0"), "arrays must name a folder"),
        (lambda a: a.update(arrays="arrays/../../x"), "arrays must name a folder"),
        (lambda a: a.update(arrays=3), "arrays must name a folder"),
        (lambda a: a["header"]["notes"].update(top1=float("nan")), "is not JSON"),
    ],
)
def test_an_edited_header_is_one_line(edit, says, folder):
    about = json.loads((folder / "deployment.json").read_text())
    edit(about)
    (folder / "deployment.json").write_text(json.dumps(about))
    refused(folder, says)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_no_json_is_one_line(text, folder):
    (folder / "deployment.json").write_bytes(text.encode("latin1"))
    refused(folder, "cannot be read as JSON|must have digest")


def test_the_same_checks_as_of_a_file(folder, deployment):
    made = contents(deployment("uniform"))
    made = Contents({**made.header, "packed": {}}, made.arrays)
    (folder / "deployment.json").write_text(
        json.dumps({"digest": made.digest, "arrays": "arrays0", "header": made.header})
    )
    refused(folder, "its arrays do not fit the model")
    d = deployment("uniform")
    d = dataclasses.replace(d, params={**d.params, "cls": d.params["cls"] * np.float32(np.nan)})
    with pytest.raises(ValueError, match="not finite"):
        save_folder(d, folder)


def test_a_folder_for_another_model_is_refused(whole):
    refused(whole, "it is for another model: architecture vit, wanted swin", model=build("swin", {"size": "T"}))
