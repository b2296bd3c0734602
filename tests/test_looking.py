"""What figures show, against NumPy on a tiny ViT; and that a run's figures are whole, the same again and few enough."""

import itertools
import re
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import evaluate, evaluate_maps, looking
from jvq.core.calibrate import Fitted, calibrate
from jvq.core.quantizer import Codes
from jvq.core.recipe import resolve, sites
from jvq.data import Loader, Preprocess
from jvq.data.records import CorruptImage, InMemory
from jvq.methods import minmax
from jvq.models import build
from jvq.models.weights import Checkpoint
from jvq.quantizers import Dynamic, Grouped, Learned, Signs, Ternary, Uniform
from jvq.rows import Row

pytestmark = pytest.mark.once

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
GROUPED = "block00/mlp/fc1.x"


@pytest.fixture(scope="module")
def checkpoint():
    model, rng = build("vit", SPEC), np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), model.shapes())
    return Checkpoint(model, params, PREPROCESS, {})


@pytest.fixture(scope="module")
def known(checkpoint):
    return sites(checkpoint.model.forward, checkpoint.params, checkpoint.model.image)


@pytest.fixture(scope="module")
def loader():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8), rng.integers(0, 3, 30).astype(np.int32)
    return Loader(InMemory("made up", images, labels, ("cat", "dog", "cow")), Preprocess.from_dict(PREPROCESS), 16)


@pytest.fixture(scope="module")
def images(loader):
    return np.concatenate([batch["image"][batch["mask"]] for batch in loader])


@pytest.fixture(scope="module")
def fits(checkpoint, known, images):
    """Rows: one range a tensor, and groups of two operands."""
    groups = Grouped(4, groups=3, start="quantile", mstep="cover")
    recipes = {
        "minmax": [("*", Uniform(4))],
        "igq": [
            ("*", Uniform(4)), ("*.w", Uniform(4, keep="o")), ("block00/attn/qkv.w", Uniform(3, keep="sh")),
            (GROUPED, groups),
            ("block00/attn/pv.p", Grouped(4, groups=2, along="hq", nonnegative=True, start="quantile", mstep="cover")),
        ],
    }  # fmt: skip
    found = {}
    for name, recipe in recipes.items():
        plan = resolve(recipe, known)
        qstate = calibrate(checkpoint.model.forward, checkpoint.params, images[:8], plan, known)
        found[name] = Row(name, minmax, minmax.Options(), plan), Fitted(plan, qstate)
    return found


@pytest.fixture(scope="module")
def outputs(checkpoint, fits, loader):
    found = {}
    for name in ("float", *fits):
        plan, qstate = (fits[name][0].plan, fits[name][1].qstate) if name in fits else ({}, {})
        run = evaluate.runner(checkpoint.model.forward, plan)
        found[name] = evaluate.predict(lambda x, r=run, q=qstate: r(checkpoint.params, q, x), loader, name)
    return found


@pytest.fixture(scope="module")
def found(checkpoint, known, fits, images):
    row, fit = fits["igq"]
    letters = {a: o.letters for a, o in known.items()}
    model = checkpoint.model.forward, checkpoint.params
    errors = evaluate.site_errors(*model, row.plan, fit.qstate, letters, images)
    return {address: {"relative_error": error} for address, error in errors.items()}


@pytest.fixture
def seen(fits, checkpoint, known):
    return looking.Seen.of(fits, "igq", checkpoint, known)


@pytest.fixture(scope="module")
def table(outputs):
    costs = {"float": (900, 9e9), "minmax": (100, 1e9), "igq": (120, 1.2e9)}
    rows = []
    for name, (size, bops) in costs.items():
        rows.append({"name": name, **evaluate.score(outputs["float"], outputs[name])._asdict()})
        rows[-1] |= {"bytes": size, "bops": bops}
    return rows


@pytest.fixture(scope="module")
def once(tmp_path_factory, fits, checkpoint, known, loader, outputs, found, table):
    """The folder of a run and its figures."""
    folder = tmp_path_factory.mktemp("once")
    return folder, looking.figures(folder, fits, "igq", checkpoint, known, loader, outputs, found, table)


