"""Ranking-aware distillation: a student's attention learns to rank the tokens as the teacher's does (Bi-ViT).

Li et al. 2024 name the loss and their published code lacks it. This one is Liu et al.'s hinge on pairs (2021, eqs.
12-13) on softmax maps, over the pairs of a row, as a part of 1; the student's map is the one before it is binarised,
for in a map of two levels no margin can be met.

No pair is kept for the backward pass. Once it is known which pairs miss their margin, the hinge is linear in the
student: ``theta * missed + sum_i S_i * (missed with i the lesser - missed with i the greater)``. These counts are the
gradient, whole numbers and so the same in any order; one pass over the pairs finds them.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jvq.core.errors import nearest
from jvq.quantizers.uniform import check_choice

Pairs = Literal["all", "adjacent"]
"""all: each two entries of a row. adjacent: each entry with the next in the teacher's order. Both ask for the same, and
are 0 together, where the teacher has no ties; all weighs an entry far from its place more."""
PAIRS: tuple[Pairs, ...] = get_args(Pairs)
Space = Literal["prob", "log"]
"""prob: probabilities times the number of keys, about 1 each. log: their logarithms, score differences within a row."""
SPACES: tuple[Space, ...] = get_args(Space)
MASKED = 1e-20  #: a teacher's probability below it is a masked key (exp(-46); Swin adds -100); the least of a logarithm
TIED = 1e-6  #: two of the teacher's probabilities no further apart, times the number of keys, are a tie
BITS = 10  #: of a count of pairs; three counts are summed as one int32, almost twice as quick as one by one

Counts = tuple[Float[Array, "r k"], Float[Array, " r"], Float[Array, " r"]]
"""Of each entry the missed pairs in which it is the lesser, less those in which it is the greater; of each row the
missed pairs and all pairs."""


def rank_loss(
    student: Float[Array, "b *m h q k"],
    teacher: Float[Array, "b *m h q k"],
    theta: float = 0.1,
    pairs: Pairs = "all",
    space: Space = "prob",
    chunk: int = 8,
) -> Float[Array, ""]:
    """The hinge ``max(0, theta - (S_i - S_j) * sign(A_i - A_j))`` of softmax maps, mean over pairs, then over rows.

    ``A`` is the teacher's map, ``S`` the student's in ``space``. Ties of the teacher and its masked keys are in no
    pair; a row without pairs is 0. Ties of the student are: they cost ``theta``, and at ``theta=0`` nothing, with
    gradient 0. Adjacent pairs: keys that the teacher ties stand in the order of their index, and of such a run only the
    first has a pair with what is before and the last with what is behind. The gradient is the student's alone.
    ``chunk`` rows are compared at a time, which does not change the result: a few fit a CPU's cache, and an accelerator
    takes fewer steps with more.
    """
    check_ranking(theta, pairs, space, chunk)
    keys = student.shape[-1]
    if pairs == "all" and keys >= 1 << BITS:
        raise ValueError(f"pairs: 'all' counts at most {(1 << BITS) - 1} keys, got {keys} (did you mean 'adjacent'?)")
    wide = student.astype(jnp.float32)
    said = wide * keys if space == "prob" else jnp.log(jnp.maximum(wide, MASKED))
    told = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    told, said = told.reshape(-1, keys), said.reshape(-1, keys)
    counted = _count_all if pairs == "all" else _count_adjacent
    net, missed, count = counted(told, jax.lax.stop_gradient(said), theta, TIED / keys, chunk)
    hinge = theta * missed + (net * said).sum(axis=-1)
    return (hinge / jnp.maximum(count, 1.0)).mean()


def rank_distillation(
    student: Mapping[str, jax.Array],
    teacher: Mapping[str, jax.Array],
    addresses: Sequence[str],
    *,
    theta: float = 0.1,
    pairs: Pairs = "all",
    space: Space = "prob",
    chunk: int = 8,
) -> Float[Array, ""]:
    """The mean of :func:`rank_loss` over the layers whose maps are at ``addresses`` on both tapes (``*/attn/pv.p``)."""
    if not addresses:
        raise ValueError("rank distillation: no address of an attention map")
    losses = []
    for address in addresses:
        for who, tape in (("student", student), ("teacher", teacher)):
            if address not in tape:
                raise ValueError(f"rank distillation: the {who} recorded no '{address}'{nearest(address, tape)}")
        ours, theirs = student[address], teacher[address]
        if ours.shape != theirs.shape:
            shapes = f"{list(ours.shape)}, the teacher's {list(theirs.shape)}"
            raise ValueError(f"rank distillation: at {address} the student's map is {shapes}; they must be alike")
        losses.append(rank_loss(ours, theirs, theta, pairs, space, chunk))
    return jnp.stack(losses).mean()


def check_ranking(theta: float, pairs: str, space: str, chunk: int) -> None:
    """Raises ``ValueError`` unless :func:`rank_loss` takes these options."""
    if not 0 <= theta < float("inf"):
        raise ValueError(f"theta: got {theta}, must be at least 0")
    if chunk < 1:
        raise ValueError(f"chunk: got {chunk}, must be at least 1")
    check_choice("pairs", pairs, PAIRS)
    check_choice("space", space, SPACES)


def _count_all(told: Float[Array, "r k"], said: Float[Array, "r k"], theta: float, tied: float, chunk: int) -> Counts:
    def counts(row: tuple[Float[Array, " k"], Float[Array, " k"]]) -> Int[Array, " k"]:
        told, said = row
        low = _unless_masked(told)
        apart = said[:, None] - said[None]  # another entry less this one
        less = told[:, None] - low[None] > tied
        greater = told[None] - low[:, None] > tied
        as_less = jnp.where(apart < theta, (1 << 2 * BITS) + 1, 1 << 2 * BITS)
        return jnp.where(less, as_less, jnp.where(greater & (apart > -theta), 1 << BITS, 0)).sum(axis=0)

    packed = jax.lax.map(counts, (told, said), batch_size=chunk)
    most = (1 << BITS) - 1
    up, down, less = ((packed >> shift & most).astype(jnp.float32) for shift in (0, BITS, 2 * BITS))
    return up - down, up.sum(axis=-1), less.sum(axis=-1)


def _count_adjacent(
    told: Float[Array, "r k"], said: Float[Array, "r k"], theta: float, tied: float, chunk: int
) -> Counts:
    def places(told: Float[Array, " k"]) -> Int[Array, " k"]:
        """Of each key its place in the teacher's order, counted: eight times as quick as XLA's sort on a CPU."""
        bits = jax.lax.bitcast_convert_type(told, jnp.int32)  # of what is not negative they are in the same order
        index = jnp.arange(told.size)
        earlier = (index[:, None] < index[None]).astype(jnp.int32)
        return (bits[:, None] < bits[None] + earlier).sum(axis=0, dtype=jnp.int32)

    def take(x: Float[Array, "r k"], place: Int[Array, "r k"]) -> Float[Array, "r k"]:
        return x.reshape(-1).at[place].get(mode="promise_in_bounds")

    count, keys = told.shape  # places count on from row to row: one flat index is the quickest
    place = jax.lax.map(places, told, batch_size=chunk) + jnp.arange(0, count * keys, keys, dtype=jnp.int32)[:, None]
    index = jnp.arange(count * keys, dtype=jnp.int32)
    order = jnp.zeros_like(index).at[place.reshape(-1)].set(index, unique_indices=True, mode="promise_in_bounds")
    told, said = (take(x, order.reshape(count, keys)) for x in (told, said))
    pairs = told[:, 1:] - _unless_masked(told)[:, :-1] > tied
    missed = (pairs & (said[:, 1:] - said[:, :-1] < theta)).astype(jnp.float32)
    net = jnp.pad(missed, ((0, 0), (0, 1))) - jnp.pad(missed, ((0, 0), (1, 0)))
    return take(net, place), missed.sum(axis=-1), pairs.astype(jnp.float32).sum(axis=-1)


def _unless_masked(told: Float[Array, "*r k"]) -> Float[Array, "*r k"]:
    """Infinite where masked, so that nothing is greater; nor is a masked key greater than another by what counts."""
    return jnp.where(told < MASKED, jnp.inf, told)
