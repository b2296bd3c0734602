"""The notebooks: each is what its script says, was executed whole and quietly, and still runs."""

import base64
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

with warnings.catch_warnings():  # what these say while they are imported is not ours
    warnings.simplefilter("ignore")
    import jupytext
    import nbformat

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*_*.py"))
LARGEST = 400_000  #: bytes, that GitHub still shows quickly
WIDEST = 1200  #: pixels
COLAB = "https://colab.research.google.com/github/"
ELSEWHERE = re.compile(r"(?<![\w.:/-])/(?:home|root|tmp|work|Users|usr|content|mnt)/\w|[A-Z]:\\")

each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def written(script):
    return jupytext.read(script)


def shown(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(script):
    return [output for cell in code(shown(script)) for output in cell.outputs]


def test_there_are_notebooks_and_each_is_a_pair():
    assert len(SCRIPTS) >= 4
    assert {p.stem for p in SCRIPTS} == {p.stem for p in FOLDER.glob("*.ipynb")}


@each
def test_script_and_notebook_say_the_same(script):
    a, b = ([(c.cell_type, c.source) for c in read(script).cells] for read in (written, shown))
    assert a == b, f"python notebooks/execute.py {script.stem}"
    nbformat.validate(shown(script))


@each
def test_it_begins_with_a_title_a_badge_and_an_installation(script):
    first, second = shown(script).cells[:2]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert f"]({COLAB}" in first.source
    assert f"/notebooks/{script.stem}.ipynb)" in first.source
    assert "You will see" in first.source
    assert second.cell_type == "code"
    assert second.source.startswith("try:\n    import jvq\nexcept ImportError:")
    assert "\n    %pip install " in second.source, "a notebook installs the package where it is not there"
    assert "jax.devices()" in second.source


@each
def test_it_was_executed_whole_and_in_order(script):
    cells = [cell for cell in code(shown(script)) if cell.source]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(cell.outputs for cell in cells)


@each
def test_nothing_failed_or_warned(script):
    for output in outputs(script):
        assert output.output_type != "error", output.evalue
        assert output.get("name") != "stderr", output.text


@each
def test_it_is_small_and_names_no_place_of_a_machine(script):
    notebook = script.with_suffix(".ipynb")
    assert notebook.stat().st_size <= LARGEST
    texts = [script.read_text(), *(o.get("text", "") for o in outputs(script))]
    for text in texts:
        assert not ELSEWHERE.search(text), ELSEWHERE.search(text)


@each
def test_its_pictures_are_pictures(script, tmp_path):
    found = [o.data["image/png"] for o in outputs(script) if "image/png" in o.get("data", {})]
    assert found, "a notebook shows something"
    for i, picture in enumerate(found):
        path = tmp_path / f"{i}.png"
        path.write_bytes(base64.b64decode(picture))
        with Image.open(path) as image:
            assert image.width <= WIDEST
            assert np.ptp(np.asarray(image.convert("L"))) > 100, "an empty picture"


@pytest.mark.once
@each
def test_it_runs(script, tmp_path):
    env = {"PYTHONPATH": str(ROOT), "JVQ_NOTEBOOK_FAST": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    assert done.stdout.startswith("running on")
    assert list(tmp_path.iterdir()) == [], "a notebook leaves no files behind"
