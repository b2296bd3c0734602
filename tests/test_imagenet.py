"""The papers' settings (``igq_vitb.py``, ``liu21_deitb.py``): whole paths on random weights and made-up images."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jvq import run
from jvq.config import typed
from jvq.models import build
from jvq.models.weights import Checkpoint, save_timm
from jvq.report import Console

pytestmark = pytest.mark.once

CONFIGS = Path(__file__).parents[1] / "configs"
WNIDS = ("n01440764", "n01443537", "n01484850")
TINY = {  # in timm's names, with ImageNet's 1000 classes
    "vit_b": ("vit", dict(image=(64, 64), patch=16, dim=64, depth=1, heads=1)),
    "deit_b": ("vit", dict(image=(32, 32), patch=16, dim=32, depth=1, heads=1)),
    "swin_t": ("swin", dict(image=(64, 64), patch=4, dim=16, depths=(2,), heads=(1,), window=4)),
}


def config_of(name, file="igq_vitb"):
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(name)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A folder like ImageNet's: a folder a class, JPEGs of different sizes, a grey one among them."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 2)):
        for wnid in WNIDS:
            (root / split / wnid).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (*rng.integers(40, 60, 2), 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                (image.convert("L") if i == 1 else image).save(root / split / wnid / f"{wnid}_{i}.JPEG")
    return root


def weights_of(name, folder):
    architecture, spec = TINY[name]
    model, rng = build(architecture, spec), np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.1, s.shape), jnp.float32), model.shapes())
    save_timm(Checkpoint(model, params, {}, {}), folder / "model.safetensors")
    return str(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["vit_b", pytest.param("swin_t", marks=pytest.mark.slow)])
def test_the_whole_path(name, imagenet, tmp_path):
    cfg = config_of(name)
    cfg.data.dir, cfg.weights = str(imagenet), weights_of(name, tmp_path)
    cfg.model = TINY[name][1]  # the image's size, which a Swin's file does not have
    cfg.method.start, cfg.method.mstep, cfg.method.weight_range = "quantile", "cover", "max"  # what compiles fast
    if name == "vit_b":
        cfg.method.linear, cfg.method.softmax = "consecutive", "layer"
        cfg.rules = "block*=float"  # blocks are quantised elsewhere
    report = run.run(typed(cfg), tmp_path / "work", Console(quiet=True))
    assert [row["name"] for row in report["rows"]] == ["float", "minmax", "igq", "igq_upper_bound"]
    assert all(0 <= row["top1"] <= 1 for row in report["rows"]), "the folder's classes are labels"
    assert report["data"]["images"] == 6
    assert report["protocol"]["calibration"].startswith("32 images of folder")
    assert report["model"]["spec"]["classes"] == 1000
    assert report["rows"][2]["bytes"] < 0.8 * report["rows"][0]["bytes"], "packed weights"


@pytest.mark.slow
def test_the_whole_path_of_the_search(imagenet, tmp_path):
    cfg = config_of("deit_b", "liu21_deitb")
    cfg.data.dir, cfg.weights, cfg.model = str(imagenet), weights_of("deit_b", tmp_path), TINY["deit_b"][1]
    cfg.data.calibration, cfg.method.steps, cfg.method.rounds, cfg.method.mixed = 16, 4, 1, True
    report = run.run(typed(cfg), tmp_path / "work", Console(quiet=True))
    names = ["float", "minmax", "liu21", "liu21_uniform", "percentile", "max", "easyquant"]
    assert [row["name"] for row in report["rows"]] == names
    assert report["protocol"]["weights"] == "6 bits, symmetric per tensor"
    assert report["protocol"]["patch embedding and head"].startswith("6 bits")
    assert {m["bits"] for m in report["mixed"]["modules"].values()} <= {4, 5, 6, 7, 8}
    assert report["mixed"]["size"] <= report["mixed"]["limit"]
    assert set(report["search"]) == {s.rpartition(".")[0] for s in report["sites"]}
    assert report["sites"]["block00/attn/pv.p"]["order"] is not None
    assert "widths.png" in report["pictures"]
    text = (tmp_path / "work" / "report.md").read_text()
    assert "## Widths of modules" in text
    assert "## Searched intervals" in text


def test_without_images_it_says_what_to_get(tmp_path):
    with pytest.raises(ValueError, match=r"source 'folder' needs a directory.*igq_vitb needs ImageNet.*igq_demo\.py"):
        run.run(typed(config_of(None)), tmp_path, Console(quiet=True))


def test_without_weights_it_says_which_file_from_where(imagenet, tmp_path, monkeypatch):
    monkeypatch.setenv("JVQ_OFFLINE", "1")
    monkeypatch.setenv("JVQ_CACHE", str(tmp_path / "cache"))
    cfg = config_of("deit_t")
    cfg.data.dir = str(imagenet)
    url = "https://huggingface.co/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/config.json"  # the first of its files
    with pytest.raises(ValueError, match="igq_deit_t needs ImageNet") as caught:
        run.run(typed(cfg), tmp_path, Console(quiet=True))
    assert url in str(caught.value)
    assert str(tmp_path / "cache") in str(caught.value), "where to put it by hand"
    assert "\n" not in str(caught.value)


def test_another_model_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"igq_vitb\.py:vit_bb: no such model .did you mean 'vit_b'"):
        config_of("vit_bb")
