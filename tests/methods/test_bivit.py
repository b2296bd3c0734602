"""Bi-ViT: which operand becomes what, the loss against NumPy, what follows each step, and the model that is trained."""

import dataclasses
import functools
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jvq import open_weights
from jvq.core.dot import quantized, recording
from jvq.core.freeze import freeze
from jvq.core.packed import Packed
from jvq.core.recipe import resolve, sites
from jvq.methods import bivit
from jvq.methods.bivit import PRESETS, Options
from jvq.methods.ranking import rank_distillation
from jvq.models import build
from jvq.models.altering import altered
from jvq.operations import body_bytes
from jvq.quantizers import Learned, ShiftedSigns, Signs, Steps, Ternary
from jvq.tapes import on_tapes

VIT = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
MODELS = {  # name: architecture, shape
    "vit": ("vit", VIT),
    "deit": ("vit", {**VIT, "distill_token": True}),
    "swin": ("swin", {"image": (8, 8), "channels": 1, "patch": 2, "dim": 8, "depths": (1, 1), "heads": (2, 4),
                      "window": 2, "classes": 3}),
}  # fmt: skip
HEADS = {"vit": {"block00": 2}, "deit": {"block00": 2}, "swin": {"stage0/block00": 2, "stage1/block00": 4}}
EDGES = {"patch", "head", "head_dist"}
KERNELS = ("attn/qkv.w", "attn/proj.w", "mlp/fc1.w", "mlp/fc2.w")
MERGE = "stage0/merge/reduce"
MAP = "block00/attn/pv.p"


@functools.cache
def opened(name, **fields):
    """The model with these fields of its Spec otherwise, and its operands."""
    model, params = altered(build(*map(copy, MODELS[name])), build(*map(copy, MODELS[name])).shapes(), **fields)
    return model, sites(model.forward, params, model.image)


def copy(part):
    return dict(part) if isinstance(part, dict) else part


def known_of(name, **options):
    """The operands of the model that is trained."""
    return opened(name, **bivit.student(Options(**options), opened(name)[1]))[1]


def plan_of(name, **options):
    """The operands, and the resolved plan."""
    known = known_of(name, **options)
    return known, resolve(bivit.recipe(Options(**options), known), known)


def states(known, plan):
    """The shape of every learned array."""
    return {
        a: jax.eval_shape(
            lambda x, q=q, letters=known[a].letters: q.init(x, letters), jax.ShapeDtypeStruct(known[a].shape, "float32")
        )
        for a, q in plan.items()
    }


def learned(known, plan):
    """How many numbers of the state are trained."""
    found = (state for state in states(known, plan).values())
    return sum(x.size for state in found for name, x in state.items() if name in ("scale", "offset"))


def part(address):
    return address.partition("/")[0].partition(".")[0]


# Which operand becomes what


@pytest.mark.parametrize("name", MODELS)
def test_all_of_the_body_is_binary_and_neither_end_is(name):
    """S1: four kernels a block, and one a merge; of a block eight activations."""
    known, plan = plan_of(name)
    assert list(plan) == [a for a in known if part(a) not in EDGES]
    assert {part(a) for a in known} - {part(a) for a in plan} == {a for a in EDGES if a in map(part, known)}
    assert {q.bits for q in plan.values()} == {1}
    kernels = [a for a in plan if known[a].path is not None]
    merges = [f"{MERGE}.w"] if name == "swin" else []
    assert sorted(kernels) == sorted([f"{b}/{k}" for b in HEADS[name] for k in KERNELS] + merges)
    assert all(known[a].path[-1] == "kernel" for a in kernels)
    assert body_bytes(known, plan).kernels == len(kernels) == 4 * len(HEADS[name]) + len(merges)


@pytest.mark.parametrize("name", MODELS)
def test_an_operand_becomes_what_the_specification_says(name):
    """Spec 1.2, 1.3 and 2.3."""
    known, plan = plan_of(name)
    for a, q in plan.items():
        role = a.rpartition(".")[2]
        if role == "w":
            kept = "".join(letter for letter in known[a].letters if letter not in known[a].contracted)
            assert q == Signs(keep=kept, scale="mean"), a
        elif role == "x":
            assert q == Signs(), a
        elif role == "p":
            assert q == Steps(keep="h"), a
        else:
            assert role in "qkv"
            assert q == Signs(keep="h", scale="learned"), a
    assert plan[f"{next(iter(HEADS[name]))}/attn/qkv.w"].keep == "she"  # an output channel


