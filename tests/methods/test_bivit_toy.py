"""Bi-ViT end to end on the toy of the specification (section 8, T1 and T2): a model of one bit looks values up.

Eight tokens hold a key and a value each, a ninth asks for the value of one key. A float ViT of two blocks, 32 channels
and two heads answers always right; students of one bit begin with its weights and are trained on labels. Each of an
image's nine pixels is a token, its channels are key and value as one-hots. Numbers in comments are of seeds 0 and 1.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.calibrate import calibrate
from jvq.core.dot import float_dot, quantized
from jvq.core.recipe import resolve, sites
from jvq.evaluate_order import order_agreement
from jvq.methods import bivit
from jvq.models import build
from jvq.models.altering import altered
from jvq.tapes import on_tapes
from jvq.train import Objective, beginning, stepper

pytestmark = pytest.mark.slow
KEYS, VALUES, DIM, BATCH, SEEDS = 8, 6, 32, 64, (0, 1)
SPEC = {
    "image": (3, 3), "channels": KEYS + VALUES, "patch": 1, "dim": DIM, "depth": 2, "heads": 2,
    "classes": 0, "class_token": False, "pool": "none",
}  # fmt: skip
FLOAT = build("vit", SPEC)
MAPS = ["block00/attn/pv.p", "block01/attn/pv.p"]
#: labels alone; Adam, as there is no decay
LEARNING: dict[str, Any] = dict(distillation="none", learning_rate=1e-3, batch=BATCH)
RANKED: dict[str, dict[str, Any]] = {  # T2; the first without the ranking loss
    "plain": dict(gamma=0.0, steps=1500),
    "margin": dict(gamma=3.0, theta=0.1, steps=1500),
    "no margin": dict(gamma=3.0, theta=0.0, steps=1500),
}


class Found(NamedTuple):
    """What became of a student."""

    before: float  # accuracy of the first step's model
    accuracy: float
    tau: list[float]  # by layer: Kendall's, of all rows of the map before it is binarised, to the teacher's
    start: Any  # by layer, the state of the map's quantiser: before training
    state: Any  # and after


@pytest.fixture(autouse=True)
def optax_is_not_strict():
    """Its bias correction raises a float to an integer array."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def draw(key, count):
    """Images [b y x c] and labels: every key once in random order, values at random, then the key that is asked for."""
    order, value, place = jax.random.split(key, 3)
    keys = jnp.argsort(jax.random.uniform(order, (count, KEYS)), axis=1)
    values = jax.random.randint(value, (count, KEYS), 0, VALUES)
    at = jax.random.randint(place, (count, 1), 0, KEYS)
    asked, label = (jnp.take_along_axis(x, at, axis=1) for x in (keys, values))
    first = jax.nn.one_hot(jnp.concatenate([keys, asked], axis=1), KEYS)
    second = jnp.pad(jax.nn.one_hot(values, VALUES), ((0, 0), (0, 1), (0, 0)))
    return {"image": jnp.concatenate([first, second], axis=-1).reshape(count, 3, 3, -1), "label": label[:, 0]}


def answering(model):
    """The model's forward: what the token that asks says, through a float head."""

    def forward(params, images, dot=float_dot):
        tokens = model.forward(params, images, dot)
        return dot("head", "bd,do->bo", x=tokens[:, KEYS], w=params["head"]["kernel"])

    return forward


answer = answering(FLOAT)


def training(options, forward, plan, known):
    """``train(begin, teacher, key)``, jitted: what is trained after all steps, and whether all was finite."""
    schedule = options.schedule(0)
    optimizer = schedule.optimizer()
    loss = on_tapes(
        bivit.tape_loss(options, known),
        lambda params, x, dot: forward(params, x, dot)[:, None],
        plan,
        lambda key, images: images,
        where=frozenset(bivit.watched(options, known)).__contains__,
        teacher=(lambda params, x, dot: answer(params, x, dot)[:, None]) if bivit.beside(options) else None,
        heads=True,
    )

    def train(begin, teacher, key):
        carried = bivit.carried(plan, known, begin)
        objective = Objective(loss, after=bivit.after(options, plan, known), carried=carried)
        step = stepper(objective, optimizer, schedule)

        def one(progress, i):
            drawn = jax.random.fold_in(key, i)
            progress, metrics = step(progress, teacher, draw(drawn, BATCH), drawn)
            return progress, metrics["finite"]

        start = beginning(objective, begin, optimizer, schedule)
        progress, finite = jax.lax.scan(one, start, jnp.arange(schedule.steps))
        return progress.trained, finite.all()

    return jax.jit(train)


@functools.cache
def unseen():
    return draw(jax.random.key(99), 4096)


def accuracy(forward, params, plan, qstate):
    found = jax.jit(lambda p, q, x: forward(p, x, quantized(plan, q)))(params, qstate, unseen()["image"])
    return float((found.argmax(axis=1) == unseen()["label"]).mean())


