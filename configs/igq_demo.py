"""IGQ-ViT with 8 groups a site on the embedded ViT, next to float, min-max and the paper's upper bound.

    python -m jvq.main --config configs/igq_demo.py [--config.method.bits=3]

Data: Fashion-MNIST, 32 training images to calibrate, 10,000 test images. About 80 seconds on two cores.
Top-1 of this command, seed 0 (float 0.9168; a standard error is 0.0028 at 4 bits, 0.0036 at 3):

    bits        8       6       4       3
    minmax    0.9179  0.9166  0.8582  0.6284
    igq       0.9173  0.9171  0.9047  0.8435
    upper     0.9181  0.9167  0.9035  0.8522
"""

from jvq.config import config


def get_config(arg=None):
    return config("igq_demo", "igq", weights="fashion_vit", bits=4)
