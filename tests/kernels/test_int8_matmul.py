"""``int8_matmul``: the reference against loops in int64 and float64, what XLA makes of it, and what does not fit.

The shared suite runs the implementations on all small cases; here is what it does not see.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.kernels.int8_matmul import CASES, IMPLEMENTATIONS, int8_matmul, pallas_gpu
from jvq.kernels.int8_matmul.cases import operands

SMALL = [case for case in CASES if not case.real]
FITTING = [case for case in SMALL if case.macs < 200_000]  #: those that loops are fast enough for
OPTIONS = ("x_zero", "w_zero", "w_sum", "bias")


def by_hand(x, w, x_scale, w_scale, x_zero=None, w_zero=None, w_sum=None, bias=None):
    """The sums int64 and the values float64 [g m n], an element at a time, from zero points taken off first."""
    del w_sum
    (g, m, _), n = x.shape, w.shape[1]
    total, y = np.zeros((g, m, n), np.int64), np.zeros((g, m, n))

    def of(a, i, r, c, missing):
        """The element of ``a`` that goes with [i r c]: a length of 1 goes with all."""
        if a is None:
            return missing
        return np.asarray(a)[tuple(at if size > 1 else 0 for at, size in zip((i, r, c), a.shape, strict=True))].item()

    for i in range(g):
        for r in range(m):
            for c in range(n):
                left = np.asarray(x[i, r], np.int64) - of(x_zero, i, r, 0, 0)
                right = np.asarray(w[i if len(w) > 1 else 0, c], np.int64) - of(w_zero, i, 0, c, 0)
                total[i, r, c] = (left * right).sum()
                y[i, r, c] = total[i, r, c] * of(x_scale, i, r, 0, 1) * of(w_scale, i, 0, c, 1)
                y[i, r, c] += 0 if bias is None else float(bias[c])
    return total, y


def numpy(arrays):
    return {name: None if a is None else np.asarray(a) for name, a in arrays.items()}


@pytest.mark.parametrize("case", FITTING, ids=lambda case: case.name)
def test_the_reference_is_the_formula(case, rng):
    arrays = case.arrays(rng)
    total, want = by_hand(**numpy(arrays))
    y = IMPLEMENTATIONS["ref"](**arrays, **case.static)
    assert y.dtype == np.float32
    assert y.shape == want.shape
    terms = np.abs(want) if arrays["bias"] is None else np.abs(want) + np.abs(np.asarray(arrays["bias"], float))
    assert (np.abs(y - want) <= 8 * 2.0**-24 * terms).all()  # a few roundings of float32
    assert np.abs(total).max() > 100 or case.macs == 1
    assert np.abs(total).max() < 2**31


@pytest.mark.parametrize("case", FITTING, ids=lambda case: case.name)
@pytest.mark.parametrize("impl", ["ref", "xla"])
def test_sums_are_exact(impl, case, rng):
    """With scales of one and a bias of zero, the values are the integers."""
    arrays = dict(case.arrays(rng))
    arrays |= {name: jnp.asarray(np.ones(arrays[name].shape, np.float32)) for name in ("x_scale", "w_scale")}
    if arrays["bias"] is not None:
        arrays["bias"] = jnp.asarray(np.zeros(arrays["bias"].shape, np.float32))
    total, _ = by_hand(**numpy(arrays))
    np.testing.assert_array_equal(IMPLEMENTATIONS[impl](**arrays), total.astype(np.float32))


def test_cases_have_every_option_and_lack_it():
    rng = np.random.default_rng(0)
    arrays = [case.arrays(rng) for case in SMALL]
    for name in OPTIONS:
        assert {a[name] is None for a in arrays} == {True, False}
    shapes = [(*a["x"].shape, a["w"].shape[1]) for a in arrays]
    assert {size for shape in shapes for size in shape if size % 2} > {1, 3, 5, 7, 11}
    assert any(a["w"].shape[0] < a["x"].shape[0] for a in arrays)
    assert len({case.name for case in CASES}) == len(CASES)
    for a, case in zip(arrays, SMALL, strict=True):
        assert case.macs == a["x"].size * a["w"].shape[1]
        if a["x_zero"] is not None and a["w_sum"] is not None:
            np.testing.assert_array_equal(a["w_sum"][:, 0], np.asarray(a["w"], np.int64).sum(axis=2))


def full(value, *shape):
    return jnp.asarray(np.full(shape, value, np.int8))


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))


def whole(value, *shape):
    return jnp.asarray(np.full(shape, value, np.int32))


@pytest.mark.parametrize("impl", ["ref", "xla"])
def test_the_longest_rows_do_not_overflow(impl):
    k = 2**17 - 1
    scale = ones(1, 1, 1)
    y = int8_matmul(full(-128, 1, 2, k), full(-128, 1, 3, k), x_scale=scale, w_scale=scale, impl=impl)
    np.testing.assert_array_equal(y, np.float32(k * 128**2))
    with pytest.raises(ValueError, match="k=131072 may not fit int32, k is at most 131071"):
        int8_matmul(full(-128, 1, 1, k + 1), full(-128, 1, 1, k + 1), x_scale=scale, w_scale=scale)


@pytest.mark.parametrize("impl", ["ref", "xla"])
@pytest.mark.parametrize("rows", [1, 4])
def test_terms_may_overflow_where_their_sum_does_not(impl, rows):
    """int32 is exact modulo 2^32: weights that are all at their zero point give the bias."""
    x, w = full(7, 1, 4, 100), full(100, 1, 3, 100)
    zeros = {"x_zero": whole(300_000, 1, rows, 1), "w_zero": whole(100, 1, 1, 1), "w_sum": whole(10_000, 1, 1, 3)}
    assert 300_000 * 10_000 > 2**31
    bias = jnp.arange(3, dtype=jnp.float32)
    y = int8_matmul(x, w, x_scale=ones(1, 1, 1), w_scale=ones(1, 1, 3), **zeros, bias=bias, impl=impl)
    np.testing.assert_array_equal(y, np.broadcast_to(np.arange(3.0), (1, 4, 3)))


def test_codes_of_0_to_255_are_given_less_128(rng):
    codes, zero = rng.integers(0, 256, (1, 5, 33)), 200
    w = rng.integers(-127, 128, (1, 4, 33))
    y = int8_matmul(
        jnp.asarray(codes - 128, jnp.int8),
        jnp.asarray(w, jnp.int8),
        x_scale=ones(1, 1, 1),
        w_scale=ones(1, 1, 4),
        x_zero=whole(zero - 128, 1, 1, 1),
        w_sum=jnp.asarray(w.sum(axis=2)[:, None], jnp.int32),
    )
    np.testing.assert_array_equal(y[0], (codes[0] - zero) @ w[0].T)


def case_named(name):
    return next(case for case in CASES if case.name == name)


def test_rows_that_meet_the_same_weights_are_one_product(rng):
    """Of two-dimensional operands, beside one with ones (the rows' sums), with element-wise work alone after it."""
    arrays = case_named("shared weights, scales of rows").arrays(rng)
    jaxpr = str(jax.make_jaxpr(lambda a: IMPLEMENTATIONS["xla"](**a))(arrays))
    assert jaxpr.count("dot_general[") == 2
    assert "i32[27,20] = dot_general[" in jaxpr
    assert "while" not in jaxpr
    assert "scan" not in jaxpr


def test_a_zero_point_of_all_rows_is_one_vector_of_columns(rng):
    """No second pass over x, and one subtraction an element."""
    jaxpr = str(jax.make_jaxpr(lambda a: IMPLEMENTATIONS["xla"](**a))(case_named("shared weights").arrays(rng)))
    assert "reduce_sum" not in jaxpr
    assert jaxpr.count("i32[3,9,20] = sub") == 1
    assert "i32[3,9,20] = mul" not in jaxpr


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="kernels for GPUs are interpreted from jax 0.11 on")
def test_the_larger_block_of_a_gpu_is_the_same_product(monkeypatch, rng):
    """Which small cases never have: it takes more blocks than the device has processors."""
    arrays = operands(rng, (1, 70, 40, 9), scales="mn", zeros="xm,wn")
    want = IMPLEMENTATIONS["ref"](**arrays)
    monkeypatch.setattr(pallas_gpu, "PROCESSORS", 1)
    y = IMPLEMENTATIONS["pallas_gpu"](**arrays, interpret=True)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6 * float(np.abs(want).max()))


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="kernels for GPUs are there from jax 0.11 on")
def test_an_old_jax_has_no_kernel_for_gpus(rng):
    with pytest.raises(NotImplementedError, match="'pallas_gpu' needs jax 0.11 or newer"):
        IMPLEMENTATIONS["pallas_gpu"](**case_named("ragged").arrays(rng), interpret=True)


