"""VVTQ's recipe on ImageNet: Swin-T, weights and activations at 4, 3 or 2 bits.

    python -m jvq.main --config configs/vvtq_swint.py    --config.data.dir=/data/imagenet [--config.method.bits=3]
    python -m jvq.main --config configs/vvtq_swint.py:deit                                 DeiT-T

Needs ImageNet as folders (train, val) and about an hour an epoch on one accelerator of 2023 (150 epochs; the authors'
DeiT-T took 58 hours). Not run by us: there was no ImageNet. What the authors' README and logs say, top-1 in %:

              float    W4A4    W3A3    W2A2
    DeiT-T    73.75    74.71   71.22   59.73
    Swin-T    81.0     82.42   81.37   77.66

Their float DeiT-T is not the usual one (72.2), and their teacher, an EfficientNet-L2 of JFT-300M through 500 stored
crops an image, is stronger than any student here: 4 bits "beat" float by that, not by quantisation. Ours stores soft
labels of the float checkpoint unless ``method.labels`` names a folder of others. Their Swin leaves the inputs of patch
embedding and merging float and merges with 8-bit weights; so does ours with

    --config.rules="patch.x=float,*/merge/reduce.x=float,*/merge/reduce.w=8"

Expect minutes for the stored labels' header check and hours for everything else.
"""

from jvq.config import config
from jvq.core.errors import nearest
from jvq.methods.vvtq import PRESETS

WEIGHTS = {"swin": "timm/swin_tiny_patch4_window7_224.ms_in1k", "deit": "timm/deit_tiny_patch16_224.fb_in1k"}


def get_config(arg=None):
    if arg and arg not in WEIGHTS:
        raise ValueError(f"config vvtq_swint.py:{arg}: no such model{nearest(arg, WEIGHTS)}")
    return config(
        f"vvtq_{arg or 'swin'}t",
        "vvtq",
        weights=WEIGHTS[arg or "swin"],
        bits=4,
        data={"name": "folder", "train": "train", "test": "val", "batch": 128},
        needs="ImageNet as image folders 'train' and 'val' in --config.data.dir",
        **{
            **PRESETS["paper"],
            "distillation": "stored",
            "crops": 4,
            "crop_scale": (0.08, 0.936),
            "epochs": 150,
            "batch": 1024,
            "learning_rate": 5e-4,
            "save_every": 2000,
        },
    )
