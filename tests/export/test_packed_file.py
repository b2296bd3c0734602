"""Packed files: back to the bit, always the same bytes, whole or not there, and refused in one line."""

import copy
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jvq.core.packed import Packed
from jvq.export import load, packed_file, save
from jvq.export.contents import Contents, contents
from jvq.models import build
from jvq.models.weights import native, open_weights
from jvq.quantizers import Uniform

NAMES = ["uniform", "dynamic", "grouped", "static", "learned", "binary"]


@pytest.fixture(scope="module")
def file(deployment, tmp_path_factory):
    """A whole file, its path; with ``OWN`` as small as the deployment, so that some arrays are their own tensors."""
    path = tmp_path_factory.mktemp("packed") / "a.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_file, "OWN", 300)
        save(deployment("uniform"), path)
    return path


@pytest.fixture(scope="module")
def base(deployment):
    return contents(deployment("uniform"))


def refused(path, match=".", **kwargs):
    """The line with which the file is refused."""
    with pytest.raises(ValueError, match=match) as caught:
        load(path, **kwargs)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("packed: ")
    assert str(path) in line
    return line


@pytest.mark.parametrize("name", NAMES)
def test_every_quantiser_comes_back_to_the_bit(name, deployment, same, tmp_path):
    save(deployment(name), tmp_path / "a.safetensors")
    found = load(str(tmp_path / "a.safetensors"), model=deployment(name).model)
    same(found, deployment(name))
    assert {type(q) for q in found.plan.values()} == {type(q) for q in deployment(name).plan.values()}
    assert list(found.plan) == list(deployment(name).plan)


def test_zero_points_of_every_kind_are_there(base, deployment):
    """So that the round trip is one of all of them: in planes, negative, and none."""
    stored = {n: x for n, x in base.arrays.items() if n.endswith(".zero")}
    assert stored["patch/kernel.zero"].dtype == np.int32
    assert stored["patch/kernel.zero"].max() < 0
    assert stored["head/kernel.zero"].dtype == np.uint8
    assert not [n for n in contents(deployment("binary")).arrays if n == "patch/kernel.zero"]


def test_the_forward_gives_identical_bits(file, deployment, rng):
    images = jnp.asarray(rng.normal(size=(3, 8, 8, 1)), jnp.float32)
    got, want = jax.jit(load(file).forward)(images), jax.jit(deployment("uniform").forward)(images)
    assert np.asarray(got).tobytes() == np.asarray(want).tobytes()
    assert len(np.unique(np.asarray(want))) > 3


