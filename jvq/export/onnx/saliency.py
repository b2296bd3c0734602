"""A ViT with a decoder of maps as a graph, as :mod:`jvq.models.saliency` has it."""

from jvq.export.onnx import vit
from jvq.export.onnx.products import Products
from jvq.models.saliency import Spec


def forward(p: Products, spec: Spec, images: str) -> tuple[str, str, tuple[int, ...]]:
    """The value [b y x] that the model gives for images [b y x c], what it is, and its shape without the batch."""
    g, (h, w), count = p.graph, spec.grid, len(spec.decoder)
    tokens, _, (length, _) = vit.forward(p, spec, images)
    x = g.part(tokens, 1, spec.prefix, length)
    for i, width in enumerate(spec.decoder):
        x = g.add("Relu", doubled(p, f"decoder/up{i + 1}", x, (h << i, w << i), width))
    x = g.reshape(p.linear("decoder/out", x, "bnd"), 1, h << count, w << count)
    sizes, how = g.integers(spec.image), "half_pixel"
    x = g.add("Resize", x, "", "", sizes, axes=[2, 3], mode="linear", coordinate_transformation_mode=how)
    return g.reshape(g.add("Sigmoid", x), *spec.image), "map", spec.image


def doubled(p: Products, site: str, x: str, grid: tuple[int, int], width: int) -> str:
    """Tokens [b n d] on ``grid`` to [b 4n o] on the doubled grid: a transposed convolution, and its bias."""
    g, (h, w) = p.graph, grid
    taps = g.reshape(p.linear(site, x, "bnd", bias=False), h, w, 2, 2, 2, 2, width)  # b h w a p c q o
    parts = g.transpose(taps, 0, 3, 5, 1, 2, 4, 6, 7)  # b a c h w p q o
    whole = ""
    for a in range(2):
        for c in range(2):
            pads = g.integers([0, a, c, 0, 0, 0, 0, 1 - a, 1 - c, 0, 0, 0])  # before each axis, then behind each
            part = g.add("Pad", g.at(g.at(parts, 1, a), 1, c), pads)
            whole = g.add("Add", whole, part) if whole else part
    y = g.reshape(g.transpose(whole, 0, 1, 3, 2, 4, 5), 2 * h + 2, 2 * w + 2, width)
    inner = g.part(g.part(y, 1, 1, 2 * h + 1), 2, 1, 2 * w + 1)
    bias = g.constant(p.param(f"{site}/bias"), f"{site}/bias")
    return g.add("Add", g.reshape(inner, 4 * h * w, width), bias)
