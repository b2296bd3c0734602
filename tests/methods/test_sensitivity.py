"""The perturbation metric of IGQ-ViT (eq. 9, spec 4): every number against a plain forward and KL in float64."""

import dataclasses
import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from jvq.core.dot import quantized
from jvq.core.packed import Packed
from jvq.core.recipe import sites
from jvq.journal import Journal
from jvq.methods.sensitivity import divergence, sweep
from jvq.models import build
from jvq.quantizers import Grouped, Uniform

SWIN = {"image": (8, 8), "channels": 1, "patch": 2, "dim": 8, "depths": (1,), "heads": (2,), "window": 2, "classes": 3}
ROLES = ("one.x", "one.w", "qk.q", "qk.k", "two.x", "two.w")  # of the model below, in its order
BYTES = 4 * (4 * 8 + 4 * 4 + 6)  # of its products, per image
AMOUNTS = (0.0, 0.1, 0.3)
HEARD: list[str] = []
diverge = jax.jit(divergence)


@dataclasses.dataclass(frozen=True)
class Wobble(Uniform):
    """Moves values smoothly by the state's ``amount`` []: nothing flips at the edge of two codes."""

    heard: str = ""  # what is appended to HEARD whenever it runs

    def apply(self, state, x, letters):
        if self.heard:
            jax.debug.callback(lambda: HEARD.append(self.heard))
        return x + state["amount"] * jnp.sin(3.0 * x)


def amount(value: float):
    return {"amount": jnp.float32(value)}


def chain(params, images, dot, numpy=jnp):
    """Three products one behind the other: images [b 4 4 1] as 4 tokens of 4 channels; logits [b o] of 6 classes."""
    x = images.reshape(images.shape[0], 4, 4)
    x = numpy.tanh(dot("one", "bnd,do->bno", x=x, w=params["one"]["kernel"]))
    e = numpy.exp(dot("qk", "bqe,bke->bqk", q=x, k=numpy.cos(x)))
    p = (e / e.sum(axis=-1, keepdims=True)).reshape(images.shape[0], 16)
    return dot("two", "bd,do->bo", x=p, w=params["two"]["kernel"])


def mapped(params, images, dot, numpy=jnp):
    """The same, as maps [b y x] of values in 0..1."""
    return 1 / (1 + numpy.exp(-chain(params, images, dot, numpy).reshape(images.shape[0], 2, 3)))


def counted(forward):
    """The forward, and the list of how many images it was traced or called with."""
    calls = []

    def run(params, images, dot):
        calls.append(len(images))
        return forward(params, images, dot)

    return run, calls