SCALES = {  # learned numbers a head, of q, k, v and the map
    (): 4,
    (("qkv", "sign"),): 1,
    (("attention", "half"),): 3,
    (("attention", "sign"),): 3,
    (("attention", "release"),): 5,  # the map has a zero point too; q, k and v have none, whose zero point stays 0
    (("attention", "release_minus"),): 5,
    (("attention", "sign"), ("qkv", "sign")): 0,
}


@pytest.mark.parametrize("options", SCALES, ids=str)
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_head_has_four_learned_numbers_a_block(name, options):
    """S3: alpha of q, k and v, beta of the map."""
    known, plan = plan_of(name, **dict(options))
    assert learned(known, plan) == SCALES[options] * sum(HEADS[name].values())
    inner = {a: q for a, q in plan.items() if a.rpartition(".")[2] in "qkpv"}
    assert learned(known, inner) == learned(known, plan)


def test_options_of_weights_inputs_and_gradients():
    known, plan = plan_of("vit", kernels="centred", inputs="learned", slope="true")
    kernel, x, q = (plan[f"block00/{a}"] for a in ("mlp/fc1.w", "mlp/fc1.x", "attn/qk.q"))
    assert kernel == Signs(keep="o", scale="mean", centred=True)
    assert x == Signs(scale="learned", gradient="true")
    assert q == Signs(keep="h", scale="learned", gradient="true")
    assert learned(known, plan) == 4 * 2 + 4  # a scale each of the four linear inputs
    known, plan = plan_of("vit", kernels="learned", slope="true")
    assert plan["block00/mlp/fc1.w"] == Signs(keep="o", scale="learned", gradient="true")
    assert learned(known, plan) == 4 * 2 + (48 + 16 + 64 + 16)


def test_merges_can_have_the_scales_of_the_release():
    """Spec 1.2: of each output channel of the kernel, and of each input channel."""
    known, plan = plan_of("swin", merge="learned")
    assert plan[f"{MERGE}.w"] == Signs(keep="o", scale="learned")
    assert plan[f"{MERGE}.x"] == Signs(keep="d", scale="learned")
    _, same = plan_of("swin")
    assert {a for a in plan if plan[a] != same[a]} == {f"{MERGE}.w", f"{MERGE}.x"}
    assert learned(known, plan) == learned(known, same) + 4 * 8 + 2 * 8
    assert plan_of("vit", merge="learned")[1] == plan_of("vit")[1]


def test_an_attention_map_becomes_what_the_option_says():
    want = {
        "learned": Steps(keep="h"),
        "release": ShiftedSigns(keep="h"),
        "release_minus": ShiftedSigns(keep="h", zero_start="minus_one"),
        "half": Steps(scale="one"),
        "sign": Signs(smooth=False),
        "boolean": Steps(scale="one", threshold="zero"),
    }
    plain = plan_of("vit")[1]
    for kind, q in want.items():
        _, plan = plan_of("vit", attention=kind, gamma=0.0)
        assert plan[MAP] == q
        assert {a for a in plan if plan[a] != plain[a]} <= {MAP}


@pytest.mark.parametrize("name", MODELS)
def test_signs_without_scale_keep_the_division_of_the_scores(name):
    """A query comes times e**-0.5; its signs are as large, those of keys and values are 1 (spec 2.1)."""
    known, plan = plan_of(name, qkv="sign")
    for a, q in plan.items():
        o = known[a]
        if o.role in "qkv":
            want = o.shape[o.letters.index("e")] ** -0.5 if o.role == "q" else 1.0
            assert q == Signs(smooth=False, size=want)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", MODELS)
def test_presets_are_options_with_a_plan_of_one_bit(name, preset):
    known, plan = plan_of(name, **PRESETS[preset])
    assert list(plan) == [a for a in known if part(a) not in EDGES]
    assert {q.bits for q in plan.values()} == {1}
    maps = {type(plan[a]) for a in plan if a.endswith(".p")}
    assert maps == {{"sign": Signs, "ranking": Signs, "release": ShiftedSigns, "release_minus": ShiftedSigns}.get(
        preset, Steps)}  # fmt: skip
    assert (Options(**PRESETS[preset]).gamma > 0) == (preset == "ranking")


