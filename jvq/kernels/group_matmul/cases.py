"""Cases of grouped products: every option present and absent, ragged sizes, and the linear layers of real models."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvq.kernels.case import Case


def operands(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    groups: int,
    *,
    bits: int = 4,
    ladder: bool = False,
    zero: bool = True,
    w_zero: bool = False,
    shared: bool = False,
    bias: bool = True,
) -> Mapping[str, Any]:
    """Codes of ``bits`` bits, less 128 where they have 8, and what goes with them; b, m, k, n are the sizes."""
    b, m, k, n = shape
    top, off = 2**bits - 1, 128 if bits == 8 else 0
    outputs = 1 if shared else n
    group = rng.integers(0, groups, (b, k))
    zeros = rng.integers(0, top + 1, groups)
    codes = rng.integers(0, top + 1, (b, m, k))
    shift = rng.integers(0, 8 - bits, groups) if ladder else np.zeros(groups, int)
    x = (codes - zeros[group][:, None]) << shift[group][:, None] if ladder else codes - off
    w = rng.integers(-top // 2, top // 2 + 1, (n, k))
    return {
        "x": jnp.asarray(x, jnp.int8),
        "group": None if ladder else jnp.asarray(group, jnp.int32),
        "w": jnp.asarray(w, jnp.int8),
        "scale": jnp.asarray(rng.lognormal(-3.0, 1.0, 1 if ladder else groups), jnp.float32),
        "zero": None if ladder or not zero else jnp.asarray(zeros - off, jnp.int32),
        "w_scale": jnp.asarray(rng.lognormal(-3.0, 0.5, outputs), jnp.float32),
        "w_zero": jnp.asarray(rng.integers(-top // 2, top // 2 + 1, outputs), jnp.int32) if w_zero else None,
        "bias": jnp.asarray(rng.normal(size=n), jnp.float32) if bias else None,
    }


def case(name: str, shape: tuple[int, int, int, int], groups: int = 4, *, ladder: bool = False, **made: Any) -> Case:
    """A small case of sizes b, m, k, n."""
    arrays = partial(operands, shape=shape, groups=groups, ladder=ladder, **made)
    return Case(name, arrays, {"ladder": ladder}, macs=math.prod(shape), tolerance=1e-6)


def real(name: str, shape: tuple[int, int, int, int], **made: Any) -> Case:
    """A linear layer of a real model: 8 groups of 4 bits."""
    return case(name, shape, 8, **made)._replace(real=True)


CASES = (
    case("ragged", (2, 5, 7, 11)),
    case("one of everything", (1, 1, 1, 1), 1),
    case("one row", (2, 1, 130, 33), w_zero=True),
    case("odd tails", (2, 37, 133, 131), 3, w_zero=True),
    case("eight bits", (1, 9, 130, 20), bits=8, w_zero=True),
    case("no zero points, no bias", (1, 9, 40, 20), zero=False, bias=False),
    case("one scale for all weights", (1, 9, 40, 20), shared=True, w_zero=True),
    case("ladder", (2, 5, 7, 11), 6, ladder=True),
    case("ladder, odd tails", (2, 37, 133, 131), ladder=True, w_zero=True),
    case("ladder of seven bits", (1, 70, 1, 9), bits=7, ladder=True, shared=True, bias=False),
    real("ViT-B fc1", (1, 197, 768, 3072)),
    real("ViT-B fc1, ladder", (1, 197, 768, 3072), ladder=True),
    real("ViT-B fc1, batch 8, ladder", (8, 197, 768, 3072), ladder=True),
    real("ViT-B fc2, weights with zero points", (1, 197, 3072, 768), w_zero=True),
    real("ViT-B fc2, ladder", (1, 197, 3072, 768), ladder=True, w_zero=True),
    real("ViT-B qkv, batch 8", (8, 197, 768, 2304)),
    real("DeiT-T fc1, ladder", (1, 197, 192, 768), ladder=True),
)
