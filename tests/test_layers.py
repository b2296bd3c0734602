"""The shape of ``jvq/``: which way imports go, how long a file may grow, and that a model multiplies through ``dot``.

A rule takes a file of a tree ``{path: source}`` and returns its complaints, so that the rules themselves are tried on
small made-up trees below. To move a boundary, change the tables here and the table in CONTRIBUTING.md.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# A layer is what follows ``jvq.`` in a module's name. Each may import itself and what stands here.
BELOW: dict[str, set[str]] = {
    "core": set(),
    "quantizers": {"core"},
    "models": {"core", "progress"},
    "kernels": {"core"},
    "data": {"core"},
    "schedule": {"core"},
    "metrics": {"core"},
    "checkpoints": {"core"},
    "train": {"core", "schedule", "metrics", "checkpoints"},
    "tapes": {"core"},
    "evaluate": {"core"},
    "evaluate_maps": {"core"},
    "evaluate_order": {"core"},
    "accounting": {"core"},
    "operations": {"core", "accounting"},
    "environment": {"core"},
    "stages": set(),
    "journal": {"core"},
    "interrupts": {"core"},
    "mistakes": set(),
    "progress": set(),
    "usage": {"mistakes"},
    "describing": set(),
    "config_files": {"core"},
    "ordering": {"core"},
    "integer": {"core", "kernels"},
    "export": {"core", "quantizers", "models", "kernels", "integer"},
    "report": {"core", "mistakes", "progress"},
    "methods": {"core", "quantizers", "train", "schedule", "checkpoints", "accounting", "operations"},
    "config": {"core", "methods"},
}
ABOVE_ALL = {
    "",
    "main",
    "run",
    "opening",
    "rows",
    "fitting",
    "qat",
    "variation",
    "quantizing",
    "training",
    "sharing",
    "sweep",
    "inspection",
    "looking",
    "ptq",
    "kept",
    "planning",
    "bench",
    "deploy",
    "list",
    "showing",
}  # "" is jvq/__init__.py
OUTSIDE_OF_CORE = {"jax", "jaxtyping", "numpy"}  # and the standard library
LAZY = {"tensorflow", "tensorflow_datasets"}  # slow to import: inside functions only
VAGUE = {"common", "helper", "helpers", "manager", "managers", "util", "utils"}
FILE_LINES, FUNCTION_LINES = 400, 80

# What multiplies matrices, wherever it is imported from.
PRODUCTS = re.compile(
    r"conv|conv_\w+|convolve|correlate|\w*dot|dot_\w+|einsum|inner|kron|\w*matmul|matvec|vecmat"  # jax, numpy, einops
    r"|Conv\w*|Dense\w*|Einsum|\w+Attention"  # flax
)

Tree = dict[str, str]
Rule = Callable[[str, Tree], list[str]]


class Import(NamedTuple):
    line: int
    target: str  # the module itself, never a name in it
    lazy: bool  # inside a function


def name_of(path: str) -> str:
    """The dotted name of the module at ``path``: ``jvq.core.dot``."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def layer_of(module: str) -> str:
    return f"{module}.".split(".")[1]


def absolute(node: ast.ImportFrom, path: str) -> str:
    """The module that ``from`` names in a file at ``path``, with leading dots worked out."""
    package = path.split("/")[: -node.level or None]
    return ".".join([*package, *filter(None, [node.module])]) if node.level else node.module or ""