def kl(reference, got) -> float:
    """Mean over images of KL(reference || got), float64: over classes, or mean over pixels of a yes or no."""
    p, q = (np.asarray(x, np.float64) for x in (reference, got))
    if p.ndim == 2:
        p, q = (np.exp(log_softmax(x, axis=-1)) for x in (p, q))
        return float(rel_entr(p, q).sum(axis=-1).mean())
    return float((rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean())


def plain(tiny, amounts) -> float:
    """The divergence of the model whose operands move by these amounts, all images at once, in float64."""

    def dot(amounts):
        def moved(address, x):
            return x + amounts.get(address, 0.0) * np.sin(3.0 * x)

        return lambda site, equation, **o: np.einsum(equation, *(moved(f"{site}.{r}", x) for r, x in o.items()))

    params, images = jax.tree.map(lambda x: np.asarray(x, np.float64), (tiny.params, tiny.images))
    return kl(*(tiny.forward(params, images, dot(at), np) for at in ({}, amounts)))


def wobbles(addresses):
    """A candidate of each amount for every address, and their states."""
    return {a: [Wobble() for _ in AMOUNTS] for a in addresses}, {a: [amount(x) for x in AMOUNTS] for a in addresses}


def run(tiny, candidates, states, forward=None, **options):
    return sweep(forward or tiny.forward, tiny.params, tiny.images, candidates, states, tiny.known, **options)


def check(tiny, loss, base=None):
    """Every number is that of a plain forward whose operands move as in the base, but for one address."""
    for a, row in loss.items():
        want = [plain(tiny, {**(base or {}), a: x}) for x in AMOUNTS]
        assert min(abs(x - y) for x, y in itertools.combinations(want, 2)) > 1e-5, "candidates can be told apart"
        np.testing.assert_allclose(row, want, rtol=1e-3, err_msg=a)


def of(forward, params, images):
    return SimpleNamespace(
        forward=forward, params=params, images=images, known=sites(forward, params, images.shape[1:])
    )


@pytest.fixture(scope="module")
def small():
    """The model of three products and five images."""
    rng = np.random.default_rng(1)
    shapes = {"one": (4, 8), "two": (16, 6)}
    params = {name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
    return of(chain, params, rng.normal(size=(5, 4, 4, 1)).astype(np.float32))


def measured(tiny, addresses, **options):
    """A sweep: ``candidates states loss``, the ``journal``, the forward's ``calls``, and what was ``tracked``."""
    candidates, states = wobbles(addresses)
    forward, calls = counted(tiny.forward)
    journal, tracked = {}, []

    def track(items, text):
        tracked.append((text, list(items)))
        return items

    loss = run(tiny, candidates, states, forward, journal=journal, track=track, **options)
    return SimpleNamespace(
        candidates=candidates, states=states, loss=loss, journal=journal, calls=calls, tracked=tracked
    )


@pytest.fixture(scope="module")
def swept(small):
    """Every operand, all images at once."""
    return measured(small, small.known)


@pytest.fixture(scope="module")
def batched(small):
    """Two operands; two images, two images, one image."""
    return measured(small, ["qk.k", "one.x"], memory=3 * BYTES - 1)


def test_each_divergence_is_that_of_a_forward_with_one_operand_quantised(small, swept):
    """Eq. 9: that operand alone, weights among them, everything else float."""
    check(small, swept.loss)
    assert tuple(swept.loss) == ROLES
    assert all(type(x) is float for row in swept.loss.values() for x in row)


def test_an_operand_left_float_moves_nothing(swept):
    """Spec 8.24: exactly 0."""
    assert {a: row[0] for a, row in swept.loss.items()} == dict.fromkeys(ROLES, 0.0)


def test_maps_are_measured_as_maps(small):
    maps = of(mapped, small.params, small.images)
    check(maps, run(maps, *wobbles(["qk.k", "two.w"])))


@pytest.fixture(scope="module")
def based(small):
    """Two operands swept under a base that lacks one of them, and how often each of its quantisers ran."""
    HEARD.clear()
    base = {a: 0.2 for a in ROLES if a != "qk.k"}
    plan = {a: Wobble(heard=a) for a in base}, {a: amount(x) for a, x in base.items()}
    loss = run(small, *wobbles(["qk.k", "two.x"]), base=plan)
    jax.effects_barrier()
    return SimpleNamespace(base=base, loss=loss, heard=Counter(HEARD))


def test_under_a_base_the_rest_is_quantised_and_the_reference_is_not(small, based):
    """Spec 4, option B; the base's own quantiser of the operand gives way to the candidate."""
    check(small, based.loss, based.base)


def test_products_in_front_of_the_operand_are_not_computed_again(based):
    """All quantisers of the base run once to record, then for each candidate those of its site and behind."""
    n = len(AMOUNTS)
    assert based.heard == {"one.x": 1, "one.w": 1, "qk.q": 1 + n, "two.x": 1 + n, "two.w": 1 + 2 * n}


def test_a_packed_model_is_measured_as_its_weights_say(small):
    weight = jax.jit(lambda w: Packed.of(Uniform(4).encode(uniform(4), w, "do"), 4))(small.params["one"]["kernel"])
    packed, unpacked = (
        of(small.forward, {**small.params, "one": {"kernel": kernel}}, small.images)
        for kernel in (weight, jax.jit(Packed.unpack)(weight))
    )
    check(unpacked, run(packed, *wobbles(["one.x"])))


def test_one_compiled_function_serves_all_operands_and_candidates(swept, batched):
    """The forward is traced twice to record and once to probe, for each number of images."""
    assert swept.calls == 3 * [5]
    assert sorted(batched.calls) == 3 * [1] + 3 * [2]


def test_less_memory_is_more_batches_and_the_same_numbers(swept, batched):
    for a, row in batched.loss.items():
        np.testing.assert_allclose(row, swept.loss[a], rtol=1e-3, atol=1e-11, err_msg=a)
    assert swept.tracked == [("sensitivity", list(ROLES))]
    assert batched.tracked == [(f"sensitivity, images {i} of 3", ["qk.k", "one.x"]) for i in (1, 2, 3)]


@pytest.mark.parametrize(("memory", "size"), [(0, 1), (3 * BYTES - 1, 2), (3 * BYTES, 3), (2**30, 5)])
def test_recorded_products_stay_below_the_memory(memory, size, small):
    """A single image is measured whatever it takes."""

    def forward(params, images, dot):
        assert len(images) == size
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, *wobbles(["one.x"]), forward, memory=memory)


def uniform(bits: int):
    """A state for values from -4 to 4."""
    levels = 2.0**bits - 1
    return {"scale": jnp.float32(8 / levels), "zero": jnp.float32(round(levels / 2)), "levels": jnp.float32(levels)}


def test_more_bits_move_predictions_less(small):
    """Spec 8.24: never negative, towards 0 as bits go to 16."""
    bits = (2, 4, 8, 12, 16)
    candidates = {a: [Uniform(b) for b in bits] for a in ("one.x", "two.w")}
    loss = run(small, candidates, {a: [uniform(b) for b in bits] for a in candidates})
    for a, row in loss.items():
        assert all(more < less for less, more in itertools.pairwise(row)), a
        assert 0 <= row[-1] < 1e-6 * row[0]


def test_what_the_journal_holds_is_not_computed_again(small, swept):
    forward, calls = counted(small.forward)
    assert run(small, swept.candidates, swept.states, forward, journal=dict(swept.journal)) == swept.loss
    assert calls == []


def test_the_journal_is_believed_and_only_what_it_lacks_is_computed(small, swept):
    """Its values are sums over images."""
    (wrong,), (lacking,) = ([k for k in swept.journal if k.split()[0] == a] for a in ("two.x", "qk.q"))
    journal = {**swept.journal, wrong: [5.0, 20.0, 0.5]}
    del journal[lacking]
    assert run(small, swept.candidates, swept.states, journal=journal) == {**swept.loss, "two.x": [1.0, 4.0, 0.1]}
    assert journal == {**swept.journal, wrong: [5.0, 20.0, 0.5]}


def test_only_batches_of_which_something_lacks_are_looked_at(small, batched):
    journal = dict(list(batched.journal.items())[:-1])
    forward, calls = counted(small.forward)
    got = run(small, batched.candidates, batched.states, forward, journal=journal, memory=3 * BYTES - 1)
    assert got == batched.loss
    assert journal == batched.journal
    assert set(calls) == {1}


def test_an_interrupted_sweep_goes_on_to_identical_numbers(small, swept, tmp_path):
    """With the journal on disk."""

    def interrupted(items, text):
        for i, item in enumerate(items):
            if i == 4:
                raise KeyboardInterrupt
            yield item

    journal = Journal(tmp_path / "journal.jsonl", "same")
    with pytest.raises(KeyboardInterrupt):
        run(small, swept.candidates, swept.states, journal=journal, track=interrupted)
    journal = Journal(tmp_path / "journal.jsonl", "same")
    assert [key.split()[0] for key in journal] == list(ROLES[:4])
    assert run(small, swept.candidates, swept.states, journal=journal) == swept.loss
    assert dict(Journal(tmp_path / "journal.jsonl", "same")) == swept.journal


@dataclasses.dataclass(frozen=True)
class Switched(Uniform):
    """Does what ``inner`` does where the state is ``on``."""

    inner: Any = None

    def apply(self, state, x, letters):
        return jnp.where(state["on"], self.inner.apply(state, x, letters), x)


def grouped(groups: int, rows: bool):
    """A state of four groups, the first so many of them used, as 2-bit quantisers."""
    upper = np.array([3.0, 1.0, 0.5, 0.25])[:groups] / (3 if rows else 1)
    lower = upper * (0.0 if rows else -0.7)
    scale = (upper - lower) / 3
    state = {"lower": (lower, np.inf), "upper": (upper, np.inf), "scale": (scale, 1), "zero": (-lower // scale, 0)}
    padded = {name: np.pad(x, (0, 4 - groups), constant_values=by) for name, (x, by) in state.items()}
    return {name: jnp.asarray(x, jnp.float32) for name, x in {**padded, "levels": 3.0}.items()}


def test_groups_of_a_transformer_are_measured_under_a_base(rng):
    """Spec 9: groups are padded to one length. Everything is computed anew here, with a switch for every operand."""
    model = build("swin", SWIN)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 1.0, s.shape), jnp.float32), model.shapes())
    tiny = of(model.forward, params, rng.normal(size=(3, *model.image)).astype(np.float32))
    here = "stage0/block00"
    along = {f"{here}/attn/qkv.x": "d", f"{here}/attn/pv.p": "mhq", f"{here}/mlp/fc2.x": "d"}
    plan = {a: Grouped(2, 4, letters) for a, letters in along.items()}
    states = {a: [grouped(g, a.endswith(".p")) for g in (1, 2, 4)] for a in plan}
    base, swept = ([a for a in plan if not a.endswith(end)] for end in ("pv.p", "qkv.x"))
    loss = run(
        tiny,
        {a: 2 * [plan[a]] for a in swept},
        {a: states[a][:2] for a in swept},
        base=({a: plan[a] for a in base}, {a: states[a][2] for a in base}),
    )
    switches = {a: Switched(inner=q) for a, q in plan.items()}
    oracle = jax.jit(lambda s: tiny.forward(params, tiny.images, quantized(switches, s)))
    off = {a: {**s[2], "on": False} for a, s in states.items()}
    rest = off | {a: {**states[a][2], "on": True} for a in base}
    for a, row in loss.items():
        want = [kl(oracle(off), oracle({**rest, a: {**s, "on": True}})) for s in states[a][:2]]
        assert abs(want[0] - want[1]) > 1e-4
        np.testing.assert_allclose(row, want, rtol=1e-3, err_msg=a)


