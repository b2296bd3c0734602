"""Liu et al. 2021 as a method: its options, its fits of a tiny ViT, and widths by module (spec 1, 5, 8, 9.5, 9.6)."""

import dataclasses
import itertools
import json
import math
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.calibrate import calibrate
from jvq.core.dot import quantized, recording
from jvq.core.recipe import resolve, sites
from jvq.journal import Journal
from jvq.methods import METHODS, intervals, liu21
from jvq.methods import mixed as mixing
from jvq.methods.bias import mean_errors, sequential_mean_errors, with_bias_corrections
from jvq.methods.nuclear import Module, modules
from jvq.models import build
from jvq.quantizers import Dynamic, Grouped, Uniform

LINEAR = [f"block00/{op}.x" for op in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")]
WEIGHTS = {
    f"block00/{op}.w": "she" if op == "attn/qkv" else "o" for op in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
}
MAPS = ["block00/attn/pv.p"]
QKV = ["block00/attn/qk.q", "block00/attn/qk.k", "block00/attn/pv.v"]
EDGES = {"patch.x": "", "patch.w": "o", "head.x": "", "head.w": "o"}
# Without a class token and with an MLP as wide as the model most linear layers have one shape, and one executable.
SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "classes": 3}
SPEC |= {"class_token": False, "pool": "mean"}


def plan_of(known, **options):
    """Every address, with None where it stays float."""
    return dict(liu21.recipe(liu21.Options(**options), known))


def test_the_default_plan(known):
    want = {a: Uniform(8, symmetric=True) for a in LINEAR}
    want |= {a: Uniform(8, "h") for a in MAPS}
    want |= {a: Uniform(8, "h", symmetric=True) for a in QKV}
    want |= {a: Uniform(8, keep, symmetric=True) for a, keep in (WEIGHTS | EDGES).items()}
    assert plan_of(known) == want
    assert list(resolve(liu21.recipe(liu21.Options(), known), known)) == list(known)


EVERYWHERE = [*LINEAR, *MAPS, *QKV, *WEIGHTS, *EDGES]
ACTIVATIONS = [*LINEAR, *MAPS, *QKV, "patch.x", "head.x"]
CASES = {  # options: the addresses that change, to what
    "bits": (dict(bits=6), {a: dict(bits=6) for a in EVERYWHERE}),
    "weight_bits": (dict(weight_bits=3), {a: dict(bits=3) for a in [*WEIGHTS, "patch.w", "head.w"]}),
    "act_bits": (dict(act_bits=3), {a: dict(bits=3) for a in ACTIVATIONS}),
    "edge_bits": (dict(edge_bits=5), {a: dict(bits=5) for a in EDGES}),
    "patch_input": (dict(patch_input="float"), {"patch.x": None}),
    "granularity": (
        dict(granularity="tensor"),
        {a: dict(keep="s" if "qkv" in a else "") for a in [*WEIGHTS, "patch.w", "head.w"]},
    ),
    "qkv": (dict(qkv="tensor"), {a: dict(keep="") for a in QKV + MAPS}),
    "softmax": (dict(softmax="signed"), {a: dict(symmetric=True) for a in MAPS}),
    "activations": (
        dict(activations="groups"),
        {**{a: Grouped(8, 8, "d") for a in LINEAR}, **{a: Grouped(8, 8, "hq", nonnegative=True) for a in MAPS}},
    ),
    "groups": (
        dict(activations="groups", groups=3, act_bits=5, weight_bits=8, edge_bits=8),
        {
            **{a: Grouped(5, 3, "d") for a in LINEAR},
            **{a: Grouped(5, 3, "hq", nonnegative=True) for a in MAPS},
            **{a: dict(bits=5) for a in QKV},
        },
    ),
}  # fmt: skip
OTHER = {  # options that change what fitting does, not the recipe: a value, and what it needs
    "similarity": dict(similarity="cosine"),
    "alpha": dict(alpha=0.25),
    "beta": dict(beta=1.5),
    "steps": dict(steps=17),
    "rounds": dict(rounds=3),
    "tolerance": dict(tolerance=1e-3),
    "anchor": dict(anchor="current"),
    "start": dict(start="half"),
    "rows": dict(rows=32),
    "ranking": dict(ranking=False),
    "gamma": dict(gamma=0.5),
    "theta": dict(theta=0.3),
    "ranking_at": dict(ranking_at="softmax"),
    "ranking_pairs": dict(ranking_pairs="sum"),
    "ranking_rows": dict(ranking_rows=7),
    "bias_correction": dict(bias_correction="none"),
    "bias_images": dict(bias_correction="both", bias_images=8),
    "mixed": dict(mixed=True),
    "mixed_bits": dict(mixed=True, mixed_bits=(5, 8)),
    "mixed_slack": dict(mixed=True, mixed_slack=0.01),
    "mixed_images": dict(mixed=True, mixed_images=8),
    "sensitivity": dict(mixed=True, sensitivity="nuclear"),
    "norm_of": dict(mixed=True, sensitivity="nuclear", norm_of="scores"),
    "error_of": dict(mixed=True, sensitivity="nuclear", error_of="output"),
    "normalized": dict(mixed=True, normalized=True),
}


@pytest.mark.parametrize("case", [*CASES, *OTHER])
def test_an_option_changes_what_it_promises_and_nothing_else(case, known):
    options, changes = CASES[case] if case in CASES else (OTHER[case], {})
    before = plan_of(known)
    want = dict(before)
    for address, change in changes.items():
        want[address] = dataclasses.replace(before[address], **change) if isinstance(change, dict) else change
    assert plan_of(known, **options) == want
    assert case in OTHER or want != before


