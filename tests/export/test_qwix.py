"""qwix: rules that make its models multiply as our plan does, weights that go over and come back to the bit."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jvq.core.calibrate import calibrate
from jvq.core.dot import packed_dot, quantized
from jvq.core.freeze import freeze
from jvq.core.packed import Packed, pack_bits
from jvq.core.recipe import resolve, sites
from jvq.export.qwix import from_qwix, python_of, rules, to_qwix
from jvq.export.qwix.trees import leaves
from jvq.integer import prepared
from jvq.models import build
from jvq.models.weights import open_weights
from jvq.quantizers import Dynamic, Grouped, Learned, ShiftedSigns, Signs, StaticGrouped, Steps, Ternary, Uniform

# qwix 0.1.8 asks Flax for a name that Flax has given up
pytestmark = pytest.mark.filterwarnings("ignore:'VariableState' was removed:DeprecationWarning")

DOCS = Path(__file__).parents[2] / "docs" / "qwix.md"
SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 12, "depth": 1, "heads": 2, "classes": 3}


@contextlib.contextmanager
def lenient():
    """qwix's own products mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def same(a, b):
    """Two trees are one, to the bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


# --- A small model, ours and theirs ----------------------------------------------------------------------------------

IN, HIDDEN, OUT = 16, 24, 5


class Mlp(nn.Module):
    """Two layers as anybody writes them."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(HIDDEN, name="fc1")(x))
        return nn.Dense(OUT, name="fc2")(x)


class NnxMlp(nnx.Module):
    """The same in NNX, under other names."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(IN, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, OUT, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](nnx.relu(self.layers[0](x)))


def forward(params, x, dot):
    """Ours of the same, through the seam."""
    x = jnp.asarray(x)
    for name in ("fc1", "fc2"):
        x = x if name == "fc1" else jax.nn.relu(x)
        x = dot(name, "bnd,do->bno", x=x, w=params[name]["kernel"]) + params[name]["bias"][None, None]
    return x


@pytest.fixture(scope="module")
def small():
    """Parameters, images [b n d] and the operands of the small model."""
    rng = np.random.default_rng(3)
    shapes = {"fc1": (IN, HIDDEN), "fc2": (HIDDEN, OUT)}
    params = {
        name: {
            "kernel": jnp.asarray(rng.normal(0.05, 0.3, shape), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=shape[1:]), jnp.float32),
        }
        for name, shape in shapes.items()
    }
    x = np.asarray(rng.normal(0.2, 1, (6, 3, IN)), np.float32)
    return params, x, sites(forward, params, (3, IN))


def planned(recipe, small):
    params, x, known = small
    plan = resolve(recipe, known)
    return plan, calibrate(forward, params, x, plan, known)


def asked(made, params, x, module=None, *more):
    """The outputs of qwix's PTQ model under rules, and its quantised parameters; ``more``: arguments of the model."""
    with lenient():
        model = qwix.quantize_model(module or Mlp(), provider := qwix.PtqProvider(made.rules))
        there = qwix.quantize_params(params, jax.eval_shape(model.init, jax.random.key(0), x)["params"])
        y = jax.jit(lambda p: model.apply({"params": p}, x, *more))(there)
        assert list(provider.get_unused_rules()) == []
    return y, there


EACH = Uniform(8, "o", symmetric=True)
SAID = {
    "W8A8": [("*.w", EACH), ("*.x", Uniform(8, symmetric=True))],
    "affine activations": [("*.w", EACH), ("*.x", Uniform(8))],
    "affine weights": [("*.w", Uniform(8, "o")), ("*.x", Uniform(8, symmetric=True))],
    "affine W4A8": [("*.w", Uniform(4, "o")), ("*.x", Uniform(8, symmetric=True, range="mse"))],
    "W4A8": [("*.w", Uniform(4, "o", symmetric=True)), ("*.x", Uniform(8, range="percentile"))],
    "W3A6": [("*.w", Uniform(3, "o", symmetric=True)), ("*.x", Uniform(6, symmetric=True))],
    "W2A8": [("*.w", Uniform(2, "o", symmetric=True)), ("*.x", Uniform(8))],
    "weights only": [("*.w", Uniform(4, "o"))],
    "at run time": [("*.w", EACH), ("*.x", Dynamic(8, "bn"))],
    "weights at run time": [("*.w", Dynamic(4, "o"))],
    "learned": [("*.w", Learned(5)), ("*.x", Learned(8, signed=False)), ("fc1.x", Learned(7))],
    "one range": [("*.w", Uniform(8, range="mse")), ("fc2.x", Uniform(4, symmetric=True))],
}


