"""The README keeps its promises: its example runs, its commands and files exist, it stays short."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_fits():
    assert len(README.splitlines()) <= 180


@pytest.mark.once
def test_the_library_example_runs_and_packs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["logits"].shape == (32, 10)
    assert np.isfinite(scope["logits"]).all()
    assert scope["packed"]["block00"]["mlp"]["fc1"]["kernel"].bits == 4
    same = scope["logits"].argmax(-1) == scope["model"].forward(scope["params"], scope["images"]).argmax(-1)
    assert same.mean() >= 0.85, "four bits, but the same model"


def test_its_two_commands():
    assert "pip install -e . && python -m jvq.main --config configs/igq_demo.py" in README
    assert "pip install -e '.[test]' && pytest" in README


def test_every_config_that_it_names_exists():
    named = set(re.findall(r"configs/\w+\.py", README)) - {"configs/foo.py"}
    assert named
    assert all((ROOT / path).is_file() for path in named), named


def test_every_folder_of_its_tree_exists():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.DOTALL)[1]
    folders = re.findall(r"^  (\w+)/", tree, re.MULTILINE)
    files = re.findall(r"\b(\w+\.py)\b", tree)
    assert {"core", "models"} <= set(folders)
    assert all((ROOT / "jvq" / name).is_dir() for name in folders), folders
    assert all((ROOT / "jvq" / name).is_file() for name in files), files
