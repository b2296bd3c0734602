"""Losses on two tapes: what is on them, what bfloat16 touches, and where the first value is that is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq import tapes
from jvq.core.dot import float_dot
from jvq.core.recipe import sites

KEY = jax.random.key(0)
KERNELS = {"a": (4, 6), "b": (6, 3)}


def forward(params, x, dot):
    hidden = jax.nn.relu(dot("a", "bd,do->bo", x=x, w=params["a"]) + params["bias"][None])
    return dot("b", "bd,do->bo", x=hidden, w=params["b"])


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    params = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in KERNELS.items()} | {"bias": jnp.zeros(6)}
    return params, {"image": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)}


def kept(student, teacher, batch):
    return jnp.float32(0), {"student": student, "teacher": teacher}


def prepare(key, images):
    return images


def test_both_tapes_have_what_was_asked_for_and_the_output(model):
    params, batch = model
    loss = tapes.on_tapes(kept, forward, {}, prepare, where=lambda a: a == "b.x", teacher=forward)
    other = jax.tree.map(lambda x: 2 * x, params)
    _, found = loss({"params": params, "q": {}}, other, batch, KEY)
    assert {*found["student"]} == {*found["teacher"]} == {"b.x", tapes.OUTPUT}
    x = np.maximum(np.asarray(batch["image"]) @ np.asarray(params["a"]), 0)
    np.testing.assert_allclose(found["student"]["b.x"], x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["teacher"][tapes.OUTPUT], 4 * x @ np.asarray(params["b"]), rtol=1e-4, atol=1e-5)


def test_nothing_flows_into_the_teacher_and_without_one_its_tape_is_empty(model):
    params, batch = model

    def apart(student, teacher, batch):
        return (student[tapes.OUTPUT] * teacher[tapes.OUTPUT]).sum(), {}

    loss = tapes.on_tapes(apart, forward, {}, prepare, teacher=forward)
    pull = jax.grad(lambda fixed: loss({"params": params, "q": {}}, fixed, batch, KEY)[0])(params)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(pull))
    _, found = tapes.on_tapes(kept, forward, {}, prepare)({"params": params, "q": {}}, (), batch, KEY)
    assert found["teacher"] == {}


def test_of_two_heads_a_tape_has_both_and_their_mean(model):
    params, batch = model

    def heads(params, x, dot):
        y = forward(params, x, dot)
        return jnp.stack([y, 2 * y - 1], axis=1)

    loss = tapes.on_tapes(kept, heads, {}, prepare, teacher=heads, heads=True)
    other = jax.tree.map(lambda x: 3 * x, params)
    _, found = loss({"params": params, "q": {}}, other, batch, KEY)
    for who, own in (("student", params), ("teacher", other)):
        tape, want = found[who], np.asarray(heads(own, batch["image"], float_dot))
        assert {*tape} == {tapes.OUTPUT, tapes.HEADS}
        np.testing.assert_allclose(tape[tapes.HEADS], want, rtol=1e-6)
        np.testing.assert_allclose(tape[tapes.OUTPUT], (want[:, 0] + want[:, 1]) / 2, rtol=1e-5, atol=1e-6)
    _, found = tapes.on_tapes(kept, forward, {}, prepare)({"params": params, "q": {}}, (), batch, KEY)
    assert tapes.HEADS not in found["student"]


def test_bfloat16_rounds_operands_and_nothing_else(model):
    params, batch = model
    loss = tapes.on_tapes(kept, forward, {}, prepare, where=lambda a: a.endswith(".y"), precision="bfloat16")
    _, found = loss({"params": params, "q": {}}, (), batch, KEY)
    y = found["student"]["a.y"]
    rounded = [np.asarray(v.astype(jnp.bfloat16).astype(jnp.float32)) for v in (batch["image"], params["a"])]
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(y - batch["image"] @ params["a"]).max()) > 1e-4


@pytest.mark.parametrize(("where", "address"), [("a", "a.w"), ("bias", "b.x"), ("b", "b.w"), ("", "")])
def test_the_first_value_that_is_not_finite_is_found(where, address, model):
    params, batch = model
    locate = tapes.locator(forward, {}, prepare, sites(forward, params, (4,)))
    broken = {n: x.at[(0,) * x.ndim].set(jnp.inf) if n == where else x for n, x in params.items()}
    assert locate({"params": broken, "q": {}}, batch, KEY) == address
