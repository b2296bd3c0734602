"""Whole runs on a tiny ViT: what the report promises, the same numbers again, and mistakes before any computing."""

import dataclasses
import itertools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jvq import opening, rows, run, stages, training
from jvq.config import config, typed
from jvq.core.recipe import sites
from jvq.evaluate import Predictions, score
from jvq.export import load
from jvq.methods import igq, minmax
from jvq.models import build
from jvq.models.weights import Checkpoint, open_weights, save
from jvq.quantizers import Uniform
from jvq.report import Console, markdown, row_cells

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
QUICK = {"groups": 2, "start": "quantile", "mstep": "cover"}  # what compiles fast
REPORT = (
    "schema command commit versions device seed seconds method model data protocol bops_formula "
    "rows sites pictures figures warnings"
)


@pytest.fixture(scope="module")
def model():
    return build("vit", SPEC)


@pytest.fixture(scope="module")
def root(model, tmp_path_factory):
    """A folder with ``vit.safetensors``, ``train.npz`` and ``test.npz``."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), model.shapes())
    save(Checkpoint(model, params, PREPROCESS, {}), folder / "vit.safetensors")
    for split, count in (("train", 24), ("test", 70)):
        images, labels = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8), rng.integers(0, 3, count)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    return folder


def post_training(root, method="igq", data=None, **changes):
    """The typed config of a run on the tiny ViT."""
    where = {"name": "npz", "dir": str(root), "calibration": 8, "batch": 64} | (data or {})
    quick = {"figures": False} | (QUICK if method == "igq" else {})
    return typed(config("tiny", method, **{"weights": str(root / "vit.safetensors"), "data": where} | quick | changes))


def supervised(root, model=SPEC, data=None, preprocess=PREPROCESS, **changes):
    """The typed config of four training steps."""
    where = {"name": "npz", "dir": str(root), "batch": 64} | (data or {})
    changes = {"epochs": 2, "batch": 12, "learning_rate": 0.01} | changes
    return typed(config("small", "supervised", model=model, preprocess=preprocess, data=where, **changes))


def report_of(cfg, workdir):
    return run.run(cfg, workdir, Console(quiet=True), "the command")


@pytest.fixture(scope="module")
def ran(root, tmp_path_factory):
    """The report of an IGQ-ViT run, and where it is written."""
    workdir = tmp_path_factory.mktemp("igq")
    return report_of(post_training(root, figures=True), workdir), workdir


def test_the_report_has_the_promised_keys(ran):
    report, _ = ran
    assert list(report) == REPORT.split() or sorted(report) == sorted(REPORT.split())
    assert (report["schema"], report["command"], report["seed"]) == ("jvq.report/1", "the command", 0)
    assert {"python", "jvq", "jax", "jaxlib", "flax", "numpy", "grain"} == set(report["versions"])
    assert report["versions"]["jax"] == jax.__version__
    assert "cpu" in report["device"]
    assert list(report["seconds"]) == ["load", "evaluate", "fit", "freeze", "check", "sites", "draw", "deploy"]
    assert all(seconds >= 0 for seconds in report["seconds"].values())
    assert set(report["model"]) == {"name", "architecture", "parameters", "spec"}
    assert report["data"] == {"name": "npz", "split": "test", "images": 70, "skipped": []}
    assert report["protocol"].items() >= igq.protocol(igq.Options(**QUICK)).items()
    assert {"rules", "calibration", "packed against fake quantisation"} <= set(report["protocol"])
    assert "groups" in report["protocol"]["integer inference"]
    assert report["warnings"] == []


def test_rows_are_float_min_max_the_method_and_its_bound(ran):
    rows = ran[0]["rows"]
    assert [row["name"] for row in rows] == ["float", "minmax", "igq", "igq_upper_bound"]
    for row in rows:
        assert list(row) == ["name", "top1", "agreement", "kl", "bytes", "bops", "cost"]
        assert [type(row[key]) for key in list(row)[1:]] == [float, float, float, int, int, dict]
        assert row["bops"] == sum(count for part, count in row["cost"].items() if part != "macs")
    assert len({row["kl"] for row in rows}) == 4


def test_the_float_row_is_the_model_itself(ran, root, model):
    row = ran[0]["rows"][0]
    with np.load(root / "test.npz") as test:
        images, labels = test["images"], test["labels"]
    params = open_weights(str(root / "vit.safetensors")).params
    logits = jax.jit(model.forward)(params, jnp.asarray((images[..., None] / 255 - 0.5) / 0.25, jnp.float32))
    assert row["top1"] == pytest.approx((np.asarray(logits).argmax(axis=1) == labels).mean())
    assert (row["agreement"], row["kl"]) == (1.0, 0.0)
    count = sum(x.size for x in jax.tree.leaves(params))
    assert (row["bytes"], ran[0]["model"]["parameters"]) == (4 * count, count)


def test_packing_makes_the_model_smaller_and_changes_nothing(ran):
    rows = {row["name"]: row for row in ran[0]["rows"]}
    assert rows["minmax"]["bytes"] < rows["igq"]["bytes"] < 0.6 * rows["float"]["bytes"]
    assert rows["minmax"]["bops"] < rows["igq"]["bops"] < rows["igq_upper_bound"]["bops"] < rows["float"]["bops"]
    words = ran[0]["protocol"]["packed against fake quantisation"].split()
    assert float(words[-1]) < 1e-4


def test_every_quantised_operand_has_its_site(ran, model):
    known = sites(model.forward, model.shapes(), model.image)
    found = ran[0]["sites"]
    assert list(found) == list(known)
    for address, site in found.items():
        assert list(site) == ["quantizer", "letters", "bits", "groups", "relative_error", "order"]
        assert (-1 <= site["order"] <= 1) if address.endswith(".p") else site["order"] is None
        assert site["letters"] == known[address].letters
        assert site["bits"] == (8 if address.startswith(("patch", "head")) else 4)
        assert site["groups"] == (2 if site["quantizer"] == "Grouped" else None)
        assert 0 < site["relative_error"] < 0.2
    assert {a for a, site in found.items() if site["groups"]} == {
        f"block00/{x}" for x in ("attn/qkv.x", "attn/pv.p", "attn/proj.x", "mlp/fc1.x", "mlp/fc2.x")
    }


def strictly(path):
    """The JSON of a file, which has no NaN and no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_written_is_what_comes_back_and_nothing_else(ran):
    report, workdir = ran
    assert strictly(workdir / "report.json") == json.loads(json.dumps(report))
    assert (workdir / "report.md").read_text() == markdown(report)
    assert sorted(p.name for p in workdir.iterdir()) == [
        "figures", "groups.png", "packed.safetensors", "report.html", "report.json", "report.md",
    ]  # fmt: skip


