"""A run that ends while it writes a file, whichever: it goes on to the same result, and does nothing twice."""

import json
import os
import types

import killing
import pytest

from jvq import main, quantizing, run
from jvq.config import typed
from jvq.report import Console

pytestmark = pytest.mark.once

ROWS = {"rows": {"six": {"name": "minmax", "bits": 6}}}
PLACES = {  # which file it is, and what is then not to be done again
    "the first evaluation": ("unfinished/", 1, ()),
    "a fit": ("unfinished/", 2, ()),
    "an evaluation": ("unfinished/", 3, ("minmax",)),
    "the partial report": ("report.partial.md", 1, ("minmax",)),
    "the second partial report": ("report.partial.md", 2, ("minmax", "six")),
    "the packed model": ("packed.safetensors", 1, ("minmax", "six")),
    "the page": ("report.html", 1, ("minmax", "six")),
    "the report": ("report.json", 1, ("minmax", "six")),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash")
    killing.prepare(folder, images=24)
    return folder


def cfg(root, **changes):
    from jvq.config import config

    data = {"name": "npz", "dir": str(root), "calibration": 8, "batch": 64}
    weights = str(root / "vit.safetensors")
    return typed(
        config("tiny", "minmax", **{"weights": weights, "data": data, "bits": 4, "figures": False} | ROWS | changes)
    )


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run.run(cfg(root), workdir, Console(quiet=True))
    return killing.result(workdir)


def crashed(root, workdir, name, count):
    """A run that ends at the ``count``-th renaming to a file whose path has ``name`` in it."""
    real, seen = os.replace, []

    def torn(part, to):
        if name in os.fspath(to):
            seen.append(to)
            if len(seen) == count:
                raise KeyboardInterrupt
        real(part, to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", torn)
        with pytest.raises(KeyboardInterrupt):
            run.run(cfg(root), workdir, Console(quiet=True))
    assert not (workdir / "report.json").exists()


SHORT = ("a fit", "the partial report", "the report")


@pytest.mark.parametrize("place", [p if p in SHORT else pytest.param(p, marks=pytest.mark.slow) for p in PLACES])
def test_it_goes_on_from_any_file(place, root, whole, tmp_path, monkeypatch):
    name, count, fitted = PLACES[place]
    crashed(root, tmp_path, name, count)
    again = []
    monkeypatch.setattr(
        quantizing, "fitted_row", lambda row, *_, f=quantizing.fitted_row: again.append(row) or f(row, *_)
    )
    run.run(cfg(root), tmp_path, Console(quiet=True))
    assert killing.result(tmp_path) == whole
    assert not {row.name for row in again} & set(fitted), "fitted again"


def test_another_config_begins_anew(root, whole, tmp_path):
    crashed(root, tmp_path, "report.json", 1)
    run.run(cfg(root, bits=3), tmp_path, Console(quiet=True))
    assert killing.result(tmp_path)["report.json"] != whole["report.json"]
    assert killing.result(tmp_path)["packed.safetensors"] != whole["packed.safetensors"]


def test_a_run_that_is_stopped_leaves_the_rows_that_it_has(root, tmp_path):
    said = []
    console = Console(quiet=True, stopping=lambda: any(line.startswith("six") for line in said))
    console.say = said.append
    with pytest.raises(KeyboardInterrupt):
        run.run(cfg(root), tmp_path, console)
    partial = json.loads((tmp_path / "report.partial.json").read_text())
    assert [row["name"] for row in partial["rows"]] == ["float", "minmax"]
    assert partial["missing"] == ["six"]
    done = run.run(cfg(root), tmp_path, Console(quiet=True))
    assert done["rows"][:2] == partial["rows"]
    assert not list(tmp_path.glob("*partial*"))


def test_the_command_that_goes_on(monkeypatch, tmp_path):
    def again(**given):
        for name in ("workdir", "resume", "overwrite"):
            monkeypatch.setattr(main, name.upper(), types.SimpleNamespace(value=given.get(name)))
        return main._again(tmp_path / "runs")

    monkeypatch.setattr("sys.argv", ["jvq.main", "--config", "a b:x", "--config.seed=3"])
    words = "python -m jvq.main --config 'a b:x' --config.seed=3"
    assert again() == f"{words} --workdir={tmp_path}/runs --resume"
    assert again(workdir="w") == f"{words} --resume"
    assert again(workdir="w", resume=True) == words
    assert again(workdir="w", overwrite=True) == words