def test_presets_are_the_method_less_what_it_adds():
    plain = dataclasses.asdict(Options())
    changed = {name: {k for k, v in preset.items() if plain[k] != v} for name, preset in PRESETS.items()}
    assert changed["scale"] == {"gamma"}
    assert changed["ranking"] == {"attention", "qkv"}
    assert changed["sign"] == changed["scale"] | changed["ranking"]
    assert all(changed[name] == set(preset) for name, preset in PRESETS.items()), "a preset names what differs"


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_widths_of_two_and_more_have_learned_scales(name):
    known, plan = plan_of(name, act_bits=2)
    for a, q in plan.items():
        if known[a].path is not None:
            assert isinstance(q, Signs)
            continue
        gelu, softmaxed = a.endswith("fc2.x"), a.endswith(".p")
        kept = "h" if "h" in known[a].letters else ""
        assert q == Learned(2, kept, signed=not (gelu or softmaxed), offset=gelu), a
    known, plan = plan_of(name, weight_bits=2)
    assert {q.bits for a, q in plan.items() if known[a].path is None} == {1}
    for a in (a for a in plan if known[a].path is not None):
        assert plan[a] == Learned(2, plan_of(name)[1][a].keep), a


def test_two_bits_of_weights_can_be_three_values():
    known, plan = plan_of("vit", bits=2, kernels="ternary")
    kept = plan_of("vit")[1]
    for a, q in plan.items():
        assert q.bits == 2
        if known[a].path is not None:
            assert q == Ternary(keep=kept[a].keep)
    assert learned(known, {a: q for a, q in plan.items() if known[a].path is not None}) == 0


def test_either_side_can_be_float():
    known, plan = plan_of("vit", act_bits=32)
    assert [*plan] == [a for a in known if known[a].path is not None and part(a) not in EDGES]
    known, plan = plan_of("vit", weight_bits=32)
    assert [*plan] == [a for a in known if known[a].path is None and part(a) not in EDGES]
    assert plan_of("vit", bits=32)[1] == {}


@pytest.mark.parametrize("name", MODELS)
def test_both_ends_can_have_a_width_of_their_own(name):
    known, plan = plan_of(name, edge_bits=8)
    assert list(plan) == list(known)
    for a in (a for a in known if part(a) in EDGES):
        assert plan[a] == Learned(8, "o" if known[a].path is not None else ""), a
    inner = plan_of(name)[1]
    assert {a: q for a, q in plan.items() if part(a) not in EDGES} == inner
    assert plan_of(name, edge_bits=32)[1] == inner
    shared = plan_of(name, bits=3, edge_bits=None)[1]
    assert {q.bits for q in shared.values()} == {3}


# The model that is trained


@pytest.mark.parametrize("name", MODELS)
def test_what_the_trained_model_has_otherwise(name):
    """Spec 1.1: norms of query and key in DeiT, none in windows; a clip behind the GELU."""
    known = opened(name)[1]
    clip = {"clip": 10.0}
    norms = {} if name == "swin" else {"qk_norm": True}
    for options, want in (
        ({}, norms | clip),
        (dict(qk_norm="no"), clip),
        (dict(qk_norm="yes"), {"qk_norm": True, "clip": 10.0}),
        (dict(gelu_clip=0.0), norms),
        (dict(gelu_clip=2.5), norms | {"clip": 2.5}),
        (dict(attention="boolean", gamma=0.0), norms | clip | {"softmax": False}),
        (PRESETS["bibert"], clip | {"softmax": False}),
        (PRESETS["bit"], clip),
    ):
        assert bivit.student(Options(**options), known) == want, options


@pytest.mark.parametrize("bits", [2, 32])
def test_only_a_map_of_one_bit_can_do_without_a_softmax(bits):
    """The scores themselves would weigh the values."""
    options = Options(**PRESETS["bibert"], act_bits=bits)
    assert "softmax" not in bivit.student(options, opened("vit")[1])


# What a model computes under the plan


