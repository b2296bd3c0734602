"""What each part of Liu et al. 2021 gives on the embedded models: the paper's table 3 and more, three seeds.

    python -m jvq.main --config configs/liu21_ablation.py                  [--config.data.images=10000]
    python -m jvq.main --config configs/liu21_ablation.py:deit             one model: vit, deit or swin

Without an argument: all three, each in a folder of its own in the workdir. "liu21" is the whole method at one width,
with our granularity (a range an output channel of weights, a head of query, key and value, unsigned softmax); "sim" has
neither ranking nor bias correction, "sim_rank" and "sim_bias" one of them, "..._mixed" a width for each attention and
MLP at the same size. "paper" has the paper's granularity (a range a tensor, signed softmax, bias correction in the
search alone), "paper_mixed" also its sensitivity. "liu_igq" searches weights beside IGQ-ViT's activation groups.
"max" is no search at all, "minmax", "percentile" and "igq" are as everywhere in this project; all at the same widths,
patch embedding and head too.
"""

from jvq.config import config
from jvq.core.errors import nearest

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}
SIMILARITY = dict(ranking=False, bias_correction="none")
PAPER = dict(granularity="tensor", qkv="tensor", softmax="signed", bias_correction="search")
ROWS = {
    "sim": SIMILARITY,
    "sim_rank": dict(bias_correction="none"),
    "sim_bias": dict(ranking=False),
    "sim_mixed": dict(mixed=True, **SIMILARITY),
    "liu21_mixed": dict(mixed=True),
    "nuclear_mixed": dict(mixed=True, sensitivity="nuclear"),
    "normal_mixed": dict(mixed=True, sensitivity="nuclear", normalized=True),
    "bias_search": dict(bias_correction="search"),
    "bias_sequential": dict(bias_correction="sequential"),
    "rank_sum": dict(ranking_pairs="sum"),
    "rank_softmax": dict(ranking_at="softmax"),
    "rows_all": dict(rows=None),
    "paper": PAPER,
    "paper_mixed": dict(mixed=True, sensitivity="nuclear", **PAPER),
    "liu_igq": dict(activations="groups"),
}
ORDER = (
    "minmax<liu21,max<sim<sim_rank<liu21<liu21_mixed,sim<sim_bias<liu21,nuclear_mixed<liu21_mixed,paper<paper_mixed,"
    "igq<liu_igq"
)


def get_config(arg=None):
    if arg and arg not in WEIGHTS:
        raise ValueError(f"config liu21_ablation.py:{arg}: no such model{nearest(arg, WEIGHTS)}")
    rows = {label: {"name": "liu21", **row} for label, row in ROWS.items()} | {"igq": {"name": "igq"}}
    return config(
        f"liu21_ablation_{arg}" if arg else "liu21_ablation",
        "liu21",
        weights=WEIGHTS[arg or "vit"],
        bits=4,
        rows=rows,
        widths="W6A6,W4A4",
        seeds=3,
        order=ORDER,
        data={"images": 2000},
        parts={} if arg else {name: dict(weights=weights) for name, weights in WEIGHTS.items()},
    )
