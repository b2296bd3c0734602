"""Plain XLA for every platform: one word after another is combined and its bits are counted into the product.

All words at once, ``popcount(x[:, None] ^ w[None]).sum(-1)``, is ten times slower on a CPU. Up to ``UNROLL`` words are
written out, which become one fused loop; beyond that a scan goes over pieces of about as many. So compiling takes as
long for any k; and 24 words in one loop are already three times slower than in pieces of eight.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

UNROLL = 8  #: most words that are written out


@partial(jax.jit, static_argnames=("k", "kind"))
def matmul(x: UInt32[Array, "g m w"], w: UInt32[Array, "g n w"], k: int, kind: str) -> Int[Array, "g m n"]:
    """The products int32 [g m n] of packed rows."""
    combine = jnp.bitwise_xor if kind == "xnor" else jnp.bitwise_and
    pieces = -(-x.shape[2] // UNROLL)
    size = -(-x.shape[2] // pieces)
    # the word in front: its values for all n lie side by side, and so do those of all m
    xs, ws = (_pieces(jnp.moveaxis(a, 2, 0), pieces, size) for a in (x, w))

    def counted(total: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        for a, b in zip(*piece, strict=True):
            total = total + jax.lax.population_count(combine(a[:, :, None], b[:, None, :]))
        return total, None

    total = jnp.zeros((x.shape[0], x.shape[1], w.shape[1]), jnp.uint32)
    if pieces == 1:
        total, _ = counted(total, (xs[0], ws[0]))
    else:
        total, _ = jax.lax.scan(counted, total, (xs, ws))
    twice = 2 * total.astype(jnp.int32)
    if kind == "xnor":
        return k - twice
    return twice - jnp.sum(jax.lax.population_count(x), axis=2, dtype=jnp.uint32).astype(jnp.int32)[:, :, None]


def _pieces(words: UInt32[Array, "w g n"], pieces: int, size: int) -> UInt32[Array, "p s g n"]:
    """The words in pieces of equal size, filled up with zeros, which count nothing."""
    filled = jnp.pad(words, ((0, pieces * size - words.shape[0]), (0, 0), (0, 0)))
    return filled.reshape(pieces, size, *words.shape[1:])
