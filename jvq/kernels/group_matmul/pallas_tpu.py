"""Pallas for TPU: blocks of x and w stay on chip for all products, one of a ladder, three of scales of any kind.

A block holds whole rows, so that no sums are carried from one block to the next. The digits of a block of x
(:mod:`jvq.core.fixed_point`) are made once, at the first block of w, and kept.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int8, Int32

from jvq.core.fixed_point import DIGITS, fixed_point, joined
from jvq.kernels.group_matmul.values import own, values

LANES, COLUMNS = 128, 256  #: outputs of a block, at least and at most
ROWS = 32  #: the least rows of an int8 block
MOST = 256  #: rows of a block at most
BLOCK = 2**18  #: values of x in a block at most, where that is more than the least rows; 20 bytes each while split
LONGEST = 2**14  #: the longest rows that fit on chip


def group_matmul(
    x: Int8[Array, "b m k"],
    group: Int32[Array, "b k"] | None,
    w: Int8[Array, "n k"],
    *,
    scale: Float32[Array, " g"],
    zero: Int32[Array, " g"] | None,
    w_scale: Float32[Array, " c"],
    w_zero: Int32[Array, " z"] | None = None,
    bias: Float32[Array, " n"] | None = None,
    ladder: bool = False,
    interpret: bool = False,
) -> Float32[Array, "b m n"]:
    """The product, as :func:`~jvq.kernels.group_matmul.group_matmul` says.

    Raises ``NotImplementedError`` for rows that do not fit on chip.
    """
    (b, m, k), n = x.shape, w.shape[0]
    if k > LONGEST:
        raise NotImplementedError(f"group_matmul: rows of {k} codes do not fit on chip, at most {LONGEST} do")
    rows = min(m, MOST, max(BLOCK // k // ROWS, 1) * ROWS)
    columns = min(pl.cdiv(n, LANES) * LANES, COLUMNS)  # never one alone: that product is no matrix product
    if ladder:
        channels = jnp.broadcast_to(scale[None, :, None], (b, 1, 1))
    else:
        assert group is not None
        zeros = jnp.zeros_like(scale) if zero is None else zero
        channels = jnp.concatenate([own(scale, group), own(zeros, group)], axis=1)
    outputs = [
        jnp.broadcast_to(filler if a is None else a.astype(filler.dtype), (n,))[None]
        for a, filler in ((w_scale, jnp.ones(1)), (w_zero, jnp.zeros(1, jnp.int32)), (bias, jnp.zeros(1)))
    ]
    of_outputs = pl.BlockSpec((1, columns), lambda i, r, c: (0, c))
    digits = 1 if ladder else DIGITS
    return pl.pallas_call(
        partial(_kernel, ladder=ladder, shifted=w_zero is not None),
        grid=(b, pl.cdiv(m, rows), pl.cdiv(n, columns)),
        in_specs=[
            pl.BlockSpec((1, rows, k), lambda i, r, c: (i, r, 0)),
            pl.BlockSpec((1, *channels.shape[1:]), lambda i, r, c: (i, 0, 0)),
            pl.BlockSpec((columns, k), lambda i, r, c: (c, 0)),
            *[of_outputs] * 3,
        ],
        out_specs=pl.BlockSpec((1, rows, columns), lambda i, r, c: (i, r, c)),
        out_shape=jax.ShapeDtypeStruct((b, m, n), jnp.float32),
        scratch_shapes=[
            pltpu.VMEM((digits, rows, k), jnp.int8),
            pltpu.VMEM((digits, rows, 1), jnp.int32),
            pltpu.VMEM((rows, 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(x, channels, w, *outputs)


def _kernel(
    x_ref, channels_ref, w_ref, scale_ref, zero_ref, bias_ref, y_ref, digits_ref, sums_ref, unit_ref, *, ladder, shifted
):
    """One block of the product. ``channels`` is what each channel has of its group, [2 k], or a ladder's scale [1 1].

    Kept from the first block of w on: ``digits`` [i m k], their sums over k [i m 1] and the rows' units [m 1].
    """

    @pl.when(pl.program_id(2) == 0)
    def _():
        x = x_ref[0].astype(jnp.int32)
        if ladder:
            digits, unit = [x], jnp.broadcast_to(channels_ref[0], unit_ref.shape)
        else:
            digits, unit = fixed_point(values(x, channels_ref[0, :1], channels_ref[0, 1:]))
        unit_ref[...] = unit
        for i, digit in enumerate(digits):
            digits_ref[i] = digit.astype(jnp.int8)
            if shifted:
                sums_ref[i] = digit.sum(axis=1, keepdims=True)

    w, products = w_ref[...], []
    for i in range(digits_ref.shape[0]):
        axes = (((1,), (1,)), ((), ()))
        product = jax.lax.dot_general(digits_ref[i], w, axes, preferred_element_type=jnp.int32)
        products.append(product - sums_ref[i] * zero_ref[...] if shifted else product)
    y_ref[0] = joined(products) * unit_ref[...] * scale_ref[...] + bias_ref[...]
