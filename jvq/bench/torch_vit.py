"""The ViT of jvq.models.vit in torch: the same products, attention by torch's own fused function."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        dim, hidden = spec.dim, round(spec.dim * spec.mlp_ratio)
        self.heads = spec.heads
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=spec.eps) for _ in range(2))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [b h n e]
        x = x + self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Images [b y x c] to logits [b o], with a class token, as the Spec says."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        rows, columns = spec.grid
        self.patch = spec.patch
        self.embed = nn.Linear(spec.patch**2 * spec.channels, spec.dim)
        self.token = nn.Parameter(torch.randn(1, 1, spec.dim) * 0.02)
        self.places = nn.Parameter(torch.randn(1, 1 + rows * columns, spec.dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(spec) for _ in range(spec.depth)))
        self.norm, self.head = nn.LayerNorm(spec.dim, eps=spec.eps), nn.Linear(spec.dim, spec.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        b, y, x, c = images.shape
        p = self.patch
        squares = images.reshape(b, y // p, p, x // p, p, c).transpose(2, 3).reshape(b, y * x // p**2, p * p * c)
        tokens = torch.cat([self.token.expand(b, -1, -1), self.embed(squares)], dim=1) + self.places
        return self.head(self.norm(self.blocks(tokens)[:, 0]))
