"""Training the embedded models at few bits: VVTQ from the float checkpoint, beside the best post-training rows.

    python -m jvq.main --config configs/vvtq_demo.py                  [--config.method.bits=3]
    python -m jvq.main --config configs/vvtq_demo.py:swin,2           vit, deit or swin; bits

Learned scales (an output channel of weights, a head of query, key, value and attention), the float checkpoint as the
teacher, the bin regulariser; patch embedding and head at 8 bits; two epochs (936 steps). Interrupted, the same command
with the same --workdir goes on from the last checkpoint. A step takes 0.58 s on two idle cores with
JAX_NUM_CPU_DEVICES=2 (benchmarks/training.py), so about eleven minutes in all; on one busy core it took 16 to 28.

The ViT, seed 0, 10,000 test images, top-1 in % (float 91.07) and KL:

             minmax           igq              vvtq             less than float
    W4A4     85.91   .1304    89.60   .0359    90.62   .0164    0.45
    W3A3     63.83   .6505    86.81   .0988    89.92   .0354    1.15
    W2A2     10.54   2.175    58.28   .7730    87.58   .0894    3.49

Oscillating weights when one epoch at W4A4 ended: 3.7 %, without the regulariser 5.2 % (the tracker remembers 1,000
steps, more than there were). DeiT and Swin are not measured yet.
"""

from jvq.config import config
from jvq.core.errors import nearest

WEIGHTS = {"vit": "fashion_vit", "deit": "fashion_deit", "swin": "fashion_swin"}


def get_config(arg=None):
    model, _, bits = (arg or "").partition(",")
    if model and model not in WEIGHTS:
        raise ValueError(f"config vvtq_demo.py:{model}: no such model{nearest(model, WEIGHTS)}")
    return config(
        "vvtq_demo" + (f"_{model}" if model else ""),
        "vvtq",
        weights=WEIGHTS[model or "vit"],
        bits=int(bits or 4),
        epochs=2,
        learning_rate=2e-3 if bits == "2" else 1e-3,
        rows={"igq": {"name": "igq"}},
    )
