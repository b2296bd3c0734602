"""VVTQ: which operand has which learned scale, the losses against NumPy, and what follows each step."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import open_weights
from jvq.core.dot import quantized
from jvq.core.recipe import resolve, sites
from jvq.data import Preprocess, open_source
from jvq.methods import learning, vvtq
from jvq.methods.bins import bin_loss
from jvq.methods.oscillation import MOMENTUM
from jvq.methods.vvtq import PRESETS, Options
from jvq.models import build
from jvq.quantizers import Learned

SWIN = {"image": (8, 8), "channels": 1, "patch": 2, "dim": 8, "depths": (1, 1), "heads": (2, 4), "window": 2}
EDGES = ["patch.x", "patch.w", "head.x", "head.w"]
BLOCK = {"attn/qkv.w", "attn/proj.w", "mlp/fc1.w", "mlp/fc2.w"} | {
    "attn/qkv.x", "attn/qk.q", "attn/qk.k", "attn/pv.p", "attn/pv.v", "attn/proj.x", "mlp/fc1.x", "mlp/fc2.x"
}  # fmt: skip


@pytest.fixture(scope="module")
def swin():
    model = build("swin", SWIN)
    return sites(model.forward, model.shapes(), model.image)


@pytest.fixture(params=["vit", "swin"])
def each(request, known, swin):
    """Every operand of a model, and its blocks with their heads."""
    return (known, {"block00": 2}) if request.param == "vit" else (swin, {"stage0/block00": 2, "stage1/block00": 4})


def unchecked(kind, **fields):
    """The options without the check of types, which comes before theirs and only in tests."""
    made = kind()
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def plan_of(known, **options):
    """Address to quantiser, as yet unchecked."""
    return {a: q for a, q in vvtq.recipe(Options(**options), known) if q is not None}


def test_edges_have_8_bits_and_all_others_what_was_asked(each):
    """Q10: of a block four kernels with six matrices, and eight activations."""
    known, blocks = each
    for granularity in ("tensor", "head", "channel"):
        plan = plan_of(known, weight_bits=2, act_bits=3, granularity=granularity)
        assert list(plan) == list(known)
        assert all(isinstance(q, Learned) for q in plan.values())
        for a, q in plan.items():
            assert q.bits == (8 if a in EDGES else 2 if known[a].path else 3), a
    plan = plan_of(known, granularity="tensor")
    assert resolve(vvtq.recipe(Options(granularity="tensor"), known), known) == plan
    for block in blocks:
        there = [a for a in plan if a.startswith(block)]
        assert {a.removeprefix(f"{block}/") for a in there} == BLOCK
        scales = [known[a].shape[known[a].letters.index("s")] if plan[a].keep else 1 for a in there if known[a].path]
        assert sum(scales) == 6
        assert len([a for a in there if not known[a].path]) == 8


def test_which_axes_have_a_scale_of_their_own(each):
    known, blocks = each
    of = {g: plan_of(known, granularity=g) for g in ("tensor", "head", "channel")}

    def kept(granularity, address):
        q = of[granularity][address]
        return q.keep, q.heads

    for block, heads in blocks.items():
        assert kept("tensor", f"{block}/attn/qkv.w") == ("s", 0)  # query, key and value apart
        assert kept("head", f"{block}/attn/qkv.w") == ("sh", 0)
        assert kept("channel", f"{block}/attn/qkv.w") == ("she", 0)
        assert kept("head", f"{block}/attn/proj.w") == ("h", heads)
        assert kept("head", f"{block}/attn/proj.x") == ("h", heads)
        assert kept("channel", f"{block}/attn/proj.w") == ("o", 0)
        for inner in ("attn/qk.q", "attn/qk.k", "attn/pv.p", "attn/pv.v"):
            assert [kept(g, f"{block}/{inner}") for g in of] == [("", 0), ("h", 0), ("h", 0)]
        for rest in ("attn/qkv.x", "mlp/fc1.x", "mlp/fc2.x"):
            assert [kept(g, f"{block}/{rest}") for g in of] == [("", 0)] * 3
        assert [kept(g, f"{block}/mlp/fc1.w") for g in of] == [("", 0), ("", 0), ("o", 0)]
        assert [kept(g, f"{block}/{a}") for g in ("tensor",) for a in ("attn/proj.w", "attn/proj.x")] == [("", 0)] * 2
    for edge in EDGES:
        assert [kept(g, edge) for g in of] == [("", 0), ("", 0), ("o" if edge.endswith("w") else "", 0)]


def test_signs_and_offsets(each):
    """Spec 1.5: only softmax and GELU are unsigned, only GELU has an offset; no weight ever has one, nor the image."""
    known, _ = each
    for offset in ("gelu", "all", "none"):
        for a, q in plan_of(known, offset=offset).items():
            gelu, softmaxed = a.endswith("mlp/fc2.x"), a.endswith(".p")
            assert q.signed != (gelu or softmaxed), a
            weight = known[a].path is not None
            everywhere = offset == "all" and a != "patch.x"
            assert q.offset == (not weight and not softmaxed and (everywhere or (offset != "none" and gelu))), a


@pytest.mark.parametrize("mdq", ["grad", "off"])
def test_gradients_of_scales(mdq, known):
    for a, q in plan_of(known, mdq=mdq, act_gradient="root", weight_start="mean", act_start="sigma").items():
        weight = known[a].path is not None
        assert q.gradient == (("l1" if mdq == "grad" else "lsq") if weight else "root")
        assert q.start == ("mean" if weight else "sigma")


def test_modules_weighed_by_learning_rate_move_by_their_factor_over_the_mean(known):
    """Spec 4: under Adam only a rate of its own makes a difference. Factors 1 / sqrt(Qp |w|_1), of the steps only."""
    assert all(vvtq.reweighting(Options(mdq=mdq), plan_of(known), known, SCHEDULE) is None for mdq in ("grad", "off"))
    plan, rng = plan_of(known, mdq="lr", granularity="tensor"), np.random.default_rng(0)
    params: dict = {}
    for o in known.values():
        if o.path is not None:
            place = params
            for key in o.path[:-1]:
                place = place.setdefault(key, {})
            place[o.path[-1]] = jnp.asarray(rng.normal(0, 0.1 + rng.random(), o.shape), jnp.float32)
    states = {
        a: q.init(value_at(params, known[a].path), known[a].letters) if known[a].path else {"scale": jnp.float32(1)}
        for a, q in plan.items()
    }
    tree, weights = {"params": params, "q": states}, {a: q for a, q in plan.items() if known[a].path}
    moved, _ = vvtq.module_rates(weights, known).update(jax.tree.map(jnp.ones_like, tree), (), tree)
    factors = {}
    for a, o in known.items():
        if o.path is not None:
            w, top = np.asarray(value_at(params, o.path), np.float64), 2 ** (plan[a].bits - 1) - 1
            over = tuple(i for i, letter in enumerate(o.letters) if letter != "s")
            factors[a] = 1 / np.sqrt(top * np.abs(w).sum(axis=over))
    mean = np.mean([f.mean() for f in factors.values()])
    for a, state in moved["q"].items():
        np.testing.assert_allclose(state["scale"], factors[a] / mean if a in factors else 1.0, rtol=1e-5)
    assert all((x == 1).all() for x in jax.tree.leaves(moved["params"]))


def value_at(params, path):
    for key in path:
        params = params[key]
    return params


def test_floats_and_edges_without_a_width_of_their_own(known):
    inner = [a for a in known if a not in EDGES]
    assert set(plan_of(known, weight_bits=32)) == {a for a in known if a in EDGES or not known[a].path}
    assert set(plan_of(known, act_bits=32)) == {a for a in known if a in EDGES or known[a].path}
    assert list(plan_of(known, edge_bits=32)) == inner
    plan = plan_of(known, weight_bits=2, act_bits=3, edge_bits=None)
    assert [plan[a].bits for a in EDGES] == [3, 2, 3, 2]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_options_with_a_plan(name, known):
    options = Options(**PRESETS[name])
    plan = resolve(vvtq.recipe(options, known), known)
    weight, act, gelu = plan["block00/mlp/fc1.w"], plan["block00/mlp/fc1.x"], plan["block00/mlp/fc2.x"]
    assert (weight.bits, weight.keep, weight.start, gelu.offset) == (4, "", "mse", True)
    want = {
        "released": ("l1", "released", "root", "s", ("mean", "unbiased", 0.01)),
        "paper": ("l1", "mse", "lsq", "sh", ("sum", "sum_sq", 0.01)),
        "lsq": ("lsq", "mse", "lsq", "s", ("sum", "sum_sq", 0.0)),
    }[name]
    bins = options.bins, options.bin_variance, options.bin_strength
    assert (weight.gradient, act.start, act.gradient, plan["block00/attn/qkv.w"].keep, bins) == want
    if name != "lsq":  # spec 7: no warm-up, nothing clipped
        found = dataclasses.asdict(options.schedule(1000))
        assert found["warmup"] == 0
        assert found["clip"] is None
        assert (found["weight_decay"], found["learning_rate"]) == (1e-4, 5e-4)
    assert options.distillation == ("none" if name == "lsq" else "stored")


@pytest.mark.parametrize("wrong", [
    dict(granularity="heads"), dict(offset="Gelu"), dict(mdq="on"), dict(distillation="student"), dict(bins="max"),
    dict(bin_variance="biased"), dict(weight_start="als"), dict(act_start="als"), dict(act_gradient="l2"),
    dict(epochs=0), dict(batch=0), dict(crops=0), dict(keep=0), dict(save_every=0), dict(accumulate=0),
    dict(bin_start=1.0), dict(hard=1.0), dict(warmup=-0.1), dict(ema=1.0),
    dict(bin_strength=-1.0), dict(holdout=-1),
])  # fmt: skip
def test_impossible_options_are_refused(wrong):
    ((name, _),) = wrong.items()
    with pytest.raises(ValueError, match=rf"method\.{name}") as caught:
        unchecked(Options, **wrong).__post_init__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("wrong", "says"), [
    (dict(bits=0), r"block00/attn/qkv\.x: bits must be a whole number from 1 to 16, got 0"),
    (dict(weight_bits=17), r"block00/attn/qkv\.w: bits must be .* got 17"),
])  # fmt: skip
def test_widths_are_checked_at_the_operand(wrong, says, known):
    with pytest.raises(ValueError, match=says):
        resolve(vvtq.recipe(Options(**wrong), known), known)


def test_the_schedule_counts_whole_batches():
    options = Options(epochs=3, batch=8, warmup=0.2, scale_rate=0.1, ema=0.5, accumulate=2, rule="lamb", clip=1.0)
    schedule = options.schedule(30)
    assert schedule.steps == 9
    assert schedule.betas == (0.9, 0.999)
    for name in ("learning_rate", "warmup", "weight_decay", "clip", "rule", "scale_rate", "ema", "accumulate"):
        assert getattr(schedule, name) == getattr(options, name)


def trained_of(known, plan, rng):
    """Random kernels, and the states of their quantisers."""
    params = {}
    for o in known.values():
        if o.path is not None:
            node = params
            for key in o.path[:-1]:
                node = node.setdefault(key, {})
            node[o.path[-1]] = jnp.asarray(rng.normal(0, 0.3, o.shape), jnp.float32)
    return {"params": params, "q": {a: dict(q.init(at(params, known[a]), known[a].letters)) for a, q in plan.items()}}


def at(params, o):
    for key in o.path:
        params = params[key]
    return params


@pytest.fixture
def weights(known, rng):
    """A plan of the weights alone, and what is trained."""
    plan = {a: q for a, q in plan_of(known, bits=3, weight_start="max").items() if known[a].path}
    return plan, trained_of(known, plan, rng)


SCHEDULE = Options().schedule(1000)
INNER = ["block00/attn/qkv.w", "block00/attn/proj.w", "block00/mlp/fc1.w", "block00/mlp/fc2.w"]


def test_the_regulariser_is_that_of_all_weights_of_few_bits(known, weights):
    plan, trained = weights
    options = Options(bins="kernel_mean", bin_variance="unbiased", bin_strength=0.2)
    regularize = jax.jit(jax.value_and_grad(vvtq.regularizer(options, plan, known, 100), has_aux=True))

    @jax.jit
    def each(trained):
        of = {a: (plan[a], trained["q"][a], at(trained["params"], known[a]), known[a]) for a in INNER}
        return [bin_loss(*q, o.letters, o.contracted, "kernel_mean", "unbiased") for *q, o in of.values()]

    whole = sum(map(float, each(trained)))
    for step, factor in ((0, 0.0), (25, 0.0), (50, 0.05), (75, 0.15), (100, 0.2)):
        (value, metrics), grads = regularize(trained, jnp.int32(step))
        assert float(metrics["bin_strength"]) == pytest.approx(factor, abs=1e-6)
        assert float(value) == pytest.approx(factor * whole, rel=1e-5)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(grads["q"]))
    moved = [a for a in plan if np.asarray(at(grads["params"], known[a])).any()]
    assert moved == INNER  # not the edges of 8 bits


def test_without_strength_or_weights_of_few_bits_there_is_no_regulariser(known, weights):
    plan, _ = weights
    assert vvtq.regularizer(Options(bin_strength=0.0), plan, known, 10) is None
    wide = {a: dataclasses.replace(q, bits=8) for a, q in plan.items()}
    assert vvtq.regularizer(Options(), wide, known, 10) is None
    assert vvtq.carried(wide, known, {}) == {}


def test_after_an_update_scales_are_positive_and_codes_followed(known, weights):
    plan, trained = weights
    tracks = vvtq.carried(plan, known, trained)
    assert list(tracks) == INNER
    follow = jax.jit(vvtq.after(Options(), plan, known))
    same, still, metrics = follow(trained, tracks, jnp.int32(0))
    assert float(metrics["oscillating"]) == 0
    for got, want in zip(jax.tree.leaves((same, still)), jax.tree.leaves((trained, tracks)), strict=True):
        np.testing.assert_array_equal(got, want)

    a, o = INNER[2], known[INNER[2]]
    state = trained["q"][a]
    bad = {**state, "scale": state["scale"].at[0].set(-1.0).at[1].set(0.0)}
    edge = {**trained["q"]["head.w"], "scale": jnp.full(3, 1e-6)}
    got, _, _ = follow({**trained, "q": {**trained["q"], a: bad, "head.w": edge}}, tracks, jnp.int32(0))
    want = np.asarray(state["scale"]).copy()
    want[:2] = 1e-4
    np.testing.assert_array_equal(got["q"][a]["scale"], want)
    np.testing.assert_array_equal(got["q"]["head.w"]["scale"], np.full(3, 1e-4, np.float32))

    forth = at(trained["params"], o) + state["scale"][None]  # one code up, but where it is the highest
    moved = {**trained, "params": {**trained["params"], "block00": {**trained["params"]["block00"]}}}
    moved["params"]["block00"]["mlp"] = {**trained["params"]["block00"]["mlp"], "fc1": {"kernel": forth}}
    before, after = (np.asarray(plan[a].codes(state, w, o.letters)) for w in (at(trained["params"], o), forth))
    for tree in (moved, trained, moved):
        _, tracks, metrics = follow(tree, tracks, jnp.int32(0))
    twice = 1 - (1 - MOMENTUM) ** 2
    np.testing.assert_allclose(tracks[a].frequency, np.where(before != after, twice, 0), rtol=1e-5)
    assert not any(np.asarray(tracks[b].frequency).any() for b in INNER if b != a)
    for tree in (trained, moved, trained, moved):
        _, tracks, metrics = follow(tree, tracks, jnp.int32(0))
    count = sum(at(trained["params"], known[b]).size for b in INNER)
    assert float(metrics["oscillating"]) == pytest.approx((before != after).sum() / count)
    found = vvtq.summary(plan, known, trained, tracks)
    assert found[a]["oscillating"] == pytest.approx((before != after).mean())
    assert [found[b]["oscillating"] for b in INNER if b != a] == [0, 0, 0]
    assert {b: n["weights"] for b, n in found.items()} == {b: at(trained["params"], known[b]).size for b in INNER}
    assert all(0 < n["near"] < 0.3 for n in found.values())


def test_the_protocol_tells_what_was_done():
    plain = vvtq.protocol(Options())
    for change in (
        dict(bits=3),
        dict(act_bits=3),
        dict(edge_bits=4),
        dict(granularity="head"),
        dict(offset="none"),
        dict(weight_start="mean"),
        dict(act_start="mean"),
        dict(mdq="off"),
        dict(distillation="none"),
        dict(distillation="stored"),
        dict(teacher="fashion_deit"),
        dict(epochs=7),
        dict(batch=7),
        dict(learning_rate=7.0),
        dict(rule="lamb"),
        dict(bins="mean"),
        dict(bin_variance="off"),
        dict(bin_strength=7.0),
        dict(distillation="features"),
        dict(stage="activations"),
        dict(transitions=0.01),
        dict(anneal=0.1),
    ):
        assert vvtq.protocol(Options(**change)) != plain, change


def test_a_number_of_steps_stands_for_epochs():
    assert Options(epochs=3, batch=8, steps=7).schedule(30).steps == 7
    assert Options(epochs=3, batch=8, steps=70).schedule(30).steps == 70
    assert vvtq.protocol(Options(steps=7))["training"].startswith("7 steps of 128")


def test_baselines_have_the_same_widths():
    options = Options(bits=3, act_bits=5, edge_bits=6)
    rows = vvtq.baselines(options)
    assert set(rows) == {"minmax"}
    name, beside = rows["minmax"]
    assert name == "minmax"
    assert (beside.widths(), beside.edge_bits) == ((3, 5), 6)
    assert not vvtq.calibrates(options)


@pytest.mark.slow
def test_eight_bits_hardly_change_what_an_embedded_model_says():
    """Q11: before any training."""
    checkpoint = open_weights("fashion_vit")
    model, params = checkpoint.model, checkpoint.params
    preprocess = Preprocess.from_dict(checkpoint.preprocess)
    images = preprocess.batch(open_source("fashion", "test").images[:16])
    known = sites(model.forward, model.shapes(), model.image)
    plan = plan_of(known, bits=8)
    state = vvtq.fit(Options(bits=8), model.forward, params, images, plan, known).qstate

    @jax.jit
    def both(params, state, x):
        return model.forward(params, x), model.forward(params, x, quantized(plan, state))

    want, got = (np.asarray(y) for y in both(params, state, images))
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.03
    assert (got != want).any()


FAMILIES = {
    "mlp": ["fc1.x", "fc1.w", "fc2.x", "fc2.w"],
    "attention": ["qkv.x", "qkv.w", "qk.q", "qk.k", "pv.p", "pv.v", "proj.x", "proj.w"],
    "query": ["qk.q"],
    "key": ["qk.k"],
    "value": ["pv.v"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_is_left_out_is_float_and_nothing_else(each, family):
    known, _ = each
    left = set(plan_of(known)) - set(plan_of(known, leave=family))
    assert left == {a for a in known if a.rpartition("/")[2] in FAMILIES[family]}
    assert len(left) == len(FAMILIES[family]) * sum(a.endswith("qk.q") for a in known)


def test_branches_are_dropped_more_often_the_deeper_they_are(each):
    known, blocks = each
    assert learning.drop(Options(), known) == {}
    found = learning.drop(Options(drop_path=0.2), known)
    assert len(found) == 2 * len(blocks)
    assert [*found.values()] == ([0.0, 0.0] if len(blocks) == 1 else [0.0, 0.0, 0.2, 0.2])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(labels="here"), "method.labels: only distillation 'stored' reads them, not 'teacher'"),
        (dict(teacher="x", distillation="none"), "method.teacher: 'x' is not asked"),
        (dict(batch=130, distillation="stored"), "method.batch: got 130, must be a multiple of 4"),
        (dict(accumulate=3), "method.batch: got 128, must be a multiple of 3"),
        (dict(clip=0.0), "method.clip: got 0.0, must be positive"),
        (dict(shift=-1), "method.shift: got -1, must be at least 0"),
        (dict(take="best"), "method.take: 'best' needs images"),
        (dict(stage="activations", anneal=0.1), "method.stage: 'activations' trains float weights"),
        (dict(stage="activations", transitions=0.1), "method.stage: 'activations' trains float weights"),
        (dict(transitions=-0.1), "method.transitions: got -0.1, must be in [0, 1)"),
        (dict(anneal=1.0), "method.anneal: got 1.0, must be in [0, 1)"),
        (dict(anneal_band=0.0), "method.anneal_band: got 0.0, must be positive"),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(options, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Options(**options)


@pytest.mark.parametrize(("bits", "there"), [(4, True), (6, True), (8, False)])
def test_the_regulariser_is_there_below_8_bits(bits, there, known):
    options = Options(bits=bits)
    assert (vvtq.regularizer(options, plan_of(known, bits=bits), known, 10) is not None) == there


def test_weights_that_stay_float_in_training_are_not_in_its_plan(known):
    plan = plan_of(known)
    (whole,) = vvtq.courses(Options(), plan, known)
    assert (whole.plan, whole.begin, whole.end) == (plan, 0.0, 1.0)
    first = vvtq.courses(Options(stage="activations"), plan, known)[0].plan
    assert first == {a: q for a, q in plan.items() if known[a].path is None}
    assert vvtq.regularizer(Options(), first, known, 10) is None
    assert vvtq.carried(first, known, {}) == {}


@pytest.mark.parametrize("merged", [False, True])
def test_merging_is_said_of_the_model_that_is_trained(merged, known):
    assert vvtq.student(Options(merged=merged), known) == ({"merged": True} if merged else {})


def test_nothing_is_reweighted_without_weights(known):
    assert vvtq.reweighting(Options(mdq="lr"), plan_of(known, weight_bits=32, edge_bits=32), known, SCHEDULE) is None