def test_every_option_has_a_case():
    assert {*CASES, *OTHER} == {f.name for f in dataclasses.fields(liu21.Options)}


@pytest.mark.parametrize("case", [*CASES, *OTHER])
def test_the_protocol_tells_options_apart(case):
    """A result can be compared with another only if every choice is said."""
    changed = CASES[case][0] if case in CASES else OTHER[case]
    context = {name: value for name, value in changed.items() if name != case and case not in ("act_bits", "groups")}
    if case == "groups":
        context = {**changed, "groups": 4}
    assert liu21.protocol(liu21.Options(**changed)) != liu21.protocol(liu21.Options(**context))


@pytest.mark.parametrize(("sensitivity", "said", "unsaid"), [("kl", "KL", "nuclear"), ("nuclear", "nuclear", "KL")])
def test_the_protocol_says_by_what_widths_were_chosen(sensitivity, said, unsaid):
    words = liu21.protocol(liu21.Options(mixed=True, sensitivity=sensitivity))["widths of modules"]
    assert said in words
    assert unsaid not in words


PAPER = dict(granularity="tensor", qkv="tensor", softmax="signed")


def test_the_paper_has_fourteen_intervals_a_block():
    """W3, spec 1.4: X and three W; Q, K; P, V; and two of each other product, also of the embedding and the head."""
    model = build("vit", {**SPEC, "depth": 3})
    known = sites(model.forward, model.shapes(), model.image)
    plan = resolve(liu21.recipe(liu21.Options(**PAPER), known), known)
    count = 0
    for a, q in plan.items():
        x = jax.ShapeDtypeStruct(known[a].shape, "float32")
        state = jax.eval_shape(lambda x, q=q, a=a: q.init(x, known[a].letters), x)
        count += math.prod(state["scale"].shape)
    assert count == 14 * 3 + 4
    assert {q.symmetric for q in plan.values()} == {True}
    assert len(plan) == len(liu21.recipe(liu21.Options(), known)) == 12 * 3 + 4


def test_windows_have_the_same_plan():
    """Swin: rows of different windows are different rows; merging is like any linear layer."""
    spec = {"image": (8, 8), "channels": 1, "patch": 2, "dim": 8, "depths": (1, 0), "heads": (2, 2), "window": 2}
    model = build("swin", {**spec, "classes": 3})
    known = sites(model.forward, model.shapes(), model.image)
    plan = plan_of(known, activations="groups", groups=4)
    assert plan["stage0/block00/attn/pv.p"] == Grouped(8, 4, "mhq", nonnegative=True)
    assert plan["stage0/merge/reduce.x"] == Grouped(8, 4, "d")
    assert plan["stage0/merge/reduce.w"] == Uniform(8, "o", symmetric=True)
    assert plan["stage0/block00/attn/qk.q"] == Uniform(8, "h", symmetric=True)


def test_32_bits_are_float(known):
    weights = {*WEIGHTS, "patch.w", "head.w"}
    assert {a for a, q in plan_of(known, weight_bits=32).items() if q is None} == weights
    assert {a for a, q in plan_of(known, act_bits=32).items() if q is None} == set(known) - weights
    assert {a for a, q in plan_of(known, edge_bits=32).items() if q is None} == set(EDGES)
    for activations in ("uniform", "groups"):
        assert set(plan_of(known, bits=32, activations=activations).values()) == {None}


