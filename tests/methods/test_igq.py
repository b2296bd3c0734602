"""Every option of IGQ-ViT gives the quantisers that it promises."""

import dataclasses

import numpy as np
import pytest

from jvq.core.recipe import resolve
from jvq.methods import igq, minmax
from jvq.quantizers import Dynamic, Grouped, StaticGrouped, Uniform

LINEAR = [f"block00/{op}.x" for op in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")]
MAPS = ["block00/attn/pv.p"]
QKV = ["block00/attn/qk.q", "block00/attn/qk.k", "block00/attn/pv.v"]
WEIGHTS = {
    f"block00/{op}.w": "she" if op == "attn/qkv" else "o" for op in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
}
EDGES = ["patch.x", "patch.w", "head.x", "head.w"]
STATIC = {"keep": "h", "range": "percentile", "percentile": (0.1, 0.01, 0.001)}


# what these change is fitting, not the recipe
FITTED = ("sequential", "allocation", "candidates", "allocation_rest", "allocation_widths")


def plan(known, **options):
    """Every address, with None where it stays float."""
    return dict(igq.recipe(igq.Options(**options), known))


def test_the_default_plan(known):
    want = {a: Grouped(4, 8, "d") for a in LINEAR}
    want |= {a: Grouped(4, 8, "hq", nonnegative=True) for a in MAPS}
    want |= {a: Uniform(4, **STATIC) for a in QKV}
    want |= {a: Uniform(4, keep) for a, keep in WEIGHTS.items()}
    want |= {a: Uniform(8, "o") if a.endswith("w") else Uniform(8) for a in EDGES}
    assert plan(known) == want
    assert list(resolve(igq.recipe(igq.Options(), known), known)) == list(known)


SAME = {
    name: (value,)
    for name, value in dict(mstep="mean", zero_point="clamp", distance="absolute", start="quantile").items()
}
SAME |= {"restarts": (7,), "iterations": (9,), "statistics": ("pooled",), "seed": (5,)}
CASES = {  # options: the addresses that change, to what
    "bits": (
        dict(bits=6),
        {
            **{a: dict(bits=6) for a in LINEAR + MAPS},
            **{a: dict(bits=6, range="max") for a in QKV},
            **{a: dict(bits=6) for a in WEIGHTS},
        },
    ),
    "weight_bits": (dict(weight_bits=3), {a: dict(bits=3, range="mse") for a in WEIGHTS}),
    "act_bits": (dict(act_bits=3), {a: dict(bits=3) for a in LINEAR + MAPS + QKV}),
    "edge_bits": (
        dict(edge_bits=5),
        {a: Uniform(5, "o") if a.endswith("w") else Uniform(5) for a in EDGES},
    ),
    "groups": (dict(groups=2), {a: dict(groups=2) for a in LINEAR + MAPS}),
    "softmax_groups": (dict(softmax_groups=2), {a: dict(groups=2) for a in MAPS}),
    "linear": (dict(linear="layer"), {a: Uniform(4) for a in LINEAR}),
    "linear float": (dict(linear="float"), dict.fromkeys(LINEAR)),
    "softmax": (dict(softmax="layer"), {a: Uniform(4) for a in MAPS}),
    "softmax float": (dict(softmax="float"), dict.fromkeys(MAPS)),
    "qkv": (dict(qkv="tensor"), {a: dict(keep="") for a in QKV}),
    "qkv_range": (dict(qkv_range="max"), {a: dict(range="max") for a in QKV}),
    "qkv float": (dict(qkv="float"), dict.fromkeys(QKV)),
    "linear_along": (dict(linear_along="n"), {a: dict(along="n") for a in LINEAR}),
    "softmax_along": (dict(softmax_along="q"), {a: dict(along="q") for a in MAPS}),
    "weight_range": (dict(weight_range="mse"), {a: dict(range="mse") for a in [*WEIGHTS, "patch.w", "head.w"]}),
    "weight_range max": (dict(weight_range="max", weight_bits=3), {a: dict(bits=3) for a in WEIGHTS}),
    "weight_percentile": (
        dict(weight_range="percentile", weight_percentile=2.0),
        {a: dict(range="percentile", percentile=(2.0,)) for a in [*WEIGHTS, "patch.w", "head.w"]},
    ),
    "upper_bound": (
        dict(upper_bound=True, zero_point="free"),
        {
            **{a: Dynamic(4, "bd", zero_point="free") for a in LINEAR},
            **{a: Dynamic(4, "bhq", nonnegative=True, zero_point="free") for a in MAPS},
        },
    ),
    "sequential": (dict(sequential=True), {}),
    "allocation": (dict(allocation="bops"), {}),
    "candidates": (dict(candidates=(2, 3)), {}),
    "ladder": (dict(ladder=True), {a: dict(ladder=True) for a in LINEAR + MAPS}),
    "linear sorted": (
        dict(linear="sorted", mstep="mean"),
        {**{a: StaticGrouped(4, 8, "d", "sorted", "mean") for a in LINEAR}, **{a: dict(mstep="mean") for a in MAPS}},
    ),
    "allocation_rest": (dict(allocation_rest="quantized"), {}),
    "allocation_widths": (dict(allocation="bops", allocation_widths=(3, 5)), {}),
    **{name: ({name: value}, {a: {name: value} for a in LINEAR + MAPS}) for name, (value,) in SAME.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_an_option_changes_what_it_promises_and_nothing_else(case, known):
    options, changes = CASES[case]
    before = plan(known)
    want = dict(before)
    for address, change in changes.items():
        want[address] = dataclasses.replace(before[address], **change) if isinstance(change, dict) else change
    assert plan(known, **options) == want
    assert case in FITTED or want != before


def test_every_option_has_a_case():
    assert {name.split()[0] for name in CASES} == {f.name for f in dataclasses.fields(igq.Options)}


@pytest.mark.parametrize(("bits", "chosen"), [(3, "mse"), (4, "max")])
def test_weight_ranges_are_searched_below_four_bits(bits, chosen, known):
    found = plan(known, bits=bits)
    assert {found[a].range for a in WEIGHTS} == {chosen}
    assert found["patch.w"].range == "max", "8 bits, whatever the rest has"


@pytest.mark.parametrize(("bits", "chosen"), [(5, "percentile"), (6, "max"), (8, "max")])
def test_query_key_and_value_are_cut_below_six_bits(bits, chosen, known):
    found = plan(known, bits=8, act_bits=bits)
    assert {found[a].range for a in QKV} == {chosen}
    assert f"query, key, value: {bits} bits, per head, static" in "; ".join(
        f"{name}: {said}" for name, said in igq.protocol(igq.Options(act_bits=bits)).items()
    )


@pytest.mark.parametrize("upper_bound", [False, True])
def test_32_bits_are_float(known, upper_bound):
    assert plan(known, act_bits=32, upper_bound=upper_bound).items() >= dict.fromkeys(LINEAR + MAPS + QKV).items()
    assert plan(known, weight_bits=32, upper_bound=upper_bound).items() >= dict.fromkeys(WEIGHTS).items()
    assert plan(known, edge_bits=32, upper_bound=upper_bound).items() >= dict.fromkeys(EDGES).items()
    assert set(plan(known, bits=32, edge_bits=32, upper_bound=upper_bound).values()) == {None}


@pytest.mark.parametrize("option", ["linear_along", "softmax_along"])
def test_letters_that_no_activation_has_are_refused(option, known):
    with pytest.raises(ValueError, match=rf"method\.{option}: no activation of this model has an axis 'z'"):
        plan(known, **{option: "z"})


MISFITS = {
    "no bits": (dict(bits=0), r"block00/attn/qkv\.x: bits must be a whole number from 1 to 16, got 0 .nearest: 1"),
    "17 bits": (dict(weight_bits=17), r"block00/attn/qkv\.w: bits must be .* got 17 .nearest: 16"),
    "no edge bits": (dict(edge_bits=0), r"patch\.x: bits must be"),
    "no groups": (dict(groups=0), r"block00/attn/qkv\.x: groups: got 0, must be from 1 to the 16 indices along 'd'"),
    "more groups than channels": (dict(groups=17), r"block00/attn/qkv\.x: groups: got 17, must be from 1 to the 16"),
    "more groups than rows": (dict(softmax_groups=11), r"pv\.p: groups: got 11, must be from 1 to the 10 indices"),
    "an axis of another operand": (
        dict(linear_along="h"),
        r"qkv\.x: along: no axis 'h' in an operand with letters 'bnd'",
    ),
    "the image's axis": (dict(softmax_along="bq"), r"pv\.p: along: got 'bq', must name axes .* other than"),
    "no axis": (dict(linear_along=""), r"qkv\.x: along: got ''"),
    "no restarts": (dict(restarts=0), r"qkv\.x: restarts: got 0, must be at least 1"),
    "half cut off": (dict(weight_range="percentile", weight_percentile=50.0), r"patch\.w: percentile: got \(50\.0,\)"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_the_model_names_the_address(case, known):
    options, says = MISFITS[case]
    with pytest.raises(ValueError, match=says):
        resolve(igq.recipe(igq.Options(**options), known), known)


@pytest.mark.parametrize("sequential", [False, True])
def test_calibration_follows_the_option(sequential, monkeypatch, known):
    asked = {}
    monkeypatch.setattr(igq, "calibrate", lambda *args, **how: asked.update(how) or {})
    igq.fit(igq.Options(sequential=sequential), lambda *_: None, {}, np.zeros((1, 8, 8, 1)), {}, known)
    assert asked["sequential"] is sequential


def test_shown_beside_it_are_min_max_at_the_same_widths_and_the_upper_bound():
    options = igq.Options(bits=3, weight_bits=5, edge_bits=7, groups=4, qkv="head")
    rows = igq.baselines(options)
    assert rows["minmax"] == ("minmax", minmax.Options(3, 5, None, 7))
    assert rows["igq_upper_bound"] == ("igq", dataclasses.replace(options, upper_bound=True))
    assert list(rows) == ["minmax", "igq_upper_bound"]


@pytest.mark.parametrize("case", [c for c, (_, changes) in CASES.items() if changes and c in (
    "bits", "weight_bits", "act_bits", "edge_bits", "groups", "softmax_groups", "linear", "softmax", "qkv",
    "linear_along", "softmax_along", "weight_range", "mstep", "zero_point",
)])  # fmt: skip
def test_the_protocol_tells_options_apart(case):
    assert igq.protocol(igq.Options(**CASES[case][0])) != igq.protocol(igq.Options())
