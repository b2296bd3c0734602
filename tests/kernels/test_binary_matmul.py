"""Binary products against float64 (Bi-ViT's specification, section 8): every implementation, exactly.

Here are those that run anywhere; ``test_kernels`` compares the others with them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvq.core.packed import Packed, pack_bits
from jvq.kernels.binary_matmul import (
    CASES,
    IMPLEMENTATIONS,
    KINDS,
    binary_linear,
    binary_matmul,
    binary_scores,
    binary_values,
    kernel_words,
    matmul,
    pack_words,
    plane_words,
    sign_words,
    unpack_words,
    xla,
)

LENGTHS = (1, 31, 32, 33, 49, 64, 192, 197, 198, 768, 3072)  # K1
every = pytest.mark.parametrize("impl", ["ref", "xla"])


def words_by_hand(codes):
    """Bit i of word j is code 32j + i: loops, from the docstring."""
    rows, k = codes.shape
    words = np.zeros((rows, -(-k // 32)), np.uint32)
    for r in range(rows):
        for i in range(k):
            words[r, i // 32] += np.uint32(int(codes[r, i]) << (i % 32))
    return words


def product(x, w, kind):
    """The product of codes in float64: codes of w are signs, and so are those of x but for "and"."""
    left = x if kind == "and" else 2.0 * x - 1
    return left.astype(np.float64) @ np.swapaxes(2.0 * w - 1, -1, -2)


def attempt(impl, run, *args, **options):
    """What ``run`` gives with the implementation."""
    return np.asarray(run(*args, **options, impl=impl))


def draw(rng, *shape):
    return rng.integers(0, 2, shape).astype(np.int32)


def words(codes):
    """Words of codes [.. k], by NumPy, so that nothing is compiled for it; they are those of ``pack_words``, below."""
    packed = np.packbits(codes.astype(np.uint8), axis=-1, bitorder="little")
    filled = np.pad(packed, [*[(0, 0)] * (codes.ndim - 1), (0, -packed.shape[-1] % 4)])
    return jnp.asarray(filled.view("<u4"))


# Words

pack = jax.jit(pack_words)


@pytest.mark.parametrize("k", [1, 31, 32, 33, 70])
def test_words_hold_the_lowest_bit_first_and_end_in_zeros(k, rng):
    codes = draw(rng, 3, k)
    want = words_by_hand(codes)
    np.testing.assert_array_equal(words(codes), want)
    for dtype in (bool, np.int32, np.uint8):
        packed = pack(jnp.asarray(codes, dtype))
        assert packed.dtype == jnp.uint32
        np.testing.assert_array_equal(packed, want)
    np.testing.assert_array_equal(unpack_words(jnp.asarray(want), k), codes)
    full = np.asarray(pack(jnp.ones((3, k), bool)))
    assert sum(int(w).bit_count() for w in full[0]) == k


def test_the_sign_of_zero_is_plus():
    x = jnp.asarray([[-0.5, 0.0, 1e-20, -1e-20, -0.0]], jnp.float32)
    assert np.asarray(sign_words(x)).tolist() == [[0b10110]]
    assert np.asarray(sign_words(jnp.asarray([[-1, 0, 1]], jnp.int8))).tolist() == [[0b110]]


@pytest.mark.parametrize("k", [1, 8, 9, 31, 32, 33, 49])
def test_a_plane_of_a_packed_kernel_becomes_the_words_of_its_columns(k, rng):
    codes = draw(rng, k, 5)
    plane = pack_bits(jnp.asarray(codes), 1)[0]
    np.testing.assert_array_equal(plane_words(plane, k), words_by_hand(codes.T))
    dirty = np.array(plane)
    dirty[-1] |= np.uint8(0xFF << (k - 8 * (len(dirty) - 1)) & 0xFF)
    assert k % 8 == 0 or (dirty != np.asarray(plane)).any()
    np.testing.assert_array_equal(plane_words(jnp.asarray(dirty), k), words_by_hand(codes.T))


def test_no_code_is_unpacked_on_the_way_to_words():
    plane = jax.ShapeDtypeStruct((96, 10), np.uint8)
    jaxpr = jax.make_jaxpr(lambda p: plane_words(p, 768))(plane)
    largest = max(math.prod(v.aval.shape) * v.aval.dtype.itemsize for e in jaxpr.eqns for v in e.outvars)
    assert largest <= 4 * 96 * 10  # a word a byte


# K1 and K2


@every
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", LENGTHS)
def test_products_are_exact(impl, kind, k, rng):
    x, w = draw(rng, 4, k), draw(rng, 6, k)
    x[0], w[0], w[1] = 1, 1, 0  # the ends of the range
    y = attempt(impl, binary_matmul, words(x), words(w), k, kind)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, product(x, w, kind))
    assert y[0, :2].tolist() == [k, -k]
    assert np.abs(y).max() <= k
    count = k if kind == "xnor" else x.sum(axis=1, keepdims=True)
    assert ((y - count) % 2 == 0).all()


@every
@settings(max_examples=12, deadline=None)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    k=st.integers(1, 130),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
    odds=st.sampled_from([0.02, 0.5, 0.98]),
)
def test_ragged_shapes_are_exact(impl, m, n, k, kind, seed, odds):
    rng = np.random.default_rng(seed)
    x, w = ((rng.random((r, k)) < odds).astype(np.int32) for r in (m, n))
    y = attempt(impl, binary_matmul, words(x), words(w), k, kind)
    np.testing.assert_array_equal(y, product(x, w, kind))


@every
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("x_lead", "w_lead"), [((2, 3), (2, 3)), ((2, 3), ()), ((2, 3), (1, 1)), ((2, 1), (3,)), ((), (2,)), ((0,), (0,))]
)
def test_leading_axes_broadcast(impl, kind, x_lead, w_lead, rng):
    x, w = draw(rng, *x_lead, 4, 33), draw(rng, *w_lead, 6, 33)
    y = attempt(impl, binary_matmul, words(x), words(w), 33, kind)
    np.testing.assert_array_equal(y, product(x, w, kind))


@every
@pytest.mark.parametrize("k", [49, 1100])
def test_compiled_interpreted_and_mapped_are_the_same(impl, k, rng):
    x, w = draw(rng, 2, 4, k), draw(rng, 2, 6, k)
    want = product(x, w, "and")
    run = jax.jit(binary_matmul, static_argnames=("k", "kind", "impl"))
    np.testing.assert_array_equal(attempt(impl, run, words(x), words(w), k=k, kind="and"), want)

    def mapped(impl):
        return jax.vmap(lambda a, b: binary_matmul(a, b, k, "and", impl))(words(x), words(w))

    np.testing.assert_array_equal(attempt(impl, mapped), want)
    with jax.disable_jit():
        y = attempt(impl, binary_matmul, words(x), words(w), k, "and")
    np.testing.assert_array_equal(y, want)


def test_many_words_are_a_loop():
    """Compiling takes as long for any k from some on."""

    def counts(k):
        x = jax.ShapeDtypeStruct((1, 4, -(-k // 32)), np.uint32)
        return str(jax.make_jaxpr(lambda a: xla.matmul(a, a, k, "xnor"))(x)).count("population_count")

    assert counts(3072) <= 16
    assert counts(32 * 5) == 5
    assert counts(32 * xla.UNROLL) == xla.UNROLL
    assert counts(32 * xla.UNROLL + 1) == xla.UNROLL // 2 + 1
    assert counts(10**6) <= 16


# K3


def signs(rng, d, *out):
    """A kernel of scaled signs, packed, and as float64: mean |W| of an output channel times sgn(W)."""
    w = rng.normal(0, 0.05, (d, *out)).astype(np.float32)
    scale = np.abs(w).mean(axis=0, keepdims=True)
    planes = pack_bits(jnp.asarray(w >= 0, jnp.int32), 1)
    return Packed(planes, jnp.asarray(scale), None, w.shape), scale.astype(np.float64) * np.where(w >= 0, 1, -1)


@every
@pytest.mark.parametrize(("d", "out"), [(192, (5,)), (33, (3, 2, 4)), (70, ())])
def test_a_linear_layer_is_the_float_layer(impl, d, out, rng):
    kernel, w = signs(rng, d, *out)
    x = rng.normal(size=(2, 7, d)).astype(np.float32)
    x[0, 0, :3] = 0
    y = attempt(impl, binary_linear, jnp.asarray(x), kernel)
    assert y.dtype == np.float32
    assert y.shape == (2, 7, *out)
    np.testing.assert_allclose(y, np.tensordot(np.where(x >= 0, 1.0, -1.0), w, 1), rtol=0, atol=1e-6)
    assert np.abs(y).max() > 0.1


def test_a_linear_layer_is_scale_times_integer_to_the_last_bit_under_jit(rng):
    kernel, w = signs(rng, 49, 6)
    x = rng.normal(size=(3, 49)).astype(np.float32)
    y = jax.jit(binary_linear)(jnp.asarray(x), kernel)
    integers = np.where(x >= 0, 1, -1) @ np.sign(w).astype(np.int64)
    np.testing.assert_array_equal(y, np.asarray(kernel.scale) * integers.astype(np.float32))
    np.testing.assert_array_equal(jax.jit(kernel_words)(kernel), words_by_hand((w > 0).T))
    np.testing.assert_array_equal(kernel.unpack(), w.astype(np.float32))


# K4


@every
@pytest.mark.parametrize("e", [64, 33])
def test_scores_have_few_levels_all_odd_or_all_even(impl, e, rng):
    q, k = (rng.normal(size=(1, 3, 198, e)).astype(np.float32) for _ in range(2))
    scores = attempt(impl, binary_scores, jnp.asarray(q), jnp.asarray(k))
    want = np.where(q >= 0, 1.0, -1.0) @ np.swapaxes(np.where(k >= 0, 1.0, -1.0), -1, -2)
    np.testing.assert_array_equal(scores, want)
    assert (scores % 2 == e % 2).all()
    levels, times = np.unique(scores, return_counts=True)
    assert 20 < len(levels) <= e + 1
    assert np.abs(levels).max() <= e
    if e == 64:  # the fraction of tied pairs of random signs: 1 / (8 sqrt(pi))
        pairs = scores.size * (scores.size - 1) / 2
        assert (times * (times - 1) / 2).sum() / pairs == pytest.approx(1 / (8 * math.sqrt(math.pi)), abs=0.001)


@pytest.mark.parametrize("zeros", [(0, 0), (-1, 0), (-1, -1), (1, -2)])
@pytest.mark.parametrize("as_arrays", [False, True])
def test_scores_with_zero_points(zeros, as_arrays, rng):
    q, k = rng.normal(size=(2, 2, 5, 33)).astype(np.float32), rng.normal(size=(2, 2, 7, 33)).astype(np.float32)
    per_head = [np.array([[[[z]], [[z + 1]]]], np.int32) if as_arrays else z for z in zeros]
    left, right = (np.where(a >= 0, 1.0, -1.0) - z for a, z in zip((q, k), per_head, strict=True))
    given_zeros = [jnp.asarray(z) for z in per_head] if as_arrays else per_head
    scores = binary_scores(jnp.asarray(q), jnp.asarray(k), *given_zeros)
    assert scores.dtype == jnp.int32
    np.testing.assert_array_equal(scores, left @ np.swapaxes(right, -1, -2))


@every
@pytest.mark.parametrize("tokens", [9, 197])
def test_values_are_sums_of_signs_where_attention_is_one(impl, tokens, rng):
    p = rng.random((1, 3, tokens, tokens)) < 0.1
    p[..., 0, :] = False  # a row without attention
    v = rng.normal(size=(1, 3, tokens, 8)).astype(np.float32)
    want = p.astype(np.float64) @ np.where(v >= 0, 1.0, -1.0)
    values = attempt(impl, binary_values, jnp.asarray(p), jnp.asarray(v))
    np.testing.assert_array_equal(values, want)
    assert (values[..., 0, :] == 0).all()
    np.testing.assert_array_equal(attempt(impl, binary_values, jnp.asarray(p, np.int32), jnp.asarray(v)), want)


# What does not fit, and which implementation is taken


def uint32(*shape):
    return jnp.zeros(shape, jnp.uint32)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (
            lambda: binary_matmul(uint32(4, 2), uint32(6, 2), 65),
            r"x has shape \[4, 2\], but rows of k=65 bits are \[... m 3\]",
        ),
        (
            lambda: binary_matmul(uint32(4, 2), uint32(6, 3), 64),
            r"w has shape \[6, 3\], but rows of k=64 bits are \[... n 2\]",
        ),
        (lambda: binary_matmul(uint32(4, 2), uint32(6, 2), 32), r"x has shape \[4, 2\], but rows of k=32"),
        (lambda: binary_matmul(uint32(2), uint32(6, 2), 64), r"x has shape \[2\], but rows"),
        (
            lambda: binary_matmul(jnp.zeros((4, 2), jnp.int32), uint32(6, 2), 64),
            "x is int32, but packed words are uint32",
        ),
        (
            lambda: binary_matmul(uint32(4, 2), jnp.zeros((6, 2), jnp.float32), 64),
            "w is float32, but packed words are uint32",
        ),
        (lambda: binary_matmul(uint32(4, 0), uint32(6, 0), 0), "k=0, but rows have at least one bit"),
        (lambda: binary_matmul(uint32(2, 4, 2), uint32(3, 6, 2), 64), r"leading axes .* \[2, 4, 2\] and \[3, 6, 2\]"),
        (lambda: binary_matmul(uint32(4, 2), uint32(6, 2), 64, "xor"), r"no kind 'xor' \(did you mean 'xnor'\?\)"),
        (
            lambda: binary_matmul(uint32(4, 2), uint32(6, 2), 64, "xnor", "xls"),
            r"no implementation 'xls' \(did you mean 'xla'\?\)",
        ),
        (
            lambda: binary_matmul(uint32(4, 2), uint32(6, 2), 64, "xnor", "cuda"),
            r"no implementation 'cuda' \(there are: auto, ref, xla",
        ),
    ],
)
def test_operands_that_do_not_fit_are_one_clear_line(run, says):
    with pytest.raises(ValueError, match=says) as e:
        run()
    assert "\n" not in str(e.value)


def test_auto_is_xla_on_a_cpu_and_a_name_never_falls_back(monkeypatch, rng):
    calls = []

    def declining(x, w, k, kind):
        calls.append((x.shape, w.shape, k, kind))
        raise NotImplementedError("not on this platform")

    x, w = draw(rng, 4, 33), draw(rng, 6, 33)
    monkeypatch.setitem(matmul.IMPLEMENTATIONS, "xla", declining)
    for impl in ("auto", "xla"):
        with pytest.raises(NotImplementedError, match="not on this platform"):
            binary_matmul(words(x), words(w), 33, impl=impl)
    assert calls == [((1, 4, 2), (1, 6, 2), 33, "xnor")] * 2
    np.testing.assert_array_equal(binary_matmul(words(x), words(w), 33, impl="ref"), product(x, w, "xnor"))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a device")
@pytest.mark.parametrize("impl", ["pallas_tpu", "pallas_gpu"])
def test_an_implementation_for_another_device_says_so(impl):
    with pytest.raises(NotImplementedError, match=f"'{impl}' runs on {impl[-3:]}, this process has cpu"):
        binary_matmul(uint32(4, 2), uint32(6, 2), 64, impl=impl)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_rows_are_no_products(impl):
    if impl == "pallas_gpu" and jax.__version_info__ < (0, 11):
        pytest.skip("needs jax 0.11")
    y = IMPLEMENTATIONS[impl](x=uint32(2, 0, 2), w=uint32(2, 6, 2), k=64, kind="and")
    assert y.shape == (2, 0, 6)
    assert y.dtype == jnp.int32


def test_cases_are_words_as_packing_leaves_them(rng):
    for case in CASES:
        k = case.static["k"]
        for a in case.arrays(rng).values():
            assert a.dtype == np.uint32
            assert a.shape[2] == -(-k // 32)
            assert np.asarray(unpack_words(jnp.asarray(a[:1, :1]), k)).all()
            np.testing.assert_array_equal(a[..., -1] >> np.uint64((k - 1) % 32 + 1), 0)


def kernel_of(bits=1, scale=(1, 6), zero=None, shape=(33, 6)):
    planes = pack_bits(jnp.zeros(shape, jnp.int32), bits)
    return Packed(planes, jnp.ones(scale, jnp.float32), zero, shape)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda: binary_linear(jnp.zeros((2, 33)), kernel_of(bits=2)), "kernels of 1 bit, not of 2"),
        (lambda: binary_linear(jnp.zeros((2, 33)), kernel_of(zero=jnp.ones((1, 6), jnp.int32))), "has zero points"),
        (lambda: binary_linear(jnp.zeros((2, 33)), kernel_of(scale=(33, 6))), r"scales \[33, 6\] vary along"),
        (lambda: binary_linear(jnp.zeros((2, 40)), kernel_of()), r"x \[2, 40\] and the kernel \[33, 6\] differ in d"),
        (lambda: binary_linear(jnp.zeros((2, 33), bool), kernel_of()), "values with signs, not bool"),
        (lambda: binary_linear(jnp.zeros((2, 33)), kernel_of(), impl="xlb"), "did you mean 'xla'"),
        (lambda: binary_scores(jnp.zeros((4, 8)), jnp.zeros((4, 9))), r"q \[4, 8\] and k \[4, 9\] differ"),
        (lambda: binary_values(jnp.zeros((4, 8), bool), jnp.zeros((9, 3))), r"p \[4, 8\] and v \[9, 3\] differ"),
        (lambda: binary_values(jnp.zeros((4, 8)), jnp.zeros((8, 3))), "codes 0 and 1, not float32"),
        (lambda: sign_words(jnp.zeros((4, 8), jnp.uint8)), "values with signs, not uint8"),
        (lambda: plane_words(jnp.zeros((3, 2), jnp.uint8), 33), "3 bytes a column does not hold 33 bits: they take 5"),
    ],
)
def test_layers_say_what_does_not_fit(run, says):
    with pytest.raises(ValueError, match=says) as e:
        run()
    assert "\n" not in str(e.value)
