"""ViT and DeiT: one architecture, sizes by name.

Sources: Dosovitskiy et al. 2021 (ViT), Touvron et al. 2021 (DeiT, distillation token) and 2021b (LayerScale).
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from jvq.core.dot import Dot, float_dot
from jvq.core.errors import nearest
from jvq.models.layers import Block, Linear, Norm, ordered_sum

SIZES = {  # name: (dim, depth, heads)
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
}


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
    pool: Literal["cls", "mean"] = "cls"
    layer_scale: float | None = None  # initial value; None: no LayerScale
    eps: float = 1e-6

    def __post_init__(self) -> None:
        y, x = self.image
        if y % self.patch or x % self.patch:
            near = [s for s in (y - y % self.patch, y - y % self.patch + self.patch) if s]
            raise ValueError(f"model.image {y}x{x} is not a multiple of model.patch {self.patch}: {near} would be")
        if self.dim % self.heads:
            raise ValueError(f"model.dim {self.dim} is not a multiple of model.heads {self.heads}")
        if self.pool == "cls" and not self.class_token:
            raise ValueError("model.pool 'cls' needs model.class_token; use pool 'mean' without it")
        if self.distill_token and (not self.class_token or self.pool != "cls"):
            raise ValueError("model.distill_token needs model.class_token and model.pool 'cls'")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and row."""
        return self.image[0] // self.patch, self.image[1] // self.patch

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return int(self.class_token) + int(self.distill_token)


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
    """Images [b y x c] to logits [b o]; with ``classes=0`` to pooled features [b d]."""

    spec: Spec

    @nn.compact
    def __call__(self, images: Float[Array, "b y x c"], dot: Dot = float_dot) -> Float[Array, "b o"]:
        s = self.spec
        x = self.tokens(images, dot)
        hidden = round(s.dim * s.mlp_ratio)
        for i in range(s.depth):
            x = Block(s.heads, hidden, s.eps, s.layer_scale, name=f"block{i:02d}")(x, dot)
        x = pooled(x[:, s.prefix :]) if s.pool == "mean" else x[:, : s.prefix]
        x = Norm(s.eps, name="norm")(x)  # LayerNorm is per token: it may as well see only the tokens that are used
        if not s.classes:
            return x[:, 0]
        logits = Linear("bd,do->bo", (s.dim, s.classes), nn.initializers.zeros_init(), name="head")(x[:, 0], dot)
        if s.distill_token:
            head = Linear("bd,do->bo", (s.dim, s.classes), nn.initializers.zeros_init(), name="head_dist")
            logits = (logits + head(x[:, 1], dot)) / 2  # inference of DeiT: the mean of both heads
        return logits

    def tokens(self, images: Float[Array, "b y x c"], dot: Dot) -> Float[Array, "b n d"]:
        """Patches [b n d] behind the class (and distillation) token, with positions added."""
        s = self.spec
        if images.shape[1:] != (*s.image, s.channels):
            raise ValueError(f"images of shape {images.shape[1:]}, the model wants {(*s.image, s.channels)} (y, x, c)")
        patches = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=s.patch, q=s.patch)
        x = Linear("bnd,do->bno", (s.patch * s.patch * s.channels, s.dim), name="patch")(patches, dot)
        small = nn.initializers.truncated_normal(0.02)
        prefix = [
            jnp.broadcast_to(self.param(name, small, (1, 1, s.dim)), (x.shape[0], 1, s.dim))
            for name, there in (("cls", s.class_token), ("dist", s.distill_token))
            if there
        ]
        x = jnp.concatenate([*prefix, x], axis=1)
        return x + self.param("pos", small, (1, x.shape[1], s.dim))


def pooled(x: Float[Array, "b n d"]) -> Float[Array, "b 1 d"]:
    """The mean over the tokens, as one token."""
    return rearrange(ordered_sum(rearrange(x, "b n d -> b d n")), "b d 1 -> b 1 d") / x.shape[1]


def resize_positions(
    table: Float[Array, "1 n d"], old: tuple[int, int], new: tuple[int, int], prefix: int, method: str = "bicubic"
) -> Float[Array, "1 m d"]:
    """The position table [1, prefix + h w, d] for another grid of patches; the prefix tokens' rows stay as they are."""
    head, grid = table[:, :prefix], table[:, prefix:]
    if grid.shape[1] != old[0] * old[1]:
        raise ValueError(f"position table of {table.shape[1]} rows is not {prefix} + {old[0]}x{old[1]}")
    d = table.shape[-1]
    grid = grid.reshape(1, *old, d)
    grid = jax.image.resize(grid, (1, *new, d), method=method, antialias=False)
    return jnp.concatenate([head, grid.reshape(1, new[0] * new[1], d)], axis=1)
