"""ViT, DeiT and DINOv2: one architecture, sizes by name.

Sources: Dosovitskiy et al. 2021 (ViT), Touvron et al. 2021 (DeiT, distillation token) and 2021b (LayerScale), Oquab et
al. 2023 (DINOv2), Darcet et al. 2024 (registers).
"""

import dataclasses
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jvq.core.dot import Dot, float_dot
from jvq.core.errors import nearest
from jvq.models.layers import Block, Linear, Norm, Variant, patches, pooled
from jvq.models.positions import torch_bicubic

SIZES = {  # name: (dim, depth, heads)
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
}
Pool = Literal["cls", "mean", "normed_mean", "both", "none"]
"""What the head sees.

cls: the class token. mean: the norm of the patches' mean (timm's fc_norm). normed_mean: the mean of the normalised
patches (big_vision's gap). both: class token and that mean, side by side (DINOv2). none: all tokens; there is no head.
"""
POOLS: tuple[Pool, ...] = get_args(Pool)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What fixes a ViT's shape: everything needed to build it and nothing about its weights."""

    image: tuple[int, int] = (224, 224)  # y, x pixels
    channels: int = 3
    patch: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    classes: int = 1000  # 0: no head, the forward gives the pooled features
    class_token: bool = True
    distill_token: bool = False  # DeiT: a second token and a second head, averaged
    registers: int = 0  # tokens behind those two, without positions
    pool: Pool = "cls"
    representation: int = 0  # width of a tanh layer before the head (augreg's pre_logits); 0: none
    layer_scale: float | None = None  # initial value; None: no LayerScale
    eps: float = 1e-6
    merged: bool = False  # query and key as one matrix a head (jvq.models.merging)
    qk_norm: bool = False  # a LayerNorm over the channels of each query and of each key
    clip: float = 0.0  # bound of the GELU's output; 0: none
    softmax: bool = True  # False: the scaled scores weigh the values as they are

    def __post_init__(self) -> None:
        y, x = self.image
        if y % self.patch or x % self.patch:
            near = [s for s in (y - y % self.patch, y - y % self.patch + self.patch) if s]
            raise ValueError(f"model.image {y}x{x} is not a multiple of model.patch {self.patch}: {near} would be")
        if self.dim % self.heads:
            raise ValueError(f"model.dim {self.dim} is not a multiple of model.heads {self.heads}")
        if self.pool not in POOLS:
            raise ValueError(f"model.pool: got '{self.pool}'{nearest(self.pool, POOLS)}")
        if self.pool in ("cls", "both") and not self.class_token:
            raise ValueError(f"model.pool '{self.pool}' needs model.class_token; use pool 'mean' without it")
        if self.pool == "none" and self.classes:
            raise ValueError(f"model.pool 'none' gives tokens: model.classes must be 0, got {self.classes}")
        if self.distill_token and (not self.class_token or self.pool != "cls"):
            raise ValueError("model.distill_token needs model.class_token and model.pool 'cls'")
        if self.registers < 0 or self.representation < 0:
            raise ValueError("model.registers and model.representation must be at least 0")
        Variant.of(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row."""
        return self.image[0] // self.patch, self.image[1] // self.patch

    @property
    def placed(self) -> int:
        """Tokens in front of the patches that have a row in the position table."""
        return int(self.class_token) + int(self.distill_token)

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches: class, distillation, registers."""
        return self.placed + self.registers


def sized(name: str, **changes: Any) -> Spec:
    """The spec of a size by name, ``"Ti"``, ``"S/16"`` or ``"B/32"``, with changes."""
    size, _, patch = name.partition("/")
    if size not in SIZES:
        raise ValueError(f"model size '{size}' is not known{nearest(size, SIZES)}")
    if patch and not patch.isdigit():
        raise ValueError(f"model size '{name}': the patch after '/' must be a number, as in '{size}/16'")
    dim, depth, heads = SIZES[size]
    return Spec(**{"dim": dim, "depth": depth, "heads": heads, "patch": int(patch or 16), **changes})


class ViT(nn.Module):
    """Images [b y x c] to logits [b o]; with ``classes=0`` to features [b d], with ``pool="none"`` to tokens [b n d].

    With a distillation token the logits are the mean of both heads; ``heads=True`` gives them apart, [b 2 o].
    """

    spec: Spec

    @nn.compact
    def __call__(
        self, images: Float[Array, "b y x c"], dot: Dot = float_dot, heads: bool = False
    ) -> Float[Array, "b ..."]:
        s = self.spec
        x = self.tokens(images, dot)
        hidden, variant = round(s.dim * s.mlp_ratio), Variant.of(s)
        for i in range(s.depth):
            x = Block(s.heads, hidden, s.eps, s.layer_scale, variant, name=f"block{i:02d}")(x, dot)
        x = self.features(x)
        if not s.classes:
            return x if s.pool == "none" else x[:, 0]
        if s.representation:
            shape = (x.shape[-1], s.representation)
            x = jnp.tanh(Linear("bnd,do->bno", shape, name="pre_logits")(x, dot))
        names = ("head", "head_dist") if s.distill_token else ("head",)
        shape = (x.shape[-1], s.classes)
        logits = [
            Linear("bd,do->bo", shape, nn.initializers.zeros_init(), name=name)(x[:, i], dot)
            for i, name in enumerate(names)
        ]
        if heads:
            return jnp.stack(logits, axis=1)
        return (logits[0] + logits[1]) / 2 if s.distill_token else logits[0]

    def tokens(self, images: Float[Array, "b y x c"], dot: Dot) -> Float[Array, "b n d"]:
        """Class, distillation and register tokens, then patches; positions added to all but the registers."""
        s = self.spec
        x = patches(images, s.image, s.channels, s.patch)
        x = Linear("bnd,do->bno", (x.shape[-1], s.dim), name="patch")(x, dot)
        small = nn.initializers.truncated_normal(0.02)

        def learned(name: str, count: int) -> Float[Array, "b n d"]:
            return jnp.broadcast_to(self.param(name, small, (1, count, s.dim)), (x.shape[0], count, s.dim))

        named = (("cls", s.class_token), ("dist", s.distill_token))
        x = jnp.concatenate([*(learned(name, 1) for name, there in named if there), x], axis=1)
        x = x + self.param("pos", small, (1, x.shape[1], s.dim))
        if not s.registers:
            return x
        return jnp.concatenate([x[:, : s.placed], learned("reg", s.registers), x[:, s.placed :]], axis=1)

    def features(self, x: Float[Array, "b n d"]) -> Float[Array, "b m e"]:
        """What the heads see: normalised and pooled. LayerNorm is per token: it sees only those that are used."""
        s, norm = self.spec, Norm(self.spec.eps, name="norm")
        if s.pool == "mean":
            return norm(pooled(x[:, s.prefix :]))
        if s.pool == "cls":
            return norm(x[:, : s.placed])
        x = norm(x)
        if s.pool == "none":
            return x
        mean = pooled(x[:, s.prefix :])
        return mean if s.pool == "normed_mean" else jnp.concatenate([x[:, :1], mean], axis=-1)


def resize_positions(
    table: Float[Array, "1 n d"], old: tuple[int, int], new: tuple[int, int], prefix: int
) -> Float[Array, "1 m d"]:
    """The position table [1, prefix + h w, d] for another grid of patches; the prefix tokens' rows stay as they are.

    Bicubic as torch has it, which is how DeiT and DINOv2 are used at other sizes (``jvq.models.positions``).
    """
    if table.shape[1] != prefix + old[0] * old[1]:
        raise ValueError(f"position table of {table.shape[1]} rows is not {prefix} + {old[0]}x{old[1]}")
    if new == old:
        return table
    grid = torch_bicubic(np.asarray(table[0, prefix:]).reshape(*old, -1), new)
    return jnp.concatenate([table[:, :prefix], jnp.asarray(grid).reshape(1, new[0] * new[1], -1)], axis=1)
