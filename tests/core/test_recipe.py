"""From a recipe to a plan; sites() on a model written by hand."""

import copy

import jax
import jax.numpy as jnp
import pytest

from jvq.core.packed import Packed
from jvq.core.recipe import matching, resolve, sites
from jvq.quantizers import Dynamic, Grouped, Uniform


def test_sites_finds_every_operand_in_the_models_order(tiny):
    assert list(tiny.known) == tiny.addresses


def test_sites_knows_letters_shapes_and_products(tiny):
    p = tiny.known["attn/pv.p"]
    assert (p.letters, p.shape, p.out, p.product) == ("bhqk", (1, 2, 8, 8), "bqhe", (1, 8, 2, 4))
    assert (p.site, p.role, p.contracted, p.batched) == ("attn/pv", "p", "k", True)
    w = tiny.known["attn/qkv.w"]
    assert (w.letters, w.shape, w.contracted, w.batched) == ("dshe", (8, 3, 2, 4), "d", False)


def test_sites_finds_parameters_and_only_those(tiny):
    paths = {a: o.path for a, o in tiny.known.items() if o.path is not None}
    assert paths == {
        "stem.w": ("stem", "kernel"),
        "attn/qkv.w": ("attn", "qkv", "kernel"),
        "head.w": ("head", "kernel"),
    }


def test_sites_computes_nothing_and_sees_packed_leaves_as_the_floats_they_stand_for(tiny):
    q = Uniform(bits=4)
    kernel = tiny.params["head"]["kernel"]
    leaf = Packed.of(q.encode(q.init(kernel, "do"), kernel, "do"), 4)
    params = {**tiny.params, "head": {"kernel": leaf}}
    abstract = jax.eval_shape(lambda p: p, params)  # without values: a computation would fail
    assert sites(tiny.forward, abstract, (4, 4, 2)) == tiny.known


def test_two_products_with_one_address_are_an_error():
    def twice(params, images, dot):
        y = dot("fc", "bd,do->bo", x=images.reshape(1, -1), w=params["w"])
        return dot("fc", "bd,do->bo", x=y, w=params["w"])

    with pytest.raises(ValueError, match=r"fc\.x: two products share this address"):
        sites(twice, {"w": jnp.zeros((4, 4))}, (2, 2, 1))


@pytest.mark.parametrize("operands", [{"x": 0}, {"x": 0, "w": 0, "v": 0}])
def test_a_product_takes_two_operands(operands):
    def wrong(params, images, dot):
        x = images.reshape(1, -1)
        return dot("fc", ",".join(["bd"] * len(operands)) + "->b", **dict.fromkeys(operands, x))

    with pytest.raises(ValueError, match="fc: dot takes two named operands"):
        sites(wrong, {}, (2, 2, 1))


def test_the_role_of_products_is_taken():
    def wrong(params, images, dot):
        return dot("fc", "bd,do->bo", y=images.reshape(1, -1), w=params)

    with pytest.raises(ValueError, match=r"fc\.y"):
        sites(wrong, jnp.zeros((4, 4)), (2, 2, 1))


def test_the_last_match_wins_and_none_means_float(tiny):
    four, eight, own = Uniform(bits=4), Uniform(bits=8), Uniform(bits=3)
    plan = resolve([("*", four), ("*.w", eight), ("attn/*", None), ("attn/pv.p", own)], tiny.known)
    assert plan == {
        "stem.x": four,
        "stem.w": eight,
        "attn/pv.p": own,
        "head.x": four,
        "head.w": eight,
    }
    assert list(plan) == [a for a in tiny.addresses if a in plan]  # in the model's order
    assert resolve([("*", four), ("*", None)], tiny.known) == {}


def test_a_pattern_is_a_glob_over_whole_addresses(tiny):
    assert matching("*.w", tiny.known) == ["stem.w", "attn/qkv.w", "head.w"]
    assert matching("attn/q?.*", tiny.known) == ["attn/qk.q", "attn/qk.k"]
    assert matching("attn/*.[qk]", tiny.known) == ["attn/qk.q", "attn/qk.k"]


@pytest.mark.parametrize(
    ("pattern", "near"), [("attn/pv.q", "attn/pv.p"), ("hed.w", "head.w"), ("block*/attn/qkv.w", "attn/qkv.w")]
)
@pytest.mark.parametrize("quantizer", [Uniform(), None])
def test_a_rule_that_matches_nothing_names_the_nearest_address(tiny, pattern, near, quantizer):
    with pytest.raises(ValueError, match="matches no address") as error:
        resolve([("*", Uniform()), (pattern, quantizer)], tiny.known)
    assert pattern in str(error.value)
    assert near in str(error.value)


