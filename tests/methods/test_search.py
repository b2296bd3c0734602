"""The search of two intervals (Liu et al. 2021, spec 9.1, 9.2 S3-S8, 9.3 R5): against NumPy in float64."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from jvq.core.recipe import Operand, sites
from jvq.methods.captured import Pair
from jvq.methods.search import LEFT, RIGHT, Grid, Objective, Ranking, _scores, form_of, scaled, search
from jvq.models.layers import softmax as softmax_of
from jvq.quantizers import Uniform

ALIKE = Objective()
COARSE, FINE = Grid(steps=11), Grid(steps=15)
RATIOS = np.linspace(0.5, 1.2, 11)
KINDS = ("gauss", "outlier", "gelu", "softmax")
SHAPE = (4, 32, 40, 32)  # images, tokens, channels in and out
SIDES = ("left", "right")


def rounded(y, delta, bits: int):
    """Eq. 8, float64."""
    top = 2 ** (bits - 1)
    return delta * np.clip(np.rint(np.asarray(y, np.float64) / delta), -top, top - 1)


def state(bits: int, delta):
    plain = {"scale": delta, "zero": np.full(np.shape(delta), 2 ** (bits - 1)), "levels": 2**bits - 1}
    return {name: jnp.asarray(np.asarray(x, np.float32)) for name, x in plain.items()}


def reach(y, bits: int, over=None):
    """The interval by the maximum."""
    return np.abs(y).max(axis=over) / (2 ** (bits - 1) - 1)


def correlation(a, b) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def operands(letters, shapes, out, roles, weight: bool = False) -> Pair:
    """A pair of operands; shapes are of one image."""
    extent = dict(itertools.chain(*(zip(a, s, strict=True) for a, s in zip(letters, shapes, strict=True))))
    product = tuple(extent[a] for a in out)
    paths = (None, ("site", "kernel") if weight else None)
    many = zip(roles, letters, shapes, paths, strict=True)
    return Pair(*(Operand(f"site.{role}", axes, tuple(shape), out, product, path) for role, axes, shape, path in many))


def chunked(arrays, sizes):
    """The arrays by role as chunks of so many images."""
    ends = np.cumsum(sizes)
    return [{role: a[end - n : end] for role, a in arrays.items()} for n, end in zip(sizes, ends, strict=True)]


@dataclasses.dataclass
class Linear:
    """A linear layer, one interval an operand that begins at the maximum; the objective in float64."""

    x: np.ndarray  # [b n d]
    w: np.ndarray  # [d o]
    bias: np.ndarray | None
    bits: int

    def __post_init__(self):
        self.x, self.w = (np.asarray(a, np.float32) for a in (self.x, self.w))
        self.delta = tuple(max(reach(a, self.bits), 1e-8) for a in (self.x, self.w))
        self.offset = 0.0 if self.bias is None else np.asarray(self.bias, np.float32).astype(np.float64)
        self.product = self.x.astype(np.float64) @ self.w + self.offset

    def quantised(self, left: float, right: float):
        """The product at these ratios."""
        deltas = np.multiply((left, right), self.delta)
        return rounded(self.x, deltas[0], self.bits) @ rounded(self.w, deltas[1], self.bits) + self.offset

    def score(self, left: float, right: float, shift=0.0) -> float:
        """J, mean over the images."""
        got = self.quantised(left, right) - shift
        return float(np.mean([correlation(*pair) for pair in zip(self.product, got, strict=True)]))

    def shift(self, left: float, right: float):
        """The mean error over images and tokens, [o]."""
        return (self.quantised(left, right) - self.product).mean(axis=(0, 1))

    def search(self, grid=COARSE, *, sides=SIDES, correct=False, sizes=None, objective=ALIKE):
        """What is found; a side that is not searched is quantised at ratio 1."""
        letters, shapes = ("bnd", "do"), ((1, *self.x.shape[1:]), self.w.shape)
        quantizers = tuple(Uniform(self.bits, symmetric=True) if side in sides else None for side in SIDES)
        form = form_of(operands(letters, shapes, "bno", ("x", "w"), weight=True), quantizers, objective, "")
        states = tuple(q and state(self.bits, delta) for q, delta in zip(quantizers, self.delta, strict=True))
        fixed = {
            f"{role}^": rounded(a, delta, self.bits).astype(np.float32)
            for side, role, a, delta in zip(SIDES, "xw", (self.x, self.w), self.delta, strict=True)
            if side not in sides
        }
        weight = fixed.pop("w^", None)
        chunks = chunked({"x": self.x, **fixed}, sizes or [len(self.x)])
        if weight is not None:
            chunks = [{**chunk, "w^": weight} for chunk in chunks]
        bias = None if self.bias is None else jnp.asarray(self.bias, jnp.float32)
        return search(form, grid, lambda: iter(chunks), ("x", "w"), states, jnp.asarray(self.w), bias, correct)


def plainly(layer, correct: bool = False, rounds: int = 20):
    """Spec 2.2's pseudocode: ratios, score, and the least gap between a winner and the next."""
    left = right = 1.0
    shift, gaps, best = 0.0, [], layer.score(1.0, 1.0)
    for _ in range(rounds):
        before, was = best, (left, right)
        scores = {r: layer.score(left, r, shift) for r in (*RATIOS, right)}
        right = max(scores, key=scores.get)
        gaps.append(np.ptp(sorted(set(scores.values()))[-2:]))
        scores = {r: layer.score(r, right, shift) for r in (*RATIOS, left)}
        left = max(scores, key=scores.get)
        gaps.append(np.ptp(sorted(set(scores.values()))[-2:]))
        best = scores[left]
        if correct:
            shift = layer.shift(left, right)
        if was == (left, right) or best - before < 1e-6:
            break
    return SimpleNamespace(left=left, right=right, score=best, shift=shift, gap=min(gaps))


