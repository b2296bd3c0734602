"""The product of packed rows: what it takes, and which implementation computes it."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jvq.core.errors import nearest
from jvq.kernels.binary_matmul import ref, xla
from jvq.kernels.binary_matmul.bits import word_count

KINDS = ("xnor", "and")

Implementation = Callable[[jax.Array, jax.Array, int, str], jax.Array]
"""``matmul(x [g m w], w [g n w], k, kind)`` gives int32 [g m n]; ``NotImplementedError`` where it declines."""

IMPLEMENTATIONS: dict[str, Implementation] = {"ref": ref.matmul, "xla": xla.matmul}
AUTO = ("xla",)  #: what "auto" tries, the fastest first
PLANNED = ("pallas_tpu", "pallas_gpu")  #: names that are understood before there is anything behind them


def binary_matmul(x: jax.Array, w: jax.Array, k: int, kind: str = "xnor", impl: str = "auto") -> jax.Array:
    """The exact products int32 [... m n] of rows of k bits: x [... m w] times w [... n w], words of ``bits``.

    ``kind`` says what the bits of ``x`` are: signs (``"xnor"``: ``k - 2 * popcount(x ^ w)``) or 0 and 1 (``"and"``:
    ``2 * popcount(x & w) - popcount(x)``); those of ``w`` are signs. Bits beyond the k-th are zero in both, as packing
    leaves them. Leading axes broadcast as in ``jnp.matmul``. ``impl`` is ``"auto"`` or a name in ``IMPLEMENTATIONS``.
    Raises ``ValueError`` for operands and names that do not fit, ``NotImplementedError`` where the implementation asked
    for declines. Source: the specification of Bi-ViT, section 8, K1 and K2.
    """
    names = _names(impl)
    lead = _checked(x, w, k, kind)
    rows, columns = _stacked(x, w, lead)
    for name in names:
        try:
            out = IMPLEMENTATIONS[name](rows, columns, k, kind)
            return out.reshape(*lead, x.shape[-2], w.shape[-2])
        except NotImplementedError:
            if name == names[-1]:
                raise
    raise AssertionError("there is always an implementation to try")


def _names(impl: str) -> tuple[str, ...]:
    """The implementations to try, in order."""
    if impl == "auto":
        return AUTO
    if impl in IMPLEMENTATIONS:
        return (impl,)
    there = ("auto", *IMPLEMENTATIONS)
    if impl in PLANNED:
        raise NotImplementedError(f"binary_matmul has no implementation '{impl}' yet (there are: {', '.join(there)})")
    raise ValueError(f"binary_matmul has no implementation '{impl}'{nearest(impl, there)}")


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
        return np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
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