@pytest.fixture(scope="module")
def run():
    """The student on random weights, its operands as products see them, and the float model's logits."""
    rng = np.random.default_rng(0)
    model, _ = opened("deit")
    plain = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    known, plan = plan_of("deit")
    student, params = altered(model, plain, **bivit.student(Options(), known))
    images = rng.normal(size=(6, 8, 8, 1)).astype(np.float32)
    fit = bivit.fit(Options(), student.forward, params, images, plan, known)
    without, same = altered(model, plain, **bivit.student(Options(qk_norm="no", bits=32), opened("deit")[1]))

    @jax.jit
    def forward(params, same, qstate, x):
        tape = {}
        student.forward(params, x, quantized(plan, qstate, recording(tape, lambda a: not a.endswith(".y"))))
        return tape, model.forward(same, x), without.forward(same, x)

    return known, plan, fit, params, forward(params, same, dict(fit.qstate), images)


def test_products_see_two_values(run):
    """K5. Their scales multiply the product: sums of signs stay exact."""
    known, plan, fit, params, (tape, _, _) = run
    for a in plan:
        value, letters, role = np.asarray(tape[a]), known[a].letters, a.rpartition(".")[2]
        assert set(np.unique(value)) == ({0.0, 1.0} if role == "p" else {-1.0, 1.0}), a
        if role == "w":
            w = np.asarray(leaf(params, known[a].path), np.float64)
            np.testing.assert_array_equal(value, np.where(w >= 0, 1, -1))
            scale = plan[a].encode(fit.qstate[a], jnp.asarray(w, jnp.float32), letters).scale
            want = np.abs(w).mean(axis=0, keepdims=True)
            np.testing.assert_allclose(scale, want, rtol=1e-6)
        elif role != "x":
            assert fit.qstate[a]["scale"].shape == (2,), a
    active = float((np.asarray(tape[MAP]) > 0).mean())
    assert 0.03 < active < 0.5, "G7: the map is not constant"


def leaf(params, path):
    for key in path:
        params = params[key]
    return params


