"""A deployment as StableHLO gives what it gives in this process, to the bit, also where there is no jvq."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from safetensors import safe_open

import jvq
from jvq.core.calibrate import calibrate, calibrate_all
from jvq.core.packed import Encoded, is_encoded
from jvq.core.recipe import resolve, sites
from jvq.export import stablehlo
from jvq.export.deployment import Deployment
from jvq.export.stablehlo import load_stablehlo, save_stablehlo
from jvq.integer import integer_dot, prepared
from jvq.methods import igq, minmax
from jvq.models.weights import Checkpoint, native
from jvq.quantizers import Dynamic, Grouped, Learned, Signs, StaticGrouped, Steps, Uniform

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 12, "depth": 1, "heads": 2, "classes": 3, "pool": "mean"}
EACH = [("*.w", Uniform(bits=4, keep="o")), ("*/qkv.w", Uniform(bits=3, keep="sh"))]
FEW = {"groups": 3, "restarts": 1, "iterations": 3}
FAMILIES = {
    "uniform": [*EACH, ("patch.w", Uniform(bits=8, keep="o")), ("*.[xqkpv]", Uniform(bits=8))],
    "dynamic": [*EACH, ("*.[xqkpv]", Dynamic(bits=6)), ("*/pv.p", Dynamic(keep="bhq", nonnegative=True))],
    "grouped": [*EACH, ("*.x", Grouped(**FEW)), ("*/pv.p", Grouped(along="hq", nonnegative=True, **FEW))],
    "ladder": [*EACH, ("*.x", Grouped(ladder=True, **FEW))],
    "static": [*EACH, ("*.x", StaticGrouped(groups=3))],
    "learned": [*EACH, ("*.x", Learned(bits=4, signed=False, offset=True)), ("head.w", Learned(bits=4, keep="o"))],
    "binary": [
        *(("*.x", Signs()), ("*/qk.*", Signs(scale="learned", keep="h")), ("*/pv.p", Steps(keep="h"))),
        *(("*/pv.v", Signs(scale="learned", keep="h")), ("*.w", Signs(scale="mean", keep="o"))),
        *(("*/qkv.w", Signs(scale="mean", keep="she")), ("patch.*", None), ("head.*", None)),
    ],
}


BATCHES = (1, 3, 5)


def in_process(deployment, images, integers=True):
    """The logits of the jitted model, weights as arguments."""
    model, params = deployment.model, deployment.params
    if integers:
        params = prepared(params, sites(model.forward, params, model.image))
    else:
        params = jax.tree.map(lambda x: x.unpack() if isinstance(x, Encoded) else x, params, is_leaf=is_encoded)

    def forward(params, qstate, images):
        dot = integer_dot(deployment.plan, qstate, impl="xla") if integers else deployment.dot(qstate)
        return model.forward(params, images, dot)

    return np.asarray(jax.jit(forward)(params, dict(deployment.qstate), images))


@pytest.fixture(autouse=True)
def unchecked_sizes(monkeypatch):
    """No checks of annotations: a size that is the symbol of any batch is no ``int``."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def deployments(images):
    """One for each family, of a model with random weights, calibrated on the images."""
    model = jvq.build("vit", SPEC)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    checkpoint = Checkpoint(model, params, {"mean": [0.5]}, {"from": "random numbers"})
    known = sites(model.forward, params, model.image)
    plans = [resolve(recipe, known) for recipe in FAMILIES.values()]
    states = calibrate_all(model.forward, params, images, plans, known)
    return {
        family: Deployment.of(checkpoint, plan, state, known, {"calibration": "random"})
        for family, plan, state in zip(FAMILIES, plans, states, strict=True)
    }


@pytest.fixture(scope="module")
def uniform(deployments):
    return deployments["uniform"]


