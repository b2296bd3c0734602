"""The embedded float checkpoint ``fashion_swin``: a Swin of 533,730 parameters, windows of 4x4, one block shifted.

    python -m jvq.main --config configs/fp_swin_fashion.py

7x7 patches, padded to 8x8, in four windows; then, merged, 4x4 in one. ``fashion_vit`` teaches it by its distribution
(soft distillation). 10 epochs, 4,680 steps of 128 images: 44 minutes on one of two shared cores. Top-1 on the 10,000
test images 0.9093 (standard error 0.0029). The result is ``weights.safetensors`` in the workdir; the shipped one is
this command's, run with Python 3.13, jax 0.12.0.1 and one core.
"""

from jvq.config import config


def get_config(arg=None):
    model = dict(architecture="swin", image=(28, 28), channels=1, patch=4, dim=64, depths=(2, 2), heads=(4, 8))
    model |= dict(window=4, classes=10)
    preprocess = dict(size=(28, 28), resize=None, interpolation="bicubic", mean=(0.286,), std=(0.353,))
    return config(
        "fp_swin_fashion",
        "supervised",
        model=model,
        preprocess=preprocess,
        teacher="fashion_vit",
        distillation="soft",
        epochs=10,
    )
