"""Config files by name: which of several, what is near where there is none, and what a docstring says."""

import pytest

from jvq import config_files
from jvq.config_files import docstring, folders, known, located, method, summary, takes


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The working directory, with a folder of configs, and an installed package with another."""
    package = tmp_path / "site-packages" / "jvq"
    for folder, names in ((tmp_path / "work" / "configs", "ab"), (package / "assets" / "configs", "bc")):
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}_demo.py").write_text(f'"""{name} of {folder.parent.name}."""\n')
    monkeypatch.setattr(config_files, "__file__", str(package / "config_files.py"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_what_is_here_comes_before_what_is_installed(places):
    assert [docstring(path) for path in known().values()] == ["a of work.", "b of work.", "c of assets."]
    assert located("c_demo:x,2") == f"{places}/site-packages/jvq/assets/configs/c_demo.py:x,2"


def test_a_folder_beside_an_installed_package_is_somebody_elses(places):
    (places / "site-packages" / "configs").mkdir()
    assert len(folders()) == 2
    (places / "site-packages" / "pyproject.toml").touch()  # a checkout
    assert len(folders()) == 3


def test_every_way_to_say_it_finds_the_same(places):
    ways = "a_demo", "a_demo.py", "configs/a_demo", "configs/a_demo.py"
    assert {located(way) for way in ways} == {"configs/a_demo.py"}
    (places / "work" / "a_demo.py").touch()
    assert located("a_demo.py") == located("a_demo") == "a_demo.py", "a file here is meant before one of that name"
    assert located(f"{places}/work/configs/b_demo") == f"{places}/work/configs/b_demo.py"


def test_what_is_not_there_is_answered_with_the_nearest(places):
    with pytest.raises(ValueError, match=r"no file 'd_demo' \(did you mean 'c_demo' or 'b_demo' or 'a_demo'\?\)"):
        located("d_demo")
    with pytest.raises(ValueError, match=r"no file '/nowhere/x.py' \(there are: a_demo, b_demo, c_demo\)"):
        located("/nowhere/x.py:y")
    with pytest.raises(ValueError, match="no file ''"):
        located("")


def test_where_there_is_no_config_at_all_it_is_said_what_to_do(places, monkeypatch):
    monkeypatch.setattr(config_files, "__file__", str(places / "elsewhere" / "jvq" / "config_files.py"))
    monkeypatch.chdir(places)
    assert known() == {}
    with pytest.raises(ValueError, match="there is no folder configs here, nor with jvq: run from a checkout"):
        located("a_demo")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Data: some. About 80 seconds on two cores.\nTop-1 (four minutes).", "about 80 seconds on two cores"),
        ("24 epochs, 11 steps: 77 minutes on two shared\ncores. More.", "77 minutes on two shared cores"),
        ("Needs a; 300 epochs, days on one accelerator (minutes only with --x.steps).",
         "days on one accelerator, minutes only with --x.steps"),
        ("ViT 32 minutes, and more.", "ViT 32 minutes"),
        ("Not timed: igq_demo.py, 80 seconds, contains it.", ""),
        ("    python -m jvq.main --config x   takes 3 minutes\n\nNothing else.", ""),
        ("A step has 0.3 seconds. Then two hours.", "a step has 0.3 seconds"),
        ("The second of two.", ""),
    ],
)  # fmt: skip
def test_how_long_it_takes_is_read_from_the_text(text, says):
    assert takes(text) == says


def test_a_file_that_is_no_python_says_nothing(tmp_path):
    (tmp_path / "x.py").write_text("def (:")
    (tmp_path / "z.py").write_bytes(b"\xff\x00")
    for name in "xyz":
        assert summary(tmp_path / f"{name}.py") == ("", "")
        assert method(tmp_path / f"{name}.py") == ""


def test_every_config_of_ours_says_what_it_shows():
    found = {name: summary(path) for name, path in known().items()}
    assert {"igq_demo", "vvtq_demo"} <= {*found}
    assert all(first and "``" not in first for first, _ in found.values())
    assert found["igq_demo"][1] == "about 80 seconds on two cores"
    assert sum(bool(time) for _, time in found.values()) >= 0.8 * len(found)


def test_every_config_of_ours_names_its_method():
    found = {name: method(path) for name, path in known().items()}
    assert set(found.values()) == {"bivit", "igq", "liu21", "minmax", "supervised", "vvtq"}
    assert all(name.startswith((of, "fp_")) for name, of in found.items()), found