MISFITS = {
    "1 bit": (dict(bits=1), r"patch\.x: bits must be a whole number from 2 to 16, got 1 .nearest: 2"),
    "1 bit of weights": (dict(weight_bits=1), r"patch\.w: bits must be .* from 2 to 16, got 1"),
    "1 bit inside": (dict(edge_bits=8, bits=1), r"block00/attn/qkv\.x: bits must be .* from 2 to 16, got 1"),
    "1 bit beside groups": (dict(edge_bits=8, act_bits=1, activations="groups", groups=4), r"qk\.q: .* from 2"),
    "17 bits": (dict(bits=17), r"patch\.x: bits must be .* got 17 .nearest: 16"),
    "edges of 1 bit": (dict(edge_bits=1), r"patch\.x: bits must be .* from 2 to 16"),
    "no groups": (dict(activations="groups", groups=0), r"qkv\.x: groups: got 0"),
    "more groups than rows": (dict(activations="groups", groups=11), r"pv\.p: groups: got 11, must be .* the 10"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_the_model_names_the_address(case, known):
    options, says = MISFITS[case]
    with pytest.raises(ValueError, match=says):
        resolve(liu21.recipe(liu21.Options(**options), known), known)


@pytest.mark.parametrize(("options", "says"), [
    (dict(alpha=1.3), r"method\.alpha: got 1\.3, must be above 0 and at most beta = 1\.2"),
    (dict(alpha=0.0), r"method\.alpha: got 0\.0"),
    (dict(beta=0.4), r"method\.alpha: got 0\.5, .* beta = 0\.4"),
    (dict(steps=0), r"method\.steps: got 0, must be at least 1"),
    (dict(rounds=-1), r"method\.rounds: got -1, must be at least 0"),
    (dict(rows=0), r"method\.rows: got 0, must be at least 1"),
    (dict(ranking_rows=0), r"method\.ranking_rows: got 0"),
    (dict(bias_images=0), r"method\.bias_images: got 0"),
    (dict(mixed_images=0), r"method\.mixed_images: got 0"),
    (dict(theta=-0.1), r"method\.theta"),
    (dict(gamma=-0.1), r"method\.gamma"),
    (dict(mixed=True, mixed_bits=(1, 8)), r"method\.mixed_bits: got 1, must be whole numbers from 2 to 16"),
    (dict(mixed=True, mixed_bits=(8, 17)), r"method\.mixed_bits: got 17, must be whole numbers from 2 to 16"),
    (dict(mixed=True, bits=32), r"method\.mixed_bits: got 3[0-4]"),
    (dict(mixed=True, weight_bits=4), r"method\.mixed: a module has one width .* got 4 and 8"),
    (dict(mixed=True, act_bits=4), r"method\.mixed: a module has one width .* got 8 and 4"),
])  # fmt: skip
def test_options_that_make_no_sense_name_themselves(options, says):
    with pytest.raises(ValueError, match=says):
        liu21.Options(**options)


@pytest.mark.parametrize(("options", "want"), [
    (dict(bits=6), (4, 5, 6, 7, 8)),
    (dict(bits=8), (6, 7, 8, 9, 10)),
    (dict(bits=4), (2, 3, 4, 5, 6)),
    (dict(bits=3), (2, 3, 4, 5)),
    (dict(bits=6, mixed_bits=(8, 4, 6, 4)), (4, 6, 8)),
])  # fmt: skip
def test_widths_to_choose_from_are_two_more_and_less(options, want):
    """Spec 5.4."""
    assert liu21.Options(mixed=True, **options).candidates() == want


BESIDE = [
    dict(bits=4),
    dict(bits=6, edge_bits=8),
    dict(bits=8, weight_bits=4, edge_bits=5),
    dict(bits=8, act_bits=5),
    dict(bits=6, mixed=True, mixed_bits=(4, 6, 8)),
]


@pytest.mark.parametrize("options", BESIDE)
def test_rows_shown_beside_it_have_its_widths(options, known):
    """All of them: of weights, of activations and of the edges."""
    options = liu21.Options(**options)
    rows = liu21.baselines(options)
    assert list(rows) == ["liu21_uniform"] * options.mixed + ["minmax", "percentile", "max", "easyquant"]
    want = {a: q.bits for a, q in liu21.recipe(options, known)}
    for kind, other in rows.values():
        assert isinstance(other, METHODS[kind].Options)
        assert {a: q.bits for a, q in METHODS[kind].recipe(other, known)} == want
    assert rows["minmax"][1].range == rows["minmax"][1].weight_range == "max"
    assert rows["percentile"][1].range == rows["percentile"][1].weight_range == "percentile"


def test_rows_of_its_own_kind_do_what_their_names_say():
    options = liu21.Options(bits=6, mixed=True, granularity="tensor", alpha=0.4)
    rows = liu21.baselines(options)
    assert rows["liu21_uniform"] == ("liu21", dataclasses.replace(options, mixed=False))
    bare = dataclasses.replace(options, mixed=False, ranking=False, bias_correction="none")
    assert rows["easyquant"] == ("liu21", dataclasses.replace(bare, similarity="cosine"))
    assert rows["max"] == ("liu21", dataclasses.replace(bare, rounds=0))


def test_settings_are_the_options():
    """Every option of the search reaches it."""
    options = liu21.Options(
        similarity="cosine", gamma=0.3, theta=0.4, ranking_at="scaled", ranking_pairs="sum", ranking_rows=2, alpha=0.3,
        beta=0.9, steps=7, rounds=5, tolerance=1e-3, anchor="current", start="half", rows=9, bias_correction="none",
        bias_images=3,
    )  # fmt: skip
    got = liu21.settings(options)
    ranking = got.objective.ranking
    assert got.objective.similarity == "cosine"
    assert dataclasses.astuple(ranking) == (0.3, 0.4, "scaled", "sum", 2)
    assert dataclasses.astuple(got.grid) == (0.3, 0.9, 7, 5, 1e-3, "current")
    assert (got.halved, got.rows, got.correct, got.sequential, got.images) == (True, 9, False, False, 3)
    assert liu21.settings(liu21.Options(ranking=False)).objective.ranking is None
    corrections = {"none": (False, False), "search": (True, False), "sequential": (False, True), "both": (True, True)}
    for name, want in corrections.items():
        got = liu21.settings(liu21.Options(bias_correction=name))
        assert (got.correct, got.sequential) == want


SEARCH = ("similarity", "alpha", "beta", "steps", "rounds", "tolerance", "anchor", "start", "rows", "ranking", "gamma")
SEARCH += ("theta", "ranking_at", "ranking_pairs", "ranking_rows", "bias_correction")  # what the journal depends on


@pytest.mark.parametrize("case", [*CASES, *OTHER])
def test_rows_share_a_journal_where_their_searches_are_alike(case):
    """Quantisers stand in its keys; what is done behind the search does not matter."""
    options = liu21.Options(**(CASES[case][0] if case in CASES else OTHER[case]))
    assert (liu21.measures(options) == liu21.measures(liu21.Options())) is (case not in SEARCH)


def test_a_pass_at_the_end_leaves_the_searches_alone():
    a, b, c, d = (liu21.measures(liu21.Options(bias_correction=x)) for x in ("search", "both", "none", "sequential"))
    assert a == b != c == d


QUICK = dict(steps=10, rounds=2, bias_correction="both")
IMAGES = 6


@pytest.fixture(scope="module")
def tiny():
    """A ViT of a block with random weights, six images, and ``fit(**options)``, which is run once."""
    model, rng = build("vit", SPEC), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.5, s.shape), jnp.float32), model.shapes())
    images = rng.normal(size=(IMAGES, *model.image)).astype(np.float32)
    known = sites(model.forward, params, model.image)
    done = {}

    def fit(only=known, expected=(), instead=(), images=images, journal=None, **options):
        options = liu21.Options(**{**QUICK, **options})
        plan = resolve(liu21.recipe(options, known), known)
        assert plan.items() >= dict(expected).items()
        plan = {a: q for a, q in {**plan, **dict(instead)}.items() if a in only}
        return liu21.fit(options, model.forward, params, images, plan, known, journal=journal)

    def fitted(**options):
        key = liu21.Options(**{**QUICK, **options})
        if key not in done:
            done[key] = fit(**options)
        return done[key]

    @partial(jax.jit, static_argnums=0)
    def record(forms, params, x, qstate):
        tape = {}
        logits = model.forward(params, x, recording(tape, lambda a: True, quantized(dict(forms), qstate)))
        return {**tape, "logits": logits}

    def tape(fit=None):
        """Every operand and product, and the logits, of the float model or under a fit; float64."""
        if fit is None:
            return wide(record((), params, images, {}))
        forms = tuple((a, q.form) for a, q in fit.plan.items())
        return wide(record(forms, params if fit.params is None else fit.params, images, dict(fit.qstate)))

    return SimpleNamespace(
        forward=model.forward, params=params, images=images, known=known, fit=fit, fitted=fitted, tape=tape,
        float=tape(),
    )  # fmt: skip


