"""Training the embedded models at few bits: VVTQ from the float checkpoint, beside the best post-training rows.

    python -m jvq.main --config configs/vvtq_demo.py                  [--config.method.bits=3]
    python -m jvq.main --config configs/vvtq_demo.py:swin,2           vit, deit or swin; bits

Learned scales (an output channel of weights, a head of query, key, value and attention), the float checkpoint as the
teacher, the bin regulariser; patch embedding and head at 8 bits; two epochs (936 steps). Interrupted, the same command
with the same --workdir goes on from the last checkpoint. With JAX_NUM_CPU_DEVICES=2 on two cores that did other work
beside it each took 8 minutes (3 bits, beside more: 14).

The ViT, seed 0, 10,000 test images, top-1 in % (float 91.07) and KL; codes that oscillate when training ended:

             minmax           igq              vvtq             less than float    oscillate
    W4A4     85.89   .1304    89.41   .0353    90.59   .0169    0.48               3.3 %
    W3A3     63.84   .6505    86.87   .0983    89.96   .0351    1.11               0.5 %
    W2A2     10.54   2.175    57.86   .7770    86.87   .0992    4.20               0.3 %

Without the regulariser (--config.method.bin_strength=0) W4A4 ends at 90.57, KL .0153, and 10.6 % oscillate: the
regulariser takes away two thirds of the oscillation and no accuracy. At a tenth of its strength (0.001) 6.8 %
oscillate; there W2A2 ended at 87.58, KL .0894, so that at two bits the strength may cost some accuracy.

DeiT and Swin, the same (float 90.13 and 90.93), each on one core that was shared, about 10 minutes:

             minmax           igq              vvtq             less than float    oscillate
    DeiT W2  12.32   3.029    42.13   1.596    85.97   .1257    4.16               0.4 %
    Swin W2  13.16   1.644    50.11   .8150    88.22   .0521    2.71               0.2 %
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
