"""ONNX: the graph gives what the model gives, its products are of integers, what it cannot say is refused."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

import jvq
from jvq.core.freeze import freeze
from jvq.data import Preprocess, open_source, sample
from jvq.export import onnx as exported
from jvq.export.deployment import Deployment
from jvq.export.onnx import package, save_onnx, save_onnx_float
from jvq.methods import minmax
from jvq.models.weights import EMBEDDED
from jvq.quantizers import Dynamic, Grouped, Learned, ShiftedSigns, Signs, StaticGrouped, Steps, Ternary, Uniform

TINY = {"image": (8, 8), "channels": 2, "patch": 4, "dim": 12, "depth": 1, "heads": 3, "classes": 5}
TINY_SWIN = {"image": (20, 12), "channels": 1, "patch": 2, "dim": 8, "depths": (2, 1), "heads": (2, 4), "window": 3}
INTEGER = {"MatMulIntegerToFloat", "QLinearMatMul"}  # onnxruntime's products of integers in such a graph
FLOAT = {"MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "DynamicQuantizeMatMul"}


def drawn(architecture: str, **fields):
    """A tiny model with every parameter drawn, biases and norms too."""
    model = jvq.build(architecture, {**(TINY if architecture == "vit" else TINY_SWIN), **fields})
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), model.shapes())


def images_for(model, count: int = 3) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, *model.image)).astype(np.float32)


def deployed(model, params, recipe) -> Deployment:
    """The model under a recipe, calibrated on images of its own."""
    known = jvq.sites(model.forward, params, model.image)
    plan = jvq.resolve(recipe, known)
    state = jvq.calibrate(model.forward, params, images_for(model, 4), plan, known)
    packed, rest, state = freeze(params, plan, state, known)
    return Deployment(model, packed, rest, state, {"size": [8, 8]}, {a: repr(q) for a, q in plan.items()}, {}, {})


def products(path, folder) -> Counter:
    """How often each operator stands in the graph that onnxruntime runs."""
    exported.session(path, 1, folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.fixture(scope="module")
def fashion():
    """The test images, decoded once."""
    return open_source("fashion", "test")


@pytest.fixture(scope="module", params=EMBEDDED)
def embedded(request, fashion):
    """An embedded checkpoint, its min-max W8A8 deployment and 300 test images."""
    checkpoint = jvq.open_weights(request.param)
    model, params, preprocess = checkpoint.model, checkpoint.params, Preprocess.from_dict(checkpoint.preprocess)
    images = sample(fashion, preprocess, 300, seed=0).images
    known = jvq.sites(model.forward, params, model.image)
    options = minmax.Options()
    plan = jvq.resolve(minmax.recipe(options, known), known)
    state = minmax.fit(options, model.forward, params, images[-16:], plan, known).qstate
    return checkpoint, Deployment.of(checkpoint, plan, state, known, minmax.protocol(options)), images


@pytest.mark.once
def test_embedded_float_is_the_model(embedded, tmp_path):
    checkpoint, _, images = embedded
    path = tmp_path / "float.onnx"
    save_onnx_float(checkpoint.model, checkpoint.params, checkpoint.preprocess, path)
    plain = Deployment(checkpoint.model, checkpoint.params, {}, {}, {}, {}, {}, {})
    found = exported.check(plain, path, images[:32], batch=16)
    assert found.agrees
    assert found.difference < 1e-4


@pytest.mark.once
def test_embedded_qdq_decides_alike_in_integers(embedded, tmp_path):
    _, deployment, images = embedded
    path = tmp_path / "q.onnx"
    save_onnx(deployment, path)
    assert exported.check(deployment, path, images).agrees
    ops = products(path, tmp_path)
    known = jvq.sites(deployment.model.forward, deployment.params, deployment.model.image)
    assert sum(ops[op] for op in INTEGER) == len({o.site for o in known.values()})
    assert not FLOAT & set(ops)
    running = exported.session(path, 1)
    every = running.run(None, {"images": images[:8]})[0]
    for count in (1, 3):
        got = running.run(None, {"images": images[:count]})[0]
        assert got.shape == (count, 10)
        np.testing.assert_allclose(got, every[:count], atol=1e-5)
    props = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(props["preprocess"])["size"] == list(deployment.preprocess["size"])
    assert json.loads(props["recipe"]) == dict(deployment.recipe)


@pytest.mark.slow
def test_embedded_qdq_decides_alike_on_the_whole_test_set(embedded, fashion, tmp_path):
    """But for images whose two largest outputs are nearly equal: a value at a tie, rounded the other way by the last
    bit of a float32 sum, moves the values behind it by whole steps."""
    checkpoint, deployment, _ = embedded
    images = sample(fashion, Preprocess.from_dict(checkpoint.preprocess), len(fashion), seed=0).images
    path = tmp_path / "q.onnx"
    save_onnx(deployment, path)
    found = exported.check(deployment, path, images)
    assert len(found.differing) <= 3, found
    if found.differing:
        logits = np.sort(np.asarray(deployment.forward(images[list(found.differing)])), axis=1)
        assert (logits[:, -1] - logits[:, -2]).max() < 2 * found.difference


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("vit", {"pool": "both", "registers": 2, "layer_scale": 0.1}),
        ("vit", {"distill_token": True, "representation": 7, "depth": 2}),
        ("vit", {"pool": "mean", "class_token": False, "merged": True}),
        ("vit", {"pool": "normed_mean", "qk_norm": True, "clip": 0.3, "registers": 1}),
        ("vit", {"pool": "none", "classes": 0, "softmax": False}),
        ("vit", {"classes": 0, "image": (8, 12)}),
        ("swin", {"depths": (2, 1)}),  # 10x6 tokens in windows of 3: padded and shifted, then 5x3
        ("swin", {"merged": True, "classes": 0}),
        ("swin", {"qk_norm": True, "softmax": False, "clip": 0.5, "window": 5}),
    ],
)
def test_float_graph_of_every_shape(architecture, fields, tmp_path):
    model, params = drawn(architecture, **fields)
    path = tmp_path / "f.onnx"
    save_onnx_float(model, params, {}, path)
    wanted = np.asarray(jax.jit(model.forward)(params, images_for(model)))
    (got,) = exported.session(path, 1).run(None, {"images": images_for(model)})
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()))


WEIGHTS = [("*.w", Uniform(8, "o")), ("*/qkv.w", Uniform(8, "she"))]
ACTIVATIONS = {
    "fewer bits, clipped": [*WEIGHTS, ("*.[xqkpv]", Uniform(3, range="percentile", percentile=(5.0,)))],
    "heads with zero points of their own": [*WEIGHTS, ("*.x", Uniform(8)), ("*/[qp][kv].[qkpv]", Uniform(5, "h"))],
    "groups of channels, rows of maps": [
        *WEIGHTS,
        ("*.x", StaticGrouped(6, 3, "d")),
        ("*/[qp][kv].[qkpv]", Uniform(8)),
        ("*/qk.[qk]", StaticGrouped(8, 2, "e")),
        ("*/pv.p", StaticGrouped(8, 4, "hq", nonnegative=True)),
    ],
    "learned, heads of channels": [
        ("*.w", Learned(4, "o")),
        ("*/qkv.w", Learned(4, "sh")),
        ("*/proj.w", Learned(4, "h", heads=3)),
        ("*.[xqkv]", Learned(8)),
        ("*/proj.x", Learned(4, "h", offset=True, heads=3)),
        ("*/pv.p", Learned(8, signed=False)),
    ],
    "learned offsets everywhere": [
        ("*.w", Uniform(8, symmetric=True)),
        ("*.[xqkpv]", Learned(6, offset=True)),
        ("*/qk.k", Learned(6, "h", offset=True)),
    ],
    "symmetric, ternary": [
        ("*.w", Ternary(keep="o")),
        ("*/qkv.w", Ternary(keep="s")),
        ("*.[xqkpv]", Uniform(7, "", True)),
    ],
}


@pytest.mark.once
def test_a_decoder_of_maps(tmp_path):
    """Transposed convolutions as products, their pixels added where they overlap, and a resize to the image's size."""
    fields = {"image": (20, 28), "patch": 4, "channels": 3, "dim": 12, "depth": 1, "heads": 3, "decoder": (6, 5)}
    model = jvq.build("saliency", fields)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    images = images_for(model)
    save_onnx_float(model, params, {}, path := tmp_path / "model.onnx")
    (got,) = exported.session(path).run(None, {"images": images})
    np.testing.assert_allclose(got, model.forward(params, images), atol=1e-6)
    weights = [("*.w", Uniform(8, "o")), ("*/qkv.w", Uniform(8, "she")), ("*/up*.w", Uniform(8, "to"))]
    deployment = deployed(model, params, [("*", Uniform(8)), *weights])
    save_onnx(deployment, path)
    (got,) = exported.session(path, precise=True).run(None, {"images": images})
    np.testing.assert_allclose(got, deployment.forward(images), atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_grid_gives_integers_and_the_same_outputs(name, tmp_path):
    model, params = drawn("vit")
    deployment = deployed(model, params, ACTIVATIONS[name])
    path = tmp_path / "q.onnx"
    save_onnx(deployment, path)
    found = exported.check(deployment, path, images_for(model, 8), batch=8)
    float_logits = np.asarray(jax.jit(model.forward)(params, images_for(model, 8)))
    quantised = np.asarray(deployment.forward(images_for(model, 8)))
    assert np.abs(float_logits - quantised).max() > 100 * 1e-5  # there is something to get wrong
    assert found.difference < 1e-5 * max(1.0, np.abs(quantised).max())
    ops = products(path, tmp_path)
    assert not FLOAT & set(ops), ops
    assert sum(ops[op] for op in INTEGER) >= 8  # patch, qkv, qk, pv, proj, fc1, fc2, head


@pytest.mark.once
def test_swin_and_merged_keys_on_a_grid(tmp_path):
    model, params = drawn("swin", merged=True)
    deployment = deployed(model, params, [("*.w", Uniform(8)), ("*.[xqkpv]", Uniform(8)), ("*/qk.q", Uniform(6, "h"))])
    save_onnx(deployment, tmp_path / "s.onnx")
    assert exported.check(deployment, tmp_path / "s.onnx", images_for(model, 4)).difference < 1e-4
    assert not FLOAT & set(products(tmp_path / "s.onnx", tmp_path))


def test_one_side_alone_is_a_float_product(tmp_path):
    model, params = drawn("vit")
    for recipe in ([("*.w", Uniform(8)), ("*/fc1.w", Uniform(4, "o"))], [("*.x", Uniform(8))]):
        deployment = deployed(model, params, recipe)
        save_onnx(deployment, tmp_path / "h.onnx")
        assert exported.check(deployment, tmp_path / "h.onnx", images_for(model, 4)).difference < 1e-4


REFUSED = {
    "block00/mlp/fc1.x: Grouped's groups are chosen per image at run time.*static scales; use StaticGrouped": (
        Grouped(4, 2, "d")
    ),
    "block00/attn/pv.p: Dynamic's ranges are chosen per image at run time, .*; use Uniform": Dynamic(8, "bh"),
    "block00/attn/qk.q: Signs's codes are signs, .*; use Uniform or Learned": Signs(),
    "block00/attn/pv.p: Steps's codes are signs": Steps(),
    "block00/mlp/fc2.x: ShiftedSigns's codes are signs": ShiftedSigns(),
    "block00/mlp/fc2.x: Ternary's scales are of the moment": Ternary(),
    "head.x: 9 bits, .* 8 at most": Uniform(9),
    "block00/mlp/fc2: 48 different scales along the axis .* use StaticGrouped with fewer": Uniform(8, "d"),
    "block00/mlp/fc2.w: 12 bits, .* 8 at most": Uniform(12),
    "block00/mlp/fc1.w: its codes are signs": Signs(scale="mean", keep="o"),
    "block00/mlp/fc2.w: a zero point lies outside of the codes": Uniform(8, zero_point="free"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_qdq_cannot_say_is_refused_in_one_line(line, tmp_path):
    model, params = drawn("vit")
    address, quantizer = line.partition(": ")[0], REFUSED[line]
    if address.endswith(".w"):
        fc2 = params["block00"]["mlp"]["fc2"]  # all positive: a range without zero
        params["block00"]["mlp"]["fc2"] = {**fc2, "kernel": jnp.abs(fc2["kernel"]) + 5}
        deployment = deployed(model, params, [(address, quantizer)])
    else:
        address = address if "." in address else f"{address}.x"
        state = {"scale": jnp.arange(1.0, 49), "zero": jnp.zeros(48), "levels": jnp.float32(255)}
        deployment = Deployment(model, params, {address: quantizer}, {address: state}, {}, {}, {}, {})
    with pytest.raises(ValueError, match=f"^{line}") as caught:
        save_onnx(deployment, tmp_path / "r.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_refusals(tmp_path, monkeypatch):
    model, params = drawn("vit")
    with pytest.raises(ValueError, match="no graph of the architecture 'mixer' .*vit, swin, saliency"):
        save_onnx_float(model._replace(architecture="mixer"), params, {}, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="nowhere/m.onnx cannot be written"):
        save_onnx_float(model, params, {}, tmp_path / "nowhere" / "m.onnx")

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(package.importlib, "import_module", missing)
    with pytest.raises(ValueError, match="ONNX needs the package onnx: pip install 'jvq\\[onnx\\]'"):
        save_onnx_float(model, params, {}, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="the package onnxruntime: pip install"):
        exported.session(tmp_path / "m.onnx")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    model, params = drawn("vit")
    path = tmp_path / "m.onnx"
    path.write_bytes(b"before")

    def refuse(part, full_check):
        assert part == f"{path}.part"
        assert path.read_bytes() == b"before"
        raise onnx.checker.ValidationError("no")

    with monkeypatch.context() as m:
        m.setattr(onnx.checker, "check_model", refuse)
        with pytest.raises(onnx.checker.ValidationError):
            save_onnx_float(model, params, {}, path)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    save_onnx_float(model, params, {}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    onnx.checker.check_model(str(path), full_check=True)


def test_check_sees_another_model(tmp_path):
    model, params = drawn("vit")
    save_onnx_float(model, params, {}, tmp_path / "m.onnx")
    other = {**params, "head": {**params["head"], "bias": params["head"]["bias"] + jnp.arange(5.0) * 9}}
    found = exported.check(Deployment(model, other, {}, {}, {}, {}, {}, {}), tmp_path / "m.onnx", images_for(model))
    assert found.difference > 30
    assert not found.agrees
    assert found.differing
