"""Counts against formulas written out by hand, and against the figures of the IGQ-ViT paper's models."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jvq.accounting import BETA, bops, costs, macs, pairs, spent, total, tree_bytes
from jvq.core.packed import Packed
from jvq.core.quantizer import Codes
from jvq.core.recipe import sites
from jvq.methods import igq, minmax
from jvq.models import build, vit
from jvq.quantizers import Uniform

GBOPS = {  # base of the 12 blocks at W4A4 and W6A6: spec of IGQ-ViT, 8.25
    "Ti": (19.6, 44.1),
    "S": (72.7, 163.5),
    "B": (279.2, 628.1),
}
N, D, H, E, M = 5, 16, 2, 8, 64  # tokens, channels, heads, channels a head, hidden


@pytest.fixture(scope="module")
def tiny():
    spec = {"image": (8, 8), "channels": 1, "patch": 4, "dim": D, "depth": 2, "heads": H, "classes": 3}
    model = build("vit", spec)
    return sites(model.forward, model.shapes(), model.image)


@pytest.fixture(scope="module", params=GBOPS)
def real(request):
    model = build("vit", {"size": request.param, "depth": 1})
    return request.param, sites(model.forward, model.shapes(), model.image)


def plan_of(known, method=igq, **options):
    """The plan without the checks of ``resolve``, which trace every quantiser."""
    return {address: q for address, q in method.recipe(method.Options(**options), known) if q is not None}


@pytest.mark.parametrize("bits", [4, 6])
def test_blocks_of_real_models_cost_what_the_paper_says(real, bits):
    name, known = real
    plan = plan_of(known, minmax, bits=bits)
    block = sum(cost.base for site, cost in costs(known, plan).items() if site.startswith("block"))
    depth = vit.SIZES[name][1]  # equal blocks, one is traced
    assert round(depth * block / 1e9, 1) == GBOPS[name][(4, 6).index(bits)]


PUBLISHED = {  # GMACs of whole models at 224 px, "FLOPs" in DeiT's and Swin's papers
    ("vit", "Ti"): 1.3,
    ("vit", "S"): 4.6,
    ("vit", "B"): 17.5,
    ("swin", "T"): 4.5,
    ("swin", "S"): 8.7,
    ("swin", "B"): 15.4,
}


@pytest.mark.parametrize(("architecture", "size"), PUBLISHED)
def test_whole_models_need_the_published_multiply_accumulates(architecture, size):
    model = build(architecture, {"size": size})
    known = sites(model.forward, model.shapes(), model.image)
    whole = total(costs(known, {}))
    assert round(whole.macs / 1e9, 1) == pytest.approx(PUBLISHED[architecture, size], abs=0.101)
    assert whole.base == whole.bops == bops(known, {}) == 1024 * whole.macs


def test_macs_of_every_product_are_those_of_the_formula(tiny):
    block = {
        "attn/qkv": N * D * 3 * D,
        "attn/qk": H * N * N * E,
        "attn/pv": H * N * N * E,
        "attn/proj": N * D * D,
        "mlp/fc1": N * D * M,
        "mlp/fc2": N * M * D,
    }
    want = {"patch": 4 * 16 * D, "head": D * 3}
    want |= {f"block{i:02d}/{op}": count for i in range(2) for op, count in block.items()}
    assert {site: macs(*operands) for site, operands in pairs(tiny).items()} == want
    assert {site: cost.macs for site, cost in costs(tiny, {}).items()} == want


def test_a_float_operand_counts_32_bits(tiny):
    total = sum(cost.macs for cost in costs(tiny, {}).values())
    assert bops(tiny, {}) == 32 * 32 * total
    plan = {address: Uniform(4) for address, o in tiny.items() if o.role == "w"}
    weightless = sum(cost.macs for site, cost in costs(tiny, {}).items() if site.endswith(("/qk", "/pv")))
    assert bops(tiny, plan) == 32 * 4 * (total - weightless) + 32 * 32 * weightless


def test_static_quantisers_cost_nothing_at_run_time(tiny):
    plan = plan_of(tiny, minmax, bits=4)
    assert all(cost.overhead.total == 0 for cost in costs(tiny, plan).values())


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("beta", [BETA, 1])
def test_groups_cost_minima_assignment_and_partial_sums(tiny, groups, beta):
    table = costs(tiny, plan_of(tiny, groups=groups), beta)
    find, choose, add = 2 * beta * N * D, D * groups * (3 * beta + 2 * beta**2), beta * (groups - 1)
    assert table["block00/attn/qkv"].overhead == (find, choose, add * 3 * N * D)
    assert table["block01/mlp/fc1"].overhead == (find, choose, add * N * M)
    # a row's scale factors out of the sum: no partial sums
    assert table["block00/attn/pv"].overhead == (beta * H * N * N, beta * H * N * groups, 0)
    assert table["block00/attn/qk"].overhead == table["patch"].overhead == table["head"].overhead == (0, 0, 0)


def test_the_upper_bound_sums_every_channel_apart(tiny):
    table = costs(tiny, plan_of(tiny, upper_bound=True))
    assert table["block00/mlp/fc2"].overhead == (2 * BETA * N * M, 0, BETA * (M - 1) * N * D)
    assert table["block00/attn/pv"].overhead == (BETA * H * N * N, 0, 0)


def test_the_whole_is_the_sum_and_a_dearer_addition_costs_more(tiny):
    plan = plan_of(tiny, groups=4)
    assert bops(tiny, plan) == sum(cost.base + sum(cost.overhead) for cost in costs(tiny, plan).values())
    assert bops(tiny, plan, beta=1) < bops(tiny, plan) == bops(tiny, plan, beta=BETA)


def test_a_rows_cost_adds_up(tiny):
    plan = plan_of(tiny, groups=4)
    row, table = spent(tiny, plan), costs(tiny, plan)
    assert row["bops"] == bops(tiny, plan) == sum(n for part, n in row["cost"].items() if part != "macs")
    assert row["cost"]["add"] == sum(cost.overhead.add for cost in table.values()) > 0
    assert row["cost"]["macs"] == sum(cost.macs for cost in table.values())


def test_bits_count_on_both_sides(tiny):
    plan = plan_of(tiny, weight_bits=3, act_bits=5, edge_bits=8)
    table = costs(tiny, plan)
    assert table["block00/mlp/fc1"].base == N * D * M * 3 * 5
    assert table["block00/attn/qk"].base == H * N * N * E * 5 * 5
    assert table["head"].base == D * 3 * 8 * 8
    wider = {**plan, "block00/mlp/fc1.w": dataclasses.replace(plan["block00/mlp/fc1.w"], bits=4)}
    assert bops(tiny, wider) - bops(tiny, plan) == N * D * M * 5


@pytest.mark.parametrize(("bits", "planes"), [(1, 1), (3, 3), (8, 8)])
def test_packed_bytes_are_counted_as_packed(bits, planes):
    codes = Codes(jnp.zeros((10, 3), jnp.int32), jnp.ones((1, 3)), jnp.zeros((1, 3), jnp.int32))
    tree = {"kernel": Packed.of(codes, bits), "bias": jnp.zeros(3), "half": jnp.zeros(5, jnp.bfloat16)}
    weight = planes * 2 * 3 + 3 * 4 + 3 * 4  # 10 codes fill 2 bytes a plane and channel; a scale and a zero a channel
    assert tree_bytes(tree) == weight + 3 * 4 + 5 * 2
    qstate = {"a.x": {"scale": jnp.zeros(4), "levels": jnp.float32(7)}, "b.x": {"levels": jnp.float32(7)}}
    assert tree_bytes(tree, qstate) == tree_bytes(tree) + 6 * 4


def test_float_bytes_are_four_a_parameter(tiny):
    tree = {"a": np.zeros((3, 5), np.float32), "b": {"c": jnp.zeros(7)}}
    assert tree_bytes(tree) == 4 * (15 + 7)
    assert tree_bytes({}) == 0
