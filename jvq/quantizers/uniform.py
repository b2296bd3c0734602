"""Uniform quantisers: static ranges (min-max, percentile, error search) and ranges of the moment."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jvq.core import axes, ranges
from jvq.core.errors import nearest
from jvq.core.quantizer import Codes, Overhead, State
from jvq.core.rounding import fake_quantize, uniform_codes
from jvq.core.samples import Samples, whole

Range = Literal["max", "percentile", "mse"]
RANGES: tuple[Range, ...] = ("max", "percentile", "mse")


def check_bits(bits: Any, least: int = 1) -> None:
    """Raises ``ValueError`` unless bits is a whole number in ``least``..16."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= 16:
        near = "" if not isinstance(bits, int) else f" (nearest: {min(max(int(bits), least), 16)})"
        raise ValueError(f"bits must be a whole number from {least} to 16, got {bits}{near}")


def check_choice(name: str, got: Any, known: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless ``got`` is one of the ``known`` values of option ``name``."""
    if got not in known:
        raise ValueError(f"{name}: got '{got}'{nearest(str(got), known)}")


@dataclasses.dataclass(frozen=True)
class Uniform:
    """One uniform quantiser per index of the axes ``keep``, its range frozen at calibration.

    State: ``scale`` [keep], ``zero`` [keep] (whole numbers), ``levels`` [] = 2**bits - 1, all float32.
    """

    bits: int = 8
    keep: str = ""  # letters that have a range of their own; "" = one range a tensor
    symmetric: bool = False
    range: Range = "max"
    percentile: tuple[float, ...] = (0.1,)  # percent cut off at each end; of several the one of least squared error
    zero_point: ranges.ZeroPoint = "extend"

    traced: ClassVar[tuple[str, ...]] = ("bits",)

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_bits(self.bits, 2 if self.symmetric else 1)
        check_choice("range", self.range, RANGES)
        check_choice("zero_point", self.zero_point, ranges.ZERO_POINTS)
        axes.require(self.keep, letters, what="keep")
        if "b" in self.keep:
            raise ValueError("keep: 'b' would be a range per calibration image; use Dynamic for ranges of the moment")
        if not self.percentile or not all(0 <= p < 50 for p in self.percentile):
            raise ValueError(f"percentile: got {self.percentile}, each must be in [0, 50)")

    @property
    def apart(self) -> str:
        return self.keep

    @property
    def form(self) -> "Uniform":
        return Uniform(keep=self.keep)

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        over = axes.others(self.keep, letters)
        levels = ranges.level_count(self.bits)
        lower, upper = self._bounds(whole(samples, letters, self.apart), over, levels)
        scale, zero = self._affine(lower, upper, levels)
        return {"scale": scale.squeeze(over), "zero": zero.squeeze(over), "levels": levels}

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        scale, zero = self._expanded(state, letters)
        return fake_quantize(x, scale, zero, state["levels"], jnp.float32(1.0))

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        scale, zero = self._expanded(state, letters)
        return integers(x, scale, zero, state["levels"])

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        return Overhead()  # the scales are known beforehand and factor out of the product

    def _expanded(self, state: State, letters: str) -> tuple[jax.Array, jax.Array]:
        kept = axes.ordered(self.keep, letters)
        return axes.expand(state["scale"], kept, letters), axes.expand(state["zero"], kept, letters)

    def _affine(self, lower: jax.Array, upper: jax.Array, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.symmetric:
            return ranges.symmetric(lower, upper, levels)
        return ranges.affine(lower, upper, levels, self.zero_point)

    def _bounds(self, samples: Samples, over: tuple[int, ...], levels: jax.Array) -> ranges.Bounds:
        """The bounds, reduced axes kept with length 1."""
        outermost = samples.bounds(self.keep)
        if self.range == "max":
            return outermost
        some, weight = samples.weighted()

        def error(lower: jax.Array, upper: jax.Array) -> jax.Array:
            scale, zero = self._affine(lower, upper, levels)
            off = some - scale * (uniform_codes(some, scale, zero, levels) - zero)
            return (weight * jnp.square(off)).sum(axis=over, keepdims=True)

        if self.range == "mse":
            return ranges.least_error(*outermost, error)
        tried = [ranges.percentiles(samples.values, over, p) for p in self.percentile]
        if len(tried) == 1:
            return tried[0]
        best = jnp.stack([error(*bounds) for bounds in tried]).argmin(axis=0)
        lower, upper = (jnp.stack(ends) for ends in zip(*tried, strict=True))
        lower, upper = (jnp.take_along_axis(ends, best[None], axis=0)[0] for ends in (lower, upper))
        return lower, upper


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """A range of its own for every index of the axes ``keep`` *of the tensor at hand*, without calibration.

    ``keep="bd"`` on linear inputs and ``keep="bhq"`` with ``nonnegative`` on attention maps is IGQ-ViT's upper bound.
    State: ``levels`` [] = 2**bits - 1.
    """

    bits: int = 8
    keep: str = "b"
    nonnegative: bool = False  # the lower bound is 0
    zero_point: ranges.ZeroPoint = "extend"

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_bits(self.bits)
        check_choice("zero_point", self.zero_point, ranges.ZERO_POINTS)
        axes.require(self.keep, letters, what="keep")
        if "b" in letters and "b" not in self.keep:
            raise ValueError(f"keep: '{self.keep}' lacks 'b': ranges would depend on the other images of the batch")

    @property
    def apart(self) -> str:
        return ""  # nothing is looked at

    @property
    def form(self) -> "Dynamic":
        return Dynamic(keep=self.keep, nonnegative=self.nonnegative, zero_point=self.zero_point)

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        return {"levels": ranges.level_count(self.bits)}

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        scale, zero = self._ranges(state, x, letters)
        return fake_quantize(x, scale, zero, state["levels"], jnp.float32(1.0))

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        scale, zero = self._ranges(state, x, letters)
        return integers(x, scale, zero, state["levels"])

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        size = dict(zip(letters, shape, strict=True))
        find = beta * math.prod(shape) * (1 if self.nonnegative else 2)
        parts = math.prod(size[a] for a in self.keep if a in contracted)
        return Overhead(find, add=beta * (parts - 1) * product)

    def _ranges(self, state: State, x: jax.Array, letters: str) -> tuple[jax.Array, jax.Array]:
        x = jax.lax.stop_gradient(x)
        lower, upper = ranges.extremes(x, axes.others(self.keep, letters))
        if self.nonnegative:
            lower = jnp.zeros_like(upper)
        return ranges.affine(lower, upper, state["levels"], self.zero_point)


def integers(x: jax.Array, scale: jax.Array, zero: jax.Array, levels: jax.Array) -> Codes:
    """``x`` as int32 codes with the scale and the zero point that decode them."""
    codes = uniform_codes(x, scale, zero, levels)
    return Codes(codes.astype(jnp.int32), scale, jnp.round(zero).astype(jnp.int32))
