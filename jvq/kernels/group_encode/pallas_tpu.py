"""Pallas for TPU: a block holds all that a group is chosen by, so that x is read once.

With groups of channels a block is all rows of some channels of an image, with groups of rows all channels of some rows.
The groups' few numbers lie in scalar memory, and a running minimum carries the chosen ones along.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.group_encode.ladder import code_offset, per_group

LANES, ROWS = 128, 32  #: the least blocks of float32 and int8 that both fit
BLOCK = 2**18  #: values that a block has at most, where that is more than one of the least width
MOST = 2**20  #: values that fit on chip, with what is made of them


def group_encode(
    x: Float32[Array, "b n d"],
    lower: Float32[Array, " g"],
    upper: Float32[Array, " g"],
    scale: Float32[Array, " g"],
    zero: Float32[Array, " g"],
    levels: Float32[Array, ""],
    *,
    bits: int = 8,
    nonnegative: bool = False,
    ladder: bool = False,
    distance: str = "squared",
    along: str = "d",
    interpret: bool = False,
) -> tuple[Int8[Array, "b n d"], Int32[Array, "b p"]]:
    """The codes and the groups, as :func:`~jvq.kernels.group_encode.group_encode` says.

    Raises ``NotImplementedError`` where what one group is chosen by does not fit on chip.
    """
    wide = 8 if code_offset(bits) else 7  # no other width has an executable of its own
    return _encode(x, lower, upper, scale, zero, levels, wide, nonnegative, ladder, distance, along, interpret)


@partial(jax.jit, static_argnums=range(6, 12))
def _encode(
    x: Float32[Array, "b n d"],
    lower: Float32[Array, " g"],
    upper: Float32[Array, " g"],
    scale: Float32[Array, " g"],
    zero: Float32[Array, " g"],
    levels: Float32[Array, ""],
    bits: int,
    nonnegative: bool,
    ladder: bool,
    distance: str,
    along: str,
    interpret: bool,
) -> tuple[Int8[Array, "b n d"], Int32[Array, "b p"]]:
    b, n, d = x.shape
    rows, columns = _block(n, d, along)
    tables = jnp.stack([lower, upper, *per_group(upper, scale, zero, bits=bits, ladder=ladder)])
    if along == "d":
        grid, at, shape = pl.cdiv(d, columns), lambda i, j: (i, 0, j), (b, 1, d)
    else:
        grid, at, shape = pl.cdiv(n, rows), lambda i, j: (i, j, 0), (b, n, 1)
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    found = (1, 1, columns) if along == "d" else (1, rows, 1)
    codes, group = pl.pallas_call(
        partial(_kernel, nonnegative=nonnegative, distance=distance, over=0 if along == "d" else 1),
        grid=(b, grid),
        in_specs=[scalar, scalar, pl.BlockSpec((1, rows, columns), at)],
        out_specs=[pl.BlockSpec((1, rows, columns), at), pl.BlockSpec(found, at)],
        out_shape=[jax.ShapeDtypeStruct(x.shape, jnp.int8), jax.ShapeDtypeStruct(shape, jnp.int32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
    )(tables, levels.reshape(1), x)
    return codes, group.reshape(b, -1)


def _block(n: int, d: int, along: str) -> tuple[int, int]:
    """Rows and columns of a block: whole along the one axis, as many as fit along the other."""
    whole, other, least = (n, d, LANES) if along == "d" else (d, n, ROWS)
    if whole * min(least, other) > MOST:
        raise NotImplementedError(f"group_encode: {whole} values a group of '{along}' do not fit on chip")
    some = min(other, max(BLOCK // whole // least, 1) * least)
    return (n, some) if along == "d" else (some, d)


def _kernel(tables, levels, x_ref, codes_ref, group_ref, *, nonnegative, distance, over):
    """Codes of one block; ``tables`` [6 g] are the groups' bounds and what :func:`per_group` makes of the rest."""
    x = x_ref[0]
    high = x.max(axis=over, keepdims=True)
    low = jnp.zeros_like(high) if nonnegative else x.min(axis=over, keepdims=True)
    size = jnp.abs if distance == "absolute" else jnp.square
    least, group = jnp.full_like(high, jnp.inf), jnp.zeros(high.shape, jnp.int32)
    own = [jnp.full_like(high, tables[row, 0]) for row in range(2, 6)]
    for g in range(tables.shape[1]):
        away = size(low - tables[0, g]) + size(high - tables[1, g])
        nearer = away < least
        least, group = jnp.minimum(away, least), jnp.where(nearer, g, group)
        own = [jnp.where(nearer, tables[row, g], a) for row, a in zip(range(2, 6), own, strict=True)]
    inverse, zero, off, step = own
    codes = jnp.clip(jnp.round(x * inverse) + zero, 0.0, levels[0])
    codes_ref[0] = ((codes - off) * step).astype(jnp.int32).astype(jnp.int8)
    group_ref[0] = group
