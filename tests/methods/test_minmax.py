"""Every option of min-max gives the quantisers that it promises."""

import dataclasses

import numpy as np
import pytest

from jvq.core.recipe import resolve
from jvq.methods import igq, minmax
from jvq.quantizers import Uniform

EDGES = ["patch.x", "patch.w", "head.x", "head.w"]


def plan(known, **options):
    return dict(minmax.recipe(minmax.Options(**options), known))


def test_weights_have_a_range_a_channel_activations_one(known):
    keep = {"patch.w": "o", "block00/attn/qkv.w": "she", "block00/attn/proj.w": "o", "head.w": "o"}
    keep |= {"block00/mlp/fc1.w": "o", "block00/mlp/fc2.w": "o"}
    want = {a: Uniform(8, keep.get(a, "")) for a in known}
    assert plan(known) == want
    assert list(resolve(minmax.recipe(minmax.Options(), known), known)) == list(known)


def inner(known, weights):
    return [a for a, o in known.items() if a not in EDGES and (o.role == "w") is weights]


CASES = {  # options, whether weights and activations between the edges change, to what
    "bits": (dict(bits=5), (True, False), dict(bits=5)),
    "weight_bits": (dict(weight_bits=3), (True,), dict(bits=3)),
    "act_bits": (dict(act_bits=3), (False,), dict(bits=3)),
}


@pytest.mark.parametrize("case", CASES)
def test_widths_reach_all_but_the_edges(case, known):
    options, kinds, change = CASES[case]
    want = plan(known)
    for weights in kinds:
        want |= {a: dataclasses.replace(want[a], **change) for a in inner(known, weights)}
    assert plan(known, **options) == want


def test_the_edges_have_a_width_of_their_own(known):
    want = plan(known)
    want |= {a: dataclasses.replace(want[a], bits=5) for a in EDGES}
    assert plan(known, edge_bits=5) == want


def test_activation_options_leave_weights_alone(known):
    found = plan(known, range="percentile", percentile=1.5, symmetric=True)
    for address, o in known.items():
        weight = Uniform(8, "she" if "qkv" in address else "o")
        assert found[address] == (weight if o.role == "w" else Uniform(8, "", True, "percentile", (1.5,)))


def test_the_range_of_weights_is_an_option_of_its_own(known):
    found = plan(known, weight_range="percentile", percentile=1.5)
    for address, o in known.items():
        keep = "she" if "qkv" in address else "o"
        want = Uniform(8, keep, range="percentile", percentile=(1.5,))
        assert found[address] == (want if o.role == "w" else Uniform(8, percentile=(1.5,)))
    told = minmax.protocol(minmax.Options(weight_range="percentile", percentile=1.5))
    assert told["weights"] == "8 bits, affine, per output channel, range by percentile 1.5 %"
    assert "range by max" in told["softmax"]


def test_kept_axes_reach_the_activations_that_have_them(known):
    found = plan(known, keep="hn")
    assert found["block00/attn/qk.q"].keep == "h"  # q is its token
    assert found["block00/attn/pv.p"].keep == "h"
    assert found["block00/mlp/fc1.x"].keep == "n"
    assert found["head.x"].keep == ""
    with pytest.raises(ValueError, match=r"method\.keep: no activation of this model has an axis 'w'"):
        plan(known, keep="w")


def test_32_bits_are_float(known):
    assert [a for a, q in plan(known, weight_bits=32).items() if q is None] == inner(known, True)
    assert [a for a, q in plan(known, act_bits=32).items() if q is None] == inner(known, False)
    assert {a for a, q in plan(known, edge_bits=32).items() if q is None} == set(EDGES)


@pytest.mark.parametrize(("options", "says"), [
    (dict(bits=0), r"block00/attn/qkv\.x: bits must be a whole number from 1 to 16, got 0"),
    (dict(bits=17), r"block00/attn/qkv\.x: bits must be .* got 17"),
    (dict(act_bits=1, symmetric=True), r"qkv\.x: bits must be a whole number from 2"),
    (dict(range="percentile", percentile=50.0), r"patch\.x: percentile: got \(50\.0,\)"),
    (dict(keep="b"), r"keep: 'b' would be a range per calibration image"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(options, says, known):
    with pytest.raises(ValueError, match=says):
        resolve(minmax.recipe(minmax.Options(**options), known), known)


@pytest.mark.parametrize("sequential", [False, True])
def test_calibration_follows_the_option(sequential, monkeypatch, known):
    asked = {}
    monkeypatch.setattr(minmax, "calibrate", lambda *args, **how: asked.update(how) or {})
    minmax.fit(minmax.Options(sequential=sequential), lambda *_: None, {}, np.zeros((1, 8, 8, 1)), {}, known)
    assert asked["sequential"] is sequential


def test_nothing_is_shown_beside_it():
    assert minmax.baselines(minmax.Options()) == {}


@pytest.mark.parametrize("method", [minmax, igq])
def test_edges_without_a_width_of_their_own_have_that_of_all_others(method, known):
    found = resolve(method.recipe(method.Options(weight_bits=5, act_bits=3, edge_bits=None), known), known)
    for address in EDGES:
        assert found[address].bits == (5 if address.endswith(".w") else 3)
    assert method.protocol(method.Options(weight_bits=5, act_bits=3, edge_bits=None))[
        "patch embedding and head"
    ].startswith("5 bits and 3 bits")
