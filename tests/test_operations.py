"""Operations against the table of the Bi-ViT spec (section 5), its closed forms, and counts written out by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import Packed, Uniform, build, sites
from jvq.accounting import tree_bytes
from jvq.core.quantizer import Codes
from jvq.methods.minmax import EDGES
from jvq.operations import HEADS, PATCH, body_bytes, operations, part, site_operations

DISTILLED = {"distill_token": True}
MODELS = {  # name: architecture, shape
    "DeiT-T": ("vit", {"size": "Ti", **DISTILLED}),
    "DeiT-T, one token": ("vit", {"size": "Ti"}),
    "DeiT-S": ("vit", {"size": "S", **DISTILLED}),
    "DeiT-B, one token": ("vit", {"size": "B"}),
    "Swin-T": ("swin", {"size": "T"}),
    "Swin-S": ("swin", {"size": "S"}),
    "Swin-B": ("swin", {"size": "B"}),
}
PRINTED = {  # spec, section 5, in G: total, body, patch, head; OPs, quotient; OPs of the body, quotient
    "DeiT-T": "1.2610 1.2317 .0289 .00038 .04853 25.98 .01925 64",
    "DeiT-T, one token": "1.2537 1.2246 .0289 .00019 .04823 26.00 .01913 64",
    "DeiT-S": "4.6241 4.5656 .0578 .00077 .12991 35.60 .07134 64",
    "DeiT-B, one token": "17.564 17.447 .1156 .00077 .38899 45.15 .27262 64",
    "Swin-T": "4.4906 4.4753 .01445 .00077 .08515 52.74 .06993 64",
    "Swin-S": "8.7409 8.7257 .01445 .00077 .15156 57.67 .13634 64",
    "Swin-B": "15.431 15.411 .01927 .00102 .26108 59.10 .24079 64",
}
ENTRIES = {  # by hand from the columns above, in hundredths of a G; the two that the paper prints first
    "DeiT-T": (123, 2),
    "Swin-T": (449, 8),
    "DeiT-T, one token": (122, 2),
    "DeiT-S": (457, 7),
    "DeiT-B, one token": (1745, 27),
    "Swin-S": (874, 15),
    "Swin-B": (1543, 26),
}
N, D, H, E, M = 5, 16, 2, 8, 64  # tokens, channels, heads, channels a head, hidden
BODY = 2 * (N * D * 4 * D + 2 * H * N * N * E + 2 * N * D * M)  # of the two blocks of ``tiny``


LONG = ("DeiT-B, one token", "Swin-S", "Swin-B")  # to trace


def sites_of(architecture, spec):
    model = build(architecture, spec)
    return sites(model.forward, model.shapes(), model.image)


@functools.cache
def traced(name):
    return sites_of(*MODELS[name])


def binary(known, bits=1):
    """One bit for every operand of the body, the rest float: the network of the paper."""
    return {a: Uniform(bits) for a in known if a.startswith(("block", "stage"))}


def printed(value, like):
    """The value with as many decimals as the printed one."""
    return f"{value:.{len(like.partition('.')[2])}f}".lstrip("0")


@pytest.fixture(scope="module")
def deit():
    return traced("DeiT-T")


@pytest.fixture(scope="module")
def swin():
    return traced("Swin-T")


@pytest.fixture(scope="module")
def tiny():
    spec = {"image": (8, 8), "channels": 1, "patch": 4, "dim": D, "depth": 2, "heads": H, "classes": 3}
    return sites_of("vit", spec)


def closed_form(name):
    """Patch, body and head MACs as section 5 writes them."""
    architecture, spec = MODELS[name]
    if architecture == "vit":
        d, heads = {"Ti": 192, "S": 384, "B": 768}[spec["size"]], 1 + spec.get("distill_token", False)
        n = 196 + heads
        return 196 * 768 * d, 12 * (12 * n * d**2 + 2 * n**2 * d), 1000 * d * heads
    c, depths = {"T": (96, (2, 2, 6, 2)), "S": (96, (2, 2, 18, 2)), "B": (128, (2, 2, 18, 2))}[spec["size"]]
    stages = [(depth, 3136 // 4**i, c * 2**i) for i, depth in enumerate(depths)]  # blocks, tokens, channels
    body = sum(depth * (12 * n * w**2 + 2 * n * 49 * w) for depth, n, w in stages)
    merges = sum(n // 4 * 4 * w * 2 * w for _, n, w in stages[:-1])
    return 3136 * 48 * c, body + merges, 1000 * 8 * c


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.once] * (n in LONG)) for n in MODELS])
def test_the_table_of_the_spec(name):
    known = traced(name)
    got = operations(known, binary(known))
    giga = [n / 1e9 for n in (got.macs.total, got.macs.body, got.macs.patch, got.macs.head, got.ops.total)]
    values = [*giga, got.exact, got.ops.body / 1e9, got.body_only]
    want = PRINTED[name].split()
    assert [printed(v, w) for v, w in zip(values, want, strict=True)] == want
    assert got.macs == closed_form(name)
    assert got.ops == (got.macs.patch, got.macs.body / 64, got.macs.head)
    assert (got.entries, got.paper) == (ENTRIES[name], ENTRIES[name][0] / ENTRIES[name][1])


def test_the_papers_two_quotients_need_two_rules(deit, swin):
    ours = {name: operations(known, binary(known)) for name, known in (("DeiT-T", deit), ("Swin-T", swin))}
    assert [got.paper for got in ours.values()] == [61.5, 56.125]
    other = [got._replace(windowed=not got.windowed).paper for got in ours.values()]
    assert other == [126 / 5, 448 / 7]  # by hand: 1.26 / (.0192 + .0289), 4.48 / .07
    assert "body over its OPs" in ours["DeiT-T"].paper_rule
    assert "body and patch embedding" in ours["Swin-T"].paper_rule


def test_a_report_states_three_numbers_with_what_was_divided(deit, swin):
    exact, body, paper = operations(deit, binary(deit)).lines()
    assert exact.startswith("exact: 25.983x = 1.261 G MACs / 0.04853 G OPs (all products; ")
    assert body.startswith("body only: 64x = 1.232 G MACs / 0.01925 G OPs (")
    assert paper.startswith("paper's quotient: 61.5x = 1.23 G / 0.02 G (MACs of the body over its OPs, ")
    exact, _, paper = operations(swin, binary(swin)).lines()
    assert exact.startswith("exact: 52.74x = 4.491 G MACs / 0.08515 G OPs (")
    assert paper.startswith("paper's quotient: 56.125x = 4.49 G / 0.08 G (all MACs over the OPs of body and patch")


@pytest.mark.parametrize(("name", "times"), [("deit", "5.6"), ("swin", "20")])  # section 5
def test_float_attention_products_cost_most_of_it(name, times, request):
    known = request.getfixturevalue(name)
    plan = {a: q for a, q in binary(known).items() if known[a].role in "xw"}
    assert printed(operations(known, plan).exact, times) == times


def test_a_row_adds_up_and_can_be_written(deit):
    got = operations(deit, binary(deit))
    row = json.loads(json.dumps(got.row()))
    assert row["quotients"] == {"exact": got.exact, "body_only": 64, "paper": 61.5}
    for count in (row["macs"], row["ops"]):
        assert count["total"] == count["patch"] + count["body"] + count["head"]
    assert row["lines"] == got.lines()


def test_every_product_counts_by_its_bits(tiny):
    plan = binary(tiny)
    widths = {"attn/qkv": (4, 4), "attn/qk": (3, 5), "attn/pv": (2, 8), "attn/proj": (16, 16), "mlp/fc1": (8, 8)}
    for op, bits in widths.items():
        operands = [a for a in tiny if a.startswith(f"block01/{op}.")]
        plan |= {a: Uniform(b) for a, b in zip(operands, bits, strict=True)}
    del plan["block01/mlp/fc2.w"]
    scores = H * N * N * E
    want = {
        "block00/attn/qkv": N * D * 3 * D / 64,
        "block00/attn/qk": scores / 64,
        "block00/attn/pv": scores / 64,
        "block00/attn/proj": N * D * D / 64,
        "block00/mlp/fc1": N * D * M / 64,
        "block00/mlp/fc2": N * D * M / 64,
        "block01/attn/qkv": N * D * 3 * D / 4,
        "block01/attn/qk": scores * 15 / 64,
        "block01/attn/pv": scores / 4,
        "block01/attn/proj": N * D * D,  # never more than its MACs
        "block01/mlp/fc1": N * D * M,  # 8 x 8 bits are one operation
        "block01/mlp/fc2": N * D * M,  # one operand is float
        "patch": 4 * 16 * D,
        "head": D * 3,
    }
    table = site_operations(tiny, plan)
    assert table == want
    got = operations(tiny, plan)
    assert got.ops.total == sum(want.values())
    assert got.ops.body == sum(n for site, n in want.items() if site.startswith("block"))


def test_edges_of_8_bits_count_as_float_ones(tiny):
    plan = binary(tiny)
    at = {bits: plan | {a: Uniform(bits) for a in tiny if a not in plan} for bits in (1, 8, 16)}
    assert operations(tiny, at[8]) == operations(tiny, at[16]) == operations(tiny, plan)
    assert operations(tiny, at[1]).exact == 64 > operations(tiny, plan).exact


def test_a_float_model_is_as_dear_as_itself_and_a_small_one_has_no_entries(tiny):
    got = operations(tiny, {})
    assert got.macs == got.ops == (4 * 16 * D, BODY, D * 3)
    assert (got.exact, got.body_only) == (1, 1)
    assert (got.entries, got.paper) == ((0, 0), None)
    assert got.lines()[2].startswith("paper's quotient: undefined = 0.00 G / 0.00 G")


def test_edges_are_those_that_the_methods_know():
    assert PATCH + HEADS == EDGES == ("patch", "head", "head_dist", "decoder")
    assert {part(site) for site in EDGES} == {"patch", "head"}
    assert part("decoder/up1") == "head"
    assert part("stage0/merge/reduce") == part("block00/attn/qk") == part("header") == "body"


def test_only_the_bodys_kernels_are_binary(deit, swin):
    """S1: four kernels a block, and one a merge."""
    for known, count in ((deit, 4 * 12), (swin, 4 * 12 + 3)):
        plan = binary(known)
        paths = {o.path for a, o in known.items() if o.path is not None and a in plan}
        assert len(paths) == body_bytes(known, plan).kernels == count
        assert all(path[-1] == "kernel" for path in paths)
        assert not {path[0] for path in paths} & set(EDGES)
    assert body_bytes(swin, {}).ratio is None


def test_a_head_has_four_scales_a_block(deit):
    """S3: alpha of q, k and v and beta of the map; the release adds as many zero points."""
    scales = zeros = 0
    found = {}  # states by shape: tracing each takes a while
    for o in (o for o in deit.values() if o.role in "qkpv"):
        if o.shape not in found:
            x = jax.ShapeDtypeStruct(o.shape, "float32")
            found[o.shape] = jax.eval_shape(lambda x, letters=o.letters: Uniform(1, keep="h").init(x, letters), x)
        scales += found[o.shape]["scale"].size
        zeros += found[o.shape]["zero"].size
    assert scales == 4 * 3 * 12 == 144
    assert scales + zeros == 288


def test_packed_kernels_take_what_packing_makes_of_them():
    known = sites_of("vit", {"image": (4, 4), "channels": 1, "patch": 4, "dim": 20, "depth": 1, "heads": 2})
    plan = binary(known)
    shapes = [o.shape for a, o in known.items() if o.path is not None and a in plan]
    leaves = [Packed.of(Codes(jnp.zeros(s, jnp.int32), jnp.zeros((1, *s[1:])), None), 1) for s in shapes]
    got = body_bytes(known, plan)
    assert got.packed == tree_bytes(leaves)
    assert got.packed == 3 * 8 * 20 + 10 * 20 + 4 * 9 * 20  # 20 inputs fill 3 bytes, 80 fill 10; 9 d scales
    assert got.ratio == 4 * 12 * 20**2 / got.packed


def test_what_is_not_binary_or_an_edge_is_not_of_the_binary_body(tiny):
    plan = binary(tiny)
    whole = body_bytes(tiny, plan)
    assert body_bytes(tiny, plan | {a: Uniform(1) for a in tiny if a not in plan}) == whole
    some = body_bytes(tiny, plan | {"block01/mlp/fc1.w": Uniform(4)})
    assert (some.kernels, whole.kernels) == (7, 8)
    assert (whole.plain - some.plain, whole.packed - some.packed) == (4 * D * M, D * M // 8 + 4 * M)


def test_the_binary_body_is_28_times_smaller(deit):
    got = body_bytes(deit, binary(deit))
    kernels, rows = 12 * 12 * 192**2, 12 * 9 * 192
    assert (got.plain, got.packed) == (4 * kernels, kernels // 8 + 4 * rows)
    assert printed(got.ratio, "28.4") == "28.4"  # 32 but for the scales


STORED = {  # spec, section 5: MiB of the float model and of the binary one, times
    "Ti": ("22.5", "2.94", "7.7"),
    "S": ("85.6", "7.13", "12.0"),
    "B": ("333", "19.3", "17.3"),
}
OURS = {"Ti": ("3.02", "7.5"), "S": ("7.29", "11.7"), "B": ("19.6", "17.0")}


@pytest.mark.parametrize("size", STORED)
def test_bytes_of_a_distilled_deit(size):
    """One block is traced and counted twelve times. The arrays have shapes and take no memory.

    The spec's binary model has layer norms on q and k, and for a row of a binary kernel a scale but no bias, which the
    release never adds. With biases it takes what ``OURS`` says.
    """
    plain, model = (build("vit", {"size": size, "depth": 1, **DISTILLED, "qk_norm": norms}) for norms in (False, True))
    known = sites(model.forward, model.shapes(), model.image)
    kernels = {o.path: o.shape for a, o in known.items() if o.path is not None and a in binary(known)}

    def virtual(shape, dtype=np.float32):
        return np.broadcast_to(np.zeros((), dtype), shape)

    def stored(path, leaf, biases):
        path = tuple(k.key for k in path)
        if path in kernels:
            k, *rest = kernels[path]
            return Packed(virtual((1, k // 8, *rest), np.uint8), virtual((1, *rest)), None, (k, *rest))
        binary_bias = (*path[:-1], "kernel") in kernels and path[-1] == "bias"
        return virtual((0,) if binary_bias and not biases else leaf.shape)

    def mib(tree):
        return (tree_bytes(tree) + 11 * tree_bytes(tree["block00"])) / 2**20

    def of(biases):
        return mib(jax.tree_util.tree_map_with_path(lambda p, leaf: stored(p, leaf, biases), model.shapes()))

    floats = [mib(jax.tree.map(lambda leaf: virtual(leaf.shape), m.shapes())) for m in (plain, model)]
    whole = floats[0]
    got = (whole, of(biases=False), whole / of(biases=False))
    assert tuple(printed(v, w) for v, w in zip(got, STORED[size], strict=True)) == STORED[size]
    got = (of(biases=True), whole / of(biases=True))
    assert tuple(printed(v, w) for v, w in zip(got, OURS[size], strict=True)) == OURS[size]
    body = body_bytes(known, binary(known))
    assert floats[1] - of(biases=True) == pytest.approx(12 * (body.plain - body.packed) / 2**20, abs=1e-9)
