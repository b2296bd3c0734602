"""Attention of integers against float64; ``test_kernels`` compares the implementations on the cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.kernels.attention import CASES, IMPLEMENTATIONS, attention, xla

SMALL = {case.name: case for case in CASES if not case.real}
plain = pytest.mark.parametrize("impl", ["ref", "xla"])
every = pytest.mark.parametrize("name", SMALL)
run = jax.jit(attention, static_argnames=("p_levels", "impl"))


def off(x, scale, zero):
    """The numbers behind codes, float64."""
    return scale.astype(np.float64) * (x.astype(np.float64) - (0 if zero is None else zero))


def by_hand(a, p_levels=255):
    """The output in float64, and by how much it may be off: a code for each p within 1e-4 of a half."""
    q, k, v = (off(a[n], a[f"{n}_scale"], a[f"{n}_zero"]) for n in "qkv")
    b, h, rows, _ = q.shape
    out, may = np.zeros(q.shape), np.zeros(q.shape)
    for image, head in np.ndindex(b, h):
        scores = q[image, head] @ k[image, head].T
        if a["bias"] is not None:
            scores = scores + np.broadcast_to(a["bias"], (b, h, *scores.shape))[image, head]
        for row in range(rows):
            p = np.exp(scores[row] - scores[row].max())
            p = p / p.sum()
            if a["p_scale"] is not None:
                scale = np.float64(np.broadcast_to(a["p_scale"], (1, h, 1, 1))[0, head, 0, 0])
                zero = 0 if a["p_zero"] is None else np.broadcast_to(a["p_zero"], (1, h, 1, 1))[0, head, 0, 0]
                halves = np.abs(p / scale - np.floor(p / scale) - 0.5) < 1e-4
                may[image, head, row] = scale * (halves[:, None] * np.abs(v[image, head])).sum(axis=0)
                p = scale * (np.clip(np.round(p / scale) + zero, 0, p_levels) - zero)
            out[image, head, row] = p @ v[image, head]
    return out, may


def arrays(a):
    return {name: None if x is None else jnp.asarray(x) for name, x in a.items()}


@plain
@every
def test_outputs_are_those_of_float64(impl, name, rng):
    a = SMALL[name].arrays(rng)
    want, may = by_hand(a, **SMALL[name].static)
    got = run(**arrays(a), **SMALL[name].static, impl=impl)
    assert got.dtype == jnp.float32
    assert np.abs(want).max() > 0.1
    assert (may == 0).mean() > 0.8  # the bound says something
    assert (np.abs(got - want) <= may + 1e-5 * np.abs(want).max()).all()


def uniform(rows=3, keys=4, e=2, **more):
    """Operands whose attention is the same for all keys, and whose values are whole numbers."""
    one = jnp.ones((1, 1, 1, 1), jnp.float32)
    v = jnp.arange(keys * e, dtype=jnp.int8).reshape(1, 1, keys, e)
    k = jnp.full((1, 1, keys, e), 7, jnp.int8)
    given = {"q": jnp.full((1, 1, rows, e), -5, jnp.int8), "k": k, "v": v}
    return given | dict.fromkeys(("q_scale", "k_scale", "v_scale"), one) | more


def scalar(x, dtype=jnp.float32):
    return jnp.full((1, 1, 1, 1), x, dtype)


@plain
def test_uniform_attention_by_hand(impl):
    v = np.arange(8).reshape(4, 2)
    for scale, code in ((1 / 255, 64), (1 / 128, 32), (0.25, 1), (0.3, 1), (0.6, 0), (1e-3, 250), (1e-4, 255)):
        got = run(**uniform(p_scale=scalar(scale)), impl=impl)
        np.testing.assert_allclose(got[0, 0], np.tile(scale * code * v.sum(0), (3, 1)), rtol=1e-6)
    got = run(**uniform(p_scale=scalar(0.1), p_zero=scalar(3, jnp.int32)), p_levels=4, impl=impl)
    np.testing.assert_allclose(got[0, 0, 0], 0.1 * (4 - 3) * v.sum(0), rtol=1e-6)  # 2 + 3, cut off at 4
    got = run(**uniform(v_zero=scalar(2, jnp.int32)), impl=impl)
    np.testing.assert_allclose(got[0, 0, 0], v.mean(axis=0) - 2, rtol=1e-6)


@plain
def test_a_mask_takes_keys_out(impl):
    bias = jnp.asarray([[0, 0, -1e9, -1e9]] * 3, jnp.float32)[None, None]
    got = run(**uniform(p_scale=scalar(1 / 250), bias=bias), impl=impl)
    np.testing.assert_allclose(got[0, 0, 0], 125 / 250 * np.array([0 + 2, 1 + 3]), rtol=1e-6)


def test_the_zero_point_of_k_changes_no_attention(rng):
    a = arrays(SMALL["every option"].arrays(rng))
    want = run(**a, impl="xla")
    np.testing.assert_array_equal(run(**a | {"k_zero": None}, impl="xla"), want)
    assert np.abs(run(**a | {"q_zero": None}, impl="xla") - want).max() > 1e-3


@pytest.mark.parametrize("together", [1, 2, 6])
def test_a_few_images_at_a_time_are_all_images(together, rng, monkeypatch):
    a = arrays(SMALL["p of 4 bits, a mask for each window"].arrays(rng))
    a |= {name: jnp.concatenate([x, x[::-1]]) for name, x in a.items() if x is not None and x.shape[0] == 3}
    a["v_scale"] = a["v_scale"] * jnp.arange(1, 7, dtype=jnp.float32)[:, None, None, None]
    static = {"p_levels": 15}
    want = IMPLEMENTATIONS["ref"](**a, **static)
    monkeypatch.setattr(xla, "STEP", together * 2 * 16 * 16)
    assert xla._together(6, 2 * 16 * 16) == together
    attend = functools.partial(xla.attend.__wrapped__, **static)
    assert ("scan" in str(jax.make_jaxpr(lambda a: attend(**a))(a))) == (together < 6)
    np.testing.assert_allclose(jax.jit(lambda a: attend(**a))(a), want, rtol=1e-6)


def test_steps_divide_the_images():
    assert xla._together(8, 12 * 197 * 197) == 1
    assert xla._together(64, 3 * 49 * 49) == 64
    assert xla._together(512, 3 * 49 * 49) == 64
    assert xla._together(7, 2**18) == 1


# What does not fit


def test_what_a_device_cannot_do_is_declined(rng):
    many = uniform(keys=4097, e=1, v=jnp.zeros((1, 1, 4097, 1), jnp.int8), k=jnp.zeros((1, 1, 4097, 1), jnp.int8))
    with pytest.raises(NotImplementedError, match="at most 4096 of 512 channels, got 4097 of 1"):
        IMPLEMENTATIONS["pallas_tpu"](**many)
    if jax.__version_info__ < (0, 11):
        with pytest.raises(NotImplementedError, match="needs jax 0.11"):
            IMPLEMENTATIONS["pallas_gpu"](**many)
        return
    with pytest.raises(NotImplementedError, match="codes of p only: give p_scale"):
        IMPLEMENTATIONS["pallas_gpu"](**uniform())
    with pytest.raises(NotImplementedError, match="4097 keys of 1 channels take .* bytes of shared memory"):
        IMPLEMENTATIONS["pallas_gpu"](**many | {"p_scale": scalar(1.0)})


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a device")
@pytest.mark.parametrize("impl", ["pallas_tpu", "pallas_gpu"])
def test_an_implementation_for_another_device_says_so(impl):
    with pytest.raises(NotImplementedError, match=f"attention: '{impl}' runs on {impl[-3:]}, this process has cpu"):
        attention(**uniform(), impl=impl)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": jnp.zeros((1, 1, 3, 2), jnp.uint8)}, "q is uint8, but codes are int8"),
        ({"v": jnp.zeros((1, 4, 2), jnp.int8)}, r"v has shape \[1, 4, 2\], not \[b h tokens e\]"),
        ({"q": jnp.zeros((1, 1, 0, 2), jnp.int8)}, r"q has shape \[1, 1, 0, 2\], not"),
        ({"q": jnp.zeros((1, 1, 3, 3), jnp.int8)}, r"q \[1, 1, 3, 3\] and k \[1, 1, 4, 2\] differ in more than"),
        ({"v": jnp.zeros((1, 1, 5, 2), jnp.int8)}, r"k \[1, 1, 4, 2\] and v \[1, 1, 5, 2\] differ"),
        ({"v_scale": jnp.ones((1, 1, 1, 1), jnp.int32)}, "v_scale is int32, not float32"),
        ({"q_scale": jnp.ones((), jnp.float32)}, r"q_scale has shape \[\], not \[1 1 1 1\]"),
        ({"q_scale": jnp.ones((1, 2, 1, 1), jnp.float32)}, r"q_scale has shape \[1, 2, 1, 1\], not \[1 1 1 1\]"),
        ({"v_scale": jnp.ones((1, 1, 1, 2), jnp.float32)}, r"v_scale has shape \[1, 1, 1, 2\], not \[1 1 1 1\]"),
        ({"k_zero": jnp.zeros((1, 1, 1, 1), jnp.float32)}, "k_zero is float32, not int32"),
        ({"bias": jnp.zeros((1, 1, 3, 5), jnp.float32)}, r"bias has shape \[1, 1, 3, 5\], not \[1 1 3 4\]"),
        ({"p_zero": jnp.zeros((1, 1, 1, 1), jnp.int32)}, "p_zero is given, but no p_scale"),
        ({"p_levels": 256}, "p_levels must be a whole number from 1 to 255, got 256"),
        ({"p_levels": 0}, "from 1 to 255, got 0"),
        ({"impl": "xlb"}, r"attention has no implementation 'xlb' \(did you mean 'xla'\?\)"),
    ],
)
def test_operands_that_do_not_fit_are_one_clear_line(change, says):
    with pytest.raises(ValueError, match=says) as e:
        attention(**uniform() | change)
    assert "\n" not in str(e.value)


def test_scales_of_several_heads_are_named_with_their_choices():
    wide = {n: jnp.tile(uniform()[n], (2, 3, 1, 1)) for n in "qkv"}
    with pytest.raises(ValueError, match=r"p_scale has shape \[2, 1, 1, 1\], not \[1 1\|3 1 1\]"):
        attention(**uniform(**wide, p_scale=jnp.ones((2, 1, 1, 1), jnp.float32)))
    with pytest.raises(ValueError, match=r"v_zero has shape \[3, 1, 1, 1\], not \[1\|2 1\|3 1 1\]"):
        attention(**uniform(**wide, v_zero=jnp.ones((3, 1, 1, 1), jnp.int32)))
