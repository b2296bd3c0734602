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
from jvq.methods import bivit
from jvq.models import build
from jvq.models.weights import Checkpoint, open_weights, save
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
    """A folder with two checkpoints, ``train.npz`` and ``test.npz``: the class is where an image is bright."""
    folder, rng = tmp_path_factory.mktemp("qat"), np.random.default_rng(0)
    model = build("vit", SPEC)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    save(Checkpoint(model, params, PREPROCESS, {}), folder / "vit.safetensors")
    deit = build("vit", {**SPEC, "distill_token": True})
    own = np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(own.normal(0, 0.3, s.shape), jnp.float32), deit.shapes())
    save(Checkpoint(deit, params, PREPROCESS, {}), folder / "deit.safetensors")
    for name, count in (("train", 96), ("test", 60)):
        labels = rng.integers(0, 3, count)
        images = rng.integers(0, 60, (count, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[:, 2 * label : 2 * label + 3] += 180
        np.savez(folder / f"{name}.npz", images=images.astype(np.uint8), labels=labels)
    return folder


def configured(root, **changes):
    where = {"name": "npz", "dir": str(root), "calibration": 8, "batch": 64}
    quick = dict(
        figures=False, bits=3, epochs=3, batch=24, learning_rate=3e-3, shift=0, save_every=4, bin_strength=1e-3
    )
    return typed(config("tiny", "vvtq", weights=str(root / "vit.safetensors"), data=where, **{**quick, **changes}))


def material(root, workdir, name="vit"):
    checkpoint = open_weights(str(root / f"{name}.safetensors"))
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


def interrupted(row, m, monkeypatch, step=10):
    """A run that ends after so many steps, in the middle of the next."""
    real = qat.train_batches

    def torn(*args, **where):
        for i, batch in enumerate(real(*args, **where), start=args[-1]):
            if i == step:
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
    says = r"method\.teacher: the student's head\.x has shape \(16,\), the teacher's \(8,\); what the loss"
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


# Bi-ViT: a model of its own, and courses


def binary(root, **changes):
    """The typed config of a training at one bit, on the model with two heads."""
    where = {"name": "npz", "dir": str(root), "calibration": 8, "batch": 64}
    quick = dict(figures=False, epochs=3, batch=24, learning_rate=3e-3, shift=0, save_every=2)
    return typed(config("ones", "bivit", weights=str(root / "deit.safetensors"), data=where, **quick | changes))


def in_two_courses(root):
    return binary(root, first=0.5, kernels="learned")


def binary_row(cfg, m):
    (row,) = rows.plans(cfg, m.checkpoint)[1]
    return row


@pytest.fixture(scope="module")
def two_courses(root, tmp_path_factory):
    """A training of six steps of weights alone and six of all, what both were given and gave, and its folder."""
    workdir, calls, starts = tmp_path_factory.mktemp("courses"), [], []
    m = material(root, workdir, "deit")
    row = binary_row(in_two_courses(root), m)
    run_one, stream = qat.run, qat.train_batches

    def recorded(objective, begin, batches, schedule, key, **more):
        progress = run_one(objective, begin, batches, schedule, key, **more)
        calls.append((begin, schedule, jax.random.key_data(key).tolist(), progress.trained))
        return progress

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qat, "run", recorded)
        patch.setattr(qat, "train_batches", lambda *a, **k: starts.append(a[-1]) or stream(*a, **k))
        fit = fitting.fitted_row(row, m)
    return row, m, fit, calls, starts


@pytest.mark.once
def test_courses_add_up_and_each_has_its_folder(two_courses):
    row, m, fit, calls, starts = two_courses
    note = fit.notes["training"]
    assert [note["steps"], note["courses"]["weights"]["steps"]] == [6, 6]
    assert list(note["courses"]) == ["weights"]
    assert [call[1].steps for call in calls] == [6, 6]
    assert starts == [0, 6], "no batch twice"
    assert calls[0][2] != calls[1][2], "nor the same draws"
    folder = m.workdir / "bivit-W1A1-seed0"
    for place, own in ((folder / "weights", note["courses"]["weights"]), (folder, note)):
        about = json.loads((place / "about.json").read_text())
        assert about["schedule"]["steps"] == 6
        assert list(about["plan"]) == [a for a in row.plan if place == folder or a.endswith(".w")]
        assert (place / "steps" / "6").is_dir()
        (line,) = map(json.loads, (place / "metrics.jsonl").read_text().splitlines())
        assert {"loss", "top1", "kl", "ranking", "flips", "rate", "seconds"} <= set(line)
        assert line["step"] == 6
        assert own["curves"]["flips"] == [line["flips"]]
        assert own["weights"] == {}
        assert 0 <= line["flips"] < 0.5
    assert fit.notes["operations"]["quotients"]["body_only"] == 64


def test_a_course_begins_where_the_last_one_ended_with_scales_of_its_own(two_courses):
    row, m, fit, ((begin, _, _, ended), (then, _, _, last)), _ = two_courses
    student, known = row.subject(m.checkpoint, m.known)
    jax.tree.map(np.testing.assert_array_equal, begin["params"], student.params)
    weights = {a: q for a, q in row.plan.items() if known[a].path is not None}
    assert list(begin["q"]) == list(weights)
    jax.tree.map(np.testing.assert_array_equal, then["params"], ended["params"])
    want = calibrate.calibrate(student.model.forward, ended["params"], m.images, row.plan, known)
    assert list(then["q"]) == list(row.plan)
    jax.tree.map(np.testing.assert_array_equal, then["q"], want)
    kernel = "block00/mlp/fc1.w"
    assert (np.asarray(ended["q"][kernel]["scale"]) != np.asarray(then["q"][kernel]["scale"])).any()
    jax.tree.map(np.testing.assert_array_equal, fit.params, last["params"])
    jax.tree.map(np.testing.assert_array_equal, dict(fit.qstate), last["q"])
    assert list(fit.qstate) == list(row.plan)
    for tree, before in ((ended, begin), (last, then)):
        moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), tree, before)
        assert all(jax.tree.leaves(moved["params"]["block00"]["attn"])), "also the norms of query and key"
        assert all(jax.tree.leaves(moved["q"]))


