"""Cases of the attention: small ones for every option, and the heads of real models."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from jvq.kernels.case import Case

EXACT = 2e-6  #: where p stays float32: exponentials and sums differ by a few roundings
STEP = 8e-3  #: with codes of p: one may fall to the other side of a half (see ``attention``)


def _arrays(
    rng: np.random.Generator, b: int, h: int, q: int, k: int, e: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Operands of one shape: scores with a deviation of about 1.5, as in a ViT.

    ``options``: "zeros" gives all zero points, "own" scales for each image and head; "bias" is the lead shape of one,
    None for none; "levels" are those of p, 0 where it stays float32.
    """
    lead = (b, h) if options["own"] else (1, 1)

    def scales(center: float, *lead: int) -> np.ndarray:
        return (center * rng.uniform(0.8, 1.25, (*lead, 1, 1))).astype(np.float32)

    def zeros(least: int, most: int, *lead: int) -> np.ndarray | None:
        return rng.integers(least, most, (*lead, 1, 1), dtype=np.int32) if options["zeros"] else None

    spread = (1.5 / (74 * 74 * e**0.5)) ** 0.5
    q_codes, k_codes, v_codes = (rng.integers(-128, 128, (b, h, n, e), dtype=np.int8) for n in (q, k, k))
    bias, levels = options["bias"], options["levels"]
    greatest = min(1.0, 24 / k)  # of p, about: what is above is cut off
    return {
        "q": q_codes,
        "k": k_codes,
        "v": v_codes,
        "q_scale": scales(spread, *lead),
        "k_scale": scales(spread, *lead),
        "v_scale": scales(0.02, *lead),
        "q_zero": zeros(-160, 161, *lead),
        "k_zero": zeros(-160, 161, *lead),
        "v_zero": zeros(-160, 161, *lead),
        "bias": None if bias is None else rng.normal(0, 0.5, (*bias, q, k)).astype(np.float32),
        "p_scale": scales(greatest / levels, 1, h if options["own"] else 1) if levels else None,
        "p_zero": zeros(0, 3, 1, lead[1]) if levels else None,
    }


def _case(name: str, b: int, h: int, q: int, k: int, e: int, real: bool = False, **options: Any) -> Case:
    """A case with its operands and what it counts."""
    every = {"zeros": False, "own": False, "bias": None, "levels": 255, **options}
    arrays: Callable[[np.random.Generator], dict[str, Any]] = partial(_arrays, b=b, h=h, q=q, k=k, e=e, options=every)
    static = {"p_levels": every["levels"]} if every["levels"] else {}
    tolerance = STEP if every["levels"] else EXACT
    return Case(name, arrays, static, macs=2 * b * h * q * k * e, real=real, tolerance=tolerance)


CASES = (
    _case("plain", 1, 2, 9, 9, 16),
    _case("every option", 2, 3, 17, 17, 16, zeros=True, own=True, bias=(2, 3)),
    _case("p stays float", 2, 2, 9, 13, 8, zeros=True, own=True, bias=(1, 2), levels=0),
    _case("p of 4 bits, a mask for each window", 3, 2, 16, 16, 8, zeros=True, bias=(3, 1), levels=15),
    _case("p of one bit", 1, 1, 5, 7, 33, levels=1),
    _case("one row, one key", 1, 1, 1, 1, 1, zeros=True, levels=127),
    _case("more keys than one tile", 1, 1, 130, 135, 32, zeros=True, own=True),
    _case("ViT-B, one image", 1, 12, 197, 197, 64, real=True),
    _case("ViT-B, batch 8", 8, 12, 197, 197, 64, real=True),
    _case("ViT-B, batch 8, every option", 8, 12, 197, 197, 64, real=True, zeros=True, own=True, bias=(1, 12)),
    _case("ViT-B, p stays float", 8, 12, 197, 197, 64, real=True, levels=0),
    _case("DeiT-T, one image", 1, 3, 198, 198, 64, real=True, zeros=True),
    _case("Swin-T windows", 64, 3, 49, 49, 32, real=True, zeros=True, bias=(64, 3)),
    _case("DINOv2-B at 518 pixels", 1, 12, 1370, 1370, 64, real=True, zeros=True, bias=None),
)
