"""The command that puts a packed model to use: its table, its files, and mistakes in one line."""

import functools
import importlib
import json
import os
import runpy
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from absl import flags
from PIL import Image

from jvq import deploy
from jvq.core.calibrate import fresh
from jvq.core.recipe import resolve, sites
from jvq.export import Deployment, save
from jvq.export.onnx import check
from jvq.export.stablehlo import load_stablehlo
from jvq.models import build
from jvq.models.weights import Checkpoint
from jvq.models.weights import save as save_float
from jvq.quantizers import Dynamic, Uniform

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 12, "depth": 1, "heads": 2, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
UNIFORM = [("*.w", Uniform(4, "o")), ("*/qkv.w", Uniform(4, "she")), ("*.[xqkpv]", Uniform(8))]
BY_IMAGE = [*UNIFORM, ("*/mlp/fc1.x", Dynamic(8, "b"))]
IMAGES = 21


def made(recipe, architecture="vit", **fields):
    """The float checkpoint of a tiny model with random weights, and its deployment under a recipe."""
    rng, qstate = np.random.default_rng(1), {}
    model = build(architecture, {**SPEC, **fields} if architecture == "vit" else fields)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), model.shapes())
    checkpoint, known = Checkpoint(model, params, PREPROCESS, {}), sites(model.forward, params, model.image)
    plan = resolve(recipe, known) if recipe else {}
    for address, quantizer in plan.items():
        operand = known[address]
        x = rng.normal(size=(4, *operand.shape[1:]))
        if operand.path is not None:
            x = functools.reduce(lambda t, key: t[key], operand.path, params)
        qstate[address] = fresh(quantizer, jnp.asarray(x, jnp.float32), operand.letters)
    return checkpoint, Deployment.of(checkpoint, plan, qstate, known)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of a float checkpoint, packed models and labelled images."""
    folder, rng = tmp_path_factory.mktemp("deploy"), np.random.default_rng(0)
    checkpoint, deployment = made(UNIFORM)
    save_float(checkpoint, folder / "float.safetensors")
    save(deployment, folder / "packed.safetensors")
    save(made(BY_IMAGE)[1], folder / "by_image.safetensors")
    save(made(UNIFORM, classes=0)[1], folder / "headless.safetensors")
    images, labels = rng.integers(0, 256, (IMAGES, 8, 8), dtype=np.uint8), rng.integers(0, 3, IMAGES)
    np.savez(folder / "test.npz", images=images, labels=labels)
    np.savez(folder / "unlabelled.npz", images=images)
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(scope="module")
def deployment():
    return made(UNIFORM)[1]


@pytest.fixture
def command(root, tmp_path, monkeypatch, capsys):
    """``command(*args) -> (exit code, stdout, stderr)``: the file run as the process runs it, in an empty folder.

    Its flags go into a set of their own: those of another command may have their names.
    """
    for name in ("jvq.data", "jvq.report", "jvq.export.onnx", "jvq.export.stablehlo", "grain"):
        importlib.import_module(name)  # before absl is another
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*args):
        own, argv = flags.FlagValues(), ["jvq.deploy", *(str(a).replace("ROOT", str(root)) for a in args)]
        kinds = ("DEFINE_string", "DEFINE_integer", "DEFINE_enum")
        define = {kind: functools.partial(getattr(flags, kind), flag_values=own) for kind in kinds}
        code = 0
        with monkeypatch.context() as m:
            m.setattr("absl.flags", SimpleNamespace(FLAGS=own, **define))
            m.setattr("absl.app", SimpleNamespace(run=lambda main, flags_parser: main(own(argv))))
            try:
                runpy.run_path(deploy.__file__, run_name="__main__")
            except SystemExit as stop:
                code = stop.code
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


PACKED = "ROOT/packed.safetensors"
NPZ = ("--data=npz", "--dir=ROOT")


def rows(out: str) -> dict[str, str]:
    """The table's lines: what stands first, and what behind it."""
    lines = [line.strip() for line in out.splitlines() if line.strip().strip("─ ") and not line.endswith("...")]
    return {name: value.strip() for name, _, value in (line.partition("   ") for line in lines)}


