"""Plain XLA for every platform: one int8 product for a ladder, three of digits (:mod:`jvq.core.fixed_point`) else.

On a CPU an int8 product takes a third of a float32 one's time or less, so three take no more than that one. Masked
passes, one a group, took more than twice its time for 8 groups; a product of dequantised values takes it all.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32

from jvq.core.fixed_point import fixed_point, joined
from jvq.kernels.group_matmul.values import own, values

CACHED = (
    2**16
)  #: int32 sums of an image beyond which one image is multiplied after the other: so they stay in the cache


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
) -> Float32[Array, "b m n"]:
    """The product, as :func:`~jvq.kernels.group_matmul.group_matmul` says."""
    if ladder:
        return _finished([_sums(x, w, w_zero)], scale, w_scale, bias)
    assert group is not None
    digits, unit = fixed_point(values(x, own(scale, group), None if zero is None else own(zero, group)))
    rows = jnp.stack([d.astype(jnp.int8) for d in digits], axis=1)  # [b i m k]

    def image(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        sums = _sums(one[0], w, w_zero)
        return _finished(list(sums), one[1], w_scale, bias)

    if rows.shape[1] * rows.shape[2] * w.shape[0] > CACHED:  # whatever the batch, which may be symbolic
        return jax.lax.map(image, (rows, unit))
    sums = _sums(rows, w, w_zero)
    # rounded here, as behind the loop: else a bias that is added to it may become one operation with its last product
    return jax.lax.optimization_barrier(_finished([sums[:, i] for i in range(len(digits))], unit, w_scale, bias))


def _sums(
    x: Int8[Array, "... m k"], w: Int8[Array, "n k"], w_zero: Int32[Array, " z"] | None
) -> Int32[Array, "... m n"]:
    """The integers ``x . (w - w_zero)``."""
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    sums = jax.lax.dot_general(x, w, axes, preferred_element_type=jnp.int32)
    if w_zero is None:
        return sums
    return sums - x.astype(jnp.int32).sum(axis=-1, keepdims=True) * jnp.expand_dims(w_zero, range(x.ndim - 1))


def _finished(sums: list[jax.Array], unit: jax.Array, w_scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Sums of digits times their unit and the weights' scales, with the bias."""
    shared = range(sums[0].ndim - 1)
    unit = jnp.expand_dims(unit, range(sums[0].ndim - unit.ndim))
    y = joined(sums) * unit * jnp.expand_dims(w_scale, shared)
    return y if bias is None else y + jnp.expand_dims(bias, shared)