def test_the_packed_model_that_is_written_is_the_row_of_the_table(ran, root):
    report, workdir = ran
    found = load(workdir / "packed.safetensors")
    with np.load(root / "test.npz") as test:
        images, labels = test["images"], test["labels"]
    prepared = jnp.asarray((images[..., None] / 255 - 0.5) / 0.25, jnp.float32)
    row = next(row for row in report["rows"] if row["name"] == "igq")
    right = [np.asarray(run(prepared)).argmax(axis=1) == labels for run in (found.forward, found.integer())]
    assert all(abs(some.mean() - row["top1"]) <= 1.01 / len(labels) for some in right), "a code on the edge of two"
    assert (right[0] != right[1]).sum() <= 1


def test_the_markdown_holds_the_same_numbers(ran):
    report, workdir = ran
    text = (workdir / "report.md").read_text()
    for row in report["rows"]:
        assert "| " + " | ".join(row_cells(row)) + " |" in text
    for address, site in report["sites"].items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {address} |"))
        assert f" {site['relative_error']:.2e} | " in line


def test_a_second_run_gives_identical_numbers(ran, root, tmp_path):
    again = report_of(post_training(root), tmp_path)
    assert again["rows"] == ran[0]["rows"]
    assert again["sites"] == ran[0]["sites"]


