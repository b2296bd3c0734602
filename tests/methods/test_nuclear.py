"""Sensitivities of modules (Liu et al. 2021, eq. 18; spec 5.2, 5.6, 9.5): each against a model with one quantised."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from jvq.core.dot import quantized, recording
from jvq.core.recipe import sites
from jvq.methods.nuclear import Module, modules, nuclear_norm, omegas
from jvq.methods.sensitivity import divergence, sweep_modules
from jvq.models import build
from jvq.quantizers import Uniform

VIT = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 32, "depth": 1, "heads": 4, "classes": 3}
SWIN = {"image": (8, 8), "channels": 1, "patch": 2, "dim": 32, "depths": (1,), "heads": (4,), "window": 2, "classes": 3}
WIDTHS = (3, 4, 6, 8, 12)
IMAGES = 4
diverge = jax.jit(divergence)


@dataclasses.dataclass(frozen=True)
class Switched(Uniform):
    """Quantises where its state is ``on``."""

    def apply(self, state, x, letters):
        return jnp.where(state["on"], super().apply(state, x, letters), x)


def state(x, bits):
    """Of values from -max to max, in one range."""
    scale, zero = np.abs(x).max() / (2 ** (bits - 1) - 1), 2 ** (bits - 1)
    return {"scale": jnp.float32(scale), "zero": jnp.float32(zero), "levels": jnp.float32(2**bits - 1)}


def tiny(name, spec):
    """A model with random weights, every operand's states at each width, and ``alone(module, width)``: its tape.

    The tape is that of a model in which nothing but this module is quantised (None: nothing), with its logits.
    """
    model, rng = build(name, spec), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.5, s.shape), jnp.float32), model.shapes())
    images = rng.normal(size=(IMAGES, *model.image)).astype(np.float32)
    known = sites(model.forward, params, model.image)
    plan = {a: Uniform(8, symmetric=True) for a in known}
    switches = {a: Switched(8, symmetric=True) for a in known}

    @jax.jit
    def record(states):
        tape = {}
        logits = model.forward(params, images, recording(tape, lambda a: True, quantized(switches, states)))
        return {**tape, "logits": logits}

    off = {a: {**state(np.ones(1), 8), "on": False} for a in known}
    plain = jax.device_get(record(off))
    states = [{a: state(plain[a], bits) for a in plan} for bits in WIDTHS]

    def alone(module, width):
        inside = {a: {**states[width][a], "on": True} for a in known if a.startswith((f"{module}/", f"{module}."))}
        assert len(inside) in (2, 4, 8, 10)
        return jax.device_get(record({**off, **inside}))

    return SimpleNamespace(
        forward=model.forward, params=params, images=images, known=known, plan=plan, states=states,
        plain=plain, alone=alone, modules=modules(known),
    )  # fmt: skip


@pytest.fixture(scope="module")
def vit():
    return tiny("vit", VIT)


@pytest.fixture(scope="module")
def swin():
    return tiny("swin", SWIN)


def omegas_of(t, looked):
    return omegas(t.forward, t.params, t.images, t.plan, t.states, t.known, looked=looked, batch=2)


CASES = {"vit": ("map", "map"), "swin": ("scores", "output")}  # the default, and the switches


@pytest.fixture(scope="module")
def measured(vit, swin):
    return {name: omegas_of(model, CASES[name]) for name, model in (("vit", vit), ("swin", swin))}


LOOKED = {"map": "pv.p", "scores": "qk.y", "output": "proj.y"}


def address(m, at):
    """Where a module is looked at."""
    return f"{m.name}/fc2.y" if m.kind == "mlp" else f"{m.name}/{LOOKED[at]}"


def norm_of(model, m, at):
    """Mean over images, heads and windows of the sum of singular values, of an MLP's output with its bias."""
    y = model.plain[address(m, at)].astype(np.float64)
    if m.kind == "mlp":
        params = model.params
        for key in (*m.name.split("/"), "fc2", "bias"):
            params = params[key]
        y = y + np.asarray(params, np.float64)
    return np.mean([np.linalg.svd(x, compute_uv=False).sum() for x in y.reshape(-1, *y.shape[-2:])])


def error_of(model, m, at, width):
    """Mean over images of the squared error, summed over everything else, of a model in which m alone is quantised."""
    off = model.alone(m.name, width)[address(m, at)].astype(np.float64) - model.plain[address(m, at)]
    return np.square(off).sum() / IMAGES


