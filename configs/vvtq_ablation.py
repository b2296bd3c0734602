"""What each part of VVTQ gives on the embedded models, and what the field has added since: four tables.

    python -m jvq.main --config configs/vvtq_ablation.py                   distillation, module-dependent scales, bins
    python -m jvq.main --config configs/vvtq_ablation.py:vit,2,field       TRS, OFQ, GPLQ
    python -m jvq.main --config configs/vvtq_ablation.py:vit,2,scales      which weights share a scale, how bins add up
    python -m jvq.main --config configs/vvtq_ablation.py:vit,2,presets     as released, as described, stored crops, LSQ

vit, deit or swin; bits; table. --config.model.merged=True makes query and key one matrix (OFQ) in all rows of a table.
"vvtq" is our default; rows have the name of the one thing in which they differ, presets of several. Three seeds
(calibration images, order of the training images, augmentation), 2,000 test images. Each run is 150 steps of 128 images
(a third of an epoch), about three minutes of a core: hours with --config.method.steps=0 --config.method.epochs=6.
"""

from jvq.config import config
from jvq.core.errors import nearest
from jvq.methods.vvtq import PRESETS

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}
TABLES = {
    "parts": {
        "labels": dict(distillation="none"),
        "no_bins": dict(bin_strength=0.0),
        "mdq_off": dict(mdq="off"),
        "lsq": PRESETS["lsq"],
    },
    "field": {
        "transitions": dict(transitions=1e-3, bin_strength=0.0),
        "anneal": dict(anneal=0.2, bin_strength=0.0),
        "anneal_wide": dict(anneal=0.2, anneal_band=0.05, bin_strength=0.0),
        "no_bins": dict(bin_strength=0.0),
        "activations_first": dict(stage="activations", distillation="features"),
        "features": dict(distillation="features"),
    },
    "scales": {
        "mdq_lr": dict(mdq="lr"),
        "per_tensor": dict(granularity="tensor"),
        "per_head": dict(granularity="head"),
        "no_offset": dict(offset="none"),
        "bins_mean": dict(bins="mean", bin_variance="unbiased"),
    },
    "presets": {"stored": dict(distillation="stored"), **PRESETS},
}
ORDERS = {
    "parts": "minmax<igq<lsq<vvtq,no_bins<vvtq,labels<vvtq,mdq_off<vvtq",
    "field": "no_bins<transitions,no_bins<anneal,activations_first<vvtq",
    "scales": "per_tensor<per_head<vvtq",
    "presets": "lsq<released<vvtq,released<paper",
}


def get_config(arg=None):
    model, bits, table = [*(arg or "").split(","), "", ""][:3]
    if model and model not in WEIGHTS:
        raise ValueError(f"config vvtq_ablation.py:{model}: no such model{nearest(model, WEIGHTS)}")
    if table and table not in TABLES:
        raise ValueError(f"config vvtq_ablation.py:{arg}: no such table{nearest(table, TABLES)}")
    table = table or "parts"
    return config(
        "vvtq_ablation" + (f"_{model}" if model else "") + (f"_{table}" if table != "parts" else ""),
        "vvtq",
        weights=WEIGHTS[model or "vit"],
        bits=int(bits or 2),
        steps=150,
        learning_rate=1e-3,
        rows={label: {"name": "vvtq", **row} for label, row in TABLES[table].items()} | {"igq": {"name": "igq"}},
        seeds=3,
        order=ORDERS[table],
        data={"images": 2000},
    )
