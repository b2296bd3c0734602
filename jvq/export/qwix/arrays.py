"""One weight: a QArray of qwix as a Packed leaf, and back."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jvq.core.packed import Packed, pack_bits
from jvq.export.qwix.package import qwix

SCALES = ("float32", "bfloat16", "float16")  #: dtypes of a scale that are float32 without rounding
BYTE = 8  #: bits of the widest integers that a QArray holds


class Integers(NamedTuple):
    """The arrays of a QArray, on the host: ``scale * (codes - zero)``, codes signed."""

    codes: np.ndarray  # int32
    scale: np.ndarray  # float32, of the codes' rank; each length divides theirs
    zero: np.ndarray | None  # int32, likewise; None: 0
    bits: int


def integers(codes: Any, scale: Any, zero: Any, qtype: Any) -> Integers:
    """The arrays of a QArray as they are, checked. ``ValueError`` for what is no uniform quantiser of whole numbers."""
    kind = qtype if isinstance(qtype, str) else jnp.dtype(codes.dtype if qtype is None else qtype).name
    if not (kind.startswith("int") and kind[3:].isdecimal() and 2 <= int(kind[3:]) <= BYTE):
        raise ValueError(f"codes of type {kind}: only int2 to int8 are uniform integers")
    held = jnp.dtype(codes.dtype).name
    if held not in ("int2", "int4", "int8"):
        raise ValueError(f"codes held as {held}, must be int2, int4 or int8")
    if jnp.dtype(scale.dtype).name not in SCALES:
        raise ValueError(f"a scale of {scale.dtype}, must be {', '.join(SCALES)}")
    for name, x in (("scale", scale), ("zero point", zero)):
        if x is not None and not _tiles(x.shape, codes.shape):
            raise ValueError(f"a {name} of shape {tuple(x.shape)} does not divide the codes' {tuple(codes.shape)}")
    bits, half = int(kind[3:]), 2 ** (int(kind[3:]) - 1)
    whole = np.asarray(codes).astype(np.int32)
    if whole.size and not -half <= whole.min() <= whole.max() < half:
        raise ValueError(f"codes from {whole.min()} to {whole.max()}, {kind} has {-half} to {half - 1}")
    wide = np.asarray(scale).astype(np.float32)
    return Integers(whole, wide, None if zero is None else np.asarray(zero).astype(np.int32), bits)


def _tiles(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    return len(shape) == len(onto) and all(n and m % n == 0 for n, m in zip(shape, onto, strict=True))


def packed_of(found: Integers, like: Packed | None = None) -> Packed:
    """The Packed leaf of the same values, to the bit; in the form of ``like`` (its width, or signs), if given.

    A scale for each tile becomes one for each index along the tiled axis, which broadcasts. ``ValueError`` where the
    codes do not fit ``like``.
    """
    codes, bits = found.codes, found.bits if like is None else like.bits
    scale = jnp.asarray(_spread(found.scale, codes.shape))
    if like is not None and like.zero is None:
        if found.zero is not None or not np.isin(codes, (-1, 1)).all():
            raise ValueError("codes other than -1 and 1, or with a zero point; the model has signs there")
        return Packed(pack_bits(jnp.asarray((codes + 1) // 2), 1), scale, None, codes.shape)
    half = 2 ** (bits - 1)
    if codes.size and not -half <= codes.min() <= codes.max() < half:
        raise ValueError(f"codes from {codes.min()} to {codes.max()}; the model has {bits} bits there")
    zero = np.zeros(scale.shape, np.int32) if found.zero is None else _spread(found.zero, codes.shape)
    return Packed(pack_bits(jnp.asarray(codes + half), bits), scale, jnp.asarray(zero + np.int32(half)), codes.shape)


def _spread(x: np.ndarray, onto: tuple[int, ...]) -> np.ndarray:
    """``x`` with a value for each index of every axis that has tiles; axes of one value stay."""
    for i, n in enumerate(onto):
        if x.shape[i] not in (1, n):
            x = np.repeat(x, n // x.shape[i], axis=i)
    return x


def qarray_of(leaf: Packed) -> Any:
    """The ``qwix.QArray`` of the same values, to the bit.

    4 and 8 bits are int4 and int8. Others are held as qwix does it: up to 3 bits, signs too, as int4, 5 to 7 as int8,
    with ``qtype`` the name of the width, "int2" for signs. A zero point beyond int4 makes it int8. ``ValueError``
    beyond 8 bits, or for a zero point beyond int8.
    """
    kind = qwix().QArray
    if leaf.bits > BYTE:
        raise ValueError(f"{leaf.bits} bits, a QArray has at most {BYTE}")
    codes, scale, bits = np.asarray(leaf.codes().codes), _ranked(leaf.scale, leaf.shape), max(leaf.bits, 2)
    half = 2 ** (leaf.bits - 1)
    whole = 2 * codes - 1 if leaf.zero is None else codes - half
    point = None if leaf.zero is None else np.asarray(_ranked(leaf.zero, leaf.shape)) - half
    if point is not None and not point.any():
        point = None
    held = _held(bits, point)
    dtype = jnp.dtype(f"int{held}")
    zero = None if point is None else jnp.asarray(point).astype(dtype)
    return kind(jnp.asarray(whole).astype(dtype), scale, zero, None if bits == held else f"int{bits}")


def _held(bits: int, point: np.ndarray | None) -> int:
    """Bits of the integers that hold codes of ``bits`` bits and their zero points, which have one dtype."""
    for n in (4, 8):
        half = 2 ** (n - 1)
        if n >= bits and (point is None or -half <= point.min() <= point.max() < half):
            return n
    assert point is not None
    raise ValueError(f"signed zero points from {point.min()} to {point.max()}, a QArray has them in int8")


def _ranked(x: Any, shape: tuple[int, ...]) -> Any:
    """``x`` with the rank of ``shape``, axes of length 1 in front."""
    return x.reshape(*(1,) * (len(shape) - x.ndim), *x.shape)
