"""Rows: a packed weight as the kernels multiply it, made once when a model is loaded."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvq.core import axes
from jvq.core.errors import nearest
from jvq.core.packed import Encoded, Packed, is_encoded, sized
from jvq.core.quantizer import Codes
from jvq.core.recipe import Operand, Sites, path_of
from jvq.core.whole import WIDEST
from jvq.kernels.binary_matmul import pack_words, unpack_words
from jvq.kernels.packed_matmul import pack_rows, unpack_rows

Form = Literal["int8", "packed", "words"]
FORMS: tuple[Form, ...] = ("int8", "packed", "words")
Weights = Literal["fast", "small"]
WEIGHTS: tuple[Weights, ...] = ("fast", "small")
FITS = 127  #: the greatest int8
SHIFT = 128  #: what is taken off codes of 8 bits to make them int8
PACKED = (2, 3, 4)  #: bits of weights that may stay packed


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero", "sums"],
    meta_fields=["shape", "letters", "summed", "bits", "form"],
)
@dataclasses.dataclass(frozen=True)
class Rows(Encoded):
    """A weight [letters] as ``scale * (codes - zero)``: for each of n outputs a row of k codes, in each of p parts.

    There is more than one part where scales differ along what the product sums over (heads of channels). ``form``:
    "int8", codes int8 [p n k]; "packed", codes 0..2**bits-1 in the layout of :mod:`jvq.kernels.packed_matmul`;
    "words", signs as bits in uint32 [p n w] (:mod:`jvq.kernels.binary_matmul`).
    """

    codes: Any
    scale: Any  # float32 [p 1 n or 1]
    zero: Any  # int32 [p 1 n or 1]; None: 0 everywhere
    sums: Any  # int32 [p 1 n], of the codes along k
    shape: tuple[int, ...]  # of the float array it stands for
    letters: str  # of that array
    summed: str  # those that the product sums over
    bits: int
    form: Form

    @classmethod
    def of(cls, packed: Packed, operand: Operand, weights: Weights = "fast") -> "Rows | Packed":
        """The packed weight as rows; as it is where it has more than 8 bits, or a scale for every index summed over.

        ``weights``: "fast" keeps a byte a code, which multiplies fastest everywhere; "small" keeps 1 to 4 bits as bits.
        """
        letters, summed = operand.letters, axes.ordered(operand.contracted, operand.letters)
        if packed.bits > WIDEST:
            return packed
        codes, scale, zero = (None if x is None else np.asarray(x) for x in packed.codes()[:3])
        form: Form = "int8"
        if weights == "small" and (zero is None or packed.bits in PACKED):
            form = "words" if zero is None else "packed"
        values, zero = _values(codes, zero, packed.bits, form)
        spread = [
            None if a is None else _rows(np.broadcast_to(a, packed.shape), letters, summed) for a in (scale, zero)
        ]
        parts = _parts([a for a in spread if a is not None])
        if parts is None:
            return packed
        rows = _rows(values, letters, summed)
        n, k = rows.shape
        rows = np.ascontiguousarray(rows.reshape(n, parts, k // parts).transpose(1, 0, 2))
        # of each part the first stands for all
        first = [None if a is None else _shared(a.reshape(n, parts, -1)[..., 0].T[:, None]) for a in spread]
        return cls(
            _stored(rows, packed.bits, form),
            jnp.asarray(first[0], jnp.float32),
            None if first[1] is None else jnp.asarray(first[1], jnp.int32),
            jnp.asarray(rows.sum(axis=-1, dtype=np.int32)[:, None]),
            packed.shape,
            letters,
            summed,
            packed.bits,
            form,
        )

    @property
    def parts(self) -> int:
        """In how many parts what is summed is divided."""
        return self.scale.shape[0]

    @property
    def depth(self) -> int:
        """How many codes a row of one part has."""
        size = dict(zip(self.letters, self.shape, strict=True))
        return int(np.prod([size[a] for a in self.summed], dtype=np.int64)) // self.parts

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and of what belongs to them."""
        return sum(int(a.nbytes) for a in (self.codes, self.scale, self.zero, self.sums) if a is not None)

    def __repr__(self) -> str:
        stored = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "sums": self.sums}
        what = f"{self.bits}-bit {self.letters} [{','.join(map(str, self.shape))}] as {self.form}"
        return f"Rows({what}, {sized(stored, self.shape)})"

    def int8(self) -> jax.Array:
        """The codes as int8 [p n k]."""
        if self.form == "words":
            return (2 * unpack_words(self.codes, self.depth) - 1).astype(jnp.int8)
        if self.form == "packed":
            return unpack_rows(self.codes, self.bits, self.sums.shape[-1])
        return self.codes

    def unpack(self) -> jax.Array:
        """The float32 array [letters] that the rows stand for."""
        steps = self.int8().astype(jnp.int32)
        steps = steps if self.zero is None else steps - jnp.swapaxes(self.zero, 1, 2)
        value = jnp.swapaxes(self.scale, 1, 2) * steps.astype(jnp.float32)
        size = dict(zip(self.letters, self.shape, strict=True))
        order = "".join(a for a in self.letters if a not in self.summed) + self.summed
        whole = jnp.moveaxis(value, 0, 1).reshape([size[a] for a in order])
        return whole.transpose(axes.indices(self.letters, order))