def drawn(kind: str, bits: int, seed: int = 0) -> Linear:
    """A layer of the spec's tiny kinds."""
    rng = np.random.default_rng(seed)
    images, tokens, channels, out = SHAPE
    x = rng.normal(size=(images, tokens, channels))
    if kind == "outlier":
        x[..., 1] *= 8
        x[..., -3] *= 15
    elif kind == "gelu":
        x = x * (1 + erf(x / np.sqrt(2))) / 2
    elif kind == "softmax":
        x = softmax(2 * x, axis=-1)
    return Linear(x, rng.normal(size=(channels, out)) / np.sqrt(channels), 0.1 * rng.normal(size=out), bits)


def golden(bits: int) -> Linear:
    """Spec S5."""
    i, t, k = np.meshgrid(range(3), range(5), range(6), indexing="ij")
    x = np.sin(1.3 * i + 0.7 * t + 2.1 * k) + (k == 2) * 1.5 * np.cos(0.9 * i + 1.1 * t)
    k, m = np.meshgrid(range(6), range(4), indexing="ij")
    w = 0.3 * np.cos(0.8 * k + 1.7 * m) + 0.05 * np.sin(3.1 * k * m)
    return Linear(x, w, np.array([0.1, -0.2, 0.05, 0.0]), bits)


def ratios(found) -> list[float]:
    return [float(r) for r in found.ratios]


Y = [-1.3, -1.0, -0.56, -0.16, -0.04, 0.0, 0.04, 0.16, 0.24, 0.72, 1.0, 1.4]


@jax.jit
def codes_and_values(state, y):
    codes, values = (f(state, y, "n") for f in (Uniform(symmetric=True).encode, Uniform(symmetric=True).apply))
    return codes.codes - codes.zero, values


def applied(y, bits: int, delta: float):
    """Signed codes, which are those that are stored less the zero point, and values."""
    flat = np.resize(np.asarray(y, np.float32), 5120)  # of one length: compiled once
    return tuple(np.asarray(x)[: np.size(y)].reshape(np.shape(y)) for x in codes_and_values(state(bits, delta), flat))


@pytest.mark.parametrize(
    ("bits", "delta", "want"),
    [
        (4, 0.1, [-8, -8, -6, -2, 0, 0, 0, 2, 2, 7, 7, 7]),
        (3, 0.5, [-3, -2, -1, 0, 0, 0, 0, 0, 0, 1, 2, 3]),
    ],
)
def test_codes_are_the_golden_ones(bits, delta, want):
    """Q1."""
    np.testing.assert_array_equal(applied(Y, bits, delta)[0], want)


