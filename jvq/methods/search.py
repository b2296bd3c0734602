"""The intervals of a product's two operands, searched in turn: Liu et al. 2021, section 3.2, and EasyQuant.

All images and all candidates of one operand are scored by one compiled function; products of one shape share it. What
is scored are the operands of the float model, or of what ``captured`` gives.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jvq.core import axes
from jvq.core.mesh import added, everywhere, gathered, parts, split
from jvq.core.quantizer import Quantizer, State
from jvq.methods.captured import Chunk, Pair
from jvq.methods.similarity import Similarity, ranking_loss, similarity

At = Literal["scores", "scaled", "softmax"]
Sum = Literal["mean", "sum"]
LEFT, RIGHT = 0, 1
NOISE = 2e-7  #: scores as close as this are equal: they are float32


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The ranking term of a score product (eq. 12); ``gamma`` and ``theta`` as in the paper."""

    gamma: float = 0.1
    theta: float = 0.2
    at: At = "scores"  # q k without the 1 / sqrt(e) of attention; "scaled": with it; "softmax": the attention map
    pairs: Sum = "mean"  # "sum": the paper's letter, under which the similarity has no say
    rows: int | None = 4  # a head and image, of those that are kept; None: all


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is maximised."""

    similarity: Similarity = "pearson"
    ranking: Ranking | None = None  # of score products alone


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is tried, and how long."""

    alpha: float = 0.5
    beta: float = 1.2
    steps: int = 100  # C, both ends included
    rounds: int = 20  # at most
    tolerance: float = 1e-6  # a round that gains less is the last
    anchor: Literal["initial", "current"] = "initial"  # what the candidates are parts of


@dataclasses.dataclass(frozen=True)
class Form:
    """A product as its executable sees it (static)."""

    letters: tuple[str, str, str]
    quantizers: tuple[Quantizer | None, Quantizer | None]  # forms; None: float, or quantised already
    units: str  # axes of the product whose right operands have intervals of their own ("s": query, key, value)
    similarity: Similarity
    ranking: Ranking | None
    width: int  # channels in a head, where there is a ranking
    queries: int  # of an image and head, all of them

    @property
    def bias(self) -> str:
        """The letters of the product that the right operand alone has: those of a bias, where that is a weight."""
        left, right, out = self.letters
        return "".join(a for a in out if a in right and a not in left)


class Found(NamedTuple):
    """What the search of a product gives."""

    ratios: tuple[np.ndarray, np.ndarray]  # of the intervals to where they began, [] and [units]
    score: float  # of the objective, mean over images and units
    start: float  # where it began
    gain: float  # cov(quantised, float) / var(float): similarity does not see it
    rounds: int
    mean_error: np.ndarray | None  # [bias], of the quantised product, over images and rows


def form_of(
    pair: Pair, quantizers: tuple[Quantizer | None, Quantizer | None], objective: Objective, units: str
) -> Form:
    """The form of a pair; ``units`` are the letters of its right operand that are searched apart."""
    left, right = pair.left, pair.right
    scores = {left.role, right.role} == {"q", "k"}
    extent = dict(zip(left.letters, left.shape, strict=True))
    return Form(
        (left.letters, right.letters, left.out),
        (quantizers[0] and quantizers[0].form, quantizers[1] and quantizers[1].form),
        units,
        objective.similarity,
        objective.ranking if scores else None,
        math.prod(extent[a] for a in left.contracted) if scores else 1,
        extent["q"] if scores else 1,
    )


