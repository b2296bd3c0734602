"""Min-max quantisation of the embedded ViT: the baseline everyone measures against, alone.

    python -m jvq.main --config configs/minmax_demo.py [--config.method.bits=4]

Data: Fashion-MNIST, 32 training images to calibrate, 10,000 test images.
Not timed: configs/igq_demo.py, 80 seconds, contains it.
Top-1 at W8A8 0.9113, W6A6 0.9084, W4A4 0.8589, W3A3 0.6384 (float 0.9107), from the minmax rows of configs/igq_demo.py.
"""

from jvq.config import config


def get_config(arg=None):
    return config("minmax_demo", "minmax", weights="fashion_vit", bits=8)
