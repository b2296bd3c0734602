"""A model of three products, written by hand, for the tests of the seam."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.recipe import sites

ADDRESSES = ["stem.x", "stem.w", "attn/qkv.x", "attn/qkv.w", "attn/qk.q", "attn/qk.k", "attn/pv.p", "attn/pv.v"]
ADDRESSES += ["head.x", "head.w"]


def forward(params, images, dot):
    """Images [b 4 4 2] as 8 tokens of 4 channels; stem, one attention of 2 heads, a head on the mean token."""
    x = images.reshape(images.shape[0], 8, 4)
    x = jnp.tanh(dot("stem", "bnd,do->bno", x=x, w=params["stem"]["kernel"]))
    q, k, v = dot("attn/qkv", "bnd,dshe->sbnhe", x=x, w=params["attn"]["qkv"]["kernel"])
    p = jax.nn.softmax(dot("attn/qk", "bqhe,bkhe->bhqk", q=q, k=k), axis=-1)
    y = dot("attn/pv", "bhqk,bkhe->bqhe", p=p, v=v).reshape(x.shape)
    return dot("head", "bd,do->bo", x=(x + y).mean(axis=1), w=params["head"]["kernel"])


def weights(seed: int):
    rng = np.random.default_rng(seed)
    shapes = {("stem",): (4, 8), ("attn", "qkv"): (8, 3, 2, 4), ("head",): (8, 5)}
    params = {"attn": {}}
    for path, shape in shapes.items():
        node = params
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32)}
    return params


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """``forward params images known``: six images, and every operand of the model."""
    params = weights(0)
    images = np.random.default_rng(1).normal(size=(6, 4, 4, 2)).astype(np.float32)
    return SimpleNamespace(
        forward=forward,
        params=params,
        images=images,
        known=sites(forward, params, (4, 4, 2)),
        addresses=ADDRESSES,
        outputs=jax.jit(forward, static_argnums=2),
    )
