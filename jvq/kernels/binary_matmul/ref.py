"""The reference: bits become integers and are multiplied as such. Slow, and what implementations are compared with."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from jvq.kernels.binary_matmul.bits import unpack_words


@partial(jax.jit, static_argnames=("k", "kind"))
def matmul(x: UInt32[Array, "g m w"], w: UInt32[Array, "g n w"], k: int, kind: str) -> Int[Array, "g m n"]:
    """The products int32 [g m n] of the integers behind the words."""
    left, right = unpack_words(x, k), 2 * unpack_words(w, k) - 1
    return jnp.einsum("gmk,gnk->gmn", 2 * left - 1 if kind == "xnor" else left, right)
