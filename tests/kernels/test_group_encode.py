"""Codes of grouped quantisers against loops over NumPy's float32, and bit for bit against the quantiser itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.kernels.group_encode import CASES, base_scale, code_offset, group_encode, pallas_tpu, xla
from jvq.quantizers import Grouped

PLAIN = ("ref", "xla")
plain = pytest.mark.parametrize("impl", PLAIN)
CENTRES = ("lower", "upper", "scale", "zero", "levels")

_encode = jax.jit(lambda q, s, x, letters: q.encode(s, x, letters), static_argnums=(0, 3))
_assignment = jax.jit(lambda q, s, x, letters: q.assignment(s, x, letters), static_argnums=(0, 3))
_init = jax.jit(lambda q, x: q.init(x, "bnd"), static_argnums=0)


def values(rng, *shape):
    """Values whose channels have ranges of their own in every image."""
    width = rng.lognormal(0, 1, (shape[0], 1, shape[2]))
    return jnp.asarray(width * (rng.normal(size=shape) + rng.normal(size=width.shape)), jnp.float32)


def state(rng, groups, bits, *, ladder=False, nonnegative=False):
    """A quantiser's state by hand: any bounds, and scales and zero points that go with them, or those of a ladder."""
    levels = 2**bits - 1
    reach = np.sort(rng.lognormal(1, 1, groups))
    part = np.zeros(groups) if nonnegative else rng.uniform(0.1, 0.9, groups)
    scale = 0.3 * 2.0 ** rng.permutation(np.arange(groups) % (8 - bits)) if ladder else reach / levels
    made = (-part * reach, (1 - part) * reach, scale, np.round(part * levels), np.array(levels))
    return {name: jnp.asarray(a, jnp.float32) for name, a in zip(CENTRES, made, strict=True)}


def by_hand(x, s, *, bits=8, nonnegative=False, ladder=False, distance="squared"):
    """Codes and groups of channels, a value at a time, in float32 but for the distances."""
    x, lower, upper, scale, zero, levels = (np.asarray(a) for a in (x, *(s[name] for name in CENTRES)))
    codes, group = np.zeros(x.shape, int), np.zeros((x.shape[0], x.shape[2]), int)
    power = 1 if distance == "absolute" else 2
    least = min(scale[g] for g in range(len(scale)) if np.isfinite(upper[g]))
    for i, j in np.ndindex(group.shape):
        low, high = 0.0 if nonnegative else float(x[i, :, j].min()), float(x[i, :, j].max())
        away = [abs(low - float(a)) ** power + abs(high - float(b)) ** power for a, b in zip(lower, upper, strict=True)]
        g = group[i, j] = away.index(min(away))
        for t, value in enumerate(x[i, :, j]):
            code = int(min(max(np.round(value * (np.float32(1) / scale[g])) + zero[g], 0), levels))
            if ladder:
                code = (code - int(zero[g])) << round(float(np.log2(scale[g] / least)))
            codes[i, t, j] = code - (128 if bits == 8 and not ladder else 0)
    return codes, group


def assert_codes(got, want):
    assert (got[0].dtype, got[1].dtype) == (jnp.int8, jnp.int32)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


@plain
@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4},
        {"bits": 8},
        {"bits": 8, "distance": "absolute"},
        {"bits": 3, "nonnegative": True},
        {"bits": 4, "ladder": True},
        {"bits": 1, "ladder": True},
    ],
)
def test_codes_are_those_of_a_loop_over_values(impl, options, rng):
    x = values(rng, 2, 9, 13)
    kind = {key: options[key] for key in ("ladder", "nonnegative") if key in options}
    s = state(rng, 5, options["bits"], **kind)
    want = by_hand(x, s, **options)
    assert len(np.unique(want[0])) > 2
    assert len(np.unique(want[1])) > 1
    assert_codes(group_encode(x, **s, **options, impl=impl), want)


@plain
@pytest.mark.parametrize("ladder", [False, True])
@pytest.mark.parametrize("distance", ["squared", "absolute"])
def test_codes_and_groups_are_those_of_the_quantiser(impl, ladder, distance, rng):
    x, s = values(rng, 3, 50, 64), state(rng, 8, 4, ladder=ladder)
    q = Grouped(distance=distance)
    want, group = _encode(q, s, x, "bnd"), np.asarray(_assignment(q, s, x, "bnd"))
    codes = np.asarray(want.codes)
    if ladder:
        steps = np.asarray(want.scale / base_scale(s["upper"], s["scale"])[None, None]).astype(int)
        codes = (codes - np.asarray(want.zero)) * steps
    assert_codes(group_encode(x, **s, bits=4, ladder=ladder, distance=distance, impl=impl), (codes, group))


@plain
def test_rows_of_attention_are_those_of_the_quantiser(impl, rng):
    maps = jax.nn.softmax(3 * jnp.asarray(rng.normal(size=(2, 3, 17, 17)), jnp.float32), axis=-1)
    s = state(rng, 6, 4, nonnegative=True)
    s |= {name: s[name] * jnp.float32(0.05) for name in ("upper", "scale")}
    q = Grouped(along="hq", nonnegative=True)
    want = np.asarray(_encode(q, s, maps, "bhqk").codes).reshape(2, 51, 17)
    group = np.asarray(_assignment(q, s, maps, "bhqk")).reshape(2, 51)
    assert len(np.unique(group)) > 1
    options = {"bits": 4, "nonnegative": True, "impl": impl}
    assert_codes(group_encode(maps.reshape(2, 51, 17), **s, **options, along="n"), (want, group))
    turned = group_encode(jnp.swapaxes(maps.reshape(2, 51, 17), 1, 2), **s, **options)
    assert_codes((jnp.swapaxes(turned[0], 1, 2), turned[1]), (want, group))


