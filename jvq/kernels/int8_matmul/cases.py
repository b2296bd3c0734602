"""Cases of eight-bit products: every option present and absent, ragged sizes, and the products of real models."""

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
    *,
    shared: bool = False,
    scales: str = "n",
    zeros: str = "",
    bias: bool = True,
) -> Mapping[str, Any]:
    """Codes of sizes g, m, k, n, one w for all of x where it is ``shared``, and what goes with them.

    ``scales`` and ``zeros`` say along which of the axes g, m and n they vary; ``zeros`` is ``"x"`` or ``"w"`` and these
    letters, or both with a comma between, or nothing.
    """
    g, m, k, n = shape
    gw = 1 if shared else g
    x, w = rng.integers(-128, 128, (g, m, k)), rng.integers(-128, 128, (gw, n, k))

    def rows(letters: str) -> tuple[int, int, int]:
        return (g if "g" in letters else 1, m if "m" in letters else 1, 1)

    def columns(letters: str) -> tuple[int, int, int]:
        return (gw if "g" in letters else 1, 1, n if "n" in letters else 1)

    kinds = {kind[0]: kind[1:] for kind in zeros.split(",") if kind}
    zero_of = {"x": rows, "w": columns}
    drawn = {
        name: jnp.asarray(rng.integers(-160, 160, zero_of[name](letters)), jnp.int32) for name, letters in kinds.items()
    }
    return {
        "x": jnp.asarray(x, jnp.int8),
        "w": jnp.asarray(w, jnp.int8),
        "x_scale": jnp.asarray(rng.lognormal(-3.0, 1.0, rows(scales)), jnp.float32),
        "w_scale": jnp.asarray(rng.lognormal(-3.0, 0.5, columns(scales)), jnp.float32),
        "x_zero": drawn.get("x"),
        "w_zero": drawn.get("w"),
        "w_sum": jnp.asarray(w.sum(axis=2)[:, None], jnp.int32) if "x" in kinds else None,
        "bias": jnp.asarray(rng.normal(size=n), jnp.float32) if bias else None,
    }


def case(name: str, shape: tuple[int, int, int, int], **made: Any) -> Case:
    """A small case of sizes g, m, k, n."""
    return Case(name, partial(operands, shape=shape, **made), macs=math.prod(shape), tolerance=1e-6)


def real(name: str, shape: tuple[int, int, int, int], **made: Any) -> Case:
    """A product of a real model."""
    return case(name, shape, **made)._replace(real=True)


def unsummed(rng: np.random.Generator) -> dict[str, Any]:
    """Of a product of two activations, whose sums nobody knows beforehand."""
    return {**case("", (3, 9, 40, 20), zeros="x,w").arrays(rng), "w_sum": None}


LAYER: dict[str, Any] = {"shared": True, "zeros": "x"}  # static activations with a zero point, symmetric weights
HEADS: dict[str, Any] = {"scales": "", "bias": False}

CASES = (
    case("ragged", (2, 5, 7, 11)),
    case("one of everything", (1, 1, 1, 1), zeros="xm,wn"),
    case("one row", (1, 1, 130, 33), zeros="x"),
    case("k is one", (2, 9, 1, 40), zeros="xg,wg"),
    case("one column", (2, 33, 40, 1), scales="gmn", bias=False),
    case("odd tails, every option", (2, 67, 133, 131), scales="gmn", zeros="xgm,wgn"),
    case("one scale for all", (3, 9, 40, 20), scales="", zeros="x,w", bias=False),
    case("shared weights", (3, 9, 40, 20), shared=True, zeros="x"),
    case("shared weights, scales of rows", (3, 9, 40, 20), shared=True, scales="gmn", zeros="xgm,wn"),
    case("shared weights, scales of matrices", (3, 9, 40, 20), shared=True, scales="gn", zeros="xg"),
    case("weights with zero points", (1, 9, 40, 20), zeros="wn"),
    case("blocks of rows and of k", (1, 530, 1030, 9), scales="mn", zeros="xm,wn"),
    case("sums not given", (3, 9, 40, 20), zeros="x,w")._replace(arrays=unsummed),
    case("blocks of columns", (2, 5, 40, 790), zeros="x"),
    real("ViT-B fc1", (1, 197, 768, 3072), **LAYER),
    real("ViT-B fc1, batch 8", (8, 197, 768, 3072), **LAYER),
    real("ViT-B fc1, batch 8, dynamic", (8, 197, 768, 3072), shared=True, scales="gmn", zeros="xgm,wn"),
    real("ViT-B fc2", (1, 197, 3072, 768), **LAYER),
    real("ViT-B fc2, batch 8", (8, 197, 3072, 768), **LAYER),
    real("ViT-B qkv", (1, 197, 768, 2304), **LAYER),
    real("ViT-B qkv, batch 8", (8, 197, 768, 2304), **LAYER),
    real("DeiT-T fc1", (1, 197, 192, 768), **LAYER),
    real("DeiT-T fc2", (1, 197, 768, 192), **LAYER),
    real("scores, 12 heads", (12, 197, 64, 197), **HEADS),
    real("values, 12 heads", (12, 197, 197, 64), **HEADS, zeros="x"),
)
