"""Corrected biases (Liu et al. 2021, eqs. 14-16; spec 4, 9.4): mean errors against NumPy in float64."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.dot import quantized, recording
from jvq.core.recipe import sites
from jvq.methods.bias import bias_of, bias_path, mean_errors, sequential_mean_errors, with_bias_corrections
from jvq.models import build
from jvq.quantizers import Dynamic, Uniform

SWIN = {
    "image": (8, 8),
    "channels": 1,
    "patch": 2,
    "dim": 8,
    "depths": (1, 0),
    "heads": (2, 2),
    "window": 2,
    "classes": 3,
}
BITS = 4


@dataclasses.dataclass(frozen=True)
class Switched(Uniform):
    """Quantises where its state is ``on``: one executable for the float model and the quantised one."""

    def apply(self, state, x, letters):
        return jnp.where(state["on"], super().apply(state, x, letters), x)


def of(forward, params, images, bits=BITS):
    """A model, its operands and products (float64), and a plan with its states: symmetric, one range a tensor."""
    known = sites(forward, params, images.shape[1:])

    @jax.jit
    def record(params, x, states):
        tape = {}
        forward(params, x, recording(tape, lambda address: True, quantized(switches, states)))
        return tape

    switches = {a: Switched(bits, symmetric=True) for a in known}
    nothing = {a: {**state(np.ones(1), bits), "on": False} for a in known}
    tape = wide(record(params, images, nothing))
    qstate = {a: state(x, bits) for a, x in tape.items() if a in known}

    def quantised(params):
        """The tape under the whole plan."""
        return wide(record(params, images, {a: {**s, "on": True} for a, s in qstate.items()}))

    return SimpleNamespace(
        forward=forward,
        params=params,
        images=images,
        known=known,
        plan={a: Uniform(bits, symmetric=True) for a in known},
        qstate=qstate,
        tape=tape,
        quantised=quantised,
    )


def wide(tape):
    return {a: np.asarray(x, np.float64) for a, x in tape.items()}


def state(x, bits):
    """Of values from -max to max."""
    scale, zero = np.abs(x).max() / (2 ** (bits - 1) - 1), 2 ** (bits - 1)
    return {"scale": jnp.float32(scale), "zero": jnp.float32(zero), "levels": jnp.float32(2**bits - 1)}


@pytest.fixture(scope="module")
def tiny():
    """A Swin of a block and a merge with random weights and biases, and eight images."""
    model, rng = build("swin", SWIN), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.5, s.shape), jnp.float32), model.shapes())
    return of(model.forward, params, rng.normal(size=(8, *model.image)).astype(np.float32))


def corrections(tiny, batch=8, **changes):
    t = SimpleNamespace(**{**vars(tiny), **changes})
    return mean_errors(t.forward, t.params, t.images, t.plan, t.qstate, t.known, batch=batch)


@pytest.fixture(scope="module")
def found(tiny):
    return corrections(tiny)


def operands(tiny, site):
    """The operands of a product, and its equation."""
    left, right = (o for o in tiny.known.values() if o.site == site)
    return left, right, f"{left.letters},{right.letters}->{left.out}"


def through(tiny, o):
    """The operand as its quantiser (one range a tensor) makes it: codes in float32, as the model has them."""
    x = tiny.tape[o.address]
    if o.address not in tiny.plan:
        return x
    s = {name: np.float32(y) for name, y in tiny.qstate[o.address].items()}
    codes = np.clip(np.round(x.astype(np.float32) * (np.float32(1) / s["scale"])) + s["zero"], 0, s["levels"])
    return np.float64(s["scale"]) * (codes - s["zero"])


def unit_mean(tiny, site, y):
    """The mean over all axes of a product but those of its bias, in the bias's shape."""
    left, right, _ = operands(tiny, site)
    return y.mean(axis=tuple(i for i, a in enumerate(left.out) if a not in right.letters))


def products(tiny, site):
    """The float product and the quantised one, without bias."""
    left, right, equation = operands(tiny, site)
    plain = np.einsum(equation, tiny.tape[left.address], tiny.tape[right.address])
    return plain, np.einsum(equation, through(tiny, left), through(tiny, right))


def leaf(params, path):
    for key in path:
        params = params[key]
    return np.asarray(params, np.float64)


