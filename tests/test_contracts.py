"""What every file of a folder must satisfy before it has tests of its own: quantisers, methods, models, configs."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvq.quantizers
from jvq.config import typed
from jvq.core.quantizer import widths
from jvq.core.recipe import resolve, sites
from jvq.methods import METHODS
from jvq.methods.minmax import is_edge
from jvq.models import ARCHITECTURES, build
from jvq.quantizers import (
    Dynamic,
    Grouped,
    Learned,
    ShiftedSigns,
    Signs,
    StaticGrouped,
    Steps,
    Ternary,
    Uniform,
    contract,
)
from jvq.quantizers.contract import LETTERS, SHAPE

QUANTIZERS = [getattr(jvq.quantizers, name) for name in jvq.quantizers.__all__]
SCALABLE = [kind for kind in QUANTIZERS if len(widths(kind)) > 1]  # the others have one width
CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
POST_TRAINING = [name for name, module in METHODS.items() if hasattr(module, "recipe")]
TINY = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 2, "heads": 2, "classes": 3}
TINY_OF = {  # where an architecture needs other fields
    "swin": {"image": (8, 8), "channels": 1, "patch": 2, "dim": 8, "depths": (1, 1), "heads": (2, 2), "window": 2},
    "saliency": {**TINY, "classes": 0, "decoder": (6, 5)},
}


@pytest.fixture(scope="module")
def samples():
    return contract.operand()


@pytest.fixture(scope="module")
def tiny():
    model = build("vit", TINY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    return model, params, sites(model.forward, params, model.image)


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
    Signs: [
        dict(smooth=False),
        dict(smooth=False, size=0.3),
        dict(scale="mean", keep="d"),
        dict(scale="mean", centred=True),
        dict(scale="learned", keep="d"),
        dict(scale="learned", gradient="true"),
    ],
    Steps: [dict(keep="d"), dict(scale="one"), dict(scale="one", threshold="zero")],
    ShiftedSigns: [dict(keep="d"), dict(zero_start="minus_one")],
    Ternary: [dict(keep="d")],
}
EVERY = [kind(**c) for kind in QUANTIZERS for c in [{}, *VARIED[kind]]]
ONE_WIDTH = [q for q in EVERY if type(q) not in SCALABLE]


def at(kind, bits):
    return [kind(bits=b) for b in bits if b in widths(kind)]


def each_quantizer(*bits, of=(*SCALABLE, *ONE_WIDTH)):
    """Every kind that is scalable at each of these widths, and the others as they are."""
    made = [q for kind in of for q in (at(kind, bits) if kind in SCALABLE else [kind])]
    return pytest.mark.parametrize("quantizer", made, ids=repr)


@each_quantizer(4)
def test_a_quantizer_is_a_hashable_frozen_dataclass_with_a_source(quantizer, samples):
    contract.described(quantizer, samples, LETTERS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        quantizer.bits = 3


@each_quantizer(1, 3, 8)
def test_codes_decode_to_what_apply_computes(quantizer, samples):
    contract.decodes(quantizer, samples, LETTERS)


@each_quantizer(4)
def test_an_image_is_quantised_the_same_alone_and_in_a_batch(quantizer, samples):
    contract.alone(quantizer, samples, LETTERS)


@each_quantizer(4, of=SCALABLE)
def test_more_bits_less_error(quantizer, samples):
    contract.finer(quantizer, samples, LETTERS)


@each_quantizer(4, of=SCALABLE)
def test_the_width_lives_in_the_state_so_that_no_width_recompiles(quantizer, samples):
    contract.traced(quantizer, samples, LETTERS)


@pytest.mark.parametrize("bits", [3])
@pytest.mark.parametrize("quantizer", EVERY, ids=repr)
def test_the_form_does_what_the_quantizer_does(quantizer, bits, samples):
    if bits in widths(quantizer):
        quantizer = dataclasses.replace(quantizer, bits=bits)
    contract.formed(quantizer, samples, LETTERS)


@each_quantizer(4)
def test_constant_operands_stay_finite(quantizer, samples):
    contract.constants(quantizer, samples, LETTERS)


# A sign is a constant only with a scale that is the mean at hand: 1, 2 mean|x| and 4 mean|x| are the start of others.
FITTING = [*(q for kind in SCALABLE for q in at(kind, [4])), Signs(scale="mean"), Ternary()]


@pytest.mark.parametrize("quantizer", FITTING, ids=str)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_ranges_that_fit_the_operand_reproduce_a_constant(quantizer, value):
    x = jnp.full(SHAPE, value, jnp.float32)
    np.testing.assert_allclose(quantizer.apply(quantizer.init(x, LETTERS), x, LETTERS), x, rtol=1e-5)


@each_quantizer(4)
def test_overhead_is_a_count(quantizer, samples):
    contract.counts(quantizer, samples, LETTERS)


@pytest.mark.parametrize("bits", contract.NO_WIDTHS)
@pytest.mark.parametrize("kind", QUANTIZERS, ids=lambda k: k.__name__)
def test_impossible_widths_are_refused(kind, bits, samples):
    contract.refuses(kind(), samples, LETTERS)
    says = "bits must be a whole number" if kind in SCALABLE else f"bits must be {widths(kind)[0]}, got {bits}"
    with pytest.raises(ValueError, match=says):
        kind(bits=bits).check(LETTERS, SHAPE)


@pytest.mark.parametrize("kind", QUANTIZERS, ids=lambda k: k.__name__)
def test_a_quantizer_has_the_widths_that_it_says(kind):
    for bits in range(1, 17):
        if bits in widths(kind):
            kind(bits=bits).check(LETTERS, SHAPE)
        else:
            with pytest.raises(ValueError, match=f"bits must be .*got {bits}"):
                kind(bits=bits).check(LETTERS, SHAPE)


@pytest.mark.parametrize("name", POST_TRAINING)
def test_a_method_resolves_on_a_model_and_its_baselines_exist(name, tiny):
    _, _, known = tiny
    module, options = METHODS[name], METHODS[name].Options()
    plan = resolve(module.recipe(options, known), known)
    assert set(plan) <= set(known)
    inside = [a for a, o in known.items() if o.path is not None and not is_edge(o)]
    assert inside
    assert set(inside) <= set(plan), "weights of the default plan are quantised, but for the ends of the model"
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