def wide(tape):
    return {name: np.asarray(x, np.float64) for name, x in tape.items()}


def off(tiny, fit):
    """Mean squared error of the logits, as a part of their variance."""
    return np.square(tiny.tape(fit)["logits"] - tiny.float["logits"]).mean() / tiny.float["logits"].var()


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))


def same(a, b):
    """Whether two fits are identical: plan, states, notes and parameters."""
    assert a.plan == b.plan
    equal(a.qstate, b.qstate)
    assert a.notes == b.notes
    assert (a.params is None) == (b.params is None)
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_nothing_quantised_is_the_float_model(tiny):
    """W1."""
    fit = tiny.fit(bits=32)
    assert dict(fit.plan) == dict(fit.qstate) == {}
    assert fit.params is None
    assert fit.notes == {"search": {}}
    np.testing.assert_array_equal(tiny.tape(fit)["logits"], tiny.float["logits"])


@pytest.mark.slow
def test_fewer_bits_cost_more_and_searching_pays(tiny):
    """W2."""
    eight, six, four = (off(tiny, tiny.fitted(bits=b)) for b in (8, 6, 4))
    assert 0 < 5 * eight < six < four / 5
    assert four < 0.8 * off(tiny, tiny.fitted(bits=4, rounds=0, bias_correction="none"))
    assert four < 0.8 * off(tiny, tiny.fitted(bits=4, rounds=0))


def test_without_rounds_intervals_are_those_of_calibration(tiny):
    fit = tiny.fitted(bits=4, rounds=0, bias_correction="none")
    assert fit.params is None
    equal(fit.qstate, calibrate(tiny.forward, tiny.params, tiny.images, fit.plan, tiny.known))
    for note in fit.notes["search"].values():
        assert (note["rounds"], note["score"]) == (0, note["start"])
        assert set(np.ravel(note["left"])) == set(np.ravel(note["right"])) == {1.0}


def test_the_other_start_has_half_a_code_more(tiny):
    """Spec 8, A4: max / (2**(bits-1) - 1/2); of the map, whose codes are unsigned, max / (2**bits - 1/2)."""
    first, half = (tiny.fitted(bits=4, rounds=0, bias_correction="none", start=x).qstate for x in ("max", "half"))
    for a, state in half.items():
        top = 15 if a.endswith("pv.p") else 7
        np.testing.assert_allclose(state["scale"], first[a]["scale"] * np.float32(top / (top + 0.5)), rtol=1e-6)


def test_intervals_are_parts_of_those_of_calibration(tiny):
    """Of every site, those that are tried and not all the same; scores do not fall."""
    fit = tiny.fitted(bits=4, bias_correction="none")
    start = calibrate(tiny.forward, tiny.params, tiny.images, fit.plan, tiny.known)
    steps, ratios = np.linspace(0.5, 1.2, 10), []
    assert list(fit.notes["search"]) == list(dict.fromkeys(o.site for o in tiny.known.values()))
    for site, note in fit.notes["search"].items():
        for side, o in zip(("left", "right"), (o for o in tiny.known.values() if o.site == site), strict=True):
            ratio = np.asarray(note[side])
            assert ratio.shape == ((3,) if o.address.endswith("qkv.w") else ())
            assert all(np.isclose(r, [*steps, 1.0]).any() for r in ratio.ravel()), o.address
            spread = ratio[:, None, None] if ratio.ndim else ratio  # of query, key and value weights [s h e]
            want = start[o.address]["scale"] * np.float32(spread)
            np.testing.assert_allclose(fit.qstate[o.address]["scale"], want, rtol=1e-6, err_msg=o.address)
            for name in ("zero", "levels"):
                np.testing.assert_array_equal(fit.qstate[o.address][name], start[o.address][name])
            ratios += ratio.ravel().tolist()
        assert 0 < note["start"] <= note["score"] < 1 + 1e-6, site
        assert 1 <= note["rounds"] <= 2
    assert len(set(ratios)) > 3
    assert any(note["score"] > note["start"] + 1e-3 for note in fit.notes["search"].values())


