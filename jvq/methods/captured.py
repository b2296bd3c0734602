"""Operands of a model's products over the calibration set, without holding the calibration set's operands at once.

Of the rows of a product (tokens, queries) some are kept, spread evenly over each image: what a search scores is then
the same product with fewer rows, an approximation. Sites are captured a few at a time, within a memory limit.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jvq.core import axes
from jvq.core.dot import packed_dot
from jvq.core.mesh import Rounds, everywhere, gathered
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Forward, Operand

Chunk = dict[str, np.ndarray]
"""By role an operand's values of some images; under ``role + "^"`` the same quantised, where that was asked for."""


class Pair(NamedTuple):
    """The two operands of a product, and a third activation that is recorded beside them (the softmax of scores)."""

    left: Operand
    right: Operand
    beside: Operand | None = None

    @property
    def kept(self) -> tuple[Operand, ...]:
        """The activations among them: weights are the same in every image."""
        return tuple(o for o in (self.left, self.right, self.beside) if o is not None and o.path is None)

    @property
    def sampled(self) -> str:
        """The axis of which some indices are kept: the last that only the left operand has; "" where there is none."""
        free = [a for a in self.left.letters if a in self.left.out and a not in self.right.letters and a != "b"]
        return free[-1] if free else ""

    def count(self, rows: int | None) -> int | None:
        """Indices of the sampled axis that are kept; None: all."""
        extent = dict(zip(self.left.letters, self.left.shape, strict=True))
        if rows is None or not self.sampled:
            return None
        others = [a for a in self.left.letters if a in self.left.out and a not in self.right.letters and a != "b"][:-1]
        each = max(1, rows // int(np.prod([extent[a] for a in others], initial=1)))
        return each if each < extent[self.sampled] else None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to record of an operand (static)."""

    role: str
    letters: str
    sampled: str  # "" : whole
    count: int | None
    form: Quantizer | None  # also record it quantised


def chunks(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    pairs: Mapping[str, Pair],
    fixed: Mapping[str, tuple[Quantizer, State]],
    *,
    rows: int | None = None,
    batch: int = 8,
    memory: int = 2**30,
    mesh: Mesh | None = None,
) -> Iterator[tuple[str, Callable[[], Iterable[Chunk]]]]:
    """By site, in order: a function that goes over the product's activations, some images at a time.

    ``fixed`` are quantisers of activations that are also recorded quantised (they may look at whole images, so that it
    has to be done before rows are left out). Operands of as many sites as fit into ``memory`` bytes are held; where
    those of one site do not, the forward pass is run anew each time. On the devices of a ``mesh`` each captures
    ``batch`` images at a time; the chunks are the same.
    """
    batch = min(batch, len(images))
    wanted = {site: _wanted(pair, fixed, rows) for site, pair in pairs.items()}
    bytes_of = {site: sum(map(_bytes, _shapes(pairs[site], wanted[site]))) for site in pairs}
    states = {address: state for address, (_, state) in fixed.items()}
    params = everywhere(mesh, params)

    def passes(sites: Sequence[str]) -> Iterator[dict[str, Chunk]]:
        spec = tuple((site, wanted[site]) for site in sites)
        mine = {o.address: states[o.address] for s in sites for o in pairs[s].kept if o.address in states}
        for x, mask, first in Rounds(mesh, images, batch):
            tape = gathered(_captured(forward, spec, params, mine, x, first))
            for i in range(0, int(mask.sum()), batch):
                rows = slice(i, min(i + batch, int(mask.sum())))
                yield {site: {name: y[rows] for name, y in chunk.items()} for site, chunk in tape.items()}

    for group in _groups(bytes_of, len(images), memory):
        if len(group) == 1 and bytes_of[group[0]] * len(images) > memory:
            yield group[0], lambda site=group[0]: (tape[site] for tape in passes([site]))
            continue
        held = [*passes(group)]
        for site in group:
            mine = _joined([tape.pop(site) for tape in held], max(1, memory // 8 // max(1, bytes_of[site])))
            yield site, lambda mine=mine: mine


def _wanted(pair: Pair, fixed: Mapping[str, Any], rows: int | None) -> tuple[Wanted, ...]:
    count = pair.count(rows)

    def of(o: Operand) -> Wanted:
        with_rows = o is pair.beside or o is pair.left
        sampled = pair.sampled if count is not None and with_rows and pair.sampled in o.letters else ""
        form = fixed[o.address][0].form if o.address in fixed else None
        return Wanted(o.role, o.letters, sampled, count, form)

    return tuple(map(of, pair.kept))


def _shapes(pair: Pair, wanted: tuple[Wanted, ...]) -> Iterator[list[int]]:
    """The shapes of what is kept of one image."""
    for o, w in zip(pair.kept, wanted, strict=True):
        shape = [w.count or n if a == w.sampled else n for a, n in zip(o.letters, o.shape, strict=True)]
        yield from [shape] * (1 if w.form is None else 2)


def _bytes(shape: list[int]) -> int:
    return 4 * int(np.prod(shape))


def _groups(bytes_of: Mapping[str, int], images: int, memory: int) -> list[list[str]]:
    """Runs of sites whose operands fit into the memory together, at least one site each."""
    found: list[list[str]] = []
    left = 0
    for site, size in bytes_of.items():
        if not found or size * images > left:
            found.append([])
            left = memory
        found[-1].append(site)
        left -= size * images
    return found


def _joined(parts: list[Chunk], images: int) -> list[Chunk]:
    """The same chunks, about so many images in each."""
    found: list[list[Chunk]] = []
    count = 0
    for part in parts:
        size = len(next(iter(part.values()))) if part else 0
        if not found or count + size > images:
            found.append([])
            count = 0
        found[-1].append(part)
        count += size
    return [{name: np.concatenate([part[name] for part in group]) for name in group[0]} for group in found]


@partial(jax.jit, static_argnums=(0, 1))
def _captured(
    forward: Forward,
    spec: tuple[tuple[str, tuple[Wanted, ...]], ...],
    params: Any,
    states: Mapping[str, State],
    x: jax.Array,
    first: Int[Array, ""],
) -> dict[str, dict[str, jax.Array]]:
    """By site what is wanted of it; the image's axis comes first."""
    sought: dict[str, list[tuple[str, Wanted]]] = {}
    tape: dict[str, dict[str, jax.Array]] = {site: {} for site, _ in spec}
    for site, wanted in spec:
        for w in wanted:
            beside = f"{site.rpartition('/')[0]}/pv" if w.role == "p" and not site.endswith("/pv") else site
            sought.setdefault(f"{beside}.{w.role}", []).append((site, w))
    inner = packed_dot()

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        for role, value in operands.items():
            for owner, w in sought.get(f"{site}.{role}", ()):
                tape[owner][role] = _some(value, w, first)
                if w.form is not None:
                    quantised = w.form.apply(states[f"{site}.{role}"], value, w.letters)
                    tape[owner][f"{role}^"] = _some(quantised, w, first)
        return inner(site, equation, **operands)

    forward(params, x, dot)
    return tape


def _some(x: jax.Array, w: Wanted, first: jax.Array) -> jax.Array:
    """The kept indices of the sampled axis, evenly spaced, beginning elsewhere in every image."""
    assert w.letters[0] == "b", f"{w.role}: the image's axis must come first in '{w.letters}'"
    x = x.astype(jnp.float32)
    if not w.sampled or w.count is None:
        return x
    axis = w.letters.index(w.sampled)
    number = x.shape[axis]
    index = jnp.asarray(first, jnp.float32) + jnp.arange(x.shape[0], dtype=jnp.float32)
    begin = jnp.round(index * (0.618 * number)).astype(jnp.int32)
    spaced = jnp.asarray(np.arange(w.count) * number // w.count, jnp.int32)
    at = axes.expand((begin[:, None] + spaced[None]) % number, "b" + w.sampled, w.letters)
    return jnp.take_along_axis(x, at, axis=axis)
