"""The layers that the architectures share. They multiply only through the ``dot`` that they are handed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from jvq.core import axes
from jvq.core.dot import Dot
from jvq.core.packed import Encoded

Initializer = Callable[..., Any]
SLICES = 16  #: a power of two: how many are added in one loop of an ordered sum
QK_NORMS, QK_EPS = ("q_norm", "k_norm"), 1e-5  #: of queries and keys


@dataclasses.dataclass(frozen=True)
class Variant:
    """What attention and MLP are asked to do otherwise; fields of the same names in an architecture's Spec.

    ``merged``: query and key are one matrix a head, the tokens themselves the keys (:mod:`jvq.models.merging`).
    ``qk_norm``: a LayerNorm over the channels of each query and one of each key, shared by the heads. ``clip``: the
    bound of what fc2 sees; 0: none. ``softmax`` off: the scores weigh the values as they are.
    Source of the last three: Li et al. 2024 (Bi-ViT), its code; the last one is BiBERT's.
    """

    merged: bool = False
    qk_norm: bool = False
    clip: float = 0.0
    softmax: bool = True

    def __post_init__(self) -> None:
        if self.merged and self.qk_norm:
            raise ValueError("model.qk_norm needs queries and keys of their own, which model.merged makes one matrix")
        if self.merged and not self.softmax:
            raise ValueError("model.merged leaves out what only a softmax takes away: it needs model.softmax")
        if not 0 <= self.clip < math.inf:
            raise ValueError(f"model.clip: got {self.clip}, must be a finite bound, or 0 for none")

    @property
    def changes(self) -> list[str]:
        """The fields in which it is not the published models' way."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    @classmethod
    def of(cls, spec: Any) -> "Variant":
        """The one that a Spec's fields say."""
        return cls(**{f.name: getattr(spec, f.name) for f in dataclasses.fields(cls)})


def site(module: nn.Module) -> str:
    """The module's path as the first part of an address: ``block03/attn``."""
    return "/".join(module.path)


def weight(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> Any:
    """The parameter ``name`` of ``module``: a float array [shape], or the leaf that stands in its place (Packed, Rows).

    ``nn.Module.param`` compares every leaf's shape with the initialiser's and would refuse the packed codes.
    """
    if module.is_initializing() or not module.has_variable("params", name):
        return module.param(name, init, shape)
    value = module.get_variable("params", name)
    if isinstance(value, Encoded):
        if value.shape != shape:
            raise ValueError(f"{site(module)}/{name}: a packed weight of shape {value.shape}, the model has {shape}")
        return value
    return module.param(name, init, shape)


@jax.custom_jvp
def ordered_sum(x: Float[Array, "*lead n"]) -> Float[Array, "*lead 1"]:
    """The sum over the last axis, added in one fixed order on CPU.

    XLA's own reduction adds in an order that depends on the other axes' lengths, so that an image alone and the same
    image in a batch would differ by a last bit, and its quantised activations then by whole steps. Adding halves is
    elementwise, which nothing reorders, and no slower. Other devices' matrix products depend on the batch anyway.
    """
    return _ordered_sum(x)


@ordered_sum.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Tangents in XLA's order, whose transpose is one broadcast instead of a pad for each halving."""
    return ordered_sum(*primals), tangents[0].sum(axis=-1, keepdims=True)


@jax.jit  # traced once for a shape: a model has dozens of sums
def _ordered_sum(x: jax.Array) -> jax.Array:
    def halves(x: jax.Array) -> jax.Array:
        width = 1 << max(x.shape[-1] - 1, 0).bit_length()
        while width > 1:  # four halvings at once: one loop over sixteen slices, where one by one would be ten passes
            width, pieces = max(width // SLICES, 1), min(width, SLICES)
            parts = [_piece(x, i * width, width) for i in range(pieces)]
            while len(parts) > 1:
                half = len(parts) // 2
                parts = [a if b is None else a + b for a, b in zip(parts[:half], parts[half:], strict=True)]
            x = parts[0]
        return x

    return jax.lax.platform_dependent(x, cpu=halves, default=lambda x: x.sum(axis=-1, keepdims=True))


def _piece(x: jax.Array, start: int, width: int) -> Any:
    """``x`` [.. start:start+width], filled up with zeros; None where nothing of it is left."""
    piece = x[..., start : start + width]
    lacking = width - piece.shape[-1]
    if lacking == width:
        return None
    return jnp.pad(piece, [(0, 0)] * (x.ndim - 1) + [(0, lacking)]) if lacking else piece


def pooled(x: Float[Array, "b n d"]) -> Float[Array, "b 1 d"]:
    """The mean over the tokens, as one token."""
    return rearrange(ordered_sum(rearrange(x, "b n d -> b d n")), "b d 1 -> b 1 d") / x.shape[1]


def softmax(scores: Float[Array, "*lead n"]) -> Float[Array, "*lead n"]:
    """Softmax over the last axis, float32."""
    wide = scores.astype(jnp.float32)
    # the barrier keeps maximum and exponential apart: on a CPU the two as one loop take twice as long
    most = jax.lax.optimization_barrier(jax.lax.stop_gradient(wide.max(axis=-1, keepdims=True)))
    e = jnp.exp(wide - most)
    return (e / ordered_sum(e)).astype(scores.dtype)


class Linear(nn.Module):
    """A product with a learned kernel, ``equation`` in axis letters, plus a bias over the kernel's output letters."""

    equation: str  # "bnd,do->bno"
    shape: tuple[int, ...]  # of the kernel, in its letters
    kernel_init: Initializer = nn.initializers.lecun_normal(in_axis=0, out_axis=-1)
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], dot: Dot) -> Float[Array, "..."]:
        (_, kernel_letters), out = axes.split(self.equation)
        w = weight(self, "kernel", self.kernel_init, self.shape)
        y = dot(site(self), self.equation, x=x, w=w)
        if not self.use_bias:
            return y
        kept = [i for i, a in enumerate(kernel_letters) if a in out]
        bias = self.param("bias", nn.initializers.zeros_init(), tuple(self.shape[i] for i in kept))
        return y + axes.expand(bias, "".join(kernel_letters[i] for i in kept), out)


