"""Weights of three values: -1, 0 and 1 times a scale.

Source: Li et al. 2016, Ternary Weight Networks, whose scale and threshold are used as they are, anew at every call.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from jvq.core.quantizer import Codes, Overhead, State, check_width
from jvq.core.samples import Samples
from jvq.core.signs import mean_ternary, ternary
from jvq.quantizers.binary import check_keep, moment, partial_sums


@dataclasses.dataclass(frozen=True)
class Ternary:
    """-1, 0 or 1 times the mean of |x| beyond 0.7 mean|x|, a scale per index of ``keep``; of an activation, per image.

    State: nothing. Codes are 0 to 2 with zero point 1.
    """

    bits: int = 2
    keep: str = ""  # letters that have a scale of their own; "" = one a tensor

    WIDTHS: ClassVar[range] = range(2, 3)

    def check(self, letters: str, shape: tuple[int, ...]) -> None:
        check_width(self)
        check_keep(self.keep, letters)

    @property
    def apart(self) -> str:
        return ""  # nothing is looked at

    @property
    def form(self) -> "Ternary":
        return Ternary(keep=self.keep)

    def init(self, samples: jax.Array | Samples, letters: str) -> State:
        return {}

    def apply(self, state: State, x: jax.Array, letters: str) -> jax.Array:
        return mean_ternary(x, moment(self.keep, letters))

    def encode(self, state: State, x: jax.Array, letters: str) -> Codes:
        digits, scale = ternary(x, moment(self.keep, letters))
        return Codes(digits.astype(jnp.int32) + 1, scale, jnp.ones_like(scale, jnp.int32))

    def overhead(self, letters: str, shape: tuple[int, ...], contracted: str, product: int, beta: int) -> Overhead:
        find = 2 * beta * math.prod(shape) if "b" in letters else 0  # two means; a weight's are known before
        return Overhead(find, add=partial_sums(self.keep, letters, shape, contracted, product, beta))
