"""The names of the ViT repositories of Google Research: vision_transformer (AugReg's ``.npz``) and big_vision.

big_vision numbers attention, norm and MLP of a block 0, 0 and 0, 1 where the older code counts all of them together,
writes its positions without the class token, may keep all blocks in one array (scanned), and knows models without a
class token.
"""

from jvq.models.weights.table import Arrays, Row, Table

ROOTS = ("opt/target/", "params/img/", "params/", "target/", "img/")  # of the tree, in what was saved around it
SCANNED = "Transformer/encoderblock/"
ATTENTION = "MultiHeadDotProductAttention"


def dense(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a dense layer, kernels [d o] as ours."""
    kernels, biases = ("|".join(f"{t}/{end}" for t in theirs.split("|")) for end in ("kernel", "bias"))
    return Row(kernels, f"{ours}/kernel", "d o -> d o"), Row(biases, f"{ours}/bias", "d -> d")


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a LayerNorm."""
    scales, biases = ("|".join(f"{t}/{end}" for t in theirs.split("|")) for end in ("scale", "bias"))
    return Row(scales, f"{ours}/scale", "d -> d"), Row(biases, f"{ours}/bias", "d -> d")


def either(block: str, *names: str) -> str:
    """Templates below a block, separated as a row wants them."""
    return "|".join(f"{block}/{name}" for name in names)


def plain(arrays: Arrays) -> Arrays:
    """The bare tree: no root in front, no optimiser state, blocks that were scanned apart."""
    for root in ROOTS:
        if any(name.startswith(f"{root}embedding/") for name in arrays):
            arrays = {name.removeprefix(root): x for name, x in arrays.items() if name.startswith(root)}
    found: Arrays = {}
    for name, x in arrays.items():
        if name.startswith(SCANNED):
            found |= {f"{SCANNED[:-1]}_{i}/{name.removeprefix(SCANNED)}": part for i, part in enumerate(x)}
        else:
            found[name] = x
    return found


BLOCK = "Transformer/encoderblock_{i}"

VIT = Table(
    "augreg",
    "vit",
    rows=(
        Row("cls", "cls", "a n d -> a n d"),
        Row("Transformer/posembed_input/pos_embedding|pos_embedding", "pos", "a n d -> a n d"),
        Row("embedding/kernel", "patch/kernel", "p q c d -> p q c d"),
        Row("embedding/bias", "patch/bias", "d -> d"),
        *norm(either(BLOCK, "LayerNorm_0"), "block{i:02d}/norm1"),
        Row(
            either(BLOCK, f"{ATTENTION}_1/{{s}}/kernel", f"{ATTENTION}_0/{{s}}/kernel"),
            "block{i:02d}/attn/qkv/kernel",
            "s d h e -> d s h e",
        ),
        Row(
            either(BLOCK, f"{ATTENTION}_1/{{s}}/bias", f"{ATTENTION}_0/{{s}}/bias"),
            "block{i:02d}/attn/qkv/bias",
            "s h e -> s h e",
        ),
        Row(
            either(BLOCK, f"{ATTENTION}_1/out/kernel", f"{ATTENTION}_0/out/kernel"),
            "block{i:02d}/attn/proj/kernel",
            "h e o -> (h e) o",
        ),
        Row(
            either(BLOCK, f"{ATTENTION}_1/out/bias", f"{ATTENTION}_0/out/bias"), "block{i:02d}/attn/proj/bias", "d -> d"
        ),
        *norm(either(BLOCK, "LayerNorm_2", "LayerNorm_1"), "block{i:02d}/norm2"),
        *dense(either(BLOCK, "MlpBlock_3/Dense_0", "MlpBlock_0/Dense_0"), "block{i:02d}/mlp/fc1"),
        *dense(either(BLOCK, "MlpBlock_3/Dense_1", "MlpBlock_0/Dense_1"), "block{i:02d}/mlp/fc2"),
        *norm("Transformer/encoder_norm", "norm"),
        *dense("pre_logits", "pre_logits"),
        *dense("head", "head"),
    ),
    parts=("query", "key", "value"),
    prepare=plain,
    refused={
        r"^MAPHead_0/": "pooling by attention (MAP) is not built",
        r"^conv_root/|^block\d": "a convolutional stem (hybrid ViT) is not built",
    },
)
