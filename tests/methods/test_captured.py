"""Operands over the calibration set, some rows of them, within a memory: against what a recording dot sees at once."""

import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.dot import packed_dot, recording
from jvq.core.packed import Packed
from jvq.core.recipe import sites
from jvq.methods.captured import Pair, chunks
from jvq.models import build
from jvq.quantizers import Grouped, Uniform

SPECS = {  # 7 tokens; 4 windows of 4 tokens
    "vit": {"image": (8, 12), "channels": 1, "patch": 4, "dim": 8, "depth": 1, "heads": 2, "classes": 3},
    "swin": {
        "image": (8, 8),
        "channels": 1,
        "patch": 2,
        "dim": 8,
        "depths": (1,),
        "heads": (2,),
        "window": 2,
        "classes": 3,
    },
}
IMAGES, ROWS = 6, 3
QK, PV, QKV, FC1 = "attn/qk", "attn/pv", "attn/qkv", "mlp/fc1"


def pairs_of(known):
    """All products; the attention map beside scores."""
    found = {}
    for site in dict.fromkeys(o.site for o in known.values()):
        left, right = (o for o in known.values() if o.site == site)
        found[site] = Pair(left, right, known.get(f"{site[:-2]}pv.p") if left.role == "q" else None)
    return found


def made(forward, params, shape):
    """The model, its images, and every activation of all images, recorded at once."""
    images = np.random.default_rng(1).normal(size=(IMAGES, *shape)).astype(np.float32)

    @jax.jit
    def record(params, images):
        tape = {}
        forward(params, images, recording(tape, lambda address: not address.endswith(".w"), packed_dot()))
        return tape

    known = sites(forward, params, shape)
    tape = {a: np.asarray(x) for a, x in record(params, images).items()}
    return SimpleNamespace(forward=forward, params=params, images=images, known=known, tape=tape, pairs=pairs_of(known))


@pytest.fixture(scope="module", params=SPECS)
def tiny(request):
    model, rng = build(request.param, SPECS[request.param]), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.5, s.shape), jnp.float32), model.shapes())
    tiny = made(model.forward, params, model.image)
    tiny.name, tiny.block = request.param, {"vit": "block00/", "swin": "stage0/block00/"}[request.param]
    return tiny


def captured(tiny, pairs=None, fixed=None, **options):
    """By site the operands of all images, gone over twice."""
    found = {}
    for site, source in chunks(tiny.forward, tiny.params, tiny.images, pairs or tiny.pairs, fixed or {}, **options):
        parts, again = list(source()), list(source())
        found[site] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for name, value in found[site].items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in again]), value)
    return found


def grouped(x, nonnegative: bool):
    """Four groups, 3 bits, up to the greatest value and up to parts of it."""
    upper = np.abs(x).max() * np.array([1.0, 0.7, 0.45, 0.25])
    lower = 0.0 * upper if nonnegative else -upper
    scale = (upper - lower) / 7
    state = {"lower": lower, "upper": upper, "scale": scale, "zero": np.rint(-lower / scale), "levels": 7.0}
    return {name: jnp.asarray(np.asarray(x, np.float32)) for name, x in state.items()}


@pytest.fixture(scope="module")
def fixed(tiny):
    """Quantisers in groups, and their states."""
    along = {f"{FC1}.x": "d", f"{PV}.v": "he", f"{PV}.p": "hq"} if tiny.name == "vit" else {}
    return {
        (a := tiny.block + name): (Grouped(3, 4, letters, letters == "hq"), grouped(tiny.tape[a], letters == "hq"))
        for name, letters in along.items()
    }


@pytest.fixture(scope="module")
def sampled(tiny, fixed):
    return captured(tiny, fixed=fixed, rows=ROWS, batch=3)


def wrong(a, b) -> float:
    """Part of the values that differ: one between two codes may go to either."""
    return float((np.abs(a - b) > 1e-5).mean())


def same(got, want):
    """To rounding: another number of images is another program."""
    assert list(got) == list(want)
    for site in want:
        assert list(got[site]) == list(want[site])
        for name, value in want[site].items():
            np.testing.assert_allclose(got[site][name], value, rtol=1e-5, atol=1e-6, err_msg=f"{site} {name}")


def places(kept, whole, axis: int):
    """[image, row]: which index of the whole operand each kept one is."""
    kept, whole = (np.moveaxis(x, axis, 1).reshape(*np.moveaxis(x, axis, 1).shape[:2], -1) for x in (kept, whole))
    off = np.abs(kept[:, :, None] - whole[:, None]).max(axis=-1)
    assert off.min(axis=-1).max() < 1e-5, "a kept row is a row of the operand"
    assert np.partition(off, 1, axis=-1)[..., 1].min() > 1e-4, "rows can be told apart"
    return off.argmin(axis=-1)


