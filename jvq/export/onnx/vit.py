"""ViT, DeiT and DINOv2 as a graph, as :mod:`jvq.models.vit` has them."""

import numpy as np

from jvq.export.onnx import layers
from jvq.export.onnx.products import Products
from jvq.models.layers import Variant
from jvq.models.vit import Spec


def forward(p: Products, spec: Spec, images: str) -> tuple[str, str, tuple[int, ...]]:
    """The value [b ...] that the model gives for images [b y x c], what it is, and its shape without the batch."""
    g, variant = p.graph, Variant.of(spec)
    count = spec.prefix + spec.grid[0] * spec.grid[1]
    x = tokens(p, spec, images)
    for i in range(spec.depth):
        here = f"block{i:02d}"
        y = layers.norm(p, f"{here}/norm1", x, spec.eps)
        y = layers.attention(p, f"{here}/attn", y, (count,), spec.dim, spec.heads, variant)
        x = g.add("Add", x, scaled(p, spec, f"{here}/scale1", y))
        y = layers.mlp(p, f"{here}/mlp", layers.norm(p, f"{here}/norm2", x, spec.eps), spec.clip)
        x = g.add("Add", x, scaled(p, spec, f"{here}/scale2", y))
    if spec.pool == "none":
        return layers.norm(p, "norm", x, spec.eps), "tokens", (count, spec.dim)
    seen = features(p, spec, x, count)
    if not spec.classes:
        return seen[0], "features", (spec.dim * (2 if spec.pool == "both" else 1),)
    if spec.representation:
        seen = representations(p, spec, seen)
    names = ("head", "head_dist")
    logits = [p.head(name, x) for name, x in zip(names, seen, strict=False)]
    if len(logits) == 2:
        logits = [g.add("Mul", g.add("Add", *logits), g.number(0.5))]
    return logits[0], "logits", (spec.classes,)


def tokens(p: Products, spec: Spec, images: str) -> str:
    """Class, distillation and register tokens, then patches [b n d]; positions added to all but the registers."""
    g = p.graph
    x = p.linear("patch", layers.patches(p, images, spec.grid, spec.channels, spec.patch), "bnd")
    positions = p.param("pos")
    x = g.add("Add", x, g.constant(positions[:, spec.placed :], "pos"))
    named = (("cls", spec.class_token), ("dist", spec.distill_token))
    parts = [p.param(name) + positions[:, i : i + 1] for i, name in enumerate(n for n, there in named if there)]
    if spec.registers:
        parts.append(p.param("reg"))
    if not parts:
        return x
    return g.add("Concat", g.repeated(np.concatenate(parts, axis=1), images), x, axis=1)


def scaled(p: Products, spec: Spec, path: str, y: str) -> str:
    """``y`` times the LayerScale, where there is one."""
    if spec.layer_scale is None:
        return y
    return p.graph.add("Mul", y, p.graph.constant(p.param(f"{path}/gamma"), f"{path}/gamma"))


def features(p: Products, spec: Spec, x: str, count: int) -> list[str]:
    """What each head sees, [b d]: normalised and pooled."""
    g = p.graph
    if spec.pool == "mean":
        return [layers.norm(p, "norm", layers.pooled(p, g.part(x, 1, spec.prefix, count)), spec.eps)]
    if spec.pool == "cls":
        x = layers.norm(p, "norm", g.part(x, 1, 0, spec.placed), spec.eps)
        return [g.at(x, 1, i) for i in range(1 + spec.distill_token)]
    x = layers.norm(p, "norm", x, spec.eps)
    mean = layers.pooled(p, g.part(x, 1, spec.prefix, count))
    return [mean] if spec.pool == "normed_mean" else [g.add("Concat", g.at(x, 1, 0), mean, axis=-1)]


def representations(p: Products, spec: Spec, seen: list[str]) -> list[str]:
    """The tanh layer before the heads: one product of all that they see, as in the model."""
    g = p.graph
    rows = [g.add("Unsqueeze", x, g.integers([1])) for x in seen]
    x = rows[0] if len(rows) == 1 else g.add("Concat", *rows, axis=1)
    x = g.add("Tanh", p.linear("pre_logits", x, "bnd"))
    return [g.at(x, 1, i) for i in range(len(seen))]
