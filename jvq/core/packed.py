"""Packed: a weight as really packed integers, in the place of its float array in the parameter tree."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from jvq.core.quantizer import Codes


def pack_bits(codes: Int[Array, "k ..."], bits: int) -> UInt8[Array, "bits k8 ..."]:
    """Codes [k ...] in 0..2**bits-1 as bit planes: byte j of plane i holds bit i of codes 8j..8j+7, lowest bit first.

    Every width from 1 to 16 takes exactly ``bits`` bits a code (the first axis is filled up to a multiple of 8), and a
    plane is what a 1-bit product consumes.
    """
    k = codes.shape[0]
    filled = jnp.pad(codes.astype(jnp.int32), [(0, -k % 8), *[(0, 0)] * (codes.ndim - 1)])
    groups = filled.reshape(-1, 8, *codes.shape[1:])
    place = jnp.arange(8, dtype=jnp.int32).reshape(1, 8, *[1] * (codes.ndim - 1))
    planes = [jnp.sum(((groups >> i) & 1) << place, axis=1).astype(jnp.uint8) for i in range(bits)]
    return jnp.stack(planes)


def unpack_bits(planes: UInt8[Array, "bits k8 ..."], k: int) -> Int[Array, "k ..."]:
    """The int32 codes [k ...] behind bit planes; the inverse of :func:`pack_bits`."""
    bits, rows, *rest = planes.shape
    place = jnp.arange(8, dtype=jnp.int32).reshape(1, 8, *[1] * len(rest))
    out = jnp.zeros((rows, 8, *rest), jnp.int32)
    for i in range(bits):
        out = out | (((planes[i].astype(jnp.int32)[:, None] >> place) & 1) << i)
    return out.reshape(rows * 8, *rest)[:k]


class Encoded:
    """What stands for a float array in a parameter tree: it has the array's ``shape``, and ``unpack`` gives it."""

    shape: tuple[int, ...]

    def unpack(self) -> jax.Array:
        """The float32 array [shape]."""
        raise NotImplementedError


def sized(stored: Mapping[str, Any], shape: tuple[int, ...]) -> str:
    """``scale [1,192], 6.2 KiB of 48.0 KiB``: small arrays by name, and all beside float32 of ``shape``, from shapes.

    None of them is read: they may be tracers, or shapes alone. What has no shape (in a tree map) is shown as it is.
    """
    known = {name: x for name, x in stored.items() if x is not None}
    if not known or not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in known.values()):
        return ", ".join(f"{name}={x!r}" for name, x in stored.items())
    others = [*known][1:]
    shapes = [f"{name} [{','.join(map(str, known[name].shape))}]" for name in others]
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in known.values())
    return ", ".join([*shapes, f"{size / 1024:.1f} KiB of {math.prod(shape) * 4 / 1024:.1f} KiB"])


def is_encoded(x: Any) -> bool:
    """Whether ``x`` is a leaf of a parameter tree that stands for a float array: for ``is_leaf`` of a tree's map."""
    return isinstance(x, Encoded)


@partial(jax.tree_util.register_dataclass, data_fields=["planes", "scale", "zero"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class Packed(Encoded):
    """A quantised weight: ``scale * (codes - zero)``, codes packed along the first axis.

    Without a zero point it is ``scale`` times the sign that the one plane has: 1 where the bit is set, else -1.
    """

    # Any: as a pytree it is also built from abstract values, host arrays and what else a tree map returns
    planes: Any  # uint8 [bits k8 ...]
    scale: Any  # float32, broadcasts against shape
    zero: Any  # int32, broadcasts against shape; None: signs
    shape: tuple[int, ...]  # of the float array it stands for

    @classmethod
    def of(cls, codes: Codes, bits: int) -> "Packed":
        """The packed form of ``codes``, which have no offset: a weight's quantiser has none."""
        if codes.offset is not None:
            raise ValueError("a weight with an offset cannot be packed: use a quantiser without one")
        if codes.zero is None and bits != 1:
            raise ValueError(f"codes without a zero point are signs, which have 1 bit, got {bits}")
        return cls(pack_bits(codes.codes, bits), codes.scale, codes.zero, tuple(codes.codes.shape))

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.planes.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, scales and zero points."""
        return self.planes.nbytes + self.scale.nbytes + (0 if self.zero is None else self.zero.nbytes)

    def __repr__(self) -> str:
        bits = self.planes.shape[0] if getattr(self.planes, "shape", ()) else "?"
        stored = {"planes": self.planes, "scale": self.scale, "zero": self.zero}
        return f"Packed({bits}-bit [{','.join(map(str, self.shape))}], {sized(stored, self.shape)})"

    def codes(self) -> Codes:
        """The integers with their scale and zero point, if they have one."""
        return Codes(unpack_bits(self.planes, self.shape[0]), self.scale, self.zero)

    def unpack(self) -> jax.Array:
        """The float32 array [shape] that the codes stand for."""
        return self.codes().decode()