def test_a_run_has_every_figure_whole_and_the_same_again(
    tmp_path, once, fits, checkpoint, known, loader, outputs, found, table
):
    folder, once = once
    assert once == looking.figures(tmp_path, fits, "igq", checkpoint, known, loader, outputs, found, table)
    groups = [figure["group"] for figure in once]
    assert {*groups} == {"images", "front", "ranges", "groups", "weights", "attention", "errors"}
    assert [g for g, _ in itertools.groupby(groups)].count("ranges") == 1, "groups stand together"
    files = [figure["file"] for figure in once]
    assert sorted(files) == sorted(f"figures/{p.name}" for p in (folder / "figures").iterdir())
    for figure in once:
        content = (folder / figure["file"]).read_bytes()
        assert content == (tmp_path / figure["file"]).read_bytes(), figure["file"]
        assert ElementTree.fromstring(content).tag.endswith("svg")
        assert figure["title"]
        assert figure["caption"].endswith(".")
        assert "nan" not in figure["caption"]
    assert sum((folder / file).stat().st_size for file in files) < 2_000_000


def test_the_captions_of_a_run_have_its_numbers(once, outputs, found, table):
    said = {figure["file"]: figure["caption"] for figure in once[1]}
    flips = (outputs["float"].logits.argmax(1) != outputs["igq"].logits.argmax(1)).sum()
    assert said["figures/damaged.svg"].startswith(f"{flips} of 30 images")
    worst = max(found, key=lambda a: found[a]["relative_error"])
    assert (
        f"is {100 * found[worst]['relative_error']:.3g} % of the operand's power, at {worst}"
        in (said["figures/errors.svg"])
    )
    assert f"igq has top-1 % {100 * table[2]['top1']:.3g} at 0.12 KB" in said["figures/front.svg"]


def test_extremes_and_operands_are_those_of_the_float_model(seen, known, checkpoint, images):
    got = looking.extremes(seen, images[:5])
    values = looking.operands(seen, {GROUPED: "", "block00/attn/qk.q": "", "block00/attn/pv.p": ""}, images[:5])
    tape = {}

    def dot(site, equation, /, **operands):
        tape.update({f"{site}.{role}": np.asarray(x) for role, x in operands.items()})
        return jnp.einsum(equation, *operands.values())

    checkpoint.model.forward(checkpoint.params, jnp.asarray(images[:5]), dot)
    assert {*got} == {a for a, o in known.items() if o.batched}
    for address, x in values.items():
        np.testing.assert_allclose(x, tape[address], atol=1e-5)
    np.testing.assert_allclose(got[GROUPED][0], tape[GROUPED].min(axis=1), atol=1e-5)
    q, p = tape["block00/attn/qk.q"], tape["block00/attn/pv.p"]
    assert known["block00/attn/pv.p"].letters == "bhqk"
    tokens = known["block00/attn/qk.q"].letters.index("q")
    np.testing.assert_allclose(got["block00/attn/qk.q"][1], q.max(axis=tokens).reshape(5, -1), atol=1e-5)
    np.testing.assert_allclose(got["block00/attn/pv.p"][1], p.max(axis=3).reshape(5, -1), atol=1e-5)


def test_a_trained_model_is_looked_at_as_it_runs(fits, checkpoint, known, images):
    class Trains:
        TRAINS = True

    row, fit = fits["igq"]
    other = jax.tree.map(lambda x: 2 * x, checkpoint.params)
    mine = {"igq": (Row("igq", Trains, None, row.plan), fit._replace(params=other))}
    seen = looking.Seen.of(mine, "igq", checkpoint, known)
    got = looking.operands(seen, {"patch.x": "", GROUPED: ""}, images[:2])
    tape = {}

    def dot(site, equation, /, **operands):
        tape.update({f"{site}.{role}": np.asarray(x) for role, x in operands.items()})
        letters = equation.partition("->")[0].split(",")
        some = [
            row.plan[f"{site}.{role}"].apply(fit.qstate[f"{site}.{role}"], x, axis)
            for (role, x), axis in zip(operands.items(), letters, strict=True)
        ]
        return jnp.einsum(equation, *some)

    checkpoint.model.forward(other, jnp.asarray(images[:2]), dot)
    for address, x in got.items():
        np.testing.assert_allclose(x, tape[address], atol=1e-4)


def test_telling_operands_are_the_worst_by_each_measure(seen):
    inputs = [a for a in seen.activations if not a.endswith(".p")]
    error, ratio = dict.fromkeys(seen.row.plan, 0.1), dict.fromkeys(seen.row.plan, 2.0)
    error |= {inputs[2]: 0.9, "block00/attn/pv.p": 5.0}
    ratio |= {inputs[2]: 9.0, inputs[3]: 8.0}
    assert list(looking.telling(seen, error, ratio)) == [inputs[2], inputs[3], GROUPED, "block00/attn/pv.p"]
    assert list(looking.telling(seen, error | {GROUPED: 1.0}, ratio)) == [GROUPED, inputs[2], "block00/attn/pv.p"]


