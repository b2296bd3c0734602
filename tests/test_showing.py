"""``jvq.show`` and what objects print as: sizes and bits from shapes, never an array."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvq
from jvq.config import config
from jvq.core.calibrate import Fitted
from jvq.export import Deployment
from jvq.models.weights import Checkpoint

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
RECIPE = [
    ("*.w", jvq.Uniform(bits=4, keep="o")),
    ("*/qkv.w", jvq.Uniform(bits=3, keep="she")),
    ("block*.x", jvq.Grouped(bits=4, groups=2, along="d")),
    ("head*", None),
]


@pytest.fixture(scope="module")
def made():
    """A tiny checkpoint, fitted and deployed."""
    model, rng = jvq.build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), model.shapes())
    checkpoint = Checkpoint(model, params, {"size": [8, 8], "resize": None}, {"data": "made", "ignored": ["x"] * 500})
    known = jvq.sites(model.forward, params, model.image)
    plan = jvq.resolve(RECIPE, known)
    state = jvq.calibrate(model.forward, params, rng.normal(size=(2, 8, 8, 1)).astype(np.float32), plan, known)
    return checkpoint, known, plan, state, Deployment.of(checkpoint, plan, state, known, {"weights": "4 bits"})


@pytest.fixture
def shown(monkeypatch, capsys):
    """What a call of ``show`` prints, each line as its words."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*args):
        jvq.show(*args)
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]

    return call


def leaf(made):
    return made[4].params["block00"]["mlp"]["fc1"]["kernel"]


def test_a_packed_weight_tells_bits_shapes_and_bytes(made):
    packed = leaf(made)
    assert packed.bits == 4
    size, whole = packed.nbytes / 1024, 16 * 64 * 4 / 1024
    assert repr(packed) == f"Packed(4-bit [16,64], scale [1,64], zero [1,64], {size:.1f} KiB of {whole:.1f} KiB)"


def test_rows_tell_the_same_in_their_form(made):
    deployment = made[4]
    for weights, form in (("fast", "int8"), ("small", "packed")):
        rows = jvq.prepared(deployment.params, deployment.known, weights)["block00"]["mlp"]["fc1"]["kernel"]
        assert repr(rows).startswith(f"Rows(4-bit do [16,64] as {form}, scale [1,1,64], ")
        assert repr(rows).endswith(f"{rows.nbytes / 1024:.1f} KiB of 4.0 KiB)")


@pytest.mark.parametrize("weights", [None, "fast"])
def test_nothing_is_read_from_a_device_to_print_it(made, weights, monkeypatch):
    deployment = made[4]
    params = deployment.params if weights is None else jvq.prepared(deployment.params, deployment.known, weights)
    seen, whole = [], repr(params)

    def abstract(tree):
        seen.append(repr(tree))
        return jax.tree.leaves(tree)

    jax.eval_shape(abstract, params)
    jax.make_jaxpr(abstract)(params)
    for text in seen:
        assert text.count("KiB of") == whole.count("KiB of") > 4, "tracers have shapes too"
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert repr(tree).count("KiB of") == whole.count("KiB of")
    for other in (None, "sharding", object(), 3):
        assert "Packed(" in repr(jax.tree.map(lambda x, o=other: o, leaf(made)))
    assert "array" not in repr(leaf(made))


def test_a_checkpoint_and_a_deployment_print_in_a_line(made):
    checkpoint, *_, deployment = made
    count = sum(x.size for x in jax.tree.leaves(checkpoint.params))
    size = sum(x.nbytes for x in jax.tree.leaves(deployment.params)) / 1024
    what = f"vit, 8x8x1 pixels, {count:,} parameters in"
    assert repr(checkpoint) == f"Checkpoint({what} {count * 4 / 1024:.1f} KiB; data='made')"
    assert repr(deployment) == f"Deployment({what} {size:.1f} KiB; 4 activations quantised)"
    stand_in = Checkpoint(checkpoint.model, checkpoint.model.shapes(), {}, {})
    assert repr(stand_in) == f"Checkpoint({what} {count * 4 / 1024:.1f} KiB)"