def logits(rng):
    return jnp.asarray(rng.normal(0, 3, (50, 7)), jnp.float32)


def probabilities(rng):
    """Maps in 0..1, some values exactly at an end."""
    return jnp.asarray(np.clip(rng.uniform(-0.1, 1.1, (50, 4, 6)), 0, 1), jnp.float32)


def each(p, q) -> list[float]:
    """By image."""
    return [kl(p[i : i + 1], q[i : i + 1]) for i in range(len(p))]


@pytest.mark.parametrize("draw", [logits, probabilities])
def test_equal_predictions_do_not_diverge(draw, rng):
    x = draw(rng)
    np.testing.assert_array_equal(diverge(x, x), np.zeros(50, np.float32))


@pytest.mark.parametrize("draw", [logits, probabilities])
def test_tiny_differences_never_come_out_negative(draw, rng):
    """Single images and single steps of float32 among them."""
    x = draw(rng)
    for size in 10.0 ** np.arange(-9, -2):
        got = np.asarray(diverge(x, x + np.float32(size) * draw(rng)))
        assert (got >= 0).all()
    assert (got > 0).all(), "1e-3 is seen"


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1.0])
def test_the_divergence_of_logits_is_that_of_float64(size, rng):
    """To 1e-3 of itself down to 1e-7 nats, where the usual sum over p log(p / q) in float32 is noise."""
    p = logits(rng)
    q = p + size * logits(rng)
    np.testing.assert_allclose(diverge(p, q), each(np.asarray(p), np.asarray(q)), rtol=2e-3)


