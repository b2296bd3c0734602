"""What a quantiser of an activation is in QDQ: a static grid of values. What has none is refused, by its address.

8 bits at most: the containers are uint8, and codes of fewer bits are clipped before they are put into one.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Operand
from jvq.quantizers import Dynamic, Grouped, Learned, StaticGrouped, Ternary, Uniform

STATIC = (Uniform, Learned, StaticGrouped)  #: quantisers whose scales are known before any image
TOP = 255  #: the greatest code of a container


@dataclasses.dataclass(frozen=True)
class Grid:
    """An operand's values ``scale * (codes - zero) + offset``, codes 0 to ``levels``; arrays broadcast against it."""

    scale: np.ndarray  # float32
    zero: np.ndarray  # float32, whole numbers
    offset: np.ndarray | None  # float32
    levels: int
    axis: int  # what the product sums over

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.scale, self.zero) if self.offset is None else (self.scale, self.zero, self.offset)

    @property
    def kinds(self) -> np.ndarray | None:
        """A row of numbers for each index of ``axis``, equal where it is quantised alike; None: everywhere."""
        length = max(x.shape[self.axis] for x in self.arrays)
        if length == 1:
            return None
        rows = [np.moveaxis(x, self.axis, 0).reshape(x.shape[self.axis], -1) for x in self.arrays]
        return np.concatenate([np.broadcast_to(x, (length, x.shape[1])) for x in rows], axis=1)

    def at(self, index: int) -> "Grid":
        """The grid of one index of ``axis``."""

        def one(x: np.ndarray | None) -> np.ndarray | None:
            return x if x is None or x.shape[self.axis] == 1 else np.take(x, [index], axis=self.axis)

        scale, zero, offset = one(self.scale), one(self.zero), one(self.offset)
        assert scale is not None
        assert zero is not None
        return dataclasses.replace(self, scale=scale, zero=zero, offset=offset)


def check(address: str, quantizer: Quantizer) -> None:
    """Raises ``ValueError`` where QDQ has nothing for the quantiser of an activation: what, why and what instead."""
    if isinstance(quantizer, Dynamic | Grouped):
        chosen = "groups are" if isinstance(quantizer, Grouped) else "ranges are"
        instead = "StaticGrouped or Uniform" if isinstance(quantizer, Grouped) else "Uniform"
        raise ValueError(
            f"{address}: {type(quantizer).__name__}'s {chosen} chosen per image at run time, QDQ has static scales; "
            f"use {instead}, or export StableHLO"
        )
    if not isinstance(quantizer, STATIC):
        what = "scales are of the moment" if isinstance(quantizer, Ternary) else "codes are signs"
        raise ValueError(
            f"{address}: {type(quantizer).__name__}'s {what}, QDQ has static scales and zero points; "
            "use Uniform or Learned, or export StableHLO"
        )
    if quantizer.bits > 8:
        raise ValueError(f"{address}: {quantizer.bits} bits, QDQ's integer products take 8 at most; use bits=8")


def grid(quantizer: Quantizer, state: State, operand: Operand, layout: str) -> Grid:
    """The grid of an activation [layout]: the operand's letters in any order, and others along which it is repeated."""
    letters = operand.letters
    scale, zero, offset = jax.device_get(_of(quantizer.form, letters, operand.shape, dict(state)))
    order = [letters.index(a) for a in layout if a in letters]

    def laid(x: np.ndarray) -> np.ndarray:
        absent = tuple(i for i, a in enumerate(layout) if a not in letters)
        return np.expand_dims(np.transpose(x, order), absent).astype(np.float32)

    levels = state["levels"] if "levels" in state else state["high"] - state["low"]
    axis = layout.index(operand.contracted)
    return Grid(laid(scale), laid(zero), None if offset is None else laid(offset), int(levels), axis)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _of(
    form: Quantizer, letters: str, shape: tuple[int, ...], state: State
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """Scale, zero point and offset [letters], of length 1 where shared."""
    codes = form.encode(state, jnp.zeros(shape, jnp.float32), letters)
    return codes.scale, codes.zero, codes.offset
