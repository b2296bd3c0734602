"""Liu et al. 2021 on DeiT-B and ImageNet: the paper's setting.

    python -m jvq.main --config configs/liu21_deitb.py --config.data.dir=IMAGENET [--config.method.mixed=True]
    python -m jvq.main --config configs/liu21_deitb.py:deit_s ...                                  (deit_s deit_b)

IMAGENET is a folder with ``train/`` and ``val/``, each with a folder a class (n01440764, ...); or, for the prepared
tfds set, --config.data.name=tfds:imagenet2012 --config.data.test=validation. Calibration: 1,000 training images, drawn
by the seed. The weights are fetched on first use (346 MB for DeiT-B).

What the paper reports (Liu et al. 2021, table 1; top-1; MP: a width for each attention and MLP; size in 10**6 bytes):

    width              DeiT-S          DeiT-B
    float              79.8   88       81.8   344
    6                  74.58  16.5     77.02  64.5
    6 MP               75.10  16.6     77.47  64.3
    8                  77.47  22.0     80.48  86.0
    8 MP               78.09  22.2     81.29  86.8
    4 MP               -               75.94  43.6
    percentile, 6      70.49  16.5     73.99  64.5
    percentile, 8      73.98  22.0     75.21  86.0
    EasyQuant, 6       73.26  16.5     75.86  64.5
    EasyQuant, 8       76.59  22.0     79.36  86.0

The options here are the paper's letter as far as it is known: a range a tensor, signed codes everywhere, all layers at
the width, nuclear norm as sensitivity. Where it is silent ours stand; tables in configs/liu21_ablation.py have both.
We have no ImageNet here and have not measured these rows: this whole path runs in tests/test_imagenet.py, on
random weights and made-up images. How many minutes it takes is not known for the same reason; a search costs some
tens of forward passes of its images.
"""

from jvq.config import config
from jvq.core.errors import nearest

WEIGHTS = {
    "deit_s": "timm/deit_small_patch16_224.fb_in1k",
    "deit_b": "timm/deit_base_patch16_224.fb_in1k",
}
NEEDS = (
    "ImageNet as a folder with train/ and val/, a folder a class in each (--config.data.dir=FOLDER), or prepared by "
    "tfds (--config.data.name=tfds:imagenet2012 --config.data.test=validation), and the weights, fetched on first use "
    "or named as a file (--config.weights=FILE). Nothing to fetch: configs/liu21_demo.py"
)


def get_config(arg=None):
    name = arg or "deit_b"
    if name not in WEIGHTS:
        raise ValueError(f"config liu21_deitb.py:{name}: no such model{nearest(name, WEIGHTS)}")
    return config(
        "liu21_deitb" if name == "deit_b" else f"liu21_{name}",
        "liu21",
        weights=WEIGHTS[name],
        data=dict(name="folder", test="val", batch=50, calibration=1000),
        needs=NEEDS,
        bits=6,
        granularity="tensor",
        qkv="tensor",
        softmax="signed",
        bias_correction="search",
        sensitivity="nuclear",
    )
