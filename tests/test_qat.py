"""Training a quantised model as a run does: it learns, goes on where it was interrupted, and says what went wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import evaluate, fitting, qat, rows, run
from jvq.config import config, typed
from jvq.core import calibrate
from jvq.core.recipe import sites
from jvq.data import InMemory, Preprocess, open_source, sample
from jvq.data.records import split
from jvq.models import build
from jvq.models.weights import Checkpoint, save
from jvq.report import Console

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}


@pytest.fixture(scope="module", autouse=True)
def optax_is_not_strict():
    """Its bias correction raises a float to an integer array."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with ``vit.safetensors``, ``train.npz`` and ``test.npz``: the class is where an image is bright."""
    folder, rng = tmp_path_factory.mktemp("qat"), np.random.default_rng(0)
    model = build("vit", SPEC)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    save(Checkpoint(model, params, PREPROCESS, {}), folder / "vit.safetensors")
    for name, count in (("train", 96), ("test", 60)):
        labels = rng.integers(0, 3, count)
        images = rng.integers(0, 60, (count, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[:, 2 * label : 2 * label + 3] += 180
        np.savez(folder / f"{name}.npz", images=images.astype(np.uint8), labels=labels)
    return folder


def configured(root, **changes):
    where = {"name": "npz", "dir": str(root), "calibration": 8, "batch": 64}
    quick = dict(bits=3, epochs=3, batch=24, learning_rate=3e-3, shift=0, save_every=4, bin_strength=1e-3)
    return typed(config("tiny", "vvtq", weights=str(root / "vit.safetensors"), data=where, **{**quick, **changes}))


def material(root, workdir):
    from jvq.models.weights import open_weights

    checkpoint = open_weights(str(root / "vit.safetensors"))
    known = sites(checkpoint.model.forward, checkpoint.params, checkpoint.model.image)
    preprocess, train = Preprocess.from_dict(PREPROCESS), open_source("npz", "train", str(root))
    images = sample(train, preprocess, 8, 0).images
    return rows.Material(checkpoint, known, images, train, preprocess, workdir, Console(quiet=True))


def row_of(cfg, known):
    return rows.Row("vvtq", *_of(cfg), rows.planned("vvtq", cfg.method, "", known))


def _of(cfg):
    from jvq.methods import vvtq

    return vvtq, cfg.method


@pytest.fixture(scope="module")
def uninterrupted(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    m = material(root, workdir)
    return fitting.fitted_row(row_of(configured(root), m.known), m), workdir


def test_a_run_reports_the_trained_row_beside_min_max(root, uninterrupted, tmp_path):
    report = run.run(configured(root), tmp_path, Console(quiet=True), "the command")
    found = {row["name"]: row for row in report["rows"]}
    assert list(found) == ["float", "minmax", "vvtq"]
    assert found["vvtq"]["bytes"] < 0.5 * found["float"]["bytes"]
    assert float(report["protocol"]["packed against fake quantisation"].split()[-1]) < 1e-4
    assert report["training"] == uninterrupted[0].notes["training"]
    tracked = report["training"]["weights"]
    assert {"block00/attn/qkv.w", "block00/mlp/fc2.w"} <= set(tracked)
    assert all(0 <= w["oscillating"] <= 1 and 0 <= w["near"] <= 1 for w in tracked.values())
    lines = [json.loads(text) for text in (tmp_path / "vvtq-W3A3-seed0" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == report["training"]["steps"] == 12
    assert {"loss", "top1", "kl", "regularizer", "rho", "oscillating", "rate", "seconds"} <= set(lines[-1])


def test_training_brings_the_model_nearer_to_its_teacher(root, uninterrupted):
    fit, _ = uninterrupted
    m = material(root, None)
    row, forward = row_of(configured(root), m.known), m.checkpoint.model.forward
    start = row.method.fit(row.options, forward, m.checkpoint.params, m.images, row.plan, m.known)
    images = m.preprocess.batch(np.stack([m.train[i]["image"] for i in range(len(m.train))]))
    run, plain = evaluate.runner(forward, row.plan), jax.nn.log_softmax(forward(m.checkpoint.params, images))
    before, after = (
        (jnp.exp(plain) * (plain - jax.nn.log_softmax(run(params, dict(state), images)))).sum(axis=-1).mean()
        for params, state in ((m.checkpoint.params, start.qstate), (fit.params, fit.qstate))
    )
    assert after < 0.8 * before


def interrupted(row, m, monkeypatch):
    """A run that ends in the eleventh step."""
    real = qat.train_batches

    def torn(*args):
        for i, batch in enumerate(real(*args)):
            if i == 10:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(qat, "train_batches", torn)
        with pytest.raises(KeyboardInterrupt):
            fitting.fitted_row(row, m)


def test_an_interrupted_run_ends_bit_by_bit_as_an_uninterrupted_one(root, uninterrupted, tmp_path, monkeypatch):
    m = material(root, tmp_path)
    row = row_of(configured(root), m.known)
    interrupted(row, m, monkeypatch)
    again = fitting.fitted_row(row, m)
    whole, _ = uninterrupted
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, dict(again.qstate), dict(whole.qstate))
    assert again.notes["training"] == whole.notes["training"]


def test_every_array_but_codes_ends_is_trained(root, uninterrupted):
    fit, _ = uninterrupted
    start = material(root, None).checkpoint.params
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), fit.params, start)
    still = [k for k, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert not still, still


def test_another_recipe_does_not_go_on_with_these_checkpoints(root, uninterrupted):
    _, workdir = uninterrupted
    m = material(root, workdir)
    other = row_of(configured(root, granularity="tensor", learning_rate=1e-3), m.known)
    with pytest.raises(ValueError, match=r"method\.granularity: stored 'channel', wanted 'tensor'"):
        fitting.fitted_row(other, m)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_step_address_and_checkpoint(root, uninterrupted, tmp_path):
    m = material(root, tmp_path)
    row, params = row_of(configured(root), m.known), m.checkpoint.params
    broken = {**params["block00"]["mlp"]["fc1"], "bias": jnp.full(16, jnp.nan)}
    params = {**params, "block00": {**params["block00"], "mlp": {**params["block00"]["mlp"], "fc1": broken}}}
    checkpoint = dataclasses.replace(m.checkpoint, params=params)
    fit = fitting.Fitted(row.plan, uninterrupted[0].qstate)
    says = r"training step 1: the loss is nan, the first value .* is in block00/mlp/fc2\.x; .*checkpoint is none; lower"
    with pytest.raises(ValueError, match=says):
        qat.trained(row, fit, m._replace(checkpoint=checkpoint))


@pytest.mark.slow
def test_weights_can_stay_float_in_training_and_be_quantised_behind_it(root, tmp_path):
    """GPLQ's order: activations first, from features; then the weights' scales on what became of them."""
    m = material(root, tmp_path)
    cfg = configured(root, stage="activations", distillation="features", steps=7)
    row = row_of(cfg, m.known)
    fit = fitting.fitted_row(row, m)
    assert fit.notes["training"]["steps"] == 7
    assert list(fit.qstate) == list(row.plan)
    weights = {a: q for a, q in row.plan.items() if m.known[a].path is not None}
    for a, q in weights.items():
        value = calibrate.leaf(fit.params, m.known[a])
        assert (np.asarray(value) != np.asarray(calibrate.leaf(m.checkpoint.params, m.known[a]))).any(), a
        want = q.init(value, m.known[a].letters)
        np.testing.assert_allclose(fit.qstate[a]["scale"], want["scale"], rtol=1e-5, err_msg=a)
    losses = fit.notes["training"]["curves"]["features"]
    assert np.isfinite(losses).all()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [dict(transitions=0.01), dict(anneal=0.5, anneal_band=0.05)])
def test_other_ways_to_step_train_and_go_on_after_an_interruption(changes, root, tmp_path, monkeypatch):
    whole = fitting.fitted_row(*_row_and(root, tmp_path / "whole", changes))
    row, m = _row_and(root, tmp_path / "torn", changes)
    interrupted(row, m, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, fitting.fitted_row(row, m).params, whole.params)


def _row_and(root, workdir, changes):
    m = material(root, workdir)
    return row_of(configured(root, **changes), m.known), m


@pytest.mark.slow
def test_stored_labels_are_made_once_and_taught_from(root, tmp_path):
    m = material(root, tmp_path)
    changes = dict(distillation="stored", crops=2, keep=2, crop_scale=(0.5, 1.0))
    fit = fitting.fitted_row(row_of(configured(root, **changes), m.known), m)
    folders = [p for p in tmp_path.iterdir() if p.name.startswith("labels-")]
    assert len(folders) == 1
    assert fit.notes["training"]["steps"] == 12
    again = fitting.fitted_row(row_of(configured(root, seed=1, **changes), m.known), m)
    assert [p for p in tmp_path.iterdir() if p.name.startswith("labels-")] == folders
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(fit.params), jax.tree.leaves(again.params), strict=True)
    )