def altered(quantizer, options):
    """The quantiser with options that its annotations forbid: what a configuration file may hold."""
    other = copy.copy(quantizer)
    for name, value in options.items():
        object.__setattr__(other, name, value)
    return other


MISTAKES = [
    ("stem.w", Uniform(), dict(bits=0), "bits .* from 1 to 16, got 0"),
    ("stem.w", Uniform(), dict(bits=17), "bits .* got 17 .nearest: 16"),
    ("stem.w", Uniform(), dict(bits=True), "bits .* got True .nearest: 1"),
    ("stem.w", Uniform(), dict(bits=4.0), "bits .* got 4.0"),
    ("stem.w", Uniform(), dict(bits=1, symmetric=True), "from 2 to 16, got 1"),
    ("stem.w", Uniform(), dict(keep="h"), "keep: no axis 'h'"),
    ("stem.x", Uniform(), dict(keep="b"), "keep: 'b'"),
    ("stem.w", Uniform(), dict(range="percentil"), "range: got 'percentil' .did you mean 'percentile'"),
    ("stem.w", Uniform(), dict(range="percentile", percentile=(50.0,)), "percentile"),
    ("stem.w", Uniform(), dict(range="percentile", percentile=()), "percentile"),
    ("stem.w", Uniform(), dict(zero_point="clip"), "zero_point"),
    ("stem.x", Dynamic(), dict(bits=0), "bits"),
    ("stem.x", Dynamic(), dict(keep="d"), "keep: 'd' lacks 'b'"),
    ("stem.x", Dynamic(), dict(keep="bo"), "no axis 'o'"),
    ("stem.x", Grouped(), dict(bits=17, groups=2), "bits"),
    ("stem.x", Grouped(), dict(groups=0), "groups: got 0, must be from 1 to the 4 indices"),
    ("stem.x", Grouped(), dict(groups=5), "groups: got 5, must be from 1 to the 4 indices along 'd'"),
    ("attn/pv.p", Grouped(), dict(groups=17, along="hq"), "from 1 to the 16 indices along 'hq'"),
    ("stem.x", Grouped(), dict(groups=2, along="o"), "along: no axis 'o'"),
    ("stem.x", Grouped(), dict(groups=2, along="bd"), "along"),
    ("stem.x", Grouped(), dict(groups=2, along=""), "along"),
    ("stem.x", Grouped(), dict(groups=4, capacity=3), "capacity: got 3, must be at least groups = 4"),
    ("stem.x", Grouped(), dict(groups=2, restarts=0), "restarts"),
    ("stem.x", Grouped(), dict(groups=2, iterations=0), "iterations"),
    ("stem.x", Grouped(), dict(groups=2, mstep="means"), "mstep: got 'means' .did you mean 'mean'"),
    ("stem.x", Grouped(), dict(groups=2, distance="l1"), "distance"),
    ("stem.x", Grouped(), dict(groups=2, start="random"), "start"),
    ("stem.x", Grouped(), dict(groups=2, statistics="batch"), "statistics"),
    ("stem.x", Grouped(), dict(groups=2, zero_point="none"), "zero_point"),
]


@pytest.mark.parametrize(("address", "quantizer", "options", "says"), MISTAKES, ids=[s for *_, s in MISTAKES])
def test_every_mistake_is_found_before_computing_and_names_its_address(tiny, address, quantizer, options, says):
    with pytest.raises(ValueError, match=says) as error:
        resolve([(address, altered(quantizer, options))], tiny.known)
    assert str(error.value).startswith(f"{address}: ")


@pytest.mark.parametrize("quantizer", [Uniform(bits=1), Uniform(bits=16), Uniform(bits=2, symmetric=True)])
def test_the_ends_of_the_widths_are_allowed(tiny, quantizer):
    assert resolve([("stem.w", quantizer)], tiny.known) == {"stem.w": quantizer}


def test_as_many_groups_as_channels_are_allowed(tiny):
    assert set(resolve([("stem.x", Grouped(groups=4)), ("attn/pv.p", Grouped(groups=16, along="hq"))], tiny.known)) == {
        "stem.x",
        "attn/pv.p",
    }
