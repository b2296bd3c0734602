"""The command: every mistake is one line and exit code 2, and looking at a plan computes and writes nothing."""

import json
import os
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from jvq import main, opening, quantizing, report, rows, run, training
from jvq.core.recipe import sites
from jvq.mistakes import one_line
from jvq.models import build
from jvq.models.weights import Checkpoint, save

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
CONFIG = """
from jvq.config import config


def get_config(arg=None):
    return config("tiny", "{method}", {options})
"""
FILES = {
    "syntax.py": "def get_config(:\n",
    "name.py": "weights = fashion_vit\n",
    "without.py": "x = 1\n",
    "number.py": "def get_config():\n    return 5\n",
    "module.py": "import nosuchmodule\n",
    "method.py": CONFIG.format(method="ingq", options=""),
    "option.py": CONFIG.format(method="igq", options="bitz=4"),
    "type.py": CONFIG.format(method="igq", options="bits='4'"),
    "choice.py": CONFIG.format(method="igq", options="qkv='heads'"),
    "argument.py": "from jvq.core.errors import nearest\n\n\ndef get_config(arg=None):\n"
    '    raise ValueError(f\'config argument.py:{arg}: no such model{nearest(arg, ["vit", "swin"])}\')\n',
    "supervised.py": CONFIG.format(method="supervised", options=""),
}


@pytest.fixture(scope="module")
def model():
    return build("vit", SPEC)


@pytest.fixture(scope="module")
def root(model, tmp_path_factory):
    """A folder with ``igq.py`` on a tiny ViT, configs that will not do, and an unlabelled data set."""
    folder, rng = tmp_path_factory.mktemp("main"), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), model.shapes())
    save(Checkpoint(model, params, PREPROCESS, {}), folder / "vit.safetensors")
    np.savez(folder / "data.npz", images=rng.integers(0, 256, (9, 8, 8), dtype=np.uint8))
    data = f"dict(name='npz', dir={str(folder / 'data.npz')!r}, calibration=4)"
    options = f"weights={str(folder / 'vit.safetensors')!r}, data={data}"
    (folder / "igq.py").write_text(CONFIG.format(method="igq", options=options))
    parts = "parts=dict(small=dict(method=dict(groups=2)), large=dict(method=dict(groups=4)))"
    (folder / "parts.py").write_text(
        CONFIG.format(method="igq", options=f"{options}, {parts}").replace("tiny", "whole")
    )
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "file").write_text("")
    return folder


