"""Norms of queries and keys, a bound on what fc2 sees, attention without a softmax: off, on, in a checkpoint."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jvq.core.dot import recording
from jvq.core.packed import Packed
from jvq.core.quantizer import Codes
from jvq.models import build, swin
from jvq.models.altering import FIELDS, altered
from jvq.models.merging import merged
from jvq.models.weights import Checkpoint, open_weights, save, save_timm

VIT = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 8, "depth": 1, "heads": 2, "classes": 3}
SWIN = {"image": (8, 8), "channels": 1, "patch": 2, "dim": 8, "depths": (2,), "heads": (2,), "window": 2, "classes": 3}
SPECS, FIRST = {"vit": VIT, "swin": SWIN}, {"vit": "block00", "swin": "stage0/block00"}
BOTH = pytest.mark.parametrize("architecture", SPECS)
E = 4  # channels a head
OFF = {"merged": False, "qk_norm": False, "clip": 0.0, "softmax": True}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}


def filled(model):
    """Parameters with nothing left at zero or one."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), model.shapes())


@functools.cache
def outcome(architecture, **fields):
    """Logits of the altered model, and what its products see and give, by address."""
    model = build(architecture, SPECS[architecture])
    model, params = altered(model, filled(model), **fields)

    @jax.jit
    def taped(params, x):
        tape = {}
        return model.forward(params, x, recording(tape, lambda address: True)), tape

    images = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    return jax.tree.map(np.asarray, taped(params, images))


def paths(tree):
    return {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in jax.tree.leaves_with_path(tree)}


@BOTH
def test_what_is_off_or_bounds_nothing_changes_no_bit(architecture):
    """S4: the same Spec, the very same parameters, the same logits."""
    model = build(architecture, SPECS[architecture])
    params = filled(model)
    assert set(OFF) == set(FIELDS)
    assert build(architecture, {**SPECS[architecture], **OFF}).spec == model.spec
    for same in (OFF, dict.fromkeys(OFF), {}):
        got, kept = altered(model, params, **same)
        assert got is model
        assert kept is params
    bounded, kept = altered(model, params, clip=1e6)
    assert bounded.spec == dataclasses.replace(model.spec, clip=1e6)
    assert kept is params
    want, got = outcome(architecture)[0], outcome(architecture, clip=1e6)[0]
    assert np.ptp(want, axis=0).min() > 1e-3, "images differ"
    np.testing.assert_array_equal(got, want)


@BOTH
def test_norms_are_added_with_ones_and_zeros(architecture):
    model = build(architecture, SPECS[architecture])
    params = filled(model)
    other, more = altered(model, params, qk_norm=True)
    assert other.spec == dataclasses.replace(model.spec, qk_norm=True)
    assert jax.tree.map(jnp.shape, more) == jax.tree.map(lambda s: s.shape, other.shapes())
    old, new = paths(params), paths(more)
    fresh = {name: x for name, x in new.items() if name not in old}
    blocks = [FIRST[architecture]] if architecture == "vit" else ["stage0/block00", "stage0/block01"]
    parts = [f"{norm}/{part}" for norm in ("q_norm", "k_norm") for part in ("scale", "bias")]
    assert set(fresh) == {f"{block}/attn/{part}" for block in blocks for part in parts}
    for name, x in fresh.items():
        np.testing.assert_array_equal(x, np.full(E, float(name.endswith("scale")), np.float32))
    assert all(new[name] is x for name, x in old.items())
    apart = list(map(id, fresh.values()))
    assert len(set(apart)) == len(apart), "arrays of their own, or a step could not take them over"
    assert paths(params).keys() == old.keys(), "the old ones stay as they were"
    some = jax.tree.map(lambda x: x + 1, more)
    assert altered(other, some, qk_norm=True)[1] is some


@BOTH
def test_queries_and_keys_are_normalised_channel_by_channel(architecture):
    """Zero mean, unit variance over e, the query then times e**-0.5: in the first block those of the plain model."""
    plain, tape = outcome(architecture)[1], outcome(architecture, qk_norm=True)[1]
    for role, factor in (("q", E**-0.5), ("k", 1.0)):
        address = f"{FIRST[architecture]}/attn/qk.{role}"
        got, x = tape[address].astype(np.float64), plain[address].astype(np.float64) / factor
        assert got.shape[-1] == E
        np.testing.assert_allclose(got.mean(axis=-1), 0, atol=1e-6)
        variance = x.var(axis=-1)
        np.testing.assert_allclose(got.var(axis=-1) / factor**2, variance / (variance + 1e-5), rtol=1e-4)
        want = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5)[..., None] * factor
        np.testing.assert_allclose(got, want, atol=1e-4)
    value = f"{FIRST[architecture]}/attn/pv.v"
    np.testing.assert_array_equal(tape[value], plain[value])