def test_the_same_fit_twice_is_identical(tiny):
    """W3: nothing is drawn."""
    same(tiny.fit(bits=4), tiny.fitted(bits=4))


def test_all_rows_of_few_are_all_rows(tiny):
    """Four tokens an image are fewer than 16."""
    same(tiny.fit(bits=4, rows=None), tiny.fitted(bits=4, rows=16))


def test_only_biases_change_and_only_where_corrected(tiny):
    """B3 of the whole; ``none`` leaves all as it is."""
    assert tiny.fitted(bits=4, bias_correction="none").params is None
    for how in ("search", "sequential", "both"):
        corrected = tiny.fitted(bits=4, bias_correction=how).params
        pairs = zip(*(jax.tree_util.tree_leaves_with_path(p) for p in (corrected, tiny.params)), strict=True)
        changed = {"/".join(k.key for k in path) for (path, a), (_, b) in pairs if not np.array_equal(a, b)}
        sites = {o.site for o in tiny.known.values() if o.role == "w"}
        assert changed == {f"{site}/bias" for site in sites}


def test_corrections_of_the_search_are_of_its_last_intervals(tiny):
    """On all rows, from the float biases; what the search itself saw, where it saw all rows, is the same."""
    fit = tiny.fitted(bits=4, bias_correction="search")
    args = (tiny.forward, tiny.params, tiny.images, fit.plan)
    want = mean_errors(*args, fit.qstate, tiny.known, batch=8)
    jax.tree.map(np.testing.assert_array_equal, fit.params, with_bias_corrections(tiny.params, tiny.known, want))
    settings = liu21.settings(liu21.Options(**{**QUICK, "bits": 4, "bias_correction": "search", "rows": None}))
    states, _, seen = intervals.searched(settings, *args, tiny.known)
    equal(states, fit.qstate)
    assert seen.keys() == want.keys()
    for site, c in want.items():
        np.testing.assert_allclose(seen[site], c, rtol=1e-4, atol=1e-5 * np.abs(c).max(), err_msg=site)


def coded(x, state):
    """What a quantiser with this state makes of x, float64; the state's axes are the last ones."""
    scale, zero, levels = (np.asarray(state[name], np.float64) for name in ("scale", "zero", "levels"))
    return scale * (np.clip(np.round(x / scale) + zero, 0, levels) - zero)


def alike(y, z):
    """The correlation, mean over images."""
    return np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(y, z, strict=True)])


def test_scores_are_those_of_the_product_with_its_corrected_bias(tiny):
    """The correction is always from the float bias, however many rounds there were."""
    fit = tiny.fit(bits=4, rounds=20, tolerance=-1.0, bias_correction="search")
    assert max(note["rounds"] for note in fit.notes["search"].values()) > 2
    for site in ("patch", "block00/attn/proj", "block00/mlp/fc1", "block00/mlp/fc2", "head"):
        x, w = (tiny.float[f"{site}.{role}"] for role in "xw")
        quantised = coded(x, fit.qstate[f"{site}.x"]) @ coded(w, fit.qstate[f"{site}.w"])
        before, after = (np.asarray(leaf(p, site)["bias"], np.float64) for p in (tiny.params, fit.params))
        note = fit.notes["search"][site]
        assert note["rounds"] < 20, "intervals no longer change, so that the last correction is theirs"
        assert note["score"] == pytest.approx(alike(x @ w + before, quantised + after), abs=1e-5)


def leaf(params, site):
    for key in site.split("/"):
        params = params[key]
    return params


def unit_mean(tiny, site, products, params):
    """Mean over images and tokens of a product with its bias."""
    o = tiny.known[f"{site}.x"]
    return products[f"{site}.y"].mean(axis=tuple(i for i, a in enumerate(o.out) if a in o.letters)) + np.asarray(
        leaf(params, site)["bias"], np.float64
    )


@pytest.mark.parametrize("how", ["sequential", "both"])
def test_behind_quantised_products_means_are_the_float_models(how, tiny):
    """Also of all together: logits have no mean error."""
    fit = tiny.fitted(bits=4, bias_correction=how)
    got, want = tiny.tape(fit), tiny.float
    for site in (o.site for o in tiny.known.values() if o.role == "w"):
        a, b = unit_mean(tiny, site, got, fit.params), unit_mean(tiny, site, want, tiny.params)
        np.testing.assert_allclose(a, b, atol=1e-4 * np.sqrt(np.square(want[f"{site}.y"]).mean()), err_msg=site)
    rms = np.sqrt(np.square(want["logits"]).mean())
    assert np.abs((got["logits"] - want["logits"]).mean(axis=0)).max() < 1e-4 * rms
    other = tiny.tape(tiny.fitted(bits=4, bias_correction="search"))["logits"]
    assert np.abs((other - want["logits"]).mean(axis=0)).max() > 1e-2 * rms


def test_the_pass_at_the_end_sees_so_many_images(tiny, monkeypatch):
    seen = []
    found = tiny.fitted(bits=4)
    c = sequential_mean_errors(tiny.forward, tiny.params, tiny.images, found.plan, found.qstate, tiny.known)
    monkeypatch.setattr(intervals, "sequential_mean_errors", lambda f, p, images, *rest: seen.append(images) or c)
    same(tiny.fit(bits=4, bias_images=4), found)
    np.testing.assert_array_equal(seen, [tiny.images[:4]])


