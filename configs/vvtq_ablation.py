"""What each part of VVTQ gives on the embedded models: distillation, module-dependent scales, the bin regulariser.

    python -m jvq.main --config configs/vvtq_ablation.py                  [--config.method.epochs=6]
    python -m jvq.main --config configs/vvtq_ablation.py:deit,2           vit, deit or swin; bits

Without an argument the ViT at 3 bits. "vvtq" is our default; rows have the name of the one thing in which they differ.
"lsq", "released" and "paper" are presets: the baseline, what the authors' code does, and what the paper describes.
Three seeds (calibration images, order of the training images, augmentation). Each row trains: hours, not minutes.
Not measured yet.
"""

from jvq.config import config
from jvq.core.errors import nearest
from jvq.methods.vvtq import PRESETS

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}
ROWS = {
    "labels": dict(distillation="none"),
    "stored": dict(distillation="stored"),
    "no_bins": dict(bin_strength=0.0),
    "bins_mean": dict(bins="mean", bin_variance="unbiased"),
    "mdq_off": dict(mdq="off"),
    "mdq_lr": dict(mdq="lr"),
    "per_tensor": dict(granularity="tensor"),
    "per_head": dict(granularity="head"),
    "no_offset": dict(offset="none"),
    **PRESETS,
}


def get_config(arg=None):
    model, _, bits = (arg or "").partition(",")
    if model and model not in WEIGHTS:
        raise ValueError(f"config vvtq_ablation.py:{model}: no such model{nearest(model, WEIGHTS)}")
    return config(
        "vvtq_ablation" + (f"_{model}" if model else ""),
        "vvtq",
        weights=WEIGHTS[model or "vit"],
        bits=int(bits or 3),
        rows={label: {"name": "vvtq", **row} for label, row in ROWS.items()} | {"igq": {"name": "igq"}},
        seeds=3,
        order="minmax<igq<lsq<vvtq,no_bins<vvtq,labels<vvtq",
        data={"images": 2000},
    )