@pytest.fixture(scope="module")
def exported(uniform, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "vit.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        save_stablehlo(uniform, path)
    return path


@pytest.fixture
def saved(exported, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copy(exported, tmp_path / "vit.safetensors")


def header_of(path):
    with safe_open(path, framework="numpy") as f:
        return f.metadata(), {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118


def module_text(path):
    return jax.export.deserialize(bytearray(header_of(path)[1]["model"].tobytes())).mlir_module()


def same_at_any_batch(run, deployment, images, batches=BATCHES):
    for batch in batches:
        expected = in_process(deployment, images[:batch])
        assert np.isfinite(expected).all()
        assert np.ptp(expected) > 0
        np.testing.assert_array_equal(run(images[:batch]), expected)


@pytest.mark.once
def test_the_file_gives_the_models_logits_to_the_bit_at_any_batch(exported, uniform, images):
    same_at_any_batch(load_stablehlo(exported), uniform, images)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("uniform", "dynamic")])
def test_every_family_comes_back_to_the_bit_at_any_batch(family, deployments, images, tmp_path):
    save_stablehlo(deployments[family], tmp_path / "a.safetensors")
    same_at_any_batch(load_stablehlo(tmp_path / "a.safetensors"), deployments[family], images)


def test_a_scale_for_each_image_of_the_head_comes_back_to_the_bit(deployments, images, tmp_path):
    subject = deployments["dynamic"]
    save_stablehlo(subject, tmp_path / "a.safetensors", batch=5)
    expected = in_process(subject, images)
    assert np.ptp(expected, axis=0).min() > 0
    np.testing.assert_array_equal(load_stablehlo(tmp_path / "a.safetensors")(images), expected)


def test_images_that_are_multiplied_one_by_one_are_any_number(deployments, images, tmp_path, monkeypatch):
    monkeypatch.setattr("jvq.kernels.group_matmul.xla.CACHED", 0)
    save_stablehlo(deployments["grouped"], tmp_path / "a.safetensors")
    assert "stablehlo.while" in module_text(tmp_path / "a.safetensors")
    same_at_any_batch(load_stablehlo(tmp_path / "a.safetensors"), deployments["grouped"], images, [3])


def test_bits_are_counted_at_any_batch(deployments, images):
    subject = deployments["binary"]
    rows = prepared(subject.params, subject.known, "small")

    @jax.jit
    def run(rows, images):
        dot = integer_dot(subject.plan, subject.qstate, impl="xla", count=True)
        return subject.model.forward(rows, images, dot)

    size = jax.export.symbolic_shape("b, 8, 8, 1")
    exported = jax.export.export(run)(rows, jax.ShapeDtypeStruct(size, "float32"))
    assert exported.mlir_module().count("stablehlo.popcnt") > 1
    for batch in BATCHES:
        expected = np.asarray(run(rows, images[:batch]))
        assert np.ptp(expected) > 0
        np.testing.assert_array_equal(jax.jit(exported.call)(rows, images[:batch]), expected)


def test_a_kernel_that_must_know_the_batch_asks_for_one(uniform, tmp_path, monkeypatch):
    def choosy(*args, **kwargs):
        inner = integer_dot(*args, **kwargs)
        return lambda site, equation, /, **xs: inner(site, equation, **xs) if max(xs["x"].shape) > 99 else None

    monkeypatch.setattr(stablehlo, "integer_dot", choosy)
    with pytest.raises(ValueError, match="cannot be exported for any batch, name one, batch=8: .*b.*inconclusive"):
        save_stablehlo(uniform, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_fake_quantised_products_are_there_too(deployments, images, tmp_path):
    subject = deployments["grouped"]
    save_stablehlo(subject, tmp_path / "a.safetensors", integers=False)
    run = load_stablehlo(tmp_path / "a.safetensors")
    assert run.header["integers"] is False
    np.testing.assert_array_equal(run(images), in_process(subject, images, integers=False))


def test_products_are_of_integers(uniform, saved, tmp_path):
    def products(path):
        return [line for line in module_text(path).splitlines() if "stablehlo.dot_general" in line]

    assert all("i32>" in line.split("->")[-1] for line in products(saved))
    save_stablehlo(uniform, tmp_path / "b.safetensors", integers=False)
    assert all("f32>" in line.split("->")[-1] for line in products(tmp_path / "b.safetensors"))


def test_a_fixed_batch_is_the_only_one(uniform, images, tmp_path):
    save_stablehlo(uniform, tmp_path / "a.safetensors", batch=2)
    run = load_stablehlo(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"images of shape \(5, 8, 8, 1\), the model wants \(2, 8, 8, 1\)"):
        run(images)


def test_images_of_another_shape_are_refused(saved):
    run = load_stablehlo(saved)
    for shape in ((1, 8, 9, 1), (8, 8, 1)):
        with pytest.raises(ValueError, match=r"the model wants \('any number', 8, 8, 1\)"):
            run(np.zeros(shape, np.float32))


def test_weights_are_packed_in_the_file_and_none_is_in_the_modules(uniform, saved):
    _, arrays = header_of(saved)
    packed = [x for x in jax.tree.leaves(uniform.params, is_leaf=is_encoded) if is_encoded(x)]
    codes = sum(x.planes.nbytes for x in packed)
    large = {n: x for n, x in arrays.items() if n.endswith(("planes", "codes"))}
    assert len(large) == len(packed)
    assert sum(x.nbytes for x in large.values()) == codes  # 8 bits are bytes, 4 bits bit planes: 12 channels, odd rows


def test_the_header_says_what_the_model_is(uniform, saved):
    run = load_stablehlo(saved)
    assert run.header["image"] == [8, 8, 1]
    assert run.header["preprocess"] == {"mean": [0.5]}
    assert run.header["protocol"] == {"calibration": "random"}
    assert run.header["recipe"] == dict(uniform.recipe)
    assert (run.header["platform"], run.header["batch"]) == ("cpu", None)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("family", ["uniform", "grouped", "binary"])
def test_other_platforms_are_exported_here_and_run_only_there(platform, family, deployments, tmp_path):
    path = tmp_path / "a.safetensors"
    save_stablehlo(deployments[family], path, platform=platform)
    _, arrays = header_of(path)
    for name in stablehlo.MODULES:
        assert jax.export.deserialize(bytearray(arrays[name].tobytes())).platforms == (platform,)
    with pytest.raises(ValueError, match=rf"a.safetensors is for {platform}, this process runs on cpu"):
        load_stablehlo(path)


WITHOUT_JVQ = """
import sys
sys.modules["jvq"] = sys.modules["flax"] = None
import numpy as np
path, images = sys.argv[1], np.load(sys.argv[2])
{code}
np.save(sys.argv[3], logits)
assert not [name for name in sys.modules if name.startswith("jvq.")]
"""


def documented():
    """The lines that the module's docstring shows."""
    text = inspect.getdoc(stablehlo)
    return textwrap.dedent(text.split("::\n")[1].split("\nHeader")[0])


def test_the_lines_in_the_docstring_run_the_file_without_jvq(saved, uniform, images, tmp_path):
    code = documented()
    assert len(code.strip().splitlines()) <= 20
    np.save(tmp_path / "images.npy", images)
    script = [sys.executable, "-c", WITHOUT_JVQ.format(code=code), saved, tmp_path / "images.npy", tmp_path / "y.npy"]
    done = subprocess.run(script, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), in_process(uniform, images))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_one_line(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"stablehlo: .*vit.safetensors cannot be read: .+") as caught:
        load_stablehlo(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["model", "unpack", "params/head/kernel/planes", "params/patch/kernel/codes"])
def test_one_other_byte_anywhere_is_noticed(saved, part):
    text, arrays = header_of(saved)
    flat = arrays[part].copy().reshape(-1).view(np.uint8)
    flat[len(flat) // 2] ^= 1
    arrays[part] = flat.view(arrays[part].dtype).reshape(arrays[part].shape)
    native.write(arrays, saved, text)
    with pytest.raises(ValueError, match="was changed since it was written"):
        load_stablehlo(saved)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"platform": "tpu"}, "was changed since it was written"),
        ({"preprocess": {"mean": [0.4]}}, "was changed since it was written"),
        ({"version": 2}, "has version 2, this jvq reads up to 1"),
        ({"version": None}, "lacks version in its header"),
        ({"version": "1"}, "has version '1', which is no number"),
        ({"arguments": None}, "lacks arguments in its header"),
        ({"digest": "0"}, "was changed since it was written"),
        ({"format": "jvq-float"}, 'is no StableHLO file of jvq .format: "jvq-float"'),
    ],
)
def test_an_edited_header_is_noticed(saved, changes, complaint):
    text, arrays = header_of(saved)
    for name, value in changes.items():
        if value is None:
            del text[name]
        else:
            text[name] = json.dumps(value)
    native.write(arrays, saved, text)
    with pytest.raises(ValueError, match=complaint):
        load_stablehlo(saved)