@pytest.mark.parametrize("name", SAID)
def test_a_model_of_qwix_multiplies_as_the_plan_does(name, small):
    params, x, known = small
    plan, qstate = planned(SAID[name], small)
    made = rules(plan, known, qstate)
    assert made.unsaid == {}
    y, there = asked(made, params, x)
    ours = jax.jit(lambda: forward(params, x, quantized(plan, qstate)))()
    step = np.abs(np.asarray(ours)).max() * 1e-5
    np.testing.assert_allclose(y, ours, atol=step)
    assert np.abs(np.asarray(forward(params, x, quantized({}, {}))) - ours).max() > 50 * step  # not float as well
    packed, _, _ = freeze(params, plan, qstate, known)
    for site in ("fc1", "fc2"):
        leaf, q = packed[site]["kernel"], there[site]["kernel"].array
        shift = 0 if q.zero_point is None else np.asarray(q.zero_point).astype(int)
        steps = leaf.codes().codes - leaf.zero
        np.testing.assert_array_equal(np.asarray(q.qvalue).astype(int) - shift, steps)
        np.testing.assert_allclose(q.scale, leaf.scale, rtol=3e-7)


def test_the_plain_absmax_of_qwix_is_another_quantiser(small):
    """What the factor in our rules is for: 127.5 steps to the greatest weight rather than 127."""
    w = small[0]["fc1"]["kernel"]
    with lenient():
        scale = {
            how: qwix.quantize(w, "int8", channelwise_axes=(1,), calibration_method=how).scale
            for how in ("absmax", f"absmax,{127.5 / 127!r}")
        }
    top = np.abs(np.asarray(w)).max(axis=0, keepdims=True)
    np.testing.assert_allclose(scale["absmax"], top / 127.5, rtol=3e-7)
    np.testing.assert_allclose(scale[f"absmax,{127.5 / 127!r}"], top / 127, rtol=3e-7)


def test_a_rule_names_a_module_and_no_other(small):
    _, _, known = small
    plan, qstate = planned([("fc1.w", EACH)], small)
    (rule,) = rules(plan, known, qstate).rules
    assert (rule.module_path, rule.act_qtype) == ("fc1", None)
    (rule,) = rules(plan, known, qstate, rename={"fc1": "a.b/0"}).rules
    assert re.fullmatch(rule.module_path, "a.b/0")
    assert not re.fullmatch(rule.module_path, "axb/0")
    with pytest.raises(ValueError, match="the model has no operand 'fc3.w' .did you mean 'fc"):
        rules({"fc3.w": EACH}, known)


def test_the_longest_name_wins(tiny):
    _, _, _, known = tiny
    plan = resolve([("*/mlp/*.w", EACH), ("head.w", EACH)], known)
    made = rules(plan, known, rename={"block00": "b", "block00/mlp/fc1": "up", "block00/mlp": "b/ffn"})
    assert [r.module_path for r in made.rules] == ["up", "b/ffn/fc2", "head"]


@given(st.floats(2.0**-20, 2.0**14, width=32), st.integers(0, 15), st.sampled_from([4, 8]))
@settings(max_examples=40, deadline=None)
def test_a_fixed_range_is_our_scale_and_zero_point(scale, tenth, bits):
    known = sites(forward, jax.eval_shape(shapes), (3, IN))
    plan = resolve([("fc1.x", Uniform(bits)), ("fc1.w", Uniform(bits, "o", symmetric=True))], known)
    levels = 2**bits - 1
    zero = tenth * levels // 15
    state = {"scale": jnp.float32(scale), "zero": jnp.float32(zero), "levels": jnp.float32(levels)}
    (rule,) = rules(plan, known, {"fc1.x": state}).rules
    with lenient():
        q = qwix.quantize(jnp.ones((2, 3)), rule.act_qtype, calibration_method=rule.act_calibration_method)
    point = 0 if q.zero_point is None else np.asarray(q.zero_point).astype(int)
    np.testing.assert_array_equal(point, zero - 2 ** (bits - 1))
    np.testing.assert_array_max_ulp(np.asarray(q.scale).ravel(), np.float32([scale]), 1)


