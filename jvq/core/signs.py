"""Signs with gradients: the ``custom_vjp`` of quantisers to one bit, and to three values.

The sign of 0 is +1, because one bit has no third value; torch's is 0, so only exact zeros differ from released codes.
``custom_vjp`` rather than ``y + stop_gradient(q - y)``, which with a scale is off by a last bit. Sources: Bi-Real Net
(Liu et al. 2018), XNOR-Net (Rastegari et al. 2016), BiT (Liu et al. 2022), Bi-ViT (Li et al. 2024; spec 1 and 2).
Arithmetic is in float32, or in float64 where the operands are.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jvq.core.rounding import sum_to

Slope = Literal["lsq", "true"]
"""The derivative of a learned scale. lsq: as if what the sign lost were constant (the default, and as released). true:
that of the value, the sign alone. Their fixed points on N(0, 1) are 0.89 and the optimum sqrt(2 / pi) = 0.80."""
TERNARY_THRESHOLD = 0.7  #: of the mean magnitude; below it a ternary value is 0 (Li et al. 2016)


def signs(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """+1 where ``x`` is at least 0, else -1, in its dtype."""
    return jnp.where(x >= 0, 1.0, -1.0).astype(x.dtype)


def mean_magnitude(x: Float[Array, "..."], over: tuple[int, ...]) -> Float[Array, "..."]:
    """mean|x| over the axes ``over``, which are kept with length 1, in float32."""
    return jnp.abs(_wide(x)).mean(axis=over, keepdims=True)


def _wide(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def _through(inside: Any, g: Float[Array, "..."]) -> Float[Array, "..."]:
    """The cotangent ``g`` where ``inside``, 0 elsewhere."""
    return jnp.where(inside, g, jnp.zeros_like(g))


@jax.custom_vjp
def sign_ste(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The signs of ``x``; the gradient is that of Bi-Real Net's parabolas, ``max(0, 2 - 2|x|)`` (spec 1.3)."""
    return signs(x)


def _sign_backward(x, g):
    return ((_wide(g) * jnp.maximum(2.0 - 2.0 * jnp.abs(_wide(x)), 0.0)).astype(g.dtype),)


sign_ste.defvjp(lambda x: (sign_ste(x), x), _sign_backward)


