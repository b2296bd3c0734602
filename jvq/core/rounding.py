"""Rounding with gradients: the only ``custom_vjp`` of the project beside those of :mod:`jvq.core.signs`.

Three rules. :func:`round_ste` passes gradients straight through (Bengio et al. 2013). :func:`fake_quantize` is the
uniform quantiser of codes from 0 with a zero point, a whole number. :func:`learned_quantize` is the one with a learned
scale (LSQ, Esser et al. 2020, eqs. 1-3) and a learned real offset (LSQ+, Bhalgat et al. 2020).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def round_ste(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x`` rounded half to even; the gradient is that of the identity."""
    return jnp.round(x)


round_ste.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


def uniform_codes(
    x: Float[Array, "..."], scale: Float[Array, "..."], zero: Float[Array, "..."], levels: Float[Array, ""]
) -> Float[Array, "..."]:
    """The codes ``clip(round(x * (1 / scale)) + zero, 0, levels)`` as whole float32 numbers; scale and zero broadcast.

    Never ``x / scale``: XLA turns a division by a broadcast array into a product with the reciprocal, but not where
    both have one shape, so that codes would depend on the batch size by a last bit. We always take the product.
    """
    wide = x.astype(jnp.float32)
    return jnp.clip(jnp.round(wide * (1.0 / scale)) + jnp.round(zero), 0.0, levels)


@jax.custom_vjp
def fake_quantize(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    zero: Float[Array, "..."],
    levels: Float[Array, ""],
    gradient_scale: Float[Array, ""],
) -> Float[Array, "..."]:
    """``scale * (codes - zero)`` in the dtype of ``x``: x [..] quantised uniformly to ``levels + 1`` values.

    ``scale`` and ``zero`` have the rank of ``x`` (length 1 where shared). Gradients: ``x`` inside the range passes
    through, outside it is cut off; ``scale`` gets ``codes - zero - x / scale`` inside and ``codes - zero`` outside;
    ``zero`` gets ``-scale`` outside; both times ``gradient_scale`` (LSQ: 1 / sqrt(values a scale * levels); 1: none).
    """
    codes = uniform_codes(x, scale, zero, levels)
    return (scale * (codes - jnp.round(zero))).astype(x.dtype)


def _forward(x, scale, zero, levels, gradient_scale):
    return fake_quantize(x, scale, zero, levels, gradient_scale), (x, scale, zero, levels, gradient_scale)


def _backward(residuals, g):
    x, scale, zero, levels, gradient_scale = residuals
    wide, whole = x.astype(jnp.float32), jnp.round(zero)
    steps = wide * (1.0 / scale)
    position = jnp.round(steps) + whole
    inside = (position >= 0) & (position <= levels)
    out = jnp.clip(position, 0.0, levels) - whole
    upstream = g.astype(jnp.float32)
    to_scale = upstream * jnp.where(inside, out - steps, out) * gradient_scale
    to_zero = jnp.where(inside, 0.0, -upstream * scale) * gradient_scale
    return (
        jnp.where(inside, g, jnp.zeros_like(g)),
        sum_to(to_scale, scale.shape),
        sum_to(to_zero, zero.shape),
        jnp.zeros_like(levels),
        jnp.zeros_like(gradient_scale),
    )


def sum_to(x: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """``x`` summed over the axes along which an operand of ``shape`` was broadcast."""
    shared = tuple(i for i, (n, m) in enumerate(zip(x.shape, shape, strict=True)) if m == 1 and n != 1)
    return x.sum(axis=shared, keepdims=True)


fake_quantize.defvjp(_forward, _backward)


def learned_codes(
    x: Float[Array, "..."], scale: Float[Array, "..."], offset: Float[Array, "..."], low: Any, high: Any
) -> Float[Array, "..."]:
    """The signed codes ``clip(round((x - offset) * (1 / scale)), low, high)`` as whole float32 numbers."""
    return jnp.clip(jnp.round((x.astype(jnp.float32) - offset) * (1.0 / scale)), low, high)


@jax.custom_vjp
def learned_quantize(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    offset: Float[Array, "..."],
    low: Float[Array, ""],
    high: Float[Array, ""],
    gradient_scale: Float[Array, "..."],
) -> Float[Array, "..."]:
    """``scale * codes + offset`` in the dtype of ``x``, codes ``low`` to ``high`` (spec of VVTQ, sections 1.1 and 1.2).

    ``scale``, ``offset`` and ``gradient_scale`` have the rank of ``x`` (length 1 where shared). Gradients, with
    ``u = (x - offset) / scale``: ``x`` strictly inside the range passes through, elsewhere it is cut off; ``scale``
    gets ``round(u) - u`` inside, ``low`` and ``high`` at and beyond the ends, times ``gradient_scale``; ``offset``
    gets 1 at and beyond the ends, unscaled (as released).
    """
    return (scale * learned_codes(x, scale, offset, low, high) + offset).astype(x.dtype)


def _learned_forward(x, scale, offset, low, high, gradient_scale):
    return learned_quantize(x, scale, offset, low, high, gradient_scale), (x, scale, offset, low, high, gradient_scale)


def _learned_backward(residuals, g):
    x, scale, offset, low, high, gradient_scale = residuals
    steps = (x.astype(jnp.float32) - offset) * (1.0 / scale)
    inside = (steps > low) & (steps < high)
    upstream = g.astype(jnp.float32)
    to_scale = upstream * (jnp.clip(jnp.round(steps), low, high) - jnp.where(inside, steps, 0.0))
    return (
        jnp.where(inside, g, jnp.zeros_like(g)),
        sum_to(to_scale, scale.shape) * gradient_scale,
        sum_to(jnp.where(inside, 0.0, upstream), offset.shape),
        jnp.zeros_like(low),
        jnp.zeros_like(high),
        jnp.zeros_like(gradient_scale),
    )


learned_quantize.defvjp(_learned_forward, _learned_backward)