def patches(
    images: Float[Array, "b y x c"], image: tuple[int, int], channels: int, patch: int
) -> Float[Array, "b n d"]:
    """Squares of ``patch`` pixels a side, row by row, each as one token; ``ValueError`` for images of another shape."""
    if images.shape[1:] != (*image, channels):
        raise ValueError(f"images of shape {images.shape[1:]}, the model wants {(*image, channels)} (y, x, c)")
    return rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


class Mlp(nn.Module):
    """fc1, exact GELU, fc2; between the last two everything is held within ``clip`` of zero, where that is not 0."""

    hidden: int
    clip: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], dot: Dot) -> Float[Array, "b n d"]:
        dim = x.shape[-1]
        x = Linear("bnd,do->bno", (dim, self.hidden), name="fc1")(x, dot)
        x = jax.nn.gelu(x, approximate=False)
        if self.clip:
            x = jnp.clip(x, -self.clip, self.clip)
        return Linear("bnd,do->bno", (self.hidden, dim), name="fc2")(x, dot)


def scores_and_values(
    here: str, x: Float[Array, "*lead n d"], heads: int, variant: Variant, dot: Dot, lead: str
) -> tuple[Float[Array, "*lead h q k"], Float[Array, "*lead h k e"]]:
    """The scores of an attention, scaled, and its values, for the module at ``here`` that calls this.

    ``lead`` are the letters in front of the tokens. The fused projection is one product whose kernel has letters
    [d,s,h,e]; for others see :class:`Variant`.
    """
    dim = x.shape[-1]
    e = dim // heads
    # Products come out in XLA's own order (shared, left, right); turning them is left to a transposition, or the
    # compiler chooses how to multiply by the batch size, and with it the rounding.
    if variant.merged:
        z = Linear(f"{lead}nd,dho->{lead}nho", (dim, heads, dim), name="query_key")(x, dot)
        v = Linear(f"{lead}nd,dhe->{lead}nhe", (dim, heads, e), name="value")(x, dot)
        z, v = rearrange(z, "... n h d -> ... h n d"), rearrange(v, "... n h e -> ... h n e")
        return dot(f"{here}/qk", f"{lead}hqd,{lead}kd->{lead}hqk", q=z * e**-0.5, k=x), v
    qkv = Linear(f"{lead}nd,dshe->{lead}nshe", (dim, 3, heads, e), name="qkv")(x, dot)
    q, k, v = rearrange(qkv, "... n s h e -> s ... h n e")
    if variant.qk_norm:
        q, k = (Norm(QK_EPS, name=name)(y) for name, y in zip(QK_NORMS, (q, k), strict=True))
    return dot(f"{here}/qk", f"{lead}hqe,{lead}hke->{lead}hqk", q=q * e**-0.5, k=k), v


class Attention(nn.Module):
    """Multi-head self-attention."""

    heads: int
    variant: Variant

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], dot: Dot) -> Float[Array, "b n d"]:
        here, dim = site(self), x.shape[-1]
        scores, v = scores_and_values(here, x, self.heads, self.variant, dot, "b")
        p = softmax(scores) if self.variant.softmax else scores
        y = dot(f"{here}/pv", "bhqk,bhke->bhqe", p=p, v=v)
        return Linear("bnd,do->bno", (dim, dim), name="proj")(rearrange(y, "b h q e -> b q (h e)"), dot)


class LayerScale(nn.Module):
    """``x`` times a learned factor per channel (CaiT; used by DINOv2 and DeiT III)."""

    init: float

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        gamma = self.param("gamma", nn.initializers.constant(self.init), (x.shape[-1],))
        return x * gamma[None, None]


class Norm(nn.Module):
    """LayerNorm over the last axis, statistics in float32 by the two-pass formula that torch uses."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*lead d"]) -> Float[Array, "*lead d"]:
        d = x.shape[-1]
        lead = (1,) * (x.ndim - 1)
        scale = self.param("scale", nn.initializers.ones_init(), (d,)).reshape(*lead, d)
        bias = self.param("bias", nn.initializers.zeros_init(), (d,)).reshape(*lead, d)
        wide = x.astype(jnp.float32)
        centred = wide - ordered_sum(wide) / d
        variance = ordered_sum(jnp.square(centred)) / d
        return (centred * jax.lax.rsqrt(variance + self.eps)).astype(x.dtype) * scale + bias


class Block(nn.Module):
    """A pre-norm transformer block."""

    heads: int
    hidden: int
    eps: float
    layer_scale: float | None
    variant: Variant

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], dot: Dot) -> Float[Array, "b n d"]:
        attention = Attention(self.heads, self.variant, name="attn")
        mlp = Mlp(self.hidden, self.variant.clip, name="mlp")
        for i, (norm, layer) in enumerate((("norm1", attention), ("norm2", mlp)), 1):
            y = layer(Norm(self.eps, name=norm)(x), dot)
            if self.layer_scale is not None:
                y = LayerScale(self.layer_scale, name=f"scale{i}")(y)
            x = x + y
        return x