@pytest.mark.parametrize(
    ("quantizer", "letters"),
    [
        (Uniform(3), "bnd"), (Uniform(3, keep="d"), "bnd"), (Uniform(4, symmetric=True), "bnd"), (Uniform(2), "do"),
        (Uniform(4, keep="sh"), "dshe"), (Learned(3, keep="o"), "do"), (Learned(2, signed=False, offset=True), "bnd"),
        (Dynamic(3, keep="bd"), "bnd"), (Grouped(3, groups=2, start="quantile"), "bnd"), (Signs(scale="mean"), "do"),
        (Signs(), "bnd"), (Ternary(), "do"),
    ],
)  # fmt: skip
def test_the_bins_are_what_the_quantiser_s_codes_decode_to(rng, quantizer, letters):
    x = jnp.asarray(rng.normal(size=[5, 6, 4, 3][: len(letters)]), jnp.float32)
    codes = quantizer.encode(quantizer.init(x, letters), x, letters)
    got = looking.decoded_all(quantizer, codes)
    count = len(got)
    assert count == looking.code_count(quantizer)
    scale = np.broadcast_to(codes.scale, x.shape)
    zero = None if codes.zero is None else np.broadcast_to(codes.zero, x.shape)
    offset = 0.0 if codes.offset is None else np.broadcast_to(codes.offset, x.shape)
    for code in range(count):
        want = scale * (2.0 * code - 1 if zero is None else code - zero) + offset
        np.testing.assert_allclose(np.broadcast_to(got[code], x.shape), want, rtol=1e-5, atol=1e-6)
    ends = looking.decoded_all(quantizer, codes, ends=True)
    np.testing.assert_array_equal(ends, got[[0, -1]])
    every = np.stack([np.broadcast_to(bins, x.shape) for bins in got])
    y = np.asarray(quantizer.apply(quantizer.init(x, letters), x, letters))
    assert np.abs(every - y).min(axis=0).max() < 1e-5, "every quantised value is one of the bins"


def test_what_is_covered_is_where_very_large_values_end(seen, images):
    values = looking.operands(seen, [GROUPED], images[:4])[GROUPED]
    low, high = looking.covered(seen, GROUPED, values, "d")
    chosen = looking.choices(seen, GROUPED, values)
    state = {name: np.asarray(x) for name, x in seen.fit.qstate[GROUPED].items()}
    for i, j in np.ndindex(*chosen.group.shape):
        points = np.stack([state["lower"], state["upper"]], axis=1)
        x = values[i, :, j]
        g = np.square(points - [x.min(), x.max()]).sum(axis=1).argmin()
        assert chosen.group[i, j] == g
        np.testing.assert_allclose(low[i, j], -state["scale"][g] * state["zero"][g], rtol=1e-5)
        np.testing.assert_allclose(high[i, j], state["scale"][g] * (15 - state["zero"][g]), rtol=1e-5)
        assert chosen.width[g] == pytest.approx(15 * state["scale"][g], rel=1e-5)


def test_channels_have_both_quantisers(seen, fits, checkpoint, known, images):
    base = looking.Seen.of(fits, "minmax", checkpoint, known)
    values = looking.operands(seen, [GROUPED], images[:4])[GROUPED]
    data = looking.channels(seen, base, GROUPED, values)
    state = fits["minmax"][1].qstate[GROUPED]
    np.testing.assert_allclose(data.plain[0], -float(state["scale"] * state["zero"]), rtol=1e-5)
    assert (data.baseline, data.what, data.steps) == ("minmax", "channels", 15)
    assert data.share.sum() == pytest.approx(1)
    rows = looking.channels(seen, base, "block00/attn/pv.p", looking.operands(seen, ["block00/attn/pv.p"], images)[
        "block00/attn/pv.p"
    ])  # fmt: skip
    assert rows.what == "rows"
    assert (rows.covered[0] == 0).all()


