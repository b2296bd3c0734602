"""Pallas for TPU: blocks of x and w are multiplied into an int32 block on chip, which leaves it as values.

Blocks may reach beyond the ends of m and n: what is read there meets only outputs that are not written. Along k they
may not, so k is one block or is filled up with zeros.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.int8_matmul.terms import Terms, finish, stacked, sums_of, terms

SUBLANES, LANES = 32, 128  #: the least block of int8
ROWS, COLUMNS, DEPTH = 512, 768, 1024  #: the largest block along m, n and k; double-buffered, all take about 8 MiB


def int8_matmul(
    x: Int8[Array, "g m k"],
    w: Int8[Array, "gw n k"],
    *,
    x_scale: Float32[Array, "_ _ 1"],
    w_scale: Float32[Array, "_ 1 _"],
    x_zero: Int32[Array, "_ _ 1"] | None = None,
    w_zero: Int32[Array, "_ 1 _"] | None = None,
    w_sum: Int32[Array, "_ 1 n"] | None = None,
    bias: Float32[Array, " n"] | None = None,
    interpret: bool = False,
) -> Float32[Array, "g m n"]:
    """The product, as :func:`~jvq.kernels.int8_matmul.int8_matmul` says."""
    shape, (gw, n, _) = (*x.shape[:2], w.shape[1]), w.shape
    x, x_scale, x_zero = stacked(x, gw, x_scale, x_zero)
    w_sum = sums_of(w) if x_zero is not None and w_sum is None else w_sum
    t = terms(x, n, x_scale=x_scale, w_scale=w_scale, x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias)
    (g, m, k) = x.shape
    rows, depth = _block(m, ROWS, SUBLANES), _block(k, DEPTH, LANES)
    columns = LANES if n == 1 else _block(n, COLUMNS, LANES)  # never one alone: that product is no matrix product
    x, w = (jnp.pad(a, ((0, 0), (0, 0), (0, -k % depth))) for a in (x, w))
    vectors, structure = jax.tree.flatten(t)

    def spec(a: jax.Array) -> pl.BlockSpec:
        """Of a term: the block of rows or columns it has, of its matrix."""
        own, of_rows, of_columns = (size > 1 for size in a.shape)
        block = (1, rows if of_rows else 1, columns if of_columns else 1)
        return pl.BlockSpec(block, lambda i, r, c, d: (i if own else 0, r if of_rows else 0, c if of_columns else 0))

    def kernel(x_ref, w_ref, *refs):
        y_ref, acc_ref = refs[-2:]

        @pl.when(pl.program_id(3) == 0)
        def _():
            acc_ref[...] = jnp.zeros_like(acc_ref)

        axes = (((1,), (1,)), ((), ()))
        acc_ref[...] += jax.lax.dot_general(x_ref[0], w_ref[0], axes, preferred_element_type=jnp.int32)

        @pl.when(pl.program_id(3) == pl.num_programs(3) - 1)
        def _():
            of_block: Terms = jax.tree.unflatten(structure, [ref[0] for ref in refs[:-2]])
            y_ref[0] = finish(acc_ref[...], of_block)

    y = pl.pallas_call(
        kernel,
        grid=(g, pl.cdiv(m, rows), pl.cdiv(n, columns), pl.cdiv(k, depth)),
        in_specs=[
            pl.BlockSpec((1, rows, depth), lambda i, r, c, d: (i, r, d)),
            pl.BlockSpec((1, columns, depth), lambda i, r, c, d: (i if gw > 1 else 0, c, d)),
            *[spec(a) for a in vectors],
        ],
        out_specs=pl.BlockSpec((1, rows, columns), lambda i, r, c, d: (i, r, c)),
        out_shape=jax.ShapeDtypeStruct((g, m, n), jnp.float32),
        scratch_shapes=[pltpu.VMEM((rows, columns), jnp.int32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * g * m * n * k, bytes_accessed=x.size + w.size + 4 * g * m * n, transcendentals=0
        ),
        interpret=interpret,
    )(x, w, *vectors)
    return y.reshape(shape)


def _block(size: int, most: int, multiple: int) -> int:
    """The length of a block along an axis: all of it where that is no more than ``most``, else in equal parts."""
    if size <= most:
        return size
    return pl.cdiv(pl.cdiv(size, pl.cdiv(size, most)), multiple) * multiple