def test_each_kind_is_a_table(made, shown):
    checkpoint, known, plan, state, deployment = made
    assert "block00/mlp/fc1.x bnd b x 5 x 16 bno" in shown(known)
    line = "block00/mlp/fc1.x Grouped(bits=4, groups=2, along='d')"
    assert line in shown(plan)
    assert line.replace(".x ", ".x bnd ") in shown(plan, known)
    assert ["*/qkv.w Uniform(bits=3, keep='she')", "head* float"] == [shown(RECIPE)[i] for i in (3, 5)]
    assert "dim 16" in shown(checkpoint.model)
    assert {"dim 16", "preprocess.size [8, 8]", repr(checkpoint)} <= {*shown(checkpoint)}
    assert f"block00/mlp/fc1/kernel {leaf(made)!r}" in shown(deployment.params)
    assert "head/bias float32 [3]" in shown(deployment.params) == shown(dict(deployment.params))
    assert shown(leaf(made)) == [repr(leaf(made))]
    lines = shown(deployment)
    assert {"packed, 3 bits 1 parameters", "Grouped(bits=4, groups=2, along='d') 4 activations"} <= {*lines}
    assert "weights 4 bits" in lines
    assert shown(Fitted(plan, state)) == shown(plan) + shown(state)
    assert shown(Fitted(plan, state), known) == shown(plan, known) + shown(state)
    assert "method.groups 3" in shown(config("x", "igq", groups=3))


def test_a_state_is_its_numbers(made, shown):
    state = made[3]
    lines = {line.split()[0]: line for line in shown(state)}
    scale = np.asarray(state["block00/mlp/fc1.w"]["scale"])
    assert f"levels 15, scale {scale.min():.4g} .. {scale.max():.4g} [64], zero" in lines["block00/mlp/fc1.w"]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    assert "scale [64]" in {line.split()[0]: line for line in shown(shapes)}["block00/mlp/fc1.w"]
    jax.eval_shape(lambda s: jvq.show(s), state)


def test_a_report_is_shown_as_a_run_does(shown, tmp_path):
    cost = {"macs": 10, "base": 10, "find": 0, "choose": 0, "add": 0}
    row = {"top1": 0.9, "agreement": 1.0, "kl": 0.0, "bytes": 40960, "bops": 64, "cost": cost}
    rows = [{"name": "float", **row}, {"name": "igq", **row}]
    found = shown(json.loads(json.dumps({"schema": "jvq.report/1", "method": "igq", "rows": rows, "warnings": ["no"]})))
    assert any(line.startswith("igq 90.00 100.00") for line in found)
    assert "warning: no" in found


@pytest.mark.parametrize("thing", [3, "igq", [1, 2], [("*", 3)], {"a": 1}, None, (), [("*.w", None, 3)]])
def test_what_cannot_be_shown_is_named_with_what_can(thing):
    with pytest.raises(ValueError, match=rf"show: got {type(thing).__name__}, which is none of: sites, a plan, "):
        jvq.show(thing)


def test_a_long_tree_is_cut(shown):
    lines = shown({f"p{i:03}": np.zeros(2, np.float32) for i in range(450)})
    assert lines[-1] == "... 450 in all"
    assert "p399 float32 [2]" in lines
    assert "p400 float32 [2]" not in lines


@pytest.mark.slow
def test_in_a_notebook_tables_are_html_and_a_bar_is_one_line():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [
        "import jvq\nfrom jvq.report import Console\nmodel = jvq.build('vit', {'size': 'Ti'})\njvq.show(model)",
        "for _ in Console().track(range(3), 'counting'): pass",
        "jvq.open_weights('fashion_vit')",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
    table, bar, line = (cell.outputs for cell in book.cells)
    assert "192" in table[0]["data"]["text/html"]
    assert [out["data"] for out in bar] == [{"text/plain": "counting: 3 of 3 in 0 s"}]
    assert line[0]["data"]["text/plain"].startswith("Checkpoint(vit, 28x28x1 pixels, 255,050 parameters")