def search(
    form: Form,
    grid: Grid,
    chunks: Callable[[], Iterable[Chunk]],
    roles: tuple[str, str],
    states: tuple[State | None, State | None],
    weight: Float[Array, "..."] | None = None,
    bias: Float[Array, "..."] | None = None,
    correct: bool = False,
    mesh: Mesh | None = None,
) -> Found:
    """The intervals of most similar products, as parts of the ``scale`` of ``states`` (None: not searched).

    ``weight`` is the right operand where it is none of the chunks', ``bias`` what is added to the product. With
    ``correct`` the mean error of the quantised product is taken off after every round, and the scores of the next see
    it. An interval is given up only for a better one: scores never fall within a round. Each device of a ``mesh``
    scores a chunk of its own; scores are added up in the images' order.
    """
    weight, bias = everywhere(mesh, (weight, bias))
    sides = [side for side in (RIGHT, LEFT) if states[side] is not None]
    shape = _unit_shape(form, weight)
    ratios = [np.ones(()), np.ones(shape)]
    shift = jnp.zeros_like(bias) if bias is not None else None
    offset = bias

    def scored(side: int, ratios: list[np.ndarray], tried: np.ndarray) -> np.ndarray:
        """[candidate, units], mean over the images."""
        total, count = 0.0, 0
        fixed, every = jnp.asarray(ratios[1 - side], jnp.float32), jnp.asarray(tried, jnp.float32)
        for data, mask in _rounds(chunks, roles, weight, bias, offset, mesh):
            got = np.moveaxis(gathered(_scores(form, side, data, states, fixed, every)), 1, 0)[mask]
            total, count = added(total, got), count + len(got)
        return np.asarray(total) / count

    start = best = 0.0
    if sides and not grid.rounds:
        start = best = float(scored(sides[0], ratios, ratios[sides[0]][None]).mean())
    steps = np.linspace(grid.alpha, grid.beta, grid.steps)
    rounds, scored_at = 0, {}
    while sides and rounds < grid.rounds:
        rounds += 1
        before, was = best, [r.copy() for r in ratios]
        for side in sides:
            beside = ratios[1 - side].tobytes(), None if offset is None else np.asarray(offset).tobytes()
            if grid.anchor == "initial" and scored_at.get(side) == beside:
                continue  # the same candidates beside the same operand: the incumbent is the best of them
            scored_at[side] = beside
            around = ratios[side] if grid.anchor == "current" else np.ones_like(ratios[side])
            tried = np.concatenate([steps.reshape(-1, *[1] * around.ndim) * around, ratios[side][None]])
            got = scored(side, ratios, tried)
            if side == LEFT:
                got = got.reshape(len(tried), -1).mean(axis=1)
            if rounds == 1 and side == sides[0]:
                before = start = float(got[-1].mean())
            pick = got.argmax(axis=0)
            better = np.take_along_axis(got, pick[None], axis=0)[0] > got[-1] + NOISE  # equal: the incumbent stays
            ratios[side] = np.where(better, np.take_along_axis(tried, pick[None], axis=0)[0], ratios[side])
            best = float(np.where(better, got.max(axis=0), got[-1]).mean())
        if correct and bias is not None:
            shift = _mean_error(form, chunks, roles, states, ratios, weight, mesh)
            offset = bias - shift
        same = all((a == b).all() for a, b in zip(ratios, was, strict=True))
        if same or best - before < grid.tolerance:
            break
    if correct and bias is not None and not rounds:
        shift = _mean_error(form, chunks, roles, states, ratios, weight, mesh)
    gain = _gain_of(form, chunks, roles, states, ratios, weight, mesh)
    mean = np.asarray(shift) if correct and shift is not None else None
    return Found((ratios[0], ratios[1]), best, start, gain, rounds, mean)


def scaled(form: Form, side: int, state: State, ratio: Any) -> State:
    """The state with its intervals multiplied by a ratio: [] or, of the right operand, [units]."""
    ratio = jnp.asarray(ratio, jnp.float32)
    if side == RIGHT and form.units:
        quantizer = form.quantizers[RIGHT]
        assert quantizer is not None
        kept = axes.ordered(getattr(quantizer, "keep", ""), form.letters[RIGHT])
        ratio = axes.expand(ratio, axes.ordered(form.units, kept), kept)
    return {**state, "scale": state["scale"] * ratio}


def _unit_shape(form: Form, weight: Any) -> tuple[int, ...]:
    if not form.units:
        return ()
    extent = dict(zip(form.letters[RIGHT], weight.shape, strict=True))
    return tuple(extent[a] for a in form.letters[RIGHT] if a in form.units)


def _data(chunk: Mapping[str, Any], roles: tuple[str, str], weight: Any, bias: Any, offset: Any) -> dict[str, Any]:
    """What the compiled functions see of a chunk."""
    left, right = roles
    return {
        "left": chunk[left],
        "right": weight if weight is not None else chunk[right],
        "left^": chunk.get(f"{left}^"),
        "right^": chunk.get(f"{right}^"),
        "beside": chunk.get("p") if "p" not in roles else None,
        "bias": bias,
        "offset": offset,
    }