def with_bias(tiny, site, y, bias):
    """The product plus what its bias is."""
    left, right, _ = operands(tiny, site)
    letters = "".join(a for a in left.out if a in right.letters)
    assert len(letters) == bias.ndim
    return y + np.expand_dims(bias, tuple(i for i, a in enumerate(left.out) if a not in letters))


def bias(params, site):
    return leaf(params, (*site.split("/"), "bias"))


def test_corrected_sites_are_those_with_a_bias_in_the_models_order(tiny, found):
    want = [s for s in dict.fromkeys(o.site for o in tiny.known.values()) if s.rpartition("/")[2] not in ("qk", "pv")]
    assert list(found) == [s for s in want if s != "stage0/merge/reduce"] != want
    for site, c in found.items():
        assert c.shape == bias(tiny.params, site).shape, site
        assert c.dtype == np.float32


def test_after_correction_no_output_unit_has_a_mean_error(tiny, found):
    """B1, on the same float inputs; before it they have."""
    corrected = with_bias_corrections(tiny.params, tiny.known, found)
    for site in found:
        plain, quantised = products(tiny, site)
        want = with_bias(tiny, site, plain, bias(tiny.params, site))
        before, after = (with_bias(tiny, site, quantised, bias(p, site)) for p in (tiny.params, corrected))
        rms = np.sqrt(np.square(want).mean())
        assert np.abs(unit_mean(tiny, site, after - want)).max() <= 1e-5 * rms, site
        assert np.abs(unit_mean(tiny, site, before - want)).max() > 1e-3 * rms, site


def test_mean_errors_are_the_three_terms(tiny, found):
    """B2, eq. 16: the weight's error, the input's and that of both; each of them matters."""
    for site, got in found.items():
        left, right, equation = operands(tiny, site)
        x, w = tiny.tape[left.address], tiny.tape[right.address]
        off_x, off_w = through(tiny, left) - x, through(tiny, right) - w
        terms = [unit_mean(tiny, site, np.einsum(equation, *pair)) for pair in ((x, off_w), (off_x, w), (off_x, off_w))]
        plain, quantised = products(tiny, site)
        np.testing.assert_allclose(sum(terms), unit_mean(tiny, site, quantised - plain), atol=1e-12, err_msg=site)
        rms = np.sqrt(np.square(plain).mean())
        np.testing.assert_allclose(got, sum(terms), rtol=1e-6, atol=2e-6 * rms, err_msg=site)
        assert all(np.abs(term).max() > 1e-4 * rms for term in terms), site


def test_nothing_but_the_biases_of_corrected_sites_changes(tiny, found):
    """B3; Swin's merging has none, and those of norms stay."""
    corrected = with_bias_corrections(tiny.params, tiny.known, found)
    assert jax.tree.structure(corrected) == jax.tree.structure(tiny.params)
    left = {(*site.split("/"), "bias"): c for site, c in found.items()}
    for path, before in jax.tree_util.tree_leaves_with_path(tiny.params):
        path = tuple(k.key for k in path)
        after = leaf(corrected, path)
        if path in left:
            c = left.pop(path)
            np.testing.assert_allclose(after, np.asarray(before) - c, rtol=1e-6, atol=1e-7, err_msg=str(path))
            assert np.abs(c).max() > 0, path
        else:
            np.testing.assert_array_equal(after, before, err_msg=str(path))
    assert not left


def test_the_fused_bias_of_query_key_and_value_has_a_correction_a_channel(tiny, found):
    """[s h e]; the mean is over windows, too."""
    site = "stage0/block00/attn/qkv"
    got = found[site]
    assert got.shape == (3, 2, 4)
    plain, quantised = products(tiny, site)
    rms = np.sqrt(np.square(plain).mean())
    for s, h, e in np.ndindex(got.shape):
        assert abs(got[s, h, e] - (quantised - plain)[..., s, h, e].mean()) <= 1e-5 * rms
    assert np.unique(got).size == got.size
    assert got.std() > 1e-3 * rms


def test_correcting_twice_from_the_float_bias_is_correcting_once(tiny, found):
    """B3; nor does a product's correction see the bias behind it: that of the last product stays as it is."""
    last = {"head": found["head"]}
    again = corrections(tiny, params=with_bias_corrections(tiny.params, tiny.known, last))
    jax.tree.map(np.testing.assert_array_equal, again, found)


