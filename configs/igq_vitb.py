"""IGQ-ViT on ViT-B/16 (AugReg weights) and ImageNet: the paper's setting.

    python -m jvq.main --config configs/igq_vitb.py --config.data.dir=IMAGENET [--config.method.bits=6]
    python -m jvq.main --config configs/igq_vitb.py:deit_s ...   (vit_t vit_s deit_t deit_b swin_t swin_s swin_b)

IMAGENET is a folder with ``train/`` and ``val/``, each with a folder a class (n01440764, ...); or, for the prepared
tfds set, --config.data.name=tfds:imagenet2012 --config.data.test=validation. Calibration: 32 training images, drawn by
the seed. The weights are fetched on first use (343 MB for ViT-B).

What the paper reports (Moon et al. 2024, table 2; top-1; a fixed number of groups is its row with a dagger):

    bits   groups        ViT-T   ViT-S   ViT-B   DeiT-T  DeiT-S  DeiT-B  Swin-T  Swin-S  Swin-B
    float                75.47   81.39   84.54   72.21   79.85   81.80   81.39   83.23   85.27
    4      8, fixed      54.46   72.99   77.91   61.94   74.01   78.85   76.91   80.54   82.88
    4      12, fixed     55.66   73.46   79.13   62.28   74.52   79.21   77.53   80.79   83.08
    4      upper bound   57.59   74.73   79.88   62.55   75.08   79.74   78.58   81.48   83.53
    6      8, fixed      72.90   80.07   83.11   70.71   78.92   81.34   80.23   82.55   84.43
    6      12, fixed     73.63   80.66   83.63   71.02   79.17   81.48   80.59   82.66   84.70
    6      upper bound   74.61   80.99   84.27   71.42   79.42   81.75   81.20   83.08   85.06

We have no ImageNet here and have not measured these rows: this whole path runs in tests/test_imagenet.py, on random
weights and made-up images. The paper does not say how it treats query, key, value,
patch embedding and head; ours: a static range a head at the same width; 8 bits. How many minutes it takes is not known
for the same reason.
"""

from jvq.config import config
from jvq.core.errors import nearest

WEIGHTS = {
    "vit_t": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_s": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_b": "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
    "deit_t": "timm/deit_tiny_patch16_224.fb_in1k",
    "deit_s": "timm/deit_small_patch16_224.fb_in1k",
    "deit_b": "timm/deit_base_patch16_224.fb_in1k",
    "swin_t": "timm/swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "timm/swin_small_patch4_window7_224.ms_in1k",
    "swin_b": "timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k",
}
NEEDS = (
    "ImageNet as a folder with train/ and val/, a folder a class in each (--config.data.dir=FOLDER), or prepared by "
    "tfds (--config.data.name=tfds:imagenet2012 --config.data.test=validation), and the weights, fetched on first use "
    "or named as a file (--config.weights=FILE). Nothing to fetch: configs/igq_demo.py"
)


def get_config(arg=None):
    name = arg or "vit_b"
    if name not in WEIGHTS:
        raise ValueError(f"config igq_vitb.py:{name}: no such model{nearest(name, WEIGHTS)}")
    data = dict(name="folder", test="val", batch=50)
    called = "igq_vitb" if name == "vit_b" else f"igq_{name}"
    return config(called, "igq", weights=WEIGHTS[name], data=data, bits=4, groups=8, needs=NEEDS)
