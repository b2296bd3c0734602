"""What a quantiser is: a frozen dataclass with pure functions over a small state of arrays."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from jvq.core.samples import Samples

State = Mapping[str, jax.Array]
"""A quantiser's arrays: a small dict. Bits and scales are in it as arrays, so that no width recompiles anything."""


class Overhead(NamedTuple):
    """Bit-operations per image beyond the product itself, at run time."""

    find: int = 0  # minima and maxima
    choose: int = 0  # which group an index belongs to
    add: int = 0  # partial sums, where scales differ along what the product sums over

    @property
    def total(self) -> int:
        return sum(self)


class Codes(NamedTuple):
    """A quantised operand: ``scale * (codes - zero) + offset`` is its value; all broadcast against the codes.

    Without a zero point the codes, 0 and 1, are signs: ``scale * (2 * codes - 1) + offset``.
    """

    codes: jax.Array  # integers in [0, 2**bits - 1]
    scale: jax.Array  # float32
    zero: jax.Array | None  # int32; None: signs
    offset: jax.Array | None = (
        None  # float32; None: 0. Through a product it is one more bias: offset * sum of the weights
    )

    def decode(self) -> jax.Array:
        """The operand's value, float32."""
        codes = self.codes.astype("int32")
        steps = 2 * codes - 1 if self.zero is None else codes - self.zero
        value = self.scale * steps.astype("float32")
        return value if self.offset is None else value + self.offset


@runtime_checkable
class Quantizer(Protocol):
    """The contract, tested for every file of ``quantizers/``: ``encode(...).decode()`` equals ``apply(...)``.

    ``letters`` are the operand's axis letters. Nothing depends on other images of the batch.
    """

    @property
    def bits(self) -> int:
        """Width of the codes, one of its :func:`widths`."""
        ...

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        """Raises ``ValueError`` where the quantiser does not fit an operand of these letters and this shape."""
        ...

    @property
    def apart(self) -> str:
        """The axes, but for the image's, whose indices calibration must tell apart: it keeps their extremes."""
        ...

    @property
    def form(self) -> "Quantizer":
        """The quantiser with all that ``apply`` and ``encode`` do not look at as if never set.

        Quantisers of one form, with states of the same shapes, share executables.
        """
        ...

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        """The state for an operand with all calibration images along ``b``, or for what is kept of it; or a weight."""
        ...

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        """``x`` fake-quantised: same shape and dtype, differentiable."""
        ...

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        """``x`` as integers with their scale and zero point."""
        ...

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        """Bit-operations per image beyond the product itself, for an operand of this shape *without* ``b``.

        ``contracted`` are the letters summed over, ``product`` the number of values in the product per image, ``beta``
        the bit-operations of one floating-point addition or comparison.
        """
        ...


def widths(kind: Any) -> range:
    """The widths that a quantiser, or its class, has: its ``WIDTHS`` where it says so, else 1 to 16 bits."""
    return getattr(kind, "WIDTHS", range(1, 17))


def check_width(quantizer: Any) -> None:
    """Raises ``ValueError`` unless ``bits`` is one of the quantiser's widths."""
    bits, known = quantizer.bits, widths(quantizer)
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in known:
        some = f"{known[0]}" if len(known) == 1 else f"a whole number from {known[0]} to {known[-1]}"
        raise ValueError(f"bits must be {some}, got {bits}: {type(quantizer).__name__} has no other width")