def test_the_interval_begins_at_the_maximum():
    """Spec 2.2: max / (2**(bits-1) - 1), the greatest value is the greatest code."""
    y = jnp.asarray(Y, jnp.float32)
    for bits in (3, 8):
        got = Uniform(bits, symmetric=True).init(y, "n")
        assert jax.tree.map(float, got) == pytest.approx(jax.tree.map(float, state(bits, 1.4 / (2 ** (bits - 1) - 1))))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_stay_in_range_and_values_within_half_an_interval(bits, rng):
    """Q2; quantising what is quantised changes nothing."""
    y, delta, top = rng.normal(0.0, 3.0, 2000), 4.0 / 2**bits, 2 ** (bits - 1)
    codes, values = applied(y, bits, delta)
    assert (codes.min(), codes.max()) == (-top, top - 1)
    inside = (y / delta > -top - 0.5) & (y / delta < top - 0.5)
    assert 0.2 < inside.mean() < 1
    assert np.abs(values - y)[inside].max() <= delta / 2 * (1 + 1e-5)
    np.testing.assert_array_equal(applied(values, bits, delta)[1], values)


def test_the_product_of_quantised_operands_is_that_of_their_codes(rng):
    """Q3, eq. 9."""
    (x, w), (dx, dw) = rng.normal(size=(2, 12, 12)), (0.21, 0.13)
    (codes_x, x), (codes_w, w) = applied(x, 6, dx), applied(w, 6, dw)
    np.testing.assert_allclose(x @ w, (codes_x @ codes_w) * dx * dw, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits_are_as_good_as_float(kind):
    """Q4."""
    layer = drawn(kind, 16)
    assert layer.search(Grid(rounds=0)).start > 1 - 1e-6
    for y, delta in zip((layer.x, layer.w), layer.delta, strict=True):
        assert 0 < np.square(applied(y, 16, delta)[1] - y).sum() < 1e-6 * np.square(y).sum()


def test_norms_and_softmax_are_no_products():
    """Q4: what is none has no address, and is not quantised."""

    def forward(params, images, dot):
        centred = images - images.mean(axis=-1, keepdims=True)
        return softmax_of(centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True)))

    assert sites(forward, {}, (2, 2, 4)) == {}


@pytest.mark.parametrize(("bits", "start"), [(4, 0.9953471), (6, 0.9995704)])
def test_the_golden_layer_begins_at_the_golden_score(bits, start):
    """S5."""
    layer = golden(bits)
    tops = np.array(layer.delta) * (2 ** (bits - 1) - 1)
    np.testing.assert_allclose(tops, [1.733733338, 0.300398401], rtol=1e-7)
    assert layer.search(Grid(rounds=0)).start == pytest.approx(start, abs=2e-7)


def test_the_golden_search_at_four_bits():
    """S5: the weight first, then the input, and a second round that changes nothing."""
    layer = golden(4)
    once, ended = layer.search(dataclasses.replace(FINE, rounds=1)), layer.search(FINE)
    assert layer.score(1.0, 1.15) == pytest.approx(0.9974662, abs=1e-7)
    assert ratios(once) == ratios(ended) == pytest.approx([0.85, 1.15])
    assert once.score == pytest.approx(0.9975650, abs=2e-7)
    assert ended.score == once.score
    assert (once.rounds, ended.rounds) == (1, 2)


def test_the_golden_search_at_six_bits():
    """S5: nothing better than where it began."""
    found = golden(6).search(FINE)
    assert ratios(found) == pytest.approx([1.0, 1.0])
    assert found.score == pytest.approx(0.9995704, abs=2e-7)
    assert found.start == pytest.approx(found.score, abs=1e-7)


