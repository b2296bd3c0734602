"""Two and four real processes come to what one does: states to the bit, training to rounding; and they end together."""

import json
import os
import re
import signal

import jax
import launching
import numpy as np
import on_processes
import pytest
from launching import CLUSTERS, address, ended, started

from jvq import journal
from jvq.core import hosts

SCRIPT = on_processes.__file__


def together(what, folder, number, **more):
    """What comes of the script on so many processes."""
    return launching.together([SCRIPT, what, str(folder)], number, **more)


@pytest.fixture(scope="module")
def one():
    """What this process comes to alone, by name."""
    with jax.numpy_dtype_promotion("standard"):  # optax's
        world = on_processes.World()
        parts = {name: getattr(world, name)(None) for name in ("calibrated", "evaluated", "trained")}
        return on_processes.flat(parts)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def found(request, tmp_path_factory):
    """The folder, and the arrays by name of each process."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "journal").write_text('{"fingerprint": "test"}\n{"a": 1}\n')
    for code, _, err in together("work", folder, request.param):
        assert code == 0, err[-4000:]
    return folder, [dict(np.load(folder / f"process-{i}.npz")) for i in range(request.param)]


def of(results, part):
    """What is named ``part``, by the rest of its name."""
    mine = {name.removeprefix(f"{part}/"): x for name, x in results.items() if name.startswith(f"{part}/")}
    assert mine
    return mine


@pytest.mark.once
def test_calibration_is_that_of_one_process_to_the_bit(found, one):
    """The images are drawn by the seed alone; two of the pictures cannot be read, and one of these is drawn."""
    for results in found[1]:
        for part in ("calibrated/drawn", "calibrated/state"):
            want, got = of(one, part), of(results, part)
            assert want.keys() == got.keys()
            assert not [name for name in want if not np.array_equal(want[name], got[name])], part
    assert set(on_processes.CORRUPT) & set(one["calibrated/read"])


@pytest.mark.once
def test_predictions_and_score_are_those_of_one_process(found, one):
    want = of(one, "evaluated")
    for results in found[1]:
        got = of(results, "evaluated")
        np.testing.assert_array_equal(got["labels"], want["labels"])
        np.testing.assert_allclose(got["logits"], want["logits"], rtol=1e-5, atol=1e-5)
        assert [got[f"score/{i}"].item() for i in range(3)] == [want[f"score/{i}"].item() for i in range(3)]
        assert got["skipped"].tolist() == ["picture 7: broken", "picture 22: broken"]


@pytest.mark.once
@pytest.mark.parametrize("part", ["calibrated", "evaluated", "trained"])
def test_every_image_is_read_by_one_process_alone(found, one, part):
    """A batch of ten is filled up to twelve for four processes: three images each, and one for the last."""
    reads = [results[f"{part}/read"] for results in found[1]]
    assert sorted(np.concatenate(reads)) == one[f"{part}/read"].tolist()
    assert all(len(read) for read in reads)


def alike(want, got):
    """The same parameters to rounding."""
    assert want.keys() == got.keys()
    for name in want:
        a, b = (np.delete(x, 1, axis=0) if "qkv/bias" in name else x for x in (want[name], got[name]))
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.once
def test_two_steps_of_training_come_to_the_same_parameters(found, one):
    """But for the biases of keys: a softmax takes away what they add, so that Adam divides rounding by itself."""
    for results in found[1]:
        for part in ("trained/trained", "trained/moments"):
            alike(of(one, part), of(results, part))


@pytest.mark.once
@pytest.mark.parametrize("devices", [1, 8])
def test_their_checkpoint_is_restored_by_one_process(found, devices):
    folder, results = found
    ((code, _, err),) = ended([started([SCRIPT, "restore", str(folder)], devices)])
    assert code == 0, err[-4000:]
    restored = dict(np.load(folder / f"restored-{devices}.npz"))
    saved = {"kept": "trained", "parts": "ruled/trained"} | ({"again": "ruled/trained"} if devices > 1 else {})
    for part, source in saved.items():  # weights in parts too, whole and in parts again
        got, want = of(restored, part), of(results[0], source)
        assert want.keys() - {"read"} == got.keys()
        for name in got:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{part}/{name}")


@pytest.fixture(scope="module")
def ruled(found, tmp_path_factory):
    """What comes of wide weights in two parts: how many processes hold the same images, the arrays of each process.

    Of processes with one device each the parts lie on different ones; of two with two devices each has both.
    """
    cases = [(2, [{n: x for n, x in mine.items() if n.startswith("ruled/")} for mine in found[1]])]
    if len(found[1]) == 2:
        folder = tmp_path_factory.mktemp("inside")
        for code, _, err in together("rules", folder, 2, devices=2):
            assert code == 0, err[-4000:]
        cases.append((1, [dict(np.load(folder / f"process-{i}.npz")) for i in range(2)]))
    return cases


WIDE = {  # of a model of 16 channels and two heads, in two parts
    "attn/qkv/kernel": [16, 3, 1, 8],
    "attn/qkv/bias": [3, 1, 8],
    "mlp/fc1/kernel": [16, 8],
    "mlp/fc1/bias": [8],
    "mlp/fc2/kernel": [8, 16],
}


@pytest.mark.once
def test_no_process_has_a_wide_weight_whole(ruled):
    """Nor its moments and tracks, before and behind training; what no rule names is whole on each device."""
    for mine in (mine for _, results in ruled for mine in results):
        for when in ("begin", "end", "moments"):
            shown = of(mine, f"ruled/shown/{when}")
            for name, shape in WIDE.items():
                assert {tuple(s) for s in shown[name]} == {tuple(shape)}, (when, name)
            assert {tuple(s) for s in shown["attn/proj/kernel"]} == {(16, 16)}
        tracks = of(mine, "ruled/shown/tracks")  # of oscillations
        assert {tuple(s) for shapes in tracks.values() for s in shapes} == {tuple(WIDE["attn/qkv/kernel"])}
        count, *whole = mine["ruled/live"].tolist()  # of all arrays with the shape of qkv's kernel
        assert (count >= 3, whole) == (True, [])


@pytest.mark.once
def test_weights_in_parts_are_calibrated_and_packed_to_the_bit(ruled, one):
    """Weights and all that is made of them; of activations a sum is put together from parts, in another order."""
    for mine in (mine for _, results in ruled for mine in results):
        np.testing.assert_array_equal(mine["ruled/calibrated/drawn/images"], one["calibrated/drawn/images"])
        for part in ("state", "packed"):
            want, got = of(one, f"calibrated/{part}"), of(mine, f"ruled/calibrated/{part}")
            assert want.keys() == got.keys()
            for name in want:
                if part == "packed" or ".w/" in name:
                    np.testing.assert_array_equal(got[name], want[name], err_msg=name)
                else:
                    np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5, err_msg=name)
        assert mine["ruled/fingerprint"] == journal.fingerprint(on_processes.World().params)


@pytest.mark.once
def test_weights_in_parts_predict_and_learn_the_same_to_rounding(ruled, one):
    for mine in (mine for _, results in ruled for mine in results):
        want, got = of(one, "evaluated"), of(mine, "ruled/evaluated")
        np.testing.assert_array_equal(got["labels"], want["labels"])
        np.testing.assert_allclose(got["logits"], want["logits"], rtol=1e-5, atol=1e-5)
        assert [got[f"score/{i}"].item() for i in range(3)] == [want[f"score/{i}"].item() for i in range(3)]
        assert got["skipped"].tolist() == want["skipped"].tolist()  # each once, whoever has read it
        for part in ("trained", "moments"):
            alike(of(one, f"trained/{part}"), of(mine, f"ruled/trained/{part}"))


@pytest.mark.once
@pytest.mark.parametrize("part", ["evaluated", "trained"])
def test_who_has_parts_of_one_weight_reads_the_same_images(ruled, one, part):
    """Two with one device each both read all, of four two read one half, and of two with two devices each its own."""
    for sharing, results in ruled:
        reads = [mine[f"ruled/{part}/read"].tolist() for mine in results]
        assert sorted(np.concatenate(reads)) == sorted(sharing * one[f"{part}/read"].tolist())
        for i in range(0, len(reads), sharing):
            assert reads[i : i + sharing] == [reads[i]] * sharing


@pytest.mark.once
def test_all_take_the_decisions_of_the_leading_process(found):
    """Its journal, which the others do not see; what it says; and its mistakes."""
    folder, results = found
    count = len(results)
    for mine in results:
        assert mine["journal"].tolist() == [["a", "1"]]
        assert mine["agreed"].tolist() == [5, *range(count), 1]
        rows = [np.arange((i + 1) % 4 * 3).reshape(-1, 3) + 0.1 + i for i in range(count)]
        np.testing.assert_array_equal(mine["stacked"], np.concatenate(rows))  # float64 stays what it is
        assert str(mine["led"]) == "Agreed: not so"
        assert mine["small/label"].tolist() == on_processes.Pictures().labels[:3].tolist()
        assert mine["small/mask"].tolist() == [True] * 3
    for i in range(1, count):
        assert [path.name for path in (folder / f"own-{i}").rglob("*") if path.is_file()] == []


CONFIG = """
from jvq.config import config


