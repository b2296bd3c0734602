"""Bi-ViT on the embedded models: weights and activations of one bit, beside the sign baseline and learned scales alone.

    python -m jvq.main --config configs/bivit_demo.py                      the DeiT
    python -m jvq.main --config configs/bivit_demo.py:swin                 vit, deit or swin

minutes
"""

from jvq.config import config
from jvq.core.errors import nearest
from jvq.methods.bivit import PRESETS

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}


def get_config(arg=None):
    if arg and arg not in WEIGHTS:
        raise ValueError(f"config bivit_demo.py:{arg}: no such model{nearest(arg, WEIGHTS)}")
    return config(
        "bivit_demo" + (f"_{arg}" if arg else ""),
        "bivit",
        weights=WEIGHTS[arg or "deit"],
        steps=300,
        learning_rate=2e-3,
        rows={label: {"name": "bivit", **PRESETS[label]} for label in ("sign", "scale")},
        seeds=3,
        order="sign<scale<bivit",
        data={"images": 2000},
    )