@pytest.fixture(scope="module")
def searched():
    """By kind and bits: the layer and what was found."""
    layers = {(kind, bits): drawn(kind, bits) for kind in KINDS for bits in (4, 6, 8)}
    return {key: (layer, layer.search()) for key, layer in layers.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("correct", [False, True])
def test_the_search_ends_where_a_plain_one_ends(kind, bits, correct):
    """The scores of later rounds see the corrected bias."""
    layer = drawn(kind, bits)
    found, want = layer.search(correct=correct), plainly(layer, correct)
    assert want.gap > 1e-6, "winners can be told from the next"
    assert ratios(found) == pytest.approx([want.left, want.right])
    assert found.score == pytest.approx(want.score, abs=1e-6)
    if correct:
        np.testing.assert_allclose(found.mean_error, want.shift, rtol=1e-3, atol=1e-5)
        assert abs(want.score - layer.score(want.left, want.right)) > 3e-6, "the correction is seen"
    else:
        assert found.mean_error is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("correct", [False, True])
def test_no_half_of_a_round_loses_score(kind, correct):
    """S3; with correction at what is taken off in that round."""
    layer = drawn(kind, 4)
    left, right, shift = 1.0, 1.0, 0.0
    for rounds in (1, 2, 3):
        found = layer.search(dataclasses.replace(COARSE, rounds=rounds), correct=correct)
        new = ratios(found)
        steps = [layer.score(left, right, shift), layer.score(left, new[1], shift), layer.score(*new, shift)]
        assert steps[1] - steps[0] > -1e-6
        assert steps[2] - steps[1] > -1e-6
        if found.rounds == rounds:
            assert found.score == pytest.approx(steps[2], abs=1e-6)
        (left, right), shift = new, found.mean_error if correct else 0.0


def test_what_is_found_lies_in_the_range_and_has_no_better_neighbour(searched):
    """S4."""
    for key, (layer, found) in searched.items():
        left, right = ratios(found)
        assert found.start == pytest.approx(layer.score(1.0, 1.0), abs=1e-6), key
        assert found.score == pytest.approx(layer.score(left, right), abs=1e-6), key
        assert found.score >= found.start, key
        assert 0.5 <= min(left, right) <= max(left, right) <= 1.2, key
        around = [layer.score(left, r) for r in RATIOS] + [layer.score(r, right) for r in RATIOS]
        assert max(around) <= found.score + 2e-6, key


@pytest.mark.parametrize("kind", KINDS)
def test_more_bits_are_more_similar_and_clip_less(kind, searched):
    """S6."""
    by_bits = [searched[kind, bits][1] for bits in (4, 6, 8)]
    for less, more in itertools.pairwise(by_bits):
        assert less.score < more.score
        assert sum(ratios(less)) < sum(ratios(more))
    assert all(found.rounds <= 5 for found in by_bits)
    assert by_bits[0].score - by_bits[0].start > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [4, 6])
def test_searching_in_turn_finds_nearly_what_searching_both_at_once_does(kind, bits, searched):
    """S7."""
    layer, found = searched[kind, bits]
    both = max(layer.score(a, b) for a, b in itertools.product(RATIOS, repeat=2))
    start = layer.score(1.0, 1.0)
    assert both - start > 1e-4
    assert layer.score(*ratios(found)) - start >= 0.95 * (both - start)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [3, 1]], ids=str)
def test_chunks_of_any_number_of_images_give_the_same(sizes):
    """S8."""
    layer = drawn("gelu", 4)
    whole, found = (layer.search(correct=True, sizes=n) for n in (None, sizes))
    assert ratios(found) == ratios(whole)
    for name in ("score", "start", "gain"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), abs=1e-6), name
    np.testing.assert_allclose(found.mean_error, whole.mean_error, atol=1e-6)


@pytest.mark.parametrize("correct", [False, True])
def test_nothing_is_scored_twice(correct, rng, monkeypatch):
    """An operand whose partner, and correction, are what they were has been searched already."""
    from jvq.methods import search as module

    asked = []

    def counted(form, side, data, states, fixed, tried):
        offset = b"" if data["offset"] is None else np.asarray(data["offset"]).tobytes()
        asked.append((side, np.asarray(fixed).tobytes(), offset))
        return _scores(form, side, data, states, fixed, tried)

    monkeypatch.setattr(module, "_scores", counted)
    found = []
    for bits in (3, 4, 6):
        asked.clear()
        layer = Linear(rng.normal(size=(4, 8, 16)), rng.normal(size=(16, 8)), rng.normal(size=8), bits)
        found.append((layer.search(correct=correct).rounds, len(asked)))
        assert len(set(asked)) == len(asked)
    assert all(rounds < count <= 2 * rounds for rounds, count in found)
    assert correct or any(count < 2 * rounds for rounds, count in found)


