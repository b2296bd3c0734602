"""The layers that the architectures share, as :mod:`jvq.models.layers` has them."""

import numpy as np

from jvq.export.onnx.products import Products
from jvq.models.layers import QK_EPS, Variant


def patches(p: Products, images: str, grid: tuple[int, int], channels: int, patch: int) -> str:
    """Images [b y x c] as tokens [b n d], d over the pixels of a square and their channels."""
    g, (h, w) = p.graph, grid
    x = g.reshape(images, h, patch, w, patch, channels)
    return g.reshape(g.transpose(x, 0, 1, 3, 2, 4, 5), h * w, patch * patch * channels)


def norm(p: Products, path: str, x: str, eps: float) -> str:
    """LayerNorm over the last axis."""
    scale, bias = (p.graph.constant(p.param(f"{path}/{name}"), f"{path}/{name}") for name in ("scale", "bias"))
    return p.graph.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps)


def pooled(p: Products, x: str) -> str:
    """The mean over the tokens of [b n d], as [b d]."""
    return p.graph.add("ReduceMean", x, p.graph.integers([1]), keepdims=0)


def mlp(p: Products, path: str, x: str, clip: float) -> str:
    """fc1, exact GELU, fc2; between the last two everything is held within ``clip`` of zero, where that is not 0."""
    x = p.graph.add("Gelu", p.linear(f"{path}/fc1", x, "bnd"), approximate="none")
    if clip:
        x = p.graph.add("Clip", x, p.graph.number(-clip), p.graph.number(clip))
    return p.linear(f"{path}/fc2", x, "bnd")


def scores_and_values(
    p: Products, path: str, x: str, lengths: tuple[int, ...], dim: int, heads: int, variant: Variant
) -> tuple[str, str]:
    """The scaled scores [b ... h q k] of an attention over tokens [b ... n d] and its values [b ... h k e].

    ``lengths`` are those of the axes between image and channels: (n) or (m, n).
    """
    g, e, lead = p.graph, dim // heads, "bm"[: len(lengths)]
    front = list(range(len(lead)))
    n, h, c = (len(lead) + i for i in range(3))

    def split(x: str, width: int) -> str:
        """[... n (h c)] as [... n h c]."""
        return g.reshape(x, *lengths, heads, width)

    def ahead(x: str) -> str:
        """[... n h c] as [... h n c]."""
        return g.transpose(x, *front, h, n, c)

    def turned(x: str) -> str:
        """[... n h c] as [... h c n]."""
        return g.transpose(x, *front, h, c, n)

    scale = g.number(e**-0.5)
    if variant.merged:
        z = split(p.linear(f"{path}/query_key", x, f"{lead}nd"), dim)
        v = split(p.linear(f"{path}/value", x, f"{lead}nd"), e)
        keys = turned(g.reshape(x, *lengths, 1, dim))
        q = g.add("Mul", ahead(z), scale)
        return p.pair(f"{path}/qk", q=(q, f"{lead}hqd"), k=(keys, f"{lead}hdk")), ahead(v)
    qkv = p.linear(f"{path}/qkv", x, f"{lead}nd")
    q, k, v = (split(part, e) for part in g.several("Split", 3, qkv, axis=-1, num_outputs=3))
    if variant.qk_norm:
        q, k = norm(p, f"{path}/q_norm", q, QK_EPS), norm(p, f"{path}/k_norm", k, QK_EPS)
    q = g.add("Mul", ahead(q), scale)
    return p.pair(f"{path}/qk", q=(q, f"{lead}hqe"), k=(turned(k), f"{lead}hek")), ahead(v)


def attention(
    p: Products,
    path: str,
    x: str,
    lengths: tuple[int, ...],
    dim: int,
    heads: int,
    variant: Variant,
    bias: np.ndarray | None = None,
) -> str:
    """Multi-head self-attention over [b ... n d]; ``bias`` is added to the scores [b ... h q k]."""
    g, lead = p.graph, "bm"[: len(lengths)]
    scores, v = scores_and_values(p, path, x, lengths, dim, heads, variant)
    if bias is not None:
        scores = g.add("Add", scores, g.constant(bias, f"{path}/bias"))
    weights = g.add("Softmax", scores, axis=-1) if variant.softmax else scores
    y = p.pair(f"{path}/pv", p=(weights, f"{lead}hqk"), v=(v, f"{lead}hke"))
    at = len(lead)
    y = g.reshape(g.transpose(y, *range(at), at + 1, at, at + 2), *lengths, dim)
    return p.linear(f"{path}/proj", y, f"{lead}nd")
