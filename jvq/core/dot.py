"""The one seam: every product of a model goes through a callable ``dot(site, equation, **two_named_operands)``.

The glossary of axis letters, stated once:

    b image    m window    n q k token    d input channel    o output channel
    s one of query, key, value    h head    e channel in a head    g group    t tap of a kernel

An operand's *address* is ``site + "." + role``, for example ``block03/attn/pv.p``. Roles: ``x w`` (linear), ``q k``
(scores), ``p v`` (values); a product is recorded as ``site + ".y"``. Dots nest: each function below that takes
``inner`` returns another dot with the same signature.
"""

import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jvq.core import axes
from jvq.core.packed import Encoded, Packed
from jvq.core.quantizer import Quantizer, State
from jvq.core.rounding import round_ste

PRODUCT = "y"  #: the role under which a product is recorded


@runtime_checkable
class Dot(Protocol):
    """A product of two named operands: ``dot("block00/mlp/fc1", "bnd,do->bno", x=x, w=w)`` gives [bno]."""

    def __call__(self, site: str, equation: str, /, **operands: Any) -> jax.Array: ...


Where = Callable[[str], bool]
"""Chooses addresses."""


def float_dot(site: str, equation: str, /, **operands: jax.Array) -> jax.Array:
    """The product as the equation says, in the operands' own precision (``jnp.einsum``)."""
    return jnp.einsum(equation, *operands.values())


def lowered(dtype: Any) -> Dot:
    """A dot that rounds its operands to ``dtype`` and adds up in float32: matrix units are faster on them."""

    def dot(site: str, equation: str, /, **operands: jax.Array) -> jax.Array:
        return jnp.einsum(equation, *(x.astype(dtype) for x in operands.values()), preferred_element_type=jnp.float32)

    return dot


def packed_dot(inner: Dot = float_dot) -> Dot:
    """A dot that unpacks packed (:class:`~jvq.core.packed.Encoded`) operands to float and hands on to ``inner``.

    Packed signs are handed on as -1 and 1 and their scale multiplies the product: see :func:`quantized`.
    """

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        letters, out = axes.split(equation)
        through, factors = {}, []
        for (role, x), axis in zip(operands.items(), letters, strict=True):
            if isinstance(x, Packed) and x.zero is None and outside(x.scale, axis, out):
                factors.append(onto(x.scale, axis, out))
                x = dataclasses.replace(x, scale=jnp.ones_like(x.scale))
            through[role] = x.unpack() if isinstance(x, Encoded) else x
        return _times(inner(site, equation, **through), factors)

    return dot


def recording(tape: MutableMapping[str, Any], where: Where, inner: Dot = float_dot) -> Dot:
    """A dot that also writes the operands and products whose addresses ``where`` chooses into ``tape``.

    Make it, and the tape, inside the function that is jitted, and return the tape from there: what it holds are
    tracers. An address that is written twice is an error of the model (two products share a site).
    """

    def write(address: str, value: Any) -> None:
        if where(address):
            if address in tape:
                raise ValueError(f"{address} is recorded twice: two products of the model share this site")
            tape[address] = value

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        for role, x in operands.items():
            write(f"{site}.{role}", x)
        y = inner(site, equation, **operands)
        write(f"{site}.{PRODUCT}", y)
        return y

    return dot


def perturbed(eps: Mapping[str, jax.Array], inner: Dot = float_dot) -> Dot:
    """A dot that adds ``eps[site + ".y"]`` to each product that has one.

    With zeros of the product's shape, the gradient of a loss with respect to ``eps`` is the gradient with respect to
    every site's product: what Fisher and Hessian weightings need.
    """

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        y = inner(site, equation, **operands)
        e = eps.get(f"{site}.{PRODUCT}")
        return y if e is None else y + e

    return dot


def dropping(rates: Mapping[str, float], key: jax.Array, inner: Dot = float_dot) -> Dot:
    """A dot that drops whole products of single images: stochastic depth (Huang et al. 2016), without a model's help.

    The product of a site in ``rates`` is zero with that probability, for each image on its own, and else divided by
    the probability of staying. At the last product of a residual branch that drops the branch; its bias stays.
    """
    number = {site: i for i, site in enumerate(rates)}

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        y = inner(site, equation, **operands)
        if not rates.get(site):
            return y
        _, out = axes.split(equation)
        stays = 1.0 - rates[site]
        images = jax.random.bernoulli(jax.random.fold_in(key, number[site]), stays, (y.shape[out.index("b")],))
        return y * axes.expand(images.astype(y.dtype) / stays, "b", out)

    return dot


def quantized(plan: Mapping[str, Quantizer], qstate: Mapping[str, State], inner: Dot = float_dot) -> Dot:
    """A dot whose operands named in ``plan`` pass through their quantiser first (fake quantisation, with gradients).

    The scales of 1-bit operands, where they do not differ along what is summed, multiply the product instead: sums of
    signs are then exact, and so are their zeros, which become +1 where the next operand is signs again. Summing +-scale
    in float32 would leave a 1e-8 of either sign in their place.
    """

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        letters, out = axes.split(equation)
        through, factors = {}, []
        for (role, x), axis in zip(operands.items(), letters, strict=True):
            address = f"{site}.{role}"
            quantizer = plan.get(address)
            through[role] = x if quantizer is None else quantizer.apply(qstate[address], x, axis)
            if quantizer is not None and quantizer.bits == 1:
                codes = quantizer.encode(qstate[address], x, axis)
                # of signs an offset is a whole number of steps, of others it is any number
                if outside(codes.scale, axis, out) and (codes.offset is None or codes.zero is None):
                    unit = jax.lax.stop_gradient(jnp.where(codes.scale > 0, codes.scale, 1.0))
                    through[role] = _steps(through[role], unit)
                    factors.append(onto(unit, axis, out))
        return _times(inner(site, equation, **through), factors)

    return dot


def outside(scale: jax.Array, letters: str, out: str) -> bool:
    """Whether a scale of an operand [letters] is the same for all that the product sums over."""
    return all(scale.shape[i] == 1 for i in axes.indices(axes.contracted(letters, out), letters))


def onto(scale: jax.Array, letters: str, out: str) -> jax.Array:
    """Such a scale, of the operand's rank, on the axes of the product."""
    kept = "".join(a for a in out if a in letters)
    return axes.expand(
        scale.transpose(axes.indices(kept + axes.contracted(letters, out), letters)).reshape(
            [scale.shape[letters.index(a)] for a in kept]
        ),
        kept,
        out,
    )


def _times(y: jax.Array, factors: list[jax.Array]) -> jax.Array:
    """The product times scales that were left out of it, one after the other."""
    for factor in factors:
        y = y * factor.astype(y.dtype)
    return y


def _steps(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Multiples of ``scale`` as whole numbers in the dtype of ``x``; the gradient is that of the division."""
    return round_ste(x.astype(jnp.float32) * (1.0 / scale)).astype(x.dtype)
