"""Bi-ViT on the embedded models: weights and activations of one bit, beside the sign baseline and learned scales alone.

    python -m jvq.main --config configs/bivit_demo.py                      the DeiT
    python -m jvq.main --config configs/bivit_demo.py:swin                 vit, deit or swin

"sign" has no learned scale (an attention map of ones), "scale" learned scales of query, key, value and attention,
"bivit" also the ranking loss. Patch embedding and head in float. 250 steps of 128 images (half an epoch), three seeds
(calibration images, order of the training images, augmentation), 2,000 test images; eleven minutes of one core for
either model, nine trainings each. Top-1 in %, agreement with float, KL, Kendall's tau of attention rows (seed 0):

    DeiT                  top-1           agrees          KL                 tau
    float                 91.30           100             0
    sign                  46.35 ±0.70     46.67 ±0.64     1.130 ±0.003       0.12
    scale                 66.37 ±0.62     68.22 ±0.45     0.634 ±0.006       0.17
    bivit                 66.45 ±0.74     67.27 ±0.47     0.655 ±0.009       0.30

    Swin                  top-1           agrees          KL                 tau
    float                 91.25           100             0
    sign                  65.38 ±0.73     66.83 ±0.47     0.524 ±0.009       0.28
    scale                 74.15 ±0.87     76.10 ±0.90     0.356 ±0.009       0.31
    bivit                 76.57 ±0.12     79.28 ±0.58     0.310 ±0.002       0.55

Scales gain 20.0 points on the DeiT (95 %: 18.2 to 21.9; the paper 17.8) and 8.8 on the Swin. The ranking loss makes the
rows' order agree better in every layer (attention.png); it gains 2.4 points on the Swin (1.3 to 3.5, all seeds) and
nothing on the DeiT (-1.1 to +1.3; the paper 4.3). From the baseline to the whole it is 20.1 points on the DeiT (the
paper 22.1) but 11.2 on the Swin (the paper 21.4), and 6.6 after 1,000 steps (75.75, 82.20, 82.35; one seed,
--config.method.steps=1000 --config.seeds=1): a map of ones is a mean over a window of 16 neighbours, in a model that
shifts and merges them, and less is lost by it.

Binary kernels with their scales are 23.3 (DeiT) and 26.3 (Swin) times smaller than in float32; operations 49.8 and 50.9
times fewer, 64 without the float ends.
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
        steps=250,
        learning_rate=2e-3,
        rows={label: {"name": "bivit", **PRESETS[label]} for label in ("sign", "scale")},
        seeds=3,
        order="sign<scale<bivit",
        data={"images": 2000},
    )
