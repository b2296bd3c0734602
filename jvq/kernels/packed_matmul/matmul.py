"""The product with packed weights: what it takes, and which implementation computes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jvq.kernels import choosing
from jvq.kernels.packed_matmul import pallas_gpu, pallas_tpu, ref, xla
from jvq.kernels.packed_matmul.layout import FIELDS, PLANES, known

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "ref": ref.packed_matmul,
    "xla": xla.packed_matmul,
    "pallas_tpu": pallas_tpu.packed_matmul,
    "pallas_gpu": pallas_gpu.packed_matmul,
}

LONGEST = 2**16  #: codes of a row: so many products fit int32, even of codes that are not shifted down in their byte
FLOATS = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))


def packed_matmul(
    x: jax.Array,
    w: jax.Array,
    *,
    bits: int,
    n: int,
    x_scale: jax.Array | None,
    w_scale: jax.Array,
    x_zero: jax.Array | None = None,
    w_zero: jax.Array | None = None,
    w_sum: jax.Array | None = None,
    bias: jax.Array | None = None,
    impl: str = "auto",
) -> Float32[Array, "g m n"]:
    """The product float32 [g m n] of x [g m k] and n rows of codes of 2, 3 or 4 bits, which are packed.

    ``w`` uint8 [g|1 p r k] are the bytes of codes 0..2**bits-1, as ``pack_rows`` makes them. Codes x are int8, of
    whatever width: ``y[g m n] = x_scale * w_scale * sum_k (x - x_zero) * (code - w_zero) + bias``, an exact int32 sum
    and the rest float32. x is else bfloat16 or float32, with ``x_scale`` and ``x_zero`` None: ``y = w_scale * sum_k x *
    (code - w_zero) + bias``, where ``code - w_zero`` has x's type (bfloat16: exact up to 256) and the sum is float32.

    ``x_scale`` float32 and ``x_zero`` int32 are [g|1 m|1 1], ``w_scale`` and ``w_zero`` [g|1 1 n|1], ``bias`` float32
    [n]; zero points and bias may be None, which is 0. ``w_sum`` int32 [g|1 1 n], the sum of codes over k, is given
    where there is ``x_zero``. Where w has g = 1, all of x meets the same w. ``impl`` is ``"auto"`` or a name in
    ``IMPLEMENTATIONS``. Raises ``ValueError`` for operands that do not fit, ``NotImplementedError`` where the
    implementation asked for declines.
    """
    known(bits)
    _check(x, w, bits, n)
    (g, m, _), gw = x.shape, w.shape[0]
    if x.dtype != jnp.int8 and not (x_scale is None and x_zero is None):
        raise ValueError(f"packed_matmul: x is {x.dtype}, which has no x_scale and no x_zero")
    if x.dtype == jnp.int8 and x_scale is None:
        raise ValueError("packed_matmul: x is int8, which needs x_scale")
    if x_zero is not None and w_sum is None:
        raise ValueError("packed_matmul: x_zero needs w_sum, the sum of codes over k")
    gs, gws, rows, columns = ((size, 1) for size in (g, gw, m, n))
    _fits("x_scale", x_scale, jnp.float32, gs, rows, (1,))
    _fits("w_scale", w_scale, jnp.float32, gws, (1,), columns)
    _fits("x_zero", x_zero, jnp.int32, gs, rows, (1,))
    _fits("w_zero", w_zero, jnp.int32, gws, (1,), columns)
    _fits("w_sum", w_sum, jnp.int32, gws, (1,), (n,))
    _fits("bias", bias, jnp.float32, (n,))
    operands = {"x": x, "w": w, "x_scale": x_scale, "w_scale": w_scale, "x_zero": x_zero, "w_zero": w_zero}
    return choosing.run("packed_matmul", impl, IMPLEMENTATIONS, **operands, w_sum=w_sum, bias=bias, bits=bits, n=n)


def _check(x: jax.Array, w: jax.Array, bits: int, n: int) -> None:
    """Raises ``ValueError`` unless x and w make a product."""
    if x.dtype != jnp.int8 and x.dtype not in FLOATS:
        raise ValueError(f"packed_matmul: x is {x.dtype}, must be int8 (codes 0..255 less 128), bfloat16 or float32")
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"packed_matmul: x has shape {list(x.shape)}, must be [g m k], none of them 0")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"packed_matmul: n must be a whole number from 1, got {n}")
    g, _, k = x.shape
    rows = -(-n // FIELDS[bits])
    asked = f"uint8 [1{f' or {g}' if g > 1 else ''} {PLANES[bits]} {rows} {k}] for {n} rows of {bits}-bit codes"
    fits = w.ndim == 4 and w.shape[0] in (1, g) and w.shape[1:] == (PLANES[bits], rows, k)
    if not fits or w.dtype != jnp.uint8:
        raise ValueError(f"packed_matmul: w is {w.dtype} {list(w.shape)}, must be {asked}")
    if k > LONGEST:
        raise ValueError(f"packed_matmul: the sum over k={k} may not fit int32, k is at most {LONGEST}")


def _fits(name: str, a: jax.Array | None, dtype: Any, *lengths: tuple[int, ...]) -> None:
    """Raises ``ValueError`` unless a has the dtype and an allowed length along each axis."""
    if a is None:
        return
    if (
        a.dtype != dtype
        or a.ndim != len(lengths)
        or any(s not in some for s, some in zip(a.shape, lengths, strict=True))
    ):
        asked = " ".join(" or ".join(str(size) for size in dict.fromkeys(some)) for some in lengths)
        got = f"{a.dtype} {list(a.shape)}"
        raise ValueError(f"packed_matmul: {name} is {got}, must be {jnp.dtype(dtype).name} [{asked}]")