def test_the_divergence_has_a_direction(rng):
    p, q = np.asarray(logits(rng)), np.asarray(logits(rng))
    assert (np.abs(np.subtract(each(p, q), each(q, p))) > 0.1).mean() > 0.5
    np.testing.assert_allclose(diverge(jnp.asarray(q), jnp.asarray(p)), each(q, p), rtol=1e-4)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 1.0])
def test_the_divergence_of_maps_is_that_of_float64(size, rng):
    """The mean over pixels; ends are 1e-6 away from certainty."""
    p = probabilities(rng)
    q = jnp.clip(p + size * (probabilities(rng) - 0.5), 0, 1)
    ends = [np.clip(np.asarray(x), np.float32(1e-6), np.float32(1 - 1e-6)) for x in (p, q)]
    np.testing.assert_allclose(diverge(p, q), each(*ends), rtol=2e-3)


def test_maps_that_are_certain_and_wrong_are_finite():
    got = diverge(jnp.ones((1, 2, 2)), jnp.zeros((1, 2, 2)))
    np.testing.assert_allclose(got, np.log(1e6), rtol=0.01)


def test_a_constant_on_all_logits_is_no_difference(rng):
    x = logits(rng)
    np.testing.assert_allclose(diverge(x, x + 7), 0, atol=1e-11)


@pytest.mark.parametrize("gap", [30.0, 80.0, 90.0, 1000.0])
def test_certain_logits_that_change_their_mind_diverge_by_the_gap(gap):
    x = jnp.asarray([[gap, 0.0]])
    np.testing.assert_allclose(diverge(x, x[:, ::-1]), gap, rtol=0.02)


def test_half_precision_is_widened_first(rng):
    p, q = (logits(rng).astype(jnp.bfloat16) for _ in range(2))
    got = diverge(p, q)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, diverge(p.astype(jnp.float32), q.astype(jnp.float32)))
