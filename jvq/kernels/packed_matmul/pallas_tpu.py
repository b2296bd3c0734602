"""Pallas for TPU: bytes are read once, a field of them is unpacked on chip and meets all rows of x.

A block of outputs is one field of a block of bytes. The grid goes through the rows of x first, whose blocks all meet
the codes that the first one unpacked, then through the fields, for which the bytes stay. A block holds whole rows.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int32, UInt8

from jvq.kernels.packed_matmul.layout import FIELDS, PLANES, join_columns, parts, split_columns
from jvq.kernels.packed_matmul.terms import AXES, Terms, finish, prepared

ROWS, LANES = 32, 128  #: the least block of int8
MOST = 512  #: rows of a block at most
COLUMNS = 640  #: outputs of a block at most
BLOCK = 2**20  #: bytes of a block of x at most, where that is more than the least
CODES = 2**19  #: codes of a block at most, where that is more than the least; 9 bytes each while unpacked
LONGEST = 2**14  #: the longest rows that fit on chip


def packed_matmul(
    x: jax.Array,
    w: UInt8[Array, "gw p r k"],
    *,
    bits: int,
    n: int,
    x_scale: Float32[Array, "_ _ 1"] | None,
    w_scale: Float32[Array, "_ 1 _"],
    x_zero: Int32[Array, "_ _ 1"] | None = None,
    w_zero: Int32[Array, "_ 1 _"] | None = None,
    w_sum: Int32[Array, "_ 1 n"] | None = None,
    bias: Float32[Array, " n"] | None = None,
    interpret: bool = False,
) -> Float32[Array, "g m n"]:
    """The product, as :func:`~jvq.kernels.packed_matmul.packed_matmul` says.

    Raises ``NotImplementedError`` for rows that do not fit on chip.
    """
    (gw, _, r, k), shape = w.shape, (*x.shape[:2], n)
    if k > LONGEST:
        raise NotImplementedError(f"packed_matmul: rows of {k} codes do not fit on chip, at most {LONGEST} do")
    x, t = prepared(x, gw, n, x_scale=x_scale, w_scale=w_scale, x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias)
    columns = _columns(r, k)
    blocks = pl.cdiv(r, columns)
    split = partial(split_columns, bits=bits, width=blocks * columns)
    of_columns = [axis == "n" for axis in AXES]
    given = {
        name: split(a) if of_column else a
        for name, a, of_column in zip(t._fields, t, of_columns, strict=True)
        if a is not None
    }
    if x_scale is None and w_zero is not None:  # a column of them, as codes lie on chip
        zeros = jnp.broadcast_to(w_zero, (*w_zero.shape[:2], n))
        given["codes_zero"] = jnp.swapaxes(split(zeros), 1, 2)
    y = _product(x, w, given, bits, columns, blocks, interpret)
    return join_columns(y, bits, n).reshape(shape)


def _columns(r: int, k: int) -> int:
    """Outputs of a block: those that leave the least of the last one empty, and as many as fit of these."""
    most = min(COLUMNS, max(CODES // k // LANES, 1) * LANES)
    return min(range(LANES, most + 1, LANES), key=lambda size: (pl.cdiv(r, size) * size, -size))


def _product(
    x: jax.Array,
    w: jax.Array,
    given: dict[str, jax.Array],
    bits: int,
    columns: int,
    blocks: int,
    interpret: bool,
) -> Float32[Array, "g m c"]:
    """The values [g m c], c the columns of ``split_columns``, from terms and zero points of codes [g|1 c 1]."""
    (g, m, k), fields = x.shape, FIELDS[bits]
    rows = min(m, MOST, max(BLOCK // (k * x.dtype.itemsize) // ROWS, 1) * ROWS)

    of_rows = {name for name, axis in zip(Terms._fields, AXES, strict=True) if axis == "m"}

    def spec(name: str, a: jax.Array) -> pl.BlockSpec:
        many = int(a.shape[0] > 1)
        if name in of_rows:
            return pl.BlockSpec((1, rows, 1), lambda i, j, f, row: (i * many, row, 0))
        if name == "codes_zero":
            return pl.BlockSpec((1, columns, 1), lambda i, j, f, row: (i * many, f * blocks + j, 0))
        return pl.BlockSpec((1, 1, columns), lambda i, j, f, row: (i * many, 0, f * blocks + j))

    return pl.pallas_call(
        partial(_kernel, bits=bits, names=tuple(given)),
        grid=(g, blocks, fields, pl.cdiv(m, rows)),
        in_specs=[
            pl.BlockSpec((1, rows, k), lambda i, j, f, row: (i, row, 0)),
            pl.BlockSpec((1, PLANES[bits], columns, k), lambda i, j, f, row: (i, 0, j, 0)),
            *[spec(name, a) for name, a in given.items()],
        ],
        out_specs=pl.BlockSpec((1, rows, columns), lambda i, j, f, row: (i, row, f * blocks + j)),
        out_shape=jax.ShapeDtypeStruct((g, m, fields * blocks * columns), jnp.float32),
        scratch_shapes=[pltpu.VMEM((columns, k), x.dtype)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(x, w, *given.values())


def _kernel(x_ref, w_ref, *refs, bits, names):
    """One block of the product; ``codes`` [c k], of the field, are kept from the first block of x on."""
    *terms, y_ref, codes_ref = refs
    given = dict(zip(names, terms, strict=True))
    f = pl.program_id(2)

    @pl.when(pl.program_id(3) == 0)
    def _():
        codes = jnp.zeros(codes_ref.shape, jnp.int32)
        for plane, bit, width, first in parts(bits, f):
            field = (w_ref[0, plane].astype(jnp.int32) >> bit) & (2**width - 1)
            codes = codes | (field << first)
        if "codes_zero" in given:
            codes = codes - given["codes_zero"][0]
        if codes_ref.dtype != jnp.int8:
            codes = codes.astype(jnp.float32)
        codes_ref[...] = codes.astype(codes_ref.dtype)

    x = x_ref[0]
    acc = jax.lax.dot_general(
        x,
        codes_ref[...],
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        preferred_element_type=jnp.int32 if x.dtype == jnp.int8 else jnp.float32,
    )
    present: dict[str, Any] = {name: given[name][0] if name in given else None for name in Terms._fields}
    y_ref[0] = finish(acc, Terms(**present))