def test_auto_is_xla_on_a_cpu_and_a_name_never_falls_back(rng):
    arrays = case_named("ragged").arrays(rng)
    np.testing.assert_array_equal(int8_matmul(**arrays), IMPLEMENTATIONS["xla"](**arrays))
    for impl in ("pallas_tpu", "pallas_gpu"):
        with pytest.raises(NotImplementedError, match=f"'{impl}' runs on"):
            int8_matmul(**arrays, impl=impl)
    with pytest.raises(ValueError, match=r"int8_matmul has no implementation 'xls' \(did you mean 'xla'\?\)"):
        int8_matmul(**arrays, impl="xls")


GOOD = {"x": full(1, 2, 4, 8), "w": full(1, 2, 6, 8), "x_scale": ones(1, 1, 1), "w_scale": ones(1, 1, 6)}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x": whole(1, 2, 4, 8)}, r"x is int32, but integers are int8 \(codes 0..255 less 128\)"),
        ({"w": full(1, 2, 6, 8).astype(jnp.uint8)}, "w is uint8, but integers are int8"),
        ({"x": full(1, 4, 8)}, r"x has shape \[4, 8\], must be \[g m k\]"),
        ({"w": full(1, 2, 0, 8)}, r"w has shape \[2, 0, 8\], must be \[g n k\], none of them 0"),
        ({"w": full(1, 2, 6, 9)}, r"x \[2, 4, 8\] and w \[2, 6, 9\] differ in k"),
        ({"w": full(1, 3, 6, 8)}, r"w \[3, 6, 8\] has g=3, must be 1 or 2 as x has"),
        ({"x_scale": ones(1, 3, 1)}, r"x_scale is float32 \[1, 3, 1\], must be float32 \[2\|1 4\|1 1\]"),
        ({"x_scale": jnp.ones((1, 1, 1), jnp.bfloat16)}, r"x_scale is bfloat16 \[1, 1, 1\], must be float32"),
        ({"w_scale": ones(6)}, r"w_scale is float32 \[6\], must be float32 \[2\|1 1 6\|1\]"),
        ({"w_scale": ones(1, 6, 1)}, r"w_scale is float32 \[1, 6, 1\], must be"),
        (
            {"w": full(1, 1, 6, 8), "w_scale": ones(2, 1, 6)},
            r"w_scale is float32 \[2, 1, 6\], must be .* \[1 1 6\|1\]",
        ),
        ({"x_zero": ones(1, 1, 1), "w_sum": whole(1, 2, 1, 6)}, r"x_zero is float32 \[1, 1, 1\], must be int32"),
        ({"x_zero": whole(1, 1, 1, 1), "w_sum": whole(1, 2, 1, 1)}, r"w_sum is int32 \[2, 1, 1\], must be .* 1 6\]"),
        ({"w_zero": full(1, 1, 1, 6)}, r"w_zero is int8 \[1, 1, 6\], must be int32 \[2\|1 1 6\|1\]"),
        ({"bias": ones(1, 6)}, r"bias is float32 \[1, 6\], must be float32 \[6\]"),
        ({"bias": whole(1, 6)}, r"bias is int32 \[6\], must be float32 \[6\]"),
    ],
)
def test_operands_that_do_not_fit_are_one_clear_line(changed, says):
    with pytest.raises(ValueError, match=says) as e:
        int8_matmul(**{**GOOD, **changed})
    assert "\n" not in str(e.value)
