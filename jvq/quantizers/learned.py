"""Quantisers whose scale, and offset, are learned with the weights: LSQ, LSQ+ and VVTQ's module-dependent ones.

Sources: Esser et al. 2020 (LSQ), Bhalgat et al. 2020 (LSQ+), Huang et al. 2024 (VVTQ); specification sections 1 and 4.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jvq.core import axes, ranges
from jvq.core.quantizer import Codes, Overhead, State
from jvq.core.rounding import learned_codes, learned_quantize
from jvq.core.samples import Samples, whole
from jvq.quantizers.uniform import check_bits, check_choice

Start = Literal["mse", "mean", "released", "sigma", "max"]
"""How a scale begins.

mse: least squares by turns (codes given the scale, then scale and offset given the codes). mean: ``2 mean|x| /
sqrt(Qp)`` (LSQ). released: the same with the signed ``Qp`` whatever the codes (VVTQ's code, for activations). sigma:
``max(|mean - 3 std|, |mean + 3 std|) / 2**(bits-1)`` (LSQ+). max: ``max|x| / Qp``.
"""
Gradient = Literal["lsq", "l1", "root", "none"]
"""What the scale's gradient is multiplied by, with N values and Qp the largest code.

lsq: ``1 / sqrt(N Qp)``. l1: ``1 / sqrt(Qp sum|x|)`` (VVTQ, weights). root: ``1 / (sqrt(N) Qp)`` (VVTQ as released,
activations). none: 1. N and the sum are those of the scale's own part of the tensor, all images of the batch included.
"""
STARTS: tuple[Start, ...] = get_args(Start)
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)
SMALLEST = 1e-8  #: the least scale at the start
LEAST = 1e-4  #: the least scale after a step of training (VVTQ's code)
ROUNDS = 100  #: at most, of least squares by turns
TOLERANCE = 1e-5  #: relative change of the scale at which they end


@dataclasses.dataclass(frozen=True)
class Learned:
    """One quantiser per index of the axes ``keep``, its scale and offset trained.

    State: ``scale`` [keep], ``low`` [] and ``high`` [] (the least and greatest code), and with ``offset`` also
    ``offset`` [keep], all float32. Codes are -2**(bits-1) .. 2**(bits-1)-1, unsigned 0 .. 2**bits-1.
    """

    bits: int = 8
    keep: str = ""  # letters that have a scale of their own; "" = one a tensor
    signed: bool = True
    offset: bool = False  # a learned real number is taken off first (LSQ+)
    start: Start = "mse"
    gradient: Gradient = "lsq"
    heads: int = 0  # axis d is taken as heads h of channels e, which "keep" may then name

    traced: ClassVar[tuple[str, ...]] = ("bits",)

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_bits(self.bits)
        check_choice("start", self.start, STARTS)
        check_choice("gradient", self.gradient, GRADIENTS)
        if self.offset and "b" not in letters:
            raise ValueError("offset: a weight has none, its products would need the sums of the activations")
        if self.heads:
            axes.require("d", letters, what="heads")
            if self.heads < 0 or shape[letters.index("d")] % self.heads:
                raise ValueError(f"heads: got {self.heads}, must divide the {shape[letters.index('d')]} of axis 'd'")
        axes.require(self.keep, self._letters(letters), what="keep")
        if "b" in self.keep:
            raise ValueError("keep: 'b' would be a scale per image of the batch, which cannot be learned")

    @property
    def apart(self) -> str:
        if not self.heads:
            return self.keep
        return "".join(a for a in self.keep if a not in "he") + "d"

    @property
    def form(self) -> "Learned":
        return Learned(0, self.keep, self.signed, self.offset, gradient=self.gradient, heads=self.heads)

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        values, weight = (self._split(x, letters) for x in whole(samples, letters, self.apart).weighted())
        low, high = self._ends()
        over = axes.others(self.keep, self._letters(letters))
        scale, offset = self._start(values, jnp.broadcast_to(weight, values.shape), over, low, high)
        state = {"scale": scale.squeeze(over), "low": low, "high": high}
        return state | ({"offset": offset.squeeze(over)} if self.offset else {})

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        y, scale, offset = self._expanded(state, x, letters)
        factor = self._factor(y, scale.shape, state["high"])
        return learned_quantize(y, scale, offset, state["low"], state["high"], factor).reshape(x.shape)

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        y, scale, offset = self._expanded(state, x, letters)
        codes = learned_codes(y, scale, offset, state["low"], state["high"])
        zero = jnp.full_like(scale, -state["low"])
        scale, zero, offset = (self._merged(part, y.shape, letters, x.shape) for part in (scale, zero, offset))
        whole_codes = (codes.reshape(x.shape) - state["low"]).astype(jnp.int32)
        return Codes(whole_codes, scale, zero.astype(jnp.int32), offset if self.offset else None)

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        if "b" not in letters and self.heads:  # a weight's heads are in the partial sums of the activation's
            return Overhead()
        summed = contracted.replace("d", "he") if self.heads else contracted
        size = dict(zip(self._letters(letters), self._shape(shape, letters), strict=True))
        parts = math.prod(size[a] for a in self.keep if a in summed)
        return Overhead(add=beta * (parts - 1) * product)  # other scales factor out, and the offset is one more bias

    def codes(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        """The signed codes of ``x`` [letters], whole float32 numbers ``low`` to ``high``."""
        y, scale, offset = self._expanded(state, x, letters)
        return learned_codes(y, scale, offset, state["low"], state["high"]).reshape(x.shape)

    def steps(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        """``(x - offset) / scale`` [letters]: where the values of ``x`` lie among the codes."""
        y, scale, offset = self._expanded(state, x, letters)
        return ((y.astype(jnp.float32) - offset) * (1.0 / scale)).reshape(x.shape)

    def parts(self, state: State, x: jax.Array, letters: str) -> tuple[jax.Array, int]:
        """Which scale each value of ``x`` [letters] belongs to, int32, and how many scales there are."""
        y, scale, _ = self._expanded(state, x, letters)
        numbers = jnp.arange(scale.size, dtype=jnp.int32).reshape(scale.shape)
        return jnp.broadcast_to(numbers, y.shape).reshape(x.shape), scale.size

    def projected(self, state: State) -> State:
        """The state with scales of at least 1e-4: what training does after each step."""
        return {**state, "scale": jnp.maximum(state["scale"], LEAST)}

    def factor(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        """What the gradient of ``scale`` is multiplied by, [keep] or []."""
        y, scale, _ = self._expanded(state, x, letters)
        found = self._factor(y, scale.shape, state["high"])
        return found.reshape(state["scale"].shape) if found.ndim else found

    def _ends(self) -> tuple[jax.Array, jax.Array]:
        """The least and the greatest code."""
        levels = ranges.level_count(self.bits)
        low = -(levels + 1.0) / 2.0 if self.signed else jnp.zeros_like(levels)
        return low, levels + low

    def _letters(self, letters: str) -> str:
        return letters.replace("d", "he") if self.heads else letters

    def _shape(self, shape: tuple[int, ...], letters: str) -> tuple[int, ...]:
        if not self.heads:
            return shape
        at = letters.index("d")
        heads = self.heads if shape[at] > 1 else 1
        return (*shape[:at], heads, shape[at] // heads, *shape[at + 1 :])

    def _split(self, x: jax.Array, letters: str) -> jax.Array:
        """``x`` [letters] with its axis d as h and e."""
        return x.reshape(self._shape(x.shape, letters))

    def _merged(self, part: jax.Array, shape: tuple[int, ...], letters: str, onto: tuple[int, ...]) -> jax.Array:
        """What stands for a split operand of ``shape``, with h and e as one axis again; of length 1 where shared."""
        if not self.heads:
            return part
        at = letters.index("d")
        pair = part.shape[at : at + 2]
        if pair == (1, 1):
            return part.reshape(*part.shape[:at], 1, *part.shape[at + 2 :])
        full = (*part.shape[:at], *shape[at : at + 2], *part.shape[at + 2 :])
        return jnp.broadcast_to(part, full).reshape(*part.shape[:at], onto[at], *part.shape[at + 2 :])

    def _expanded(self, state: State, x: jax.Array, letters: str) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The operand, scale and offset, all of the split operand's rank."""
        inner = self._letters(letters)
        kept = axes.ordered(self.keep, inner)
        scale = axes.expand(state["scale"], kept, inner)
        offset = axes.expand(state["offset"], kept, inner) if self.offset else jnp.zeros_like(scale)
        return self._split(x, letters), scale, offset

    def _factor(self, x: jax.Array, scale: tuple[int, ...], high: jax.Array) -> jax.Array:
        """The factor of the scale's gradient; Qp is taken as at least 1."""
        top, count = jnp.maximum(high, 1.0), x.size / math.prod(scale)
        if self.gradient == "lsq":
            return jax.lax.rsqrt(count * top)
        if self.gradient == "root":
            return jax.lax.rsqrt(jnp.float32(count)) / top
        if self.gradient == "none":
            return jnp.float32(1.0)
        over = tuple(i for i, n in enumerate(scale) if n == 1)
        mass = jnp.abs(jax.lax.stop_gradient(x).astype(jnp.float32)).sum(axis=over, keepdims=True)
        return jax.lax.rsqrt(jnp.maximum(top * mass, SMALLEST))

    def _start(
        self, x: jax.Array, weight: jax.Array, over: tuple[int, ...], low: jax.Array, high: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Scale and offset, reduced axes kept with length 1. Only "mse" and "max" begin with an offset other than 0."""

        def mean(values: jax.Array) -> jax.Array:
            total = weight.sum(axis=over, keepdims=True)
            return (weight * values).sum(axis=over, keepdims=True) / total

        top = jnp.maximum(high, 1.0)
        if self.start == "sigma":
            centre = mean(x)
            reach = 3 * jnp.sqrt(mean(jnp.square(x - centre)))
            scale = jnp.maximum(jnp.abs(centre - reach), jnp.abs(centre + reach)) / ((high - low + 1) / 2)
        elif self.start in ("mean", "released"):
            scale = 2 * mean(jnp.abs(x)) * jax.lax.rsqrt(top if self.start == "mean" else self._signed_top())
        elif self.offset:
            least, most = ranges.extremes(x, over)
            scale = jnp.maximum((most - least) / (high - low), SMALLEST)
            first = scale, least - low * scale
            return first if self.start == "max" else _by_turns(x, mean, first, low, high, offset=True)
        else:
            scale = jnp.maximum(jnp.abs(x).max(axis=over, keepdims=True) / top, SMALLEST)
            if self.start == "mse":
                return _by_turns(x, mean, (scale, jnp.zeros_like(scale)), low, high, offset=False)
        scale = jnp.maximum(scale, SMALLEST)
        return scale, jnp.zeros_like(scale)

    def _signed_top(self) -> jax.Array:
        return jnp.maximum((ranges.level_count(self.bits) + 1.0) / 2.0 - 1.0, 1.0)


def _by_turns(
    x: jax.Array,
    mean: Callable[[jax.Array], jax.Array],
    first: tuple[jax.Array, jax.Array],
    low: jax.Array,
    high: jax.Array,
    *,
    offset: bool,
) -> tuple[jax.Array, jax.Array]:
    """Scale and offset of least squares by turns from ``first``; the error never grows. ``mean`` keeps the rank."""

    def turn(carry: Any) -> Any:
        scale, shift, _, i = carry
        q = learned_codes(x, scale, shift, low, high)
        if offset:
            mean_q, mean_x = mean(q), mean(x)
            power, along = mean(jnp.square(q - mean_q)), mean((q - mean_q) * (x - mean_x))
        else:
            power, along = mean(jnp.square(q)), mean(q * x)
        new = jnp.where((power > 0) & (along > 0), along / jnp.where(power > 0, power, 1.0), scale)
        new = jnp.maximum(new, SMALLEST)
        moved = (mean_x - new * mean_q) if offset else shift
        return new, moved, (jnp.abs(new - scale) > TOLERANCE * scale).any(), i + 1

    def going(carry: Any) -> jax.Array:
        return carry[2] & (carry[3] < ROUNDS)

    scale, shift, _, _ = jax.lax.while_loop(going, turn, (*first, jnp.array(True), jnp.int32(0)))
    return scale, shift