def imports(path: str, tree: Tree) -> list[Import]:
    """Every import of the file, also those in functions and under TYPE_CHECKING."""
    modules = {name_of(p) for p in tree}

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, a.name, lazy) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, path)
            for a in node.names:
                full = f"{base}.{a.name}"
                yield Import(node.lineno, full if full in modules else base, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return list(walk(ast.parse(tree[path]), False))


def arrows(path: str, tree: Tree) -> list[str]:
    """Imports from one layer into another that the table does not allow."""
    layer = layer_of(name_of(path))
    if layer in ABOVE_ALL:
        return []
    if layer not in BELOW:
        return [f"{path}: the layer {layer!r} is not in the table"]
    allowed = BELOW[layer] | {layer}
    return [
        f"{path}:{i.line}: {layer} may import {', '.join(sorted(allowed))} of jvq, not {i.target}"
        for i in imports(path, tree)
        if i.target.split(".")[0] == "jvq" and layer_of(i.target) not in allowed
    ]


def guests(path: str, tree: Tree) -> list[str]:
    """Imports of other people's packages where they do not belong."""
    layer, found = layer_of(name_of(path)), []
    for line, target, lazy in imports(path, tree):
        top = target.split(".")[0]
        if layer == "core" and top != "jvq" and top not in OUTSIDE_OF_CORE | sys.stdlib_module_names:
            found.append(f"{path}:{line}: core may import {', '.join(sorted(OUTSIDE_OF_CORE))}, not {target}")
        if top == "flax" and layer != "models":
            found.append(f"{path}:{line}: {target} outside models/")
        if top in LAZY and not lazy:
            found.append(f"{path}:{line}: {target} at module level; import it in the function that needs it")
    return found


def sizes(path: str, tree: Tree) -> list[str]:
    """Files and functions that have outgrown a screen, and files named after nothing."""
    lines = len(tree[path].splitlines())
    found = [f"{path}: {lines} lines, more than {FILE_LINES}; split it by idea"] if lines > FILE_LINES else []
    if vague := VAGUE.intersection(re.split(r"[./_]", path)):
        found.append(f"{path}: {vague.pop()!r} says nothing; name the file after its idea")
    for node in ast.walk(ast.parse(tree[path])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name} has {lines} lines, more than {FUNCTION_LINES}")
    return found


def aliases(code: ast.Module, path: str) -> dict[str, str]:
    """What each imported name stands for: ``{"jnp": "jax.numpy", "dense": "flax.linen.Dense"}``."""
    names = {}
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            for a in node.names:
                top = a.name.split(".")[0]
                names[a.asname or top] = a.name if a.asname else top
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{absolute(node, path)}.{a.name}" for a in node.names}
    return names


def bypasses(path: str, tree: Tree) -> list[str]:
    """Products in a model that its ``dot`` never sees: they can be neither quantised nor recorded."""
    if layer_of(name_of(path)) != "models":
        return []
    code = ast.parse(tree[path])
    known = aliases(code, path)

    def full_name(node: ast.AST) -> str | None:
        if isinstance(node, ast.Attribute):
            base = full_name(node.value)
            return base and f"{base}.{node.attr}"
        return known.get(node.id) if isinstance(node, ast.Name) else None

    def culprit(node: ast.AST) -> str | None:
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            return "@"
        if isinstance(node, ast.Call) and full_name(node.func) == "jvq.core.dot.float_dot":
            return "float_dot"  # as the default of an argument it is welcome
        match node:  # a method of an array; the seam takes two: a site and an equation
            case ast.Call(func=ast.Attribute(attr="dot") as method, args=[_]) if not full_name(method):
                return f"{ast.unparse(method)}(...)"
        name = full_name(node)
        return name if name and not name.startswith("jvq.") and PRODUCTS.fullmatch(name.split(".")[-1]) else None

    found = sorted({(getattr(n, "lineno", 0), c) for n in ast.walk(code) if (c := culprit(n))})
    return [f"{path}:{line}: {name} multiplies past the seam; use dot(site, equation, ...)" for line, name in found]


def cycle(tree: Tree) -> list[str]:
    """The modules of one import cycle in order, the first again at the end; nothing where there is none."""
    modules = {name_of(p) for p in tree}
    graph = {name_of(p): {i.target for i in imports(p, tree)} & modules - {name_of(p)} for p in tree}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        return e.args[1][::-1]
    return []


TREE: Tree = {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in sorted((ROOT / "jvq").rglob("*.py"))}


@pytest.mark.parametrize("rule", [arrows, guests, sizes, bypasses], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", TREE)
def test_a_file_keeps_the_rules(path: str, rule: Rule) -> None:
    assert not (found := rule(path, TREE)), "\n" + "\n".join(found)


def test_no_import_cycle() -> None:
    assert "jvq/core/dot.py" in TREE  # and not an empty tree
    assert not (found := cycle(TREE)), " -> ".join(found)


def test_importing_jvq_leaves_the_slow_packages_alone() -> None:
    slow = {"matplotlib", "tensorflow", "tensorflow_datasets", "torch"}
    code = f"import sys, jvq; print(*sorted({slow} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


@pytest.mark.parametrize(
    ("rule", "path", "source", "complaint"),
    [
        (arrows, "jvq/quantizers/a.py", "from jvq.models import layers", "a.py:1: quantizers may .* not jvq.models"),
        (arrows, "jvq/models/a.py", "import jax\nimport jvq.kernels.xnor", "a.py:2: models may .* not jvq.kernels"),
        (arrows, "jvq/core/a.py", "def f():\n    from jvq import train", "a.py:2: core may .* not jvq.train"),
        (arrows, "jvq/train.py", "from .methods import igq", "train.py:1: train may .* not jvq.methods"),
        (arrows, "jvq/methods/a.py", "from jvq import evaluate", "methods may .* not jvq.evaluate"),
        (arrows, "jvq/methods/a.py", "from ..models.vit import ViT", "methods may .* not jvq.models"),
        (arrows, "jvq/data/a.py", "import jvq", "data may .* not jvq$"),
        (arrows, "jvq/novel/a.py", "", "'novel' is not in the table"),
        (guests, "jvq/core/a.py", "import optax", "core may .* not optax"),
        (guests, "jvq/train.py", "from flax.linen import Module", "flax.linen outside models"),
        (guests, "jvq/data/a.py", "try:\n    import tensorflow_datasets as t\nfinally: ...", "a.py:2: .* module level"),
        (sizes, "jvq/core/a.py", "x = 1\n" * 401, "401 lines, more than 400"),
        (sizes, "jvq/core/a.py", "x = 1\ndef f():\n" + "    x = 1\n" * 80, "a.py:2: f has 81 lines, more than 80"),
        (sizes, "jvq/core/math_utils.py", "", "'utils' says nothing"),
        (sizes, "jvq/helpers/a.py", "", "'helpers' says nothing"),
        (bypasses, "jvq/models/a.py", "def f(x, w):\n    return x @ w", "a.py:2: @ multiplies"),
        (bypasses, "jvq/models/a.py", "def f(x, w):\n    x @= w", "a.py:2: @ multiplies"),
        (bypasses, "jvq/models/a.py", "import jax.numpy as jnp\ny = jnp.einsum('ab,bc', x, w)", "jax.numpy.einsum"),
        (bypasses, "jvq/models/a.py", "import jax\ny = jax.lax.dot_general(x, w)", "jax.lax.dot_general"),
        (bypasses, "jvq/models/a.py", "import jax\ny = partial(jax.numpy.matmul, w)", "jax.numpy.matmul"),
        (bypasses, "jvq/models/a.py", "from jax.numpy import dot as times\ny = times(x, w)", "jax.numpy.dot"),
        (bypasses, "jvq/models/a.py", "import flax.linen as nn\ny = nn.Dense(3)(x)", "flax.linen.Dense"),
        (bypasses, "jvq/models/a.py", "y = (x * 2).dot(w)", r"\(x \* 2\).dot\(...\)"),
        (bypasses, "jvq/models/a.py", "from jvq.core import dot\ny = dot.float_dot('s', 'ab,bc', x=x)", "float_dot"),
    ],
)
def test_a_rule_catches(rule: Rule, path: str, source: str, complaint: str) -> None:
    tree = dict.fromkeys(("jvq/train.py", "jvq/evaluate.py", "jvq/kernels/xnor.py", "jvq/models/layers.py"), "")
    (found,) = rule(path, tree | {path: source})
    assert re.search(complaint, found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("jvq/models/a.py", "from jvq.core.dot import float_dot\ndef f(x, w, dot=float_dot): dot('s', 'ab,bc', x=x)"),
        ("jvq/models/a.py", "class A:\n    def f(self, p, v):\n        return self.dot('s/pv', 'ab,bc', p=p, v=v)"),
        ("jvq/models/a.py", "import flax.linen as nn, jax\nx = jax.lax.convert_element_type(nn.gelu(1), int)"),
        ("jvq/models/a.py", "from jvq.core import dot\nx: dot.Dot"),
        ("jvq/methods/a.py", "from jvq import quantizers, train\nfrom . import minmax\nx = a @ b"),
        (
            "jvq/core/a.py",
            "import math\nimport jax.numpy\nimport numpy\nfrom jaxtyping import Array\nfrom . import dot",
        ),
        ("jvq/data/a.py", "def f():\n    import tensorflow_datasets"),
        ("jvq/run.py", "from jvq import data, methods, models\nfrom jvq.report import html"),
        ("jvq/__init__.py", "from jvq.models.vit import ViT\nfrom jvq.core.dot import float_dot"),
        ("jvq/core/a.py", "x = 1\ndef f():\n" + "    x = 1\n" * 79 + "y = 1\n" * 319),
    ],
)
def test_a_rule_lets_pass(path: str, source: str) -> None:
    tree = dict.fromkeys(("jvq/train.py", "jvq/quantizers/__init__.py", "jvq/methods/minmax.py", "jvq/core/dot.py"), "")
    assert [c for rule in (arrows, guests, sizes, bypasses) for c in rule(path, tree | {path: source})] == []


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"jvq/a.py": "import jvq.b", "jvq/b.py": "def f():\n    from jvq import a"}, {"jvq.a", "jvq.b"}),
        ({"jvq/q/__init__.py": "from .u import U", "jvq/q/u.py": "from jvq.q import V"}, {"jvq.q", "jvq.q.u"}),
        ({"jvq/q/__init__.py": "from .u import U", "jvq/q/u.py": "from . import v", "jvq/q/v.py": ""}, set()),
        ({"jvq/a.py": "import jvq.b, jvq.c", "jvq/b.py": "import jvq.c", "jvq/c.py": "import jax"}, set()),
    ],
)
def test_a_cycle_is_found(tree: Tree, expected: set[str]) -> None:
    assert set(found := cycle(tree)) == expected
    assert not found or (found[0] == found[-1] and len(found) == len(expected) + 1)