def test_the_squared_error_falls_by_the_squared_mean_error(tiny, found):
    """B4, exactly."""
    for site, c in found.items():
        plain, quantised = products(tiny, site)
        before = np.square(quantised - plain).mean()
        after = np.square(with_bias(tiny, site, quantised, -np.float64(c)) - plain).mean()
        assert after < before, site
        np.testing.assert_allclose(before - after, np.square(np.float64(c)).mean(), rtol=1e-3, err_msg=site)


def test_sixteen_bits_hardly_correct(tiny, found):
    """B3; an executable serves every width: the states say which it is."""
    fine = {a: state(tiny.tape[a], 16) for a in tiny.plan}
    got = corrections(tiny, qstate=fine)
    for site, c in got.items():
        rms = np.sqrt(np.square(products(tiny, site)[0]).mean())
        assert np.abs(c).max() < 1e-3 * rms, site
        assert np.abs(found[site]).max() > 1e-2 * rms, site
    plan = {a: dataclasses.replace(q, bits=16) for a, q in tiny.plan.items()}
    jax.tree.map(np.testing.assert_array_equal, corrections(tiny, qstate=fine, plan=plan), got)


@pytest.fixture(scope="module")
def in_turn(tiny):
    """The corrections behind quantised and corrected products."""
    return sequential_mean_errors(tiny.forward, tiny.params, tiny.images, tiny.plan, tiny.qstate, tiny.known)


def test_in_turn_every_product_has_the_float_models_mean(tiny, in_turn):
    """With its bias, where all products before it are quantised and corrected; uncorrected it has not."""
    corrected = with_bias_corrections(tiny.params, tiny.known, in_turn)
    after, before = tiny.quantised(corrected), tiny.quantised(tiny.params)
    for site in in_turn:
        plain = with_bias(tiny, site, tiny.tape[f"{site}.y"], bias(tiny.params, site))
        mine = with_bias(tiny, site, after[f"{site}.y"], bias(corrected, site))
        bare = with_bias(tiny, site, before[f"{site}.y"], bias(tiny.params, site))
        rms = np.sqrt(np.square(plain).mean())
        assert np.abs(unit_mean(tiny, site, mine - plain)).max() <= 2e-5 * rms, site
        assert np.abs(unit_mean(tiny, site, bare - plain)).max() > 1e-3 * rms, site


def test_in_turn_corrections_are_others_behind_the_first_product(tiny, in_turn, found):
    """The first product's inputs are the images themselves."""
    assert list(in_turn) == list(found)
    rms = np.sqrt(np.square(products(tiny, "patch")[0]).mean())
    np.testing.assert_allclose(in_turn["patch"], found["patch"], atol=1e-5 * rms)
    for site in list(in_turn)[1:]:
        assert np.abs(in_turn[site] - found[site]).max() > 1e-2 * np.abs(found[site]).max(), site


def test_in_turn_nothing_but_biases_changes(tiny, in_turn):
    """B3."""
    corrected = with_bias_corrections(tiny.params, tiny.known, in_turn)
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), corrected, tiny.params)
    changed = {tuple(k.key for k in path) for path, there in jax.tree_util.tree_leaves_with_path(same) if not there}
    assert changed == {(*site.split("/"), "bias") for site in in_turn}


T, D_IN, D_OUT = 50, 64, 48


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def softmax(x):
    return jax.nn.softmax(3 * x, axis=-1)


def one_layer(inputs):
    """A linear layer with a bias behind ``inputs``, one without behind it, and a product of activations."""

    def forward(params, images, dot):
        x = inputs(images[..., 0])
        x = dot("fc", "bnd,do->bno", x=x, w=params["fc"]["kernel"]) + params["fc"]["bias"][None, None]
        x = dot("bare", "bnd,do->bno", x=x, w=params["bare"]["kernel"])
        return dot("scores", "bqe,bke->bqk", q=x, k=x)

    return forward