def prepared(params: Any, known: Sites, weights: Weights = "fast") -> Any:
    """The parameter tree with :class:`Rows` in the place of its packed leaves, made on the host, once.

    ``known`` are the model's operands (``jvq.sites``); ``weights`` as in :meth:`Rows.of`. Weights of more than 8 bits
    stay packed.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights: got '{weights}'{nearest(str(weights), WEIGHTS)}")
    of: Mapping[Any, Operand] = {o.path: o for o in known.values() if o.path is not None}

    def replace(path: tuple[Any, ...], leaf: Any) -> Any:
        operand = of.get(path_of(path))
        return Rows.of(leaf, operand, weights) if isinstance(leaf, Packed) and operand is not None else leaf

    return jax.tree_util.tree_map_with_path(replace, params, is_leaf=is_encoded)


class Integers(NamedTuple):
    """An activation as ``scale * (codes - zero) + offset``, int8."""

    codes: jax.Array  # int8, in the activation's shape
    scale: jax.Array  # float32, broadcasts against it
    zero: jax.Array | None  # int32; None: 0
    offset: jax.Array | None  # float32; None: 0

    @classmethod
    def of(cls, codes: Codes, bits: int) -> "Integers":
        """The codes, of at most 8 bits, as int8. Signs become -1 and 1, and their offset, whole steps, a zero point."""
        if codes.zero is None:
            zero = None if codes.offset is None else jnp.round(-codes.offset / codes.scale).astype(jnp.int32)
            return cls((2 * codes.codes - 1).astype(jnp.int8), codes.scale, zero, None)
        if bits < WIDEST:
            return cls(codes.codes.astype(jnp.int8), codes.scale, codes.zero, codes.offset)
        return cls((codes.codes - SHIFT).astype(jnp.int8), codes.scale, codes.zero - SHIFT, codes.offset)


def _values(codes: Any, zero: Any, bits: int, form: Form) -> tuple[np.ndarray, Any]:
    """The whole numbers that rows hold and the zero point that is left, on the host, where it can be seen whether the
    zero point may be taken off for good."""
    if zero is None:
        return 2 * codes.astype(np.int32) - 1, None
    if form == "packed":
        return codes.astype(np.int32), zero
    steps = codes.astype(np.int32) - zero
    if np.abs(steps).max(initial=0) <= FITS:
        return steps, None
    shift = SHIFT if bits == WIDEST else 0
    return codes.astype(np.int32) - shift, zero.astype(np.int32) - shift


def _stored(rows: np.ndarray, bits: int, form: Form) -> jax.Array:
    """Whole numbers [p n k] as the form has them."""
    if form == "words":
        return pack_words(jnp.asarray(rows > 0))
    if form == "packed":
        return pack_rows(jnp.asarray(rows, jnp.int32), bits)
    return jnp.asarray(rows.astype(np.int8))


def _rows(x: np.ndarray, letters: str, summed: str) -> np.ndarray:
    """``x`` [letters] as [n k]: what the product keeps, and what it sums over."""
    kept = "".join(a for a in letters if a not in summed)
    n = int(np.prod([x.shape[i] for i in axes.indices(kept, letters)], dtype=np.int64))
    return x.transpose(axes.indices(kept + summed, letters)).reshape(n, -1)


def _shared(x: np.ndarray) -> np.ndarray:
    """``x`` [p 1 n] with n of length 1 where all are equal."""
    return x[..., :1] if (x == x[..., :1]).all() else x


def _parts(arrays: list[np.ndarray]) -> int | None:
    """Into how few equal parts k falls so that ``arrays`` [n k] are constant in each; None: into single ones only."""
    changes = np.flatnonzero(np.any([(np.diff(a, axis=1) != 0).any(axis=0) for a in arrays], axis=0)) + 1
    k = arrays[0].shape[1]
    run = int(np.gcd.reduce([k, *changes.tolist()]))
    return None if run == 1 and k > 1 else k // run