def shapes():
    return {"fc1": {"kernel": jnp.zeros((IN, HIDDEN)), "bias": jnp.zeros(HIDDEN)},
            "fc2": {"kernel": jnp.zeros((HIDDEN, OUT)), "bias": jnp.zeros(OUT)}}  # fmt: skip


# --- What cannot be said ---------------------------------------------------------------------------------------------

FEW = {"groups": 2, "restarts": 1, "iterations": 2}
UNSAID = {  # a rule over SAID["W8A8"] and its reason
    "groups": ("fc1.x", Grouped(4, **FEW), "Grouped: groups are chosen anew for every image"),
    "static groups": ("fc1.x", StaticGrouped(4, groups=2), "a range for each group"),
    "offset": ("fc1.x", Learned(8, offset=True), "a learned offset"),
    "signs": ("fc1.x", Signs(), "one bit"),
    "steps": ("fc1.x", Steps(), "one bit"),
    "shifted": ("fc1.x", ShiftedSigns(), "one bit"),
    "ternary": ("fc1.x", Ternary(), "three values"),
    "channels": ("fc1.x", Uniform(8, "d"), "a static range for each of 'd'"),
    "images": ("fc1.x", Dynamic(8, "b"), "for each of 'b': qwix has one for each of 'bn'"),
    "nonnegative": ("fc1.x", Dynamic(8, "bn", nonnegative=True), "begin at the least"),
    "free": ("fc1.x", Dynamic(8, "bn", zero_point="free"), "zero_point='free'"),
    "wide": ("fc1.x", Uniform(9), "9 bits: types of qwix have 2 to 8"),
    "one bit": ("fc1.x", Uniform(1), "1 bit: types"),
    "affine 3 bits": ("fc1.x", Uniform(3), "a zero point at 3 bits"),
    "dynamic 6 bits": ("fc1.x", Dynamic(6, "bn"), "a zero point at 6 bits"),
    "weight ternary": ("fc1.w", Ternary(keep="o"), "three values"),
    "weight searched": ("fc1.w", Uniform(4, "o", range="mse"), "range='mse'"),
    "weight learned": ("fc1.w", Learned(4, keep="o"), "a learned scale for each of 'o'"),
    "weight rows": ("fc1.w", Uniform(4, "d"), "a range for each of 'd': qwix has one for each of 'o'"),
    "weight affine 3 bits": ("fc1.w", Uniform(3, "o"), "a zero point at 3 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAID)
def test_what_cannot_be_said_is_named_with_its_reason(name, small):
    _, _, known = small
    address, quantizer, reason = UNSAID[name]
    plan, qstate = planned(SAID["W8A8"], small)
    plan = resolve([*plan.items(), (address, quantizer)], known)
    with pytest.raises(ValueError, match=rf"^qwix: [12] of 4 operands cannot be said .*{address}.*: .*{reason}") as e:
        rules(plan, known, qstate)
    assert "\n" not in str(e.value)
    made = rules(plan, known, qstate, partial=True)
    assert reason in made.unsaid[address]
    whole = {r.module_path: r for r in rules(resolve(SAID["W8A8"], known), known, qstate).rules}
    there = {r.module_path: r for r in made.rules}
    assert there["fc2"] == whole["fc2"]
    if address == "fc1.w":  # nothing of the product is left
        assert "fc1" not in there
        assert "float" in made.unsaid["fc1.x"]
    else:
        assert (there["fc1"].act_qtype, there["fc1"].weight_qtype) == (None, "int8")
        assert list(made.unsaid) == ["fc1.x"]


def test_one_zero_point_a_product(small):
    """And qwix refuses two itself."""
    params, x, known = small
    plan, qstate = planned([("*.w", Uniform(8, "o")), ("*.x", Uniform(8))], small)
    with pytest.raises(ValueError, match="fc1.x, fc2.x: the weight has a zero point"):
        rules(plan, known, qstate)
    made = rules(plan, known, qstate, partial=True)
    assert [(r.weight_qtype, r.act_qtype) for r in made.rules] == [("int8", None)] * 2
    both = [qwix.QuantizationRule(weight_qtype="int8", act_qtype="int8", weight_calibration_method="minmax",
                                  act_calibration_method="minmax")]  # fmt: skip
    with pytest.raises(ValueError, match="Only one operand can be asymmetric"):
        asked(made._replace(rules=both), params, x)


CARRIED = {  # weights: what rules say of their width and zero point
    "learned": (Learned(3, keep="o"), "int3", "absmax"),
    "searched": (Uniform(4, "o", range="mse"), "int4", "minmax"),
    "rows": (Uniform(8, "d", symmetric=True), "int8", "absmax"),
    "affine 3 bits": (Uniform(3, "o"), "int3", "absmax"),
    "ternary": (Ternary(keep="o"), "int2", "absmax"),
    "signs": (Signs(scale="mean", keep="o"), "int2", "absmax"),
}


@pytest.mark.parametrize("name", CARRIED)
def test_weights_that_are_carried_over_need_no_words(name, small):
    params, x, known = small
    quantizer, width, method = CARRIED[name]
    plan, qstate = planned([("*.w", quantizer), ("*.x", Uniform(8, symmetric=True))], small)
    made = rules(plan, known, qstate, carried=True)
    assert {(r.weight_qtype, r.weight_calibration_method) for r in made.rules} == {(width, method)}
    packed, _, _ = freeze(params, plan, qstate, known)
    with lenient():
        model = qwix.quantize_model(Mlp(), qwix.PtqProvider(made.rules))
        there = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
        y = jax.jit(model.apply)({"params": to_qwix(packed, like=there)}, x)
    np.testing.assert_allclose(y, forward(params, x, quantized(plan, qstate)), atol=1e-4)


def test_a_carried_zero_point_is_one_too(small):
    plan, qstate = planned([("*.w", Ternary(keep="o")), ("*.x", Uniform(8))], small)
    with pytest.raises(ValueError, match="fc1.x, fc2.x: the weight has a zero point"):
        rules(plan, small[2], qstate, carried=True)
    with pytest.raises(ValueError, match="9 bits"):
        rules(resolve([("fc1.w", Uniform(9))], small[2]), small[2], carried=True)


def test_a_static_range_needs_the_state(small):
    plan, qstate = planned(SAID["W8A8"], small)
    with pytest.raises(ValueError, match="2 of 4 .*fc1.x, fc2.x: its range is in the state: give rules.. the qstate"):
        rules(plan, small[2])
    negative = {"scale": jnp.float32(1), "zero": jnp.float32(-1), "levels": jnp.float32(255)}
    with pytest.raises(ValueError, match="fc1.x: zero point -1, outside the codes"):
        rules(plan, small[2], {**qstate, "fc1.x": negative})


def test_attention_is_named_product_by_product(tiny):
    _, _, _, known = tiny
    plan = resolve([("*/q*.[qk]", Dynamic(8)), ("*/pv.*", Dynamic(8))], known)
    made = rules(plan, known, partial=True)
    assert made.rules == []
    assert list(made.unsaid) == [f"block00/attn/{a}" for a in ("qk.q", "qk.k", "pv.p", "pv.v")]
    assert all("two activations" in why for why in made.unsaid.values())


def test_two_products_in_one_module_share_no_rule():
    def twice(params, x, dot):
        return dot("one", "bd,do->bo", x=x, w=params["m"]["a"]) + dot("two", "bd,do->bo", x=x, w=params["m"]["b"])

    known = sites(twice, {"m": {"a": jnp.zeros((3, 4)), "b": jnp.zeros((3, 4))}}, (3,))
    plan = resolve([("*.w", EACH)], known)
    with pytest.raises(ValueError, match="one.w, two.w: 2 products in the module m"):
        rules(plan, known)


def test_a_name_that_is_none_is_refused(small):
    plan, qstate = planned(SAID["W8A8"], small)
    with pytest.raises(ValueError, match="rename: the model has no module 'fc3' .did you mean 'fc2' or 'fc1'"):
        rules(plan, small[2], qstate, rename={"fc3": "x"})


def test_without_qwix_there_is_one_line(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ValueError, match=r"needs the package qwix: pip install 'jvq\[qwix\]'"):
        rules({}, small[2])


# --- As text ---------------------------------------------------------------------------------------------------------


def ran(text, name="rules"):
    """The list that the text makes, in an empty namespace."""
    space = {}
    exec(text, space)
    return space[name]


@pytest.mark.parametrize("name", SAID)
def test_the_text_makes_the_rules(name, small):
    plan, qstate = planned(SAID[name], small)
    made = rules(plan, small[2], qstate).rules
    text = python_of(made)
    assert ran(text) == made
    assert all(len(line) < 120 for line in text.splitlines())


def test_the_text_of_other_peoples_rules():
    theirs = [
        qwix.QuantizationRule(module_path=r'a\.b/[0-9]+"x"', weight_qtype=jnp.int4, tile_size=1 / 8, op_names=("dot",)),
        qwix.QuantizationRule(weight_qtype="nf4", act_qtype=jnp.float8_e4m3fn, act_static_scale=True),
        qwix.QuantizationRule(weight_qtype=jnp.dtype("int8")),
    ]
    assert ran(python_of(theirs, "mine"), "mine") == theirs
    assert "jnp" not in python_of(theirs[:0])
    assert ran(python_of([])) == []
    with pytest.raises(ValueError, match="op_names=<object .* cannot be written"):
        python_of([qwix.QuantizationRule(op_names=object())])


# --- Weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """A tiny ViT with drawn parameters, images, and its operands."""
    model, rng = build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    images = rng.normal(size=(3, *model.image)).astype(np.float32)
    return model, params, images, sites(model.forward, params, model.image)


def drawn(bits, scale, zero=None, shape=(6, 3, 4), seed=0):
    """A Packed leaf of drawn codes, its scale drawn of a shape."""
    rng = np.random.default_rng(seed)
    codes = jnp.asarray(rng.integers(0, 2**bits, shape), jnp.int32)
    factor = jnp.asarray(rng.uniform(0.01, 1, scale), jnp.float32)
    return Packed(pack_bits(codes, bits), factor, None if zero is None else jnp.full(scale, zero, jnp.int32), shape)


HELD = [(2, 4, "int2"), (3, 4, "int3"), (4, 4, "int4"), (5, 8, "int5"), (6, 8, "int6"), (7, 8, "int7"), (8, 8, "int8")]


@pytest.mark.parametrize(("bits", "held", "name"), HELD)
@pytest.mark.parametrize("zero", ["middle", 0, 1, "top"])
def test_a_packed_weight_goes_over_and_comes_back(bits, held, name, zero):
    zero = {"middle": 2 ** (bits - 1), "top": 2**bits - 1}.get(zero, zero)
    leaf = drawn(bits, (1, 3, 1), zero)
    there = to_qwix({"a": {"kernel": leaf}})
    q = there["a"]["kernel"]
    assert (q.qvalue.dtype, jnp.dtype(q.qtype).name if held == bits else q.qtype) == (f"int{held}", name)
    assert (q.zero_point is None) == (zero == 2 ** (bits - 1))
    same(qwix.dequantize(q), leaf.unpack())
    back = from_qwix(there, {"a": {"kernel": jax.ShapeDtypeStruct(leaf.shape, "float32")}})
    same(back, {"a": {"kernel": leaf}})


def test_signs_go_over_as_two_bits_and_come_back_as_signs():
    leaf = drawn(1, (1, 1, 4))
    there = to_qwix({"w": leaf})
    assert (there["w"].qvalue.dtype, there["w"].qtype, there["w"].zero_point) == ("int4", "int2", None)
    same(qwix.dequantize(there["w"]), leaf.unpack())
    same(from_qwix(there, {"w": leaf}), {"w": leaf})
    plain = from_qwix(there, {"w": jnp.zeros(leaf.shape)})["w"]
    assert plain.bits == 2
    same(plain.unpack(), leaf.unpack())
    other = qwix.quantize(jnp.asarray(np.arange(72.0).reshape(leaf.shape), jnp.float32), "int2")
    with pytest.raises(ValueError, match="qwix: w: codes other than -1 and 1.*the model has signs there"):
        from_qwix({"w": other}, {"w": leaf})


def test_a_zero_point_beyond_four_bits_makes_a_byte():
    leaf = drawn(3, (1, 3, 1), -9)
    q = to_qwix({"w": leaf})["w"]
    assert (q.qvalue.dtype, q.qtype) == ("int8", "int3")
    same(qwix.dequantize(q), leaf.unpack())
    same(from_qwix({"w": q}, {"w": leaf}), {"w": leaf})
    with pytest.raises(ValueError, match="qwix: a/w: signed zero points from -404 to -404"):
        to_qwix({"a": {"w": drawn(3, (1, 3, 1), -400)}})
    with pytest.raises(ValueError, match="qwix: w: 9 bits, a QArray has at most 8"):
        to_qwix({"w": drawn(9, (1, 3, 1), 0)})


def test_a_scale_of_lower_rank_gets_axes_in_front():
    leaf = drawn(4, (4,), 7)
    q = to_qwix({"w": leaf})["w"]
    assert (q.scale.shape, q.zero_point.shape) == ((1, 1, 4), (1, 1, 4))
    with lenient():
        same(qwix.dequantize(q), leaf.unpack())


THEIRS = {  # arguments of qwix.quantize for an array of shape (12, 4, 6)
    "int8": ("int8", {"channelwise_axes": (2,)}),
    "int4 tensor": ("int4", {}),
    "int2": (jnp.int2, {"channelwise_axes": (1, 2)}),
    "int3": ("int3", {"channelwise_axes": (2,)}),
    "int6": ("int6", {"channelwise_axes": (2,)}),
    "affine int8": ("int8", {"channelwise_axes": (1, 2), "calibration_method": "minmax"}),
    "affine int4": (jnp.int4, {"channelwise_axes": (2,), "calibration_method": "minmax,0.9"}),
    "tiles": ("int4", {"channelwise_axes": (2,), "tiled_axes": {0: 4}}),
    "affine tiles": ("int8", {"tiled_axes": {0: 3, 2: 1 / 2}, "calibration_method": "minmax"}),
    "fixed": ("int8", {"calibration_method": "fixed,-0.5,0.75"}),
    "bfloat16": ("int8", {"channelwise_axes": (2,), "scale_dtype": jnp.bfloat16}),
    "float16": ("int8", {"calibration_method": "minmax", "scale_dtype": jnp.float16}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_qarray_is_the_same_numbers_here(name, rng):
    qtype, how = THEIRS[name]
    with lenient():
        q = qwix.quantize(jnp.asarray(rng.normal(0.1, 1, (12, 4, 6)), jnp.float32), qtype, **how)
        want = qwix.dequantize(q)
    leaf = from_qwix({"w": q}, {"w": jax.ShapeDtypeStruct(q.shape, "float32")})["w"]
    assert leaf.bits == int(jnp.dtype(q.qvalue.dtype).name[3:] if not isinstance(qtype, str) else qtype[3:])
    assert all(n in (1, m) for n, m in zip(leaf.scale.shape, leaf.shape, strict=True))
    same(leaf.unpack().astype(want.dtype), want)  # a product in bfloat16 is rounded once, ours not
    again = to_qwix({"w": leaf})["w"]
    same(qwix.dequantize(again).astype(want.dtype), want)
    np.testing.assert_array_equal(np.asarray(again.qvalue).astype(int), np.asarray(q.qvalue).astype(int))


def test_codes_that_are_no_integers_are_refused(rng):
    x = jnp.asarray(rng.normal(size=(32, 4)), jnp.float32)
    for qtype, why in (("nf4", "codes of type nf4"), (jnp.float8_e4m3fn, "codes of type float8_e4m3fn")):
        with lenient():
            q = qwix.quantize(x, qtype)
        with pytest.raises(ValueError, match=f"^qwix: a/w: {why}"):
            from_qwix({"a": {"w": q}}, {"a": {"w": x}})
    q = qwix.quantize(x, "int8")
    for bad, why in (
        (q.replace(qtype="int3"), "codes from -1.* to 1.*, int3 has -4 to 3"),
        (q.replace(scale=jnp.ones((5, 4))), r"a scale of shape \(5, 4\) does not divide the codes' \(32, 4\)"),
        (q.replace(zero_point=jnp.ones((1,), jnp.int8)), r"a zero point of shape \(1,\)"),
        (q.replace(scale=jnp.ones((1, 1), jnp.int32)), "a scale of int32"),
        (q.replace(qvalue=q.qvalue.astype(jnp.int32), qtype="int8"), "codes held as int32"),
    ):
        with pytest.raises(ValueError, match=f"^qwix: a/w: {why}"):
            from_qwix({"a": {"w": bad}}, {"a": {"w": x}})
    with pytest.raises(ValueError, match="^qwix: w: codes from .*; the model has 3 bits there"):
        from_qwix({"w": q}, {"w": drawn(3, (1, 4), 4, (32, 4))})


def test_a_tree_that_does_not_fit_is_one_line(tiny):
    _, params, _, _ = tiny
    with pytest.raises(ValueError, match=r"-block00/mlp/fc1/kernel .did you mean 'block00/mlp/fcl/kernel'") as e:
        from_qwix(to_qwix(params, rename={"block00/mlp/fc1": "block00/mlp/fcl"}), params)
    assert "+block00/mlp/fcl/bias (did you mean 'block00/mlp/fc1/bias'" in str(e.value)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"~head/kernel is \(12, 4\), the model has \(12, 3\)"):
        from_qwix({**params, "head": {**params["head"], "kernel": jnp.zeros((12, 4))}}, params)
    with pytest.raises(ValueError, match=r"\+norm/einsum0_lhs_scale"):  # of static activations: it is a state, here
        from_qwix({**params, "norm": {**params["norm"], "einsum0_lhs_scale": jnp.ones(1)}}, params)
    with pytest.raises(ValueError, match=r"rename: 2 of our parameters would be 'head/bias'"):
        to_qwix(params, rename={"patch": "head"})
    with pytest.raises(ValueError, match="rename: the model has no module 'block0'"):
        to_qwix(params, rename={"block0": "x"})


def test_rows_and_strangers_are_refused(tiny, small):
    model, params, images, known = tiny
    plan = resolve([("head.w", EACH)], known)
    packed, _, _ = freeze(params, plan, calibrate(model.forward, params, images, plan, known), known)
    with pytest.raises(ValueError, match="head/kernel: Rows are for our kernels; convert what freeze gives"):
        to_qwix(prepared(packed, known))
    _, there = asked(rules(*with_known(SAID["weights only"], small)), *small[:2])
    ours = {"fc1": small[0]["fc1"], "fc2": small[0]["fc2"]}
    with pytest.raises(ValueError, match="fc1/kernel is float, the model of like has a quantised one there"):
        to_qwix(ours, like=there)
    with pytest.raises(ValueError, match="the model of like has no parameter 'a/bias' .did you mean"):
        to_qwix(ours, like=there, rename={"fc1": "a"})
    with pytest.raises(ValueError, match=r"fc1/kernel is \(2, 3\), the model of like has \(16, 24\)"):
        to_qwix({"fc1": {"kernel": jnp.zeros((2, 3))}}, like=there)


def with_known(recipe, small):
    plan, qstate = planned(recipe, small)
    return plan, small[2], qstate


# --- Whole models ----------------------------------------------------------------------------------------------------


def test_what_qwix_quantised_runs_here(small):
    """Its own parameters, WithAux and all, then ours in their place."""
    params, x, known = small
    plan, _, qstate = with_known(SAID["affine W4A8"], small)
    y, there = asked(made := rules(plan, known, qstate), params, x)
    packed = from_qwix(there, params)
    assert packed["fc1"]["kernel"].bits == 4
    rest = {a: q for a, q in plan.items() if known[a].path is None}
    ours = forward(packed, x, packed_dot(quantized(rest, qstate)))
    np.testing.assert_allclose(ours, y, atol=1e-5)
    again = to_qwix(packed, like=there)
    with lenient():
        model = qwix.quantize_model(Mlp(), qwix.PtqProvider(made.rules))
        same(jax.jit(lambda p: model.apply({"params": p}, x))(again), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of qwix's use of NNX
def test_an_nnx_model_under_other_names(small):
    params, x, known = small
    plan, _, qstate = with_known(SAID["affine activations"], small)
    names = {"fc1": "layers/0", "fc2": "layers/1"}
    model = NnxMlp(nnx.Rngs(0))
    for i, site in enumerate(("fc1", "fc2")):
        model.layers[i].kernel = nnx.Param(params[site]["kernel"])
        model.layers[i].bias = nnx.Param(params[site]["bias"])
    with lenient():
        there = qwix.quantize_model(model, qwix.PtqProvider(rules(plan, known, qstate, rename=names).rules), x)
        y = there(x)
    np.testing.assert_allclose(y, forward(params, x, quantized(plan, qstate)), atol=1e-4)
    state = nnx.state(there)
    assert not any(isinstance(x, nnx.Variable) for x in leaves(state).values())
    packed = from_qwix(state, params, rename=names)
    for name, leaf in (("fc1", there.layers[0].kernel), ("fc2", there.layers[1].kernel)):
        same(packed[name]["kernel"].unpack(), qwix.dequantize(leaf.array))
    same(from_qwix(nnx.to_pure_dict(state), params, rename=names), packed)


def test_boxed_parameters_are_opened(small):
    _, x, _ = small
    names = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))

    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(OUT, kernel_init=names, name="fc")(x)

    with lenient():
        model = qwix.quantize_model(Boxed(), qwix.PtqProvider([qwix.QuantizationRule(weight_qtype="int4")]))
        there = model.init(jax.random.key(0), x)["params"]
        want = qwix.dequantize(nn.unbox(there)["fc"]["kernel"].array)
    like = {"fc": {"kernel": jnp.zeros((IN, OUT)), "bias": jnp.zeros(OUT)}}
    same(from_qwix(there, like)["fc"]["kernel"].unpack(), want)


@pytest.mark.once
def test_qwix_runs_our_model(tiny):
    """Our products are einsums inside the module that owns the weight: qwix finds them, attention's stay float."""
    model, params, images, known = tiny
    recipe = [("*.w", EACH), ("*/qkv.w", Uniform(8, "she", symmetric=True)), ("*.x", Uniform(8))]
    plan = resolve(recipe, known)
    qstate = calibrate(model.forward, params, images, plan, known)
    y, there = asked(rules(plan, known, qstate), params, jnp.asarray(images), model.module, einsum)
    ours = model.forward(params, images, quantized(plan, qstate))
    np.testing.assert_allclose(y, ours, atol=1e-5)
    assert np.abs(np.asarray(model.forward(params, images)) - ours).max() > 1e-3
    packed, _, _ = freeze(params, plan, qstate, known)
    for a, b in zip(*(jax.tree.leaves(t, is_leaf=is_packed) for t in (from_qwix(there, params), packed)), strict=True):
        if is_packed(a):  # its scales are a division's, ours a product's
            same((a.planes, a.zero), (b.planes, b.zero))
            np.testing.assert_array_max_ulp(np.asarray(a.scale), np.asarray(b.scale), 2)


def einsum(site, equation, /, **operands):
    """``float_dot``, whose annotations, checked in tests, want arrays where qwix hands over its own."""
    return jnp.einsum(equation, *operands.values())


def is_packed(x):
    return isinstance(x, Packed)


@pytest.mark.once
def test_the_embedded_vit_there_and_back():
    checkpoint = open_weights("fashion_vit")
    model, params = checkpoint.model, checkpoint.params
    known = sites(model.forward, params, model.image)
    images = np.random.default_rng(0).normal(size=(4, *model.image)).astype(np.float32)
    run = jax.jit(lambda p: model.forward(p, images, packed_dot()))
    for bits in (8, 4):
        plan = resolve([("*.w", Uniform(bits, "o")), ("*/qkv.w", Uniform(bits, "she"))], known)
        qstate = calibrate(model.forward, params, images, plan, known)
        packed, _, _ = freeze(params, plan, qstate, known)
        there = to_qwix(packed)
        assert sum(isinstance(x, qwix.QArray) for x in jax.tree.leaves(there, is_leaf=is_qarray)) == len(plan)
        back = from_qwix(there, model.shapes())
        same(back, packed)
        same(run(back), run(packed))


def is_qarray(x):
    return isinstance(x, qwix.QArray)


@pytest.mark.once
def test_the_documentation_runs():
    """As its reader runs it: without the checks and the strictness of tests."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 5
    more = """
for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(packed), strict=True):
    assert a.dtype == b.dtype and (a == b).all()
assert isinstance(moved, qwix.QArray)
print("RULES", made.rules)
"""
    lines = subprocess.run([sys.executable, "-c", "\n".join([*blocks, more])], capture_output=True, text=True)
    assert lines.returncode == 0, lines.stderr
    said, _, listed = lines.stdout.partition("RULES ")
    made = eval(listed, {"QuantizationRule": qwix.QuantizationRule})
    assert ran(said[: said.index("]\n") + 2]) == made
    assert "block00/attn/qk.q, block00/attn/qk.k: a product of two activations" in said
    assert "'encoder/layers/0/ffn/up'" in said
