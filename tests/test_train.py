"""The training loop: it converges, says what it does, and updates as AdamW written out in NumPy does."""

import itertools
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.checkpoints import Keeper
from jvq.metrics import Log
from jvq.schedule import Schedule
from jvq.train import Objective, averaged, fit, run

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


def quadratic(trained, fixed, batch, key):
    """Squared distance of "kernel" from each row of the batch, plus what is fixed; noise from the key."""
    noise = jax.random.normal(key, ()) * 0.01
    return jnp.square(trained["kernel"] - batch["x"] + noise).mean() + fixed, {"noise": noise}


def rows(count, n=8):
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(1, 1, (n, 3)).astype(np.float32)} for _ in range(count)]


BEGIN = {"kernel": jnp.zeros((1, 3)), "q": {"w": {"scale": jnp.ones(()), "low": jnp.float32(-2)}}}


def trained_by(objective, steps=6, devices=None, **changes):
    schedule = Schedule(steps, learning_rate=0.1, **{"warmup": 0.0, "clip": None, **changes})
    return run(objective, BEGIN, lambda start: rows(steps)[start:], schedule, KEY, devices=devices)


@pytest.mark.parametrize("rule", ["adamw", "lamb"])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(rule):
    def still(trained, fixed, batch, key):
        return jnp.square(trained["kernel"] - batch["x"]).mean(), {}

    whole, parts = (trained_by(Objective(still), rule=rule, accumulate=n).trained for n in (1, 4))
    np.testing.assert_allclose(parts["kernel"], whole["kernel"], rtol=1e-5)
    assert float(jnp.abs(whole["kernel"]).min()) > 0.05


def test_rows_that_do_not_go_into_the_parts_are_an_error():
    with pytest.raises(ValueError, match=r"\{8\} rows cannot be split into 3 equal parts"):
        trained_by(Objective(quadratic, jnp.float32(0)), accumulate=3)


def test_the_moving_average_is_that_of_the_parameters():
    def watch(trained, carried, step):
        return trained, carried.at[step].set(trained["kernel"]), {}

    watched = Objective(quadratic, jnp.float32(0), after=watch, carried=jnp.zeros((4, 1, 3)))
    progress = trained_by(watched, steps=4, ema=0.5)
    average = np.zeros((1, 3))
    for kernel in np.asarray(progress.carried):
        average = 0.5 * average + 0.5 * kernel
    np.testing.assert_allclose(averaged(progress)["kernel"], average, rtol=1e-5)
    assert averaged(trained_by(watched, steps=4))["kernel"].tolist() == progress.trained["kernel"].tolist()


def test_a_regularizer_adds_its_gradient_and_its_share_is_logged(tmp_path):
    def pull(trained, step):
        return 0.5 * jnp.square(trained["kernel"] - 3).sum(), {"at": step}

    def flat(trained, fixed, batch, key):
        return (2.0 * trained["kernel"]).sum(), {}

    log = tmp_path / "log.jsonl"
    schedule = Schedule(1, learning_rate=0.1, warmup=0.0, clip=None)
    run(Objective(flat, regularizer=pull), BEGIN, lambda s: rows(1), schedule, KEY, log=Log(log), every=1)
    (line,) = [json.loads(text) for text in log.read_text().splitlines()]
    assert line["rho"] == pytest.approx(3 / 2), "both over the kernel alone"
    assert line["regularizer"] == pytest.approx(0.5 * 27)
    assert line["at"] == 0


def test_what_follows_an_update_sees_and_changes_it():
    def after(trained, carried, step):
        return {**trained, "kernel": jnp.maximum(trained["kernel"], 0.5)}, carried + 1, {}

    progress = trained_by(Objective(quadratic, jnp.float32(0), after=after, carried=jnp.int32(0)))
    assert float(progress.trained["kernel"].min()) >= 0.5
    assert (int(progress.carried), int(progress.step), bool(progress.failed)) == (6, 6, False)


def test_constants_of_a_quantiser_stay():
    def pulls(trained, fixed, batch, key):
        return trained["q"]["w"]["low"] * 3 + trained["q"]["w"]["scale"] + trained["kernel"].sum(), {}

    found = trained_by(Objective(pulls), weight_decay=0.1).trained["q"]["w"]
    assert float(found["low"]) == -2
    assert float(found["scale"]) < 0.9


def test_interrupted_and_resumed_is_uninterrupted(tmp_path):
    objective = Objective(quadratic, jnp.float32(0))
    schedule, begun = Schedule(9, learning_rate=0.1, ema=0.9), []

    def stream(start, end=9):
        begun.append(start)
        yield from rows(9)[start:end]
        if end < 9:
            raise KeyboardInterrupt

    whole = run(objective, BEGIN, stream, schedule, KEY, log=Log(tmp_path / "whole.jsonl"), every=1)
    keeper = Keeper(tmp_path / "kept", {}, every=2)
    log = tmp_path / "torn.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(objective, BEGIN, lambda s: stream(s, 5), schedule, KEY, keeper=keeper, log=Log(log), every=1)
    keeper.close()
    keeper = Keeper(tmp_path / "kept", {}, every=2)
    again = run(objective, BEGIN, stream, schedule, KEY, keeper=keeper, log=Log(log), every=1)
    keeper.close()
    assert begun == [0, 0, 4]
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    lines = [
        [json.loads(t) for t in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("whole", "torn")
    ]
    for a, b in zip(*lines, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_a_finite_loss_with_a_gradient_that_is_not_names_the_parameter():
    def root(trained, fixed, batch, key):
        return jnp.sqrt(trained["kernel"]).sum(), {}

    with pytest.raises(ValueError, match=r"step 1: the loss is 0\.0.*the gradient of kernel; lower"):
        trained_by(Objective(root))


TWO = """
import jax, jax.numpy as jnp, numpy as np
from jvq.checkpoints import Keeper
from jvq.metrics import Log
from jvq.schedule import Schedule
from jvq.train import Objective, run

def loss(trained, fixed, batch, key):
    return jnp.square(batch["x"] @ trained["kernel"] - batch["y"]).mean(), {}

def batches(start):
    for i in range(start, 5):
        rng = np.random.default_rng(i)
        yield {n: rng.normal(size=(8, 4)).astype(np.float32) for n in "xy"}

assert len(jax.devices()) == 2
KEY = jax.random.key(0)
found = [
    run(Objective(loss), {"kernel": jnp.zeros((4, 4))}, batches, Schedule(5, accumulate=a), KEY, devices=n)
    for n, a in ((1, 1), (2, 1), (2, 2))
]
assert len(found[1].trained["kernel"].sharding.device_set) == 2
for other in found[1:]:
    np.testing.assert_allclose(other.trained["kernel"], found[0].trained["kernel"], rtol=1e-5, atol=1e-7)
print("same")
"""


def test_two_devices_train_as_one():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", TWO], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "same", done.stderr