def test_whole_operands_are_those_of_the_model(tiny):
    """Weights are left out, the attention map stands beside the scores, images stay in order."""
    got = captured(tiny, batch=3)
    assert list(got) == list(tiny.pairs)
    for site, operands in got.items():
        roles = {o.role for o in (tiny.pairs[site].left, tiny.pairs[site].right) if o.path is None}
        assert set(operands) == roles | ({"p"} if site.endswith(QK) else set())
        for role, x in operands.items():
            beside = tiny.block + PV if role == "p" else site
            assert x.dtype == np.float32
            np.testing.assert_allclose(x, tiny.tape[f"{beside}.{role}"], rtol=1e-5, atol=1e-6, err_msg=site)


def axis_of(pair) -> int | None:
    """The axis of rows in the left operand: its last but for channels, if the product has it and only there."""
    letters = pair.left.letters
    return {"bnd": 1, "bmnd": 2, "bhqe": 2, "bmhqe": 3, "bhqk": 2, "bmhqk": 3, "bd": None}[letters]


def test_kept_rows_are_rows_of_the_operand(tiny, sampled):
    """So many that windows have about the number together; each but once, evenly spaced; all of the right operand."""
    for site, pair in tiny.pairs.items():
        axis, whole = axis_of(pair), tiny.tape[pair.left.address]
        if axis is None:
            assert site == "head"
            np.testing.assert_allclose(sampled[site]["x"], whole, rtol=1e-5, atol=1e-6)
            continue
        windows = 4 if pair.left.letters == "bmnd" else 1
        count = min(whole.shape[axis], max(1, ROWS // windows))
        kept = sampled[site][pair.left.role]
        assert kept.shape == (*whole.shape[:axis], count, *whole.shape[axis + 1 :])
        at = np.sort(places(kept, whole, axis), axis=1)
        gaps = np.diff(at, axis=1, append=at[:, :1] + whole.shape[axis])
        assert gaps.min() >= whole.shape[axis] // count >= 1, site
        assert gaps.max() <= -(-whole.shape[axis] // count), site
        if count < whole.shape[axis]:
            assert len({tuple(row) for row in at.tolist()}) > 1, "every image begins elsewhere"
        if pair.right.path is None:
            right = sampled[site][pair.right.role]
            np.testing.assert_allclose(right, tiny.tape[pair.right.address], rtol=1e-5, atol=1e-6)


def test_the_map_beside_the_scores_has_the_same_queries(tiny, sampled):
    """And they are those of the values' product."""
    scores, values = sampled[tiny.block + QK], sampled[tiny.block + PV]
    axis = axis_of(tiny.pairs[tiny.block + QK])
    at = places(scores["q"], tiny.tape[f"{tiny.block}{QK}.q"], axis)
    assert at.shape == (IMAGES, ROWS)
    for p in (scores["p"], values["p"]):
        np.testing.assert_array_equal(places(p, tiny.tape[f"{tiny.block}{PV}.p"], axis), at)


@pytest.mark.parametrize("tiny", ["vit"], indirect=True)
def test_no_fewer_rows_than_there_are_is_all_of_them(tiny):
    got = captured(tiny, {"patch": tiny.pairs["patch"]}, rows=6, batch=IMAGES)
    np.testing.assert_allclose(got["patch"]["x"], tiny.tape["patch.x"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tiny", ["vit"], indirect=True)
def test_quantised_copies_are_of_the_whole_operand(tiny, fixed, sampled):
    """Groups are chosen by all tokens of an image, kept or not."""
    copies = {f"{site}.{name}" for site, operands in sampled.items() for name in operands if "^" in name}
    assert copies == {f"{a}^" for a in fixed} | {f"{tiny.block}{QK}.p^"}
    for address, (quantizer, state) in fixed.items():
        site, _, role = address.rpartition(".")
        letters, whole, kept = tiny.known[address].letters, tiny.tape[address], sampled[site][role]
        apply = jax.jit(lambda x, q=quantizer, s=state, a=letters: q.apply(s, x, a))
        want = np.asarray(apply(whole))
        if role != "v":
            axis = axis_of(tiny.pairs[site])
            at = places(kept, whole, axis)
            want = np.stack([np.take(y, rows, axis=axis - 1) for y, rows in zip(want, at, strict=True)])
        assert wrong(sampled[site][f"{role}^"], want) < 0.005, address
        assert wrong(want, kept) > 0.5
        if role == "x":
            assert wrong(want, np.asarray(apply(kept))) > 0.02, "groups of the kept rows are others"


def chain(params, images, dot):
    """Three products of images [b 4 4 1], whose activations take 64, 128 + 128 and 64 bytes an image."""
    x = images.reshape(images.shape[0], 4, 4)
    x = jnp.tanh(dot("one", "bnd,do->bno", x=x, w=params["one"]["kernel"]))
    p = jnp.cos(dot("qk", "bqe,bke->bqk", q=x, k=2.0 * x)).reshape(images.shape[0], 16)
    return dot("two", "bd,do->bo", x=p, w=params["two"]["kernel"])


@pytest.fixture(scope="module")
def small():
    """A forward that counts its passes, and what they capture where there is room for everything."""
    rng, passes = np.random.default_rng(2), []

    def forward(params, images, dot):
        jax.debug.callback(lambda: passes.append(len(images)))
        return chain(params, images, dot)

    shapes = {"one": (4, 8), "two": (16, 6)}
    params = {name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
    small = made(forward, params, (4, 4, 1))
    small.passes, small.all = passes, captured(small, batch=2)
    return small


def passes(small, **options):
    """What is captured, and with how many images the forward ran."""
    jax.effects_barrier()
    small.passes.clear()
    got = captured(small, **options)
    jax.effects_barrier()
    return got, sorted(small.passes)


def test_without_need_every_image_passes_once(small):
    got, ran = passes(small, batch=4)
    assert ran == [2, 4]
    for site, operands in got.items():
        for role, x in operands.items():
            np.testing.assert_allclose(x, small.tape[f"{site}.{role}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("room", "groups"), [(6 * 384, 1), (6 * 384 - 1, 2), (6 * 320, 2), (6 * 320 - 1, 3)])
def test_sites_are_captured_together_as_far_as_memory_goes(room, groups, small):
    got, ran = passes(small, batch=2, memory=room)
    assert ran == groups * [2, 2, 2]
    same(got, small.all)


@pytest.mark.parametrize(("room", "times"), [(6 * 256, 3), (6 * 256 - 1, 1 + 2 + 1), (6 * 64, 4), (0, 6)])
def test_a_site_that_memory_does_not_hold_is_run_anew_each_time(room, times, small):
    """It is gone over twice here."""
    got, ran = passes(small, batch=2, memory=room)
    assert ran == times * [2, 2, 2]
    same(got, small.all)


def test_batches_of_any_size_give_the_same_rows(small):
    """Which rows an image keeps depends on its number alone; 100 are all images."""
    first, second = (captured(small, rows=2, batch=batch) for batch in (2, 100))
    same(first, second)
    at = places(first["one"]["x"], small.tape["one.x"], 1)
    assert len({tuple(sorted(row)) for row in at.tolist()}) > 1


def test_fewer_rows_take_less_memory(small):
    """Two of four rows: 32, 64 + 128 and 64 bytes an image."""
    for room, times in ((6 * 288, 1), (6 * 288 - 1, 2)):
        _, ran = passes(small, batch=6, rows=2, memory=room)
        assert ran == times * [6]


def test_quantised_copies_take_memory_too(small):
    state = {"scale": 0.1, "zero": 8.0, "levels": 15.0}
    fixed = {"two.x": (Uniform(4), {name: jnp.asarray(x, jnp.float32) for name, x in state.items()})}
    for room, times in ((6 * (384 + 64), 1), (6 * (384 + 64) - 1, 2)):
        _, ran = passes(small, fixed=fixed, batch=6, memory=room)
        assert ran == times * [6]


@pytest.mark.parametrize(
    ("room", "sizes"), [(2**30, [6]), (8 * 256 * 5, [4, 2]), (8 * 256 * 3, [2, 2, 2]), (0, [2, 2, 2])]
)
def test_a_chunk_takes_about_an_eighth_of_the_memory(room, sizes, small):
    """Whole batches, at least one; here of the scores, 256 bytes an image."""
    options = {"batch": 2, "memory": room}
    found = dict(chunks(small.forward, small.params, small.images, {"qk": small.pairs["qk"]}, {}, **options))
    parts = list(found["qk"]())
    assert [len(part["q"]) for part in parts] == sizes
    np.testing.assert_array_equal(np.concatenate([part["k"] for part in parts]), small.all["qk"]["k"])


def test_a_packed_model_is_captured_as_its_weights_say(small):
    kernel = small.params["one"]["kernel"]
    state = {"scale": 0.5, "zero": 3.0, "levels": 7.0}
    state = {name: jnp.asarray(x, jnp.float32) for name, x in state.items()}
    weight = jax.jit(lambda w: Packed.of(Uniform(3).encode(state, w, "do"), 3))(kernel)
    packed = made(chain, {**small.params, "one": {"kernel": weight}}, (4, 4, 1))
    got = captured(packed, {"qk": packed.pairs["qk"]}, batch=6)["qk"]["q"]
    np.testing.assert_allclose(got, packed.tape["qk.q"], rtol=1e-5, atol=1e-6)
    assert np.abs(got - small.tape["qk.q"]).max() > 0.05


def test_rows_are_the_last_axis_that_the_left_operand_alone_brings(tiny):
    """Windows share the number between them, heads do not."""
    pairs = {site.removeprefix(tiny.block): pair for site, pair in tiny.pairs.items()}
    axes = {"patch": "n", QKV: "n", QK: "q", PV: "q", FC1: "n", "head": ""}
    assert {site: pairs[site].sampled for site in axes} == axes
    windows = 4 if tiny.name == "swin" else 1
    for site, rows in itertools.product(axes, (1, 3, 8, 12, None)):
        pair = pairs[site]
        extent = dict(zip(pair.left.letters, pair.left.shape, strict=True)).get(axes[site], 0)
        each = rows and max(1, rows // (windows if site == QKV else 1))
        assert pair.count(rows) == (each if rows and each < extent else None), (site, rows)
    assert math.prod(pairs[QKV].left.shape[1:-1]) == (16 if windows > 1 else 7)