@pytest.mark.parametrize("side", SIDES)
def test_a_side_that_is_not_searched_keeps_its_interval(side):
    """The other one is searched against what its quantiser made of it."""
    layer = drawn("outlier", 4)
    found = layer.search(sides=(side,))
    own, other = (ratios(found)[i] for i in ((0, 1) if side == "left" else (1, 0)))
    assert other == 1.0
    scores = [layer.score(r, 1.0) if side == "left" else layer.score(1.0, r) for r in RATIOS]
    assert own == pytest.approx(RATIOS[np.argmax(scores)])
    assert found.score == pytest.approx(max(scores), abs=1e-6)
    assert own != 1.0


def test_without_rounds_the_intervals_stay_and_the_bias_is_corrected():
    layer = drawn("softmax", 4)
    found = layer.search(Grid(rounds=0), correct=True)
    assert (ratios(found), found.rounds) == ([1.0, 1.0], 0)
    assert found.score == found.start == pytest.approx(layer.score(1.0, 1.0), abs=1e-6)
    np.testing.assert_allclose(found.mean_error, layer.shift(1.0, 1.0), rtol=1e-4, atol=1e-6)


def test_a_layer_without_a_bias_is_not_corrected():
    layer = drawn("gelu", 4)
    layer = Linear(layer.x, layer.w, None, 4)
    found, want = layer.search(correct=True), plainly(layer)
    assert found.mean_error is None
    assert ratios(found) == pytest.approx([want.left, want.right])
    assert found.score == pytest.approx(want.score, abs=1e-6)


@pytest.mark.parametrize("kind", ["gauss", "outlier"])
def test_the_gain_is_that_of_the_quantised_product(kind, searched):
    """cov(quantised, float) / var(float), which similarity does not see: clipping shrinks products."""
    layer, found = searched[kind, 4]
    o, q = layer.product - layer.offset, layer.quantised(*ratios(found)) - layer.offset
    o, q = (y - y.mean(axis=(1, 2), keepdims=True) for y in (o, q))
    assert found.gain == pytest.approx((o * q).sum() / (o * o).sum(), abs=1e-4)
    assert 0.8 < found.gain < 0.999


@pytest.mark.parametrize("anchor", ["initial", "current"])
def test_candidates_around_the_incumbent_never_lose_score(anchor):
    """With them an interval may leave the first range."""
    layer = drawn("outlier", 4)
    grid = Grid(0.8, 1.2, 11, anchor=anchor)
    found = [layer.search(dataclasses.replace(grid, rounds=n)) for n in (0, 1, 2, 3, 20)]
    for less, more in itertools.pairwise(found):
        assert more.score - less.score > -1e-6
    for f in found:
        assert f.score == pytest.approx(layer.score(*ratios(f)), abs=1e-6)
    assert (min(ratios(found[-1])) < 0.79) == (anchor == "current")
    assert found[-1].score > found[0].score + 0.005


def test_sites_of_one_shape_share_executables_whatever_their_widths():
    """Three: of each side, and of the first score; those of Linear layers here, whichever test runs first."""
    drawn("gauss", 4).search(correct=True)
    before = _scores._cache_size()
    for kind, bits in itertools.product(KINDS, (2, 3, 8, 16)):
        drawn(kind, bits, seed=4).search(dataclasses.replace(COARSE, rounds=1), correct=True)
    assert _scores._cache_size() == before


