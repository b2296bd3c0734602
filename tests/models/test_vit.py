"""The ViT against a plain NumPy implementation in float64, written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from jvq.core.dot import float_dot, recording
from jvq.models import build, vit

TINY = {"image": (8, 12), "channels": 2, "patch": 4, "dim": 8, "depth": 2, "heads": 2, "classes": 3}
VARIANTS = {
    "vit": {},
    "deit": {"distill_token": True},
    "mean": {"pool": "mean"},
    "mean_without_token": {"pool": "mean", "class_token": False},
    "layer_scale": {"layer_scale": 0.5},
    "features": {"classes": 0},
    "registers": {"registers": 3},
    "registers_distilled": {"registers": 1, "distill_token": True},
    "registers_both": {"registers": 2, "pool": "both"},
    "normed_mean": {"pool": "normed_mean", "class_token": False},
    "tokens": {"pool": "none", "classes": 0, "registers": 2},
    "representation": {"representation": 5},
    "qk_norm_and_clip": {"qk_norm": True, "clip": 0.5, "distill_token": True},
    "without_softmax": {"softmax": False},
}


def random_params(model, seed=0):
    """Parameters with nothing left at zero or one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), model.shapes())


def norm(x, p, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def numpy_block(x, p, s):
    """One token matrix [n, d] at a time, head by head."""
    h = norm(x, p["norm1"], s.eps)
    kernel, bias = p["attn"]["qkv"]["kernel"], p["attn"]["qkv"]["bias"]
    heads = []
    for i in range(s.heads):
        q, k, v = (h @ kernel[:, j, i] + bias[j, i] for j in range(3))
        if s.qk_norm:
            q, k = norm(q, p["attn"]["q_norm"], 1e-5), norm(k, p["attn"]["k_norm"], 1e-5)
        scores = q @ k.T / np.sqrt(s.dim / s.heads)
        heads.append((softmax(scores, axis=-1) if s.softmax else scores) @ v)
    y = np.concatenate(heads, axis=-1) @ p["attn"]["proj"]["kernel"] + p["attn"]["proj"]["bias"]
    x = x + (y if s.layer_scale is None else y * p["scale1"]["gamma"])
    h = norm(x, p["norm2"], s.eps) @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"]
    h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
    h = np.clip(h, -s.clip, s.clip) if s.clip else h
    y = h @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]
    return x + (y if s.layer_scale is None else y * p["scale2"]["gamma"])


def numpy_vit(images, p, s):
    """Image by image, patch by patch."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    out = []
    for image in np.asarray(images, np.float64):
        tokens = [p[name][0, 0] for name, there in (("cls", s.class_token), ("dist", s.distill_token)) if there]
        for y in range(0, s.image[0], s.patch):
            for x in range(0, s.image[1], s.patch):
                pixels = image[y : y + s.patch, x : x + s.patch].reshape(-1)
                tokens.append(pixels @ p["patch"]["kernel"] + p["patch"]["bias"])
        x = np.stack(tokens) + p["pos"][0]
        if s.registers:
            x = np.concatenate([x[: s.placed], p["reg"][0], x[s.placed :]])
        for i in range(s.depth):
            x = numpy_block(x, p[f"block{i:02d}"], s)
        x = norm(x[s.prefix :].mean(0, keepdims=True) if s.pool == "mean" else x, p["norm"], s.eps)
        if s.pool == "normed_mean":
            x = x[s.prefix :].mean(0, keepdims=True)
        if s.pool == "both":
            x = np.concatenate([x[:1], x[s.prefix :].mean(0, keepdims=True)], axis=1)
        if not s.classes:
            out.append(x if s.pool == "none" else x[0])
            continue
        if s.representation:
            x = np.tanh(x @ p["pre_logits"]["kernel"] + p["pre_logits"]["bias"])
        logits = [x[0] @ p["head"]["kernel"] + p["head"]["bias"]]
        if s.distill_token:
            logits.append(x[1] @ p["head_dist"]["kernel"] + p["head_dist"]["bias"])
        out.append(np.mean(logits, axis=0))
    return np.stack(out)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_numpy(name):
    model = build("vit", TINY | VARIANTS[name])
    params = random_params(model)
    images = np.random.default_rng(1).normal(size=(3, 8, 12, 2)).astype(np.float32)
    got = jax.jit(model.forward)(params, images)
    want = numpy_vit(images, params, model.spec)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_heads_apart():
    """A distilled model's logits are the mean of its heads; others have one."""
    for changes, count in (({"distill_token": True}, 2), ({}, 1)):
        model = build("vit", TINY | changes)
        params, images = random_params(model), np.random.default_rng(1).normal(size=(2, 8, 12, 2)).astype(np.float32)
        apart, whole = jax.jit(lambda p, x, model=model: (model.heads(p, x), model.forward(p, x)))(params, images)
        assert apart.shape == (2, count, 3)
        np.testing.assert_allclose(apart.mean(axis=1), whole, rtol=1e-6)