@pytest.fixture(scope="module")
def layers():
    """By inputs and width the model, calibrated on 32 images, and the same with 32 others' operands."""
    rng = np.random.default_rng(0)
    params = {
        "fc": {"kernel": rng.normal(0, D_IN**-0.5, (D_IN, D_OUT)), "bias": rng.normal(size=D_OUT)},
        "bare": {"kernel": rng.normal(0, D_OUT**-0.5, (D_OUT, 4))},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    images = rng.normal(size=(64, T, D_IN, 1)).astype(np.float32)
    made = {}

    def layer(inputs, bits=BITS):
        if inputs not in made:
            forward = one_layer(inputs)
            made[inputs] = [of(forward, params, images[i : i + 32]) for i in (0, 32)]
        seen, held = made[inputs]
        qstate = {a: state(seen.tape[a], bits) for a in seen.plan}
        return [SimpleNamespace(**{**vars(t), "qstate": qstate}) for t in (seen, held)]

    return layer


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("inputs", [gelu, softmax])
def test_on_other_images_most_of_the_mean_error_is_gone(inputs, bits, layers):
    """B5: inputs that are not symmetric about zero. (Those that are have no mean error to begin with.)"""
    seen, held = layers(inputs, bits)
    c = corrections(seen, batch=32)["fc"]
    plain, quantised = products(held, "fc")
    before = unit_mean(held, "fc", quantised - plain)
    after, before = (np.sqrt(np.square(e).mean()) for e in (before - c, before))
    assert after < 0.2 * before


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_the_batch_size_does_not_matter(batch, layers):
    """32 images: of 5 the last batch has two."""
    seen, _ = layers(gelu)
    got, want = (corrections(seen, batch=n)["fc"] for n in (batch, 32))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_every_image_counts_once(layers):
    """The corrections of parts of the images, weighted by their sizes, make those of all."""
    seen, _ = layers(gelu)
    parts = [(n, corrections(seen, images=seen.images[i : i + n], batch=32)["fc"]) for i, n in ((0, 5), (5, 27))]
    whole = corrections(seen, batch=32)["fc"]
    np.testing.assert_allclose(sum(n * c for n, c in parts) / 32, whole, rtol=1e-5, atol=1e-5 * np.abs(whole).max())
    assert np.abs(parts[0][1] - parts[1][1]).max() > 1e-2 * np.abs(whole).max()


def test_a_site_without_a_bias_is_none_of_them(layers):
    """B3."""
    seen, _ = layers(gelu)
    assert list(corrections(seen, batch=32)) == ["fc"]
    assert bias_path(seen.known, "fc") == ("fc", "bias")
    assert bias_of(seen.params, seen.known, "fc") is seen.params["fc"]["bias"]
    assert bias_path(seen.known, "bare") == ("bare", "bias")
    assert bias_of(seen.params, seen.known, "bare") is None
    assert bias_path(seen.known, "scores") is None
    assert bias_of(seen.params, seen.known, "scores") is None


@pytest.mark.parametrize("address", ["fc.x", "fc.w"])
def test_one_quantised_operand_is_enough(address, layers):
    seen, _ = layers(gelu)
    only = SimpleNamespace(**{**vars(seen), "plan": {a: seen.plan[a] for a in (address, "bare.x", "scores.q")}})
    got = corrections(only, batch=32)
    plain, quantised = products(only, "fc")
    assert list(got) == ["fc"]
    rms = np.sqrt(np.square(plain).mean())
    np.testing.assert_allclose(got["fc"], unit_mean(only, "fc", quantised - plain), atol=1e-6 * rms)
    assert np.abs(got["fc"]).max() > 1e-4 * rms


def test_no_quantised_site_no_correction(layers):
    seen, _ = layers(gelu)
    plan = {"bare.x": seen.plan["bare.x"]}
    assert corrections(seen, plan=plan) == {}
    assert sequential_mean_errors(seen.forward, seen.params, seen.images, plan, seen.qstate, seen.known) == {}
    same = with_bias_corrections(seen.params, seen.known, {})
    assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(seen.params), strict=True))


def test_quantisers_of_other_kinds_are_corrected_for(layers):
    """A range of the moment for every channel of every image."""
    seen, _ = layers(gelu)
    got = corrections(seen, plan={"fc.x": Dynamic(BITS, "bd")}, qstate={"fc.x": {"levels": jnp.float32(15)}}, batch=32)
    x = seen.tape["fc.x"].astype(np.float32)
    lower, upper = np.minimum(x.min(axis=1, keepdims=True), 0), np.maximum(x.max(axis=1, keepdims=True), 0)
    scale = (upper - lower) * np.float32(1 / 15)
    zero = np.clip(np.round(-lower / scale), 0, 15)
    quantised = scale * (np.clip(np.round(x * (1 / scale)) + zero, 0, 15) - zero)
    want = ((quantised - x).astype(np.float64) @ seen.tape["fc.w"]).mean(axis=(0, 1))
    np.testing.assert_allclose(got["fc"], want, atol=1e-3 * np.abs(want).max())
