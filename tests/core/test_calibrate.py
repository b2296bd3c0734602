"""Calibration: from a plan and images to states, whatever the order, the batches and the passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.calibrate import calibrate, observe
from jvq.core.dot import float_dot, quantized, recording
from jvq.core.freeze import freeze
from jvq.core.recipe import resolve, sites
from jvq.quantizers import Dynamic, Grouped, Uniform

RECIPE = [
    ("*", Uniform(bits=6)),
    ("*.w", Uniform(bits=3, keep="o")),
    ("attn/qkv.w", Uniform(bits=3, keep="sh")),
    ("attn/qkv.x", Grouped(bits=3, groups=3, mstep="mean", start="quantile")),
    ("attn/pv.p", Grouped(bits=3, groups=3, along="hq", nonnegative=True, mstep="cover", start="quantile")),
    ("head.x", Dynamic(bits=4)),
]


@pytest.fixture(scope="module")
def plan(tiny):
    return resolve(RECIPE, tiny.known)


def run(tiny, plan, images=None, **options):
    return calibrate(tiny.forward, tiny.params, tiny.images if images is None else images, plan, tiny.known, **options)


@pytest.fixture(scope="module")
def parallel(tiny, plan):
    return run(tiny, plan)


@pytest.fixture(scope="module")
def sequential(tiny, plan):
    return run(tiny, plan, sequential=True)


@pytest.fixture(scope="module")
def operands(tiny):
    """What the float model multiplies, recorded here."""

    def record(params, images):
        tape = {}
        tiny.forward(params, images, recording(tape, lambda a: True))
        return tape

    return jax.device_get(jax.jit(record)(tiny.params, tiny.images))


def assert_same(a, b, addresses=None, **tolerance):
    for address in a if addresses is None else addresses:
        assert a[address].keys() == b[address].keys()
        for name in a[address]:
            np.testing.assert_allclose(a[address][name], b[address][name], err_msg=f"{address} {name}", **tolerance)


EXACT = {"rtol": 0, "atol": 0}


def test_every_quantiser_of_the_plan_gets_a_state(plan, parallel, sequential):
    assert list(parallel) == list(plan) == list(sequential)
    assert all(isinstance(x, jax.Array) for state in parallel.values() for x in state.values())


@pytest.mark.parametrize("address", ["stem.x", "attn/qk.q", "attn/pv.v", "stem.w", "head.w", "attn/qkv.w"])
def test_ranges_are_those_of_the_float_models_operands(tiny, plan, parallel, operands, address):
    x = operands[address].astype(np.float64)
    over = tuple(i for i, a in enumerate(tiny.known[address].letters) if a not in plan[address].keep)
    low, high = np.minimum(x.min(axis=over), 0), np.maximum(x.max(axis=over), 0)
    np.testing.assert_allclose(parallel[address]["scale"], (high - low) / (2 ** plan[address].bits - 1), rtol=1e-5)


def test_groups_are_those_of_the_float_models_rows(parallel, operands):
    highest = operands["attn/pv.p"].max()
    np.testing.assert_allclose(np.max(parallel["attn/pv.p"]["scale"]) * 7, highest, rtol=1e-5)  # mstep="cover"


def test_the_order_of_the_plan_changes_nothing(tiny, plan, parallel):
    turned = dict(reversed(plan.items()))
    assert_same(parallel, run(tiny, turned), **EXACT)


def test_calibrating_fewer_operands_changes_nothing(tiny, plan, parallel):
    some = {a: plan[a] for a in ("attn/qkv.x", "attn/pv.p", "head.w")}
    assert_same(parallel, run(tiny, some), some, **EXACT)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_the_batch_size_changes_nothing_but_last_bits(tiny, plan, parallel, batch):
    assert_same(parallel, run(tiny, plan, batch=batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch", [4, 6])
def test_of_an_activation_so_many_values_are_kept_and_all_extremes(tiny, operands, batch):
    """Which values does not depend on the batches; images are 6."""
    apart = {"attn/qkv.x": {"d", ""}, "attn/pv.p": {"hq"}}
    kept = observe(tiny.forward, tiny.params, tiny.images, apart, tiny.known, batch=batch, values=96)
    for address, kinds in apart.items():
        letters = tiny.known[address].letters
        for kind in kinds:
            got, x = kept[address][kind], operands[address]
            over = tuple(i for i, a in enumerate(letters) if a not in "b" + kind)
            np.testing.assert_allclose(got.lower, x.min(axis=over, keepdims=True), rtol=1e-5)
            np.testing.assert_allclose(got.upper, x.max(axis=over, keepdims=True), rtol=1e-5)
            assert 96 / 3 <= got.values.size <= max(96 * 1.5, got.lower.size) < x.size
            assert got.weight * got.values.size == pytest.approx(x.size)
            assert np.isclose(got.values.ravel()[:, None], x.ravel()[None], rtol=1e-5).any(axis=1).all()
    whole = observe(tiny.forward, tiny.params, tiny.images, apart, tiny.known, batch=batch)
    np.testing.assert_allclose(whole["attn/pv.p"]["hq"].values, operands["attn/pv.p"], rtol=1e-5, atol=1e-9)


def test_fewer_values_are_as_good_for_ranges_that_need_extremes_alone(tiny, plan, parallel):
    """All of the plan but attn/qkv.x and attn/pv.p, whose groups are found from extremes too."""
    assert_same(parallel, run(tiny, plan, values=48), **EXACT)


def test_weights_and_images_are_all_that_counts(tiny, plan, parallel):
    weights = ["stem.w", "attn/qkv.w", "head.w"]
    other = run(tiny, {a: plan[a] for a in ("stem.x", *weights)}, images=tiny.images[:3])
    assert_same(parallel, other, weights, **EXACT)
    assert parallel["stem.x"]["scale"] != other["stem.x"]["scale"]


def test_sequential_equals_parallel_at_the_first_site_and_at_weights(plan, parallel, sequential):
    assert_same(parallel, sequential, ["stem.x", *(a for a in plan if a.endswith(".w"))], **EXACT)


def test_sequential_sees_the_error_of_earlier_sites(tiny, plan, parallel, sequential):
    """The range of q and of the values is that of the model whose stem and projection are quantised, by hand."""
    params, x = tiny.params, tiny.images.reshape(6, 8, 4)

    def fake(address, x):
        return plan[address].apply(parallel[address], jnp.asarray(x), tiny.known[address].letters)

    x = np.tanh(np.einsum("bnd,do->bno", fake("stem.x", x), fake("stem.w", params["stem"]["kernel"])))
    points = np.stack([x.min(axis=1), x.max(axis=1)], axis=-1).reshape(-1, 2)
    centres = np.stack([sequential["attn/qkv.x"][name] for name in ("lower", "upper")], axis=-1)
    group = np.square(points[:, None] - centres[None]).sum(axis=-1).argmin(axis=1)
    for g in range(3):  # the centres are the means of the quantised model's points, not of the float model's
        np.testing.assert_allclose(centres[g], points[group == g].mean(axis=0), atol=1e-5)
    assert np.abs(sequential["attn/qkv.x"]["upper"] - parallel["attn/qkv.x"]["upper"]).max() > 1e-4
    assert sequential["attn/qk.q"]["scale"] != parallel["attn/qk.q"]["scale"]


def test_sequential_leaves_no_trace_of_its_own_in_the_state(parallel, sequential):
    for address, state in sequential.items():
        assert state.keys() == parallel[address].keys()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_that_is_not_finite_is_named(tiny, plan, value, sequential):
    images = tiny.images.copy()
    images[4, 1, 2, 0] = value
    images[5] = value
    with pytest.raises(ValueError, match=r"calibration image 4 .*\(2 such images\)"):
        run(tiny, plan, images=images, sequential=sequential)


def test_a_weight_that_is_not_finite_is_named(tiny, plan):
    params = {**tiny.params, "head": {"kernel": tiny.params["head"]["kernel"].at[0, 0].set(jnp.nan)}}
    with pytest.raises(ValueError, match=r"^head\.w: .*not finite"):
        calibrate(tiny.forward, params, tiny.images, plan, tiny.known)


@pytest.mark.parametrize("sequential", [False, True])
def test_an_operand_that_is_not_finite_is_named(tiny, plan, sequential):
    def broken(params, images, dot):
        def overflowing(site, equation, /, **operands):
            if site == "attn/pv":
                operands = {**operands, "v": operands["v"] / 0.0}
            return dot(site, equation, **operands)

        return tiny.forward(params, images, overflowing)

    with pytest.raises(ValueError, match=r"^attn/pv\.v: .*not finite"):
        calibrate(broken, tiny.params, tiny.images, plan, tiny.known, sequential=sequential)


def test_an_operand_without_images_and_parameter_is_named():
    def forward(params, images, dot):
        return dot("fc", "bd,do->bo", x=images.reshape(images.shape[0], -1), w=2.0 * params)

    params, images = jnp.ones((4, 3)), np.ones((2, 2, 2, 1), np.float32)
    known = sites(forward, params, (2, 2, 1))
    with pytest.raises(ValueError, match=r"^fc\.w: neither a parameter nor an activation"):
        calibrate(forward, params, images, resolve([("*", Uniform())], known), known)


def test_a_packed_model_calibrates_its_activations(tiny, plan, parallel):
    weights = {a: q for a, q in plan.items() if a.endswith(".w")}
    params, _, _ = freeze(tiny.params, weights, parallel, tiny.known)
    known = sites(tiny.forward, params, (4, 4, 2))
    state = calibrate(tiny.forward, params, tiny.images, {"attn/qkv.x": Uniform(bits=6)}, known)
    x = tiny.images.reshape(6, 8, 4) @ np.asarray(params["stem"]["kernel"].unpack())
    want = (np.tanh(x).max() - np.tanh(x).min()) / 63
    np.testing.assert_allclose(state["attn/qkv.x"]["scale"], want, rtol=1e-5)


def test_no_images_are_refused(tiny, plan):
    with pytest.raises(ValueError, match="calibration: no images"):
        run(tiny, plan, tiny.images[:0])


def test_a_packed_weight_is_not_calibrated_again(tiny, plan, parallel):
    weights = {a: q for a, q in plan.items() if a.endswith(".w")}
    params, _, _ = freeze(tiny.params, weights, parallel, tiny.known)
    with pytest.raises(ValueError, match=r"\.w: the weight is packed already; quantise the float checkpoint"):
        calibrate(tiny.forward, params, tiny.images, weights, tiny.known)


def test_a_weight_of_two_sites_is_packed_once():
    def forward(params, images, dot):
        y = dot("one", "bd,do->bo", x=images, w=params["kernel"])
        return dot("two", "bd,do->bo", x=y, w=params["kernel"])

    params = {"kernel": jnp.eye(3)}
    known = sites(forward, params, (3,))
    plan = resolve([("*.w", Uniform(bits=4))], known)
    state = calibrate(forward, params, np.ones((1, 3), np.float32), plan, known)
    with pytest.raises(ValueError, match=r"two\.w: its parameter kernel is packed for another site already"):
        freeze(params, plan, state, known)


def test_the_plan_quantises_what_calibration_saw(tiny, plan, parallel):
    """One image's output under the plan does not depend on the others (spec 8.10), and differs from the float one."""
    forward = jax.jit(lambda q, x: tiny.forward(tiny.params, x, quantized(plan, q)))
    together = forward(parallel, tiny.images)
    alone = np.concatenate([forward(parallel, tiny.images[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together - tiny.outputs(tiny.params, tiny.images, float_dot)).max() > 1e-2
