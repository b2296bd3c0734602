"""The models that the papers use, at their real size: they build, and one image goes through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.models import build

MODELS = {
    **{f"ViT-{size}/16": ("vit", {"size": f"{size}/16"}) for size in ("Ti", "S", "B", "L")},
    **{f"DeiT-{size} distilled": ("vit", {"size": f"{size}/16", "distill_token": True}) for size in ("Ti", "S", "B")},
    "ViT-B/16 at 384": ("vit", {"size": "B/16", "image": (384, 384)}),
    "DINOv2 S/14 at 518": ("vit", {"size": "S/14", "image": (518, 518), "layer_scale": 1.0, "classes": 0}),
    "DINOv2 S/14 with registers": ("vit", {"size": "S/14", "layer_scale": 1.0, "registers": 4, "pool": "both"}),
    **{f"Swin-{size}": ("swin", {"size": size}) for size in ("T", "S", "B")},
    "Swin-T at 256": ("swin", {"size": "T", "image": (256, 256)}),  # not a multiple of the window: padded
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_one_image_goes_through(name):
    architecture, spec = MODELS[name]
    model = build(architecture, spec)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.02, s.shape), jnp.float32), model.shapes())
    out = jax.jit(model.forward)(params, rng.normal(size=(1, *model.image)).astype(np.float32))
    assert out.shape == (1, model.spec.classes or model.spec.dim)
    assert np.isfinite(out).all()
    assert float(jnp.std(out)) > 0
