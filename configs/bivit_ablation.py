"""What each part of Bi-ViT gives on the embedded models: four tables, three seeds.

    python -m jvq.main --config configs/bivit_ablation.py                   scales and ranking, as in the paper
    python -m jvq.main --config configs/bivit_ablation.py:deit,maps         what an attention map becomes
    python -m jvq.main --config configs/bivit_ablation.py:deit,ranking      margin, weight, pairs, space of the ranking
    python -m jvq.main --config configs/bivit_ablation.py:deit,widths       W1A2, ternary weights, two courses, W1A32

vit, deit or swin; table. "bivit" is our default; rows have the name of the one thing in which they differ.
A training takes about a minute of one core, a table eight to thirteen minutes. Not measured yet; sign, scale and the
whole method are in bivit_demo.py.
"""

from jvq.config import config
from jvq.core.errors import nearest
from jvq.methods.bivit import PRESETS

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}
TABLES = {
    "parts": {label: PRESETS[label] for label in ("sign", "half", "scale", "ranking")},
    "maps": {
        **{label: PRESETS[label] for label in ("scale", "half", "release", "release_minus", "bit", "bibert")},
        "no_norm": dict(qk_norm="no"),
        "norm": dict(qk_norm="yes"),
        "true_slope": dict(slope="true"),
    },
    "ranking": {
        "scale": PRESETS["scale"],
        "weak": dict(gamma=0.3),
        "strong": dict(gamma=3.0),
        "no_margin": dict(theta=0.0),
        "adjacent": dict(pairs="adjacent"),
        "log": dict(space="log"),
        "soft_only": dict(distillation="soft"),
    },
    "widths": {
        "w1a2": dict(act_bits=2),
        "ternary": dict(weight_bits=2, kernels="ternary"),
        "w1a32": dict(act_bits=32),
        "two_courses": dict(first=0.5),
    },
}
ORDERS = {
    "parts": "sign<scale<bivit,sign<ranking<bivit,half<scale",
    "maps": "half<scale<bivit,release<scale,bibert<scale,bit<scale",
    "ranking": "scale<weak<bivit<strong,no_margin<bivit,adjacent<bivit,log<bivit",
    "widths": "bivit<two_courses,bivit<ternary,bivit<w1a2<w1a32",
}


def get_config(arg=None):
    model, table = [*(arg or "").split(","), ""][:2]
    if model and model not in WEIGHTS:
        raise ValueError(f"config bivit_ablation.py:{model}: no such model{nearest(model, WEIGHTS)}")
    if table and table not in TABLES:
        raise ValueError(f"config bivit_ablation.py:{arg}: no such table{nearest(table, TABLES)}")
    table = table or "parts"
    return config(
        "bivit_ablation" + (f"_{model}" if model else "") + (f"_{table}" if table != "parts" else ""),
        "bivit",
        weights=WEIGHTS[model or "deit"],
        steps=250,
        learning_rate=2e-3,
        rows={label: {"name": "bivit", **row} for label, row in TABLES[table].items()},
        seeds=3,
        order=ORDERS[table],
        data={"images": 2000},
    )