@pytest.mark.parametrize("name", CASES)
def test_each_sensitivity_is_that_of_a_model_with_one_module_quantised(name, measured, request):
    """Eq. 18, in float64."""
    model = request.getfixturevalue(name)
    (loss, norms), looked = measured[name], CASES[name]
    assert list(loss) == list(norms) == [m.name for m in model.modules]
    assert len(loss) == 2
    for m in model.modules:
        want = norm_of(model, m, looked[0])
        np.testing.assert_allclose(norms[m.name], want, rtol=1e-4, err_msg=m.name)
        errors = [error_of(model, m, looked[1], i) for i in range(len(WIDTHS))]
        want = [want * e for e in errors]
        np.testing.assert_allclose(loss[m.name][:-1], want[:-1], rtol=2e-3, err_msg=m.name)
        np.testing.assert_allclose(loss[m.name][-1], want[-1], rtol=1e-2, err_msg=m.name)  # a code's edge, in float32
        assert all(type(x) is float for x in loss[m.name])


@pytest.mark.slow
def test_a_merged_attention_sees_the_float_model_s_input_in_all_its_products():
    model = tiny("vit", {**VIT, "depth": 2, "merged": True})
    loss, norms = omegas_of(model, ("map", "map"))
    for m in model.modules:
        want = [norms[m.name] * error_of(model, m, "map", i) for i in range(len(WIDTHS))]
        np.testing.assert_allclose(loss[m.name], want, rtol=2e-3, err_msg=m.name)


def test_what_is_looked_at_can_be_told_apart(swin):
    """The test above could fail."""
    m = swin.modules[0]
    norms = [norm_of(swin, m, at) for at in LOOKED]
    errors = [error_of(swin, m, at, 0) for at in LOOKED]
    for row in (norms, errors):
        assert all(abs(a / b - 1) > 0.1 for a, b in itertools.combinations(row, 2))


@pytest.mark.parametrize("name", CASES)
def test_more_bits_are_less_sensitive(name, measured):
    """M2: strictly, and by about 4 a bit where clipping and coarse codes no longer matter."""
    for m, row in measured[name][0].items():
        assert all(b < a for a, b in itertools.pairwise(row)), m
        assert 3.5 < (row[-2] / row[-1]) ** (1 / 4) < 4.5, m


def test_the_golden_norms():
    """M1."""
    y, got = jnp.asarray([[3.0, 0.0], [4.0, 5.0]]), jnp.asarray([[3.0, 1.0], [4.0, 4.0]])
    assert float(nuclear_norm(y)) == pytest.approx(8.944271910, rel=1e-6)
    assert float(nuclear_norm(y)) * float(jnp.square(got - y).sum()) == pytest.approx(17.888543820, rel=1e-6)


def golden(params, images, dot):
    """An MLP, images [b 2 2 1] as they are, whose second product, before its bias, is the golden matrix."""
    x = dot("block00/mlp/fc1", "bnd,do->bno", x=images[..., 0], w=params["block00"]["mlp"]["fc1"]["kernel"])
    y = dot("block00/mlp/fc2", "bnd,do->bno", x=x, w=params["block00"]["mlp"]["fc2"]["kernel"])
    return y[:, 0]


@dataclasses.dataclass(frozen=True)
class Off(Uniform):
    """Adds the state's ``off``."""

    @property
    def form(self):
        return self

    def apply(self, state, x, letters):
        return x + state["off"]


def test_the_golden_sensitivity():
    """M1: the norm times the squared error, the mean of images of each: not the mean of the products."""
    eye = jnp.eye(2)
    params = {"block00": {"mlp": {name: {"kernel": eye} for name in ("fc1", "fc2")}}}
    images = np.asarray([[[3, 0], [4, 5]], [[6, 0], [8, 10]]], np.float32)[..., None]
    known = sites(golden, params, (2, 2, 1))
    state = {"block00/mlp/fc2.x": {"off": jnp.asarray([[[0.0, 1.0], [0.0, -1.0]]])}}
    loss, norms = omegas(golden, params, images[:1], {"block00/mlp/fc2.x": Off()}, [state], known)
    assert norms == {"block00/mlp": pytest.approx(8.944271910, rel=1e-6)}
    assert loss == {"block00/mlp": [pytest.approx(17.888543820, rel=1e-6)]}
    both, norms = omegas(golden, params, images, {"block00/mlp/fc2.x": Off()}, [state], known)
    assert norms["block00/mlp"] == pytest.approx(1.5 * 8.944271910, rel=1e-6)
    assert both["block00/mlp"] == [pytest.approx(1.5 * 17.888543820, rel=1e-6)]