@pytest.mark.parametrize(("address", "kept"), [("block00/mlp/fc1.w", "o"), ("block00/attn/qkv.w", "sh")])
def test_the_channel_of_a_weight_is_the_one_of_largest_error(seen, checkpoint, known, address, kept):
    data = looking.layer(seen, address, "why", 0.5)
    w = checkpoint.params
    for key in known[address].path:
        w = w[key]
    letters, q, state = known[address].letters, seen.row.plan[address], seen.fit.qstate[address]
    y = np.asarray(q.apply(state, w, letters))
    w = np.asarray(w)
    best, where = -1.0, ()
    for index in np.ndindex(*(w.shape[letters.index(a)] for a in kept)):
        at = [slice(None)] * w.ndim
        for a, i in zip(kept, index, strict=True):
            at[letters.index(a)] = i
        one, other = w[tuple(at)], y[tuple(at)]
        error = ((one - other) ** 2).sum() / (one**2).sum()
        if error > best:
            best, where, values = error, index, one
    assert data.channel == " ".join(f"{a} {i}" for a, i in zip(kept, where, strict=True))
    np.testing.assert_array_equal(data.values, values.reshape(-1))
    assert len(data.bins) == len(data.counts) == 2**q.bits
    assert data.counts.sum() == w.size
    step = np.diff(data.bins)
    np.testing.assert_allclose(step, step[0], rtol=1e-4)
    quantised = np.unique(y[tuple(where[kept.index(a)] if a in kept else slice(None) for a in letters)])
    assert np.abs(quantised[:, None] - data.bins[None]).min(axis=1).max() < 1e-5


def test_agreement_is_the_mean_of_rows_and_windows(rng):
    from scipy.stats import kendalltau

    plain, got = rng.uniform(0.1, 1, (2, 3, 2, 5, 7)), rng.uniform(0.1, 1, (2, 3, 2, 5, 7))  # bmhqk
    tau = looking.agreement(plain.astype(np.float32), got.astype(np.float32))
    want = [
        [
            np.mean([[kendalltau(plain[b, m, h, q], got[b, m, h, q])[0] for q in range(5)] for m in range(3)])
            for h in (0, 1)
        ]
        for b in (0, 1)
    ]
    np.testing.assert_allclose(tau, want, atol=1e-5)


def test_images_are_those_of_their_places_also_where_some_cannot_be_read(loader, rng):
    places = np.array([7, 0, 21])
    raw = loader.source.images[:, :, :, :] / 255
    for got, i in zip(looking.shown_images(loader, places), places, strict=True):
        np.testing.assert_allclose(got, raw[i], atol=1e-6)

    class Torn:
        name, classes = "torn", ()

        def __len__(self):
            return 30

        def __getitem__(self, i):
            if i in (0, 9):
                raise CorruptImage(f"image {i}")
            return {"image": loader.source.images[i], "label": np.int32(-1)}

    torn = Loader(Torn(), loader.preprocess, 16)
    assert [*torn]
    assert torn.skipped
    good = [i for i in range(30) if i not in (0, 9)]
    for got, i in zip(looking.shown_images(torn, places), places, strict=True):
        np.testing.assert_allclose(got, raw[good[i]], atol=1e-6)


def test_maps_are_sorted_by_their_correlation(tmp_path, seen, loader, rng):
    plain = rng.uniform(0, 1, (30, 6, 6)).astype(np.float32)
    got = (plain + rng.normal(0, 1, plain.shape) * np.linspace(0, 1, 30)[:, None, None]).astype(np.float32)
    features = np.zeros((30, 2, 2), np.float32)
    outputs = {"float": evaluate_maps.Predictions(plain, features), "igq": evaluate_maps.Predictions(got, features)}
    (figure,) = looking._damage(tmp_path, seen, loader, outputs)
    each = [np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1] for a, b in zip(plain, got, strict=True)]
    lowest = sorted(each)
    assert (
        f"correlation {lowest[0]:.2f} to {lowest[7]:.2f}; the mean of all images is {np.mean(each):.2f}"
        in (figure["caption"])
    )
    texts = re.findall(r">no\. (\d+)<", (tmp_path / "damaged.svg").read_text("utf-8"))
    assert [int(t) for t in texts] == np.argsort(each)[:8].tolist()


def test_without_attention_activations_or_labels_some_figures_are_left_out(
    tmp_path, fits, checkpoint, known, loader, outputs, found, table
):
    row, fit = fits["igq"]
    plan = {a: q for a, q in row.plan.items() if a.endswith(".w")}
    only = {"igq": (Row("igq", minmax, row.options, plan), Fitted(plan, {a: fit.qstate[a] for a in plan}))}
    blank = {n: p._replace(labels=np.full(30, -1)) for n, p in outputs.items()}
    weights = {a: found[a] for a in plan}
    products = {a: o for a, o in known.items() if o.role != "p"}
    made = looking.figures(tmp_path, only, "igq", checkpoint, products, loader, blank, weights, table[:1])
    assert [figure["group"] for figure in made] == ["images", "weights", "errors"]
    assert "bold" not in made[0]["caption"]


def test_codes_are_what_the_core_says():
    assert Codes._fields == ("codes", "scale", "zero", "offset"), "decoded_all takes them one by one"