@pytest.fixture(scope="module")
def one_at_a_time(root, tmp_path_factory):
    return report_of(post_training(root, data={"batch": 1}), tmp_path_factory.mktemp("one"))


def test_the_batch_size_changes_no_row(ran, one_at_a_time):
    """No decision, byte or operation; the KL to float32, as some processors sum one row's product differently."""
    for got, expected in zip(one_at_a_time["rows"], ran[0]["rows"], strict=True):
        assert got == expected | {"kl": pytest.approx(expected["kl"], rel=1e-5)}


def test_the_batch_size_changes_no_site(ran, one_at_a_time):
    assert one_at_a_time["sites"] == ran[0]["sites"]


def draw(folder, count, size=(8, 8)):
    """A flat folder of random grey PNG images."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def unlabelled(root, tmp_path_factory):
    """A min-max run on ten images without labels, of which two cannot be read; its lines are in ``said``."""
    folder, workdir = tmp_path_factory.mktemp("flat") / "images", tmp_path_factory.mktemp("work")
    draw(folder, 10)
    (folder / "03.png").write_bytes(b"no image")
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:40])
    said = []
    console = Console(quiet=True)
    console.say = said.append
    data = {"name": "folder", "dir": str(folder), "batch": 4}
    return run.run(post_training(root, "minmax", data), workdir, console), workdir, said


def test_without_labels_there_is_no_accuracy_and_the_rest_works(unlabelled):
    report, workdir, _ = unlabelled
    assert [row["name"] for row in report["rows"]] == ["float", "minmax"]
    assert [row["top1"] for row in report["rows"]] == [None, None]
    assert 0 < report["rows"][1]["agreement"] <= 1
    assert report["rows"][1]["kl"] > 0
    text = (workdir / "report.md").read_text()
    assert "without labels" in text
    assert "| float | - | 100.00 |" in text


def test_images_that_cannot_be_read_are_counted_and_told(unlabelled):
    report, workdir, said = unlabelled
    assert report["data"]["images"] == 8
    assert [("03.png" in line, "07.png" in line) for line in report["data"]["skipped"]] == [
        (True, False),
        (False, True),
    ]
    (warning,) = report["warnings"]
    assert warning.startswith("2 images could not be read and were left out")
    assert "03.png" in warning
    assert f"warning: {warning}" in said
    assert warning in (workdir / "report.md").read_text()


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """Reports and workdirs of training runs by name: seed 0, again, and seed 1."""
    found = {}
    with jax.numpy_dtype_promotion("standard"):  # optax is not strict
        for name, seed in (("first", 0), ("again", 0), ("other", 1)):
            workdir = tmp_path_factory.mktemp(name)
            found[name] = report_of(supervised(root, seed=seed), workdir), workdir
    return found


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_writes_weights_metrics_and_a_report(trained):
    report, workdir = trained["first"]
    assert sorted(p.name for p in workdir.iterdir()) == [
        "metrics.jsonl", "report.html", "report.json", "report.md", "weights.safetensors",
    ]  # fmt: skip
    assert sorted(report) == sorted(REPORT.split())
    assert [row["name"] for row in report["rows"]] == ["float"]
    assert report["sites"] == {}
    assert strictly(workdir / "report.json")["rows"] == report["rows"]
    (line,) = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 4


def test_trained_weights_load_back_and_evaluate_to_the_same_accuracy(trained, root):
    report, workdir = trained["first"]
    checkpoint = open_weights(str(workdir / "weights.safetensors"))
    assert dataclasses.asdict(checkpoint.model.spec).items() >= SPEC.items()
    with np.load(root / "test.npz") as test:
        images, labels = test["images"], test["labels"]
    x = jnp.asarray((images[..., None] / 255 - 0.5) / 0.25, jnp.float32)
    found = Predictions(np.asarray(jax.jit(checkpoint.model.forward)(checkpoint.params, x)), labels)
    assert score(found, found).top1 == report["rows"][0]["top1"] == checkpoint.notes["top1"]
    assert np.ptp(found.logits) > 0, "the head starts from zeros: it was trained"


def test_a_seed_fixes_training_and_another_changes_it(trained):
    first, again, other = (losses(trained[name][1]) for name in ("first", "again", "other"))
    assert first == again != other
    rows = [trained[name][0]["rows"] for name in ("first", "again")]
    assert rows[0] == rows[1]
    a, b, c = (open_weights(str(trained[name][1] / "weights.safetensors")).params for name in trained)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert not np.array_equal(a["patch"]["kernel"], c["patch"]["kernel"])


# Rules


@pytest.fixture(scope="module")
def known(model):
    return sites(model.forward, model.shapes(), model.image)


def test_rules_change_widths_and_nothing_else(known):
    options = igq.Options(linear="layer")
    plain = rows.planned("igq", options, "", known)
    ruled = rows.planned("igq", options, " *.w=8, *fc1*=float ,*qkv.w=3,head.*=32", known)
    want = {a: dataclasses.replace(q, bits=8) if a.endswith(".w") else q for a, q in plain.items()}
    want["block00/attn/qkv.w"] = dataclasses.replace(plain["block00/attn/qkv.w"], bits=3)
    want = {a: q for a, q in want.items() if "fc1" not in a and not a.startswith("head")}
    assert ruled == want
    assert list(ruled) == [a for a in known if a in want]


def test_a_rule_may_name_what_only_some_rows_have(root):
    """Rows of other models have other addresses; a rule that names none of any is refused."""
    checkpoint, _ = opening.load(post_training(root))
    trained = dict(method="vvtq", merged=True, rows={}, batch=12)
    _, found = rows.plans(post_training(root, **trained, rules="*/qkv.w=8,*/query_key.w=7"), checkpoint)
    by_name = {row.name: row for row in found}
    assert by_name["minmax"].plan["block00/attn/qkv.w"].bits == 8
    assert by_name["vvtq"].plan["block00/attn/query_key.w"].bits == 7
    with pytest.raises(ValueError, match="matches no address"):
        rows.plans(post_training(root, **trained, rules="*/other.w=8"), checkpoint)


def test_rules_are_a_part_of_every_row(root):
    cfg = post_training(root, rules="*.w=8", linear="float")
    _, found = rows.plans(cfg, opening.load(cfg)[0])
    assert [row.name for row in found] == ["minmax", "igq", "igq_upper_bound"]
    assert {row.plan["block00/mlp/fc1.w"].bits for row in found} == {8}
    assert found[0].plan["block00/mlp/fc1.w"] == Uniform(8, "o")


def test_rows_of_a_model_of_their_own_share_it_and_others_have_the_one_that_was_opened(root):
    """VVTQ's rows with query and key as one matrix, beside one without and min-max."""
    rest = {"plain": {"name": "vvtq", "merged": False}, "again": {"name": "vvtq", "bits": 3}}
    cfg = post_training(root, "vvtq", merged=True, rows=rest)
    checkpoint, _ = opening.load(cfg)
    known, compared = rows.plans(cfg, checkpoint)
    found = {row.name: row for row in compared}
    assert [*found] == ["minmax", "vvtq", "again", "plain"]
    assert list(known) == list(sites(checkpoint.model.forward, checkpoint.params, checkpoint.model.image))
    assert found["vvtq"].own is found["again"].own
    assert found["vvtq"].own.checkpoint.model.spec.merged
    assert found["vvtq"].own.checkpoint.preprocess == checkpoint.preprocess
    for name, row in found.items():
        merged = name in ("vvtq", "again")
        assert (row.own is not None) == merged
        model, mine = row.subject(checkpoint, known)
        assert (model is not checkpoint) == merged
        assert list(row.plan) == list(mine)
        assert ("block00/attn/query_key.w" in row.plan) == ("block00/attn/qkv.w" not in row.plan) == merged
        assert row.planned({}).own is row.own
    assert not checkpoint.model.spec.merged


