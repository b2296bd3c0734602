"""Quantisers to one bit: signs, steps from 0 to a scale, and Bi-ViT's released signs with a learned zero point.

Source: Li et al., Bi-ViT, AAAI 2024, with its code (specification sections 1 and 2). Ours where the paper is silent:
attention maps take ``Steps`` ("LSF-01"), because the released ``ShiftedSigns`` begin as a constant map; the sign of 0
is +1; and every head starts at its own scale.
"""

import dataclasses
import math
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp

from jvq.core import axes
from jvq.core.quantizer import Codes, Overhead, State, check_width
from jvq.core.samples import Samples, whole
from jvq.core.signs import (
    Slope,
    mean_magnitude,
    mean_sign,
    reaches,
    scaled_sign,
    scaled_step,
    shifted_sign,
    sign_ste,
    unit_step,
)
from jvq.quantizers.uniform import check_choice

SignScale = Literal["one", "mean", "learned"]
StepScale = Literal["learned", "one"]
Threshold = Literal["half", "zero"]
ZeroStart = Literal["released", "minus_one"]
LEAST = 1e-5  #: the least learned scale, at the start and after a step of training
ZERO_RATE = 0.1  #: of the released start of a zero point: what a running mean from 0 takes over of the first batch


@dataclasses.dataclass(frozen=True)
class Signs:
    """The sign of every value, times a scale per index of ``keep``.

    scale "one": no scale (inputs of linear layers). "mean": mean|x|, computed anew at every call, of an activation for
    each image (weights). "learned": trained, from 2 mean|x| on (query, key, value). State: ``scale`` [keep], float32,
    where it is learned; else nothing.
    """

    bits: int = 1
    keep: str = ""  # letters that have a scale of their own; "" = one a tensor
    scale: SignScale = "one"
    centred: bool = False  # with "mean": the mean is taken off first, and not put back (BiBERT, BiT)
    smooth: bool = True  # with "one": Bi-Real Net's gradient; else it passes where |x| <= size
    size: float = 1.0  # with "one", and not smooth: the scale (a query comes times e**-0.5, and so do its signs)
    gradient: Slope = "lsq"  # with "learned": of the scale

    WIDTHS: ClassVar[range] = range(1, 2)

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_width(self)
        check_choice("scale", self.scale, get_args(SignScale))
        check_choice("gradient", self.gradient, get_args(Slope))
        check_keep(self.keep, letters, none=self.scale == "one")
        for name, default, needs in (
            ("centred", False, "mean"),
            ("smooth", True, "one"),
            ("gradient", "lsq", "learned"),
            ("size", 1.0, "one"),
        ):
            if getattr(self, name) != default and self.scale != needs:
                raise ValueError(f"{name}: only scale '{needs}' has it, not '{self.scale}'")
        if self.size <= 0 or (self.size != 1.0 and self.smooth):
            raise ValueError(f"size: got {self.size}, must be positive, and 1 where the gradient is smooth")

    @property
    def apart(self) -> str:
        return self.keep if self.scale == "learned" else ""

    @property
    def form(self) -> "Signs":
        return dataclasses.replace(self, bits=1)

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        if self.scale != "learned":
            return {}
        return {"scale": start(whole(samples, letters, self.apart), self.keep, 2.0)}

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        if self.scale == "learned":
            return scaled_sign(x, spread(state["scale"], self.keep, letters), factor(x), self.gradient)
        if self.scale == "mean":
            return mean_sign(self._centred(x, letters), moment(self.keep, letters))
        return sign_ste(x) if self.smooth else scaled_sign(x, self.size * ones(x), jnp.float32(1.0))

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        y = self._centred(x, letters)
        if self.scale == "learned":
            scale = spread(state["scale"], self.keep, letters)
        else:
            scale = mean_magnitude(y, moment(self.keep, letters)) if self.scale == "mean" else self.size * ones(x)
        return Codes((y >= 0).astype(jnp.int32), scale, None)

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        find = beta * math.prod(shape) if self.scale == "mean" and "b" in letters else 0  # a weight's is known before
        return Overhead(find, add=partial_sums(self.keep, letters, shape, contracted, product, beta))

    def projected(self, state: State) -> State:
        """The state with scales of at least 1e-5: what training does after each step."""
        return projected(state)

    def _centred(self, x: jax.Array, letters: str) -> jax.Array:
        if not self.centred:
            return x
        wide = x.astype(jnp.float32)
        return (wide - wide.mean(axis=moment(self.keep, letters), keepdims=True)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Steps:
    """0 or the scale: the scale where a value is at least half of it (attention maps after softmax).

    State: ``scale`` [keep], float32, where it is learned, from 4 mean|x| on (4 / N after softmax); else nothing.
    """

    bits: int = 1
    keep: str = ""  # letters that have a scale of their own; "" = one a tensor
    scale: StepScale = "learned"
    threshold: Threshold = "half"  # "zero", with scale "one": 1 where x >= 0 (BiBERT's map, which has no softmax)

    WIDTHS: ClassVar[range] = range(1, 2)

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_width(self)
        check_choice("scale", self.scale, get_args(StepScale))
        check_choice("threshold", self.threshold, get_args(Threshold))
        check_keep(self.keep, letters, none=self.scale == "one")
        if self.threshold == "zero" and self.scale != "one":
            raise ValueError(f"threshold: 'zero' needs scale 'one', not '{self.scale}'")

    @property
    def apart(self) -> str:
        return self.keep

    @property
    def form(self) -> "Steps":
        return dataclasses.replace(self, bits=1)

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        if self.scale == "one":
            return {}
        return {"scale": start(whole(samples, letters, self.apart), self.keep, 4.0)}

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        if self.threshold == "zero":
            return unit_step(x)
        return scaled_step(x, self._scale(state, x, letters), factor(x))

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        scale = self._scale(state, x, letters)
        least = 0.5 * scale if self.threshold == "half" else jnp.zeros_like(scale)
        codes = (x.astype(jnp.float32) >= least).astype(jnp.int32)
        return Codes(codes, scale, jnp.zeros_like(scale, jnp.int32))

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        return Overhead(add=partial_sums(self.keep, letters, shape, contracted, product, beta))

    def projected(self, state: State) -> State:
        """The state with scales of at least 1e-5: what training does after each step."""
        return projected(state)

    def _scale(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        return spread(state["scale"], self.keep, letters) if self.scale == "learned" else ones(x)


@dataclasses.dataclass(frozen=True)
class ShiftedSigns:
    """``scale * (sign(x / scale + z) - z)``, with z the rounded zero point, both learned: Bi-ViT's released ``ActBi``.

    With z = -1 it is ``Steps`` of twice the scale; with z = 0, where it begins after softmax, all of an attention map
    is the scale. State, float32: ``scale`` [keep] and ``offset`` [keep], which is the zero point before rounding; both
    begin as one number for all of ``keep`` (as released).
    """

    bits: int = 1
    keep: str = ""  # letters that have a scale and a zero point of their own
    zero_start: ZeroStart = "released"  # a tenth of least value plus scale, which mixes units; "minus_one": -1

    WIDTHS: ClassVar[range] = range(1, 2)

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_width(self)
        check_choice("zero_start", self.zero_start, get_args(ZeroStart))
        check_keep(self.keep, letters)
        if "b" not in letters:
            raise ValueError("zero point: a weight has none, its products would need the sums of the activations")

    @property
    def apart(self) -> str:
        return self.keep

    @property
    def form(self) -> "ShiftedSigns":
        return ShiftedSigns(keep=self.keep)

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        samples = whole(samples, letters, self.apart)
        scale, (least, _) = start(samples, "", 2.0), samples.bounds("")
        kept = [samples.values.shape[i] for i in axes.indices(axes.ordered(self.keep, letters), letters)]
        zero = ZERO_RATE * (least.reshape(()) + scale) if self.zero_start == "released" else jnp.float32(-1.0)
        return {"scale": jnp.full(kept, scale), "offset": jnp.full(kept, zero)}

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        scale, zero = (spread(state[name], self.keep, letters) for name in ("scale", "offset"))
        return shifted_sign(x, scale, zero, factor(x))

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        scale, zero = (spread(state[name], self.keep, letters) for name in ("scale", "offset"))
        return Codes(reaches(x, scale, zero).astype(jnp.int32), scale, None, -jnp.round(zero) * scale)

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        # zero points need sums of codes, which are counts of bits and free in this accounting
        return Overhead(add=partial_sums(self.keep, letters, shape, contracted, product, beta))

    def projected(self, state: State) -> State:
        """The state with scales of at least 1e-5: what training does after each step."""
        return projected(state)


def check_keep(keep: str, letters: str, *, none: bool = False) -> None:
    """Raises ``ValueError`` where ``keep`` names what has no scale of its own; ``none``: nothing has."""
    axes.require(keep, letters, what="keep")
    if none and keep:
        raise ValueError(f"keep: got '{keep}', but with scale 'one' nothing has a scale of its own")
    if "b" in keep:
        raise ValueError("keep: got 'b', but a learned scale is that of all images, and a mean is each image's own")


def start(samples: Samples, keep: str, times: float) -> jax.Array:
    """``times`` mean|x| of the samples [keep], at least 1e-5."""
    values, weight = samples.weighted()
    weight, over = jnp.broadcast_to(weight, values.shape), axes.others(keep, samples.letters)
    return jnp.maximum(times * (weight * jnp.abs(values)).sum(axis=over) / weight.sum(axis=over), LEAST)


def projected(state: State) -> State:
    """The state with scales of at least 1e-5."""
    return {name: jnp.maximum(x, LEAST) if name == "scale" else x for name, x in state.items()}


def spread(x: jax.Array, keep: str, letters: str) -> jax.Array:
    """``x`` [keep] with axes of length 1 for the other letters."""
    return axes.expand(x, axes.ordered(keep, letters), letters)


def ones(x: jax.Array) -> jax.Array:
    """A scale of 1 of the rank of ``x``."""
    return jnp.ones((1,) * x.ndim, jnp.float32)


def moment(keep: str, letters: str) -> tuple[int, ...]:
    """The axes that a mean of the moment runs over: images never see each other."""
    return axes.others("b" + keep, letters)


def factor(x: jax.Array) -> jax.Array:
    """What a scale's gradient is multiplied by: 1 / sqrt(values in the whole tensor), whatever ``keep`` (released)."""
    return jnp.float32(1.0 / math.sqrt(x.size))


def partial_sums(keep: str, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> int:
    """Bit-operations of adding up where scales differ along what the product sums over; others factor out."""
    size = dict(zip(letters, shape, strict=True))
    return beta * (math.prod(size[a] for a in keep if a in contracted) - 1) * product
