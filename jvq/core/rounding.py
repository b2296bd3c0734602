"""Rounding with gradients: the only ``custom_vjp`` of the project.

Two rules. :func:`round_ste` passes gradients straight through (Bengio et al. 2013). :func:`fake_quantize` is the
uniform quantiser with a learnable scale (LSQ, Esser et al. 2020, eqs. 1-3) and a learnable zero point (LSQ+, Bhalgat
et al. 2020).
"""

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
        _sum_to(to_scale, scale.shape),
        _sum_to(to_zero, zero.shape),
        jnp.zeros_like(levels),
        jnp.zeros_like(gradient_scale),
    )


def _sum_to(x: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """``x`` summed over the axes along which an operand of ``shape`` was broadcast."""
    shared = tuple(i for i, (n, m) in enumerate(zip(x.shape, shape, strict=True)) if m == 1 and n != 1)
    return x.sum(axis=shared, keepdims=True)


fake_quantize.defvjp(_forward, _backward)
