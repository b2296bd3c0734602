"""The training loop: it converges, says what it does, and updates as AdamW written out in NumPy does."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.train import Schedule, fit

KEY = jax.random.key(3)


@pytest.fixture(scope="module", autouse=True)
def optax_is_not_strict():
    """Its bias correction raises a float to an integer array."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def regression(params, batch, key):
    """Squared error of a line, and a number drawn from the step's key."""
    error = batch["x"] * params["kernel"] + params["bias"] - batch["y"]
    return jnp.square(error).mean(), {"drawn": jax.random.uniform(key)}


def line(count, n=16):
    x = np.linspace(-1, 1, n, dtype=np.float32)
    return [{"x": x, "y": 3 * x - 1}] * count


def start():
    return {"kernel": jnp.float32(0), "bias": jnp.float32(0)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The parameters after 100 steps, the log's lines, and what ``on_step`` was told."""
    log, told = tmp_path_factory.mktemp("train") / "metrics.jsonl", []
    params = start()
    schedule = Schedule(100, learning_rate=0.3, weight_decay=0.0)
    done = fit(
        regression, params, line(100), schedule, KEY, log=log, every=40, on_step=lambda *numbers: told.append(numbers)
    )
    return params, done, [json.loads(text) for text in log.read_text().splitlines()], told, schedule


def test_a_line_is_found(trained):
    _, done, lines, _, _ = trained
    assert done["kernel"] == pytest.approx(3, abs=0.02)
    assert done["bias"] == pytest.approx(-1, abs=0.02)
    assert lines[-1]["loss"] < 1e-3 < lines[0]["loss"]


def test_the_callers_parameters_are_left_alone(trained):
    params, done, *_ = trained
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))
    assert {name: float(x) for name, x in params.items()} == {"kernel": 0.0, "bias": 0.0}
    assert float(done["kernel"]) != 0


def test_steps_are_logged_as_json_lines_and_told(trained):
    _, _, lines, told, schedule = trained
    assert [entry["step"] for entry in lines] == [40, 80, 100]
    assert all(set(entry) == {"step", "loss", "drawn", "rate", "seconds"} for entry in lines)
    assert told == [(entry["step"], {"loss": entry["loss"], "drawn": entry["drawn"]}) for entry in lines]
    assert [entry["rate"] for entry in lines] == [float(schedule.rate()(entry["step"] - 1)) for entry in lines]
    assert lines[0]["seconds"] <= lines[1]["seconds"] <= lines[2]["seconds"]


def test_step_i_draws_from_the_keys_ith_child(trained):
    for entry in trained[2]:
        assert entry["drawn"] == float(jax.random.uniform(jax.random.fold_in(KEY, entry["step"] - 1)))


def test_the_rate_warms_up_linearly_and_decays_to_zero_by_a_cosine():
    rate = Schedule(100, learning_rate=0.2, warmup=0.1).rate()
    found = [float(rate(i)) for i in range(101)]
    assert found[:11] == pytest.approx([0.02 * i for i in range(11)], rel=1e-5)
    assert found[55] == pytest.approx(0.1, rel=1e-5)
    assert found[100] == pytest.approx(0, abs=1e-8)
    assert all(a > b for a, b in itertools.pairwise(found[10:]))


@pytest.mark.parametrize("steps", [1, 2])
def test_very_short_schedules_have_finite_rates(steps):
    rate = Schedule(steps).rate()
    assert all(math.isfinite(rate(i)) for i in range(steps + 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_training(bad, tmp_path):
    batches = [{"x": np.float32([1]), "y": np.float32([1])}, {"x": np.float32([bad]), "y": np.float32([1])}] * 2
    log = tmp_path / "log"
    with pytest.raises(ValueError, match=r"training step 2: the loss is (nan|inf).*learning_rate"):
        fit(regression, start(), batches, Schedule(4), KEY, log=log, every=1)
    assert [json.loads(text)["step"] for text in log.read_text().splitlines()] == [1]


def test_too_few_batches_are_an_error():
    with pytest.raises(ValueError, match="wanted 5 steps, the batches ended after 3"):
        fit(regression, start(), line(3), Schedule(5), KEY)


def test_batches_beyond_the_schedule_are_not_used():
    def batches():
        yield from line(2)
        yield {"x": np.float32([np.nan]), "y": np.float32([np.nan])}

    fit(regression, start(), batches(), Schedule(2), KEY)


TREE = {"mlp": {"kernel": (3, 2), "bias": (2,)}, "norm": {"scale": (3,)}, "pos": (1, 2, 3), "cls": (1, 1, 3)}
DECAYED = ("mlp", "kernel")
FACTORS = np.float32([1, -0.5, 2, 0.3, 1.5])  # of the gradient, step by step: equal ones would hide the moments' decay


def adamw(params, slopes, schedule):
    """``params`` after AdamW with global clipping (betas 0.9 and 0.98), flat dicts in float64."""
    rate, m, v = schedule.rate(), {}, {}
    for i, factor in enumerate(FACTORS.astype(np.float64)):
        grads = {name: factor * slope for name, slope in slopes.items()}
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, p in params.items():
            g = grads[name] * min(1.0, schedule.clip / norm)
            m[name] = 0.9 * m.get(name, 0) + 0.1 * g
            v[name] = 0.98 * v.get(name, 0) + 0.02 * g**2
            step = m[name] / (1 - 0.9 ** (i + 1)) / (np.sqrt(v[name] / (1 - 0.98 ** (i + 1))) + 1e-8)
            if name == DECAYED:
                step = step + schedule.weight_decay * p
            params = {**params, name: p - float(rate(i)) * step}
    return params


def flat(tree):
    return {
        tuple(k.key for k in path): np.asarray(x, np.float64) for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_updates_are_adamws_and_only_kernels_decay(clip, rng):
    shapes = jax.tree.map(lambda shape: shape, TREE, is_leaf=lambda x: isinstance(x, tuple))
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params, slopes = (jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple)) for _ in range(2))

    def loss(params, batch, key):
        return batch["by"] * sum(jax.tree.leaves(jax.tree.map(lambda p, s: (p * s).sum(), params, slopes))), {}

    schedule = Schedule(5, learning_rate=0.1, warmup=0.4, weight_decay=0.7, clip=clip)
    got = flat(fit(loss, params, [{"by": factor} for factor in FACTORS], schedule, KEY))
    want = adamw(flat(params), flat(slopes), schedule)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=str(name))
    undecayed = adamw(flat(params), flat(slopes), Schedule(5, 0.1, 0.4, 0.0, clip))
    assert not np.allclose(got[DECAYED], undecayed[DECAYED], atol=1e-3)
