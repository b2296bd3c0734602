"""Swin Transformer: attention in windows, shifted in every other block, patches merged between stages.

Source: Liu et al. 2021 (Swin), with the padding of its detection code where a grid is not a multiple of the window.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from jvq.core.dot import Dot, float_dot
from jvq.core.errors import nearest
from jvq.models.layers import Linear, Mlp, Norm, Variant, patches, pooled, scores_and_values, site, softmax

SIZES = {  # name: (dim, depths, heads)
    "T": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
APART = -100.0  #: added to the score of two tokens that the shift brought into one window; the published models' value


@dataclasses.dataclass(frozen=True)
class Spec:
    """What fixes a Swin's shape: everything needed to build it and nothing about its weights."""

    image: tuple[int, int] = (224, 224)  # y, x pixels
    channels: int = 3
    patch: int = 4
    dim: int = 96  # of the first stage; doubled by each merge
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks a stage
    heads: tuple[int, ...] = (3, 6, 12, 24)  # a stage
    window: int = 7  # tokens a side
    mlp_ratio: float = 4.0
    classes: int = 1000  # 0: no head, the forward gives the pooled features
    eps: float = 1e-5
    merged: bool = False  # query and key as one matrix a head (jvq.models.merging)
    qk_norm: bool = False  # a LayerNorm over the channels of each query and of each key
    clip: float = 0.0  # bound of the GELU's output; 0: none
    softmax: bool = True  # False: the scaled scores weigh the values as they are

    def __post_init__(self) -> None:
        y, x = self.image
        if y % self.patch or x % self.patch:
            raise ValueError(f"model.image {y}x{x} is not a multiple of model.patch {self.patch}")
        if len(self.depths) != len(self.heads) or not self.depths:
            raise ValueError(f"model.depths {self.depths} and model.heads {self.heads} must have a number a stage")
        for i, heads in enumerate(self.heads):
            if (self.dim << i) % heads:
                raise ValueError(f"stage {i}: its width {self.dim << i} is not a multiple of model.heads {heads}")
        if self.window < 2:
            raise ValueError(f"model.window: got {self.window}, must be at least 2")
        Variant.of(self)

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Tokens per column and row of each stage."""
        y, x = self.image[0] // self.patch, self.image[1] // self.patch
        return [(-(-y // 2**i), -(-x // 2**i)) for i in range(len(self.depths))]


def sized(name: str, **changes: Any) -> Spec:
    """The spec of a size by name, ``"T"``, ``"S"``, ``"B"`` or ``"L"``, with changes."""
    if name not in SIZES:
        raise ValueError(f"model size '{name}' is not known{nearest(name, SIZES)}")
    dim, depths, heads = SIZES[name]
    return Spec(**{"dim": dim, "depths": depths, "heads": heads, **changes})


class Swin(nn.Module):
    """Images [b y x c] to logits [b o]; with ``classes=0`` to pooled features [b d]."""

    spec: Spec

    @nn.compact
    def __call__(self, images: Float[Array, "b y x c"], dot: Dot = float_dot) -> Float[Array, "b o"]:
        s = self.spec
        x = patches(images, s.image, s.channels, s.patch)
        x = Linear("bnd,do->bno", (x.shape[-1], s.dim), name="patch")(x, dot)
        x = Norm(s.eps, name="patch_norm")(x)
        for i, grid in enumerate(s.grids):
            x = Stage(s, i, grid, name=f"stage{i}")(x, dot)
        x = pooled(Norm(s.eps, name="norm")(x))[:, 0]
        if not s.classes:
            return x
        return Linear("bd,do->bo", (x.shape[-1], s.classes), nn.initializers.zeros_init(), name="head")(x, dot)


class Stage(nn.Module):
    """Blocks on one grid; every stage but the last ends by merging 2x2 tokens into one of twice the width."""

    spec: Spec
    index: int
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], dot: Dot) -> Float[Array, "b m e"]:
        s = self.spec
        for j in range(s.depths[self.index]):
            window = min(s.window, *self.grid)
            shift = window // 2 if j % 2 and min(self.grid) > s.window else 0  # one window: nothing to shift to
            x = Block(s, s.heads[self.index], self.grid, window, shift, name=f"block{j:02d}")(x, dot)
        return x if self.index + 1 == len(s.depths) else Merge(s.eps, self.grid, name="merge")(x, dot)


class Block(nn.Module):
    """A pre-norm block whose attention sees one window at a time."""

    spec: Spec
    heads: int
    grid: tuple[int, int]
    window: int
    shift: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], dot: Dot) -> Float[Array, "b n d"]:
        (h, w), size, shift = self.grid, self.window, self.shift
        y = rearrange(Norm(self.spec.eps, name="norm1")(x), "b (h w) d -> b h w d", h=h)
        y = jnp.pad(y, [(0, 0), (0, -h % size), (0, -w % size), (0, 0)])  # zeros are tokens too: the published models'
        padded = (y.shape[1], y.shape[2])
        if shift:
            y = jnp.roll(y, (-shift, -shift), (1, 2))
        y = rearrange(y, "b (i p) (j q) d -> b (i j) (p q) d", p=size, q=size)
        apart = apart_by_shift(padded, size, shift) if shift else None
        y = WindowAttention(self.heads, size, Variant.of(self.spec), name="attn")(y, apart, dot)
        y = rearrange(y, "b (i j) (p q) d -> b (i p) (j q) d", i=padded[0] // size, p=size)
        if shift:
            y = jnp.roll(y, (shift, shift), (1, 2))
        x = x + rearrange(y[:, :h, :w], "b h w d -> b (h w) d")
        hidden = round(x.shape[-1] * self.spec.mlp_ratio)
        return x + Mlp(hidden, self.spec.clip, name="mlp")(Norm(self.spec.eps, name="norm2")(x), dot)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows [b m n d], with a learned bias per head and relative position.

    Without a softmax tokens apart keep their ``APART``, far below the threshold of any boolean attention.
    """

    heads: int
    window: int
    variant: Variant

    @nn.compact
    def __call__(self, x: Float[Array, "b m n d"], apart: np.ndarray | None, dot: Dot) -> Float[Array, "b m n d"]:
        here, dim = site(self), x.shape[-1]
        scores, v = scores_and_values(here, x, self.heads, self.variant, dot, "bm")
        table = self.param(
            "bias_table", nn.initializers.truncated_normal(0.02), ((2 * self.window - 1) ** 2, self.heads)
        )
        scores = scores + rearrange(table[relative_index(self.window)], "q k h -> 1 1 h q k")
        if apart is not None:
            scores = scores + jnp.asarray(apart)[None, :, None]
        p = softmax(scores) if self.variant.softmax else scores
        y = dot(f"{here}/pv", "bmhqk,bmhke->bmhqe", p=p, v=v)
        y = rearrange(y, "b m h q e -> b m q (h e)")
        return Linear("bmnd,do->bmno", (dim, dim), name="proj")(y, dot)


