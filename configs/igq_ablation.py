"""Every baseline and every option of IGQ-ViT on an embedded model, one table, three calibration seeds; all figures.

    python -m jvq.main --config configs/igq_ablation.py [--config.data.images=2000]
    python -m jvq.main --config configs/igq_ablation.py:deit
    python -m jvq.main --config configs/igq_ablation.py:swin
    python -m jvq.main --config configs/igq_ablation.py:vit,front        accuracy against bit-operations, W2 to W8

Rows that differ from "igq" (8 groups, our defaults) in one thing have its name. Each is fitted to 32 training images of
Fashion-MNIST, drawn by the seed (0, 1, 2), which also starts k-means, and evaluated on 10,000 test images. Patch
embedding and head at 8 bits. All rows, seeds and images take some 40 minutes a model on two cores (an estimate: it has
not been run whole); 2,000 images a quarter of that. "order" tests neighbours of the paper's order in pairs of images.
"""

from jvq.config import config
from jvq.core.errors import nearest

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}
GROUPS = (1, 2, 4, 12, 16, 24, 32)
BASELINES = {
    "percentile": dict(name="minmax", range="percentile"),
    "mse": dict(name="minmax", range="mse", weight_range="mse"),
    "static_consecutive": dict(linear="consecutive"),
    "static_sorted": dict(linear="sorted"),
    "static_kmeans": dict(linear="kmeans"),
    "linear_only": dict(softmax="layer"),
    "softmax_only": dict(linear="layer"),
    "neither": dict(linear="layer", softmax="layer"),
    "weights_only": dict(act_bits=32),
}
OPTIONS = {
    "bounds_mean": dict(mstep="mean"),
    "bounds_cover": dict(mstep="cover"),
    "zero_point_clamp": dict(zero_point="clamp"),
    "distance_absolute": dict(distance="absolute"),
    "distance_relative": dict(distance="relative"),
    "start_quantile": dict(start="quantile"),
    "pooled": dict(statistics="pooled"),
    "rows_by_token": dict(softmax_along="q"),
    "ladder": dict(ladder=True),
    "weights_mse": dict(weight_range="mse"),
    "weights_percentile": dict(weight_range="percentile"),
    "qkv_tensor": dict(qkv="tensor"),
    "qkv_max": dict(qkv_range="max"),
    "sequential": dict(sequential=True),
}
ALLOCATED = {
    "igq_8_bops": dict(allocation="bops"),
    "igq_8_mean": dict(allocation="mean_groups"),
    "igq_12_bops": dict(groups=12, allocation="bops"),
}
ORDER = "minmax<igq<igq_8_bops<igq_upper_bound,igq<igq_12<igq_12_bops<igq_upper_bound"


FRONT = {f"igq_{g}": dict(groups=g) for g in (4, 16)} | {"ladder": dict(ladder=True)}
FRONT_WIDTHS = "W7A7,W6A6,W5A5,W4A4,W3A3,W2A2"  # 8 bits leave the ladder no room in int8


def get_config(arg=None):
    model, _, part = (arg or "").partition(",")
    if model and model not in WEIGHTS:
        raise ValueError(f"config igq_ablation.py:{model}: no such model{nearest(model, WEIGHTS)}")
    if part not in ("", "front"):
        raise ValueError(f"config igq_ablation.py:{arg}: no part '{part}'{nearest(part, ['front'])}")
    table = BASELINES | {f"igq_{g}": dict(groups=g) for g in GROUPS} | OPTIONS | ALLOCATED
    rows = {label: {"name": "igq", **row} for label, row in table.items()}
    front = {label: {"name": "igq", **row} for label, row in FRONT.items()}
    parts = {}
    for name, weights in WEIGHTS.items() if not model else ():
        parts[name] = dict(weights=weights)
        parts[f"{name}_front"] = dict(weights=weights, rows=front, widths=FRONT_WIDTHS, order="")
    return config(
        "igq_ablation" + (f"_{model}" if model else "") + (f"_{part}" if part else ""),
        "igq",
        weights=WEIGHTS[model or "vit"],
        bits=4,
        rows=front if part else rows,
        widths=FRONT_WIDTHS if part else "",
        seeds=3,
        order="" if part else ORDER,
        data={"images": 2000},
        parts=parts,
    )
