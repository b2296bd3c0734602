"""The product of packed rows: what it takes, and which implementation computes it."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jvq.core.errors import nearest
from jvq.kernels.binary_matmul import pallas_gpu, pallas_tpu, ref, xla
from jvq.kernels.binary_matmul.bits import word_count
from jvq.kernels.choosing import run

KINDS = ("xnor", "and")

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "ref": ref.matmul,
    "xla": xla.matmul,
    "pallas_tpu": pallas_tpu.matmul,
    "pallas_gpu": pallas_gpu.matmul,
}
"""``matmul(x=[g m w], w=[g n w], k=, kind=)`` gives int32 [g m n]; ``NotImplementedError`` where it declines."""


def binary_matmul(x: jax.Array, w: jax.Array, k: int, kind: str = "xnor", impl: str = "auto") -> jax.Array:
    """The exact products int32 [... m n] of rows of k bits: x [... m w] times w [... n w], words of ``bits``.

    ``kind`` says what the bits of ``x`` are: signs (``"xnor"``: ``k - 2 * popcount(x ^ w)``) or 0 and 1 (``"and"``:
    ``2 * popcount(x & w) - popcount(x)``); those of ``w`` are signs. Bits beyond the k-th are zero in both, as packing
    leaves them. Leading axes broadcast as in ``jnp.matmul``. ``impl`` is ``"auto"`` or a name in ``IMPLEMENTATIONS``.
    Raises ``ValueError`` for operands and names that do not fit, ``NotImplementedError`` where the implementation asked
    for declines. Source: the specification of Bi-ViT, section 8, K1 and K2.
    """
    lead = _checked(x, w, k, kind)
    rows, columns = _stacked(x, w, lead)
    out = run("binary_matmul", impl, IMPLEMENTATIONS, x=rows, w=columns, k=k, kind=kind)
    return out.reshape(*lead, x.shape[-2], w.shape[-2])


def _checked(x: jax.Array, w: jax.Array, k: int, kind: str) -> tuple[int, ...]:
    """The leading axes of the product, or ``ValueError``."""
    if kind not in KINDS:
        raise ValueError(f"binary_matmul has no kind '{kind}'{nearest(kind, KINDS)}")
    if k < 1:
        raise ValueError(f"binary_matmul: k={k}, but rows have at least one bit")
    for name, a in (("x", x), ("w", w)):
        if a.dtype != jnp.uint32:
            raise ValueError(f"binary_matmul: {name} is {a.dtype}, but packed words are uint32 (see pack_words)")
        if a.ndim < 2 or a.shape[-1] != word_count(k):
            wanted = f"[... {'m' if name == 'x' else 'n'} {word_count(k)}]"
            raise ValueError(f"binary_matmul: {name} has shape {list(a.shape)}, but rows of k={k} bits are {wanted}")
    try:
        return jnp.broadcast_shapes(x.shape[:-2], w.shape[:-2])  # not NumPy's: a size may be symbolic
    except ValueError:
        shapes = f"{list(x.shape)} and {list(w.shape)}"
        raise ValueError(f"binary_matmul: leading axes of x and w do not fit: {shapes}") from None


def _stacked(x: jax.Array, w: jax.Array, lead: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Both with one leading axis, as implementations take them; all rows that meet the same ``w`` are one matrix."""
    if math.prod(w.shape[:-2]) == 1:
        return x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1]), w.reshape(1, *w.shape[-2:])
    many = [jnp.broadcast_to(a, (*lead, *a.shape[-2:])) for a in (x, w)]
    rows, columns = (a.reshape(math.prod(lead), *a.shape[-2:]) for a in many)
    return rows, columns
