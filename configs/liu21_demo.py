"""Liu et al. 2021 on an embedded model, next to float and the paper's baselines.

python -m jvq.main --config configs/liu21_demo.py [--config.method.bits=6] [--config.method.mixed=True]
python -m jvq.main --config configs/liu21_demo.py:deit
python -m jvq.main --config configs/liu21_demo.py:swin

Data: Fashion-MNIST, 32 training images to calibrate, 10,000 test images. About three minutes on two cores. Ours: ranges
an output channel, a head; unsigned softmax. Numbers, of three seeds: configs/liu21_ablation.py.
"""

from jvq.config import config
from jvq.core.errors import nearest

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}


def get_config(arg=None):
    model = arg or "vit"
    if model not in WEIGHTS:
        raise ValueError(f"config liu21_demo.py:{model}: no such model{nearest(model, WEIGHTS)}")
    name = "liu21_demo" if model == "vit" else f"liu21_demo_{model}"
    return config(name, "liu21", weights=WEIGHTS[model], bits=4)
