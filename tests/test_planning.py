"""Plans: counts against what really happens on small models, the closed form by hand, against a simulation, and against
what docs/scale.md says was measured."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import planning
from jvq.core import ranges
from jvq.core.calibrate import observe
from jvq.core.recipe import resolve, sites
from jvq.core.samples import VALUES
from jvq.methods import METHODS, captured, igq, liu21, vvtq
from jvq.models import build
from jvq.planning import Assumed, Chip, Job, Phase, Pod, demand, growth, jobs
from jvq.train import Objective, beginning

pytestmark = pytest.mark.once

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
TINY = {"dim": 16, "depth": 4, "heads": 2, "image": (16, 16), "patch": 4, "classes": 5}  # 17 tokens
BARE = Assumed(1.0, 1.0, 1.0, 1.0, 10.0, 0.0, 2.0, 1, 0.0, 4.0, 0.0)
TPU = (8, 128)  #: rows and columns of a tile of float32
CHIP = Chip(products=100.0, integers=0, memory=1e9, bandwidth=50.0, links=25.0, siblings=2, cores=4)
MARGIN = 0.1  #: between closed form and simulation
GROWTH = {"base": 1.0, "depth8": 1.4, "dim256": 1.4, "side128": 2.5}  #: between measured and predicted growth from base
MODELS = {"base": (128, 4, 64), "depth8": (128, 8, 64), "dim256": (256, 4, 64), "side128": (128, 4, 128)}


@pytest.fixture(scope="module")
def model():
    return build("vit", TINY)


@functools.cache
def known_of(**fields):
    """The model and its operands."""
    model = build("vit", fields)
    return model, sites(model.forward, model.shapes(), model.image)


def planned(method, options):
    _, known = known_of(**TINY)
    return known, resolve(method.recipe(options, known), known)


@pytest.fixture(scope="module")
def trained():
    """What VVTQ asks for on the tiny model: the only long trace here."""
    return planning.workload(TINY, vvtq, vvtq.Options(batch=8))


def counted(method, options, rows=16, tile=(1, 1), **fields):
    model, known = known_of(**(fields or TINY))
    return demand.counted_in(known, model, method, options, rows, tile)


# What a model asks for


def test_parameters_and_macs_are_those_of_the_formulas():
    """ViT-B/16: 86,567,656 parameters (timm); MACs by hand."""
    w = counted(igq, igq.Options(), **planning.MODELS["vit_b"])
    n, d = 197, 768
    assert w.params == 86_567_656
    assert w.macs == 12 * (12 * n * d * d + 2 * n * n * d) + 196 * d * d + 1000 * d
    assert (w.rows, w.keys, w.stream) == (12 * 12 * n, n, n * d)


def test_wide_parameters_are_those_of_the_rules():
    d, h = 16, 64
    w = counted(igq, igq.Options())
    assert w.wide == 4 * ((3 * d * d + 3 * d) + d * d + (d * h + h) + h * d)


@pytest.mark.slow
def test_what_is_extrapolated_is_what_a_whole_trace_gives(model, trained):
    assert (trained.kept, trained.residuals) == demand._traced(model, vvtq, vvtq.Options(batch=8), 1, True)
    assert trained.residuals > trained.outs


def test_samples_are_as_large_as_calibration_keeps_them(model):
    options, count = igq.Options(), 3
    known, plan = planned(igq, options)
    images = np.random.default_rng(0).normal(size=(count, *model.image)).astype(np.float32)
    apart = {a: {q.apart} for a, q in plan.items() if known[a].path is None}
    params = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), model.shapes())
    kept = observe(model.forward, params, images, apart, known, values=VALUES)
    leaves = [x for kinds in kept.values() for s in kinds.values() for x in (s.values, s.lower, s.upper)]
    assert planning.workload(TINY, igq, options, count).kept * count == sum(x.nbytes for x in leaves)


@pytest.mark.parametrize("images", [8, 300, 4000])
def test_search_captures_in_as_many_passes_as_it_does(images, monkeypatch):
    memory = 2**22
    monkeypatch.setattr(jobs, "MEMORY", memory)
    known, _ = planned(liu21, liu21.Options())
    pairs = {s: captured.Pair(*both) for s, both in demand.pairs(known).items()}
    shapes = {s: captured._shapes(p, captured._wanted(p, {}, 4)) for s, p in pairs.items()}
    bytes_of = {s: sum(map(captured._bytes, mine)) for s, mine in shapes.items()}
    w = counted(liu21, liu21.Options(), 4)
    assert {p.site: p.captured for p in w.products} == bytes_of
    groups = captured._groups(bytes_of, images, memory)
    alone = [g for g in groups if len(g) == 1 and bytes_of[g[0]] * images > memory]
    assert jobs._groups(w, images) == len(groups) - len(alone)


def test_checkpoints_are_as_large_as_what_is_saved(model, trained):
    options = vvtq.Options(batch=8)
    known, plan = planned(vvtq, options)
    schedule = options.schedule(8)

    def begun(params):
        q = {a: q.init(jnp.ones(known[a].shape), known[a].letters) for a, q in plan.items()}
        tree = {"params": params, "q": q}
        objective = Objective(lambda *a: (jnp.float32(0.0), {}), carried=vvtq.carried(plan, known, tree))
        return beginning(objective, tree, schedule.optimizer(), schedule), q

    progress, q = jax.eval_shape(begun, model.shapes())
    real, scales = demand._bytes(progress), 3 * demand._bytes(q)
    phase = jobs.training(Job("vvtq", options), trained, pod())
    assert real - scales <= phase.saved <= real  # the tracker leaves out the edges, which have 8 bits


def test_a_sweep_is_shorter_by_the_products_in_front():
    options = igq.Options(allocation="bops", candidates=(2, 4))
    job = Job("sweep", options, images=8)
    w = counted(igq, options)
    _, probe = jobs.sweeping(job, w, pod())
    assert probe.steps == 2 * 5 * 4
    at = {p.site: i for i, p in enumerate(w.products)}
    behind = [sum(p.macs for p in w.products[at[a.rpartition(".")[0]] :]) for a in w.grouped]
    assert behind == sorted(behind, reverse=True)
    assert math.isclose(probe.flops, 8 * 2 * sum(behind) / len(behind))
    assert 0.3 < probe.flops / (8 * 2 * w.macs) < 0.8


# Tiles


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((257, 257), 4, 264 * 384),
        ((197, 197), 4, 200 * 256),
        ((12, 411_200), 4, 16 * 411_264),
        ((411_200, 12), 4, 16 * 411_264),  # points along the columns, whatever the order
        ((16, 1370, 88), 4, 16 * 88 * 1408),
        ((384, 8, 128), 4, 384 * 8 * 128),
        ((5,), 4, 128),
        ((3, 1000), 4, 4 * 1024),
        ((10, 1024), 4, 16 * 1024),
        ((17, 1024), 2, 32 * 1024),
        ((33, 1024), 1, 64 * 1024),
        ((12, 1024), 1, 16 * 1024),
        ((0, 3), 4, 0),
    ],
)
def test_padding_by_hand(shape, size, expected):
    assert planning.padded(shape, TPU, size) == expected
    assert planning.padded(shape, (1, 1), size) == math.prod(shape)


@pytest.mark.parametrize(("shape", "size"), [((100, 16, 257, 1), 2_105_344), ((1000, 16, 1370, 1), 89_784_320)])
def test_padding_is_that_of_the_compiler(shape, size):
    """Bytes of an argument in programs that XLA compiled for v5e (benchmarks/compiled.py; jax 0.12.0.1)."""
    assert 4 * planning.padded(shape, TPU) == size


def test_an_image_adds_its_padded_part_to_what_is_kept():
    few, more = (jax.ShapeDtypeStruct((3, n, 2, 17, 17), "float32") for n in (1, 2))
    assert demand._of_image(few, more, (1, 1)) == 4 * 3 * 2 * 17 * 17
    assert demand._of_image(few, more, TPU) == 4 * 3 * min(2 * 24 * 128, 17 * 2 * 128)  # heads may lie along rows
    assert demand._of_image(few, few, TPU) == 0


def test_chips_with_tiles_hold_and_move_more():
    """By hand: 17 tokens, 2 heads of 8 channels, filled up to 128 columns."""
    plain, tiled = (counted(igq, igq.Options(), tile=tile) for tile in ((1, 1), TPU))
    one, two = (next(p for p in w.products if p.site == "block00/attn/qk") for w in (plain, tiled))
    assert one.lying == (2 * 17 * 8, 2 * 17 * 8, 2 * 17 * 17)
    assert two.lying == (8 * 2 * 128, 8 * 2 * 128, 17 * 2 * 128)  # scores: heads along rows pad less
    assert two[1:8] == one[1:8]
    assert tiled.stream == 16 * 128 < plain.stream * 8
    assert (plain.params, plain.wide, plain.macs, plain.outs) == (tiled.params, tiled.wide, tiled.macs, tiled.outs)
    assert plain.recorded == plain.outs < tiled.recorded
    held = [planning.held(jobs.observing(Job("igq", images=8), w, pod())) for w in (plain, tiled)]
    assert held[0] < held[1]


def test_published_tiles():
    assert {name: chip.tile for name, chip in planning.CHIPS.items()} == {"v5e": TPU, "h100": (1, 1), "h200": (1, 1)}


# Clustering


def clustered(images, devices=1, **options):
    made = igq.Options(**{"allocation": "bops", "candidates": (4,), **options})
    w = counted(igq, made)._replace(grouped={"a": (100, 1000)})
    return jobs.clustering(Job("sweep", made, images=images, divided=devices > 1), w, pod(devices))


def test_clustering_by_hand():
    """Points that all restarts see; with more of them, a last run over all of them and values that were left out."""
    few = clustered(2)
    assert few.traffic == 9 * 4 * (30 * 4 * 200 + 97 * 200) + 4 * 97 * 2000
    assert few.ops == 6 * 4 * 30 * 4 * 200 + 10 * 97 * 2000
    many, p = clustered(1000), 100_000
    looked = 97 * (2**18 + 2 * p)
    assert many.traffic == 9 * 4 * (30 * (4 * 2**13 + p) + 97 * p) + 4 * looked
    assert planning.held(many) == 4 * (4 + 9) * p


def test_clustering_tries_what_the_search_by_error_tries():
    assert len(ranges._moves(32, 2)) == jobs.TRIED


def test_divided_clustering_takes_a_part_of_the_steps():
    whole, parts = (
        jobs.clustering(Job("sweep", images=8, divided=d), counted(igq, igq.Options()), pod(8)) for d in (False, True)
    )
    assert (whole.steps, parts.steps) == (4 * 5 * 9, 4 * 5 * 9 // 8 + 1)
    assert (whole.alone, parts.alone) == (True, False)
    assert whole.traffic == parts.traffic


# Closed form


def pod(data=1, model=1, sharded=False, chip=CHIP, **assumed):
    return Pod(chip, data, model, sharded, dataclasses.replace(BARE, **assumed))


@pytest.mark.parametrize(
    ("phase", "expected", "what"),
    [
        (Phase("a", 10, flops=200), 20.0, "products"),
        (Phase("a", 10, flops=200, ops=300), 30.0, "vector"),
        (Phase("a", 10, flops=200, traffic=200), 40.0, "bandwidth"),
        (Phase("a", 10, flops=200, staged=10), 30.0, "products"),
        (Phase("a", 10, flops=100, blocking=50), 30.0, "blocking"),
        (Phase("a", 10, flops=300, exchanged=25), 30.0, "products"),  # hidden behind two thirds of the step
        (Phase("a", 10, flops=300, exchanged=100), 50.0, "gradients"),
        (Phase("a", 10, flops=100, images=4), 21.0, "decoding"),  # two seconds each, and the last step
        (Phase("a", 10, flops=100, saved=20, every=5), 10.0 + 2 * 1 + 5, "products"),
        (Phase("a", 10, flops=100, saved=80, every=5), 10.0 + 2 * 4 + 15 + 20, "checkpoints"),
        (Phase("a", 10, flops=100, programs=2), 10.0 + 2 * 20, "compiling"),
    ],
)
def test_times_by_hand(phase, expected, what):
    mine = pod(compiling=20.0)
    assert math.isclose(planning.seconds(mine, phase), expected)
    assert planning.binding(mine, phase) == what


def test_the_slowest_device_is_later_by_a_harmonic_number():
    phase, jitter = Phase("a", 1, flops=100), 0.06
    assert math.isclose(planning.seconds(pod(2, 2, jitter=jitter), phase), 1 + jitter * (1 + 1 / 2 + 1 / 3 + 1 / 4))
    assert math.isclose(planning.seconds(pod(2, 2, jitter=jitter), dataclasses.replace(phase, alone=True)), 1 + jitter)


def test_hosts_share_the_decoding_or_not():
    phase = Phase("a", 1, images=8)
    t = {s: planning.times(pod(8, sharded=s), phase).decoding for s in (False, True)}
    assert t == {False: 4.0, True: 1.0}  # two images a second, four hosts
    assert planning.times(pod(8, sharded=True), dataclasses.replace(phase, whole=True)).decoding == 4.0


def test_parts_of_wide_weights_need_less_memory_and_more_exchange(trained):
    w, job = trained, Job("vvtq", vvtq.Options(batch=8))
    one, two = (jobs.training(job, w, pod(4 // m, m)) for m in (1, 2))
    assert planning.held(two) * 4 // 2 < planning.held(one) * 4  # twice the images on a device
    assert one.blocking == 0 < two.blocking
    assert two.exchanged < one.exchanged
    assert two.held["parameters"] == 4 * (w.params - w.wide / 2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda w: planning.pod_of("v5", 64), "did you mean 'v5e'"),
        (lambda w: planning.pod_of("v5e", 64, 3), "does not divide 64"),
        (lambda w: Job("igg"), "did you mean 'igq'"),
        (lambda w: jobs.training(Job("vvtq"), w, pod(3)), "into 3 equal"),
    ],
)
def test_mistakes_are_named(make, said, trained):
    with pytest.raises(ValueError, match=said):
        make(trained)


# Simulation


def grid():
    """Phases in which each part is less than, near and more than the others, on pods of several shapes."""
    exchanges = (0.0, 60.0, 250.0, 900.0)
    parts = itertools.product(((1, 1), (8, 1), (4, 4), (64, 1)), exchanges, exchanges, (0, 30, 100, 300), (0, 25))
    for (data, model), blocking, exchanged, images, every in parts:
        if (model > 1) == bool(blocking):
            work = Phase("a", 100, 1000.0, 500.0, 400.0, blocking, exchanged, 20.0)
            mine = pod(data, model, data > 4, jitter=0.02, readers=4, ahead=3, disk=2.0)
            yield (
                mine,
                dataclasses.replace(work, images=images * (mine.hosts if data > 4 else 1), saved=900.0, every=every),
            )


def test_closed_form_is_near_the_simulation():
    cases = list(grid())
    assert len(cases) > 150
    ratios = [planning.simulated(p, phase) / planning.seconds(p, phase) for p, phase in cases]
    worst = max(range(len(cases)), key=lambda i: abs(math.log(ratios[i])))
    assert abs(ratios[worst] - 1) < MARGIN, (ratios[worst], cases[worst])
    assert {planning.binding(*case) for case in cases} >= {
        "products",
        "blocking",
        "gradients",
        "decoding",
        "checkpoints",
    }


def test_simulations_of_one_seed_are_the_same():
    mine, phase = list(grid())[30]
    assert planning.simulated(mine, phase, 1) == planning.simulated(mine, phase, 1)
    assert planning.simulated(mine, phase, 1) != planning.simulated(mine, phase, 2)


@pytest.mark.parametrize("kind", planning.KINDS)
def test_plans_of_all_methods_are_near_their_simulation(kind, trained):
    method = METHODS["igq" if kind == "sweep" else kind]
    options = method.Options(batch=32, epochs=1) if hasattr(method, "TRAINS") else None
    job = Job(kind, options, images=64, evaluated=1000, trained=10_000)
    w = trained._replace(grouped=counted(igq, igq.Options()).grouped)
    mine = planning.pod_of("v5e", 8, assumed=Assumed(compiling=0.0))
    plan = planning.phases(job, w, mine)
    assert [p.name for p in plan][:2] == ["read", "observe"]
    ratio = sum(planning.simulated(mine, p) for p in plan) / sum(planning.seconds(mine, p) for p in plan)
    assert abs(ratio - 1) < MARGIN


# What was measured


@pytest.fixture(scope="module")
def rows():
    return growth.rows(PAGE.read_text("utf-8"))


@pytest.fixture(scope="module")
def rates(rows):
    return growth.rates([row for row in rows if row.model == growth.BASE], MODELS)


def test_every_method_was_measured_on_every_model(rows):
    methods = "minmax", "igq", "sweep", "liu21", "vvtq", "evaluate"
    for method, name in itertools.product(methods, MODELS):
        assert len([row for row in rows if row[:2] == (method, name)]) >= 2, (method, name)


def test_rates_are_found_again():
    """From rows that are sums of what is asked for; one rate is nothing, the others are seven digits apart."""
    known, made = growth.Rates(1e-11, 0.0, 5e-10, 2e-11, 1e-4), []
    for method, images in itertools.product(("minmax", "igq", "liu21"), (32, 64)):
        row = growth.Row(method, "base", images, 1.0, 1.0)
        forward = sum(a * b for a, b in zip(growth._forward(MODELS["base"], images), known, strict=True))
        made.append(row._replace(seconds=growth.expected(row, known, MODELS), forward=forward))
    assert np.allclose(growth.rates(made, MODELS), known, rtol=1e-6, atol=1e-18)


@pytest.mark.parametrize("method", ["igq", "sweep", "liu21", "evaluate", pytest.param("vvtq", marks=pytest.mark.slow)])
def test_growth_is_as_measured(method, rows, rates):
    """From base, whose rows the rates are fitted to, to other models, whose rows they are not; not of min-max, which
    docs/scale.md says the model does not know."""
    mine = {row[1:3]: row for row in rows if row.method == method}
    for (name, images), row in mine.items():
        first = mine[growth.BASE, images]
        said = growth.expected(row, rates, MODELS) / growth.expected(first, rates, MODELS)
        ratio = row.seconds / first.seconds / said
        assert 1 / GROWTH[name] <= ratio <= GROWTH[name], (name, images, ratio)


@pytest.mark.slow
def test_the_errors_are_those_that_the_page_has(rows):
    assert "\n".join(growth.errors(rows, MODELS)) in PAGE.read_text("utf-8")