@pytest.fixture
def command(root, tmp_path, monkeypatch, capsys):
    """``command(*args) -> (exit code, stdout, stderr)``: as the process does it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("JVQ_TRACEBACK", raising=False)

    def call(*args):
        argv = ["jvq", *(str(a).replace("ROOT", str(root)) for a in args)]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks there for what is overridden
        before = flagsaver.save_flag_values(flags.FLAGS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of ml_collections; ``entry`` does the same
                left = main._parse(argv)
            with one_line(ValueError, text=main._text):
                main.main(left)
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            flagsaver.restore_flag_values(before)
            flags.FLAGS.unparse_flags()
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


IGQ = ("--config", "ROOT/igq.py")
MISTAKES = {
    "no config": ((), r"--config is missing, e.g. --config igq_demo \(python -m jvq.list configs"),
    "config that is not there": (("--config", "ROOT/ipq.py"), "--config: no file '.*ipq.py' .did you mean 'igq'"),
    "config without a value": (("--config",), "--config: no file"),
    "config in no folder": (("--config=nowhere/x.py",), "--config: no file 'nowhere/x.py'"),
    "syntax error": (("--config", "ROOT/syntax.py"), r"invalid syntax \(.*syntax.py, line 1\)"),
    "unknown name": (("--config", "ROOT/name.py"), "config: NameError: name 'fashion_vit' is not defined"),
    "no get_config": (("--config", "ROOT/without.py"), "has no attribute 'get_config'"),
    "no config returned": (("--config", "ROOT/number.py"), "get_config must return .* got int"),
    "import error": (("--config", "ROOT/module.py"), "No module named 'nosuchmodule'"),
    "unknown method": (("--config", "ROOT/method.py"), "method 'ingq' is not known .did you mean 'igq'"),
    "unknown method option": (("--config", "ROOT/option.py"), "no option 'method.bitz' .did you mean 'bits'"),
    "wrong type": (("--config", "ROOT/type.py"), "config: method.bits must be int, got '4'"),
    "unknown choice": (("--config", "ROOT/choice.py"), "method.qkv: got 'heads' .did you mean 'head'"),
    "unknown key": (
        (*IGQ, "--config.method.btis=3"),
        "config: there is no option 'method.btis' .did you mean 'bits'..$",
    ),
    "unknown branch": (
        (*IGQ, "--config.metod.bits=3"),
        "config: there is no option 'metod.bits' .did you mean 'method.bits'..$",
    ),
    "key of another branch": ((*IGQ, "--config.groups=4"), "no option 'groups' .did you mean 'method.groups'..$"),
    "key like no other": ((*IGQ, "--config.data.zzz=4"), "no option 'data.zzz' .there are: batch, calibration, dir"),
    "argument of a config": (("--config", "ROOT/argument.py:swni"), "no such model .did you mean 'swin'..$"),
    "text for a number": ((*IGQ, "--config.method.bits=abc"), "--config.method.bits=abc: invalid literal"),
    "choice on the command line": ((*IGQ, "--config.method.qkv=heads"), "method.qkv: got 'heads' .did you mean 'head'"),
    "method on the command line": ((*IGQ, "--config.method.name=ipq"), "method 'ipq' is not known .did you mean 'igq'"),
    "key before the config": (("--config.seed=3", *IGQ), "Found --config.seed=3 in argv before"),
    "unknown flag": ((*IGQ, "--wrokdir=x"), "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
    "junk": ((*IGQ, "junk"), "unexpected argument 'junk': options start with --"),
    "no pixels": ((*IGQ, "--config.resolution=0"), "resolution must be at least 1, got 0"),
    "weights that are not there": ((*IGQ, "--config.weights=ROOT/vt.safetensors"), "beside it: vit.safetensors"),
    "rule without a match": ((*IGQ, "--config.rules=*.z=4"), r"pattern '\*.z' matches no address"),
    "workdir below a file": ((*IGQ, "--workdir=ROOT/file/x"), "workdir: .* cannot be written to .Not a directory"),
    "workdir that is a file": ((*IGQ, "--workdir=ROOT/file"), "workdir: .* cannot be written to .File exists"),
    "plan of training": (("--config", "ROOT/supervised.py", "--dry"), "--sites and --dry need a method that quantises"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(case, command, tmp_path):
    args, says = MISTAKES[case]
    code, _, err = command(*args)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("jvq: ")
    assert re.search(says, line), line
    assert [p for p in tmp_path.rglob("*") if p.name != "runs"] == []


@pytest.mark.parametrize("asked", ["--help", "-h", "--helpshort"])
@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_is_one_screen_of_our_own(asked, columns, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = command(asked, "--config.method.bits=3")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) < 80
    assert len(re.findall(r"python -m jvq.main --config igq_demo", out)) == 3, "three examples"
    for word in ("python -m jvq.list", "--dry", "--sites", "--config.KEY=VALUE", "--workdir=TEXT", "--helpfull"):
        assert word in out
    assert "absl" not in out
    assert "[None]" not in out
    if columns == "80":  # nothing was folded: it is the same on a wide terminal
        monkeypatch.setenv("COLUMNS", "200")
        assert [line.rstrip() for line in command(asked)[1].splitlines()] == [line.rstrip() for line in lines]


def test_help_with_a_config_shows_what_it_sets(command, root):
    code, out, err = command("--help", *IGQ)
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == str(root / "igq.py")
    for line in ("--config.method.groups=8", "--config.data.calibration=4", "--config.method.act_bits="):
        assert line in lines
    assert command("--help", "--config=ROOT/ipq.py")[0] == 2


def test_every_flag_of_ours_is_in_the_help(command):
    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict()["jvq.main"]}
    assert own <= set(re.findall(r"^  --(\w+)", command("--help")[1], re.MULTILINE))


@pytest.mark.parametrize(
    "given", [("--config", "tiny:a,b"), ("--config=configs/tiny.py:a,b",), ("--config=tiny.py:a,b",)]
)
def test_a_config_is_found_by_its_name(given, command, noted, tmp_path):
    text = CONFIG.format(method="igq", options="rules=arg").replace('"tiny"', '"found"')
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.py").write_text(text)
    assert command(*given, "--config.method.bits=3")[0] == 0
    assert (noted[-1][0].name, noted[-1][0].rules, noted[-1][0].method.bits) == ("found", "a,b", 3)


def test_the_traceback_can_be_asked_for(command, monkeypatch):
    monkeypatch.setenv("JVQ_TRACEBACK", "1")
    with pytest.raises(ValueError, match="unexpected argument"):
        command(*IGQ, "junk")


@pytest.fixture
def nothing_computed(monkeypatch):
    where = ((rows, "freeze"), (quantizing, "sample"), (opening, "open_source"), (run, "write"), (training, "save"))
    for module, name in where:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed or written"))


def test_sites_lists_every_address_with_its_letters_and_shape(command, model, nothing_computed, tmp_path):
    code, out, err = command(*IGQ, "--sites", "--workdir", tmp_path / "work")
    assert (code, err) == (0, "")
    lines = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    known = sites(model.forward, model.shapes(), model.image)
    assert len(known) == 16
    for address, o in known.items():
        shape = " x ".join(map(str, o.shape if o.path else ("b", *o.shape[1:]))).split()
        assert lines[address] == [o.letters, *shape, o.out, *(["/".join(o.path)] if o.path else [])]
    assert list(tmp_path.iterdir()) == []


def test_dry_shows_the_plan_after_options_and_rules(command, model, nothing_computed, tmp_path):
    args = ("--config.method.groups=3", "--config.method.qkv=float", "--config.rules=*fc1.w=7", "--dry")
    code, out, err = command(*IGQ, *args)
    assert (code, err) == (0, "")
    lines = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    known = sites(model.forward, model.shapes(), model.image)
    assert list(lines)[2:] == list(known)
    assert lines["block00/mlp/fc1.x"] == ["bnd", "Grouped(bits=4,", "groups=3,", "along='d')"]
    assert lines["block00/mlp/fc1.w"] == ["do", "Uniform(bits=7,", "keep='o')"]
    assert lines["block00/attn/qk.q"] == [known["block00/attn/qk.q"].letters, "float"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def noted(monkeypatch):
    """The (config, workdir) of every run; a run only writes a report that holds how many there were."""
    calls = []

    def work(cfg, workdir, console, command):
        calls.append((cfg, workdir))
        (workdir / "report.json").write_text(json.dumps(len(calls)))

    monkeypatch.setattr(run, "run", work)
    return calls


def test_runs_get_folders_of_their_own(command, noted, tmp_path):
    for _ in range(3):
        assert command(*IGQ)[0] == 0
    assert [str(workdir) for _, workdir in noted] == ["runs/tiny", "runs/tiny-2", "runs/tiny-3"]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2", "tiny-3"]


def test_a_report_is_written_over_only_when_asked(command, noted, tmp_path):
    workdir = tmp_path / "work"
    assert command(*IGQ, "--workdir", workdir)[0] == 0
    code, _, err = command(*IGQ, "--workdir", workdir)
    assert code == 2
    assert "already holds a report; use another --workdir, or --overwrite" in err
    assert (workdir / "report.json").read_text() == "1"
    assert command(*IGQ, "--workdir", workdir, "--overwrite")[0] == 0
    assert (workdir / "report.json").read_text() == "2"


def test_overrides_reach_the_run(command, noted):
    args = ("--config.method.bits=6", "--config.method.act_bits=5", "--config.data.images=3", "--config.seed=4")
    assert command(*IGQ, *args, "--config.data.dir=x y", "--config.method.sequential")[0] == 0
    cfg = noted[0][0]
    assert (cfg.method.bits, cfg.method.act_bits, cfg.method.weight_bits, cfg.method.sequential) == (6, 5, None, True)
    assert (cfg.data.images, cfg.data.dir, cfg.seed, cfg.method.seed) == (3, "x y", 4, 4)


def test_every_part_gets_a_folder_of_its_own_in_that_of_the_whole(command, noted, tmp_path, root):
    parts = ("--config", root / "parts.py", "--config.data.images=3")
    for i in ("", "-2"):
        assert command(*parts)[0] == 0
        (first, one), (second, two) = noted[-2:]  # by name: a ConfigDict has no other order
        assert (str(one), str(two)) == (f"runs/whole{i}/large", f"runs/whole{i}/small")
        assert (first.name, first.method.groups, second.method.groups) == ("whole_large", 4, 2)
        assert first.data.images == second.data.images == 3
    code, _, err = command(*parts, "--workdir", "runs/whole")
    assert code == 2
    assert "runs/whole/large already holds a report" in err


def test_parts_that_are_done_are_left_out_on_resuming(command, noted, tmp_path, root):
    parts = ("--config", root / "parts.py", "--workdir", tmp_path / "work", "--resume")
    assert command(*parts)[0] == 0
    before = len(noted)
    (tmp_path / "work" / "small" / "report.json").unlink()  # as if it had been interrupted
    code, out, _ = command(*parts)
    assert code == 0
    assert "done already: large" in out
    assert [str(folder) for _, folder in noted[before:]] == [str(tmp_path / "work" / "small")]


def test_resuming_needs_a_folder(command, root):
    for args in (IGQ, ("--config", root / "parts.py")):
        code, _, err = command(*args, "--resume")
        assert code == 2
        assert "--resume goes on in the folder that --workdir names" in err


def test_resuming_a_run_that_has_ended_does_nothing(command, noted, tmp_path):
    args = (*IGQ, "--workdir", tmp_path / "work", "--resume")
    assert command(*args)[0] == 0
    (tmp_path / "work" / "unfinished").mkdir()  # it was killed just before it had removed this
    code, out, _ = command(*args)
    assert (code, len(noted)) == (0, 1)
    assert f"done already: {tmp_path / 'work'}" in " ".join(out.split("\n"))
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["report.json"]


def test_a_failed_run_removes_the_folder_that_it_made_and_no_other(command, monkeypatch, tmp_path):
    def fail(*args):
        raise ValueError("no")

    monkeypatch.setattr(run, "run", fail)
    assert command(*IGQ, "--workdir", tmp_path / "new")[0] == 2
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    assert command(*IGQ, "--workdir", tmp_path / "old")[0] == 2
    assert (tmp_path / "old").exists()


def test_a_failed_run_keeps_what_was_written(command, monkeypatch, tmp_path):
    def fail(cfg, workdir, *_):
        (workdir / "metrics.jsonl").write_text("{}")
        raise ValueError("diverged")

    monkeypatch.setattr(run, "run", fail)
    assert command(*IGQ, "--workdir", tmp_path / "new")[0] == 2
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["metrics.jsonl"]


# The same as a process


def process(root, *args, cwd):
    argv = [sys.executable, "-m", "jvq.main", *(str(a).replace("ROOT", str(root)) for a in args)]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("case", [
    "config that is not there",
    "unknown method option",
    "unknown key",
    "weights that are not there",
    "workdir below a file",
])  # fmt: skip
def test_the_process_ends_in_one_line_and_exit_code_2(case, root, tmp_path):
    args, says = MISTAKES[case]
    code, out, err = process(root, *args, cwd=tmp_path)
    assert code == 2
    assert "Traceback" not in out
    (line,) = err.splitlines()
    assert line.startswith("jvq: ")
    assert re.search(says, line), line
    assert [p for p in tmp_path.rglob("*") if p.name != "runs"] == []


def test_the_process_runs_and_writes_a_report(root, tmp_path):
    args = ("--config.rules=block*=float,head*=float,patch.x=float", "--config.data.images=5", "--workdir=work")
    code, out, err = process(root, *IGQ, *args, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert "report: work/report.html" in out.splitlines()
    found = json.loads((tmp_path / "work" / "report.json").read_text())
    assert list(found["sites"]) == ["patch.w"]
    assert found["rows"][1]["top1"] is None
    assert found["data"]["images"] == 5
    assert found["command"].startswith("python -m jvq.main --config")
    assert found["schema"] == report.SCHEMA
    written = sorted(os.listdir(tmp_path / "work"))
    assert {"packed.safetensors", "report.json", "report.md"} <= {*written}
    assert not [name for name in written if name.endswith(".part")]


@pytest.mark.parametrize(("asked", "told"), [([], False), (["--verbosity=0"], True)])
def test_what_libraries_log_is_told_only_when_asked_for(asked, told, tmp_path):
    """Every checkpoint would be a screen of orbax otherwise."""
    said = "from absl import logging; from jvq import main; main.main = lambda argv: logging.info('a screen'); "
    done = subprocess.run(
        [sys.executable, "-c", said + "main.entry()", *asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ("a screen" in done.stderr) == told