def test_a_model_that_cannot_be_made_is_refused_before_computing(root):
    cfg = post_training(root, "bivit", model={"merged": True}, rows={})
    with pytest.raises(ValueError, match=r"model\.qk_norm needs queries and keys of their own"):
        rows.plans(cfg, opening.load(cfg)[0])


RULES = {
    "*.z=4": r"pattern '\*\.z' matches no address",
    "block00/atn/qkv.w=4": "matches no address .did you mean 'block00/attn/qkv.w'",
    "*.w": r"rules: '\*\.w' must read 'pattern=bits' or 'pattern=float'",
    "8": "must read",
    "*.w=": "must read",
    "*.w=four": "must read",
    "*.w=4.5": "must read",
    "*.w=-4": "must read",
    "*.w=0": r"patch\.w: bits must be a whole number from 1 to 16, got 0",
    "*.x=17": r"patch\.x: bits must be .* got 17 .nearest: 16",
    "*.w=float,*.w=4": r"rules: '\*\.w=4': patch\.w is float in method 'minmax', it has no bits to change",
}


@pytest.mark.parametrize("rules", RULES)
def test_a_rule_that_cannot_be_is_refused(rules, known):
    options = minmax.Options(weight_bits=32, edge_bits=32) if "float" in rules else minmax.Options()
    with pytest.raises(ValueError, match=RULES[rules]):
        rows.planned("minmax", options, rules, known)