def test_a_training_in_courses_can_be_interrupted_in_either(root, two_courses, tmp_path, monkeypatch):
    _, _, whole, _, _ = two_courses
    m = material(root, tmp_path, "deit")
    row = binary_row(in_two_courses(root), m)
    for step, left in ((5, ["weights"]), (9, ["steps", "weights"])):
        interrupted(row, m, monkeypatch, step)
        folder = tmp_path / "bivit-W1A1-seed0"
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == left
    again = fitting.fitted_row(row, m)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, dict(again.qstate), dict(whole.qstate))
    assert again.notes["training"] == whole.notes["training"]


def test_a_course_too_short_for_a_step_changes_nothing(root, tmp_path, monkeypatch):
    m = material(root, tmp_path, "deit")
    row = binary_row(binary(root, first=0.2, steps=2), m)
    seen = []

    def recorded(objective, begin, batches, schedule, key, **more):
        seen.append((begin, schedule.steps))
        return training_run(objective, begin, batches, dataclasses.replace(schedule, steps=0), key, **more)

    training_run = qat.run
    monkeypatch.setattr(qat, "run", recorded)
    fitting.fitted_row(row, m)
    assert [steps for _, steps in seen] == [0, 2]
    jax.tree.map(np.testing.assert_array_equal, seen[1][0]["params"], seen[0][0]["params"])


@pytest.mark.once
def test_a_run_at_one_bit_packs_what_it_trained(root, tmp_path):
    report = run.run(binary(root, steps=2), tmp_path, Console(quiet=True), "the command")
    assert [row["name"] for row in report["rows"]] == ["float", "bivit"]
    assert report["protocol"]["packed against fake quantisation"] == "largest difference of outputs 0.0e+00"
    checkpoint = open_weights(str(root / "deit.safetensors"))
    assert report["rows"][0]["bytes"] == 4 * sum(x.size for x in jax.tree.leaves(checkpoint.params))
    assert report["model"]["spec"] == dataclasses.asdict(checkpoint.model.spec)
    assert report["operations"]["quotients"]["body_only"] == 64
    assert report["operations"]["stored"]["kernels"] == 4
    assert report["training"]["steps"] == 2
    assert "courses" not in report["training"]
    assert {site["bits"] for site in report["sites"].values()} == {1}
    assert {site["quantizer"] for site in report["sites"].values()} == {"Signs", "Steps"}
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == report["rows"]


