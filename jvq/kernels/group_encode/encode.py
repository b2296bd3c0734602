"""The codes of grouped quantisers: what it takes, and which implementation computes them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int8, Int32

from jvq.core.errors import nearest
from jvq.kernels import choosing
from jvq.kernels.group_encode import pallas_gpu, pallas_tpu, ref, xla

ALONG = ("d", "n")
DISTANCES = ("squared", "absolute")

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "ref": ref.group_encode,
    "xla": xla.group_encode,
    "pallas_tpu": pallas_tpu.group_encode,
    "pallas_gpu": pallas_gpu.group_encode,
}


def group_encode(
    x: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    scale: jax.Array,
    zero: jax.Array,
    levels: jax.Array,
    *,
    bits: int = 8,
    nonnegative: bool = False,
    ladder: bool = False,
    distance: str = "squared",
    along: str = "d",
    impl: str = "auto",
) -> tuple[Int8[Array, "b n d"], Int32[Array, "b p"]]:
    """Codes int8 [b n d] of x float32 [b n d], and the group int32 [b d] of every channel of every image.

    A channel takes the group whose bounds ``lower upper`` [g] are nearest to its least and greatest value over the
    image's rows; equal distances go to the lowest index, infinite bounds are never chosen. With ``nonnegative`` the
    least value counts as 0. ``along="n"`` groups rows instead, by their values over channels: group [b n].
    ``scale zero`` [g] and ``levels`` [] are the groups' quantisers, float32 as in a state of ``Grouped``.

    ``bits`` is the width that codes have at most: up to 7 they are plain, 0..levels; with 8 they are less 128, and so
    are the zero points that go with them. With ``ladder`` they are ``(code - zero) * scale / base_scale`` whatever the
    width: multiples of one scale (:func:`base_scale`), without a zero point. That asks for scales that are powers of
    two apart and for room in int8, as ``Grouped(ladder=True)`` makes them; neither is checked.
    Raises ``ValueError`` for operands that do not fit. Source: IGQ-ViT, eqs. 4, 5 and 8; specification, section 10.
    """
    _check(x, {"lower": lower, "upper": upper, "scale": scale, "zero": zero}, levels, bits)
    for name, got, known in (("distance", distance, DISTANCES), ("along", along, ALONG)):
        if got not in known:
            raise ValueError(f"group_encode: {name}: got '{got}'{nearest(str(got), known)}")
    options = {"bits": bits, "nonnegative": nonnegative, "ladder": ladder, "distance": distance, "along": along}
    operands = {"x": x, "lower": lower, "upper": upper, "scale": scale, "zero": zero, "levels": levels}
    return choosing.run("group_encode", impl, IMPLEMENTATIONS, **operands, **options)


def _check(x: jax.Array, groups: dict[str, jax.Array], levels: jax.Array, bits: int) -> None:
    """Raises ``ValueError`` for shapes, dtypes and widths that do not fit."""
    if x.ndim != 3 or x.dtype != jnp.float32 or 0 in x.shape:
        raise ValueError(f"group_encode: x is {x.dtype} {list(x.shape)}, must be float32 [b n d] with values")
    count = len(groups["lower"]) if groups["lower"].ndim else 0
    for name, a in groups.items():
        if a.shape != (count,) or not count or a.dtype != jnp.float32:
            raise ValueError(f"group_encode: {name} is {a.dtype} {list(a.shape)}, must be float32 [g] as lower is")
    if levels.shape or levels.dtype != jnp.float32:
        raise ValueError(f"group_encode: levels is {levels.dtype} {list(levels.shape)}, must be a float32 scalar")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"group_encode: bits must be a whole number from 1 to 8, got {bits}")