DEGENERATE = {
    "no input": (0.0, None),
    "no weight": (None, 0.0),
    "neither": (0.0, 0.0),
    "both constant": (0.7, -0.3),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("correct", [False, True])
def test_products_that_do_not_vary_keep_their_intervals(case, correct):
    layer = drawn("gauss", 4)
    drawn_or_flat = zip((layer.x, layer.w), DEGENERATE[case], strict=True)
    x, w = (y if value is None else np.full_like(y, value) for y, value in drawn_or_flat)
    for bias in (None, np.full(SHAPE[-1], 0.1)):
        found = Linear(x, w, bias, 4).search(correct=correct)
        assert ratios(found) == [1.0, 1.0]
        assert (found.score, found.start) == (0.0, 0.0)
        assert found.gain == 1.0
        assert found.mean_error is None or np.isfinite(found.mean_error).all()


@pytest.mark.parametrize("side", SIDES)
def test_an_operand_that_does_not_vary_keeps_its_interval(side):
    """At the maximum it is exact, and no other interval is better."""
    layer = drawn("gauss", 4)
    x, w = (np.full_like(y, 0.4) if here == side else y for here, y in zip(SIDES, (layer.x, layer.w), strict=True))
    found = Linear(x, w, None, 4).search()
    assert ratios(found)[SIDES.index(side)] == 1.0
    assert np.isfinite([*ratios(found), found.score, found.gain]).all()


HEADED = ("dshe", (6, 3, 2, 4))  # letters and shape of a fused weight


@pytest.fixture(scope="module")
def fused():
    """An input [b n d] and the weight of query, key and value, of very different sizes and tails."""
    rng = np.random.default_rng(26)
    w = rng.normal(size=HEADED[1]) * np.array([1.0, 0.2, 4.0])[:, None, None]
    w[:, 1] **= 3
    w[0, 2] *= 3
    return rng.normal(size=(3, 7, 6)).astype(np.float32), w.astype(np.float32)


def fused_search(x, w, keep: str, sides, grid=COARSE, bias=None):
    """4 bits, intervals by the maximum of each index of the axes ``keep``; ``w`` [d s h e], or one of its three.

    An input that is not searched is float.
    """
    letters = ("bnd", HEADED[0] if w.ndim == 4 else "dhe")
    out = "bnshe" if w.ndim == 4 else "bnhe"
    over = tuple(i for i, a in enumerate(letters[1]) if a not in keep)
    quantizers = (Uniform(4, symmetric=True) if "left" in sides else None, Uniform(4, keep, symmetric=True))
    pair = operands(letters, ((1, *x.shape[1:]), w.shape), out, ("x", "w"), weight=True)
    form = form_of(pair, quantizers, ALIKE, "s" if w.ndim == 4 else "")
    states = (state(4, reach(x, 4)) if "left" in sides else None, state(4, reach(w, 4, over)))
    return search(form, grid, lambda: [{"x": x}], ("x", "w"), states, jnp.asarray(w), bias, bias is not None)


def test_query_key_and_value_are_searched_as_if_alone(fused):
    """Their intervals have a ratio each, which all channels of one share; against an input left float."""
    x, w = fused
    found = fused_search(x, w, "she", ("right",))
    alone = [fused_search(x, w[:, s], "he", ("right",)) for s in range(3)]
    np.testing.assert_array_equal(found.ratios[RIGHT], [f.ratios[RIGHT] for f in alone])
    assert len({1.0, *(f.ratios[RIGHT].item() for f in alone)}) == 4
    assert found.score == pytest.approx(np.mean([f.score for f in alone]), abs=1e-6)
    assert found.start == pytest.approx(np.mean([f.start for f in alone]), abs=1e-6)
    assert found.ratios[LEFT] == 1.0
    reference = np.einsum("bnd,dshe->sbnhe", x.astype(np.float64), w)
    got = np.einsum("bnd,dshe->sbnhe", x.astype(np.float64), rounded(w, reach(w, 4, 0), 4))
    want = [correlation(reference[s, b], got[s, b]) for s in range(3) for b in range(3)]
    assert found.start == pytest.approx(np.mean(want), abs=1e-6)


def test_the_input_that_query_key_and_value_share_is_scored_by_their_mean(fused):
    """Spec A2; with a bias [s h e], and what is taken off it."""
    x, w = fused
    bias = np.linspace(-0.5, 0.5, 24).reshape(HEADED[1][1:])
    grid = dataclasses.replace(COARSE, rounds=1)
    found = fused_search(x, w, "s", SIDES, grid, jnp.asarray(bias, jnp.float32))
    delta = reach(w, 4, (0, 2, 3))[:, None, None]
    right = rounded(w, found.ratios[RIGHT][:, None, None] * delta, 4)
    reference = np.einsum("bnd,dshe->bnshe", x.astype(np.float64), w) + bias

    def product(ratio):
        return np.einsum("bnd,dshe->bnshe", rounded(x, ratio * reach(x, 4), 4), right) + bias

    def score(ratio):
        got = product(ratio)
        return np.mean([correlation(reference[b, :, s], got[b, :, s]) for b in range(3) for s in range(3)])

    scores = [score(r) for r in RATIOS]
    assert found.ratios[LEFT] == pytest.approx(RATIOS[np.argmax(scores)])
    assert found.ratios[LEFT] != 1.0
    assert found.score == pytest.approx(max(scores), abs=1e-6)
    want = (product(found.ratios[LEFT]) - reference).mean(axis=(0, 1))
    np.testing.assert_allclose(found.mean_error, want, rtol=1e-4, atol=1e-6)


def test_a_ratio_multiplies_all_intervals_of_its_unit():
    left, right = state(4, 0.5), state(4, np.arange(1.0, 25.0).reshape(HEADED[1][1:]))
    quantizers = (Uniform(4, symmetric=True), Uniform(4, "she", symmetric=True))
    pair = operands(("bnd", HEADED[0]), ((1, 7, 6), HEADED[1]), "bnshe", ("x", "w"), weight=True)
    form = form_of(pair, quantizers, ALIKE, "s")
    got = scaled(form, RIGHT, right, np.array([0.5, 1.0, 2.0]))
    np.testing.assert_array_equal(got["scale"], right["scale"] * np.array([0.5, 1.0, 2.0], np.float32)[:, None, None])
    assert {name: got[name] is right[name] for name in right} == {"scale": False, "zero": True, "levels": True}
    np.testing.assert_array_equal(scaled(form, LEFT, left, 0.75)["scale"], 0.375)


LAYOUTS = {"heads": ("bhqe", "bhke", "bhqk"), "windows": ("bmhqe", "bmhke", "bmhqk")}
EXTENTS = {"b": 3, "m": 2, "h": 2, "q": 5, "k": 7, "e": 4}


def extents(letters: str) -> tuple[int, ...]:
    return tuple(EXTENTS[a] for a in letters)


@dataclasses.dataclass
class Scores:
    """A score product, 4 bits, one interval an operand; the objective in float64."""

    layout: str = "heads"
    size: float = 1.5

    def __post_init__(self):
        rng = np.random.default_rng(7)
        self.letters = LAYOUTS[self.layout]
        left, right, out = self.letters
        self.q, self.k = (self.size * rng.normal(size=extents(a)).astype(np.float32) for a in (left, right))
        self.added = 0.5 * rng.normal(size=extents(out)[2:])  # positions, and a mask in the second window
        if self.layout == "windows":
            self.added = np.stack([self.added[0] * np.ones((2, 5, 7)), self.added[1] * np.ones((2, 5, 7))])
            self.added[1, :, :3, 4:] = -np.inf
        self.delta = reach(self.q, 4), reach(self.k, 4)
        self.reference = self.product(self.q, self.k)
        self.map = softmax(self.reference + self.added, axis=-1)

    def product(self, q, k):
        left, right, out = self.letters
        return np.einsum(f"{left},{right}->{out}", np.asarray(q, np.float64), np.asarray(k, np.float64))

    def quantised(self, left: float, right: float):
        return self.product(rounded(self.q, left * self.delta[0], 4), rounded(self.k, right * self.delta[1], 4))

    def similarity(self, got, kind: str = "pearson") -> float:
        if kind == "cosine":
            pairs = zip(self.reference, got, strict=True)
            return float(np.mean([(a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()) for a, b in pairs]))
        return float(np.mean([correlation(*pair) for pair in zip(self.reference, got, strict=True)]))

    def loss(self, got, ranking: Ranking) -> float:
        """Eq. 13 pair by pair: mean over images and heads, sum or mean over the pairs of each."""
        reference = self.reference
        if ranking.at == "scores":
            reference, got = 2 * reference, 2 * got  # 4 channels: q is divided by their root
        elif ranking.at == "softmax":
            reference, got = self.map, softmax(got + self.added, axis=-1)
        rows = {1: [0], 2: [0, 2]}.get(ranking.rows, range(5))
        maps = zip(reference.reshape(-1, 5, 7), got.reshape(-1, 5, 7), strict=True)
        loss = [
            max(0.0, ranking.theta - (g[r, i] - g[r, j]) * np.sign(a[r, i] - a[r, j]))
            for a, g in maps
            for r in rows
            for i, j in itertools.combinations(range(7), 2)
        ]
        return float(np.mean(loss)) * (5 * 7 * 6 / 2 if ranking.pairs == "sum" else 1)

    def search(self, objective, grid=COARSE):
        shapes = [(1, *extents(a)[1:]) for a in self.letters[:2]]
        pair = operands(self.letters[:2], shapes, self.letters[2], ("q", "k"))
        form = form_of(pair, (Uniform(4, symmetric=True),) * 2, objective, "")
        states = tuple(state(4, delta) for delta in self.delta)
        chunk = {"q": self.q, "k": self.k, "p": self.map.astype(np.float32)}
        return search(form, grid, lambda: [chunk], ("q", "k"), states)


RANKINGS = [
    ("heads", "pearson", Ranking(gamma=3.0, rows=None)),
    ("heads", "cosine", Ranking(gamma=3.0, at="softmax", rows=2)),
    ("windows", "cosine", Ranking(gamma=0.1, theta=0.5, at="scaled", pairs="sum", rows=2)),
    ("windows", "pearson", Ranking(gamma=3.0, at="softmax", pairs="sum", rows=9)),
]


@pytest.mark.parametrize(("layout", "kind", "ranking"), RANKINGS, ids=str)
def test_the_objective_of_scores_is_similarity_less_the_ranking_loss(layout, kind, ranking):
    """Of one candidate, eq. 12; what the model adds to scores counts in the map alone."""
    scores = Scores(layout)
    found, got = scores.search(Objective(kind, ranking), Grid(rounds=0)), scores.quantised(1.0, 1.0)
    similarity = {kind: scores.similarity(got, kind) for kind in ("pearson", "cosine")}
    assert found.start == pytest.approx(similarity[kind] - ranking.gamma * scores.loss(got, ranking), rel=1e-5)
    assert abs(similarity["pearson"] - similarity["cosine"]) > 1e-4
    others = {at: scores.loss(got, dataclasses.replace(ranking, at=at)) for at in ("scores", "scaled", "softmax")}
    others |= {rows: scores.loss(got, dataclasses.replace(ranking, rows=rows)) for rows in (1, 2, None)}
    assert len({round(loss, 4) for loss in others.values()}) == 5, "options can be told apart"


def test_other_products_have_no_ranking():
    layer = drawn("gauss", 4)
    assert layer.search(objective=Objective(ranking=Ranking(gamma=5.0))) == layer.search()


def test_a_weight_of_zero_is_the_search_without_ranking():
    """R5: bit for bit."""
    scores = Scores()
    assert scores.search(Objective(ranking=Ranking(gamma=0.0, rows=None))) == scores.search(ALIKE)


def test_the_search_of_scores_is_a_plain_one_and_gives_up_similarity_for_order():
    """R5: on the first sweep, over the key's interval; then the query's."""
    scores, ranking = Scores(), Ranking(gamma=3.0, rows=None)

    def score(left, right):
        got = scores.quantised(left, right)
        return scores.similarity(got) - 3.0 * scores.loss(got, ranking)

    grid = dataclasses.replace(COARSE, rounds=1)
    found, alone = (scores.search(objective, grid) for objective in (Objective(ranking=ranking), ALIKE))
    right = RATIOS[np.argmax([score(1.0, r) for r in RATIOS])]
    left = RATIOS[np.argmax([score(r, right) for r in RATIOS])]
    assert ratios(found) == pytest.approx([left, right])
    assert found.score == pytest.approx(score(left, right), abs=1e-5)
    with_it, without = (scores.quantised(1.0, ratios(f)[RIGHT]) for f in (found, alone))
    assert scores.loss(with_it, ranking) < scores.loss(without, ranking) - 1e-4
    assert scores.similarity(with_it) < scores.similarity(without) - 1e-6
