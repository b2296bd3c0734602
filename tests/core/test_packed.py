"""Packed weights: the layout, its size, and that a packed leaf is an ordinary leaf of the parameter tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvq.core.calibrate import calibrate
from jvq.core.dot import float_dot, packed_dot, quantized
from jvq.core.freeze import freeze
from jvq.core.packed import Packed, pack_bits, unpack_bits
from jvq.core.quantizer import Codes
from jvq.core.recipe import resolve
from jvq.quantizers import Grouped, Signs, Steps, Ternary, Uniform

SHAPES = [(8,), (1,), (13,), (16, 3), (7, 5), (9, 2, 3, 2)]


def planes_by_hand(codes: np.ndarray, bits: int) -> np.ndarray:
    """Byte j of plane i holds bit i of codes 8j..8j+7, lowest bit first: written with loops, from the docstring."""
    k = codes.shape[0]
    planes = np.zeros((bits, -(-k // 8), *codes.shape[1:]), np.uint8)
    for i in range(bits):
        for j in range(k):
            planes[i, j // 8] |= (((codes[j] >> i) & 1) << (j % 8)).astype(np.uint8)
    return planes


pack = jax.jit(pack_bits, static_argnums=1)
unpack = jax.jit(unpack_bits, static_argnums=1)


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_width_survives_the_round_trip(bits, rng):
    codes = rng.integers(0, 2**bits, 13).astype(np.int32)
    codes[0], codes[-1] = 0, 2**bits - 1
    planes = pack(codes, bits)
    assert planes.dtype == jnp.uint8
    np.testing.assert_array_equal(planes, planes_by_hand(codes, bits))
    np.testing.assert_array_equal(unpack(planes, 13), codes)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_length_and_rank_survives_the_round_trip(shape, rng):
    codes = rng.integers(0, 16, shape).astype(np.int32)
    planes = pack(codes, 4)
    assert planes.shape == (4, -(-shape[0] // 8), *shape[1:])
    np.testing.assert_array_equal(planes, planes_by_hand(codes, 4))
    np.testing.assert_array_equal(unpack(planes, shape[0]), codes)


@settings(max_examples=30, deadline=None)
@given(bits=st.sampled_from([1, 7, 16]), data=st.data())
def test_round_trip_of_any_codes(bits, data):
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=13, max_size=13))
    assert unpack(pack(np.array(values, np.int32), bits), 13).tolist() == values


def packed(rng, bits=4, shape=(9, 6)):
    codes = rng.integers(0, 2**bits, shape).astype(np.int32)
    scale = rng.uniform(0.1, 1, (1, shape[1])).astype(np.float32)
    zero = rng.integers(0, 2**bits, (1, shape[1])).astype(np.int32)
    leaf = Packed.of(Codes(jnp.asarray(codes), jnp.asarray(scale), jnp.asarray(zero)), bits)
    return leaf, scale * (codes - zero).astype(np.float32)


def test_unpack_is_scale_times_codes_minus_zero(rng):
    leaf, value = packed(rng)
    assert leaf.shape == (9, 6)
    assert leaf.bits == 4
    np.testing.assert_array_equal(leaf.unpack(), value)


@pytest.mark.parametrize(("bits", "rows"), [(1, 8), (4, 9), (6, 16), (16, 17)])
def test_bytes_are_bits_per_code_plus_scales_and_zeros(bits, rows, rng):
    leaf, _ = packed(rng, bits, (rows, 6))
    assert leaf.nbytes == bits * -(-rows // 8) * 6 + 4 * 6 + 4 * 6


def test_packed_is_a_pytree_through_jit_and_abstract_evaluation(rng):
    leaf, value = packed(rng)
    tree = {"fc": {"kernel": leaf, "bias": jnp.zeros(6)}}
    back, unpacked = jax.jit(lambda t: (t["fc"]["kernel"], t["fc"]["kernel"].unpack()))(tree)
    np.testing.assert_array_equal(unpacked, value)
    assert isinstance(back, Packed)
    assert back.shape == leaf.shape
    assert len(jax.tree.leaves(tree)) == 4
    abstract = jax.eval_shape(lambda t: t, tree)["fc"]["kernel"]
    assert isinstance(abstract, Packed)
    assert jax.eval_shape(Packed.unpack, abstract).shape == leaf.shape
    np.testing.assert_array_equal(jax.device_get(leaf).planes, leaf.planes)
    assert jax.tree.map(lambda x: x.shape, leaf).planes == (4, 2, 6)


def test_signs_without_a_zero_point_are_one_plane_and_a_scale(rng):
    codes = rng.integers(0, 2, (13, 6)).astype(np.int32)
    scale = rng.uniform(0.1, 1, (1, 6)).astype(np.float32)
    leaf = Packed.of(Codes(jnp.asarray(codes), jnp.asarray(scale), None), 1)
    np.testing.assert_array_equal(leaf.planes, planes_by_hand(codes, 1))
    assert leaf.nbytes == 2 * 6 + 4 * 6
    assert [a.shape for a in jax.tree.leaves(leaf)] == [(1, 2, 6), (1, 6)]
    value = np.where(codes == 1, scale, -scale)
    np.testing.assert_array_equal(leaf.unpack(), value)
    back, unpacked = jax.jit(lambda t: (t, t.unpack()))(leaf)
    assert back.zero is None
    np.testing.assert_array_equal(unpacked, value)
    assert jax.eval_shape(Packed.unpack, leaf).shape == jax.eval_shape(lambda t: t, leaf).shape == (13, 6)
    np.testing.assert_array_equal(jax.device_get(leaf).planes, leaf.planes)


def test_signs_may_have_an_offset_as_long_as_they_are_not_packed():
    codes = Codes(jnp.asarray([0, 1, 1]), jnp.float32(0.5), None, jnp.float32(2.0))
    assert codes.decode().tolist() == [1.5, 2.5, 2.5]
    with pytest.raises(ValueError, match="a weight with an offset cannot be packed"):
        Packed.of(codes, 1)


def test_signs_of_more_than_one_bit_are_refused():
    with pytest.raises(ValueError, match="codes without a zero point are signs, which have 1 bit, got 2"):
        Packed.of(Codes(jnp.asarray([0, 1]), jnp.float32(1), None), 2)


@pytest.fixture(scope="module")
def frozen(tiny):
    """The tiny model with weights per output channel at 4 bits, activations at 6, before and after freezing."""
    recipe = [
        ("*.x", Uniform(bits=6)),
        ("head.w", Uniform(bits=4, keep="o")),
        ("attn/qkv.w", Uniform(bits=3, keep="sh")),
    ]
    recipe += [("stem.w", Grouped(bits=2, groups=3, along="o", mstep="cover", start="quantile"))]
    plan = resolve(recipe, tiny.known)
    qstate = calibrate(tiny.forward, tiny.params, tiny.images, plan, tiny.known)
    return plan, qstate, freeze(tiny.params, plan, qstate, tiny.known)


def test_a_frozen_model_computes_what_fake_quantisation_computes(tiny, frozen):
    plan, qstate, (params, rest, left) = frozen
    want = jax.jit(lambda p, q, x: tiny.forward(p, x, quantized(plan, q)))(tiny.params, qstate, tiny.images)
    run = jax.jit(lambda p, q, x: tiny.forward(p, x, quantized(rest, q, packed_dot())))
    np.testing.assert_allclose(run(params, left, tiny.images), want, atol=1e-5)
    exact = tiny.outputs(tiny.params, tiny.images, float_dot)
    assert np.abs(want - exact).max() > 0.1  # the plan did something


def test_freezing_leaves_the_activations_to_the_plan(tiny, frozen):
    plan, qstate, (_, rest, left) = frozen
    assert list(rest) == [a for a in plan if a.endswith(".x")] == list(left)
    assert all(left[a] is qstate[a] for a in rest)


def test_freezing_replaces_exactly_the_planned_weights(tiny, frozen):
    plan, qstate, (params, _, _) = frozen
    leaves = {
        "stem.w": params["stem"]["kernel"],
        "attn/qkv.w": params["attn"]["qkv"]["kernel"],
        "head.w": params["head"]["kernel"],
    }
    for address, leaf in leaves.items():
        assert isinstance(leaf, Packed)
        assert leaf.shape == tiny.known[address].shape
        assert leaf.bits == plan[address].bits
    assert isinstance(tiny.params["stem"]["kernel"], jax.Array)  # the float tree is as it was
    half = {a: q for a, q in plan.items() if a != "head.w"}
    params, _, _ = freeze(tiny.params, half, qstate, tiny.known)
    assert params["head"]["kernel"] is tiny.params["head"]["kernel"]


def test_a_packed_weight_is_within_half_a_step_of_the_float_one(tiny, frozen):
    _, _, (params, _, _) = frozen
    leaf, kernel = params["head"]["kernel"], np.asarray(tiny.params["head"]["kernel"])
    step = np.maximum(kernel.max(axis=0), 0) - np.minimum(kernel.min(axis=0), 0)
    inside = step[None] / 15 * 0.5001
    assert (np.abs(np.asarray(leaf.unpack()) - kernel) <= 2 * inside).all()  # the ends move by up to half a step
    assert (np.abs(np.asarray(leaf.unpack()) - kernel) <= inside).mean() > 0.7


BINARY = [  # attn/qkv.x stays float: sums of signs are often 0, whose sign would hang on a last bit
    ("stem.x", Signs()),
    ("head.x", Signs()),
    ("attn/qk.*", Signs(scale="learned", keep="h")),
    ("attn/pv.v", Signs(scale="learned", keep="h")),
    ("attn/pv.p", Steps(keep="h")),
    ("*.w", Signs(scale="mean", keep="o")),
    ("attn/qkv.w", Signs(scale="mean", keep="she")),
    ("head.w", Ternary(keep="o")),
]


@pytest.mark.parametrize("sequential", [False, True])
def test_a_binary_model_computes_packed_what_it_computes_fake(tiny, sequential):
    """Quantisers without a state too are calibrated, frozen and run."""
    plan = resolve(BINARY, tiny.known)
    qstate = calibrate(tiny.forward, tiny.params, tiny.images, plan, tiny.known, sequential=sequential)
    assert {a: set(s) for a, s in qstate.items()} == {
        a: {"scale"} if a.startswith(("attn/qk.", "attn/pv.")) else set() for a in plan
    }
    params, rest, left = freeze(tiny.params, plan, qstate, tiny.known)
    got = jax.jit(lambda p, q, x: tiny.forward(p, x, quantized(rest, q, packed_dot())))(params, left, tiny.images)
    fake = jax.jit(lambda p, q, x: tiny.forward(p, x, quantized(plan, q)))
    np.testing.assert_allclose(got, fake(tiny.params, qstate, tiny.images), atol=1e-5)
    kernels = params["stem"]["kernel"], params["attn"]["qkv"]["kernel"], params["head"]["kernel"]
    assert [leaf.nbytes for leaf in kernels] == [8 + 8 * 4, 24 + 24 * 4, 2 * 5 + 5 * 4 + 5 * 4]
    assert [leaf.zero is None for leaf in kernels] == [True, True, False]
    for leaf, address in zip(kernels, ("stem.w", "attn/qkv.w", "head.w"), strict=True):
        letters = tiny.known[address].letters
        want = plan[address].apply(qstate[address], _at(tiny.params, tiny.known[address].path), letters)
        np.testing.assert_allclose(leaf.unpack(), want, rtol=1e-6)


def _at(params, path):
    for key in path:
        params = params[key]
    return params
