"""Products whose activation has groups of channels, each with a scale of its own along what is summed."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jvq.core import axes
from jvq.core.quantizer import Codes, State
from jvq.integer.rows import Integers, Rows
from jvq.kernels.group_encode import base_scale, code_offset, group_encode
from jvq.kernels.group_matmul import group_matmul


class Layout(NamedTuple):
    """The letters of a grouped activation: an index of ``images`` and ``channels`` has one group for all ``rows``."""

    images: str
    rows: str
    channels: str

    @classmethod
    def of(cls, along: str, letters: str, summed: str) -> "Layout":
        images = axes.ordered("b" + along, letters)
        images = "".join(a for a in images if a not in summed)
        return cls(images, "".join(a for a in letters if a not in images + summed), summed)


def grouped(quantizer: Any, letters: str, summed: str) -> bool:
    """Whether the quantiser's groups divide what the product of an activation [letters] sums over."""
    along = getattr(quantizer, "along", "")
    return bool(along) and any(a in summed for a in along)


def group_product(
    quantizer: Any, state: State, x: jax.Array, rows: Rows, letters: str, impl: str
) -> tuple[jax.Array | None, str]:
    """The product [.. n] of a grouped activation x [letters] with a weight, in x's order of letters but the summed
    ones, float32, and how it was computed; None where it cannot be."""
    layout = Layout.of(quantizer.along, letters, rows.summed)
    if rows.parts > 1 or not set(rows.summed) <= set(quantizer.along):
        return None, "float: groups, and beside them another scale along what is summed"
    order = layout.images + layout.rows + layout.channels
    size = dict(zip(letters, x.shape, strict=True))
    b, m, k = (math.prod(size[a] for a in part) for part in layout)
    flat = x.transpose(axes.indices(order, letters)).reshape(b, m, k)
    weight = {"w_scale": rows.scale.reshape(-1), "w_zero": None if rows.zero is None else rows.zero.reshape(-1)}
    if not hasattr(quantizer, "assignment"):
        codes = quantizer.encode(state, x, letters)
        y, way = _static(codes, quantizer, layout, (b, m, k), letters, rows, weight, impl), "groups"
    else:
        y, way = _dynamic(quantizer, state, flat, rows, weight, impl)
    inner = layout.images + layout.rows
    kept = "".join(a for a in letters if a not in rows.summed)
    whole = y.reshape(*(size[a] for a in inner), y.shape[-1])
    return whole.transpose(*axes.indices(kept, inner), len(inner)), way


def _dynamic(
    quantizer: Any, state: State, x: jax.Array, rows: Rows, weight: dict[str, Any], impl: str
) -> tuple[jax.Array, str]:
    """Groups of the moment: x [b m k] to [b m n]."""
    codes, group = group_encode(
        x,
        *(state[name] for name in ("lower", "upper", "scale", "zero", "levels")),
        bits=quantizer.bits,
        nonnegative=quantizer.nonnegative,
        distance="absolute" if quantizer.distance == "absolute" else "squared",
        ladder=quantizer.ladder,
        impl=impl,
    )
    if quantizer.ladder:
        scale, zero = base_scale(state["upper"], state["scale"]), None
    else:
        scale, zero = state["scale"], jnp.round(state["zero"]).astype(jnp.int32) - code_offset(quantizer.bits)
    arguments = {"scale": scale, "zero": zero, "ladder": quantizer.ladder, "impl": impl, **weight}
    return group_matmul(codes, group, rows.int8()[0], **arguments), "ladder" if quantizer.ladder else "groups"


def _static(
    codes: Codes,
    quantizer: Any,
    layout: Layout,
    shape: tuple[int, int, int],
    letters: str,
    rows: Rows,
    weight: dict[str, Any],
    impl: str,
) -> jax.Array:
    """Groups that are the same in every image, found again as the pairs of scale and zero point that there are."""
    b, m, k = shape
    whole = Integers.of(codes, quantizer.bits)
    order = layout.images + layout.rows + layout.channels
    flat = whole.codes.transpose(axes.indices(order, letters)).reshape(b, m, k)
    assert whole.zero is not None

    def channels(t: jax.Array) -> jax.Array:
        whole = jnp.broadcast_to(t, codes.codes.shape)
        return whole.transpose(axes.indices(order, letters)).reshape(b, m, k)[:, 0]

    scales, group = _distinct(channels(whole.scale), channels(whole.zero), quantizer.groups)
    return group_matmul(flat, group, rows.int8()[0], scale=scales[0], zero=scales[1], ladder=False, impl=impl, **weight)


def _distinct(scale: jax.Array, zero: jax.Array, groups: int) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """The at most ``groups`` different pairs, float32 [g] and int32 [g], and which of them each of [b k] is."""
    flat = jnp.stack([scale.reshape(-1), zero.reshape(-1).astype(jnp.float32)], axis=1)
    pairs, group = jnp.unique(flat, axis=0, size=groups, fill_value=1.0, return_inverse=True)
    return (pairs[:, 0], pairs[:, 1].astype(jnp.int32)), group.reshape(scale.shape).astype(jnp.int32)