# Mistakes: each is found before anything is computed


@pytest.fixture(scope="module")
def places(root, tmp_path_factory):
    """Folders and files that will not do, by name."""
    top = tmp_path_factory.mktemp("places")
    draw(top / "images", 4)
    draw(top / "corrupt", 3)
    for path in (top / "corrupt").iterdir():
        path.write_bytes(b"no image")
    draw(top / "blind" / "train", 9)
    draw(top / "blind" / "test", 2)
    for path in (top / "blind" / "test").iterdir():
        path.write_bytes(b"")
    (top / "empty").mkdir()
    (top / "text").mkdir()
    (top / "text" / "readme.txt").write_text("")
    (top / "file").write_text("")
    (top / "broken.npz").write_bytes(b"PK no zip")
    np.savez(top / "floats.npz", images=np.zeros((9, 8, 8), np.float32))
    for name in ("ant", "bee", "cat", "dog"):
        draw(top / "four" / name, 3)
    return top


def folder(name, **more):
    return {"data": {"name": "folder", "dir": "{places}/" + name, **more}}


MISTAKES = {
    "no weights": (dict(weights=""), "'weights' is empty: name an embedded checkpoint"),
    "weights that are not there": (dict(weights="{root}/vi.safetensors"), "no file .*beside it: vit.safetensors"),
    "weights that are something else": (
        dict(weights="{root}/train.npz"),
        "train.npz has names of no format that jvq knows",
    ),
    "size between patches": (dict(resolution=10), r"model.image 10x10 is not a multiple of model.patch 4: \[8, 12\]"),
    "unknown data": (dict(data={"name": "npy"}), "no source 'npy' .did you mean 'npz'"),
    "unknown split": (dict(data={"test": "tset"}), "no split 'tset' .did you mean 'test'"),
    "data without a place": (dict(data={"dir": None}), "source 'npz' needs a directory"),
    "folder that is not there": (folder("imges"), "no folder .*has no 'imges' .did you mean 'images'"),
    "folder that is a file": (folder("file"), "is a file, not a folder"),
    "empty folder": (folder("empty"), "empty is empty; images end in"),
    "folder without images": (folder("text"), "no image in .*got 1 files .[.]txt"),
    "folder of corrupt images": (folder("corrupt"), "wanted 8 images, source 'folder' has 0 of 3 that can be read"),
    "fewer images than to calibrate": (folder("images"), "wanted 8 images, source 'folder' has 4 of 4"),
    "more classes than the head": (folder("four"), "folder has labels of 4 classes, the model's head has 3"),
    "broken npz": (dict(data={"dir": "{places}/broken.npz"}), "broken.npz: not a readable .npz"),
    "npz of floats": (dict(data={"dir": "{places}/floats.npz"}), "images must be uint8 .* got float32"),
    "rule without a match": (dict(rules="*.z=4"), "matches no address"),
    "no groups": (dict(method="igq", groups=0), "groups: got 0"),
    "too many bits": (dict(bits=17), "bits must be"),
    "unknown letter": (dict(method="igq", linear_along="z"), "no activation of this model has an axis 'z'"),
}


