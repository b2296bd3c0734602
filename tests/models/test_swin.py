"""The Swin against a plain NumPy implementation in float64, token pair by token pair, written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from jvq.core.dot import float_dot, recording
from jvq.models import build, swin

TINY = {
    "image": (16, 16),
    "channels": 2,
    "patch": 2,
    "dim": 4,
    "depths": (2, 2),
    "heads": (1, 2),
    "window": 4,
    "classes": 3,
}
VARIANTS = {
    "whole windows, second stage one window": {},
    "padded to windows, odd grid merged": {"image": (18, 14), "window": 4},
    "window larger than the grid": {"image": (8, 12), "window": 7},
    "odd window, three stages": {"window": 3, "depths": (2, 1, 1), "heads": (2, 2, 4)},
    "features": {"classes": 0},
    "norms of queries and keys, bounded": {"qk_norm": True, "clip": 0.5, "image": (18, 14)},
    "without a softmax": {"softmax": False},
}


def random_params(model, seed=0):
    """Parameters with nothing left at zero or one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), model.shapes())


def norm(x, p, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def attention(x, p, s, heads, window, shift):
    """Of a padded map [y, x, d], token by token: who shares its shifted window, and was not carried round the edge."""
    h, w, d = x.shape
    qkv = np.einsum("yxd,dshe->yxshe", x, p["qkv"]["kernel"]) + p["qkv"]["bias"]
    if s.qk_norm:
        qkv[:, :, 0], qkv[:, :, 1] = (norm(qkv[:, :, i], p[f"{a}_norm"], 1e-5) for i, a in enumerate("qk"))
    out = np.zeros((h, w, d))
    places = [(i, j) for i in range(h) for j in range(w)]

    def moved(i, j):
        return (i - shift) % h, (j - shift) % w

    for at in places:
        a = moved(*at)
        others = [o for o in places if all(m // window == n // window for m, n in zip(moved(*o), a, strict=True))]
        for head in range(heads):
            scores = []
            for o in others:
                score = qkv[at][0, head] @ qkv[o][1, head] / np.sqrt(d / heads)
                dy, dx = (m - n for m, n in zip(a, moved(*o), strict=True))
                score += p["bias_table"][(dy + window - 1) * (2 * window - 1) + dx + window - 1, head]
                carried = any((i < shift) != (j < shift) for i, j in zip(at, o, strict=True))
                scores.append(score - 100 * carried)
            e = d // heads
            weights = softmax(scores) if s.softmax else np.asarray(scores)
            out[at][head * e : (head + 1) * e] = weights @ [qkv[o][2, head] for o in others]
    return out @ p["proj"]["kernel"] + p["proj"]["bias"]


def block(x, p, s, heads, window, shift):
    h, w, _ = x.shape
    y = np.pad(norm(x, p["norm1"], s.eps), [(0, -h % window), (0, -w % window), (0, 0)])
    x = x + attention(y, p["attn"], s, heads, window, shift)[:h, :w]
    y = norm(x, p["norm2"], s.eps) @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"]
    y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
    y = np.clip(y, -s.clip, s.clip) if s.clip else y
    return x + y @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]


def merge(x, p, eps):
    h, w, d = x.shape
    out = np.zeros(((h + 1) // 2, (w + 1) // 2, 4 * d))
    for i in range(h):
        for j in range(w):
            part = (i % 2) + 2 * (j % 2)
            out[i // 2, j // 2, part * d : (part + 1) * d] = x[i, j]
    return norm(out, p["norm"], eps) @ p["reduce"]["kernel"]


def numpy_swin(images, p, s):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    out = []
    for image in np.asarray(images, np.float64):
        h, w = (n // s.patch for n in s.image)
        x = np.zeros((h, w, s.patch**2 * s.channels))
        for i in range(h):
            for j in range(w):
                x[i, j] = image[i * s.patch : (i + 1) * s.patch, j * s.patch : (j + 1) * s.patch].reshape(-1)
        x = norm(x @ p["patch"]["kernel"] + p["patch"]["bias"], p["patch_norm"], s.eps)
        for i, depth in enumerate(s.depths):
            stage = p[f"stage{i}"]
            for j in range(depth):
                window = min(s.window, *x.shape[:2])
                shift = s.window // 2 if j % 2 and min(x.shape[:2]) > s.window else 0
                x = block(x, stage[f"block{j:02d}"], s, s.heads[i], window, shift)
            if i + 1 < len(s.depths):
                x = merge(x, stage["merge"], s.eps)
        x = norm(x, p["norm"], s.eps).mean((0, 1))
        out.append(x @ p["head"]["kernel"] + p["head"]["bias"] if s.classes else x)
    return np.stack(out)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_numpy(name):
    model = build("swin", TINY | VARIANTS[name])
    params = random_params(model)
    images = np.random.default_rng(1).normal(size=(2, *model.image)).astype(np.float32)
    got = jax.jit(model.forward)(params, images)
    want = numpy_swin(images, params, model.spec)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_every_product_goes_through_the_dot():
    """With a dot that returns zeros nothing of the image is left in the logits."""
    model = build("swin", TINY)
    params = random_params(model)

    def zeros(site, equation, /, **operands):
        return jnp.zeros_like(float_dot(site, equation, **operands))

    images = jax.random.normal(jax.random.key(0), (2, *model.image))
    logits = np.asarray(jax.jit(lambda p, x: model.forward(p, x, zeros))(params, images))
    np.testing.assert_array_equal(logits, np.broadcast_to(params["head"]["bias"], (2, 3)))


def test_addresses_are_path_op_role():
    model = build("swin", TINY | {"depths": (1, 1)})
    tape = {}
    jax.eval_shape(
        lambda p, x: model.forward(p, x, recording(tape, lambda a: True)), model.shapes(), jnp.zeros((1, *model.image))
    )
    ops = ("attn/qkv", "attn/qk", "attn/pv", "attn/proj", "mlp/fc1", "mlp/fc2")
    stages = [[f"stage{i}/block00/{op}" for op in ops] for i in range(2)]
    assert [a[:-2] for a in tape if a.endswith(".y")] == [
        "patch",
        *stages[0],
        "stage0/merge/reduce",
        *stages[1],
        "head",
    ]


@pytest.mark.parametrize(("size", "millions"), [("T", 28.288), ("S", 49.606), ("B", 87.768), ("L", 196.53)])
def test_sizes_have_the_published_parameter_counts(size, millions):
    """28.29, 49.61, 87.77, 196.53 million: the paper's and timm's tables."""
    model = build("swin", {"size": size})
    count = sum(int(np.prod(s.shape)) for s in jax.tree.leaves(model.shapes()))
    assert count / 1e6 == pytest.approx(millions, rel=1e-4)


def test_relative_index_is_the_papers():
    """Figure 3 of the official description, window 2: rows of the table by (dy + 1) * 3 + dx + 1."""
    np.testing.assert_array_equal(swin.relative_index(2), [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": (17, 16)}, "not a multiple of model.patch"),
        ({"heads": (3, 2)}, "stage 0: its width 4 is not a multiple of model.heads 3"),
        ({"heads": (2,)}, "must have a number a stage"),
        ({"window": 1}, "model.window: got 1"),
        ({"windows": 7}, "did you mean 'window'"),
        ({"size": "Ti"}, "model size 'Ti'"),
        ({"merged": True, "qk_norm": True}, "model.qk_norm needs queries and keys of their own"),
        ({"clip": -0.5}, "model.clip: got -0.5"),
    ],
)
def test_impossible_specs(changes, said):
    with pytest.raises(ValueError, match=said):
        build("swin", TINY | changes)


def test_wrong_image_shape():
    model = build("swin", TINY)
    with pytest.raises(ValueError, match=r"images of shape \(8, 8, 2\)"):
        model.forward(random_params(model), jnp.zeros((1, 8, 8, 2)))
