"""Which part of a ViT suffers from few bits: VVTQ's leave-one-out, each row trained with one family left in float.

    python -m jvq.main --config configs/vvtq_variation.py                 [--config.method.epochs=3]
    python -m jvq.main --config configs/vvtq_variation.py:deit,2          vit, deit or swin; bits
    python -m jvq.variation --weights=fashion_vit --out=DIR               SDAM and kurtosis of every operand, seconds

The plain LSQ baseline, on labels, without a regulariser (spec section 2.1). "query", "key" and "value" leave those
operands of the products float; the kernel that makes them is one parameter and stays quantised, unlike in the paper.
The paper's order is: attention gains most, value more than query and key. Hours with the defaults; with
--config.method.steps=100 (the embedded ViT at W3A3, three seeds, 2,000 test images) 55 minutes of a shared core:

                           top-1 %         agrees %        KL
    float                  91.95           100             0
    minmax                 62.68 ±1.41     64.25 ±1.13     0.672 ±0.012
    vvtq (lsq, all of it)  89.30 ±0.54     92.37 ±0.40     0.093 ±0.004
    without_attention      90.38 ±0.15     94.82 ±0.43     0.062 ±0.002
    without_mlp            90.30 ±0.13     94.67 ±0.08     0.069 ±0.002
    without_key            89.27 ±0.10     93.05 ±0.26     0.086 ±0.002
    without_query          89.03 ±0.26     92.65 ±0.05     0.091 ±0.003
    without_value          89.08 ±0.91     92.75 ±0.95     0.091 ±0.010

Attention in float gains most here too: 0.007 in KL over the MLP (0.002 to 0.011, all seeds), which gains 0.025 itself.
Value gains no more than query and less than key (0.005, 0.001 to 0.010, two of three seeds): the paper's order of the
three does not show, and the accuracies tell none of them apart.
"""

from jvq.config import config
from jvq.core.errors import nearest
from jvq.methods.vvtq import PRESETS

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}
FAMILIES = ("mlp", "attention", "query", "key", "value")


def get_config(arg=None):
    model, _, bits = (arg or "").partition(",")
    if model and model not in WEIGHTS:
        raise ValueError(f"config vvtq_variation.py:{model}: no such model{nearest(model, WEIGHTS)}")
    plain = PRESETS["lsq"]
    return config(
        "vvtq_variation" + (f"_{model}" if model else ""),
        "vvtq",
        weights=WEIGHTS[model or "vit"],
        bits=int(bits or 3),
        rows={f"without_{family}": {"name": "vvtq", "leave": family, **plain} for family in FAMILIES},
        seeds=3,
        order="vvtq<without_mlp<without_attention,without_query<without_value,without_key<without_value",
        data={"images": 2000},
        **plain,
    )