def test_every_product_goes_through_the_dot():
    """With a dot that returns zeros nothing of the image is left in the logits."""
    model = build("vit", TINY)
    params = random_params(model)

    def zeros(site, equation, /, **operands):
        return jnp.zeros_like(float_dot(site, equation, **operands))

    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 2))
    logits = jax.jit(lambda p, x: model.forward(p, x, zeros))(params, images)
    np.testing.assert_array_equal(logits, np.broadcast_to(params["head"]["bias"], (2, 3)))


def test_addresses_are_path_op_role():
    model = build("vit", TINY | {"depth": 1})
    tape = {}
    jax.eval_shape(
        lambda p, x: model.forward(p, x, recording(tape, lambda a: True)), model.shapes(), jnp.zeros((1, 8, 12, 2))
    )
    block = [f"block00/{op}" for op in ("attn/qkv", "attn/qk", "attn/pv", "attn/proj", "mlp/fc1", "mlp/fc2")]
    assert [a[:-2] for a in tape if a.endswith(".y")] == ["patch", *block, "head"]
    assert {"block00/attn/pv.p", "block00/attn/qk.q", "block00/mlp/fc2.x", "head.w"} <= set(tape)


@pytest.mark.parametrize(("size", "millions"), [("Ti/16", 5.717), ("S/16", 22.05), ("B/16", 86.57), ("L/16", 304.3)])
def test_sizes_have_the_published_parameter_counts(size, millions):
    """5.7, 22.1, 86.6, 304.3 million: ViT and DeiT papers, and timm's table."""
    model = build("vit", {"size": size})
    count = sum(int(np.prod(s.shape)) for s in jax.tree.leaves(model.shapes()))
    assert count / 1e6 == pytest.approx(millions, rel=1e-3)


def test_resized_positions():
    """Same grid: unchanged. A ramp keeps its slope away from the border; prefix rows stay.

    Torch's cubic (a = -0.75) overshoots a ramp to and fro, so the slope is that over two steps.
    """
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(1, 2 + 12, 4)), jnp.float32)
    np.testing.assert_array_equal(vit.resize_positions(table, (3, 4), (3, 4), 2), table)
    ramp = jnp.concatenate([table[:, :2], jnp.arange(64.0).reshape(1, 64, 1) * jnp.ones((1, 1, 4))], axis=1)
    bigger = vit.resize_positions(ramp, (8, 8), (16, 16), 2)
    np.testing.assert_array_equal(bigger[:, :2], table[:, :2])
    grid = np.asarray(bigger[0, 2:, 0]).reshape(16, 16)
    np.testing.assert_allclose((grid[:, 2:] - grid[:, :-2])[4:12, 4:10], 1.0, atol=1e-4)
    np.testing.assert_allclose((grid[2:] - grid[:-2])[4:10, 4:12], 8.0, atol=1e-4)
    with pytest.raises(ValueError, match="position table of 14 rows is not 2 [+] 4x4"):
        vit.resize_positions(table, (4, 4), (8, 8), 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": (9, 12)}, "not a multiple of model.patch"),
        ({"heads": 3}, "not a multiple of model.heads"),
        ({"class_token": False}, "needs model.class_token"),
        ({"distill_token": True, "pool": "mean"}, "distill_token needs"),
        ({"haeds": 3}, "did you mean 'heads'"),
        ({"pool": "both", "class_token": False}, "model.pool 'both' needs model.class_token"),
        ({"pool": "none"}, "model.pool 'none' gives tokens: model.classes must be 0, got 3"),
        ({"pool": "maen"}, "'maen'"),  # with the nearest, but for jaxtyping, which sees it first
        ({"registers": -1}, "model.registers and model.representation must be at least 0"),
        ({"size": "Tiny"}, "model size 'Tiny'"),
        ({"merged": True, "qk_norm": True}, "model.qk_norm needs queries and keys of their own"),
        ({"clip": -0.5}, "model.clip: got -0.5"),
    ],
)
def test_impossible_specs(changes, said):
    with pytest.raises(ValueError, match=said):
        build("vit", TINY | changes)


def test_unknown_architecture():
    with pytest.raises(ValueError, match="did you mean 'vit'"):
        build("vitt", TINY)


def test_wrong_image_shape():
    model = build("vit", TINY)
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 2\)"):
        model.forward(random_params(model), jnp.zeros((1, 8, 8, 2)))