def test_the_same_deployment_is_the_same_bytes(deployment, tmp_path):
    for name in "abcdef":
        save(deployment("learned"), tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def test_arrays_of_some_size_are_tensors_under_their_names(file, base):
    tensors = load_file(file)
    large = {n for n, x in base.arrays.items() if x.nbytes >= 300}
    assert large
    assert set(tensors) == large | {"jvq.header", "jvq.small", "jvq.digest"}
    for name in large:
        np.testing.assert_array_equal(tensors[name], base.arrays[name])
    assert bytes(tensors["jvq.digest"]).hex() == base.digest


# --- Damage ----------------------------------------------------------------------------------------------------------


def test_no_flipped_byte_goes_unseen(file, tmp_path, rng):
    """All bytes of safetensors' own header and of the digest, and every eleventh of the rest."""
    data = file.read_bytes()
    first = 8 + int.from_bytes(data[:8], "little")
    damaged = tmp_path / "damaged.safetensors"
    for at in [*range(first), *range(first, len(data), 11), len(data) - 1]:
        flipped = bytearray(data)
        flipped[at] ^= int(rng.integers(1, 256))
        damaged.write_bytes(flipped)
        refused(damaged)


@pytest.mark.parametrize("to", [b"\t", b"\n", b"\r"])
def test_other_padding_is_seen(to, file, tmp_path):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    (tmp_path / "a").write_bytes(
        (length + 8).to_bytes(8, "little") + data[8 : 8 + length] + to * 8 + data[8 + length :]
    )
    refused(tmp_path / "a", "damaged or was edited")


def test_every_truncated_file_is_refused(file, tmp_path):
    data = file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in [0, 1, 7, 8, 9, *range(10, len(data), len(data) // 60), len(data) - 1]:
        cut.write_bytes(data[:size])
        refused(cut, "cannot be read as safetensors")
    cut.write_bytes(data + b"\0")
    refused(cut, "cannot be read as safetensors")


@pytest.mark.parametrize("name", ["jvq.header", "jvq.small", "jvq.digest", "block00/mlp/fc1/kernel.planes"])
@pytest.mark.parametrize("edit", ["gone", "longer", "shorter", "signed"])
def test_an_edited_tensor_is_refused(name, edit, file, tmp_path):
    tensors = load_file(file)
    x = tensors.pop(name)
    if edit != "gone":
        tensors[name] = {
            "longer": lambda: np.concatenate([x, x[:1]]),
            "shorter": lambda: x[:-1],
            "signed": lambda: x.view(np.int8),
        }[edit]()
    save_file(tensors, tmp_path / "a", {"format": '"jvq-packed"'})
    refused(tmp_path / "a")


def test_tensors_and_metadata_that_are_too_many_are_refused(file, tmp_path):
    save_file({**load_file(file), "more": np.zeros(3)}, tmp_path / "a", {"format": '"jvq-packed"'})
    refused(tmp_path / "a", "holds more than its header lists: more")
    save_file(load_file(file), tmp_path / "a", {"format": '"jvq-packed"', "author": "x"})
    refused(tmp_path / "a", "damaged or was edited")


def test_what_is_no_packed_file_is_refused(checkpoint, tmp_path):
    refused(tmp_path / "none", "there is no file")
    refused(tmp_path, "there is no file")
    (tmp_path / "text").write_text("not at all a file of tensors")
    refused(tmp_path / "text", "cannot be read as safetensors")
    native.save(checkpoint, tmp_path / "float")
    refused(tmp_path / "float", 'is no packed model of jvq: its format is "jvq-float"')
    save_file({"a": np.zeros(3)}, tmp_path / "theirs")
    refused(tmp_path / "theirs", "its format is none")
    save_file({"a": np.zeros(3)}, tmp_path / "lacks", {"format": '"jvq-packed"'})
    refused(tmp_path / "lacks", "lacks jvq.header, jvq.small, jvq.digest")


def test_a_packed_file_is_no_float_checkpoint(file):
    with pytest.raises(ValueError, match="has its packed weights"):
        open_weights(str(file))


# --- Headers that were edited ----------------------------------------------------------------------------------------


def replaced(tree, path, value):
    """A deep copy with another value at the path; ``...``: without what is there."""
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return tree


X = "block00/mlp/fc1.x"
EDITS = [  # where, what, and what the line says; the digest is right
    (("format",), "jvq-float", "is no packed model of jvq: its format is 'jvq-float'"),
    (("version",), 2, "has version 2, this jvq reads up to 1"),
    (("version",), "1", "has version '1', which is no version"),
    (("version",), True, "has version True, which is no version"),
    (("notes",), ..., "lacks 'notes'"),
    (("notes",), [], "'notes' must be a dict of JSON"),
    (("note",), {}, "has 'note', which is unknown .did you mean 'notes'"),
    (("model", "architecture"), "vitt", "architecture 'vitt' is not known .did you mean 'vit'"),
    (("model", "architecture"), [], "architecture .* is not known"),
    (("model", "spec"), None, "the fields of the Spec of 'vit' are no table"),
    (("model", "spec", "dim"), "12", "the Spec of 'vit': field 'dim' cannot be '12'"),
    (("model", "spec", "heads"), 5, "is not a multiple of model.heads 5"),
    (("model", "spec", "heads"), 0, "zero"),
    (("model", "spec", "depht"), 1, "the Spec of 'vit' has no field 'depht' .did you mean 'depth'"),
    (("model", "spec", "classes"), 4, "do not fit the model .*head/kernel is packed of shape .12, 3., the model has"),
    (("model", "spec", "depth"), 2, r"do not fit the model .*-block01/attn/proj/bias.* in all"),
    (("packed", "head/kernel"), ..., "-head/kernel .*did you mean 'head/kernel.zero'"),
    (("packed", "heads/kernel"), [4, [12, 3]], r"\+heads/kernel is packed, .*did you mean 'head/kernel'"),
    (("packed", "head/kernel", 0), 5, "~head/kernel.planes is uint8 .4, 2, 3., must be uint8 .5, 2, 3."),
    (("packed", "head/kernel", 0), 17, "is packed as .17, .* which is not .bits from 1 to 16"),
    (("packed", "head/kernel", 0), None, "is packed as .None, .* which is not .bits from 1 to 16"),
    (("packed", "head/kernel", 1), [12, 4], "~head/kernel is packed of shape .12, 4., the model has .12, 3."),
    (("packed", "head/kernel"), "4", "is packed as '4', which is not"),
    (("quantizers", X, 0), "Unifrm", f"{X}: quantiser Unifrm is not known .did you mean 'Uniform'"),
    (("quantizers", X, 0), "Quantizer", f"{X}: quantiser Quantizer is not known"),
    (("quantizers", X), {}, f"{X}: a quantiser must read .class"),
    (("quantizers", X, 1), [], f"{X}: the fields of Uniform are no table"),
    (("quantizers", X, 1, "bitz"), 3, f"{X}: Uniform has no field 'bitz' .did you mean 'bits'"),
    (("quantizers", X, 1, "bits"), 17, f"{X}: bits must be a whole number from 1 to 16, got 17"),
    (("quantizers", X, 1, "bits"), 8.0, f"{X}: Uniform: field 'bits' cannot be 8.0"),
    (("quantizers", X, 1, "bits"), True, f"{X}: Uniform: field 'bits' cannot be True"),
    (("quantizers", X, 1, "range"), "mx", f"{X}: Uniform: field 'range' cannot be 'mx'"),
    (("quantizers", X, 1, "percentile"), 5, f"{X}: Uniform: field 'percentile' cannot be 5"),
    (("quantizers", X, 1, "percentile"), [None], f"{X}: Uniform: field 'percentile' cannot be .None"),
    (("quantizers", X, 1, "keep"), "d", f"~state/{X}/scale is float32 .., must be float32 .12,."),
    (("quantizers", X, 1, "keep"), "z", f"{X}: keep: no axis 'z'"),
    (("quantizers", X), ..., rf"\+state/{X}/levels"),
    (("quantizers", X + "x"), ["Uniform", {}], "the model has no operand 'block00/mlp/fc1.xx' .did you mean"),
    (("quantizers", "head.w"), ["Uniform", {}], "head.w is a weight: packed, it has no quantiser any more"),
    (("arrays", 0, 1), "float64", "lists the array .*, not .name, dtype, shape"),
    (("arrays", 0, 2), [-1], "lists the array .*, not .name, dtype, shape"),
    (("arrays", 0), None, "lists the array None, not .name, dtype, shape"),
    (("arrays", 0, 0), "zzz", "not in the order of their names"),
    (("arrays", 1), ..., "holds more than its header lists: 96 bytes"),
]


@pytest.mark.parametrize(("path", "value", "says"), EDITS, ids=lambda x: str(x)[:30])
def test_an_edited_header_with_a_right_digest_is_one_line(path, value, says, base, tmp_path):
    packed_file.write(Contents(replaced(base.header, path, value), base.arrays), tmp_path / "a")
    refused(tmp_path / "a", says)


@pytest.mark.parametrize("path", [("notes", "top1"), ("recipe", X), ("protocol", "seed"), ("preprocess", "mean")])
def test_an_edited_header_with_the_old_digest_is_seen(path, base, tmp_path, monkeypatch):
    edited = Contents(replaced(base.header, path, "?"), base.arrays)
    assert edited.digest != base.digest
    monkeypatch.setattr(Contents, "digest", base.digest)
    packed_file.write(edited, tmp_path / "a")
    monkeypatch.undo()
    refused(tmp_path / "a", "its digest is not that of its contents")


@pytest.mark.parametrize("text", ["", "{", "3", "[]", '{"format":"jvq-packed","version":NaN}', "[" * 10**5, "\xff"])
def test_a_header_that_is_none_is_one_line(text, base, tmp_path, monkeypatch):
    monkeypatch.setattr(Contents, "text", text)
    packed_file.write(Contents({}, base.arrays), tmp_path / "a")
    monkeypatch.undo()
    refused(tmp_path / "a", "is not JSON|is no packed model|is no version")


def test_a_header_that_unfolds_without_end_is_one_line(file, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_file, "LONGEST", 100)
    refused(file, "its header is cut, too long, or not alone")


ARRAYS = [  # a name, what becomes of the array, what the line says
    ("cls", None, "-cls"),
    ("head/kernel.scale", None, "-head/kernel.scale"),
    ("head/kernel.zero", None, "-head/kernel.zero"),
    ("head/bias", lambda x: x[:-1], "~head/bias is float32 .2,., must be float32 .3,."),
    ("head/bias", lambda x: x.astype(np.int32), "~head/bias is int32 .3,., must be float32 .3,."),
    ("head/bias", lambda x: x * np.float32(np.nan), "values that are not finite .* in head/bias"),
    ("head/kernel.scale", lambda x: x * np.float32(np.inf), "not finite .* in head/kernel.scale"),
    ("head/kernel.scale", lambda x: x.astype(np.int32), "~head/kernel.scale is int32 .1, 3., must be float32"),
    ("head/kernel.scale", lambda x: x.T, "~head/kernel.scale is float32 .3, 1., must be float32 and broadcast"),
    ("head/kernel.scale", lambda x: x[None], "~head/kernel.scale is float32 .1, 1, 3., must be float32 and broadcast"),
    ("head/kernel.zero", lambda x: x[0], "~head/kernel.zero is uint8 .1,., must be bit planes of the 3 scales"),
    ("head/kernel.zero", lambda x: np.zeros((32, 1), np.uint8), "~head/kernel.zero is uint8 .32, 1."),
    ("head/kernel.zero", lambda x: x.astype(np.float32), "~head/kernel.zero is float32"),
    ("head/kernel.zero", lambda x: np.zeros((2, 3), np.int32), "~head/kernel.zero is int32 .2, 3., must be int32"),
    (f"state/{X}/scale", lambda x: x[None], f"~state/{X}/scale is float32 .1,., must be float32 .."),
    (f"state/{X}/scale", None, f"-state/{X}/scale"),
]


@pytest.mark.parametrize(("name", "edit", "says"), ARRAYS, ids=lambda x: x[:30] if isinstance(x, str) else "")
def test_arrays_that_do_not_fit_are_one_line(name, edit, says, base, tmp_path):
    arrays = dict(base.arrays)
    x = arrays.pop(name)
    if edit is not None:
        arrays[name] = np.ascontiguousarray(edit(x))
    packed_file.write(listed(base, arrays), tmp_path / "a")
    refused(tmp_path / "a", says)


def listed(base, arrays):
    arrays = {n: arrays[n] for n in sorted(arrays)}
    return Contents({**base.header, "arrays": [[n, str(x.dtype), list(x.shape)] for n, x in arrays.items()]}, arrays)


def test_a_renamed_array_says_what_it_may_be(base, tmp_path):
    arrays = {("head/bas" if n == "head/bias" else n): x for n, x in base.arrays.items()}
    packed_file.write(listed(base, arrays), tmp_path / "a")
    refused(tmp_path / "a", r"-head/bias \(did you mean 'head/bas'\?\), \+head/bas \(did you mean 'head/bias'")


def test_signs_have_one_bit(deployment, tmp_path):
    base = contents(deployment("binary"))
    arrays = {n: np.concatenate([x, x]) if n == "patch/kernel.planes" else x for n, x in base.arrays.items()}
    made = listed(base, arrays)
    made.header["packed"]["patch/kernel"] = [2, [16, 12]]
    packed_file.write(made, tmp_path / "a")
    refused(tmp_path / "a", "-patch/kernel.zero")


def test_a_file_for_another_model_is_refused_with_the_difference(file, deployment, checkpoint):
    spec = dataclasses.asdict(checkpoint.model.spec)
    other = build("vit", {**spec, "dim": 24, "depth": 3})
    refused(file, "it is for another model: dim 12, wanted 24; depth 1, wanted 3$", model=other)
    swin = build("swin", {"size": "T"})
    refused(file, "it is for another model: architecture vit, wanted swin", model=swin)


# --- Writing ---------------------------------------------------------------------------------------------------------


def test_an_interrupted_write_leaves_the_old_file(deployment, same, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save(deployment("uniform"), path)

    def half(tensors, part, header):
        part.write_bytes(path.read_bytes()[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(native, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        save(deployment("dynamic"), path)
    monkeypatch.undo()
    same(load(path), deployment("uniform"))
    save(deployment("dynamic"), path)
    same(load(path), deployment("dynamic"))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def without(tree, *path):
    return {k: (without(v, *path[1:]) if k == path[0] else v) for k, v in tree.items() if path != (k,)}


@dataclasses.dataclass(frozen=True)
class Foreign(Uniform):
    pass


BAD = [
    (lambda d: {"notes": {"a": math.nan}}, "must be JSON values"),
    (lambda d: {"protocol": {"a": object()}}, "must be JSON values"),
    (lambda d: {"plan": {**d.plan, X: Foreign()}}, "not Foreign"),
    (lambda d: {"plan": {**d.plan, "head.w": Uniform()}}, "head.w is a weight"),
    (lambda d: {"qstate": without(d.qstate, X, "scale")}, f"-state/{X}/scale"),
    (lambda d: {"params": without(d.params, "cls")}, "-cls"),
    (lambda d: {"params": {**d.params, "more": d.params["cls"]}}, r"\+more"),
    (lambda d: {"params": {**d.params, "cls": d.params["cls"] * jnp.nan}}, "not finite"),
    (lambda d: {"params": {**d.params, "cls": d.params["cls"].astype(jnp.bfloat16)}}, "~cls is bfloat16"),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=lambda x: x if isinstance(x, str) else "")
def test_what_could_not_be_read_is_not_written(changes, says, deployment, tmp_path):
    made = deployment("uniform")
    with pytest.raises(ValueError, match=says):
        save(dataclasses.replace(made, **changes(made)), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_one_line(deployment, tmp_path):
    with pytest.raises(ValueError, match="cannot be written: it must be a file in a folder that exists"):
        save(deployment("uniform"), tmp_path / "none" / "a")
    with pytest.raises(ValueError, match="cannot be written"):
        save(deployment("uniform"), tmp_path)


def test_odd_zero_points_keep_their_shape(deployment, same, tmp_path):
    """Zero points that do not have the scales' shape, and great ones."""
    made = deployment("uniform")
    for zero in ([[7]], [[2**31 - 1, 0, 5]], [[-(2**31), 0, 5]]):
        leaf = dataclasses.replace(made.params["head"]["kernel"], zero=jnp.asarray(zero, jnp.int32))
        odd = dataclasses.replace(made, params={**made.params, "head": {**made.params["head"], "kernel": leaf}})
        assert isinstance(leaf, Packed)
        save(odd, tmp_path / "a")
        same(load(tmp_path / "a"), odd)


def test_the_header_is_plain_json(base):
    assert json.loads(base.text) == base.header
    assert base.header["packed"]["head/kernel"] == [4, [12, 3]]
    assert base.header["recipe"]["head.w"].startswith("Uniform(bits=4, keep='o'")
    assert base.header["model"]["spec"]["image"] == [8, 8]
