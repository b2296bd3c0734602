"""The binary products of a ViT: a linear layer, the scores and the values of attention; integers but for the scale."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int

from jvq.core.packed import Packed
from jvq.kernels.binary_matmul.bits import kernel_words, pack_words, sign_words
from jvq.kernels.binary_matmul.matmul import binary_matmul


def binary_linear(x: jax.Array, kernel: Packed, impl: str = "auto") -> Float32[Array, "..."]:
    """The signs of x [... d] times a kernel of scaled signs [d ...]: ``scale * integer``, float32, [...] after [...].

    The kernel has one bit, no zero point (its codes 0 and 1 are -1 and +1) and scales that do not vary along d. The
    kernel's further axes follow those of ``x`` in their order. Source: the specification of Bi-ViT, 1.2, 1.3 and K3.
    """
    d, *out = kernel.shape
    if kernel.zero is not None:
        raise ValueError("binary_linear: the kernel has zero points, but signs are packed with zero=None")
    if x.shape[-1] != d:
        raise ValueError(f"binary_linear: x {list(x.shape)} and the kernel {list(kernel.shape)} differ in d")
    if kernel.scale.ndim == len(kernel.shape) and kernel.scale.shape[0] != 1:
        raise ValueError(f"binary_linear: scales {list(kernel.scale.shape)} vary along what the product sums over")
    counts = binary_matmul(sign_words(x.reshape(-1, d)), kernel_words(kernel), d, impl=impl)
    scale = jnp.broadcast_to(kernel.scale, (1, *out)).reshape(1, -1)
    return (scale.astype(jnp.float32) * counts.astype(jnp.float32)).reshape(*x.shape[:-1], *out)


def binary_scores(
    q: jax.Array, k: jax.Array, q_zero: int | jax.Array = 0, k_zero: int | jax.Array = 0, impl: str = "auto"
) -> Int[Array, "... q k"]:
    """The integers ``(sign(q) - q_zero) . (sign(k) - k_zero)``, int32 [... q k], of q [... q e] and k [... k e].

    Zero points are numbers, or int32 that broadcast against the scores and are of their rank. Without them there are
    at most e + 1 levels, all odd or all even as e is. Times ``alpha_q * alpha_k / sqrt(e)`` they are the logits.
    Source: the specification of Bi-ViT, K4.
    """
    e = q.shape[-1]
    if k.shape[-1] != e:
        raise ValueError(f"binary_scores: q {list(q.shape)} and k {list(k.shape)} differ in their channels")
    q_words, k_words = sign_words(q), sign_words(k)
    plain = binary_matmul(q_words, k_words, e, impl=impl)
    q_sum, k_sum = (2 * _ones(words) - e for words in (q_words, k_words))
    return plain - k_zero * q_sum[..., :, None] - q_zero * k_sum[..., None, :] + e * (q_zero * k_zero)


def _ones(words: jax.Array) -> Int[Array, "... n"]:
    """How many bits of each row are set, int32."""
    return jnp.sum(jax.lax.population_count(words), axis=-1, dtype=jnp.uint32).astype(jnp.int32)


def binary_values(p: jax.Array, v: jax.Array, impl: str = "auto") -> Int[Array, "... q e"]:
    """The integers ``p . sign(v)``, int32 [... q e], of attention p [... q k], bool or 0 and 1, and v [... k e].

    Times ``beta * alpha_v`` they are the output of the heads. Source: the specification of Bi-ViT, K2.
    """
    if v.ndim < 2 or p.shape[-1] != v.shape[-2]:
        raise ValueError(f"binary_values: p {list(p.shape)} and v {list(v.shape)} differ in their tokens")
    return binary_matmul(pack_words(p), sign_words(jnp.swapaxes(v, -1, -2)), p.shape[-1], "and", impl)
