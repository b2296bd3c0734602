"""What each part of Liu et al. 2021 gives on the embedded models: the paper's table 3 and more, three seeds.

    python -m jvq.main --config configs/liu21_ablation.py                  [--config.data.images=10000]
    python -m jvq.main --config configs/liu21_ablation.py:deit             one model: vit, deit or swin

Without an argument: all three, each in a folder of its own in the workdir. "liu21" is the whole method at one width,
with our granularity (a range an output channel of weights, a head of query, key and value, unsigned softmax); "sim" has
neither ranking nor bias correction, "sim_rank" and "sim_bias" one of them, "..._mixed" a width for each attention and
MLP at the same size. "paper" has the paper's granularity (a range a tensor, signed softmax, bias correction in the
search alone), "paper_mixed" also its sensitivity. "liu_igq" searches weights beside IGQ-ViT's activation groups.
"max" is no search at all, "minmax", "percentile" and "igq" are as everywhere in this project; all at the same widths,
patch embedding and head too. "igq_bops" allocates groups, "bits_groups" the width of each product and its groups
together, both at the bit-operations of "igq".

Measured one model at a time on one busy core (ViT 32 minutes, DeiT 43, Swin 61); float 91.95, 91.30, 91.25; calibration
on 32 images drawn by seeds 0, 1, 2, the first 2,000 test images; top-1, agreement with float, KL in thousandths:

    W6A6                          ViT                       DeiT                       Swin
                       top-1  agrees      KL       top-1  agrees      KL       top-1  agrees      KL
    minmax             91.88   98.48     3.7 ±0.1  90.93   98.17     6.2 ±0.3  91.40   99.08     1.7 ±0.3
    liu21              91.95   98.42     5.6 ±0.6  90.87   98.03     7.4 ±1.0  91.15   98.87     1.9 ±0.2
    percentile         91.35   97.18    16.0 ±1.3  91.03   97.50    17.3 ±1.1  91.22   99.30     1.2 ±0.1
    max                90.58   96.48    16.5 ±0.6  90.62   96.90    15.0 ±0.8  90.63   98.02     5.6 ±0.5
    easyquant          91.55   97.92     6.7 ±0.9  91.03   98.12     7.3 ±1.2  91.17   98.98     1.7 ±0.1
    bias_search        91.97   98.27     6.0 ±0.7  90.90   97.87     9.4 ±2.0  91.30   98.98     2.0 ±0.1
    bias_sequential    92.03   98.30     5.4 ±0.6  91.00   98.30     7.0 ±1.5  91.12   98.93     1.8 ±0.0
    igq                91.77   99.17     1.4 ±0.1  91.18   98.93     2.6 ±0.2  91.27   99.47     0.6 ±0.0
    liu21_mixed        91.90   98.58     4.4 ±0.4  90.92   98.43     5.4 ±0.9  91.12   99.03     1.5 ±0.0
    liu_igq            91.95   98.95     1.9 ±0.1  91.23   98.82     3.1 ±0.2  91.20   99.15     1.0 ±0.0
    normal_mixed       91.97   98.52     5.1 ±0.6  91.23   98.17     8.3 ±0.7  91.32   98.38     4.1 ±2.8
    nuclear_mixed      91.20   96.43    20.1 ±1.4  90.15   96.12    31.6 ±3.5  91.42   97.92     5.6 ±0.3
    paper              91.60   98.13     8.5 ±0.5  90.95   97.87    11.1 ±0.6  91.45   98.73     2.7 ±0.0
    paper_mixed        89.78   93.77    60.7 ±4.4  88.35   93.07    82.8 ±2.9  91.10   97.82     8.9 ±1.5
    rank_softmax       91.83   98.43     5.5 ±0.4  90.93   98.15     7.2 ±1.0  91.13   99.05     1.9 ±0.0
    rank_sum           91.67   97.93     7.1 ±1.2  90.98   97.87     9.4 ±1.7  91.30   98.87     1.9 ±0.2
    rows_all           91.88   98.28     5.5 ±0.4  91.00   98.15     8.0 ±0.8  91.15   99.03     1.9 ±0.1
    sim                91.52   97.97     6.8 ±1.1  91.00   98.18     7.2 ±1.0  91.12   99.03     1.7 ±0.0
    sim_bias           91.80   98.38     5.4 ±0.6  90.93   98.10     7.3 ±1.1  91.17   98.78     1.9 ±0.1
    sim_mixed          91.57   98.42     4.7 ±0.5  91.15   98.40     5.4 ±1.0  91.13   99.12     1.2 ±0.1
    sim_rank           91.53   97.95     7.0 ±0.9  91.05   98.30     7.2 ±1.1  91.17   99.02     1.6 ±0.1
    bits_groups        91.78   98.97     1.3 ±0.1  91.22   99.15     2.1 ±0.3  91.18   99.50     0.5 ±0.0
    igq_bops           91.82   99.10     1.4 ±0.1  91.25   98.80     2.6 ±0.2  91.42   99.40     0.6 ±0.0

    W4A4                          ViT                       DeiT                       Swin
                       top-1  agrees      KL       top-1  agrees      KL       top-1  agrees      KL
    minmax             86.37   89.17  139.8 ±14.0  83.38   87.02  233.2 ±25.6  83.43   86.53   187.8 ±7.3
    liu21              88.83   93.15    63.5 ±3.3  87.62   92.35    94.9 ±5.2  90.62   96.12    25.3 ±0.9
    percentile         87.62   90.97  107.9 ±31.4  87.58   91.95  113.4 ±10.4  87.42   92.12   74.5 ±32.0
    max                85.77   88.70  148.3 ±10.0  82.83   86.28   236.6 ±4.7  83.63   87.48   165.0 ±2.4
    easyquant          86.87   89.93   114.7 ±1.5  86.48   90.72  135.1 ±13.7  85.47   89.38   131.5 ±2.7
    bias_search        88.72   92.35    78.8 ±5.2  87.13   92.45   112.5 ±8.8  90.32   95.72    29.5 ±1.8
    bias_sequential    89.08   93.22    66.4 ±1.9  87.85   92.77    87.3 ±8.4  90.25   96.40    25.7 ±1.4
    igq                89.68   93.53    58.3 ±2.5  88.65   93.93    76.0 ±4.6  89.75   95.07    32.4 ±3.2
    liu21_mixed        89.28   93.77    56.4 ±4.7  89.07   94.37    63.4 ±7.5  90.20   96.07    27.1 ±1.8
    liu_igq            89.73   94.57    40.8 ±1.1  89.78   95.12    51.6 ±7.7  90.53   96.73    18.0 ±1.1
    normal_mixed       88.17   92.45   71.2 ±12.4  87.98   92.93    86.9 ±2.3  89.12   94.62    50.0 ±5.3
    nuclear_mixed      47.67   47.80 960.3 ±100.6  47.67   48.57 1175.6 ±22.6  49.27   50.68 1190.3 ±106.0
    paper              86.35   89.08  126.9 ±17.2  86.03   90.70  139.7 ±24.1  90.38   95.23    35.8 ±1.2
    paper_mixed        26.52   26.50 1627.1 ±40.6  18.93   19.05 2321.1 ±134.2  38.87   39.53 1224.6 ±31.8
    rank_softmax       89.35   93.28    62.3 ±2.2  87.33   92.35    95.0 ±6.7  90.20   96.13    25.5 ±0.5
    rank_sum           88.63   92.32    77.1 ±3.6  86.60   91.58  123.1 ±10.1  90.52   96.23    25.1 ±1.8
    rows_all           89.03   92.97    65.3 ±3.8  87.62   92.52  101.8 ±14.0  90.82   96.03    24.3 ±0.4
    sim                86.88   90.02   120.6 ±4.5  86.53   90.97  131.4 ±15.5  85.27   88.82   132.6 ±2.2
    sim_bias           89.35   93.12    62.0 ±2.5  87.33   92.35    95.0 ±6.7  90.17   96.07    24.9 ±0.7
    sim_mixed          89.57   93.97    56.9 ±5.0  89.07   93.80    64.6 ±0.9  90.37   95.62    32.5 ±0.9
    sim_rank           86.50   89.97  121.2 ±10.3  86.62   91.12   131.3 ±9.1  85.22   88.80   134.1 ±2.7
    bits_groups        91.13   96.27    21.8 ±4.4  90.80   96.13    36.4 ±3.1  90.33   96.12    22.0 ±6.5
    igq_bops           90.12   94.08    46.3 ±1.6  89.70   94.97    61.6 ±3.3  90.03   95.68    29.7 ±4.7

As it comes out (KL; 95 % intervals are in the report): at W4A4 the whole method is far above min-max in all three
models (Swin: 7 points); at W6A6 its top-1 and agreement are min-max's within the noise and its KL is no better: it
has no zero points, and "max", which is min-max without them, is worse still by far. Bias correction is what helps; in
the Swin at W4A4 it is nearly all. The ranking term changes nothing measurable in any model; as a sum it harms in ViT
and DeiT. Widths by KL gain at equal size in ViT and DeiT, at 6 bits in the Swin too; at 4 bits the Swin has nothing
left to gain. By the paper's nuclear norm they lose, at 4 bits everything: errors of feature maps, summed over all
entries, are 10**4 times those of attention maps, so that attentions get the least width; taken as parts of the sum
over each kind they are no better than equal widths. IGQ-ViT's groups beside searched weights have a lower KL than
either alone at W4A4 in all three. Widths and groups chosen together beat groups alone at equal bit-operations at W4A4
in all three (KL, certain; top-1 by 1.0 points in the ViT and 1.1 in the DeiT, certain), at W6A6 in DeiT and Swin
(KL).
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
GROUPS = {
    "igq": {},
    "igq_bops": dict(allocation="bops"),
    "bits_groups": dict(allocation="bops", allocation_widths=(3, 4, 5, 6, 8), candidates=(4, 8, 16)),
}
ORDER = (
    "minmax<liu21,max<sim<sim_rank<liu21<liu21_mixed,sim<sim_bias<liu21,nuclear_mixed<liu21_mixed,paper<paper_mixed,"
    "igq<liu_igq,igq<igq_bops<bits_groups"
)


def get_config(arg=None):
    if arg and arg not in WEIGHTS:
        raise ValueError(f"config liu21_ablation.py:{arg}: no such model{nearest(arg, WEIGHTS)}")
    rows = {label: {"name": "liu21", **row} for label, row in ROWS.items()}
    rows |= {label: {"name": "igq", **row} for label, row in GROUPS.items()}
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