def test_a_norm_of_queries_does_not_see_the_other_images(rng):
    """The same bits for an image alone and in a batch; in these shapes sums in XLA's own order are not."""
    model = build("vit", {**VIT, "patch": 2, "dim": 64, "heads": 1, "qk_norm": True})

    @jax.jit
    def taped(params, x):
        tape = {}
        model.forward(params, x, recording(tape, lambda address: address in ("block00/attn/qk.q", "block00/attn/qk.k")))
        return tape

    params, x = filled(model), rng.normal(size=(33, 8, 8, 1)).astype(np.float32)
    alone, batch = taped(params, x[:1]), taped(params, x)
    assert len(batch) == 2
    for address, y in batch.items():
        np.testing.assert_array_equal(alone[address], y[:1])


@BOTH
def test_what_fc2_sees_is_bounded_on_both_sides(architecture):
    """GELU falls to -0.17: a bound of 0.125 meets both tails."""
    address = f"{FIRST[architecture]}/mlp/fc2.x"
    want, got = outcome(architecture)[1][address], outcome(architecture, clip=0.125)[1][address]
    assert want.min() < -0.125
    assert want.max() > 0.125
    np.testing.assert_array_equal(got, np.clip(want, -0.125, 0.125))


@BOTH
def test_without_a_softmax_the_scores_weigh_the_values(architecture):
    model = build(architecture, SPECS[architecture])
    params = filled(model)
    assert altered(model, params, softmax=False)[1] is params
    plain, tape = outcome(architecture)[1], outcome(architecture, softmax=False)[1]
    here = f"{FIRST[architecture]}/attn"
    np.testing.assert_array_equal(tape[f"{here}/qk.y"], plain[f"{here}/qk.y"])
    scores, p, v = (tape[f"{here}/{name}"].astype(np.float64) for name in ("qk.y", "pv.p", "pv.v"))
    if architecture == "swin":
        table = np.asarray(params["stage0"]["block00"]["attn"]["bias_table"], np.float64)
        scores = scores + table[swin.relative_index(2)].transpose(2, 0, 1)[None, None]
        apart = tape["stage0/block01/attn/pv.p"] < swin.APART / 2
        shape = apart.shape[:2] + apart.shape[3:]
        want = swin.apart_by_shift((4, 4), 2, 1) == swin.APART
        for head in range(2):
            np.testing.assert_array_equal(apart[:, :, head], np.broadcast_to(want[None], shape))
    np.testing.assert_allclose(p, scores, rtol=1e-5, atol=1e-6)
    assert p.min() < 0
    np.testing.assert_allclose(tape[f"{here}/pv.y"], p @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{"merged": True}, {"qk_norm": True, "clip": 10.0, "softmax": False}], ids=str)
@BOTH
def test_shapes_are_altered_like_arrays(architecture, fields):
    model = build(architecture, SPECS[architecture])
    other, shapes = altered(model, model.shapes(), **fields)
    assert shapes == other.shapes() != model.shapes()
    _, params = altered(model, filled(model), **fields)
    assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params) == shapes


def test_another_tree_is_altered_as_well():
    """Norms go beside whatever has a fused projection, packed ones too; those that are there stay."""
    kernel = jnp.zeros((8, 3, 2, E), jnp.int32)
    packed = Packed.of(Codes(kernel, jnp.ones((1, 3, 1, 1)), jnp.zeros((1, 3, 1, 1), jnp.int32)), 4)
    own = {"scale": jnp.full(E, 3.0), "bias": jnp.zeros(E)}
    attention = {"qkv": {"kernel": packed, "bias": jnp.zeros((3, 2, E), jnp.bfloat16)}, "q_norm": own}
    model, tree = build("vit", VIT), {"deep": {"er": {"attn": attention}}, "head": jnp.zeros(3)}
    found = altered(model, tree, qk_norm=True)[1]["deep"]["er"]["attn"]
    assert found["qkv"]["kernel"] is packed
    assert found["q_norm"]["scale"] is own["scale"]
    assert {name: (x.shape, x.dtype) for name, x in found["k_norm"].items()} == dict.fromkeys(
        ("scale", "bias"), ((E,), jnp.bfloat16)
    )
    with pytest.raises(ValueError, match="model.merged: a packed query and key cannot be made one matrix"):
        altered(model, tree, merged=True)


