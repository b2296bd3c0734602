"""Products with packed weights: where each code lies, the formula in NumPy, and what is refused.

That implementations give what ``ref`` gives is in ``test_kernels.py``.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.packed import Packed, pack_bits
from jvq.kernels.packed_matmul import IMPLEMENTATIONS, pack_rows, packed_matmul, rows_of, unpack_rows
from jvq.kernels.packed_matmul.layout import join_columns, split_columns

BITS = (2, 3, 4)
each_width = pytest.mark.parametrize("bits", BITS)


def draw(rng, bits, *shape):
    return rng.integers(0, 2**bits, shape)


def packed(codes, bits):
    return pack_rows(jnp.asarray(codes, jnp.int32), bits)


def code_by_hand(w, bits, row, column, g=0):
    """The code of a row, bit by bit, as the table of ``layout.py`` says."""
    r = w.shape[2]
    i, j = divmod(row, r)
    if bits == 3:
        h = i // 2
        places = [(i % 2, 2 * h), (i % 2, 2 * h + 1), (2, i)]
    else:
        places = [(0, bits * i + at) for at in range(bits)]
    return sum(((int(w[g, plane, j, column]) >> bit) & 1) << at for at, (plane, bit) in enumerate(places))


# The layout


@each_width
@pytest.mark.parametrize("shape", [(2, 16, 5), (1, 21, 3), (1, 1, 1)])
def test_codes_lie_where_the_table_says_and_come_back(bits, shape, rng):
    codes = draw(rng, bits, *shape)
    w = np.asarray(packed(codes, bits))
    by_hand = [
        [[code_by_hand(w, bits, n, k, g) for k in range(shape[2])] for n in range(shape[1])] for g in range(shape[0])
    ]
    np.testing.assert_array_equal(by_hand, codes)
    back = unpack_rows(jnp.asarray(w), bits, shape[1])
    assert (w.dtype, back.dtype) == (np.uint8, jnp.int8)
    np.testing.assert_array_equal(back, codes)


@each_width
def test_bytes_hold_nothing_but_codes(bits, rng):
    full = packed(np.full((1, 768, 10), 2**bits - 1), bits)
    assert (np.asarray(full) == 255).all()
    assert full.nbytes * 8 == bits * 768 * 10
    tail = packed(draw(rng, bits, 1, 17, 10), bits)
    fields, planes = {2: (4, 1), 3: (8, 3), 4: (2, 1)}[bits]
    assert tail.nbytes == planes * math.ceil(17 / fields) * 10
    again = pack_rows(unpack_rows(tail, bits, 17), bits)
    np.testing.assert_array_equal(again, tail)


@each_width
def test_only_the_bits_of_a_code_are_packed(bits, rng):
    codes = draw(rng, bits, 1, 9, 4)
    np.testing.assert_array_equal(packed(codes + 2**bits, bits), packed(codes, bits))
    np.testing.assert_array_equal(packed(codes - 2**bits, bits), packed(codes, bits))


@each_width
@pytest.mark.parametrize(("shape", "contracted"), [((9, 2, 3, 4), 1), ((3, 4, 10), 2)])
def test_a_stored_weight_becomes_rows(bits, shape, contracted, rng):
    codes = draw(rng, bits, *shape)
    stored = Packed(pack_bits(jnp.asarray(codes, jnp.int32), bits), jnp.ones(1), jnp.zeros(1, jnp.int32), shape)
    k = math.prod(shape[:contracted])
    w = rows_of(stored, contracted)
    np.testing.assert_array_equal(unpack_rows(w, bits, codes.size // k)[0], codes.reshape(k, -1).T)


@each_width
@pytest.mark.parametrize("n", [24, 13, 1])
def test_columns_are_split_by_field_and_joined(bits, n):
    a = jnp.arange(1, n + 1, dtype=jnp.float32)[None]
    fields = {2: 4, 3: 8, 4: 2}[bits]
    r = math.ceil(n / fields)
    wide = np.asarray(split_columns(a, bits, r + 3)).reshape(fields, r + 3)
    assert [wide[i, j] for i in range(fields) for j in range(r)][:n] == [*range(1, n + 1)]
    assert not wide[:, r:].any()
    np.testing.assert_array_equal(join_columns(jnp.asarray(wide.reshape(1, -1)), bits, n), a)


# The product


def by_hand(x, codes, *, x_scale, w_scale, x_zero=0, w_zero=0, bias=0):
    """The formula in float64 and int64, an output at a time."""
    (g, m, _), (gw, n, _) = x.shape, codes.shape
    spread = [np.broadcast_to(np.asarray(a), (g, m, n)) for a in (x_scale, w_scale, x_zero, w_zero, bias)]
    y = np.zeros((g, m, n))
    for at in np.ndindex(g, m, n):
        i, row, column = at
        xs, ws, xz, wz, b = (a[at] for a in spread)
        right = codes[i if gw > 1 else 0, column] - wz
        y[at] = xs * ws * np.sum((x[i, row] - xz) * right) + b
    return y


@each_width
@pytest.mark.parametrize(
    ("gw", "rows", "columns", "options"),
    [(1, 1, 7, {"x_zero", "w_zero", "bias"}), (2, 5, 1, {"x_zero", "w_zero"}), (1, 5, 7, {"w_zero"}), (2, 1, 7, set())],
)
def test_integers_give_the_formula(bits, gw, rows, columns, options, rng):
    g, m, n, k = 2, 5, 7, 19
    x, codes = rng.integers(-128, 128, (g, m, k)), draw(rng, bits, gw, n, k)
    given = {
        "x_scale": rng.lognormal(size=(g, rows, 1)).astype(np.float32),
        "w_scale": rng.lognormal(size=(gw, 1, columns)).astype(np.float32),
        "x_zero": rng.integers(-300, 300, (g, rows, 1)),
        "w_zero": rng.integers(-20, 20, (gw, 1, columns)),
        "bias": rng.normal(size=n).astype(np.float32),
    }
    given = {name: a for name, a in given.items() if name.endswith("_scale") or name in options}
    arrays = {name: jnp.asarray(a, jnp.int32 if name.endswith("_zero") else jnp.float32) for name, a in given.items()}
    if "x_zero" in options:
        arrays["w_sum"] = jnp.asarray(codes.sum(axis=2)[:, None], jnp.int32)
    got = packed_matmul(jnp.asarray(x, jnp.int8), packed(codes, bits), bits=bits, n=n, impl="ref", **arrays)
    want = by_hand(x, codes, **given)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@each_width
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_floats_meet_codes_less_their_zero_points(bits, dtype, rng):
    g, m, n, k = 2, 3, 9, 33
    x, codes = jnp.asarray(rng.normal(size=(g, m, k)), dtype), draw(rng, bits, 1, n, k)
    w_scale, w_zero = rng.lognormal(size=(1, 1, n)).astype(np.float32), rng.integers(0, 2**bits, (1, 1, n))
    bias = rng.normal(size=n).astype(np.float32)
    got = packed_matmul(
        x,
        packed(codes, bits),
        bits=bits,
        n=n,
        x_scale=None,
        w_scale=jnp.asarray(w_scale),
        w_zero=jnp.asarray(w_zero, jnp.int32),
        bias=jnp.asarray(bias),
        impl="ref",
    )
    want = by_hand(np.asarray(x, np.float64), codes, x_scale=1.0, w_scale=w_scale, w_zero=w_zero, bias=bias)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


def test_the_longest_rows_are_exact_in_integers():
    k = 2**16
    x, codes = jnp.full((1, 1, k), -128, jnp.int8), jnp.full((1, 2, k), 15, jnp.int32)
    one = jnp.ones((1, 1, 1), jnp.float32)
    y = packed_matmul(x, pack_rows(codes, 4), bits=4, n=2, x_scale=one, w_scale=one)
    np.testing.assert_array_equal(y, np.full((1, 1, 2), -128.0 * 15 * k, np.float32))


# What does not fit, and what declines


def call(impl="auto", **change):
    g, m, n, k = 2, 3, 7, 9
    operands = {
        "x": jnp.ones((g, m, k), jnp.int8),
        "w": jnp.zeros((1, 1, 4, k), jnp.uint8),
        "bits": 4,
        "n": n,
        "x_scale": jnp.ones((1, 1, 1)),
        "w_scale": jnp.ones((1, 1, n)),
    }
    return packed_matmul(**operands | change, impl=impl)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bits": 5}, "bits is 5, weights stay packed with 2, 3, 4 bits"),
        ({"bits": True}, "bits is True"),
        ({"bits": 3}, r"w is uint8 \[1, 1, 4, 9\], must be uint8 \[1 or 2 3 1 9\] for 7 rows of 3-bit codes"),
        ({"bits": 2}, r"w is uint8 \[1, 1, 4, 9\], must be uint8 \[1 or 2 1 2 9\]"),
        ({"w": jnp.zeros((1, 1, 4, 9), jnp.int8)}, r"w is int8 \[1, 1, 4, 9\], must be uint8"),
        ({"w": jnp.zeros((3, 1, 4, 9), jnp.uint8)}, r"w is uint8 \[3, 1, 4, 9\], must be uint8 \[1 or 2 1 4 9\]"),
        ({"n": 9}, r"must be uint8 \[1 or 2 1 5 9\] for 9 rows"),
        ({"n": 0}, "n must be a whole number from 1, got 0"),
        ({"x": jnp.ones((2, 3, 9), jnp.int32)}, "x is int32, must be int8"),
        ({"x": jnp.ones((3, 9), jnp.int8)}, r"x has shape \[3, 9\], must be \[g m k\]"),
        ({"x": jnp.ones((2, 3, 9), jnp.float32)}, "x is float32, which has no x_scale and no x_zero"),
        ({"x_scale": None}, "x is int8, which needs x_scale"),
        ({"x_zero": jnp.zeros((1, 1, 1), jnp.int32)}, "x_zero needs w_sum, the sum of codes over k"),
        ({"x_scale": jnp.ones((2, 3))}, r"x_scale is float32 \[2, 3\], must be float32 \[2 or 1 3 or 1 1\]"),
        ({"w_scale": jnp.ones((2, 1, 7))}, r"w_scale is float32 \[2, 1, 7\], must be float32 \[1 1 7 or 1\]"),
        ({"w_zero": jnp.ones((1, 1, 7))}, r"w_zero is float32 \[1, 1, 7\], must be int32"),
        ({"w_sum": jnp.ones((1, 1, 1), jnp.int32)}, r"w_sum is int32 \[1, 1, 1\], must be int32 \[1 1 7\]"),
        ({"bias": jnp.ones((1, 7))}, r"bias is float32 \[1, 7\], must be float32 \[7\]"),
    ],
)
def test_operands_that_do_not_fit_are_one_clear_line(change, says):
    with pytest.raises(ValueError, match=f"packed_matmul: .*{says}") as e:
        call(**change)
    assert "\n" not in str(e.value)


def test_rows_whose_sums_may_not_fit_are_refused():
    k = 2**16 + 1
    with pytest.raises(ValueError, match=f"k={k} may not fit int32, k is at most 65536"):
        call(x=jnp.zeros((1, 1, k), jnp.int8), w=jnp.zeros((1, 1, 4, k), jnp.uint8))


@each_width
def test_other_widths_are_not_packed(bits):
    with pytest.raises(ValueError, match="bits is 8"):
        pack_rows(jnp.zeros((1, 8, 1), jnp.int32), 8)
    with pytest.raises(ValueError, match="bits is 1"):
        rows_of(Packed(jnp.zeros((1, 1, 3), jnp.uint8), jnp.ones(1), None, (8, 3)))


def lowered(impl, x, k):
    one, w = jnp.ones((1, 1, 1)), jax.ShapeDtypeStruct((1, 1, 4, k), jnp.uint8)
    scale = one if x == jnp.int8 else None
    run = IMPLEMENTATIONS[impl]
    return jax.eval_shape(
        lambda a, b: run(a, b, bits=4, n=8, x_scale=scale, w_scale=one, interpret=True),
        jax.ShapeDtypeStruct((1, 5, k), x),
        w,
    )


def test_what_a_device_cannot_is_declined():
    with pytest.raises(NotImplementedError, match="rows of 20000 codes do not fit on chip, at most 16384 do"):
        lowered("pallas_tpu", jnp.int8, 20000)
    says = "multiplies int8 and bfloat16, not float32" if jax.__version_info__ >= (0, 11) else "needs jax 0.11"
    with pytest.raises(NotImplementedError, match=says):
        lowered("pallas_gpu", jnp.float32, 64)