class Counting(dict):
    """A journal that counts what is written."""

    written = 0

    def __setitem__(self, key, value):
        self.written += 1
        super().__setitem__(key, json.loads(json.dumps(value)))


@pytest.fixture
def searches(tiny, monkeypatch):
    """What is searched, as it is: nothing of what others have compared with."""
    calls, real = [], intervals.search
    for how in ("search", "both"):
        tiny.fitted(bits=4, bias_correction=how)

    def search(form, *args):
        calls.append(form)
        return real(form, *args)

    monkeypatch.setattr(intervals, "search", search)
    return calls


def test_what_the_journal_holds_is_not_searched_again(tiny, searches):
    """The second fit is the first, from what JSON kept of it; after an interruption only the rest is searched."""
    journal, count = Counting(), len({o.site for o in tiny.known.values()})
    first = tiny.fit(bits=4, journal=journal)
    assert len(journal) == journal.written == len(searches) == count == 8
    same(first, tiny.fitted(bits=4))
    same(tiny.fit(bits=4, journal=journal), first)
    assert journal.written == len(searches) == count
    half = Counting(dict(list(journal.items())[: count // 2]))
    same(tiny.fit(bits=4, journal=half), first)
    assert half == journal
    assert half.written == len(searches) - count == count - count // 2


def test_a_journal_on_disk_does_as_well(tiny, searches, tmp_path):
    first = tiny.fit(bits=4, journal=Journal(tmp_path / "journal.jsonl", "same"))
    count = len(searches)
    again = Journal(tmp_path / "journal.jsonl", "same")
    assert again.resumed == count
    same(tiny.fit(bits=4, journal=again), first)
    assert len(searches) == count


def test_rows_that_share_a_journal_are_fitted_as_apart(tiny, searches):
    """What is alike in ``measures``: corrections at the end or not."""
    journal = Counting()
    same(tiny.fit(bits=4, bias_correction="search", journal=journal), tiny.fitted(bits=4, bias_correction="search"))
    same(tiny.fit(bits=4, journal=journal), tiny.fitted(bits=4))
    assert len(searches) == 8


def test_widths_have_searches_of_their_own(tiny, searches):
    """Nothing of one width's is taken for another's."""
    journal = Counting()
    tiny.fit(bits=8, journal=journal)
    same(tiny.fit(bits=4, journal=journal), tiny.fitted(bits=4))
    assert len(journal) == len(searches) == 2 * 8


def test_constant_images_are_no_trouble(tiny):
    """Every token of an image is the same patch; black ones have products without variance."""
    for value in (0.0, 1.0):
        fit = tiny.fit(bits=4, images=np.full_like(tiny.images, value))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(dict(fit.qstate)))
        assert all((np.asarray(s["scale"]) > 0).all() for s in fit.qstate.values())
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(fit.params))
        assert json.dumps(fit.notes, allow_nan=False)
        assert np.isfinite(tiny.tape(fit)["logits"]).all()


def test_a_single_constant_image_is_no_trouble(tiny):
    for value in (0.0, 1.0):
        images = np.full_like(tiny.images[:1], value)
        fit = tiny.fit(("patch.x", "patch.w"), images=images, bits=4, bias_correction="none")
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(dict(fit.qstate)))
        assert fit.notes["search"]["patch"]["score"] == pytest.approx(1, abs=0.1), "the bias is a part of it"
        assert json.dumps(fit.notes, allow_nan=False)


def test_weights_are_searched_beside_groups(tiny):
    """IGQ-ViT's inputs are as calibrated; the weight is searched against what they make of the input."""
    left, right = only = ("block00/mlp/fc1.x", "block00/mlp/fc1.w")
    quick = {left: Dynamic(3, "bd")}  # in place of groups, which take long to compile: not searched either
    options = dict(bits=3, activations="groups", groups=2, bias_correction="none")
    fit = tiny.fit(only, {left: Grouped(3, 2, "d")}, quick, **options)
    assert fit.plan == {**quick, right: Uniform(3, "o", symmetric=True)}
    start = calibrate(tiny.forward, tiny.params, tiny.images, fit.plan, tiny.known)
    equal(fit.qstate[left], start[left])
    note = fit.notes["search"]["block00/mlp/fc1"]
    assert note["left"] == 1.0
    assert note["right"] != 1.0
    np.testing.assert_allclose(fit.qstate[right]["scale"], start[right]["scale"] * np.float32(note["right"]), rtol=1e-6)

    x, w = tiny.float[left], tiny.float[right]
    lower, upper = np.minimum(x.min(axis=1, keepdims=True), 0), np.maximum(x.max(axis=1, keepdims=True), 0)
    scale = (upper - lower) / 7
    grouped = coded(x, {"scale": scale, "zero": np.round(-lower / scale), "levels": 7})
    bias = np.asarray(tiny.params["block00"]["mlp"]["fc1"]["bias"], np.float64)
    assert note["score"] == pytest.approx(alike(x @ w + bias, grouped @ coded(w, fit.qstate[right]) + bias), abs=1e-4)
    assert note["score"] > note["start"]


CANDIDATES = (4, 6, 8)
MIXED = dict(bits=6, mixed=True, mixed_bits=CANDIDATES)
BY = {"kl": {}, "nuclear": dict(sensitivity="nuclear"), "normalized": dict(sensitivity="nuclear", normalized=True)}


