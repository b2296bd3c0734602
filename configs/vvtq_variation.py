"""Which part of a ViT suffers from few bits: VVTQ's leave-one-out, each row trained with one family left in float.

    python -m jvq.main --config configs/vvtq_variation.py                 [--config.method.epochs=3]
    python -m jvq.main --config configs/vvtq_variation.py:deit,2          vit, deit or swin; bits
    python -m jvq.variation --weights=fashion_vit --out=DIR               SDAM and kurtosis of every operand, seconds

The plain LSQ baseline, on labels, without a regulariser (spec section 2.1). "query", "key" and "value" leave those
operands of the products float; the kernel that makes them is one parameter and stays quantised, unlike in the paper.
The paper's order is: attention gains most, value more than query and key. Hours, not minutes; not measured yet.
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
