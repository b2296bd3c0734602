"""Cases of grouped codes: groups of channels and of rows, every option, and the sizes of real models."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvq.kernels.case import Case


def operands(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    groups: int,
    *,
    bits: int = 4,
    nonnegative: bool = False,
    ladder: bool = False,
    along: str = "d",
    padding: int = 0,
) -> Mapping[str, Any]:
    """Values whose ranges differ by channel or row and by image, and quantisers for ranges of such sizes."""
    b, n, d = shape
    width = rng.lognormal(0.0, 1.0, (b, 1, d) if along == "d" else (b, n, 1))
    x = width * (rng.normal(size=shape) + rng.normal(size=width.shape))
    levels = 2**bits - 1
    reach = np.sort(rng.lognormal(1.0, 1.0, groups))
    part = np.zeros(groups) if nonnegative else rng.uniform(0.1, 0.9, groups)
    scale = 0.3 * 2.0 ** rng.integers(0, 8 - bits, groups) if ladder else reach / levels
    zero = np.round(part * levels)
    ends = {"lower": -part * reach, "upper": (1 - part) * reach, "scale": scale, "zero": zero}
    filler = {"lower": np.inf, "upper": np.inf, "scale": 1.0, "zero": 0.0}
    filled = {name: np.append(a, [filler[name]] * padding) for name, a in ends.items()}
    arrays = {"x": np.abs(x) if nonnegative else x, **filled, "levels": np.array(levels)}
    return {name: jnp.asarray(a, jnp.float32) for name, a in arrays.items()}


def case(name: str, shape: tuple[int, int, int], groups: int = 4, *, padding: int = 0, **options: Any) -> Case:
    """A small case; ``options`` are the operation's own."""
    made = {key: options[key] for key in ("bits", "nonnegative", "ladder", "along") if key in options}
    return Case(name, partial(operands, shape=shape, groups=groups, padding=padding, **made), options)


def real(name: str, shape: tuple[int, int, int], **options: Any) -> Case:
    """A case of a real model's size: 8 groups of 4 bits."""
    return case(name, shape, 8, bits=4, **options)._replace(real=True)


CASES = (
    case("ragged", (2, 5, 7), bits=4),
    case("one value", (1, 1, 1), 1, bits=4),
    case("one row of many channels", (1, 1, 300), bits=3),
    case("one channel", (3, 40, 1), bits=4),
    case("eight bits", (2, 9, 130), bits=8),
    case("one bit, a filled-up array", (2, 9, 20), 3, bits=1, padding=2),
    case("absolute distance", (2, 6, 129), bits=4, distance="absolute"),
    case("ladder", (2, 6, 40), 6, bits=4, ladder=True),
    case("ladder of seven bits, filled up", (1, 6, 40), 3, bits=7, ladder=True, padding=1),
    case("rows", (2, 37, 9), bits=4, along="n"),
    case("rows of many channels", (2, 3, 150), bits=4, along="n"),
    case("rows of a map", (2, 70, 35), bits=4, along="n", nonnegative=True),
    case("channels from 0, ladder", (2, 35, 20), bits=4, nonnegative=True, ladder=True),
    real("ViT-B fc1", (1, 197, 768)),
    real("ViT-B fc1, batch 8, ladder", (8, 197, 768), ladder=True),
    real("ViT-B fc2, ladder", (1, 197, 3072), ladder=True),
    real("DeiT-T fc1, ladder", (1, 197, 192), ladder=True),
    real("ViT-B attention", (1, 12 * 197, 197), along="n", nonnegative=True),
)
