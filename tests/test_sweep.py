"""Sweeps on a tiny saliency model: one table out of what single runs give."""

import json
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jvq import run, sweep
from jvq.config import config, typed
from jvq.models import build
from jvq.models.weights import Checkpoint, save
from jvq.report import Console

pytestmark = pytest.mark.once

SPEC = {
    "image": (8, 8),
    "channels": 1,
    "patch": 4,
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "mlp_ratio": 1.0,
    "decoder": (4,),
}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
SCORES = ("correlation", "median_correlation", "mae", "iou", "nmse")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with ``saliency.safetensors``, ``train.npz`` and ``test.npz``."""
    folder, rng = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    model = build("saliency", SPEC)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), model.shapes())
    save(Checkpoint(model, params, PREPROCESS, {}), folder / "saliency.safetensors")
    for split, count in (("train", 24), ("test", 10)):
        np.savez(folder / f"{split}.npz", images=rng.integers(0, 256, (count, 8, 8), dtype=np.uint8))
    return folder


def cfg(root, **changes):
    data = {"name": "npz", "dir": str(root), "calibration": 8, "batch": 4}
    rows = {"percentile": {"name": "minmax", "range": "percentile", "weight_range": "percentile"}}
    quick = {"figures": False, "groups": 2, "start": "quantile", "restarts": 1, "mstep": "cover", "weight_range": "max"}
    weights = str(root / "saliency.safetensors")
    return typed(config("tiny", "igq", **{"weights": weights, "data": data, "rows": rows} | quick | changes))


@pytest.fixture(scope="module")
def swept(root, tmp_path_factory):
    """The report of a sweep over two widths and two seeds, and where it is written."""
    workdir = tmp_path_factory.mktemp("swept")
    chosen = cfg(root, widths="W8A8,W4A6", seeds=2)
    assert sweep.wanted(chosen)
    return run.run(chosen, workdir, Console(quiet=True), "the command"), workdir


def test_a_table_has_a_row_a_width_and_a_method(swept):
    report, workdir = swept
    methods = ("minmax", "igq", "igq_upper_bound", "percentile")
    assert [row["name"] for row in report["rows"]] == [
        "float",
        *(f"{width} {name}" for width in ("W8A8", "W4A6") for name in methods),
    ]
    assert len(report["runs"]) == 16
    for row in report["rows"][1:]:
        mine = [r for r in report["runs"] if f"{r['width']} {r['name']}" == row["name"]]
        assert [r["seed"] for r in mine] == [0, 1]
        for name in SCORES:
            assert row[name] == pytest.approx(statistics.fmean(r[name] for r in mine))
            assert row["spread"][name] == pytest.approx(statistics.stdev(r[name] for r in mine))
    assert json.loads((workdir / "report.json").read_text())["rows"] == report["rows"]
    assert "± is the sample standard deviation" in (workdir / "report.md").read_text()
    assert report["rows"][1]["bytes"] > report["rows"][5]["bytes"], "4-bit weights are smaller"


def test_there_is_a_picture_a_width(swept):
    _, workdir = swept
    for width in ("W8A8", "W4A6"):
        with Image.open(workdir / f"maps_{width}.png") as picture:
            assert picture.format == "PNG"


def test_a_sweep_has_the_sites_and_groups_of_its_main_row_at_the_last_width(swept):
    report, workdir = swept
    assert report["pictures"] == ["groups.png", "maps_W8A8.png", "maps_W4A6.png"]
    assert {site["bits"] for site in report["sites"].values()} == {4, 6, 8}
    text = (workdir / "report.md").read_text()
    for name in report["pictures"]:
        assert (workdir / name).stat().st_size > 1000
        assert f"![{name}]({name})" in text


@pytest.mark.slow
def test_numbers_of_groups_budgets_and_widths_have_their_pictures(root, tmp_path):
    """Rows that differ in the number of groups alone, an allocated one, three widths."""
    rows = {f"igq_{g}": {"name": "igq", "groups": g} for g in (1, 4)} | {"by_mean": {"name": "igq"}}
    quick = {"groups": 2, "restarts": 1, "mstep": "cover", "weight_range": "max", "candidates": (1, 4)}
    of_row = {**quick, "name": "igq", "allocation": "mean_groups"}
    rows = {label: {**of_row, **row} if label == "by_mean" else {**quick, **row} for label, row in rows.items()}
    chosen = cfg(root, rows=rows, widths="W8A8,W6A6,W4A4", candidates=(1, 4))
    report = run.run(chosen, tmp_path, Console(quiet=True))
    errors = [f"groups_error_W{b}A{b}.png" for b in (8, 6, 4)]
    maps = [f"maps_W{b}A{b}.png" for b in (8, 6, 4)]
    assert report["pictures"] == ["groups.png", "allocation_by_mean.png", *errors, "front.png", *maps]
    assert all((tmp_path / name).is_file() for name in report["pictures"])
    assert len([*tmp_path.glob("by_mean-*.jsonl")]) == 3, "a journal a width"


def test_a_sweep_gives_what_single_runs_give(swept, root, tmp_path):
    report, _ = swept
    single = cfg(root, weight_bits=4, act_bits=6, seed=1)
    assert not sweep.wanted(single)
    assert single.rows["percentile"][1].widths() == (4, 6)
    alone = run.run(single, tmp_path, Console(quiet=True))
    assert (tmp_path / "maps.png").is_file()
    assert [row["name"] for row in alone["rows"]] == ["float", "minmax", "igq", "igq_upper_bound", "percentile"]
    for row in alone["rows"][1:]:
        key = ("W4A6", row["name"], 1)
        (same,) = (r for r in report["runs"] if (r["width"], r["name"], r["seed"]) == key)
        for name in SCORES:
            assert same[name] == pytest.approx(row[name], rel=1e-4, abs=1e-5), name
        (swept_row,) = (r for r in report["rows"] if r["name"] == f"W4A6 {row['name']}")
        assert (swept_row["bytes"], swept_row["bops"]) == (row["bytes"], row["bops"])


@pytest.mark.slow
def test_one_width_and_one_seed_have_no_spread(root, tmp_path):
    report = run.run(cfg(root, widths="W4A4", rows={}), tmp_path, Console(quiet=True))
    assert all(not row.get("spread") for row in report["rows"])


@pytest.mark.parametrize(("text", "says"), [("W4", "widths: 'W4' must read W4A8"), ("4/4", "must read W4A8")])
def test_widths_that_do_not_read(text, says):
    with pytest.raises(ValueError, match=says):
        sweep.widths(text)
    assert sweep.widths("W8A8, W4A6") == [("W8A8", 8, 8), ("W4A6", 4, 6)]


def test_there_is_at_least_one_seed(root):
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        cfg(root, seeds=0)


def test_rows_must_be_methods_with_options_that_exist(root):
    with pytest.raises(ValueError, match="rows.extra.name is missing"):
        cfg(root, rows={"extra": {"range": "percentile"}})
    with pytest.raises(ValueError, match="no option 'rows.extra.rnage'"):
        cfg(root, rows={"extra": {"name": "minmax", "rnage": "percentile"}})