@pytest.fixture(scope="module")
def journal():
    """What searches of all widths found, for those who look at something else."""
    return {}


@pytest.fixture(scope="module")
def measures():
    """What the measures of sensitivity were given and gave, in the order of ``BY``."""
    return []


@pytest.fixture(scope="module")
def by(tiny, journal, measures):
    """The fits with widths by module."""

    def heard(measure):
        def run(*args, **how):
            measures.append((measure.__name__, args, how, measure(*args, **how)))
            return measures[-1][-1]

        return run

    with pytest.MonkeyPatch.context() as patch:
        for measure in (mixing.omegas, mixing.sweep_modules):
            patch.setattr(mixing, measure.__name__, heard(measure))
        return {name: tiny.fit(**MIXED, **options, journal=journal) for name, options in BY.items()}


def test_sensitivities_are_measured_under_the_states_of_each_width(by, measures, tiny):
    """As fits at that width have them; the edges, which are in no module, stay float."""
    inside = {a for m in modules(tiny.known) for a in m.addresses}
    assert [name for name, *_ in measures] == ["sweep_modules", "omegas", "omegas"]
    for name, (forward, params, images, *rest), how, _ in measures:
        if name == "sweep_modules":
            parts, plan, states = rest
            assert parts == {m.name: m.addresses for m in modules(tiny.known)}
        else:
            plan, states, known = rest
            assert (known, how["looked"]) == (tiny.known, ("map", "map"))
        assert forward == tiny.forward
        assert params is tiny.params
        np.testing.assert_array_equal(images, tiny.images)
        assert set(plan) == inside
        for bits, state in zip(CANDIDATES, states, strict=True):
            equal({a: state[a] for a in inside}, {a: tiny.fitted(bits=bits).qstate[a] for a in inside})


def test_noted_sensitivities_are_what_was_measured(by, measures):
    """Those of ``normalized`` are parts of all of an attention's or an MLP's."""
    (*_, kl), (*_, (nuclear, norms)), (*_, same) = measures
    assert same == (nuclear, norms)
    for name, want in (("kl", kl), ("nuclear", nuclear)):
        notes = by[name].notes["mixed"]
        assert {m: note["loss"] for m, note in notes["modules"].items()} == want
        assert list(want) == ["block00/attn", "block00/mlp"]
        assert ("KL" in notes["unit"], "nuclear" in notes["unit"]) == (name == "kl", name != "kl")
    for m, note in by["normalized"].notes["mixed"]["modules"].items():
        np.testing.assert_allclose(note["loss"], np.divide(nuclear[m], sum(nuclear[m])), rtol=1e-12)
    assert by["normalized"].notes["mixed"]["unit"] != by["nuclear"].notes["mixed"]["unit"]
    for name, fit in by.items():
        want = dict.fromkeys(norms) if name == "kl" else norms
        assert {m: note["norm"] for m, note in fit.notes["mixed"]["modules"].items()} == want


def test_parts_are_of_all_modules_of_a_kind():
    names = ("a/attn", "a/mlp", "b/attn", "b/mlp")
    found = [Module(name, name.split("/")[1], (), 1) for name in names]
    loss = {"a/attn": [3.0, 1.0], "a/mlp": [0.0, 0.0], "b/attn": [8.0, 4.0], "b/mlp": [0.0, 0.0]}
    got = mixing.normalized(loss, found)
    assert got == {"a/attn": [3 / 16, 1 / 16], "a/mlp": [0, 0], "b/attn": [8 / 16, 4 / 16], "b/mlp": [0, 0]}


@pytest.mark.parametrize("name", BY)
def test_widths_are_the_best_of_all_choices_within_the_size(name, by):
    """M3, M5: by brute force over the noted sensitivities; sizes are weights times bits / 8."""
    notes = by[name].notes["mixed"]
    rows = notes["modules"]
    assert [m["parameters"] for m in rows.values()] == [4 * 16**2, 2 * 16**2]
    tried = {}
    for pick in itertools.product(range(3), repeat=2):
        size = sum(m["parameters"] * CANDIDATES[j] for m, j in zip(rows.values(), pick, strict=True)) / 8
        tried[tuple(CANDIDATES[j] for j in pick)] = (
            size,
            sum(m["loss"][j] for m, j in zip(rows.values(), pick, strict=True)),
        )
    chosen = tuple(m["bits"] for m in rows.values())
    limit = 1536 * 6 / 8
    assert notes["limit"] == limit
    best = min((loss, size) for size, loss in tried.values() if size <= limit)
    assert (notes["size"], notes["loss"]) == pytest.approx(tried[chosen])
    assert notes["loss"] == pytest.approx(best[0])
    assert notes["size"] <= limit
    front = {s: min(loss for size, loss in tried.values() if size <= s) for s in sorted({s for s, _ in tried.values()})}
    want = [[s, x] for i, (s, x) in enumerate(front.items()) if not i or x < list(front.values())[i - 1] * (1 - 1e-12)]
    np.testing.assert_allclose(notes["front"], want)
    assert [notes["size"], notes["loss"]] in notes["front"]
    assert notes["equal"].keys() == {"4", "6", "8"}
    for b in CANDIDATES:
        assert notes["equal"][str(b)] == pytest.approx(tried[(b, b)])
    assert notes["loss"] <= notes["equal"]["6"][1]
    assert (notes["target"], notes["candidates"]) == (6, [4, 6, 8])


