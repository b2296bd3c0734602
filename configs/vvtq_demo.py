"""Training the embedded models at few bits: VVTQ from the float checkpoint, beside the best post-training rows.

    python -m jvq.main --config configs/vvtq_demo.py                  [--config.method.bits=3]
    python -m jvq.main --config configs/vvtq_demo.py:swin,2           vit, deit or swin; bits

Learned scales (an output channel of weights, a head of query, key, value and attention), the float checkpoint as the
teacher, the bin regulariser; patch embedding and head at 8 bits; two epochs. Interrupted, the same command with the
same --workdir goes on from the last checkpoint. MINUTES minutes on two cores with JAX_NUM_CPU_DEVICES=2.
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
