"""The grouped product: what it takes, and which implementation computes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from jvq.kernels import choosing
from jvq.kernels.group_matmul import pallas_gpu, pallas_tpu, ref, xla

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "ref": ref.group_matmul,
    "xla": xla.group_matmul,
    "pallas_tpu": pallas_tpu.group_matmul,
    "pallas_gpu": pallas_gpu.group_matmul,
}


def group_matmul(
    x: jax.Array,
    group: jax.Array | None,
    w: jax.Array,
    *,
    scale: jax.Array,
    zero: jax.Array | None,
    w_scale: jax.Array,
    w_zero: jax.Array | None = None,
    bias: jax.Array | None = None,
    ladder: bool = False,
    impl: str = "auto",
) -> Float32[Array, "b m n"]:
    """The product float32 [b m n] of codes x int8 [b m k] in groups ``group`` int32 [b k] and weights w int8 [n k].

    ``y[b m n] = w_scale * sum_k scale[group[b k]] * (x - zero[group[b k]]) * (w - w_zero) + bias``, with ``scale``
    float32 and ``zero`` int32 [g], ``w_scale`` float32 and ``w_zero`` int32 [n] or [1], ``bias`` float32 [n]; zero
    points and bias may be None. With ``ladder`` x are shifted codes as ``group_encode`` gives them: ``scale`` is the
    one scale [1] of them all, ``zero`` is None, and ``group`` is not looked at and may be None.
    An image's product depends on no other's. Raises ``ValueError`` for operands that do not fit. Source: IGQ-ViT;
    specification, sections 2.5 and 10.
    """
    _check(x, group, w, ladder)
    n, count = w.shape[0], len(scale) if scale.ndim else 0
    if scale.dtype != jnp.float32 or scale.ndim != 1 or (count != 1 if ladder else count < 1):
        asked = "[1], the ladder's one scale" if ladder else "[g]"
        raise ValueError(f"group_matmul: scale is {scale.dtype} {list(scale.shape)}, must be float32 {asked}")
    if ladder and zero is not None:
        raise ValueError("group_matmul: zero must be None with a ladder: shifted codes have no zero point")
    vectors = {
        "zero": (zero, jnp.int32, (count,)),
        "w_scale": (w_scale, jnp.float32, (n, 1)),
        "w_zero": (w_zero, jnp.int32, (n, 1)),
        "bias": (bias, jnp.float32, (n,)),
    }
    for name, (a, dtype, lengths) in vectors.items():
        if a is not None and (a.dtype != dtype or a.ndim != 1 or len(a) not in lengths):
            asked = f"{jnp.dtype(dtype).name} of length {' or '.join(str(i) for i in dict.fromkeys(lengths))}"
            raise ValueError(f"group_matmul: {name} is {a.dtype} {list(a.shape)}, must be {asked}")
    operands = {"x": x, "group": group, "w": w, "scale": scale, "zero": zero}
    of_weights = {"w_scale": w_scale, "w_zero": w_zero, "bias": bias}
    return choosing.run("group_matmul", impl, IMPLEMENTATIONS, **operands, **of_weights, ladder=ladder)


def _check(x: jax.Array, group: jax.Array | None, w: jax.Array, ladder: bool) -> None:
    """Raises ``ValueError`` for matrices and groups that do not fit."""
    for name, a, rank, asked in (("x", x, 3, "[b m k]"), ("w", w, 2, "[n k]")):
        if a.dtype != jnp.int8 or a.ndim != rank or 0 in a.shape:
            raise ValueError(f"group_matmul: {name} is {a.dtype} {list(a.shape)}, must be int8 {asked} with values")
    b, _, k = x.shape
    if w.shape[1] != k:
        raise ValueError(f"group_matmul: x {list(x.shape)} and w {list(w.shape)} differ in k")
    if ladder:
        return
    if group is None or group.dtype != jnp.int32 or group.shape != (b, k):
        got = None if group is None else f"{group.dtype} {list(group.shape)}"
        raise ValueError(f"group_matmul: group is {got}, must be int32 {[b, k]}: one a contracted channel and image")
