"""What every file of a folder must satisfy before it has tests of its own: quantisers, methods, models, configs."""

import dataclasses
import importlib.util
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvq.quantizers
from jvq.config import typed
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import resolve, sites
from jvq.methods import METHODS
from jvq.models import ARCHITECTURES, build
from jvq.quantizers import Dynamic, Grouped, Learned, StaticGrouped, Uniform

QUANTIZERS = [getattr(jvq.quantizers, name) for name in jvq.quantizers.__all__]
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
POST_TRAINING = [name for name, module in METHODS.items() if hasattr(module, "recipe")]
LETTERS, SHAPE = "bnd", (4, 10, 16)
TINY = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 2, "heads": 2, "classes": 3}
TINY_OF = {  # where an architecture needs other fields
    "swin": {"image": (8, 8), "channels": 1, "patch": 2, "dim": 8, "depths": (1, 1), "heads": (2, 2), "window": 2},
    "saliency": {**TINY, "classes": 0, "decoder": (6, 5)},
}


@pytest.fixture(scope="module")
def samples():
    return jnp.asarray(np.random.default_rng(0).normal(size=SHAPE) * np.logspace(-1, 1, 16), jnp.float32)


@pytest.fixture(scope="module")
def tiny():
    model = build("vit", TINY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    return model, params, sites(model.forward, params, model.image)


def each_quantizer(*bits):
    return pytest.mark.parametrize("quantizer", [kind(bits=b) for kind in QUANTIZERS for b in bits], ids=str)


@each_quantizer(4)
def test_a_quantizer_is_a_hashable_frozen_dataclass_with_a_source(quantizer):
    assert isinstance(quantizer, Quantizer)
    assert hash(quantizer) == hash(dataclasses.replace(quantizer))
    with pytest.raises(dataclasses.FrozenInstanceError):
        quantizer.bits = 3
    assert "State" in inspect.getdoc(type(quantizer)), "the docstring must say what the state holds"


@each_quantizer(1, 3, 8)
def test_codes_decode_to_what_apply_computes(quantizer, samples):
    quantizer.check(LETTERS, SHAPE)
    state = quantizer.init(samples, LETTERS)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))
    codes = quantizer.encode(state, samples, LETTERS)
    values = quantizer.apply(state, samples, LETTERS)
    assert values.shape == samples.shape
    assert values.dtype == samples.dtype
    assert codes.codes.dtype == jnp.int32
    assert 0 <= codes.codes.min()
    assert codes.codes.max() <= 2**quantizer.bits - 1
    np.testing.assert_array_equal(codes.decode(), values)
    assert len(np.unique(values - samples)) > 1, "a quantiser that changes nothing is none"


@each_quantizer(4)
def test_an_image_is_quantised_the_same_alone_and_in_a_batch(quantizer, samples):
    state = quantizer.init(samples, LETTERS)
    together = quantizer.apply(state, samples, LETTERS)
    alone = jnp.concatenate([quantizer.apply(state, samples[i : i + 1], LETTERS) for i in range(len(samples))])
    np.testing.assert_array_equal(alone, together)


@each_quantizer(4)
def test_more_bits_less_error(quantizer, samples):
    errors = []
    for bits in (2, 4, 8):
        q = dataclasses.replace(quantizer, bits=bits)
        errors.append(float(jnp.square(q.apply(q.init(samples, LETTERS), samples, LETTERS) - samples).mean()))
    assert errors[0] > errors[1] > errors[2]


@each_quantizer(4)
def test_the_width_lives_in_the_state_so_that_no_width_recompiles(quantizer, samples):
    traces = []

    @jax.jit
    def run(state, x):
        traces.append(1)
        return quantizer.apply(state, x, LETTERS)

    for bits in (3, 5):
        q = dataclasses.replace(quantizer, bits=bits)
        state = q.init(samples, LETTERS)
        np.testing.assert_array_equal(run(state, samples), q.apply(state, samples, LETTERS))
    assert len(traces) == 1