class Merge(nn.Module):
    """Each 2x2 tokens side by side (columns before rows: 00, 10, 01, 11), normalised, halved in width."""

    eps: float
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], dot: Dot) -> Float[Array, "b m e"]:
        h, w = self.grid
        x = rearrange(x, "b (h w) d -> b h w d", h=h)
        x = jnp.pad(x, [(0, 0), (0, h % 2), (0, w % 2), (0, 0)])
        x = rearrange(x, "b (h p) (w q) d -> b (h w) (q p d)", p=2, q=2)
        x = Norm(self.eps, name="norm")(x)
        return Linear("bnd,do->bno", (x.shape[-1], x.shape[-1] // 2), use_bias=False, name="reduce")(x, dot)


def relative_index(window: int) -> Int[np.ndarray, "q k"]:
    """The row of the bias table for each pair of tokens of a window, [window**2, window**2]."""
    y, x = np.divmod(np.arange(window**2), window)
    off = window - 1
    return (y[:, None] - y[None] + off) * (2 * window - 1) + x[:, None] - x[None] + off


def apart_by_shift(grid: tuple[int, int], window: int, shift: int) -> Float[np.ndarray, "m q k"]:
    """0 where two tokens of a shifted window are neighbours in the image, ``APART`` where the roll joined them."""

    def part(length: int) -> np.ndarray:
        at = np.arange(length)
        return (at >= length - window).astype(int) + (at >= length - shift)

    region = part(grid[0])[:, None] * 3 + part(grid[1])[None]
    region = rearrange(region, "(i p) (j q) -> (i j) (p q)", p=window, q=window)
    return np.where(region[:, :, None] == region[:, None], 0.0, APART).astype(np.float32)