@plain
def test_a_calibrated_ladder_fits_int8_and_means_what_its_codes_mean(impl, rng):
    x = values(rng, 4, 20, 24)
    s = _init(Grouped(bits=4, groups=4, capacity=6, ladder=True, start="quantile"), x)
    codes, group = (np.asarray(a) for a in group_encode(x, **s, bits=4, ladder=True, impl=impl))
    want = _encode(Grouped(), s, x, "bnd")
    base = np.asarray(base_scale(s["upper"], s["scale"]))
    np.testing.assert_array_equal(base * codes.astype(np.float32), np.asarray(want.decode()))
    shifts = np.log2(np.asarray(s["scale"])[:4] / base)
    assert (shifts == np.round(shifts)).all()
    assert shifts.min() == 0 < shifts.max()
    assert group.max() < 4


@plain
def test_eight_bits_are_less_128_and_fewer_are_plain(impl, rng):
    x, s = values(rng, 2, 9, 13), state(rng, 5, 7)
    seven, _ = group_encode(x, **s, bits=7, impl=impl)
    eight, _ = group_encode(x, **s, impl=impl)
    assert (code_offset(7), code_offset(8)) == (0, 128)
    np.testing.assert_array_equal(np.asarray(seven, np.int32) - 128, np.asarray(eight, np.int32))


@plain
def test_the_lowest_of_equally_near_groups_is_taken_and_none_that_fills_up(impl):
    x = jnp.asarray([[[-1.0, 0.0, 5.0], [1.0, 4.0, 7.0]]], jnp.float32)
    inf = np.inf
    s = {
        "lower": [inf, -2.0, 0.0, -2.0, inf],
        "upper": [inf, 2.0, 4.0, 2.0, inf],
        "scale": [1.0, 0.5, 1.0, 2.0, 1e-3],
        "zero": [0.0, 1.0, 2.0, 3.0, 4.0],
    }
    s = {name: jnp.asarray(a, jnp.float32) for name, a in s.items()}
    codes, group = group_encode(x, **s, levels=jnp.float32(3), bits=2, impl=impl)
    assert np.asarray(group).tolist() == [[1, 2, 2]]
    assert np.asarray(codes).tolist() == [[[0, 2, 3], [3, 3, 3]]]
    assert np.asarray(base_scale(s["upper"], s["scale"])).tolist() == [0.5]


@plain
def test_an_image_is_encoded_as_if_alone(impl, rng):
    x, s = values(rng, 3, 9, 13), state(rng, 5, 4)
    together = group_encode(x, **s, bits=4, impl=impl)
    for i in range(3):
        alone = group_encode(x[i : i + 1], **s, bits=4, impl=impl)
        assert_codes(alone, [np.asarray(a)[i : i + 1] for a in together])


def test_a_width_below_eight_recompiles_nothing(rng):
    x = values(rng, 1, 4, 5)
    group_encode(x, **state(rng, 3, 4), bits=4, impl="xla")
    before = xla._encode._cache_size()
    for bits in (2, 6, 7):
        group_encode(x, **state(rng, 3, bits), bits=bits, impl="xla")
    assert xla._encode._cache_size() == before
    group_encode(x, **state(rng, 3, 8), bits=8, impl="xla")
    assert xla._encode._cache_size() == before + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.zeros((2, 3), np.float32)}, r"x is float32 \[2, 3\], must be float32 \[b n d\]"),
        ({"x": np.zeros((1, 2, 3), np.int8)}, "x is int8"),
        ({"x": np.zeros((1, 0, 3), np.float32)}, "with values"),
        ({"upper": np.zeros(3, np.float32)}, r"upper is float32 \[3\], must be float32 \[g\]"),
        ({"zero": np.zeros(4, np.int32)}, "zero is int32"),
        ({"lower": np.float32(0)}, r"lower is float32 \[\]"),
        ({"levels": np.zeros(1, np.float32)}, "levels is float32"),
        ({"bits": 9}, "bits must be a whole number from 1 to 8, got 9"),
        ({"bits": 0}, "from 1 to 8, got 0"),
        ({"distance": "square"}, "distance: got 'square'.*'squared'"),
        ({"along": "m"}, "along: got 'm'"),
        ({"impl": "xlaa"}, "group_encode has no implementation 'xlaa'.*'xla'"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change, says, rng):
    given = {"x": values(rng, 1, 2, 3), **state(rng, 4, 4)}
    group_encode(**given)
    with pytest.raises(ValueError, match=says) as e:
        group_encode(**(given | {name: jnp.asarray(a) if hasattr(a, "dtype") else a for name, a in change.items()}))
    assert "\n" not in str(e.value)


def test_what_does_not_fit_on_a_tpu_is_declined():
    s = {name: jnp.zeros(2, jnp.float32) for name in CENTRES[:4]} | {"levels": jnp.float32(15)}
    for along, shape in (("d", (1, 9000, 200)), ("n", (1, 200, 40000))):
        with pytest.raises(NotImplementedError, match=f"a group of '{along}' do not fit on chip"):
            jax.eval_shape(partial(pallas_tpu.group_encode, **s, along=along), jax.ShapeDtypeStruct(shape, "float32"))


def test_real_cases_use_many_groups_and_codes():
    real = [case for case in CASES if case.real]
    assert {case.static.get("along", "d") for case in real} == {"d", "n"}
    case = next(case for case in real if case.name == "DeiT-T fc1, ladder")
    codes, group = group_encode(**case.arrays(np.random.default_rng(0)), **case.static)
    assert len(np.unique(np.asarray(group))) == 8
    assert np.abs(np.asarray(codes, np.int32)).max() <= 127
    assert len(np.unique(np.asarray(codes))) > 16
