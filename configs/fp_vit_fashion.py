"""x"""

from jvq.config import config


def get_config(arg=None):
    model = dict(architecture="vit", image=(28, 28), channels=1, patch=4, dim=64, depth=5, heads=4, classes=10)
    preprocess = dict(size=(28, 28), resize=None, interpolation="bicubic", mean=(0.286,), std=(0.353,))
    return config("fp_vit_fashion", "supervised", model=model, preprocess=preprocess, epochs=24)