def test_without_quantisers_and_norms_the_model_is_the_float_one(run):
    """S4."""
    _, _, _, _, (_, want, got) = run
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_fitting_says_what_the_model_costs(run):
    known, plan, fit, *_ = run
    assert list(fit.qstate) == list(fit.plan) == list(plan)
    row = json.loads(json.dumps(fit.notes["operations"]))
    assert row["quotients"]["body_only"] == 64
    stored = row["stored"]
    assert stored == {"kernels": 4, "plain": 4 * 12 * 16**2, "packed": 12 * 16**2 // 8 + 4 * 9 * 16}
    assert stored == body_bytes(known, plan)._asdict()


@pytest.mark.parametrize("weights", ["fashion_deit", "fashion_swin"])
def test_kernels_of_an_embedded_models_body_are_20_times_smaller(weights):
    checkpoint = open_weights(weights)
    model, params = checkpoint.model, checkpoint.params
    known = sites(model.forward, model.shapes(), model.image)
    plan = resolve(bivit.recipe(Options(), known), known)
    stored = body_bytes(known, plan)
    assert stored.plain >= 20 * stored.packed
    kernels = {a: q for a, q in plan.items() if known[a].path is not None}
    packed, rest, _ = freeze(params, kernels, {a: {} for a in kernels}, known)
    leaves = [x for x in jax.tree.leaves(packed, is_leaf=lambda x: isinstance(x, Packed)) if isinstance(x, Packed)]
    assert rest == {}
    assert len(leaves) == stored.kernels
    assert sum(x.nbytes for x in leaves) == stored.packed


# The loss


@pytest.fixture
def tapes(rng):
    """Two tapes of five images, and their labels: what both heads say together is not what one of them says."""

    def tape():
        heads = rng.normal(0, 2, (5, 2, 4)).astype(np.float32)
        heads[0] = [[4, 0, 3, 0], [0, 4, 3, 0]]
        return {"heads": heads, "output": heads.mean(axis=1), MAP: softmax(rng.normal(0, 1.5, (5, 2, 3, 3)), axis=-1)}

    student, teacher = ({k: jnp.asarray(x, jnp.float32) for k, x in tape().items()} for _ in range(2))
    together, apart = (np.asarray(teacher[k]).argmax(axis=-1) for k in ("output", "heads"))
    assert (together != apart[:, 0]).any()
    assert (together != apart[:, 1]).any()
    return student, teacher, {"label": jnp.asarray(rng.integers(0, 4, 5), jnp.int32)}


def told(tapes, name, **options):
    """Value and metrics of the loss, and its gradient to the student's tape."""
    student, teacher, batch = tapes
    loss = bivit.tape_loss(Options(**options), known_of(name))
    (value, metrics), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(student, teacher, batch)
    return float(value), {k: float(x) for k, x in metrics.items()}, slope


def wanted(tapes, kind, alpha):
    """Specification 3.3 without the ranking, in float64; the gradients to the student's heads and output."""
    student, teacher, batch = ({k: np.asarray(x, np.float64) for k, x in tape.items()} for tape in tapes)
    labels, eye, none = batch["label"].astype(int), np.eye(4), np.zeros((5, 4))

    def cross(logits, targets):
        return -(targets * log_softmax(logits, axis=1)).sum(axis=1).mean(), (softmax(logits, axis=1) - targets) / 5

    if kind == "soft":
        value, slope = cross(student["output"], softmax(teacher["output"], axis=1))
        return value, np.stack([none, none], axis=1), slope
    first, to_first = cross(student["heads"][:, 0], eye[labels])
    if kind == "none":
        return first, np.stack([to_first, none], axis=1), none
    second, to_second = cross(student["heads"][:, 1], eye[teacher["output"].argmax(axis=1)])
    both = np.stack([(1 - alpha) * to_first, alpha * to_second], axis=1)
    return (1 - alpha) * first + alpha * second, both, none


KINDS = [
    ("deit", "token", "token", 0.5),
    ("deit", "token", "token", 0.3),
    ("deit", "auto", "token", 0.5),
    ("deit", "soft", "soft", 0.5),
    ("deit", "none", "none", 0.5),
    ("vit", "auto", "soft", 0.5),
    ("swin", "auto", "soft", 0.5),
]


@pytest.mark.parametrize(("name", "given", "kind", "alpha"), KINDS)
def test_the_loss_without_ranking(name, given, kind, alpha, tapes):
    student, teacher, batch = tapes
    asked = (student, {} if kind == "none" else teacher, batch)
    value, metrics, slope = told(asked, name, distillation=given, alpha=alpha, gamma=0.0)
    want, to_heads, to_output = wanted(tapes, kind, alpha)
    assert value == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(slope["heads"], to_heads, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(slope["output"], to_output, rtol=1e-4, atol=1e-7)
    assert not np.asarray(slope[MAP]).any()
    assert set(metrics) == ({"top1"} if kind == "none" else {"top1", "kl"})
    right = np.asarray(student["output"]).argmax(axis=1) == np.asarray(batch["label"])
    assert metrics["top1"] == pytest.approx(right.mean())
    if kind != "none":
        p, q = (log_softmax(np.asarray(t["output"], np.float64), axis=1) for t in (teacher, student))
        assert metrics["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(axis=1).mean(), rel=1e-4)


@pytest.mark.parametrize(("name", "given", "kind", "more"), [
    ("deit", "auto", "token", dict(gamma=0.7)),
    ("vit", "auto", "soft", dict(gamma=2.0, theta=0.3, pairs="adjacent", space="log")),
    ("deit", "none", "none", dict(gamma=1.0, theta=0.0)),
])  # fmt: skip
def test_the_ranking_of_attention_is_added(name, given, kind, more, tapes):
    student, teacher, _ = tapes
    value, metrics, slope = told(tapes, name, distillation=given, **more)
    how = {k: x for k, x in more.items() if k != "gamma"}

    def ranking(ours):
        return rank_distillation({MAP: ours}, teacher, [MAP], **how)

    ranked, to_map = jax.jit(jax.value_and_grad(ranking))(student[MAP])
    plain, to_heads, _ = wanted(tapes, kind, 0.5)
    assert value == pytest.approx(plain + more["gamma"] * float(ranked), rel=1e-5)
    assert float(ranked) > 0.01
    assert metrics["ranking"] == pytest.approx(float(ranked), rel=1e-6)
    assert set(metrics) == {"top1", "kl", "ranking"}
    np.testing.assert_allclose(slope[MAP], more["gamma"] * to_map, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(slope["heads"], to_heads, rtol=1e-4, atol=1e-7)


def test_images_without_labels_have_a_teacher(tapes):
    student, teacher, batch = tapes
    bare = {"label": jnp.full_like(batch["label"], -1)}
    value, metrics, _ = told((student, teacher, bare), "vit", gamma=0.0)
    assert value == pytest.approx(wanted(tapes, "soft", 0.5)[0], rel=1e-5)
    assert metrics["top1"] == 0


def test_the_loss_says_what_it_needs():
    for name, options, labels, maps, model in (
        ("deit", {}, True, True, True),
        ("vit", {}, False, True, True),
        ("swin", {}, False, True, True),
        ("deit", dict(distillation="soft"), False, True, True),
        ("vit", dict(distillation="none"), True, True, True),
        ("vit", dict(distillation="none", gamma=0.0), True, False, False),
        ("vit", dict(gamma=0.0), False, False, True),
    ):
        options, known = Options(**options), known_of(name)
        found = [f"{block}/attn/pv.p" for block in HEADS[name]] if maps else []
        assert (bivit.labelled(options, known), bivit.watched(options, known)) == (labels, found)
        assert bivit.beside(options) == model


def test_a_token_to_distil_from_must_be_there():
    for name, refused in (("deit", False), ("vit", True), ("swin", True)):
        options, known = Options(distillation="token"), known_of(name)
        for look in (bivit.labelled, bivit.tape_loss):
            if not refused:
                assert look(options, known)
                continue
            with pytest.raises(ValueError, match="distillation: 'token' needs a model with a distillation token"):
                look(options, known)


def test_a_teacher_teaches_and_learns_nothing(rng):
    """Through both tapes: a model of one attention whose map is at the watched address."""

    def heads(params, x, dot):
        scores = jnp.einsum("bqd,de,bke->bqk", x, params["a"], x)[:, None]
        y = dot("block00/attn/pv", "bhqk,bhke->bhqe", p=jax.nn.softmax(scores), v=x[:, None])
        return jnp.einsum("bhqe,eto->bto", y, params["w"])

    def params():
        return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in {"a": (4, 4), "w": (4, 2, 3)}.items()}

    known = known_of("deit")
    options = Options(distillation="soft")
    loss = on_tapes(
        bivit.tape_loss(options, known), heads, {}, lambda key, x: x,
        where=frozenset(bivit.watched(options, known)).__contains__, teacher=heads, heads=True,
    )  # fmt: skip
    batch = {"image": jnp.asarray(rng.normal(size=(5, 6, 4)), jnp.float32), "label": jnp.arange(5, dtype=jnp.int32) % 3}
    mine, theirs = params(), params()
    pull = jax.jit(jax.grad(lambda mine, theirs: loss({"params": mine, "q": {}}, theirs, batch, KEY)[0], (0, 1)))
    to_mine, to_theirs = pull(mine, theirs)
    assert all(np.asarray(x).any() for x in jax.tree.leaves(to_mine))
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(to_theirs))


KEY = jax.random.key(0)


# Behind each step, and the courses


def trained_of(known, plan, rng):
    """Random kernels, and states that are ones."""
    params = {}
    for o in known.values():
        if o.path is not None:
            node = params
            for key in o.path[:-1]:
                node = node.setdefault(key, {})
            node[o.path[-1]] = jnp.asarray(rng.normal(0, 0.3, o.shape), jnp.float32)
    ones = {a: {k: jnp.ones(s.shape, s.dtype) for k, s in state.items()} for a, state in states(known, plan).items()}
    return {"params": params, "q": ones}


def moved(params, path, change):
    """The parameters with one leaf changed."""
    if not path:
        return change(params)
    return {**params, path[0]: moved(params[path[0]], path[1:], change)}


def test_after_an_update_scales_are_positive_and_flips_are_counted(rng):
    known, plan = plan_of("vit", attention="release", edge_bits=8)
    trained = trained_of(known, plan, rng)
    begin = bivit.carried(plan, known, trained)
    assert list(begin) == [f"block00/{k}" for k in KERNELS]
    for a, signs in begin.items():
        np.testing.assert_array_equal(signs, np.asarray(leaf(trained["params"], known[a].path)) >= 0)
    follow = jax.jit(bivit.after(Options(), plan, known))
    same, still, metrics = follow(trained, begin, jnp.int32(0))
    assert float(metrics["flips"]) == 0
    for got, want in zip(jax.tree.leaves((same, still)), jax.tree.leaves((trained, begin)), strict=True):
        np.testing.assert_array_equal(got, want)

    bad = {a: {**s, "scale": s["scale"] * -2.0} if "scale" in s else s for a, s in trained["q"].items()}
    bad[MAP] = {"scale": jnp.asarray([3.0, 1e-7]), "offset": jnp.asarray([-5.0, -0.2])}
    flipped = jnp.asarray(rng.random(known["block00/mlp/fc1.w"].shape) < 0.25)
    params = moved(trained["params"], ("block00", "mlp", "fc1", "kernel"), lambda w: jnp.where(flipped, -w, 2 * w))
    got, now, metrics = follow({"params": params, "q": bad}, begin, jnp.int32(1))
    np.testing.assert_array_equal(got["q"][MAP]["scale"], np.float32([3.0, 1e-5]))
    np.testing.assert_array_equal(got["q"][MAP]["offset"], bad[MAP]["offset"])
    for a, state in got["q"].items():
        if a != MAP and "scale" in state:
            assert set(np.asarray(state["scale"]).ravel()) == {np.float32(1e-4 if part(a) in EDGES else 1e-5)}, a
    jax.tree.map(np.testing.assert_array_equal, got["params"], params)
    whole = sum(math.prod(known[a].shape) for a in begin)
    assert float(metrics["flips"]) == pytest.approx(int(flipped.sum()) / whole)
    np.testing.assert_array_equal(now["block00/mlp/fc1.w"], np.asarray(begin["block00/mlp/fc1.w"]) != flipped)
    _, _, metrics = follow({"params": params, "q": bad}, now, jnp.int32(2))
    assert float(metrics["flips"]) == 0, "flips are those of a step, not since the beginning"


def test_flips_are_those_of_what_is_packed(rng):
    """Where the mean is taken off first, a weight can keep its sign and its bit change."""
    known, plan = plan_of("vit", **PRESETS["bit"])
    trained = trained_of(known, plan, rng)
    begin = bivit.carried(plan, known, trained)
    shifted = moved(trained["params"], ("block00", "mlp", "fc1", "kernel"), lambda w: w + 5.0)
    for a in begin:
        bits = plan[a].encode(trained["q"][a], leaf(trained["params"], known[a].path), known[a].letters).codes
        np.testing.assert_array_equal(begin[a], np.asarray(bits) == 1)
    _, _, metrics = bivit.after(Options(), plan, known)({**trained, "params": shifted}, begin, jnp.int32(0))
    assert float(metrics["flips"]) < 1e-3


def test_without_weights_of_one_bit_nothing_flips(rng):
    known, plan = plan_of("vit", weight_bits=32)
    trained = trained_of(known, plan, rng)
    assert bivit.carried(plan, known, trained) == {}
    low = {a: {k: -x for k, x in s.items()} for a, s in trained["q"].items()}
    got, now, metrics = bivit.after(Options(), plan, known)({**trained, "q": low}, {}, jnp.int32(0))
    assert (now, metrics) == ({}, {})
    assert {float(x.min()) for x in jax.tree.leaves(got["q"])} == {float(np.float32(1e-5))}
    assert bivit.carried(plan_of("vit", weight_bits=2)[1], known, {}) == {}


def test_one_course_or_weights_first():
    known, plan = plan_of("vit", edge_bits=8)
    (course,) = bivit.courses(Options(), plan, known)
    assert (course.plan, course.name, course.begin, course.end) == (plan, "", 0.0, 1.0)
    first, second = bivit.courses(Options(first=0.3), plan, known)
    assert (first.name, first.begin, first.end) == ("weights", 0.0, 0.3)
    assert first.plan == {a: q for a, q in plan.items() if a.endswith(".w")}
    assert (second.plan, second.name, second.begin, second.end) == (plan, "", 0.3, 1.0)


def test_nothing_is_regularised_or_reweighed_and_no_weight_has_a_note():
    known, plan = plan_of("vit")
    options = Options()
    assert bivit.regularizer(options, plan, known, 10) is None
    assert bivit.reweighting(options, plan, known, options.schedule(1000)) is None
    assert bivit.summary(plan, known, {}, {}) == {}
    assert bivit.baselines(options) == {}
    assert not bivit.calibrates(options)
    assert bivit.TRAINS


# Options


def unchecked(**fields):
    """The options without the check of types, which comes before theirs and only in tests."""
    made = Options()
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


REFUSED = [
    *(({name: "sgin"}, f"method.{name}: got 'sgin'") for name in (
        "kernels", "inputs", "qkv", "attention", "slope", "merge", "qk_norm", "distillation", "pairs", "space",
    )),
    (dict(first=1.0), "method.first: got 1.0, must be in [0, 1)"),
    (dict(first=-0.1), "method.first: got -0.1, must be in [0, 1)"),
    (dict(gelu_clip=-1.0), "method.gelu_clip: got -1.0, must be at least 0"),
    (dict(gamma=-1.0), "method.gamma: got -1.0, must be at least 0"),
    (dict(alpha=1.5), "method.alpha: got 1.5, must be in [0, 1]"),
    (dict(theta=-0.1), "method.theta: got -0.1, must be at least 0"),
    (dict(kernels="ternary"), "method.kernels: 'ternary' has 2 bits, set weight_bits=2 (got 1)"),
    (dict(kernels="ternary", bits=2, weight_bits=3), "(got 3)"),
    (dict(attention="boolean"), "method.gamma: the ranking loss needs a softmax, which attention 'boolean' lacks"),
    (dict(teacher="x", distillation="none", gamma=0.0), "method.teacher: 'x' is not asked anything"),
    (dict(epochs=0), "method.epochs: got 0"),
    (dict(edge_bits=None), "method.edge_bits: the ends of the model have no form of 1 bit"),
    (dict(attention="boolean", gamma=0.0, first=0.5), "method.first: attention 'boolean' has no softmax"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "says"), REFUSED, ids=lambda x: x if isinstance(x, str) else None)
def test_options_that_cannot_be_are_refused_in_one_line(wrong, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        unchecked(**wrong).__post_init__()
    assert "\n" not in str(caught.value)


def test_options_at_the_ends_of_their_ranges():
    for fine in (
        dict(alpha=0.0), dict(alpha=1.0), dict(theta=0.0), dict(gamma=0.0), dict(gelu_clip=0.0), dict(first=0.99),
        dict(teacher="x", distillation="none"), dict(teacher="x", gamma=0.0),
        dict(attention="boolean", gamma=0.0), dict(kernels="ternary", weight_bits=2),
    ):  # fmt: skip
        assert dataclasses.asdict(Options(**fine)).items() >= fine.items()


def test_the_defaults_are_those_of_the_specification():
    options = Options()
    assert (options.widths(), options.edge_bits) == ((1, 1), 32)
    assert (options.alpha, options.theta, options.weight_decay, options.gelu_clip) == (0.5, 0.1, 0.0, 10.0)


def test_the_protocol_tells_what_was_done():
    plain = bivit.protocol(Options())
    assert {"weights", "linear inputs", "softmax", "query, key, value", "patch embedding and head"} <= set(plain)
    changes = [
        dict(weight_bits=32), dict(act_bits=2), dict(edge_bits=8), dict(kernels="centred"), dict(inputs="learned"),
        dict(qkv="sign"), dict(attention="half"), dict(qk_norm="no"), dict(first=0.5), dict(distillation="soft"),
        dict(distillation="none"), dict(distillation="token"), dict(teacher="fashion_deit"), dict(gamma=0.5),
        dict(gamma=0.0), dict(theta=0.2), dict(pairs="adjacent"), dict(space="log"), dict(steps=7), dict(batch=7),
        dict(learning_rate=7.0), dict(rule="lamb"),
    ]  # fmt: skip
    found = [plain, *(bivit.protocol(Options(**change)) for change in changes)]
    for a, b in itertools.combinations(range(len(found)), 2):
        assert found[a] != found[b], (a, b)
    assert all(isinstance(text, str) for text in plain.values())