def pixels(deployment):
    """All images of ``test.npz`` as the model takes them, by the definition of PREPROCESS, and their labels."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (IMAGES, 8, 8), dtype=np.uint8), rng.integers(0, 3, IMAGES)
    return ((images[..., None] / 255 - 0.5) / 0.25).astype(np.float32), labels


@pytest.mark.parametrize("weights", deploy.WEIGHTS)
def test_the_table(command, root, deployment, weights):
    code, out, err = command(PACKED, *NPZ, "--batch=8", f"--weights={weights}")
    assert (code, err) == (0, "")
    found = rows(out)
    assert found["model"] == "vit, 8x8 pixels"
    size = (root / "packed.safetensors").stat().st_size / 1024
    held = sum(np.asarray(x).nbytes for x in jax.tree.leaves((deployment.params, dict(deployment.qstate)))) / 1024
    assert found["file"] == f"{size:.1f} KiB; in memory {held:.1f} KiB"
    assert found["in integers"].startswith("8 products: 8 int8" if weights == "fast" else "8 products: ")
    assert found["images"] == str(IMAGES)
    assert int(found["images a second"]) > 0
    images, labels = pixels(deployment)
    decisions = np.asarray(jax.jit(deployment.forward)(images)).argmax(axis=1)
    top1 = f"{100 * (decisions == labels).sum() / IMAGES:.2f}"
    assert found["top-1 %, integers"] == found["top-1 %, fake quantisation"] == top1
    assert found["decisions that differ"] == "0"


def test_some_of_the_images(command):
    assert rows(command(PACKED, *NPZ, "--images=5")[1])["images"] == "5"


def test_images_that_cannot_be_read_are_counted_and_named(command, deployment, tmp_path):
    images, labels = (np.random.default_rng(5).integers(0, 256, (7, 8, 8), dtype=np.uint8), [0, 0, 1, 1, 2, 2, 2])
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "set" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / str(label) / f"{i}.png")
    (tmp_path / "set" / "1" / "3.png").write_text("no image")
    code, out, _ = command(PACKED, "--data=folder", "--dir=set", "--batch=4")
    found, good = rows(out), [0, 1, 2, 4, 5, 6]
    assert (code, found["images"]) == (0, "6")
    assert found["not readable"].startswith("1, the first: set/1/3.png: not a readable image")
    made = ((images[good, ..., None] / 255 - 0.5) / 0.25).astype(np.float32)
    right = np.asarray(jax.jit(deployment.forward)(made)).argmax(axis=1) == np.array(labels)[good]
    assert found["top-1 %, integers"] == found["top-1 %, fake quantisation"] == f"{100 * right.mean():.2f}"
    (tmp_path / "none" / "0").mkdir(parents=True)
    (tmp_path / "none" / "0" / "0.png").write_text("no image")
    code, _, err = command(PACKED, "--data=folder", "--dir=none")
    assert code == 2
    assert err.startswith("jvq: folder: none of its images can be read, the first: none/0/0.png: not a readable")


def test_without_labels_or_classes_there_is_no_accuracy(command):
    found = rows(command(PACKED, "--data=npz", "--dir=ROOT/unlabelled.npz")[1])
    assert "decisions that differ" in found
    assert not any("top-1" in name for name in found)
    found = rows(command("ROOT/headless.safetensors", *NPZ)[1])
    far = "largest difference from fake quantisation"
    assert [*found] == ["model", "file", "in integers", "images", "images a second", far]
    assert float(found[far]) < 1e-4


def test_it_writes_what_others_run(command, deployment, tmp_path):
    code, out, err = command(PACKED, "--images=0", "--onnx=m.onnx", "--stablehlo=m.zip", "--stablehlo_batch=3")
    assert (code, err) == (0, "")
    found = rows(out)
    assert [*found] == ["model", "file", "in integers", "onnx", "stablehlo"]
    assert (found["onnx"], found["stablehlo"]) == ("m.onnx", "m.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.zip"]
    images, _ = pixels(deployment)
    agreement = check(deployment, tmp_path / "m.onnx", images, batch=7)
    assert agreement.agrees
    stored = load_stablehlo(tmp_path / "m.zip")
    assert (stored.header["batch"], stored.header["platform"]) == (3, "cpu")
    want = jax.jit(deployment.forward)(images[:3])
    np.testing.assert_allclose(stored(images[:3]), want, rtol=0, atol=2e-5 * np.abs(want).max())
    assert "preprocess" in {p.key for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.dumps(stored.header["recipe"]) == json.dumps(dict(deployment.recipe))


MISTAKES = {
    "no file": ((), "one argument is needed, a packed file: python -m jvq.deploy "),
    "two files": ((PACKED, PACKED), "one argument is needed, a packed file"),
    "no such file": (("ROOT/pakced.safetensors",), "there is no file .*/pakced.safetensors"),
    "a folder": (("ROOT/folder",), "there is no file .*/folder"),
    "a float checkpoint": (("ROOT/float.safetensors",), "float.safetensors is no packed model of jvq: its format is "),
    "images": (("ROOT/test.npz",), "test.npz cannot be read as safetensors"),
    "no folder for onnx": ((PACKED, "--onnx=no/m.onnx"), "onnx: .*/no/m.onnx cannot be written: it must be"),
    "no folder for stablehlo": ((PACKED, "--stablehlo=/no/m.zip"), "stablehlo: /no/m.zip cannot be written: it must"),
    "a folder for onnx": ((PACKED, "--onnx=ROOT/folder"), "folder cannot be written: it must be a file"),
    "no data": ((PACKED, "--data=fasion"), "no source 'fasion' .did you mean 'fashion'"),
    "no folder of data": ((PACKED, "--data=npz", "--dir=ROOT/no"), "ROOT/no"),
    "ranges of the moment": (
        ("ROOT/by_image.safetensors", "--onnx=m.onnx"),
        "block00/mlp/fc1.x: Dynamic's .* chosen per image at run time, QDQ has static scales",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line_and_write_nothing(command, root, tmp_path, name):
    arguments, complaint = MISTAKES[name]
    before = sorted(root.rglob("*"))
    code, out, err = command(*arguments)
    assert (code, [line for line in out.splitlines() if not line.endswith("...")]) == (2, [])
    (line,) = err.splitlines()
    assert line.startswith("jvq: ")
    with pytest.raises(ValueError, match=complaint.replace("ROOT", str(root))):
        raise ValueError(line)
    assert sorted(root.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_the_process_ends_in_one_line_too():
    done = subprocess.run(
        [sys.executable, "-m", "jvq.deploy", "no.safetensors"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line == "jvq: packed: there is no file no.safetensors"


def test_products_in_words(deployment, monkeypatch):
    found = {"a": "int8", "b": "groups", "c": "groups", "d": "float: an operand is not quantised"}
    monkeypatch.setattr(Deployment, "ways", lambda self, weights="fast": found)
    text = deploy.described(deployment)
    assert text == "4 products: 2 groups, 1 int8, 1 float: an operand is not quantised"


def test_a_comparison_in_words(deployment):
    images = pixels(deployment)[0][:5]
    fake = np.array(jax.jit(deployment.forward)(images))
    start = "8 products: 8 int8; outputs differ by "
    same = deploy.compared(deployment, jnp.asarray(images), jnp.asarray(fake))
    assert same.startswith(start)
    assert same.endswith(" (median image), decisions on 0 of 5 images")
    assert float(same.removeprefix(start).split()[0]) < 1e-5
    fake[[0, 1, 2]] += 0.5
    fake[3, fake[3].argmin()] += 100  # one image decides otherwise: not the median
    text = deploy.compared(deployment, jnp.asarray(images), jnp.asarray(fake))
    assert text == start + "5.0e-01 (median image), decisions on 1 of 5 images"


def test_without_classes_nothing_decides():
    headless = made(UNIFORM, classes=0)[1]
    images = jnp.asarray(pixels(headless)[0][:5])
    text = deploy.compared(headless, images, jax.jit(headless.forward)(images))
    assert text.endswith(" (median image)")


def test_maps_are_compared_as_well():
    spec = {"image": (8, 8), "patch": 4, "dim": 8, "depth": 1, "heads": 2, "decoder": (4,)}
    checkpoint, deployment = made([], "saliency", **spec)
    images = jnp.asarray(np.random.default_rng(3).normal(size=(2, *checkpoint.model.image)), jnp.float32)
    fake = jax.jit(lambda x: checkpoint.model.forward(checkpoint.params, x))(images)
    text = deploy.compared(deployment, images, fake + 0.25)
    assert text.endswith("outputs differ by 2.5e-01 (median image)")


def test_a_folder_in_the_place_of_a_file_is_a_mistake(command, tmp_path):
    (tmp_path / "folder").mkdir()
    code, _, err = command(PACKED, "--images=0", "--stablehlo=folder", "--stablehlo_batch=2")
    assert (code, len(err.splitlines())) == (2, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_nothing_but_the_mistake_is_said_where_no_device_is_named(root):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-m", "jvq.deploy", str(root / "by_image.safetensors"), "--onnx=m.onnx"],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=root / "folder",
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("jvq: block00/mlp/fc1.x: ")


def test_the_table_tells_how_small_weights_are_multiplied(command):
    assert "packed" in rows(command(PACKED, *NPZ, "--images=1", "--weights=small")[1])["in integers"]


def test_mistakes_in_the_data_are_found_before_anything_is_written(command, tmp_path):
    assert command(PACKED, "--data=fasion", "--onnx=m.onnx")[0] == 2
    assert not list(tmp_path.iterdir())
