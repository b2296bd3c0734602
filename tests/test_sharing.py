"""What rows of a table share changes none of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import evaluate, rows, sharing
from jvq.core.calibrate import calibrate
from jvq.core.recipe import sites
from jvq.methods import igq, minmax
from jvq.models import build
from jvq.models.altering import altered
from jvq.models.weights import Checkpoint
from jvq.report import Console
from jvq.rows import Material

TINY = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
QUICK = {"start": "quantile", "restarts": 1, "mstep": "cover", "weight_range": "max"}  # what compiles fast
OPTIONS = {
    "two": igq.Options(groups=2, **QUICK),
    "five": igq.Options(groups=5, bits=3, **QUICK),
    "other": igq.Options(groups=2, distance="relative", qkv_range="max", **QUICK | {"mstep": "mean"}),
    "absolute": igq.Options(groups=2, distance="absolute", **QUICK),
}


@pytest.fixture(scope="module")
def tiny():
    model, rng = build("vit", TINY), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), jnp.float32), model.shapes())
    images = rng.normal(size=(6, 8, 8, 1)).astype(np.float32)
    return Checkpoint(model, params, {}, {}), images, sites(model.forward, params, model.image)


@pytest.fixture(scope="module")
def found(tiny, tmp_path_factory):
    checkpoint, images, known = tiny
    plans = {
        ("W4A4", name): rows.Row(name, igq, options, rows.planned("igq", options, "", known))
        for name, options in OPTIONS.items()
    }
    workdir, console = tmp_path_factory.mktemp("journals"), Console(quiet=True)
    nothing: Any = None  # nothing here is trained
    return plans, sharing.fitted(plans, Material(checkpoint, known, images, nothing, nothing, workdir, console))


@pytest.mark.once
def test_rows_fitted_together_are_as_fitted_alone(tiny, found):
    checkpoint, images, known = tiny
    plans, fits = found
    for key, row in plans.items():
        assert fits[key].plan == row.plan
        alone = calibrate(checkpoint.model.forward, checkpoint.params, images, row.plan, known)
        jax.tree.map(np.testing.assert_array_equal, dict(fits[key].qstate), alone)


def test_plans_of_one_form_share_an_executable_and_give_the_same(tiny, found):
    checkpoint, images, _ = tiny
    plans, fits = found
    runners = sharing.Runners(evaluate.runner, checkpoint, 5)
    for key in plans:
        fit = fits[key]
        got = runners.model(plans[key], fit)(jnp.asarray(images))
        want = evaluate.runner(checkpoint.model.forward, fit.plan)(checkpoint.params, fit.qstate, jnp.asarray(images))
        np.testing.assert_array_equal(got, want)
    assert len(runners.made) == 2, "one for squared distances, one for absolute ones"
    assert sum(run._cache_size() for run in runners.made.values()) == 2


@pytest.fixture(scope="module")
def two_models(tiny, tmp_path_factory):
    """Rows of one plan, of the model that was opened and of one that bounds what its second layer sees; their fits."""
    checkpoint, images, known = tiny
    model, params = altered(checkpoint.model, checkpoint.params, clip=0.05)
    own = rows.subject_of(Checkpoint(model, params, {}, {}))
    plan = rows.planned("minmax", minmax.Options(), "", known)
    plans = {("W8A8", n): rows.Row(n, minmax, minmax.Options(), plan, s) for n, s in (("plain", None), ("own", own))}
    nothing: Any = None
    material = Material(
        checkpoint, known, images, nothing, nothing, tmp_path_factory.mktemp("own"), Console(quiet=True)
    )
    return plans, own, sharing.fitted(plans, material)


def test_a_row_is_fitted_on_its_own_model(tiny, two_models):
    checkpoint, images, known = tiny
    plans, own, fits = two_models
    for (_, name), row in plans.items():
        subject = row.subject(checkpoint, known)
        assert subject is own if name == "own" else subject == (checkpoint, known)
        mine = subject.checkpoint
        want = calibrate(mine.model.forward, mine.params, images, row.plan, subject.known)
        jax.tree.map(np.testing.assert_array_equal, dict(fits["W8A8", name].qstate), want)
    scales = {name: float(fits["W8A8", name].qstate["block00/mlp/fc2.x"]["scale"]) for _, name in plans}
    assert scales["own"] < 0.5 * scales["plain"]


def test_plans_of_one_form_and_two_models_share_nothing(tiny, two_models):
    """Whichever is asked for first."""
    checkpoint, images, _ = tiny
    plans, own, fits = two_models
    x, got = jnp.asarray(images), {}
    for order in (list(plans), list(plans)[::-1]):
        runners = sharing.Runners(evaluate.runner, checkpoint, 1)
        found = {key: runners.model(plans[key], fits[key])(x) for key in order}
        assert len(runners.made) == 2
        for (_, name), y in found.items():
            np.testing.assert_array_equal(got.setdefault(name, y), y)
    for (_, name), mine in zip(plans, (checkpoint, own.checkpoint), strict=True):
        fit = fits["W8A8", name]
        want = evaluate.runner(mine.model.forward, fit.plan)(mine.params, fit.qstate, x)
        np.testing.assert_array_equal(got[name], want)
    assert np.abs(np.asarray(got["own"] - got["plain"])).max() > 1e-3
