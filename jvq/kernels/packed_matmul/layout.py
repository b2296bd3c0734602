"""How weights of 2, 3 and 4 bits lie in memory: rows that are far apart share their bytes.

A byte holds a *field* of each of several rows, r rows apart, so that a field of all bytes is r whole rows in their
order: unpacking is one shift and one mask for r rows, then rows behind rows. Nothing is interleaved, nothing moves
along k, and k needs no filling-up.

| bits | fields f | planes p | code of row ``i * r + j`` at column c |
|---|---|---|---|
| 4 | 2 | 1 | bits 4i, 4i+1, 4i+2, 4i+3 of byte [0, j, c] |
| 2 | 4 | 1 | bits 2i, 2i+1 of byte [0, j, c] |
| 3 | 8 | 3 | bits 2h, 2h+1 of byte [i % 2, j, c], h = i // 2; above them bit i of byte [2, j, c] |

So the first two planes of 3 bits are fields of 2 bits, the last one is fields of 1 bit. There are r = ceil(n / f) rows
of bytes: ``p * r * k`` bytes in all, which is ``bits * n * k / 8`` where f divides n; n is else filled up to a multiple
of f with rows of zeros.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Int8, UInt8

from jvq.core.packed import Packed

FIELDS = {2: 4, 3: 8, 4: 2}  #: rows that share their bytes, by bits
PLANES = {2: 1, 3: 3, 4: 1}  #: bytes that they share, for each column


def parts(bits: int, i: Any) -> tuple[tuple[Any, Any, int, int], ...]:
    """Where the code of field ``i`` is, a number or a traced one: (plane, first bit, width, first bit in the code)."""
    if bits == 3:
        return (i & 1, i & 6, 2, 0), (2, i, 1, 2)  # no division, which a TPU would have to be told of
    return ((0, i * bits, bits, 0),)


@partial(jax.jit, static_argnames=("bits",))
def pack_rows(codes: Int[Array, "g n k"], bits: int) -> UInt8[Array, "g p r k"]:
    """The bytes [g p r k] of codes 0..2**bits-1; what is above ``bits`` bits is dropped."""
    known(bits)
    g, n, k = codes.shape
    fields = FIELDS[bits]
    filled = jnp.pad(codes.astype(jnp.int32), ((0, 0), (0, -n % fields), (0, 0))).reshape(g, fields, -1, k)
    planes = [jnp.zeros((g, filled.shape[2], k), jnp.int32) for _ in range(PLANES[bits])]
    for i in range(fields):
        for plane, bit, width, first in parts(bits, i):
            planes[plane] = planes[plane] | (((filled[:, i] >> first) & (2**width - 1)) << bit)
    return jnp.stack(planes, axis=1).astype(jnp.uint8)


@partial(jax.jit, static_argnames=("bits", "n"))
def unpack_rows(w: UInt8[Array, "g p r k"], bits: int, n: int) -> Int8[Array, "g n k"]:
    """The codes int8 [g n k] behind bytes; the inverse of :func:`pack_rows`."""
    known(bits)
    rows = [field(w, bits, i).astype(jnp.int8) for i in range(FIELDS[bits])]
    return jnp.concatenate(rows, axis=1)[:, :n]


def field(w: UInt8[Array, "g p r k"], bits: int, i: int) -> UInt8[Array, "g r k"]:
    """The codes of the rows i * r .. i * r + r - 1, uint8 [g r k]."""
    codes = [((w[:, plane] >> bit) & (2**width - 1)) << first for plane, bit, width, first in parts(bits, i)]
    return codes[0] if len(codes) == 1 else codes[0] | codes[1]


def rows_of(packed: Packed, contracted: int = 1) -> UInt8[Array, "1 p r k"]:
    """The bytes [1 p r k] of a stored weight: its first ``contracted`` axes are k, the others, in their order, n."""
    known(packed.bits)
    k = math.prod(packed.shape[:contracted])
    return pack_rows(packed.codes().codes.reshape(k, -1).T[None], packed.bits)


def known(bits: int) -> None:
    """Raises ``ValueError`` for a width that has no layout."""
    if isinstance(bits, bool) or bits not in FIELDS:
        raise ValueError(f"packed_matmul: bits is {bits}, weights stay packed with {', '.join(map(str, FIELDS))} bits")


def split_columns(a: jax.Array, bits: int, width: int) -> jax.Array:
    """``a`` [... n] with the columns of every field filled up with zeros to ``width``: [... f * width]."""
    fields, lead = FIELDS[bits], [(0, 0)] * (a.ndim - 1)
    filled = jnp.pad(a, [*lead, (0, -a.shape[-1] % fields)]).reshape(*a.shape[:-1], fields, -1)
    filled = jnp.pad(filled, [*lead, (0, 0), (0, width - filled.shape[-1])])
    return filled.reshape(*a.shape[:-1], fields * width)


def join_columns(a: jax.Array, bits: int, n: int) -> jax.Array:
    """``a`` [... n] of what :func:`split_columns` gives; nothing moves where nothing is filled up."""
    fields = FIELDS[bits]
    if a.shape[-1] == n:
        return a
    whole = a.reshape(*a.shape[:-1], fields, -1)[..., : -(-n // fields)]
    return whole.reshape(*a.shape[:-1], -1)[..., :n]
