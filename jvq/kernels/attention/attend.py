"""Attention of integers: what it takes, and which implementation computes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jvq.kernels.attention import pallas_gpu, pallas_tpu, ref, xla
from jvq.kernels.choosing import run

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "ref": ref.attend,
    "xla": xla.attend,
    "pallas_tpu": pallas_tpu.attend,
    "pallas_gpu": pallas_gpu.attend,
}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    q_scale: jax.Array,
    k_scale: jax.Array,
    v_scale: jax.Array,
    q_zero: jax.Array | None = None,
    k_zero: jax.Array | None = None,
    v_zero: jax.Array | None = None,
    bias: jax.Array | None = None,
    p_scale: jax.Array | None = None,
    p_zero: jax.Array | None = None,
    p_levels: int = 255,
    impl: str = "auto",
) -> jax.Array:
    """``softmax(q . k + bias) . v``, float32 [b h q e], of codes q int8 [b h q e], k and v int8 [b h k e].

    Codes stand for ``scale * (code - zero)``: scales float32 and zero points int32 (None: 0), [1|b 1|h 1 1]; the factor
    ``1 / sqrt(e)`` is part of ``q_scale``. ``bias`` is float32 [1|b 1|h q k]. The softmax is float32 with the greatest
    score taken off; then ``p_scale`` and ``p_zero`` [1 1|h 1 1] quantise it to codes ``clip(round(p * (1 / p_scale)) +
    p_zero, 0, p_levels)``, ``p_levels`` at most 255, whose product with v is exact. ``p_scale`` None: p stays float32.
    Implementations agree but for codes of p that lie within float32 rounding of a half: these differ by one, and an
    output by ``p_scale * v_scale * abs(v - v_zero)`` for each. Raises ``ValueError`` for operands and names that do not
    fit, ``NotImplementedError`` where the implementation asked for declines.
    """
    _check_codes(q, k, v)
    b, h, rows, _ = q.shape
    alone, head = (b, h, 1, 1), (1, h, 1, 1)
    scales = {"q_scale": (q_scale, alone), "k_scale": (k_scale, alone), "v_scale": (v_scale, alone)}
    for name, (a, most) in (scales | {"p_scale": (p_scale, head), "bias": (bias, (b, h, rows, k.shape[2]))}).items():
        _check(name, a, most, jnp.float32)
    for name, (a, most) in {
        "q_zero": (q_zero, alone),
        "k_zero": (k_zero, alone),
        "v_zero": (v_zero, alone),
        "p_zero": (p_zero, head),
    }.items():
        _check(name, a, most, jnp.int32)
    if p_scale is None and p_zero is not None:
        raise ValueError("attention: p_zero is given, but no p_scale: p stays float32")
    if not 1 <= p_levels <= 255:
        raise ValueError(f"attention: p_levels must be a whole number from 1 to 255, got {p_levels}")
    return run(
        "attention",
        impl,
        IMPLEMENTATIONS,
        q=q,
        k=k,
        v=v,
        q_scale=q_scale,
        k_scale=k_scale,
        v_scale=v_scale,
        q_zero=q_zero,
        k_zero=k_zero,
        v_zero=v_zero,
        bias=bias,
        p_scale=p_scale,
        p_zero=p_zero,
        p_levels=p_levels,
    )


def _check_codes(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """Raises ``ValueError`` unless the three are codes [b h tokens e] of one sequence of keys."""
    for name, a in (("q", q), ("k", k), ("v", v)):
        if a.dtype != jnp.int8:
            raise ValueError(f"attention: {name} is {a.dtype}, but codes are int8 (8-bit codes from 0 minus 128)")
        if a.ndim != 4 or 0 in a.shape:
            raise ValueError(f"attention: {name} has shape {list(a.shape)}, not [b h tokens e]")
    b, h, _, e = q.shape
    if k.shape != (b, h, k.shape[2], e):
        raise ValueError(f"attention: q {list(q.shape)} and k {list(k.shape)} differ in more than their tokens")
    if v.shape != k.shape:
        raise ValueError(f"attention: k {list(k.shape)} and v {list(v.shape)} differ")


def _check(name: str, a: jax.Array | None, most: tuple[int, ...], dtype: Any) -> None:
    """Raises ``ValueError`` unless ``a`` is None or has the dtype, and ``most`` as its shape, lead axes perhaps 1."""
    if a is None:
        return
    if a.dtype != dtype:
        raise ValueError(f"attention: {name} is {a.dtype}, not {jnp.dtype(dtype)}")
    fits = a.ndim == 4 and a.shape[2:] == most[2:]
    if not fits or any(got not in (1, wanted) for got, wanted in zip(a.shape[:2], most[:2], strict=True)):
        wanted = [f"1|{n}" if n > 1 else "1" for n in most[:2]] + [str(n) for n in most[2:]]
        raise ValueError(f"attention: {name} has shape {list(a.shape)}, not [{' '.join(wanted)}]")
