"""Cases of products with packed weights: every width, type and option, ragged sizes, and the layers of real models."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvq.kernels.case import Case
from jvq.kernels.packed_matmul.layout import pack_rows


def operands(
    rng: np.random.Generator,
    shape: tuple[int, int, int, int],
    bits: int,
    *,
    dtype: Any = jnp.int8,
    x_bits: int = 8,
    zeros: str = "xw",
    per_row: bool = False,
    per_column: bool = True,
    batched: bool = False,
    bias: bool = True,
    whole: bool = False,
) -> Mapping[str, Any]:
    """Codes of all values, zero points for ``zeros``; w has a matrix for each g where ``batched``.

    Scales are powers of two and the bias is a whole number where ``whole``, so that values are exact.
    """
    g, m, n, k = shape
    gw, rows, columns = g if batched else 1, m if per_row else 1, n if per_column else 1
    codes = rng.integers(0, 2**bits, (gw, n, k))

    def scale(*sizes: int) -> Any:
        made = 2.0 ** rng.integers(-3, 4, sizes) if whole else rng.lognormal(-3.0, 0.5, sizes)
        return jnp.asarray(made, jnp.float32)

    def zero(of: str, most: int, *sizes: int) -> Any:
        return jnp.asarray(rng.integers(-most, most + 1, sizes), jnp.int32) if of in zeros else None

    arrays = {
        "w": pack_rows(jnp.asarray(codes, jnp.int32), bits),
        "w_scale": scale(gw, 1, columns),
        "w_zero": zero("w", 2**bits - 1, gw, 1, columns),
        "bias": jnp.asarray(np.round(8 * rng.normal(size=n)), jnp.float32) if bias else None,
    }
    if dtype != jnp.int8:
        return {"x": jnp.asarray(rng.normal(size=(g, m, k)), dtype), "x_scale": None, **arrays}
    low, high = (-128, 128) if x_bits == 8 else (0, 2**x_bits)
    return {
        "x": jnp.asarray(rng.integers(low, high, (g, m, k)), jnp.int8),
        "x_scale": scale(g, rows, 1),
        "x_zero": zero("x", 200, g, rows, 1),
        "w_sum": jnp.asarray(codes.sum(axis=2)[:, None], jnp.int32) if "x" in zeros else None,
        **arrays,
    }


def case(name: str, shape: tuple[int, int, int, int], bits: int, **made: Any) -> Case:
    """A small case of sizes g, m, n, k."""
    arrays = partial(operands, shape=shape, bits=bits, **made)
    tolerance = 0.0 if made.get("whole") else 1e-6 if made.get("dtype", jnp.int8) == jnp.int8 else 1e-5
    return Case(name, arrays, {"bits": bits, "n": shape[2]}, macs=math.prod(shape), tolerance=tolerance)


def real(name: str, shape: tuple[int, int, int, int], bits: int, **made: Any) -> Case:
    """A linear layer of a real model."""
    return case(name, shape, bits, **made)._replace(real=True)


CASES = (
    case("ragged, 4 bits", (2, 5, 7, 11), 4),
    case("ragged, 3 bits, one scale", (2, 5, 19, 11), 3, per_column=False),
    case("one of everything, 2 bits", (1, 1, 1, 1), 2, zeros=""),
    case("odd tails, 3 bits, scales of rows", (1, 37, 133, 131), 3, per_row=True),
    case("odd tails, 2 bits, weights' zero points", (1, 9, 133, 300), 2, zeros="w"),
    case("many rows", (1, 530, 21, 33), 4, per_row=True),
    case("many columns, long rows", (1, 5, 1400, 530), 4),
    case("rows of 4-bit codes, weights without zero points", (3, 1, 40, 64), 4, x_bits=4, zeros="x", bias=False),
    case("a matrix each, 3 bits", (2, 9, 40, 33), 3, batched=True, per_row=True),
    case("exact", (1, 9, 40, 200), 4, whole=True),
    case("exact, 2 bits, no zero points, no bias", (1, 9, 40, 200), 2, whole=True, zeros="", bias=False),
    case("bfloat16, 4 bits", (2, 5, 36, 130), 4, dtype=jnp.bfloat16),
    case("bfloat16, 3 bits, one scale", (1, 5, 133, 70), 3, dtype=jnp.bfloat16, per_column=False),
    case("bfloat16, 2 bits, a matrix each", (2, 9, 17, 33), 2, dtype=jnp.bfloat16, zeros="", bias=False, batched=True),
    case("float32, 4 bits", (2, 5, 36, 130), 4, dtype=jnp.float32),
    case("float32, 3 bits, a matrix each", (2, 5, 21, 33), 3, dtype=jnp.float32, batched=True),
    real("ViT-B fc1, 4 bits", (1, 197, 3072, 768), 4),
    real("ViT-B fc1, 3 bits", (1, 197, 3072, 768), 3),
    real("ViT-B fc1, 2 bits", (1, 197, 3072, 768), 2),
    real("ViT-B fc1, batch 8, 4 bits", (8, 197, 3072, 768), 4, per_row=True),
    real("ViT-B fc2, 4 bits of 4-bit codes", (1, 197, 768, 3072), 4, x_bits=4),
    real("ViT-B fc2, 3 bits", (1, 197, 768, 3072), 3),
    real("ViT-B qkv, 2 bits", (1, 197, 2304, 768), 2),
    real("DeiT-T fc1, 4 bits", (1, 197, 768, 192), 4),
    real("DeiT-T fc2, 2 bits", (1, 197, 192, 768), 2, zeros="x"),
    real("ViT-B fc1, 4 bits with bfloat16", (1, 197, 3072, 768), 4, dtype=jnp.bfloat16),
    real("ViT-B fc2, 3 bits with bfloat16", (1, 197, 768, 3072), 3, dtype=jnp.bfloat16),
    real("ViT-B fc1, 4 bits with float32", (1, 197, 3072, 768), 4, dtype=jnp.float32),
)