def filled(value, **places):
    if isinstance(value, dict):
        return {name: filled(x, **places) for name, x in value.items()}
    return value.format(**places) if isinstance(value, str) else value


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_found_before_anything_is_computed(case, root, places, tmp_path, monkeypatch):
    changes, says = MISTAKES[case]
    monkeypatch.setattr(rows.evaluate, "predict", lambda *_, **__: pytest.fail("computed already"))
    cfg = post_training(root, **{"method": "minmax"} | filled(changes, root=root, places=places))
    with pytest.raises(ValueError, match=says):
        report_of(cfg, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_read_says_so(root, places, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    cfg = post_training(root, "minmax", **filled(folder("images"), places=places))
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(ValueError, match=r"cannot read .*images \(Permission denied\)"):
            report_of(cfg, tmp_path)


def test_a_test_set_that_cannot_be_read_at_all_says_so(root, places, tmp_path):
    with pytest.raises(ValueError, match="evaluating float: there are no images, or none that can be read"):
        report_of(post_training(root, "minmax", **filled(folder("blind"), places=places)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [("block00", "mlp", "fc1", "kernel"), ("head", "bias"), ("block00", "norm1", "scale")])
def test_weights_that_are_not_finite_are_named(path, root, tmp_path):
    checkpoint = open_weights(str(root / "vit.safetensors"))
    params = jax.tree_util.tree_map_with_path(
        lambda at, x: x * jnp.nan if tuple(k.key for k in at) == path else x, checkpoint.params
    )
    save(dataclasses.replace(checkpoint, params=params), tmp_path / "nan.safetensors")
    workdir = tmp_path / "work"
    workdir.mkdir()
    with pytest.raises(ValueError, match=rf"not finite \(NaN or infinite\) in {'/'.join(path)}"):
        report_of(post_training(root, weights=str(tmp_path / "nan.safetensors")), workdir)
    assert list(workdir.iterdir()) == []


TRAINING = {
    "unknown architecture": (dict(model={**SPEC, "architecture": "vitt"}), "model.architecture 'vitt' is not known"),
    "unknown model option": (dict(model={**SPEC, "dims": 3}), "model.dims: vit has no such option .did you mean 'dim'"),
    "heads that do not divide": (dict(model={**SPEC, "heads": 3}), "model.dim 16 is not a multiple of model.heads 3"),
    "no preprocessing": (dict(preprocess={}), "preprocess: no 'size'"),
    "batch beyond the data": (dict(batch=25), "batch_size must be 1 to 24"),
}


@pytest.mark.parametrize("case", TRAINING)
def test_a_mistake_in_training_is_found_before_it_starts(case, root, tmp_path):
    changes, says = TRAINING[case]
    with pytest.raises(ValueError, match=says):
        report_of(supervised(root, **changes), tmp_path)
    assert list(tmp_path.iterdir()) == []


def relabelled(root, folder, labels):
    """A folder with the images of ``root`` under other labels (None: without)."""
    for split in ("train", "test"):
        with np.load(root / f"{split}.npz") as arrays:
            images = arrays["images"]
        more = {} if labels is None else {"labels": np.full(len(images), labels)}
        np.savez(folder / f"{split}.npz", images=images, **more)
    return {"dir": str(folder)}


def test_labels_beyond_the_head_are_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(rows.evaluate, "predict", lambda *_, **__: pytest.fail("computed already"))
    with pytest.raises(ValueError, match="label"):
        report_of(post_training(root, "minmax", relabelled(root, tmp_path, 3)), tmp_path)


@pytest.mark.parametrize("labels", [None, 3], ids=["none", "beyond the head"])
def test_training_wants_labels_of_the_head(labels, root, tmp_path, monkeypatch):
    monkeypatch.setattr(training.supervised, "train", lambda *_, **__: pytest.fail("trained already"))
    with pytest.raises(ValueError, match="label"):
        report_of(supervised(root, data=relabelled(root, tmp_path, labels)), tmp_path)


@pytest.mark.parametrize(
    "change", [{"size": [12, 12]}, {"mean": [0.5] * 3, "std": [0.25] * 3}], ids=["size", "channels"]
)
def test_training_wants_preprocessing_that_fits_the_model(change, root, tmp_path, monkeypatch):
    monkeypatch.setattr(training.supervised, "train", lambda *_, **__: pytest.fail("trained already"))
    with pytest.raises(ValueError, match="preprocess"):
        report_of(supervised(root, preprocess=PREPROCESS | change), tmp_path)


STUDENTS = {
    "deit": (SPEC | {"distill_token": True}, "hard"),
    "swin": (
        dict(
            architecture="swin", image=(8, 8), channels=1, patch=2, dim=8, depths=(2,), heads=(2,), window=2, classes=3
        ),
        "soft",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_learns_from_a_teacher(name, root, tmp_path):
    """Its checkpoint depends on the teacher, and runs through a quantising method by itself."""
    spec, distillation = STUDENTS[name]
    teacher = str(root / "vit.safetensors")
    with jax.numpy_dtype_promotion("standard"):  # optax is not strict
        for alpha in (0.0, 1.0):
            cfg = supervised(root, model=spec, teacher=teacher, distillation=distillation, alpha=alpha)
            report_of(cfg, tmp_path / str(alpha))
    labelled, taught = (open_weights(str(tmp_path / a / training.WEIGHTS)).params for a in ("0.0", "1.0"))
    kernels = [p["patch"]["kernel"] for p in (labelled, taught)]
    assert not np.array_equal(*kernels)
    if name == "deit":  # each head learns from its own source alone
        assert not labelled["head_dist"]["kernel"].any()
        assert not taught["head"]["kernel"].any()
    quantised = post_training(root, "minmax", weights=str(tmp_path / "1.0" / training.WEIGHTS))
    assert [row["name"] for row in report_of(quantised, tmp_path / "1.0" / "q")["rows"]] == ["float", "minmax"]


TEACHERS = {
    "no file": (dict(teacher="nowhere.safetensors"), "no file 'nowhere.safetensors'"),
    "other preprocessing": (
        dict(teacher="TEACHER", preprocess=PREPROCESS | {"mean": [0.1]}),
        "method.teacher .* sees images prepared by",
    ),
    "other classes": (dict(teacher="TEACHER", model=SPEC | {"classes": 4}), "knows 3 classes, the student 4"),
}


@pytest.mark.parametrize("case", TEACHERS)
def test_a_teacher_must_fit(case, root, tmp_path, monkeypatch):
    monkeypatch.setattr(training.supervised, "train", lambda *_, **__: pytest.fail("trained already"))
    changes, says = TEACHERS[case]
    if changes["teacher"] == "TEACHER":
        changes = changes | {"teacher": str(root / "vit.safetensors")}
    with pytest.raises(ValueError, match=says):
        report_of(supervised(root, **changes), tmp_path)


def test_what_a_config_needs_is_said_where_it_is_missing(root, tmp_path):
    cfg = post_training(root, data={"dir": str(tmp_path / "nowhere")}, needs="pictures of cats")
    with pytest.raises(ValueError, match="nowhere.*. tiny needs pictures of cats"):
        report_of(cfg, tmp_path)


def test_stages_add_up():
    timed, clock = stages.Stages(), itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.time, "monotonic", lambda: float(next(clock)))
        for name in ("a", "b", "a"):
            with timed.stage(name):
                pass
    assert timed.seconds == {"a": 2.0, "b": 1.0}