@functools.cache
def teachers():
    """Parameters by seed: 500 steps from scratch."""
    train = training(bivit.Options(**LEARNING, gamma=0.0, steps=500), answer, {}, {})
    found = []
    for seed in SEEDS:
        key, head = jax.random.split(jax.random.key(seed))
        kernel = DIM**-0.5 * jax.random.normal(head, (DIM, VALUES))
        params = {**FLOAT.init(key), "head": {"kernel": kernel}}
        trained, finite = train({"params": params, "q": {}}, (), key)
        assert finite
        found.append(trained["params"])
    return found


@functools.cache
def students(name):
    """What became of each seed's student under the preset, or the ranking, of that name."""
    options = bivit.Options(**LEARNING, **(RANKED.get(name) or {**bivit.PRESETS[name], "steps": 2000}))
    fields = bivit.student(options, sites(answer, teachers()[0], FLOAT.image))
    model, shape = altered(FLOAT, teachers()[0], **fields)
    forward = answering(model)
    known = sites(forward, shape, model.image)
    plan = resolve(bivit.recipe(options, known), known)
    train, found = training(options, forward, plan, known), []
    for seed, teacher in zip(SEEDS, teachers(), strict=True):
        key = jax.random.fold_in(jax.random.key(seed), 1)
        _, params = altered(FLOAT, teacher, **fields)
        images = np.asarray(draw(key, BATCH)["image"])
        begin = {"params": params, "q": calibrate(forward, params, images, plan, known, batch=BATCH)}
        trained, finite = train(begin, teacher, jax.random.fold_in(key, 2))
        assert finite
        rows = np.asarray(unseen()["image"][:512])
        tau = order_agreement(
            (answer, teacher), (forward, trained["params"]), plan, trained["q"], known, rows, rows=KEYS + 1, batch=512
        )
        found.append(
            Found(
                accuracy(forward, params, plan, begin["q"]),
                accuracy(forward, trained["params"], plan, trained["q"]),
                [tau[a] for a in MAPS],
                [jax.device_get(begin["q"][a]) for a in MAPS],
                [jax.device_get(trained["q"][a]) for a in MAPS],
            )
        )
    return found


def test_the_teachers_answer_always_right():
    for params in teachers():
        assert accuracy(answer, params, {}, {}) == 1


def test_a_sign_of_the_map_asks_all_alike():
    """T1: no more than whoever names the most frequent value, 0.366, and does not see which key is asked for."""
    values = unseen()["image"].reshape(-1, KEYS + 1, KEYS + VALUES)[:, :KEYS, KEYS:]
    guess = float(values.sum(axis=1).max(axis=1).mean()) / KEYS
    for found in students("sign"):  # 0.336, 0.326
        assert found.accuracy < 0.5
        assert found.accuracy == pytest.approx(guess, abs=0.08)


@pytest.mark.parametrize(("preset", "least"), [
    ("scale", 0.98),  # 1.000, 1.000
    ("release", 0.98),  # 1.000, 0.999
    ("half", 0.9),  # 0.990, 0.974: of nine keys one has half of a row often enough
])  # fmt: skip
def test_maps_of_two_levels_learn_to_look_up(preset, least):
    """T1."""
    for found in students(preset):
        assert found.accuracy > least
        assert found.before < 0.4, "training did it"  # 0.20 to 0.25


def test_scales_leave_four_ninths_up_in_the_first_layer_and_down_in_the_second():
    for found in students("scale"):
        np.testing.assert_allclose([s["scale"] for s in found.start], 4 / (KEYS + 1), rtol=1e-5)
        first, second = (s["scale"] for s in found.state)
        assert first.min() > 0.55  # 0.65 to 0.69
        assert second.max() < 0.35  # 0.21 to 0.24


def test_the_released_zero_point_makes_steps_of_its_constant_map_where_it_is_needed():
    """T1: only the first layer's reaches -1; the second's map stays constant, and its scale goes to 0."""
    for found in students("release"):
        assert all((np.round(s["offset"]) == 0).all() for s in found.start)
        first, second = found.state
        assert (first["offset"] < -0.5).any()  # all: -0.60 to -0.58
        assert (np.round(second["offset"]) == 0).all()  # 0.06 to 0.08
        assert second["scale"].max() < 0.01


@pytest.mark.parametrize("name", ["margin", "no margin"])
def test_ranking_brings_the_teachers_order(name):
    """T2: in both layers; without a margin the first layer's gain is 0.12 to 0.20 (six seeds), else 0.19 to 0.27."""
    plain, ranked = students("plain"), students(name)
    gains = np.array([np.subtract(b.tau, a.tau) for a, b in zip(plain, ranked, strict=True)])
    assert gains.mean(axis=0).min() >= 0.1  # first layer 0.48 to 0.68 and 0.60, second 0.15 to 0.51 and 0.34
    assert gains.min() >= (0.1 if name == "margin" else 0.05)
    assert min(found.accuracy for found in ranked) > 0.93  # 0.992, 0.998; 1.000, 0.998: no better than without