@pytest.mark.slow
def test_images_kept_back_tell_the_best_checkpoint(root, tmp_path):
    m = material(root, tmp_path)
    fitting.fitted_row(row_of(configured(root, holdout=24, epochs=4), m.known), m)
    lines = [json.loads(t) for t in (tmp_path / "vvtq-W3A3-seed0" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "score" in line] == [4, 8, 12]


def test_with_images_kept_back_the_best_checkpoint_can_be_the_result(root, tmp_path):
    m = material(root, tmp_path)
    fit = fitting.fitted_row(row_of(configured(root, holdout=24, epochs=4, take="best"), m.known), m)
    note = fit.notes["training"]
    best = note["validation"]["step"][int(np.argmax(note["validation"]["score"]))]
    assert note["taken"] == note["best"]
    assert (
        max(note["validation"]["score"]) == note["validation"]["score"][note["validation"]["step"].index(note["best"])]
    )
    assert best in (4, 8, 12)


def test_images_are_kept_back_from_all_classes():
    labels = np.repeat(np.arange(4), 50)
    source = InMemory("sorted", np.arange(200, dtype=np.uint8)[:, None, None, None], labels)
    rest, held = split(source, 40)
    assert (len(rest), len(held)) == (160, 40)
    seen = [{int(part[i]["image"][0, 0, 0]) for i in range(len(part))} for part in (rest, held)]
    assert seen[0] | seen[1] == set(range(200))
    assert {part[i]["label"] for part in (rest, held) for i in range(len(part))} == {0, 1, 2, 3}
    assert len({held[i]["label"] for i in range(len(held))}) == 4
    np.testing.assert_array_equal(held.__getitems__(np.array([3, 0]))["image"][1], held[0]["image"])
    assert split(source, 0) == (source, source)
    with pytest.raises(ValueError, match="got 200"):
        split(source, 200)


def test_a_teacher_of_other_features_is_refused(root):
    m = material(root, None)
    wide = build("vit", {**SPEC, "dim": 8})
    teacher = Checkpoint(wide, jax.tree.map(lambda s: jnp.zeros(s.shape), wide.shapes()), PREPROCESS, {})
    qat._compare(["head.x"], m.known, m.checkpoint)
    says = r"method\.teacher: the student's head\.x has shape \(16,\), the teacher's \(8,\); distillation"
    with pytest.raises(ValueError, match=says):
        qat._compare(["head.x"], m.known, teacher)
    bare = build("vit", {**SPEC, "classes": 0})
    teacher = Checkpoint(bare, jax.tree.map(lambda s: jnp.zeros(s.shape), bare.shapes()), PREPROCESS, {})
    with pytest.raises(ValueError, match="the teacher's none"):
        qat._compare(["head.x"], m.known, teacher)


def test_labels_that_are_not_there_are_found_before_training(root, tmp_path):
    m = material(root, tmp_path)
    unlabelled = InMemory("flat", m.train.images, np.full(len(m.train), -1))
    row = row_of(configured(root, distillation="none"), m.known)
    with pytest.raises(ValueError, match="without a label, which training needs"):
        fitting.fitted_row(row, m._replace(train=unlabelled))
    with pytest.raises(ValueError, match="has labels of 7 classes"):
        fitting.fitted_row(row, m._replace(train=InMemory("many", m.train.images, np.full(len(m.train), 6))))


def test_checkpoints_of_other_data_are_refused(root, uninterrupted):
    _, workdir = uninterrupted
    m = material(root, workdir)
    other = InMemory(m.train.name, m.train.images[::-1], m.train.labels)
    with pytest.raises(ValueError, match=r"data\.digest: stored"):
        fitting.fitted_row(row_of(configured(root), m.known), m._replace(train=other))
