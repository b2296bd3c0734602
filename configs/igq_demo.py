"""IGQ-ViT with 8 groups a site on the embedded ViT, next to float, min-max and the paper's upper bound.

    python -m jvq.main --config configs/igq_demo.py [--config.method.bits=3]

Data: Fashion-MNIST, 32 training images to calibrate, 10,000 test images. About a minute on two cores.
"""

from jvq.config import config


def get_config(arg=None):
    return config("igq_demo", "igq", weights="fashion_vit", bits=4)
