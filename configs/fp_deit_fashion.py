"""The embedded float checkpoint ``fashion_deit``: a distilled DeiT of 205,844 parameters, 51 tokens.

    python -m jvq.main --config configs/fp_deit_fashion.py

``fashion_vit`` teaches it, by its class of every augmented image (DeiT's hard distillation). 16 epochs, 7,488 steps
of 128 images: 76 minutes on one of two busy cores (53 of CPU time). Top-1 on the 10,000 test images 0.9013 (standard
error 0.0030). The result is ``weights.safetensors`` in the workdir; the shipped one is this command's, run with Python
3.13, jax 0.12.0.1 and one core.
"""

from jvq.config import config


def get_config(arg=None):
    model = dict(architecture="vit", image=(28, 28), channels=1, patch=4, dim=64, depth=4, heads=4, classes=10)
    model |= dict(distill_token=True)
    preprocess = dict(size=(28, 28), resize=None, interpolation="bicubic", mean=(0.286,), std=(0.353,))
    return config("fp_deit_fashion", "supervised", model=model, preprocess=preprocess, teacher="fashion_vit", epochs=16)