def _rounds(
    chunks: Callable[[], Iterable[Chunk]],
    roles: tuple[str, str],
    weight: Any,
    bias: Any,
    offset: Any,
    mesh: Mesh | None,
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """What the compiled functions see of the chunks, one for every device at a time, and which rows are images."""
    whole, found, unit = f"{roles[1]}^", iter(chunks()), 0
    while together := [*itertools.islice(found, parts(mesh))]:
        unit = unit or len(together[0][roles[0]])  # of all chunks but the last
        apart = [name for name in together[0] if weight is None or name != whole]  # a quantised weight has no images
        images = {name: np.concatenate([chunk[name] for chunk in together]) for name in apart}
        rows = None if mesh is None else unit * parts(mesh)
        laid, mask = split(mesh, images, rows)
        yield _data({**together[0], **laid}, roles, weight, bias, offset), mask


def _operand(form: Form, side: int, data: Mapping[str, Any], states: Any, ratio: Any) -> jax.Array:
    """The operand as the quantised product sees it: quantised with its interval, as recorded, or float."""
    name = ("left", "right")[side]
    quantizer, state = form.quantizers[side], states[side]
    if quantizer is None or state is None:
        return data[f"{name}^"] if data[f"{name}^"] is not None else data[name]
    return quantizer.apply(scaled(form, side, state, ratio), data[name], form.letters[side])


def _product(form: Form, left: jax.Array, right: jax.Array, bias: Any) -> jax.Array:
    y = jnp.einsum(f"{form.letters[0]},{form.letters[1]}->{form.letters[2]}", left, right)
    return y if bias is None else y + axes.expand(bias, form.bias, form.letters[2])


@partial(jax.jit, static_argnums=(0, 1))
def _scores(
    form: Form, side: int, data: Mapping[str, Any], states: Any, fixed: jax.Array, tried: Float[Array, "c ..."]
) -> Float[Array, "c b ..."]:
    """The objective of every candidate of one side, image and unit; the other side is quantised at its ratio."""
    out = form.letters[2]
    over = tuple(i for i, a in enumerate(out) if a not in "b" + form.units)
    reference = _product(form, data["left"], data["right"], data["bias"])
    other = _operand(form, 1 - side, data, states, fixed)

    def one(ratio: jax.Array) -> jax.Array:
        mine = _operand(form, side, data, states, ratio)
        left, right = (mine, other) if side == LEFT else (other, mine)
        got = _product(form, left, right, data["offset"])
        score = similarity(reference, got, over, form.similarity)
        if form.ranking is None:
            return score
        return score - form.ranking.gamma * _ranked(form, form.ranking, reference, got, data["beside"])

    return jax.lax.map(one, tried)


def _ranked(form: Form, ranking: Ranking, reference: jax.Array, got: jax.Array, beside: Any) -> Float[Array, " b"]:
    """The ranking loss of every image: mean over heads, and over the pairs or (``sum``) all of them."""
    axis = form.letters[2].index("q")
    count = reference.shape[axis] if ranking.rows is None else min(ranking.rows, reference.shape[axis])
    places = np.arange(count) * reference.shape[axis] // count
    reference, got = (jnp.take(x, places, axis=axis) for x in (reference, got))
    if ranking.at == "softmax":
        # what the model adds to the scores (Swin's positions and masks) stands between them and the map
        p = jnp.take(beside, places, axis=axis)
        got = jax.nn.softmax(got + jnp.where(p > 0, jnp.log(jnp.maximum(p, 1e-38)) - reference, -1e9), axis=-1)
        reference = p
    elif ranking.at == "scores":
        reference, got = (x * math.sqrt(form.width) for x in (reference, got))
    loss = ranking_loss(reference, got, ranking.theta)
    keys = reference.shape[-1]
    each = loss.reshape(loss.shape[0], -1).mean(axis=1)
    return each * form.queries if ranking.pairs == "sum" else each / max(keys * (keys - 1) / 2, 1)


def _mean_error(
    form: Form, chunks: Any, roles: Any, states: Any, ratios: Any, weight: Any, mesh: Mesh | None
) -> jax.Array:
    """[bias]: mean over images and rows of the quantised product less the product."""
    total, count = 0.0, 0
    for data, mask in _rounds(chunks, roles, weight, None, None, mesh):
        total = added(total, gathered(_errors(form, data, states, *_device(ratios)))[mask])
        count += int(mask.sum())
    return jnp.asarray(total / count, jnp.float32)


@partial(jax.jit, static_argnums=0)
def _errors(form: Form, data: Mapping[str, Any], states: Any, left: jax.Array, right: jax.Array) -> jax.Array:
    """[b bias]: mean over the rows of each image."""
    reference, got = _both(form, data, states, left, right)
    out = form.letters[2]
    return (got - reference).mean(axis=tuple(i for i, a in enumerate(out) if a != "b" and a not in form.bias))


def _gain_of(form: Form, chunks: Any, roles: Any, states: Any, ratios: Any, weight: Any, mesh: Mesh | None) -> float:
    found = [
        np.stack(gathered(_gain_sums(form, data, states, *_device(ratios))), axis=1)[mask]
        for data, mask in _rounds(chunks, roles, weight, None, None, mesh)
    ]
    power, product = (math.fsum(column) for column in np.concatenate(found).T)
    return float(product / power) if power > 0 else 1.0


@partial(jax.jit, static_argnums=0)
def _gain_sums(form: Form, data: Mapping[str, Any], states: Any, left: jax.Array, right: jax.Array) -> Any:
    """Of each image [b] the power of the product, and what its quantised self has of it."""
    reference, got = _both(form, data, states, left, right)
    over = tuple(i for i, a in enumerate(form.letters[2]) if a != "b")
    reference = reference - reference.mean(axis=over, keepdims=True)
    return jnp.square(reference).sum(axis=over), (reference * (got - got.mean(axis=over, keepdims=True))).sum(axis=over)


def _both(form: Form, data: Any, states: Any, left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The product and the quantised product, without bias."""
    reference = _product(form, data["left"], data["right"], None)
    quantised = (_operand(form, LEFT, data, states, left), _operand(form, RIGHT, data, states, right))
    return reference, _product(form, *quantised, None)


def _device(ratios: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(ratios[0], jnp.float32), jnp.asarray(ratios[1], jnp.float32)