REFUSED = [  # fields of the model, what is asked, what is said
    ({}, {"classes": 5}, "model.classes cannot be altered in the model .there are: merged, qk_norm, clip, softmax"),
    ({}, {"qknorm": True}, "model.qknorm cannot be altered in the model .did you mean 'qk_norm'"),
    ({}, {"clip": -1.0}, "model.clip: got -1.0, must be a finite bound, or 0 for none"),
    ({}, {"clip": float("nan")}, "model.clip: got nan"),
    ({}, {"clip": float("inf")}, "model.clip: got inf"),
    ({}, {"merged": True, "qk_norm": True}, "qk_norm needs queries and keys of their own, which model.merged makes"),
    ({"merged": True}, {"qk_norm": True}, "qk_norm needs queries and keys of their own, which model.merged makes"),
    ({"qk_norm": True}, {"merged": True}, "qk_norm needs queries and keys of their own, which model.merged makes"),
    ({"softmax": False}, {"merged": True}, "model.merged leaves out what only a softmax takes away"),
    ({"merged": True}, {"softmax": False}, "model.merged leaves out what only a softmax takes away"),
    ({"merged": True}, {"merged": False}, "model.merged: the query and key of the model are one matrix already"),
    ({"qk_norm": True}, {"qk_norm": False}, "model.qk_norm: the query and key of the model have norms already"),
]


@pytest.mark.parametrize(("has", "asked", "says"), REFUSED)
@BOTH
def test_what_would_change_the_parameters_meaning_is_refused(architecture, has, asked, says):
    model = build(architecture, {**SPECS[architecture], **has})
    with pytest.raises(ValueError, match=says) as caught:
        altered(model, model.shapes(), **asked)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a ViT as we write it, as we wrote it before these fields were there, without our header, by timm's
    names; and the ViT."""
    folder, model = tmp_path_factory.mktemp("altering"), build("vit", VIT)
    checkpoint = Checkpoint(model, filled(model), PREPROCESS, {})
    save(checkpoint, folder / "ours.safetensors")
    with safe_open(folder / "ours.safetensors", framework="numpy") as f:
        header = dict(f.metadata())
    spec = {name: x for name, x in json.loads(header["spec"]).items() if name not in FIELDS}
    arrays = {name: np.asarray(x) for name, x in paths(checkpoint.params).items()}
    save_file(arrays, folder / "older.safetensors", header | {"spec": json.dumps(spec)})
    save_file(arrays, folder / "bare.safetensors")
    save_timm(checkpoint, folder / "timm.safetensors")
    return folder, checkpoint


@pytest.mark.parametrize("name", ["ours", "older", "bare", "timm"])
def test_any_format_is_altered_when_asked(name, files):
    folder, checkpoint = files
    path, foreign = str(folder / f"{name}.safetensors"), {} if name in ("ours", "older") else {"image": (8, 8)}
    foreign |= {"heads": 2} if name == "timm" else {}
    plain = open_weights(path, model=foreign)
    assert plain.model.spec == checkpoint.model.spec
    jax.tree.map(np.testing.assert_array_equal, plain.params, checkpoint.params)
    found = open_weights(path, model={**foreign, "qk_norm": True, "clip": 10.0, "softmax": None})
    assert found.model.spec == dataclasses.replace(checkpoint.model.spec, qk_norm=True, clip=10.0)
    want = altered(checkpoint.model, checkpoint.params, qk_norm=True)[1]
    jax.tree.map(np.testing.assert_array_equal, found.params, want)
    both = open_weights(path, model={**foreign, "merged": True})
    jax.tree.map(np.testing.assert_array_equal, both.params, merged(checkpoint.params))
    with pytest.raises(ValueError, match="model.qk_nrom: vit has no such option .did you mean 'qk_norm'"):
        open_weights(path, model={**foreign, "qk_nrom": True})


@BOTH
def test_an_altered_checkpoint_comes_back(architecture, tmp_path):
    fields = {"qk_norm": True, "clip": 10.0, "softmax": False}
    model = build(architecture, {**SPECS[architecture], **fields})
    checkpoint, path = Checkpoint(model, filled(model), PREPROCESS, {}), str(tmp_path / "a.safetensors")
    save(checkpoint, tmp_path / "a.safetensors")
    for asked in ({}, fields, {"classes": 3, "qk_norm": True}):
        found = open_weights(path, model=asked)
        assert found.model.spec == model.spec
        jax.tree.map(np.testing.assert_array_equal, found.params, checkpoint.params)
    found = open_weights(path, model={"clip": 0.0, "softmax": True, "classes": 5})
    assert found.model.spec == dataclasses.replace(model.spec, clip=0.0, softmax=True, classes=5)
    assert found.params["head"]["kernel"].shape == (8, 5)
    with pytest.raises(ValueError, match="qk_norm: the query and key of .*a.safetensors have norms already, which can"):
        open_weights(path, model={"qk_norm": False})
