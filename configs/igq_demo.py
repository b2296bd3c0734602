"""IGQ-ViT with 8 groups a site on an embedded model, next to float, min-max and the paper's upper bound.

    python -m jvq.main --config configs/igq_demo.py [--config.method.bits=3]
    python -m jvq.main --config configs/igq_demo.py:deit [--config.method.bits=3]
    python -m jvq.main --config configs/igq_demo.py:swin [--config.method.bits=3]

Data: Fashion-MNIST, 32 training images to calibrate, 10,000 test images. About 80 seconds on two cores.
Top-1 of the ViT by --config.widths=W8A8,W6A6,W4A4,W3A3 (four minutes), seed 0; float 0.9107; a standard error is 0.0031
at 4 bits, 0.0034 at 3:

    bits        8       6       4       3
    minmax    0.9112  0.9085  0.8588  0.6384
    igq       0.9113  0.9102  0.8941  0.8687
    upper     0.9111  0.9099  0.9033  0.8738
"""

from jvq.config import config
from jvq.core.errors import nearest

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}


def get_config(arg=None):
    model = arg or "vit"
    if model not in WEIGHTS:
        raise ValueError(f"config igq_demo.py:{model}: no such model{nearest(model, WEIGHTS)}")
    name = "igq_demo" if model == "vit" else f"igq_demo_{model}"
    return config(name, "igq", weights=WEIGHTS[model], bits=4)