@jax.custom_vjp
def unit_step(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 where ``x`` is at least 0, else 0; the gradient passes where |x| <= 1 (BiBERT's boolean scores)."""
    return jnp.where(x >= 0, 1.0, 0.0).astype(x.dtype)


unit_step.defvjp(lambda x: (unit_step(x), x), lambda x, g: (_through(jnp.abs(x) <= 1, g),))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def mean_sign(w: Float[Array, "..."], over: tuple[int, ...]) -> Float[Array, "..."]:
    """``mean|w| * sign(w)`` with the mean over the axes ``over``; the gradient passes where |w| <= 1 (spec 1.2).

    None goes through the mean, and none is multiplied by it: XNOR-Net's own gradient has both.
    """
    return (mean_magnitude(w, over) * signs(_wide(w))).astype(w.dtype)


mean_sign.defvjp(lambda w, over: (mean_sign(w, over), w), lambda over, w, g: (_through(jnp.abs(w) <= 1, g),))


def ternary(w: Float[Array, "..."], over: tuple[int, ...]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The digits -1, 0, 1 of ``w``, and their scale: the mean of |w| where the digit is not 0 (Li et al. 2016, TWN).

    A digit is 0 up to 0.7 mean|w|, the mean over the axes ``over``, which the scale keeps with length 1.
    """
    size = jnp.abs(_wide(w))
    beyond = size > TERNARY_THRESHOLD * size.mean(axis=over, keepdims=True)
    count = jnp.maximum(beyond.sum(axis=over, keepdims=True), 1).astype(size.dtype)
    scale = jnp.where(beyond, size, 0.0).sum(axis=over, keepdims=True) / count
    return jnp.where(beyond, signs(_wide(w)), 0.0), scale


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def mean_ternary(w: Float[Array, "..."], over: tuple[int, ...]) -> Float[Array, "..."]:
    """The scale times the digits of :func:`ternary`; the gradient passes where |w| <= 1, none through the scale."""
    digits, scale = ternary(w, over)
    return (scale * digits).astype(w.dtype)


mean_ternary.defvjp(lambda w, over: (mean_ternary(w, over), w), lambda over, w, g: (_through(jnp.abs(w) <= 1, g),))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def scaled_sign(
    x: Float[Array, "..."], scale: Float[Array, "..."], gradient_scale: Float[Array, "..."], slope: Slope = "lsq"
) -> Float[Array, "..."]:
    """``scale * sign(x)`` in the dtype of ``x`` (spec 2.3).

    ``scale`` is positive and has the rank of ``x`` (length 1 where shared). Gradients: ``x`` passes where |x| <= scale;
    ``scale`` gets ``sign(x) - x / scale`` there and ``sign(x)`` elsewhere, with slope "true" ``sign(x)`` everywhere,
    times ``gradient_scale``.
    """
    return (scale * signs(_wide(x))).astype(x.dtype)


def _scaled_sign_forward(x, scale, gradient_scale, slope):
    return scaled_sign(x, scale, gradient_scale, slope), (x, scale, gradient_scale)


def _scaled_sign_backward(slope, residuals, g):
    x, scale, gradient_scale = residuals
    wide = _wide(x)
    inside = jnp.abs(wide) <= scale
    lost = jnp.where(inside, wide * (1.0 / scale), 0.0) if slope == "lsq" else 0.0
    to_scale = sum_to(_wide(g) * (signs(wide) - lost), scale.shape) * gradient_scale
    return _through(inside, g), to_scale, jnp.zeros_like(gradient_scale)


scaled_sign.defvjp(_scaled_sign_forward, _scaled_sign_backward)


@jax.custom_vjp
def scaled_step(
    x: Float[Array, "..."], scale: Float[Array, "..."], gradient_scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """``scale`` where ``x`` is at least half of it, else 0, in the dtype of ``x`` (BiT's elastic step; spec 2.3).

    ``scale`` is positive and has the rank of ``x`` (length 1 where shared). Gradients: ``x`` passes where it is in
    [0, scale]; ``scale`` gets ``1[x >= scale / 2] - x / scale`` there, 1 above and 0 below, times ``gradient_scale``.
    """
    return jnp.where(_wide(x) >= 0.5 * scale, scale, 0.0).astype(x.dtype)


def _scaled_step_forward(x, scale, gradient_scale):
    return scaled_step(x, scale, gradient_scale), (x, scale, gradient_scale)


def _scaled_step_backward(residuals, g):
    x, scale, gradient_scale = residuals
    wide = _wide(x)
    inside = (wide >= 0) & (wide <= scale)
    fired = jnp.where(wide >= 0.5 * scale, 1.0, 0.0)
    slope = fired - jnp.where(inside, wide * (1.0 / scale), 0.0)
    return _through(inside, g), sum_to(_wide(g) * slope, scale.shape) * gradient_scale, jnp.zeros_like(gradient_scale)


scaled_step.defvjp(_scaled_step_forward, _scaled_step_backward)


def reaches(x: Float[Array, "..."], scale: Float[Array, "..."], zero: Float[Array, "..."]) -> Array:
    """Where the shifted sign is +1: ``x / scale + round(zero) >= 0``, without the division's rounding."""
    return _wide(x) >= -jnp.round(zero) * scale


@jax.custom_vjp
def shifted_sign(
    x: Float[Array, "..."], scale: Float[Array, "..."], zero: Float[Array, "..."], gradient_scale: Float[Array, "..."]
) -> Float[Array, "..."]:
    """``scale * (sign(x / scale + z) - z)`` with ``z = round(zero)``, half to even, in the dtype of ``x`` (spec 2.2).

    ``scale`` and ``zero`` have the rank of ``x`` (length 1 where shared). With ``u = x / scale + z``: ``x`` passes
    where |u| <= 1; ``scale`` gets ``sign(u) - u`` there and ``sign(u) - z`` elsewhere; ``zero`` gets ``-scale`` where
    |u| > 1; both times ``gradient_scale``. It is Bi-ViT's released ``ActBi``.
    """
    sign = jnp.where(reaches(x, scale, zero), 1.0, -1.0)
    return (scale * sign + -jnp.round(zero) * scale).astype(x.dtype)  # a sum, as it is decoded: the same last bit


def _shifted_sign_forward(x, scale, zero, gradient_scale):
    return shifted_sign(x, scale, zero, gradient_scale), (x, scale, zero, gradient_scale)


def _shifted_sign_backward(residuals, g):
    x, scale, zero, gradient_scale = residuals
    whole, steps, upstream = jnp.round(zero), _wide(x) * (1.0 / scale), _wide(g)
    inside = jnp.abs(_wide(x) + whole * scale) <= scale  # |u| <= 1 without the division's rounding
    sign = jnp.where(reaches(x, scale, zero), 1.0, -1.0)
    to_scale = upstream * (sign - whole - jnp.where(inside, steps, 0.0))
    to_zero = jnp.where(inside, 0.0, -upstream * scale)
    return (
        _through(inside, g),
        sum_to(to_scale, scale.shape) * gradient_scale,
        sum_to(to_zero, zero.shape) * gradient_scale,
        jnp.zeros_like(gradient_scale),
    )


shifted_sign.defvjp(_shifted_sign_forward, _shifted_sign_backward)
