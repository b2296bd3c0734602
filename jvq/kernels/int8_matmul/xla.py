"""Plain XLA for every platform: one product of int8 to int32, and the epilogue as one element-wise pass.

All of x that meets the same w is one matrix. On a CPU the product is YNNPACK's and XLA fuses nothing into it; the
epilogue adds about a fifth at 1576 x 768 x 3072. Loops over blocks of rows or columns, so that integers stay in the
cache, all cost more than they save, and keep XLA from fusing what comes next (an activation, the next quantiser) into
the epilogue, which saves more.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.int8_matmul.terms import COLUMNS, finish, terms


@jax.jit
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
) -> Float32[Array, "g m n"]:
    """The product, as :func:`~jvq.kernels.int8_matmul.int8_matmul` says."""
    (g, m, k), n, x_sum = x.shape, w.shape[1], None
    if w_zero is not None and w.shape[0] > 1:  # rows of ones behind w, which is written anew anyway: one product fewer
        w = jnp.concatenate([w, jnp.ones((g, COLUMNS, k), jnp.int8)], axis=1)
    if x_zero is not None and w_sum is None:  # a row of ones behind x: reading w once more takes longer
        x = jnp.concatenate([x, jnp.ones((g, 1, k), jnp.int8)], axis=1)
        sums = _product(x, w)
        acc, w_sum, x = sums[:, :m], sums[:, m:, :n], x[:, :m]
    else:
        acc = _product(x, w)
    if w.shape[1] > n:
        acc, x_sum = acc[..., :n], acc[..., n : n + 1]
    t = terms(x, n, x_scale=x_scale, w_scale=w_scale, x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias, x_sum=x_sum)
    return finish(acc, t)


def _product(x: Int8[Array, "g m k"], w: Int8[Array, "gw n k"]) -> Int32[Array, "g m n"]:
    """The integers alone."""
    (g, m, k), (gw, n, _) = x.shape, w.shape
    if gw == 1:
        axes, rows = (((1,), (1,)), ((), ())), x.reshape(g * m, k)
        if x.shape[:2] == (1, 1):  # a single row is multiplied as int32, thirty times slower than two rows of int8
            rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
        y = jax.lax.dot_general(rows, w[0], axes, preferred_element_type=jnp.int32)
        return (y[:1] if x.shape[:2] == (1, 1) else y).reshape(g, m, n)
    return jax.lax.dot_general(x, w, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.int32)