VARIED = {
    Uniform: [dict(keep="d"), dict(symmetric=True), dict(range="mse"), dict(zero_point="clamp")],
    Dynamic: [dict(keep="bd"), dict(nonnegative=True), dict(zero_point="free")],
    Grouped: [
        dict(along="n", distance="absolute"),
        dict(nonnegative=True, distance="relative"),
        dict(mstep="mean", statistics="pooled"),
        dict(ladder=True),
        dict(groups=3, capacity=9),
    ],
    Learned: [
        dict(keep="d"),
        dict(signed=False, offset=True),
        dict(start="released"),
        dict(heads=4, keep="h"),
        dict(gradient="l1"),
    ],
    StaticGrouped: [dict(along="n"), dict(grouping="kmeans"), dict(bounds="mse"), dict(nonnegative=True)],
}


@pytest.mark.parametrize("bits", [3])
@pytest.mark.parametrize("quantizer", [kind(**c) for kind in QUANTIZERS for c in [{}, *VARIED[kind]]], ids=repr)
def test_the_form_does_what_the_quantizer_does(quantizer, bits, samples):
    quantizer = dataclasses.replace(quantizer, bits=bits)
    state = quantizer.init(samples, LETTERS)
    assert quantizer.form == dataclasses.replace(quantizer, bits=7).form == quantizer.form.form
    np.testing.assert_array_equal(
        quantizer.form.apply(state, samples, LETTERS), quantizer.apply(state, samples, LETTERS)
    )
    got, want = (q.encode(state, samples, LETTERS) for q in (quantizer.form, quantizer))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


@each_quantizer(4)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_constant_operands_stay_finite(quantizer, value):
    x = jnp.full(SHAPE, value, jnp.float32)
    state = quantizer.init(x, LETTERS)
    got = quantizer.apply(state, x, LETTERS)
    np.testing.assert_allclose(got, x, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: quantizer.apply(state, x, LETTERS).sum())(x)).all()


@each_quantizer(4)
def test_overhead_is_a_count(quantizer):
    count = quantizer.overhead(LETTERS, (1, 10, 16), "d", 320, 16)
    assert all(isinstance(part, int) and part >= 0 for part in count)
    assert count.total == sum(count)


@pytest.mark.parametrize("bits", [0, 17, -1, True])
@pytest.mark.parametrize("kind", QUANTIZERS, ids=lambda k: k.__name__)
def test_impossible_widths_are_refused(kind, bits):
    with pytest.raises(ValueError, match="bits must be a whole number"):
        kind(bits=bits).check(LETTERS, SHAPE)


@pytest.mark.parametrize("name", POST_TRAINING)
def test_a_method_resolves_on_a_model_and_its_baselines_exist(name, tiny):
    _, _, known = tiny
    module, options = METHODS[name], METHODS[name].Options()
    plan = resolve(module.recipe(options, known), known)
    assert set(plan) <= set(known)
    assert all(a in plan for a, o in known.items() if o.path is not None), "weights of the default plan are quantised"
    assert all(kind in METHODS for kind, _ in module.baselines(options).values())
    assert {"weights", "patch embedding and head"} <= set(module.protocol(options))
    assert module.__doc__.strip(), "a method's docstring names its source"


@pytest.mark.parametrize("name", POST_TRAINING)
def test_a_method_fits_every_quantiser_of_its_plan(name, tiny):
    model, params, known = tiny
    module, options = METHODS[name], METHODS[name].Options()
    plan = resolve(module.recipe(options, known), known)
    images = np.random.default_rng(1).normal(size=(4, 8, 8, 1)).astype(np.float32)
    fitted = module.fit(options, model.forward, params, images, plan, known)
    assert list(fitted.qstate) == list(fitted.plan) == list(plan)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fitted.qstate))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_names_every_kernel(name):
    model = build(name, TINY_OF.get(name, TINY))
    known = sites(model.forward, model.shapes(), model.image)
    kernels = {
        tuple(str(k.key) for k in path)
        for path, _ in jax.tree_util.tree_flatten_with_path(model.shapes())[0]
        if path[-1].key == "kernel"
    }
    assert {o.path for o in known.values() if o.path is not None} == kernels
    assert all("/".join(o.path) == f"{o.site}/kernel" for o in known.values() if o.path is not None)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_is_a_lab_note_that_loads(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cfg = typed(module.get_config())
    assert cfg.name == path.stem
    assert f"python -m jvq.main --config configs/{path.name}" in module.__doc__, "the docstring gives the command"
    assert any(word in module.__doc__ for word in ("minutes", "seconds")), "the docstring says how long it takes"
