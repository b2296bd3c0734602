"""Grouped products against float64 and int64 loops, and with ``group_encode`` against fake quantisation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.fixed_point import DIGITS, GREATEST, fixed_point, joined
from jvq.kernels.group_encode import base_scale, group_encode
from jvq.kernels.group_matmul import group_matmul, pallas_gpu, pallas_tpu, xla
from jvq.kernels.group_matmul.cases import operands
from jvq.quantizers import Grouped

plain = pytest.mark.parametrize("impl", ["ref", "xla"])


def by_hand(x, group, w, *, scale, zero, w_scale, w_zero=None, bias=None, ladder=False):
    """The product, one sum after the other: whole numbers of each group in Python, scales in float64."""
    x, w, scale, w_scale = (np.asarray(a) for a in (x, w, scale, w_scale))
    (b, m, k), n = x.shape, len(w)
    y = np.zeros((b, m, n))
    for i, row, column in np.ndindex(y.shape):
        sums = [0] * len(scale)
        for t in range(k):
            g = 0 if ladder else int(np.asarray(group)[i, t])
            off = 0 if w_zero is None else int(w_zero[column % len(w_zero)])
            sums[g] += (int(x[i, row, t]) - (0 if zero is None else int(zero[g]))) * (int(w[column, t]) - off)
        total = sum(float(s) * of for s, of in zip(scale, sums, strict=True))
        y[i, row, column] = float(w_scale[column % len(w_scale)]) * total
    return y if bias is None else y + np.asarray(bias, np.float64)


def assert_near(got, want, tolerance=1e-6):
    assert got.dtype == jnp.float32
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=tolerance * np.abs(want).max())


@plain
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"w_zero": True},
        {"bits": 8, "w_zero": True},
        {"zero": False, "bias": False},
        {"shared": True, "w_zero": True},
        {"ladder": True},
        {"ladder": True, "bits": 6, "w_zero": True, "bias": False},
        {"ladder": True, "shared": True},
    ],
)
def test_products_are_those_of_a_loop(impl, options, rng):
    given = operands(rng, (2, 3, 9, 4), 5, **options)
    ladder = options.get("ladder", False)
    assert_near(group_matmul(**given, ladder=ladder, impl=impl), by_hand(**given, ladder=ladder))


def exact(given, ladder=False):
    """The product in float64, at once."""
    group = np.zeros_like(given["x"][:, 0], np.int32) if ladder else np.asarray(given["group"])
    own = {
        name: np.asarray(given[name], np.float64)[group][:, None]
        for name in ("scale", "zero")
        if given[name] is not None
    }
    w = np.asarray(given["w"], np.float64)
    if given["w_zero"] is not None:
        w = w - np.asarray(given["w_zero"])[:, None]
    a = own["scale"] * (np.asarray(given["x"], np.float64) - own.get("zero", 0))
    return np.asarray(given["w_scale"]) * (a @ w.T) + (0 if given["bias"] is None else np.asarray(given["bias"]))


@plain
@pytest.mark.parametrize("ladder", [False, True])
def test_long_rows_and_the_ends_of_the_codes_are_exact_to_float32(impl, ladder, rng):
    given = dict(
        operands(rng, (2, 6, 3072, 10), 8, bits=8 if not ladder else 6, ladder=ladder, w_zero=True, bias=False)
    )
    x, w = np.array(given["x"]), np.array(given["w"])
    x[0, 0], x[0, 1], w[0], w[1] = -128, 127, -128, 127
    given |= {"x": jnp.asarray(x), "w": jnp.asarray(w)}
    assert_near(group_matmul(**given, ladder=ladder, impl=impl), exact(given, ladder))


@plain
def test_scales_a_thousandfold_apart_lose_nothing_that_float32_holds(impl, rng):
    given = dict(operands(rng, (1, 8, 300, 12), 6, bits=8))
    given["scale"] = jnp.asarray([1e-3, 1e-2, 0.1, 1.0, 3.3, 1e3], jnp.float32)
    assert_near(group_matmul(**given, impl=impl), exact(given))


def test_images_one_after_the_other_are_those_at_once(monkeypatch, rng):
    given = operands(rng, (3, 5, 40, 7), 4, w_zero=True)
    at_once = group_matmul(**given, impl="xla")
    monkeypatch.setattr(xla, "CACHED", 0)
    assert "while" in jax.jit(partial(xla.group_matmul, **given)).lower().as_text()
    assert_near(group_matmul(**given, impl="xla"), np.asarray(at_once, np.float64))


@plain
@pytest.mark.parametrize("ladder", [False, True])
def test_an_image_is_multiplied_as_if_alone(impl, ladder, rng):
    given = operands(rng, (3, 5, 40, 7), 4, ladder=ladder, w_zero=True)
    together = np.asarray(group_matmul(**given, ladder=ladder, impl=impl))
    loud = dict(given) | {"x": given["x"].at[1:].set(127)}  # the others change, the first does not
    np.testing.assert_array_equal(group_matmul(**loud, ladder=ladder, impl=impl)[0], together[0])
    part = {name: None if given[name] is None else given[name][2:] for name in ("x", "group")}
    assert_near(group_matmul(**(dict(given) | part), ladder=ladder, impl=impl), together[2:].astype(np.float64))


def test_a_ladder_does_not_look_at_groups(rng):
    given = dict(operands(rng, (2, 3, 9, 4), 5, ladder=True))
    want = group_matmul(**given, ladder=True)
    given["group"] = jnp.full((2, 9), 77, jnp.int32)
    np.testing.assert_array_equal(group_matmul(**given, ladder=True), want)


@plain
@pytest.mark.parametrize(("bits", "ladder"), [(4, False), (8, False), (4, True)])
def test_encoded_and_multiplied_is_fake_quantised_and_multiplied(impl, bits, ladder, rng):
    b, m, k, n = 2, 12, 48, 10
    x = jnp.asarray(rng.lognormal(0, 1, (b, 1, k)) * rng.normal(0.3, 1, (b, m, k)), jnp.float32)
    levels, reach = 2**bits - 1, np.geomspace(1, 20, 6)
    scale = 0.11 * 2.0 ** (np.arange(6) % 4) if ladder else 2 * reach / levels
    made = {
        "lower": -reach,
        "upper": reach,
        "scale": scale,
        "zero": np.full(6, levels // 2 + 1),
        "levels": np.array(levels),
    }
    state = {name: jnp.asarray(a, jnp.float32) for name, a in made.items()}
    w, w_scale = rng.integers(-8, 8, (n, k)), rng.lognormal(-2, 0.3, n)
    fake = np.asarray(Grouped().apply(state, x, "bnd"), np.float64)
    want = fake @ (np.float32(w_scale)[:, None] * w.astype(np.float64)).T

    codes, group = group_encode(x, **state, bits=bits, ladder=ladder, impl=impl)
    assert len(np.unique(group)) > 3
    scales, zero = base_scale(state["upper"], state["scale"]), None
    if not ladder:
        scales, zero = state["scale"], state["zero"].astype(jnp.int32) - (128 if bits == 8 else 0)
    given = {"scale": scales, "zero": zero, "w_scale": jnp.asarray(w_scale, jnp.float32)}
    assert_near(group_matmul(codes, group, jnp.asarray(w, jnp.int8), **given, ladder=ladder, impl=impl), want)


# Digits


def test_digits_fit_int8_and_are_off_by_half_a_unit_at_most(rng):
    a = np.float32(rng.normal(size=(2, 50, 30)) * rng.lognormal(0, 4, (2, 50, 30)))
    a[0, 0] = 0
    a[0, 1] = np.float32(-1e-3)  # every value the greatest
    a[0, 2, 0], a[0, 3] = np.float32(3e38), np.float32(1e-40)
    digits, unit = jax.jit(fixed_point)(jnp.asarray(a))
    assert len(digits) == DIGITS
    assert all(np.abs(np.asarray(d)).max() <= 127 + (i < DIGITS - 1) for i, d in enumerate(digits))
    whole = sum(256**i * np.asarray(d, np.int64) for i, d in enumerate(digits))
    assert np.abs(whole[0, 1]).min() >= GREATEST - 2
    off = np.abs(whole * np.asarray(unit, np.float64) - a)
    # the unit is half; the product with its reciprocal may be off by two last bits of the greatest
    assert (off <= np.asarray(unit) * 0.5 + np.abs(a) * 2.0**-22).all()
    assert (whole[0, 0] == 0).all()
    np.testing.assert_allclose(joined(digits), whole.astype(np.float64), rtol=1e-7)


def test_rows_of_zeros_give_the_bias(rng):
    given = dict(operands(rng, (1, 3, 9, 4), 5, zero=False))
    given["x"] = given["x"].at[0, 1].set(0)
    y = np.asarray(group_matmul(**given, impl="xla"))
    np.testing.assert_array_equal(y[0, 1], given["bias"])
    assert (y[0, 0] != y[0, 1]).any()


# What it takes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.zeros((1, 2, 9), np.int32)}, r"x is int32 \[1, 2, 9\], must be int8 \[b m k\]"),
        ({"x": np.zeros((2, 9), np.int8)}, "x is int8"),
        ({"w": np.zeros((4, 9, 1), np.int8)}, r"w is int8 .*must be int8 \[n k\]"),
        ({"w": np.zeros((4, 8), np.int8)}, "differ in k"),
        ({"group": None}, r"group is None, must be int32 \[2, 9\]"),
        ({"group": np.zeros((2, 8), np.int32)}, r"group is int32 \[2, 8\]"),
        ({"scale": np.float32(1)}, r"scale is float32 \[\], must be float32 \[g\]"),
        ({"zero": np.zeros(4, np.int32)}, r"zero is int32 \[4\], must be int32 of length 5"),
        ({"zero": np.zeros(5, np.float32)}, "zero is float32"),
        ({"w_scale": np.zeros(3, np.float32)}, r"w_scale is float32 \[3\], must be float32 of length 4 or 1"),
        ({"w_zero": np.zeros(4, np.int8)}, "w_zero is int8"),
        ({"bias": np.zeros(1, np.float32)}, r"bias is float32 \[1\], must be float32 of length 4"),
        ({"ladder": True}, r"scale is float32 \[5\], must be float32 \[1\], the ladder's one scale"),
        ({"ladder": True, "scale": np.ones(1, np.float32)}, "zero must be None with a ladder"),
        ({"impl": "pallas_cpu"}, "group_matmul has no implementation 'pallas_cpu'"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change, says, rng):
    given = dict(operands(rng, (2, 3, 9, 4), 5, w_zero=True))
    with pytest.raises(ValueError, match=says) as e:
        group_matmul(**(given | {name: jnp.asarray(a) if hasattr(a, "dtype") else a for name, a in change.items()}))
    assert "\n" not in str(e.value)


def test_rows_that_do_not_fit_on_a_tpu_are_declined(rng):
    given = dict(operands(rng, (1, 1, 20000, 2), 5))
    with pytest.raises(NotImplementedError, match="rows of 20000 codes do not fit on chip"):
        pallas_tpu.group_matmul(**given)


def test_an_old_jax_has_no_kernel_for_gpus(monkeypatch, rng):
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    with pytest.raises(NotImplementedError, match="needs jax 0.11"):
        pallas_gpu.group_matmul(**operands(rng, (1, 3, 9, 4), 5))