def test_a_module_that_this_jax_cannot_read_is_one_line(saved):
    text, arrays = header_of(saved)
    arrays["model"] = arrays["model"][: len(arrays["model"]) // 2].copy()
    del text["digest"]
    native.write(arrays, saved, text | {"digest": json.dumps(stablehlo._digest(text, arrays))})
    with pytest.raises(ValueError, match=rf"written by jax {jax.__version__}, this is jax {jax.__version__}") as caught:
        load_stablehlo(saved)
    assert "\n" not in str(caught.value)


def test_what_is_no_such_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="a.safetensors cannot be read"):
        load_stablehlo(tmp_path / "a.safetensors")
    native.write({"x": np.zeros(1, np.float32)}, tmp_path / "a.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"no StableHLO file of jvq .format: pt"):
        load_stablehlo(tmp_path / "a.safetensors")


def test_mistakes_are_said_before_anything_is_written(uniform, tmp_path):
    with pytest.raises(ValueError, match=r"platform .metal. is not known .there are: cpu, cuda, tpu"):
        save_stablehlo(uniform, tmp_path / "a.safetensors", platform="metal")
    with pytest.raises(ValueError, match="batch must be at least 1, or None for any, got 0"):
        save_stablehlo(uniform, tmp_path / "a.safetensors", batch=0)
    with pytest.raises(ValueError, match="there is no folder"):
        save_stablehlo(uniform, tmp_path / "no" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_file_that_was_there(uniform, saved, monkeypatch):
    before = saved.read_bytes()

    def failing(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(ValueError, match="vit.safetensors cannot be written: no space left"):
        save_stablehlo(uniform, saved)
    assert saved.read_bytes() == before


METHODS = {
    "w8a8": lambda known: minmax.recipe(minmax.Options(bits=8), known),
    "w4a8": lambda known: minmax.recipe(minmax.Options(weight_bits=4, act_bits=8), known),
    "igq": lambda known: igq.recipe(igq.Options(), known),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["fashion_vit", "fashion_deit", "fashion_swin"])
def test_an_embedded_model_comes_back(name, method, tmp_path):
    checkpoint = jvq.open_weights(name)
    model, params = checkpoint.model, checkpoint.params
    shown = np.random.default_rng(0).normal(size=(4, *model.image)).astype(np.float32)
    known = sites(model.forward, params, model.image)
    plan = resolve(METHODS[method](known), known)
    subject = Deployment.of(checkpoint, plan, calibrate(model.forward, params, shown, plan, known), known)
    save_stablehlo(subject, tmp_path / "a.safetensors")
    found = load_stablehlo(tmp_path / "a.safetensors")(shown)
    np.testing.assert_array_equal(found, in_process(subject, shown))