def test_the_measures_do_not_all_agree(by):
    """The tests above could fail, and some module has another width than the rest."""
    widths = {name: tuple(m["bits"] for m in fit.notes["mixed"]["modules"].values()) for name, fit in by.items()}
    assert len(set(widths.values())) > 1
    assert any(len(set(row)) > 1 for row in widths.values())


@pytest.mark.parametrize("name", BY)
def test_a_modules_operands_have_its_width_and_the_edges_keep_theirs(name, by, tiny):
    """M5, W3: all products and both operands; nothing but widths changes."""
    fit = by[name]
    bits = {n: m["bits"] for n, m in fit.notes["mixed"]["modules"].items()}
    uniform = tiny.fitted(bits=6).plan
    assert list(fit.plan) == list(uniform) == list(tiny.known)
    for a, q in fit.plan.items():
        assert q == dataclasses.replace(uniform[a], bits=bits.get(a.rsplit("/", 1)[0], 6)), a


@pytest.mark.parametrize("name", BY)
def test_a_modules_states_are_those_of_its_width_everywhere(name, by, tiny):
    """Intervals are searched on the float model: other modules' widths do not matter to them; biases are corrected."""
    fit = by[name]
    for a, q in fit.plan.items():
        equal(fit.qstate[a], tiny.fitted(bits=q.bits).qstate[a])
    rest = (tiny.forward, tiny.params, tiny.images, fit.plan, fit.qstate, tiny.known)
    want = with_bias_corrections(tiny.params, tiny.known, sequential_mean_errors(*rest))
    jax.tree.map(np.testing.assert_array_equal, fit.params, want)
    assert list(fit.notes["search"]) == list(tiny.fitted(bits=6).notes["search"])


def test_every_width_of_a_module_is_searched_once(tiny, faked, searches):
    """Six products inside modules at three widths, and the two others at theirs; then the journal knows all."""
    journal = Counting()
    first = tiny.fit(**MIXED, journal=journal)
    assert len(journal) == journal.written == len(searches) == 6 * 3 + 2
    same(tiny.fit(**MIXED, journal=journal), first)
    assert len(searches) == 6 * 3 + 2
    half = Counting(dict(list(journal.items())[:9]))
    same(tiny.fit(**MIXED, journal=half), first)
    assert half == journal
    assert len(searches) == 6 * 3 + 2 + 11


def test_one_candidate_is_the_equal_width(tiny, journal):
    fit, want = tiny.fit(bits=6, mixed=True, mixed_bits=(6,), journal=journal), tiny.fitted(bits=6)
    assert fit.plan == want.plan
    equal(fit.qstate, want.qstate)
    assert fit.notes["mixed"]["front"] == [[fit.notes["mixed"]["size"], fit.notes["mixed"]["loss"]]]
    assert fit.notes["mixed"]["size"] == fit.notes["mixed"]["limit"]


@pytest.fixture
def faked(monkeypatch, tiny):
    """What the measures of sensitivity are asked; both say that every bit counts the same everywhere."""
    asked = {}
    loss = {m.name: [4.0, 2.0, 1.0] for m in modules(tiny.known)}

    def measure(name, value):
        def run(*args, **how):
            asked.update(name=name, images=args[2], plan=args[4 if name == "kl" else 3], **how)
            return value

        return run

    monkeypatch.setattr(mixing, "omegas", measure("nuclear", (loss, dict.fromkeys(loss, 1.0))))
    monkeypatch.setattr(mixing, "sweep_modules", measure("kl", loss))
    return asked


def test_what_is_measured_follows_the_options(tiny, faked, journal):
    tiny.fit(**MIXED, sensitivity="nuclear", norm_of="scores", error_of="output", mixed_images=4, journal=journal)
    assert (faked["name"], faked["looked"]) == ("nuclear", ("scores", "output"))
    np.testing.assert_array_equal(faked["images"], tiny.images[:4])
    assert set(faked["plan"]) == {a for a in tiny.known if a.startswith("block")}
    tiny.fit(**MIXED, journal=journal)
    assert faked["name"] == "kl"
    assert len(faked["images"]) == IMAGES


def test_slack_is_a_part_of_the_size(tiny, faked, journal):
    """The MLP at 8 bits is 2 * 512 more than the 6 * 1536 bits."""
    fits = {s: tiny.fit(**MIXED, mixed_slack=s, journal=journal).notes["mixed"] for s in (0.0, 0.11, 0.12)}
    assert {s: note["limit"] for s, note in fits.items()} == pytest.approx({s: 1152 * (1 + s) for s in fits})
    assert fits[0.0]["size"] == fits[0.11]["size"] == 1152
    assert fits[0.12]["size"] == 1152 + 128
    assert fits[0.12]["loss"] < fits[0.11]["loss"]


@pytest.mark.parametrize(("options", "says"), [
    (dict(bits=6, mixed_bits=(7, 8)), r"method\.mixed_bits: 7 bits everywhere are .* more than the budget of .*6 bits"),
    (dict(bits=6, mixed_bits=(6, 8), mixed_slack=-0.1), r"method\.mixed_bits: 6 bits everywhere"),
])  # fmt: skip
def test_candidates_that_are_all_too_large_name_the_option(options, says, tiny, searches):
    """Before anything is searched."""
    with pytest.raises(ValueError, match=says):
        tiny.fit(mixed=True, **options)
    assert searches == []


def test_a_plan_without_modules_has_no_widths_to_choose(tiny):
    with pytest.raises(ValueError, match=r"method\.mixed: the model has no attention or MLP"):
        tiny.fit(("patch.x", "patch.w", "head.x"), **MIXED)
