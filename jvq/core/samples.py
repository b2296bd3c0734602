"""What calibration keeps of an operand: exact extremes, and some of the values.

Whole operands of a ViT-B take 100 MB an image. The ranges of channels and rows need only their extremes, which are kept
exactly; percentiles and error searches look at a fixed number of values, spread evenly: an approximation.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvq.core import axes, ranges

VALUES = 2**18  #: of an activation about this many values are kept, over all calibration images


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "weight", "lower", "upper"],
    meta_fields=["letters", "apart"],
)
@dataclasses.dataclass(frozen=True)
class Samples:
    """Values of an operand with axes ``letters``, and their extremes for every index of ``apart`` in every image.

    Of the values along the other axes some are left, which stand along the first of these; the others have length 1.
    """

    values: Any  # [letters], float32
    weight: Any  # [] how many values each stands for; None: nothing was left out
    lower: Any  # [letters] least value; axes not in apart have length 1, but for the image's
    upper: Any  # [letters] greatest value
    letters: str
    apart: str

    def bounds(self, keep: str) -> ranges.Bounds:
        """Least and greatest value of every index of the axes ``keep``, the others kept with length 1; exact."""
        over = axes.others(keep, self.letters)
        return self.lower.min(axis=over, keepdims=True), self.upper.max(axis=over, keepdims=True)

    def weighted(self) -> tuple[jax.Array, jax.Array]:
        """What an error search looks at: values [letters], and the weight of each in a sum.

        Where values were left out the extremes are among them: from about 8 bits on the rare large values that a sample
        misses cost more, once clipped, than all the others.
        """
        if self.weight is None:
            return self.values, jnp.ones((1,) * self.values.ndim)
        along = axes.others("b" + self.apart, self.letters)[0]
        weight = jnp.pad(jnp.broadcast_to(self.weight, self.values.shape[along]), (0, 2), constant_values=1.0)
        weight = jnp.expand_dims(weight, tuple(i for i in range(self.values.ndim) if i != along))
        return jnp.concatenate([self.values, self.lower, self.upper], axis=along), weight


def whole(x: jax.Array | Samples, letters: str, apart: str) -> Samples:
    """All values of an operand; samples as they are."""
    if isinstance(x, Samples):
        return x
    wide = x.astype(jnp.float32)
    return Samples(wide, None, *ranges.extremes(wide, axes.others("b" + apart, letters)), letters, apart)


def some(x: jax.Array, letters: str, apart: str, count: int, first: jax.Array | int = 0) -> Samples:
    """About ``count`` values of every image of an activation, whose images are numbered from ``first``.

    Which values depends on the image's number alone, not on the others of the batch.
    """
    at = letters.index("b")
    inner = letters.replace("b", "")
    over = axes.others(apart, inner)
    if not over or x.size <= count * x.shape[at]:
        return whole(x, letters, apart)
    wide = x.astype(jnp.float32)
    values = jax.vmap(lambda y, i: thin(y, over, count, i), (at, 0), at)(wide, first + jnp.arange(x.shape[at]))
    weight = jnp.float32(x.size / values.size)
    return Samples(values, weight, *ranges.extremes(wide, axes.others("b" + apart, letters)), letters, apart)


def chosen(part: Samples, mask: np.ndarray) -> Samples:
    """The samples of the images that ``mask`` [b] marks."""
    if mask.all():
        return part
    at = part.letters.index("b")
    values, lower, upper = (np.compress(mask, x, axis=at) for x in (part.values, part.lower, part.upper))
    return dataclasses.replace(part, values=values, lower=lower, upper=upper)


def joined(parts: list[Samples]) -> Samples:
    """Samples of several batches of images as one."""
    at = parts[0].letters.index("b")
    values, lower, upper = (
        jnp.asarray(np.concatenate([getattr(part, name) for part in parts], axis=at))
        for name in ("values", "lower", "upper")
    )
    return dataclasses.replace(parts[0], values=values, lower=lower, upper=upper)


def thin(x: jax.Array, over: tuple[int, ...], values: int, number: jax.Array | int = 0) -> jax.Array:
    """``x`` with every so many-th value over the axes ``over`` taken together, about ``values`` in all.

    The values stand along the first of these axes, the others have length 1. Of several axes the stride shares no
    factor with any length: one that does would leave out whole channels, and outlier channels decide the range. Every
    index of the other axes, and every ``number`` (of an image), starts at another place: if all looked at the same
    tokens, rare large ones were seen by all of them, or by none.
    """
    if not over or x.size <= values:
        return x
    first, stride = over[0], -(-x.size // values)
    while len(over) > 1 and any(math.gcd(stride, x.shape[i]) > 1 for i in over):
        stride += 1
    last = tuple(range(x.ndim - len(over), x.ndim))
    kept = [n for i, n in enumerate(x.shape) if i not in over]
    left = jnp.moveaxis(x, over, last).reshape(math.prod(kept), -1)
    count = left.shape[1]
    places = jnp.arange(left.shape[0]) * round(0.618 * count)  # the golden section spreads any number of starts
    start = (places + number * round(0.382 * count)) % count
    at = (start[:, None] + jnp.arange(0, count, stride)[None]) % count
    left = jnp.take_along_axis(left, at, axis=1).reshape(*kept, -1)
    return jnp.expand_dims(jnp.moveaxis(left, -1, first), over[1:])
