"""The names of Hugging Face transformers: ViT, DeiT, DINOv2 (with registers), Swin.

Files carry the names of version 4, which version 5 still writes; a ``state_dict`` of version 5 has ``q_proj`` and the
like, which stand behind the "|".
"""

import re

from jvq.models.weights.table import Arrays, Row, Table
from jvq.models.weights.timm import CONV, LINEAR, SAME, SWIGLU, TOKENS, linear, norm

PARTS = ("query", "key", "value")
KERNELS, BIASES = "s o d -> d s o", "s o -> s o"
EMBEDDINGS = "embeddings.patch_embeddings.projection"


def stripped(arrays: Arrays) -> Arrays:
    """Without the model's name in front, and version 5's names of the attention as version 4's."""

    def plain(name: str) -> str:
        name = re.sub(r"^(vit|deit|dinov2|dinov2_with_registers|swin)\.", "", name)
        name = re.sub(r"^layers\.(\d+)\.(?!blocks)", r"encoder.layer.\1.", name)
        inner = "self" if name.startswith("encoder.layers.") else "attention"
        for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
            name = name.replace(f".attention.{short}_proj.", f".attention.{inner}.{long}.")
        name = name.replace(".attention.o_proj.", ".attention.output.dense.")
        return name.replace(".attention.relative_position_bias.", ".attention.self.")

    return {plain(name): x for name, x in arrays.items()}


def attention(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows of an attention whose queries, keys and values are at ``theirs``.{s}."""
    return (
        Row(f"{theirs}.{{s}}.weight", f"{ours}/qkv/kernel", KERNELS),
        Row(f"{theirs}.{{s}}.bias", f"{ours}/qkv/bias", BIASES),
        *linear(f"{theirs.rpartition('.')[0]}.output.dense", f"{ours}/proj"),
    )


VIT = Table(
    "Hugging Face",
    "vit",
    rows=(
        Row("embeddings.cls_token", "cls", TOKENS),
        Row("embeddings.distillation_token", "dist", TOKENS),
        Row("embeddings.register_tokens", "reg", TOKENS),
        Row("embeddings.position_embeddings", "pos", TOKENS),
        Row(f"{EMBEDDINGS}.weight", "patch/kernel", CONV),
        Row(f"{EMBEDDINGS}.bias", "patch/bias", SAME),
        *norm("encoder.layer.{i}.layernorm_before|encoder.layer.{i}.norm1", "block{i:02d}/norm1"),
        *attention("encoder.layer.{i}.attention.attention", "block{i:02d}/attn"),
        Row("encoder.layer.{i}.layer_scale1.lambda1", "block{i:02d}/scale1/gamma", SAME),
        *norm("encoder.layer.{i}.layernorm_after|encoder.layer.{i}.norm2", "block{i:02d}/norm2"),
        *linear("encoder.layer.{i}.intermediate.dense|encoder.layer.{i}.mlp.fc1", "block{i:02d}/mlp/fc1"),
        *linear("encoder.layer.{i}.output.dense|encoder.layer.{i}.mlp.fc2", "block{i:02d}/mlp/fc2"),
        Row("encoder.layer.{i}.layer_scale2.lambda1", "block{i:02d}/scale2/gamma", SAME),
        *norm("layernorm", "norm"),
        *linear("classifier|cls_classifier", "head"),
        *linear("distillation_classifier", "head_dist"),
    ),
    parts=PARTS,
    prepare=stripped,
    ignored=r"^pooler\.|^embeddings\.mask_token$|^decoder\.",
    refused={r"\.mlp\.weights_(in|out)\.": SWIGLU},
)

SWIN = Table(
    "Hugging Face",
    "swin",
    rows=(
        Row(f"{EMBEDDINGS}.weight", "patch/kernel", CONV),
        Row(f"{EMBEDDINGS}.bias", "patch/bias", SAME),
        *norm("embeddings.norm", "patch_norm"),
        *norm("encoder.layers.{i}.blocks.{j}.layernorm_before", "stage{i}/block{j:02d}/norm1"),
        *attention("encoder.layers.{i}.blocks.{j}.attention.self", "stage{i}/block{j:02d}/attn"),
        Row(
            "encoder.layers.{i}.blocks.{j}.attention.self.relative_position_bias_table",
            "stage{i}/block{j:02d}/attn/bias_table",
            "n h -> n h",
        ),
        *norm("encoder.layers.{i}.blocks.{j}.layernorm_after", "stage{i}/block{j:02d}/norm2"),
        *linear(
            "encoder.layers.{i}.blocks.{j}.intermediate.dense|encoder.layers.{i}.blocks.{j}.mlp.fc1",
            "stage{i}/block{j:02d}/mlp/fc1",
        ),
        *linear(
            "encoder.layers.{i}.blocks.{j}.output.dense|encoder.layers.{i}.blocks.{j}.mlp.fc2",
            "stage{i}/block{j:02d}/mlp/fc2",
        ),
        *norm("encoder.layers.{i}.downsample.norm", "stage{i}/merge/norm"),
        Row("encoder.layers.{i}.downsample.reduction.weight", "stage{i}/merge/reduce/kernel", LINEAR),
        *norm("layernorm", "norm"),
        *linear("classifier", "head"),
    ),
    parts=PARTS,
    prepare=stripped,
    ignored=r"\.relative_position_index$|^embeddings\.mask_token$|^decoder\.|^pooler\.",
    refused={
        r"\.(logit_scale|continuous_position_bias_mlp)": "Swin V2 is not built",
        r"^embeddings\.position_embeddings$": "Swin with absolute positions is not built",
    },
)