@pytest.mark.parametrize("n", [2, 5, 17])
def test_norms_of_maps_are_between_one_and_the_number_of_tokens(n, rng):
    """M1: of equal rows 1, of the identity n."""
    rows = rng.dirichlet(np.full(n, 0.3), (3, n)).astype(np.float32)
    got = np.asarray(jax.jit(nuclear_norm)(jnp.asarray([*rows, np.full((n, n), 1 / n), np.eye(n)], jnp.float32)))
    np.testing.assert_allclose(got[-2:], [1, n], rtol=1e-5)
    assert ((1 < got[:3]) & (got[:3] < n)).all()
    np.testing.assert_allclose(got[:3], [np.linalg.svd(p, compute_uv=False).sum() for p in rows], rtol=1e-5)


def test_norms_are_taken_of_the_last_two_axes(rng):
    y = rng.normal(size=(2, 3, 7, 4)).astype(np.float32)
    want = [[np.linalg.svd(m, compute_uv=False).sum() for m in row] for row in y]
    np.testing.assert_allclose(nuclear_norm(jnp.asarray(y)), want, rtol=1e-5)


def known_of(name, spec):
    model = build(name, spec)
    return sites(model.forward, model.shapes(), model.image)


ATTN = ("qkv.x", "qkv.w", "qk.q", "qk.k", "pv.p", "pv.v", "proj.x", "proj.w")
MLP = ("fc1.x", "fc1.w", "fc2.x", "fc2.w")


def expected(blocks):
    """``blocks``: name to width."""
    return [
        Module(f"{block}/{kind}", kind, tuple(f"{block}/{kind}/{r}" for r in roles), weights * dim**2)
        for block, dim in blocks.items()
        for kind, roles, weights in (("attn", ATTN, 4), ("mlp", MLP, 8))
    ]


def test_the_modules_of_a_vit(vit):
    """Every attention and every MLP, all that is inside and nothing else: spec 5.1."""
    known = known_of("vit", {**VIT, "depth": 3})
    assert modules(known) == expected({f"block{i:02d}": 32 for i in range(3)})
    inside = {a for m in modules(known) for a in m.addresses}
    assert set(known) - inside == {"patch.x", "patch.w", "head.x", "head.w"}
    assert [m.name for m in vit.modules] == ["block00/attn", "block00/mlp"]


def test_the_modules_of_a_swin():
    """Merging belongs to none; stages have modules of different sizes."""
    known = known_of("swin", {**SWIN, "depths": (1, 2), "heads": (2, 2)})
    assert modules(known) == expected({"stage0/block00": 32, "stage1/block00": 64, "stage1/block01": 64})
    inside = {a for m in modules(known) for a in m.addresses}
    merge = {f"stage0/merge/reduce.{r}" for r in "xw"}
    assert set(known) - inside == {"patch.x", "patch.w", "head.x", "head.w"} | merge


def test_the_modules_of_a_vit_b_have_the_published_sizes():
    """Spec 5.5, in millions."""
    known = known_of("vit", {"size": "B/16", "depth": 1})
    assert [round(m.parameters / 1e6, 3) for m in modules(known)] == [2.359, 4.719]


def test_where_a_module_is_looked_at():
    attn, mlp = expected({"block00": 8})
    assert [attn.looked(at) for at in LOOKED] == [f"block00/attn/{r}" for r in LOOKED.values()]
    assert {mlp.looked(at) for at in LOOKED} == {"block00/mlp/fc2.y"}


@pytest.fixture(scope="module")
def swept(vit):
    """The model's modules, and another: any operands may be one. The patch embedding stays float."""
    parts = {m.name: m.addresses for m in vit.modules} | {"head": ("head.x", "head.w")}
    plan = {a: q for a, q in vit.plan.items() if not a.startswith("patch")}
    return sweep_modules(vit.forward, vit.params, vit.images, parts, plan, vit.states, batch=2)


def kl(reference, got):
    """Mean over images, float64."""
    p, q = (np.exp(log_softmax(x.astype(np.float64), axis=-1)) for x in (reference, got))
    return rel_entr(p, q).sum(axis=-1).mean()


def test_divergences_are_those_of_a_model_with_one_module_quantised(vit, swept):
    assert list(swept) == [*(m.name for m in vit.modules), "head"]
    for m, row in swept.items():
        got = [vit.alone(m, i)["logits"] for i in range(len(WIDTHS))]
        want = [kl(vit.plain["logits"], x) for x in got]
        np.testing.assert_allclose(row, want, rtol=1e-2, atol=1e-7, err_msg=m)
        each = [float(diverge(jnp.asarray(vit.plain["logits"]), jnp.asarray(x)).mean()) for x in got]
        np.testing.assert_allclose(row, each, rtol=2e-3, err_msg=m)
        assert row[0] > 10 * row[2] > 100 * row[-1] > 0
