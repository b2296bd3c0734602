"""Pallas for TPUs: a program counts the bits of a block of outputs, one word after another, in vector registers.

Words of x lie along the lanes, of w along the rows: word j is a column [m 1] of the one and a row [1 n] of the other.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int, UInt32

ROWS = 64  #: rows of a block at most: with its columns, half of the vector registers
COLUMNS = 512
SUBLANES, LANES = 8, 128  #: a tile of 32-bit numbers
WORDS = 128  #: that are written out; beyond, the grid goes over pieces of as many


@partial(jax.jit, static_argnames=("k", "kind", "interpret"))
def matmul(
    x: UInt32[Array, "g m w"], w: UInt32[Array, "g n w"], k: int, kind: str, interpret: bool = False
) -> Int[Array, "g m n"]:
    """The products int32 [g m n] of packed rows."""
    (g, m, words), n = x.shape, w.shape[1]
    if 0 in (g, m, n):
        return jnp.zeros((g, m, n), jnp.int32)
    pieces = -(-words // WORDS)
    size = words if pieces == 1 else WORDS
    rows, columns = min(ROWS, m + -m % SUBLANES), min(COLUMNS, n + -n % LANES)
    left = jnp.pad(x, ((0, 0), (0, -m % rows), (0, pieces * size - words)))
    right = jnp.swapaxes(jnp.pad(w, ((0, 0), (0, -n % columns), (0, pieces * size - words))), 1, 2)
    grid = (g, left.shape[1] // rows, right.shape[2] // columns, pieces)
    out = pl.pallas_call(
        partial(_program, size, k, kind),
        grid=grid,
        in_specs=[
            pl.BlockSpec((1, rows, size), lambda b, i, j, p: (b, i, p)),
            pl.BlockSpec((1, size, columns), lambda b, i, j, p: (b, p, j)),
        ],
        out_specs=pl.BlockSpec((1, rows, columns), lambda b, i, j, p: (b, i, j)),
        out_shape=jax.ShapeDtypeStruct((g, left.shape[1], right.shape[2]), jnp.int32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(left, right)
    return out[:, :m, :n]


def _program(size: int, k: int, kind: str, x: Any, w: Any, out: Any) -> None:
    """What one piece of the words adds to a block of products; the first adds k where bits are signs."""
    combine = jnp.bitwise_xor if kind == "xnor" else jnp.bitwise_and
    rows, columns = x[0], w[0]
    total = jnp.zeros(out.shape[1:], jnp.uint32)
    for j in range(size):
        total = total + jax.lax.population_count(combine(rows[:, j : j + 1], columns[j : j + 1]))
    twice = 2 * total.astype(jnp.int32)
    if kind == "xnor":
        part = -twice
    else:  # bits of a row: exact in float32, of which sums along lanes are sure to be there
        counts = jax.lax.population_count(rows).astype(jnp.int32).astype(jnp.float32)
        part = twice - counts.sum(axis=1, keepdims=True).astype(jnp.int32)
    first = pl.program_id(3) == 0

    @pl.when(first)
    def _() -> None:
        out[0] = part + k if kind == "xnor" else part

    @pl.when(jnp.logical_not(first))
    def _() -> None:
        out[0] = out[0] + part
