"""Codes of one bit as uint32 words along the contracted axis: bit i of word j is code 32j + i, lowest bit first.

The last word is filled up with zeros: products rely on it. A bit is 1 for +1 and 0 for -1 where it stands for a sign.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8, UInt32

from jvq.core.packed import Packed

WORD = 32  #: bits of a word


def word_count(k: int) -> int:
    """How many words hold k bits."""
    return -(-k // WORD)


def pack_words(codes: jax.Array) -> UInt32[Array, "... w"]:
    """Words [... w] of codes [... k], bool or integers 0 and 1."""
    if not (codes.dtype == jnp.bool_ or jnp.issubdtype(codes.dtype, jnp.integer)):
        raise ValueError(f"pack_words takes codes 0 and 1, not {codes.dtype} (for the signs of values: sign_words)")
    *lead, k = codes.shape
    words = word_count(k)
    filled = jnp.pad(codes.astype(bool).astype(jnp.uint32), [*[(0, 0)] * len(lead), (0, words * WORD - k)])
    place = jnp.arange(WORD, dtype=jnp.uint32).reshape(*[1] * len(lead), 1, WORD)
    return jnp.sum(filled.reshape(*lead, words, WORD) << place, axis=-1, dtype=jnp.uint32)


def sign_words(values: jax.Array) -> UInt32[Array, "... w"]:
    """Words [... w] of the signs of values [... k], floats or signed integers; the sign of 0 is +1."""
    if not (jnp.issubdtype(values.dtype, jnp.floating) or jnp.issubdtype(values.dtype, jnp.signedinteger)):
        raise ValueError(f"sign_words takes values with signs, not {values.dtype} (for codes 0 and 1: pack_words)")
    return pack_words(values >= 0)


def unpack_words(words: UInt32[Array, "... w"], k: int) -> Int[Array, "... k"]:
    """The int32 codes 0 and 1 [... k] in words; the inverse of :func:`pack_words`."""
    *lead, count = words.shape
    place = jnp.arange(WORD, dtype=jnp.uint32).reshape(*[1] * (len(lead) + 1), WORD)
    codes = (words[..., None] >> place) & 1
    return codes.reshape(*lead, count * WORD)[..., :k].astype(jnp.int32)


def plane_words(plane: UInt8[Array, "k8 n"], k: int) -> UInt32[Array, "n w"]:
    """Words [n w] of one bit plane of :func:`~jvq.core.packed.pack_bits`, four bytes a word: no code is unpacked.

    What stands in the last byte beyond bit k, which unpacking does not look at, is cleared.
    """
    rows, n = plane.shape
    if rows != -(-k // 8):
        raise ValueError(f"a plane of {rows} bytes a column does not hold {k} bits: they take {-(-k // 8)}")
    inside = np.full((rows, 1), 0xFF, np.uint8)
    inside[-1] >>= 8 * rows - k
    filled = jnp.pad((plane & inside).astype(jnp.uint32), ((0, -rows % 4), (0, 0)))
    place = 8 * jnp.arange(4, dtype=jnp.uint32).reshape(1, 4, 1)
    return jnp.sum(filled.reshape(-1, 4, n) << place, axis=1, dtype=jnp.uint32).T


def kernel_words(kernel: Packed) -> UInt32[Array, "n w"]:
    """Words [n w] of a one-bit kernel [d ...]: a row for each output, in the order of the kernel's further axes."""
    if kernel.bits != 1:
        raise ValueError(f"a binary product takes kernels of 1 bit, not of {kernel.bits}")
    plane = kernel.planes[0]
    return plane_words(plane.reshape(plane.shape[0], -1), kernel.shape[0])
