"""Plain XLA for every platform: weights are unpacked to int8, all of them, and multiplied as any other int8.

On a CPU that is within a few per cent of a product of int8 that were never packed: unpacking 3072 x 768 codes takes a
tenth of the product with 197 rows. Slower were a loop over blocks of outputs, which are put together again, fields that
lie apart along k instead of along n, a product for each of these, and 32-bit words that shift four bytes at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, UInt8

from jvq.kernels.int8_matmul import xla
from jvq.kernels.packed_matmul.layout import unpack_rows


@partial(jax.jit, static_argnames=("bits", "n"))
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
) -> Float32[Array, "g m n"]:
    """The product, as :func:`~jvq.kernels.packed_matmul.packed_matmul` says."""
    codes = unpack_rows(w, bits, n)
    if x_scale is not None:
        return xla.int8_matmul(
            x, codes, x_scale=x_scale, w_scale=w_scale, x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias
        )
    if w_zero is None:
        values = codes.astype(x.dtype)
    else:
        values = (codes.astype(jnp.int32) - jnp.swapaxes(w_zero, 1, 2)).astype(x.dtype)
    (g, m, k), gw = x.shape, w.shape[0]
    rows = x if gw > 1 else x.reshape(1, g * m, k)
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    y = w_scale * jax.lax.dot_general(
        rows, values, (((2,), (2,)), ((0,), (0,))), precision=precision, preferred_element_type=jnp.float32
    ).reshape(g, m, n)
    return y if bias is None else y + bias[None, None]