@pytest.mark.once
def test_a_row_with_a_model_of_its_own_stands_beside_one_without(root, tmp_path):
    """The main row has query and key as one matrix, which the float row has not."""
    cfg = configured(root, steps=2, merged=True, rows={"apart": {"name": "vvtq", "merged": False}})
    report = run.run(cfg, tmp_path, Console(quiet=True))
    found = {row["name"]: row for row in report["rows"]}
    assert list(found) == ["float", "minmax", "vvtq", "apart"]
    m = material(root, tmp_path)
    count = sum(x.size for x in jax.tree.leaves(m.checkpoint.params))
    assert (found["float"]["bytes"], found["float"]["kl"], report["model"]["parameters"]) == (4 * count, 0.0, count)
    test = open_source("npz", "test", str(root))
    images = m.preprocess.batch(np.stack([test[i]["image"] for i in range(len(test))]))
    logits = np.asarray(jax.jit(m.checkpoint.model.forward)(m.checkpoint.params, images))
    labels = [test[i]["label"] for i in range(len(test))]
    assert found["float"]["top1"] == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert found["minmax"]["cost"]["macs"] == found["apart"]["cost"]["macs"] == found["float"]["cost"]["macs"]
    assert found["vvtq"]["cost"]["macs"] > found["apart"]["cost"]["macs"]
    assert found["vvtq"]["bytes"] > found["apart"]["bytes"]
    assert {"block00/attn/query_key.w", "block00/attn/value.w"} <= set(report["sites"])
    assert "block00/attn/qkv.w" not in report["sites"]
    assert -1 <= report["sites"]["block00/attn/pv.p"]["order"] <= 1
    assert float(report["protocol"]["packed against fake quantisation"].split()[-1]) < 1e-4
    for name in ("vvtq", "apart"):
        about = json.loads((tmp_path / f"{name}-W3A3-seed0" / "about.json").read_text())
        assert about["model"]["merged"] == (name == "vvtq")


@pytest.mark.once
def test_a_sweep_compares_the_method_with_its_presets(root, tmp_path):
    """The main row has norms of query and key and two scales a head more than "bit" or "sign"."""
    presets = {label: {"name": "bivit", **bivit.PRESETS[label]} for label in ("sign", "bit")}
    cfg = binary(root, steps=2, rows=presets, seeds=2, order="sign<bivit")
    report = run.run(cfg, tmp_path, Console(quiet=True))
    assert [row["name"] for row in report["rows"]] == ["float", "W1A1 bivit", "W1A1 bit", "W1A1 sign"]
    assert [(r["name"], r["seed"]) for r in report["runs"]] == [
        (name, seed) for seed in (0, 1) for name in ("bivit", "bit", "sign")
    ]
    kl = {(r["name"], r["seed"]): r["kl"] for r in report["runs"]}
    assert len(set(kl.values())) == 6
    sizes = {row["name"]: row["bytes"] for row in report["rows"]}
    assert sizes["W1A1 bivit"] - sizes["W1A1 sign"] == 4 * 4 * 2, "four scales of each of two heads"
    assert sizes["W1A1 bivit"] - sizes["W1A1 bit"] == 4 * (2 * 2 * 8 - 4), "norms; a scale of each of four inputs"
    folders = {p.name for p in tmp_path.iterdir() if p.is_dir()}
    assert folders == {f"{name}-W1A1-seed{seed}" for name in ("bivit", "bit", "sign") for seed in (0, 1)}
    assert {(o["worse"], o["better"]) for o in report["order"]} == {("sign", "bivit")}
    assert {site["bits"] for site in report["sites"].values()} == {1}
