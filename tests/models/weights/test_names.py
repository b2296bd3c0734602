"""Public names: the addresses they stand for, as their publishers wrote them."""

import dataclasses

import pytest

from jvq.models.weights.names import AUGREG, KNOWN, located, suggestion

HUB = "https://huggingface.co"


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


def test_a_timm_name():
    remote = located("timm/deit_tiny_patch16_224.fb_in1k")
    base = f"{HUB}/timm/deit_tiny_patch16_224.fb_in1k/resolve/main"
    assert [f.url for f in remote.files] == [f"{base}/config.json", f"{base}/model.safetensors"]
    assert [f.filename for f in remote.files] == ["config.json", "model.safetensors"]
    assert not any(f.optional or f.instead_of or f.sha256 or f.size for f in remote.files)
    assert remote.folder == "huggingface/timm/deit_tiny_patch16_224.fb_in1k"


def test_a_hugging_face_name():
    remote = located("hf:google/vit-base-patch16-224")
    base = f"{HUB}/google/vit-base-patch16-224/resolve/main"
    assert [(f.url.removeprefix(f"{base}/"), f.optional, f.instead_of) for f in remote.files] == [
        ("config.json", False, None),
        ("preprocessor_config.json", True, None),
        ("model.safetensors", False, None),
        ("pytorch_model.bin", False, "model.safetensors"),
    ]


@pytest.mark.parametrize("prefix", ["timm/", "hf:timm/"])
def test_a_revision_has_its_own_address_and_folder(prefix):
    remote = located(f"{prefix}deit_tiny_patch16_224.fb_in1k@refs/pr/1")
    assert remote.files[0].url == f"{HUB}/timm/deit_tiny_patch16_224.fb_in1k/resolve/refs%2Fpr%2F1/config.json"
    assert remote.folder == "huggingface/timm/deit_tiny_patch16_224.fb_in1k@refs--pr--1"


@pytest.mark.parametrize("short", AUGREG)
def test_short_and_whole_augreg_names_are_the_same_file(short):
    file = AUGREG[short]
    remote, whole = located(f"augreg/{short}"), located(f"augreg/{file}.npz")
    assert [f.url for f in remote.files] == [f"https://storage.googleapis.com/vit_models/augreg/{file}.npz"]
    assert dataclasses.replace(whole, name=remote.name) == remote
    assert file.startswith(f"{short}-i21k-300ep")
    assert file.endswith("res_224")


def test_another_endpoint(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert located("timm/a.b").files[0].url == "https://mirror.example/timm/a.b/resolve/main/config.json"
    assert located("timm/a.b", huggingface="http://127.0.0.1:9").files[0].url.startswith("http://127.0.0.1:9/timm/")
    assert located("augreg/B_16", google="http://127.0.0.1:9").files[0].url.startswith("http://127.0.0.1:9/vit_models/")
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    with pytest.raises(ValueError, match="HF_ENDPOINT 'mirror.example' does not begin with https://"):
        located("timm/a.b")


@pytest.mark.parametrize("name", [
    "fashion_vit", "a.safetensors", "timm/a.safetensors", "timm/a.npz", "timm/a/b", "timm/../a", "timm/..", "timm/",
    "timm", "./timm/a", "/timm/a", "timm/a@", "timm/a@../b", "timm/a b", "other/a", "",
])  # fmt: skip
def test_what_is_not_a_public_name(name):
    assert located(name) is None


@pytest.mark.parametrize(("name", "says"), [
    ("hf:vit", "'hf:vit' is not of the form hf:owner/name or hf:owner/name@revision"),
    ("hf:../name", "not of the form"),
    ("hf:a/b/c", "not of the form"),
    ("hf:a/b@", "not of the form"),
    ("hf:a/b@x/../..", "not of the form"),
    ("augreg/B_17", "'augreg/B_17' is neither short for an AugReg file nor .* .did you mean 'B_16'"),
    ("augreg/", "neither short"),
    ("augreg/../B_16-i21k-x", "neither short"),
])  # fmt: skip
def test_what_begins_as_a_public_name_and_cannot_be_one(name, says):
    with pytest.raises(ValueError, match=says):
        located(name)


def test_the_known_names_lead_somewhere_and_stand_once():
    remotes = [located(name) for name in KNOWN]
    assert None not in remotes
    assert len({r.files for r in remotes}) == len(KNOWN)
    assert len({r.folder for r in remotes}) == len(KNOWN)


@pytest.mark.parametrize(("name", "near"), [
    ("timm/deit_tiny_patch16_224", "'timm/deit_tiny_patch16_224.fb_in1k'"),
    ("timm/vit_base_patch16_224", "'timm/vit_base_patch16_224.augreg_in21k_ft_in1k'"),
    ("hf:google/vit_base_patch16_224@main", "'hf:google/vit-base-patch16-224'"),
])  # fmt: skip
def test_the_nearest_known_name(name, near):
    assert near in suggestion(name)
    assert suggestion(name).startswith(" (did you mean ")


@pytest.mark.parametrize("name", ["timm/deit_tiny_patch16_224.fb_in1k@v1", "hf:qqq/zzz"])
def test_no_suggestion_where_it_would_not_help(name):
    assert suggestion(name) == ""
