"""Cases of the binary product: ragged ones, and the products of DeiT."""

from functools import partial

import numpy as np

from jvq.kernels.binary_matmul.bits import WORD, word_count
from jvq.kernels.case import Case


def _arrays(rng: np.random.Generator, g: int, m: int, k: int, n: int) -> dict[str, np.ndarray]:
    """Words of random bits; the first row of each has only ones, and what lies beyond bit k is zero."""
    last = np.uint32(2 ** (k - WORD * (word_count(k) - 1)) - 1)

    def words(rows: int) -> np.ndarray:
        drawn = rng.integers(0, 2**WORD, (g, rows, word_count(k)), dtype=np.uint32)
        drawn[:, 0] = 2**WORD - 1
        drawn[..., -1] &= last
        return drawn

    return {"x": words(m), "w": words(n)}


def _case(name: str, m: int, k: int, n: int, kind: str = "xnor", g: int = 1, real: bool = False) -> Case:
    """A case of g products of rows of k bits."""
    return Case(name, partial(_arrays, g=g, m=m, k=k, n=n), {"k": k, "kind": kind}, macs=g * m * k * n, real=real)


CASES = (
    _case("one bit", 1, 1, 1),
    _case("one bit, and", 1, 1, 3, "and"),
    _case("one row, a full word", 1, 32, 5),
    _case("ragged", 5, 33, 7),
    _case("ragged, and", 3, 197, 9, "and", g=3),
    _case("more than a block", 70, 49, 130, g=2),
    _case("more words than are written out, and", 9, 4200, 5, "and"),
    _case("more words than are written out", 3, 4100, 10),
    _case("DeiT-T qkv", 198, 192, 576, real=True),
    _case("DeiT-T fc2", 198, 768, 192, real=True),
    _case("DeiT-B fc1, one image", 197, 768, 3072, real=True),
    _case("DeiT-B fc1, batch 8", 1576, 768, 3072, real=True),
    _case("DeiT-B fc2, batch 8", 1576, 3072, 768, real=True),
    _case("DeiT-T scores", 198, 64, 198, g=3, real=True),
    _case("DeiT-T values", 198, 198, 64, "and", g=3, real=True),
    _case("DeiT-B scores, batch 8", 197, 64, 197, g=96, real=True),
    _case("DeiT-B values, batch 8", 197, 197, 64, "and", g=96, real=True),
)
