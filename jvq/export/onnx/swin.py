"""Swin as a graph, as :mod:`jvq.models.swin` has it."""

import numpy as np

from jvq.export.onnx import layers
from jvq.export.onnx.products import Products
from jvq.models.layers import Variant
from jvq.models.swin import Spec, apart_by_shift, relative_index


def forward(p: Products, spec: Spec, images: str) -> tuple[str, str, tuple[int, ...]]:
    """The value [b o] that the model gives for images [b y x c], what it is, and its shape without the batch."""
    x = p.linear("patch", layers.patches(p, images, spec.grids[0], spec.channels, spec.patch), "bnd")
    x = layers.norm(p, "patch_norm", x, spec.eps)
    for i, grid in enumerate(spec.grids):
        dim = spec.dim << i
        for j in range(spec.depths[i]):
            window = min(spec.window, *grid)
            shift = window // 2 if j % 2 and min(grid) > spec.window else 0
            x = block(p, spec, f"stage{i}/block{j:02d}", x, grid, dim, spec.heads[i], window, shift)
        if i + 1 < len(spec.depths):
            x = merge(p, spec, f"stage{i}/merge", x, grid, dim)
    x = layers.pooled(p, layers.norm(p, "norm", x, spec.eps))
    if not spec.classes:
        return x, "features", (spec.dim << (len(spec.depths) - 1),)
    return p.head("head", x), "logits", (spec.classes,)


def block(
    p: Products, spec: Spec, path: str, x: str, grid: tuple[int, int], dim: int, heads: int, window: int, shift: int
) -> str:
    """A pre-norm block on [b (h w) d] whose attention sees one window at a time."""
    g, (h, w) = p.graph, grid
    y = g.reshape(layers.norm(p, f"{path}/norm1", x, spec.eps), h, w, dim)
    rows, columns = h + -h % window, w + -w % window
    y = padded(p, y, rows - h, columns - w)
    y = rolled(p, y, rows, columns, shift)
    i, j, inside = rows // window, columns // window, window**2
    y = g.transpose(g.reshape(y, i, window, j, window, dim), 0, 1, 3, 2, 4, 5)
    y = g.reshape(y, i * j, inside, dim)
    bias = bias_of(p.param(f"{path}/attn/bias_table"), (rows, columns), window, shift)
    y = layers.attention(p, f"{path}/attn", y, (i * j, inside), dim, heads, Variant.of(spec), bias)
    y = g.transpose(g.reshape(y, i, j, window, window, dim), 0, 1, 3, 2, 4, 5)
    y = rolled(p, g.reshape(y, rows, columns, dim), rows, columns, (rows - shift, columns - shift) if shift else 0)
    if (rows, columns) != grid:
        y = g.part(g.part(y, 1, 0, h), 2, 0, w)
    x = g.add("Add", x, g.reshape(y, h * w, dim))
    y = layers.mlp(p, f"{path}/mlp", layers.norm(p, f"{path}/norm2", x, spec.eps), spec.clip)
    return g.add("Add", x, y)


def bias_of(table: np.ndarray, grid: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """What is added to the scores [1 m|1 h q k]: by relative position, and where the shift joined two tokens."""
    bias = np.moveaxis(table[relative_index(window)], -1, 0)[None, None]  # [1 1 h q k]
    return bias + apart_by_shift(grid, window, shift)[None, :, None] if shift else bias


def padded(p: Products, x: str, below: int, right: int) -> str:
    """[b h w d] with rows and columns of zeros behind it."""
    if not below and not right:
        return x
    return p.graph.add("Pad", x, p.graph.integers([0, 0, 0, 0, 0, below, right, 0]), mode="constant")


def rolled(p: Products, x: str, h: int, w: int, shift: int | tuple[int, int]) -> str:
    """[b h w d] with its first ``shift`` rows and columns put behind the others."""
    for axis, length, by in zip((1, 2), (h, w), (shift, shift) if isinstance(shift, int) else shift, strict=True):
        if by:
            parts = p.graph.part(x, axis, by, length), p.graph.part(x, axis, 0, by)
            x = p.graph.add("Concat", *parts, axis=axis)
    return x


def merge(p: Products, spec: Spec, path: str, x: str, grid: tuple[int, int], dim: int) -> str:
    """Each 2x2 tokens side by side (columns before rows), normalised, halved in width."""
    g, (h, w) = p.graph, grid
    x = padded(p, g.reshape(x, h, w, dim), h % 2, w % 2)
    h, w = (h + 1) // 2, (w + 1) // 2
    x = g.transpose(g.reshape(x, h, 2, w, 2, dim), 0, 1, 3, 4, 2, 5)
    x = layers.norm(p, f"{path}/norm", g.reshape(x, h * w, 4 * dim), spec.eps)
    return p.linear(f"{path}/reduce", x, "bnd")
