"""The names of timm, and of the repositories that took them over: DeiT, DeiT III, DINO, DINOv2, MAE, Swin.

timm moved Swin's downsampling from the end of a stage to the beginning of the next (0.9), and its classifier from
``head`` to ``head.fc``; the original repository has the older names. The rows write the newer ones.
"""

import re

from jvq.models.weights.table import Arrays, Row, Table

CONV, LINEAR = "o c p q -> p q c o", "o d -> d o"
QKV_KERNEL, QKV_BIAS = "(s o) d -> d s o", "(s o) -> s o"
SAME, TOKENS = "d -> d", "a n d -> a n d"
SWIGLU = "a feed-forward with SwiGLU is not built (DINOv2 giant)"


def linear(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a dense layer; ``theirs`` may hold several templates."""
    kernels, biases = ("|".join(f"{t}.{end}" for t in theirs.split("|")) for end in ("weight", "bias"))
    return Row(kernels, f"{ours}/kernel", LINEAR), Row(biases, f"{ours}/bias", SAME)


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a LayerNorm."""
    scales, biases = ("|".join(f"{t}.{end}" for t in theirs.split("|")) for end in ("weight", "bias"))
    return Row(scales, f"{ours}/scale", SAME), Row(biases, f"{ours}/bias", SAME)


def block(theirs: str, ours: str) -> tuple[Row, ...]:
    """The rows that a ViT's and a Swin's block share."""
    return (
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        Row(f"{theirs}.attn.qkv.weight", f"{ours}/attn/qkv/kernel", QKV_KERNEL),
        Row(f"{theirs}.attn.qkv.bias", f"{ours}/attn/qkv/bias", QKV_BIAS),
        *linear(f"{theirs}.attn.proj", f"{ours}/attn/proj"),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2"),
    )


def unchunked(arrays: Arrays) -> Arrays:
    """DINOv2's training keeps its blocks in chunks, ``blocks.0.3.``, where the second number counts through."""
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): x for name, x in arrays.items()}


def merged_before(arrays: Arrays) -> Arrays:
    """Swin with the downsampling where timm has had it since 0.9, at the beginning of a stage."""
    if not any(name.startswith("layers.0.downsample.") for name in arrays):
        return arrays

    def moved(found: re.Match[str]) -> str:
        return f"layers.{int(found[1]) + 1}.downsample."

    return {re.sub(r"^layers\.(\d+)\.downsample\.", moved, name): x for name, x in arrays.items()}


VIT = Table(
    "timm",
    "vit",
    rows=(
        Row("cls_token", "cls", TOKENS),
        Row("dist_token", "dist", TOKENS),
        Row("reg_token|register_tokens", "reg", TOKENS),
        Row("pos_embed", "pos", TOKENS),
        Row("patch_embed.proj.weight", "patch/kernel", CONV),
        Row("patch_embed.proj.bias", "patch/bias", SAME),
        *block("blocks.{i}", "block{i:02d}"),
        Row("blocks.{i}.ls1.gamma|blocks.{i}.gamma_1", "block{i:02d}/scale1/gamma", SAME),
        Row("blocks.{i}.ls2.gamma|blocks.{i}.gamma_2", "block{i:02d}/scale2/gamma", SAME),
        *norm("norm|fc_norm", "norm"),
        *linear("pre_logits.fc", "pre_logits"),
        *linear("head", "head"),
        *linear("head_dist", "head_dist"),
    ),
    prepare=unchunked,
    ignored=r"^mask_token$|^num_batches_tracked$",
    refused={
        r"\.mlp\.(w12|w3|w1|w2|fc1_g)\.": SWIGLU,
        r"^attn_pool\.": "pooling by attention (MAP) is not built",
        r"^norm_pre\.": "a norm in front of the blocks (CLIP) is not built",
        r"\.attn\.(q|k)_norm\.": "norms of queries and keys are not built",
        r"\.attn\.(relative_position_bias_table|q_bias)$": "BEiT's attention is not built",
        r"^patch_embed\.backbone\.": "a convolutional stem (hybrid ViT) is not built",
    },
)

SWIN = Table(
    "timm",
    "swin",
    rows=(
        Row("patch_embed.proj.weight", "patch/kernel", CONV),
        Row("patch_embed.proj.bias", "patch/bias", SAME),
        *norm("patch_embed.norm", "patch_norm"),
        *block("layers.{i}.blocks.{j}", "stage{i}/block{j:02d}"),
        Row(
            "layers.{i}.blocks.{j}.attn.relative_position_bias_table",
            "stage{i}/block{j:02d}/attn/bias_table",
            "n h -> n h",
        ),
        *norm("layers.{next}.downsample.norm", "stage{i}/merge/norm"),
        Row("layers.{next}.downsample.reduction.weight", "stage{i}/merge/reduce/kernel", LINEAR),
        *norm("norm", "norm"),
        *linear("head.fc|head", "head"),
    ),
    prepare=merged_before,
    ignored=r"\.(attn_mask|relative_position_index|relative_coords_table)$",
    refused={
        r"\.attn\.(logit_scale|cpb_mlp)": "Swin V2 is not built",
        r"^absolute_pos_embed$": "Swin with absolute positions is not built",
    },
)
