"""Files in timm's names, written out from what its models are, as shapes; and random arrays of such shapes."""

import numpy as np
import pytest


def block(at, dim, hidden):
    """The shapes of a block."""
    shapes = {f"{at}.norm{i}.{end}": (dim,) for i in (1, 2) for end in ("weight", "bias")}
    for name, (o, d) in {
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        "mlp.fc1": (hidden, dim),
        "mlp.fc2": (dim, hidden),
    }.items():
        shapes |= {f"{at}.{name}.weight": (o, d), f"{at}.{name}.bias": (o,)}
    return shapes


def pair(name, *kernel):
    return {f"{name}.weight": kernel, f"{name}.bias": kernel[:1]}


def vit(
    dim=32,
    depth=2,
    patch=4,
    image=8,
    classes=3,
    channels=3,
    mlp=4,
    dist=False,
    registers=0,
    layer_scale=False,
    placed=True,
):
    """``state_dict`` of a VisionTransformer of timm; ``placed``: the class token has a row of positions."""
    shapes = {"cls_token": (1, 1, dim)} | ({"dist_token": (1, 1, dim)} if dist else {})
    shapes |= {"reg_token": (1, registers, dim)} if registers else {}
    shapes["pos_embed"] = (1, (image // patch) ** 2 + (1 + dist if placed else 0), dim)
    shapes |= pair("patch_embed.proj", dim, channels, patch, patch) | pair("norm", dim)
    for i in range(depth):
        shapes |= block(f"blocks.{i}", dim, mlp * dim)
        shapes |= {f"blocks.{i}.ls{j}.gamma": (dim,) for j in (1, 2) if layer_scale}
    if classes:
        shapes |= pair("head", classes, dim) | (pair("head_dist", classes, dim) if dist else {})
    return shapes


def swin(dim=16, depths=(2, 2), heads=(1, 2), window=2, classes=3, patch=2, channels=3):
    """``state_dict`` of a SwinTransformer of timm 0.9."""
    shapes = pair("patch_embed.proj", dim, channels, patch, patch) | pair("patch_embed.norm", dim)
    for i, (depth, h) in enumerate(zip(depths, heads, strict=True)):
        wide = dim << i
        if i:
            shapes |= pair(f"layers.{i}.downsample.norm", 2 * wide)
            shapes[f"layers.{i}.downsample.reduction.weight"] = (wide, 2 * wide)
        for j in range(depth):
            at = f"layers.{i}.blocks.{j}"
            shapes |= block(at, wide, 4 * wide)
            shapes[f"{at}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, h)
    wide = dim << (len(depths) - 1)
    return shapes | pair("norm", wide) | (pair("head.fc", classes, wide) if classes else {})


def filled(shapes, seed=0):
    """Random arrays, float32, of values that float16 and bfloat16 hold as well."""
    rng = np.random.default_rng(seed)
    return {name: (rng.integers(-100, 100, size) / 128).astype(np.float32) for name, size in shapes.items()}


@pytest.fixture
def timm_vit():
    return vit


@pytest.fixture
def timm_swin():
    return swin


@pytest.fixture
def arrays_of():
    return filled