def get_config(method='minmax'):
    data = dict(name='npz', dir={folder!r}, calibration=6, batch=12)
    return config('tiny', method, weights={weights!r}, data=data, figures=method != 'minmax')
"""


def command(folder, workdir, where, number, index, *more, method="", devices=1):
    """One of the processes of a run."""
    joining = [f"--coordinator={where}", f"--processes={number}", f"--process={index}"]
    config = f"--config={folder / 'tiny.py'}{method and ':'}{method}"
    return started(["-m", "jvq.main", config, f"--workdir={workdir}", *joining, *more], devices)


@pytest.fixture(scope="module")
def runnable(tmp_path_factory):
    """A folder with a model, images and a config."""
    from jvq.models.weights import Checkpoint, save

    folder = tmp_path_factory.mktemp("run")
    world, pictures = on_processes.World(), on_processes.Pictures()
    save(Checkpoint(world.model, world.params, on_processes.PREPROCESS.to_dict(), {}), folder / "vit.safetensors")
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", images=pictures.pixels[..., 0], labels=pictures.labels)
    weights = str(folder / "vit.safetensors")
    (folder / "tiny.py").write_text(CONFIG.format(folder=str(folder), weights=weights))
    return folder


@pytest.fixture(scope="module")
def run_by_two(runnable):
    """Where two processes have written a report, and what both said."""
    folder, where = runnable, address()
    said = ended([command(folder, folder / "out", where, 2, i) for i in range(2)])
    assert [code for code, _, _ in said] == [0, 0], said[0][2][-3000:] + said[1][2][-3000:]
    return folder, said


@pytest.mark.slow
def test_a_report_is_written_and_shown_once(run_by_two):
    folder, ((_, out, _), (_, quiet, _)) = run_by_two
    report = json.loads((folder / "out" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["float", "minmax"]
    assert (report["data"]["images"], report["device"][:3]) == (on_processes.COUNT, "2 x")
    assert "report: " in out
    assert [line for line in quiet.splitlines() if not line.startswith("[Gloo]")] == []


@pytest.mark.slow
def test_a_mistake_is_one_line_of_every_process(run_by_two):
    """The workdir holds a report already."""
    folder, _ = run_by_two
    where = address()
    for code, _, err in ended([command(folder, folder / "out", where, 2, i) for i in range(2)]):
        assert code == 2
        assert [line for line in err.splitlines() if line.startswith("jvq:")] == [
            f"jvq: workdir: {folder / 'out'} already holds a report; use another --workdir, or --overwrite"
        ]


IN_PARTS = [
    "--config.mesh.model=2",
    "--config.mesh.rules=" + ",".join(f"{name}={letters}" for name, letters in on_processes.RULES),
]
METHODS = {
    "igq": (1, ["--config.method.groups=2", "--config.method.candidates=(2,3)", "--config.method.allocation=bops"]),
    "vvtq": (2, ["--config.method.steps=2", "--config.method.batch=8"]),
    "liu21": (1, ["--config.method.steps=5", "--config.method.rounds=2"]),
    "bivit": (2, ["--config.method.steps=2", "--config.method.batch=8"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_weights_in_parts_reports_what_one_process_does(runnable, method):
    """Two processes, of one device each or of two: the same rows, sites and packed model, to rounding."""
    devices, more = METHODS[method]
    more = [*more, "--config.method.bits=4"] if method != "bivit" else more
    where, alone, both = address(), runnable / f"{method}-1", runnable / f"{method}-2"
    processes = [
        command(runnable, both, where, 2, i, *more, *IN_PARTS, method=method, devices=devices) for i in range(2)
    ]
    for code, _, err in [*ended(processes), *ended([command(runnable, alone, where, 1, 0, *more, method=method)])]:
        assert code == 0, err[-4000:]
    want, got = (json.loads((folder / "report.json").read_text()) for folder in (alone, both))
    assert (got["device"][0], want["device"][0]) == (str(2 * devices), "1")
    for part in ("rows", "sites", "figures", "pictures"):
        a, b = (dict(leaves(report[part])) for report in (want, got))
        assert a.keys() == b.keys()
        for name in a:
            close = isinstance(a[name], float)
            assert b[name] == (pytest.approx(a[name], rel=1e-2, abs=1e-6) if close else a[name]), name
    for name in ("packed.safetensors", "report.html", "groups.png")[: 3 if method == "igq" else 2]:
        assert (both / name).stat().st_size == pytest.approx((alone / name).stat().st_size, rel=0.05)


def leaves(tree, name=""):
    """The values of a report by their places."""
    if not isinstance(tree, dict | list):
        return [(name, tree)]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [leaf for key, value in pairs for leaf in leaves(value, f"{name}/{key}")]


LAST = "jvq: process {i} of {n}: another process has ended, or cannot be reached"


@pytest.mark.slow
@pytest.mark.parametrize(("how", "number"), [("together", 4), ("alone", 2), ("mistake", 2)])
def test_where_one_process_ends_the_others_do_within_a_bound(tmp_path, how, number):
    """At once where they compute together, else after as much silence as was agreed (5 s); each with a last line."""
    *others, last = together(how, tmp_path, number, seconds=120)
    assert last[0] == (2 if how == "mistake" else -signal.SIGKILL)
    if how == "mistake":
        assert "jvq: a mistake of its own" in last[2]
    for i, (code, out, err) in enumerate(others):
        assert (code, "begun" in out) == (2, True), err
        assert err.splitlines()[-1].startswith(LAST.format(i=i, n=number)), err
        if how != "alone":  # there JAX has a page to say first
            assert len([line for line in err.splitlines() if line.startswith("jvq:")]) == 1
        assert (tmp_path / f"journal-{i}").read_text().splitlines()[-1] == '{"a": 1}'


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"processes": 2}, "--coordinator and --process missing: it takes all three"),
        ({"coordinator": "here", "processes": 2, "process": 0}, "got 'here', must be .*HOST:PORT"),
        ({"coordinator": "localhost:1", "processes": 2, "process": 2}, "--process: got 2, must be 0 to 1"),
        ({"coordinator": "localhost:1", "processes": 0, "process": 0}, "--processes: got 0, must be at least 1"),
    ],
)
def test_arguments_that_will_not_do_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        hosts.joined(**given)


def test_a_single_process_asks_nobody(monkeypatch):
    for name in [name for name in os.environ if name.startswith(CLUSTERS)]:
        monkeypatch.delenv(name)
    assert hosts.joined() == 1
    assert hosts.joined("localhost:1", 1, 0) == 1
    assert (hosts.many(), hosts.leads()) == (False, True)
    assert (hosts.shared([1]), hosts.agreed("a"), hosts.any_of(False)) == ([[1]], "a", False)
    assert hosts.share(5) == slice(0, 5)
    rows = np.ones((2, 3))
    assert hosts.stacked(rows) is rows
    with pytest.raises(ValueError, match=re.escape("gloo")), hosts.ending(), hosts.noticing():
        raise ValueError("gloo")
