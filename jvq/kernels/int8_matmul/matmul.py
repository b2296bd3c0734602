"""The product of eight-bit integers: what it takes, and which implementation computes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jvq.kernels import choosing
from jvq.kernels.int8_matmul import pallas_gpu, pallas_tpu, ref, xla

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "ref": ref.int8_matmul,
    "xla": xla.int8_matmul,
    "pallas_tpu": pallas_tpu.int8_matmul,
    "pallas_gpu": pallas_gpu.int8_matmul,
}

LONGEST = 2**17 - 1  #: codes of a row: so many products of two int8 always fit int32


def int8_matmul(
    x: jax.Array,
    w: jax.Array,
    *,
    x_scale: jax.Array,
    w_scale: jax.Array,
    x_zero: jax.Array | None = None,
    w_zero: jax.Array | None = None,
    w_sum: jax.Array | None = None,
    bias: jax.Array | None = None,
    impl: str = "auto",
) -> Float32[Array, "g m n"]:
    """The product float32 [g m n] of the values behind x int8 [g m k] and w int8 [g|1 n k], a row for each output.

    ``y[g m n] = x_scale * w_scale * sum_k (x - x_zero) * (w - w_zero) + bias``: the sum is an exact int32, the rest
    float32. ``x_scale`` float32 and ``x_zero`` int32 are [g|1 m|1 1], ``w_scale`` and ``w_zero`` [g|1 1 n|1], ``bias``
    float32 [n]; zero points and bias may be None, which is 0. ``w_sum`` int32 [g|1 1 n], the sum of w over k, is known
    once w is: it is computed where there is ``x_zero`` and it is None. Where w has g = 1, all of x meets the same w.
    Zero points may lie outside of int8 (codes 0..255 are given less 128, with their zero point), as long as the sum
    stays in int32. ``impl`` is ``"auto"`` or a name in ``IMPLEMENTATIONS``. Raises ``ValueError`` for operands that do
    not fit, ``NotImplementedError`` where the implementation asked for declines.
    """
    _check(x, w)
    (g, m, _), (gw, n, _) = x.shape, w.shape
    _fits("x_scale", x_scale, jnp.float32, (g, 1), (m, 1), (1,))
    _fits("w_scale", w_scale, jnp.float32, (gw, 1), (1,), (n, 1))
    _fits("x_zero", x_zero, jnp.int32, (g, 1), (m, 1), (1,))
    _fits("w_zero", w_zero, jnp.int32, (gw, 1), (1,), (n, 1))
    _fits("w_sum", w_sum, jnp.int32, (gw, 1), (1,), (n,))
    _fits("bias", bias, jnp.float32, (n,))
    operands = {"x": x, "w": w, "x_scale": x_scale, "w_scale": w_scale, "x_zero": x_zero, "w_zero": w_zero}
    return choosing.run("int8_matmul", impl, IMPLEMENTATIONS, **operands, w_sum=w_sum, bias=bias)


def _check(x: jax.Array, w: jax.Array) -> None:
    """Raises ``ValueError`` unless x and w make a product."""
    for name, a in (("x", x), ("w", w)):
        if a.dtype != jnp.int8:
            raise ValueError(f"int8_matmul: {name} is {a.dtype}, but integers are int8 (codes 0..255 less 128)")
        if a.ndim != 3 or 0 in a.shape:
            asked = "[g m k]" if name == "x" else "[g n k]"
            raise ValueError(f"int8_matmul: {name} has shape {list(a.shape)}, must be {asked}, none of them 0")
    if x.shape[2] != w.shape[2]:
        raise ValueError(f"int8_matmul: x {list(x.shape)} and w {list(w.shape)} differ in k")
    if w.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"int8_matmul: w {list(w.shape)} has g={w.shape[0]}, must be 1 or {x.shape[0]} as x has")
    if x.shape[2] > LONGEST:
        raise ValueError(f"int8_matmul: the sum over k={x.shape[2]} may not fit int32, k is at most {LONGEST}")


def _fits(name: str, a: jax.Array | None, dtype: Any, *lengths: tuple[Any, ...]) -> None:
    """Raises ``ValueError`` unless a has the dtype and an allowed length along each axis."""
    if a is None:
        return
    sizes = a.shape if a.ndim == len(lengths) else (0,) * len(lengths)
    if a.dtype != dtype or any(size not in some for size, some in zip(sizes, lengths, strict=True)):
        asked = " ".join("|".join(str(size) for size in dict.fromkeys(some)) for some in lengths)
        asked = f"{jnp.dtype(dtype).name} [{asked}]"
        raise ValueError(f"int8_matmul: {name} is {a.dtype} {list(a.shape)}, must be {asked}")
