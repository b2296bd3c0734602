"""Our own parameter tree without our header: a checkpoint of orbax, or plain safetensors named by path."""

from jvq.models.weights.table import Arrays, Row, Table


def rooted(arrays: Arrays) -> Arrays:
    """Without what was saved around it, and patch kernels and projections in the form that a table's rows have."""
    for root in ("params/", "params/params/", "model/", "state/params/"):
        if f"{root}patch/kernel" in arrays:
            return {name.removeprefix(root): x for name, x in arrays.items() if name.startswith(root)}
    return arrays


def rows(block: str) -> tuple[Row, ...]:
    """The rows of a block, whose names are ours already."""
    layers = (
        "norm1/scale",
        "norm1/bias",
        "norm2/scale",
        "norm2/bias",
        "attn/proj/bias",
        "mlp/fc1/bias",
        "mlp/fc2/bias",
    )
    kernels = ("attn/proj/kernel", "mlp/fc1/kernel", "mlp/fc2/kernel")
    return (
        *(Row(f"{block}/{name}", f"{block}/{name}", "d -> d") for name in layers),
        *(Row(f"{block}/{name}", f"{block}/{name}", "d o -> d o") for name in kernels),
        Row(f"{block}/attn/qkv/kernel", f"{block}/attn/qkv/kernel", "d s h e -> d s h e"),
        Row(f"{block}/attn/qkv/bias", f"{block}/attn/qkv/bias", "s h e -> s h e"),
    )


def same(layout: str, *names: str) -> tuple[Row, ...]:
    """Rows that leave the name as it is."""
    return tuple(Row(name, name, layout) for name in names)


ENDINGS = ("patch/bias", "norm/scale", "norm/bias", "head/bias")

VIT = Table(
    "jvq",
    "vit",
    rows=(
        *same("a n d -> a n d", "cls", "dist", "reg", "pos"),
        *same("d -> d", *ENDINGS, "pre_logits/bias", "head_dist/bias"),
        *same("d o -> d o", "patch/kernel", "pre_logits/kernel", "head/kernel", "head_dist/kernel"),
        *rows("block{i:02d}"),
        *same("d -> d", "block{i:02d}/scale1/gamma", "block{i:02d}/scale2/gamma"),
    ),
    prepare=rooted,
)

SWIN = Table(
    "jvq",
    "swin",
    rows=(
        *same("d -> d", *ENDINGS, "patch_norm/scale", "patch_norm/bias"),
        *same("d -> d", "stage{i}/merge/norm/scale", "stage{i}/merge/norm/bias"),
        *same("d o -> d o", "patch/kernel", "stage{i}/merge/reduce/kernel", "head/kernel"),
        *rows("stage{i}/block{j:02d}"),
        *same("n h -> n h", "stage{i}/block{j:02d}/attn/bias_table"),
    ),
    prepare=rooted,
)
