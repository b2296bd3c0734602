"""Looking at a run: what its figures show, computed from a few images, and the figures with their captions."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvq import evaluate, evaluate_maps, evaluate_order
from jvq.core import axes
from jvq.core.calibrate import Fitted, leaf
from jvq.core.dot import float_dot, packed_dot, quantized, recording
from jvq.core.mesh import gathered, single
from jvq.core.quantizer import Codes, Quantizer, State
from jvq.core.recipe import Forward, Sites, forms
from jvq.data import Loader
from jvq.models.weights import Checkpoint
from jvq.opening import first
from jvq.quantizers import Ternary
from jvq.report.figures import attention, damaged, errors, front, groups, ranges, weights
from jvq.rows import Row, Subject, fitted_checkpoint

FOLDER = "figures"  #: of the workdir
IMAGES = 16  #: the first evaluated ones: on them ranges and groups are looked at
ERROR_IMAGES = 64  #: the first evaluated ones: on them the baseline's errors are measured, as the method's were
MAPS = 2**25  #: values of all attention maps of the images that attention is looked at on, at most
ATTENDED = 8  #: images for attention, at most
ROWS = 16  #: of a map, evenly spaced: on them the order is compared
CHANNELS = "dhesotg"  #: axes whose indices are channels; the others are images, windows, tokens

Fits = Mapping[str, tuple[Row, Fitted]]
Forms = tuple[tuple[str, Quantizer], ...]
Figure = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A row of a table as it is looked at."""

    name: str
    row: Row
    fit: Fitted
    subject: Subject  # what it quantises, float
    own: Checkpoint  # with the parameters that fitting changed

    @classmethod
    def of(cls, fits: Fits, name: str, checkpoint: Checkpoint, known: Sites) -> "Seen":
        row, fit = fits[name]
        subject = row.subject(checkpoint, known)
        return cls(name, row, fit, subject, fitted_checkpoint(subject.checkpoint, fit))

    @property
    def known(self) -> Sites:
        return self.subject.known

    @property
    def activations(self) -> list[str]:
        """The operands with a quantiser that images make."""
        return [a for a in self.row.plan if self.known[a].batched]

    @property
    def trained(self) -> bool:
        return getattr(self.row.method, "TRAINS", False)


def figures(
    workdir: Path,
    fits: Fits,
    name: str,
    checkpoint: Checkpoint,
    known: Sites,
    loader: Loader,
    outputs: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any]],
    table: Sequence[Mapping[str, Any]],
    main: str | None = None,
) -> list[Figure]:
    """The report's ``figures``, drawn into ``workdir``: each file with its title, caption and group.

    ``found`` are the sites of the row ``name``, ``outputs`` what the float model and it gave for the loader's images,
    ``table`` the report's rows, in which it is called ``main`` (as ``name``, unless said).
    """
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    seen = Seen.of(fits, name, checkpoint, known)
    base = Seen.of(fits, "minmax", checkpoint, known) if "minmax" in fits and name != "minmax" else None
    images = first(loader, ERROR_IMAGES)
    error = {a: site["relative_error"] for a, site in found.items()}
    return [
        *_damage(folder, seen, loader, outputs),
        *_front(folder, table, main or name),
        *_ranges(folder, seen, base, error, images[:IMAGES]),
        *_weights(folder, seen, error),
        *_attention(folder, seen, checkpoint, known, images),
        *_errors(folder, seen, base, error, images),
    ]


def _made(path: Path, title: str, caption: str, group: str) -> Figure:
    return {"file": f"{FOLDER}/{path.name}", "title": title, "caption": caption, "group": group}


def _front(folder: Path, table: Sequence[Mapping[str, Any]], name: str) -> Iterator[Figure]:
    data = front.front_of(table, name)
    if data is not None:
        front.draw(path := folder / "front.svg", data)
        yield _made(path, "What it cost", front.caption(data), "front")


def _errors(
    folder: Path, seen: Seen, base: Seen | None, error: Mapping[str, float], images: np.ndarray
) -> Iterator[Figure]:
    """The method's errors, and those of one range a tensor on the same operands: the float model's."""
    plain: dict[str, float] = {}
    if base is not None:
        letters = {a: o.letters for a, o in base.known.items()}
        model = base.subject.checkpoint
        plain = evaluate.site_errors(model.model.forward, model.params, base.row.plan, base.fit.qstate, letters, images)
    if error:
        parameters = frozenset(a for a in error if not seen.known[a].batched)
        data = errors.Errors(seen.name, error, parameters, base.name if base else "", plain)
        errors.draw(path := folder / "errors.svg", data)
        yield _made(path, "Error of every site", errors.caption(data), "errors")


def _ranges(
    folder: Path, seen: Seen, base: Seen | None, error: Mapping[str, float], images: np.ndarray
) -> Iterator[Figure]:
    """Every operand's spread of ranges; of two or three telling ones the channels, and their groups."""
    if not seen.activations:
        return
    bounds = extremes(seen, images)
    ratio = {a: ranges.outlying(ranges.widths(bounds[a])) for a in seen.activations}
    spreads = ranges.Spreads(ratio, len(images))
    ranges.draw_spreads(path := folder / "spreads.svg", spreads)
    yield _made(path, "Channels that stand out", ranges.caption_spreads(spreads), "ranges")
    chosen = telling(seen, error, ratio)
    values = operands(seen, chosen, images)
    for i, (address, why) in enumerate(chosen.items()):
        data = channels(seen, base, address, values[address])
        ranges.draw(path := folder / f"ranges_{i + 1}.svg", data)
        yield _made(path, f"Ranges of {address}", ranges.caption(data, why), "ranges")
    for i, address in enumerate(a for a in chosen if hasattr(seen.row.plan[a], "assignment")):
        made = choices(seen, address, values[address])
        groups.draw(path := folder / f"groups_{i + 1}.svg", made)
        yield _made(path, f"Groups of {address} from image to image", groups.caption(made), "groups")


def telling(seen: Seen, error: Mapping[str, float], ratio: Mapping[str, float]) -> dict[str, str]:
    """The operands that are worth a look, with why: of largest error, of largest spread, and the worst in groups."""
    inputs = [a for a in seen.activations if seen.known[a].role != "p"]
    grouped = [a for a in seen.activations if hasattr(seen.row.plan[a], "assignment")]
    chosen: dict[str, str] = {}

    def take(some: Sequence[str], measure: Mapping[str, float], why: str) -> None:
        if some:
            chosen[max(some, key=lambda a: measure[a])] = why

    take(inputs, error, "The activation with the largest error")
    rest = [a for a in inputs if a not in chosen]
    take(rest, ratio, "Of the others the one with the largest spread of channels")
    if not set(grouped) & set(chosen):
        take([a for a in grouped if a in inputs], error, "The activation in groups with the largest error")
    take([a for a in grouped if a not in inputs], error, "The attention map with the largest error")
    return chosen


def along(seen: Seen, address: str) -> str:
    """The axes whose indices are looked at apart: those of the groups; else rows of attention maps, and channels."""
    operand, quantizer = seen.known[address], seen.row.plan[address]
    if hasattr(quantizer, "assignment"):
        return quantizer.along  # type: ignore[attr]
    if operand.role == "p":
        return axes.ordered("hq", operand.letters)
    return axes.ordered(CHANNELS, operand.letters)


def extremes(seen: Seen, images: np.ndarray) -> dict[str, np.ndarray]:
    """By address the least and the greatest value of every channel in every image, [2 b c]."""
    kinds = tuple((a, seen.known[a].letters, along(seen, a)) for a in seen.activations)
    return gathered(_extremes(*_running(seen), kinds, *_arrays(seen), jnp.asarray(images)))


def operands(seen: Seen, addresses: Iterable[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """The operands themselves, [b ...]: of the float model, or of one that was trained as it runs quantised."""
    return gathered(_recorded(*_running(seen), tuple(addresses), *_arrays(seen), jnp.asarray(images)))


def _running(seen: Seen) -> tuple[Forward, Forms]:
    return seen.own.model.forward, forms(seen.row.plan) if seen.trained else ()


def _arrays(seen: Seen) -> tuple[Any, dict[str, State]]:
    """Of what was trained its own parameters; else the float ones, on which errors are measured too."""
    return (seen.own.params, dict(seen.fit.qstate)) if seen.trained else (seen.subject.checkpoint.params, {})


@partial(jax.jit, static_argnums=range(3))
def _extremes(
    forward: Forward, plan: Forms, kinds: tuple[tuple[str, str, str], ...], params: Any, qstate: Any, x: jax.Array
) -> dict[str, jax.Array]:
    tape = _recorded(forward, plan, tuple(a for a, _, _ in kinds), params, qstate, x)

    def ends(y: jax.Array, letters: str, kept: str) -> jax.Array:
        over = axes.others("b" + kept, letters)
        return jnp.stack([y.min(axis=over), y.max(axis=over)]).reshape(2, len(y), -1)

    return {a: ends(tape[a], letters, kept) for a, letters, kept in kinds}


@partial(jax.jit, static_argnums=range(3))
def _recorded(
    forward: Forward, plan: Forms, addresses: tuple[str, ...], params: Any, qstate: Any, x: jax.Array
) -> dict[str, jax.Array]:
    tape: dict[str, jax.Array] = {}
    inner = packed_dot(quantized(dict(plan), qstate) if plan else float_dot)
    forward(params, x, recording(tape, addresses.__contains__, inner))
    return tape


def channels(seen: Seen, base: Seen | None, address: str, values: np.ndarray) -> ranges.Channels:
    """What is drawn of an operand's channels."""
    letters, kept = seen.known[address].letters, along(seen, address)
    bounds, inner = ranges.measured(ranges.apart(values, letters, kept))
    what = "rows" if seen.known[address].role == "p" else "channels"
    plain, named = None, ""
    if base is not None and address in base.row.plan and base.known[address].letters == letters:
        plain, named = covered(base, address, values, kept), base.name
    groups_of, share = None, None
    if hasattr(seen.row.plan[address], "assignment"):
        made = choices(seen, address, values)
        groups_of = _intervals(seen.fit.qstate[address])
        share = np.bincount(made.group.reshape(-1), minlength=groups_of.shape[1]) / made.group.size
    mine, steps = covered(seen, address, values, kept), code_count(seen.row.plan[address]) - 1
    return ranges.Channels(address, what, bounds, inner, seen.name, mine, steps, named, plain, groups_of, share)


def covered(seen: Seen, address: str, values: np.ndarray, kept: str) -> np.ndarray:
    """The least and the greatest value that the operand's quantiser can give, by image and channel, [2 b c]."""
    letters, quantizer = seen.known[address].letters, seen.row.plan[address]
    codes = quantizer.encode(seen.fit.qstate[address], jnp.asarray(values), letters)
    decoded = decoded_all(quantizer, codes, ends=True)  # [k ...]
    over = axes.others("b" + kept, letters)
    shape = tuple(values.shape[letters.index(a)] for a in ("b", *axes.ordered(kept, letters)))
    low, high = decoded.min(axis=0).min(axis=over), decoded.max(axis=0).max(axis=over)
    return np.stack([np.broadcast_to(end, shape).reshape(len(values), -1) for end in (low, high)])


def code_count(quantizer: Quantizer) -> int:
    """How many codes there are."""
    return 3 if isinstance(quantizer, Ternary) else 2**quantizer.bits


def decoded_all(quantizer: Quantizer, codes: Codes, ends: bool = False) -> np.ndarray:
    """What each code stands for, or the first and the last, [k ...] with the scale's axes, of length 1 where shared."""
    some = np.arange(code_count(quantizer), dtype=np.int32)[:: code_count(quantizer) - 1 if ends else 1]
    scale = jnp.asarray(codes.scale)[None]
    zero, offset = (None if x is None else jnp.asarray(x)[None] for x in (codes.zero, codes.offset))
    shape = jnp.broadcast_shapes(*(x.shape[1:] for x in (scale, zero, offset) if x is not None))
    every = jnp.broadcast_to(some.reshape(-1, *[1] * len(shape)), (len(some), *shape))
    return np.asarray(Codes(every, scale, zero, offset).decode())


def _intervals(state: State) -> np.ndarray:
    """What each group's quantiser covers, [2 g]."""
    scale, zero, levels = (np.asarray(state[n]) for n in ("scale", "zero", "levels"))
    used = np.isfinite(np.asarray(state["lower"]))
    return np.stack([scale * (0 - zero), scale * (levels - zero)])[:, used]


def choices(seen: Seen, address: str, values: np.ndarray) -> groups.Choices:
    """Which groups the operand's channels choose."""
    letters, quantizer, state = seen.known[address].letters, seen.row.plan[address], seen.fit.qstate[address]
    group = np.asarray(quantizer.assignment(state, jnp.asarray(values), letters))  # type: ignore[attr]
    low, high = _intervals(state)
    what = "rows" if seen.known[address].role == "p" else "channels"
    return groups.Choices(address, what, group.reshape(len(values), -1), high - low)


def _weights(folder: Path, seen: Seen, error: Mapping[str, float]) -> Iterator[Figure]:
    """Three layers of the usual width: of largest, median and smallest error."""
    every = [a for a in seen.row.plan if seen.known[a].path is not None]
    if not every:
        return
    bits = [seen.row.plan[a].bits for a in every]
    usual = max(dict.fromkeys(bits), key=bits.count)
    mine = sorted((a for a in every if seen.row.plan[a].bits == usual), key=lambda a: -error[a])
    places = {0: "largest error", len(mine) // 2: "median error", len(mine) - 1: "smallest error"}
    data = [layer(seen, mine[i], why, error[mine[i]]) for i, why in places.items()]
    weights.draw(path := folder / "weights.svg", data)
    yield _made(path, "Weights and their bins", weights.caption(data), "weights")


def layer(seen: Seen, address: str, why: str, error: float) -> weights.Layer:
    """What is drawn of a weight: of its channels, if they have scales of their own, the one of largest error."""
    operand, quantizer = seen.known[address], seen.row.plan[address]
    w = jnp.asarray(single(leaf(seen.own.params, operand)))
    codes = quantizer.encode(seen.fit.qstate[address], w, operand.letters)
    decoded = decoded_all(quantizer, codes)
    kept = [i for i, n in enumerate(codes.scale.shape) if n > 1]
    over = tuple(i for i in range(w.ndim) if i not in kept)
    x, y = np.asarray(w), np.asarray(codes.decode())
    off = np.square(x - y).sum(axis=over) / np.maximum(np.square(x).sum(axis=over), 1e-30)
    place = np.unravel_index(off.argmax(), off.shape)
    at = dict(zip(kept, (int(i) for i in place), strict=True))
    values = x[tuple(at.get(i, slice(None)) for i in range(x.ndim))].reshape(-1)
    bins = decoded[(slice(None), *(at.get(i, 0) for i in range(x.ndim)))]
    channel = " ".join(f"{operand.letters[i]} {at[i]}" for i in kept) or "all"
    counts = np.bincount(np.asarray(codes.codes).reshape(-1), minlength=code_count(quantizer))
    return weights.Layer(address, why, channel, values, bins, counts, error)


def _attention(folder: Path, seen: Seen, checkpoint: Checkpoint, known: Sites, images: np.ndarray) -> Iterator[Figure]:
    """Every head's agreement, and the maps of the worst and the best."""
    addresses = [a for a, o in known.items() if o.role == "p" and "h" in o.letters]
    if not addresses or not seen.row.plan:
        return
    size = sum(int(np.prod(known[a].shape)) for a in addresses)
    some = images[: max(1, min(ATTENDED, MAPS // size))]
    plain = evaluate_order.attention_maps((checkpoint.model.forward, checkpoint.params), {}, {}, addresses, some)
    model = seen.own.model.forward, seen.own.params
    got = evaluate_order.attention_maps(model, seen.row.plan, seen.fit.qstate, addresses, some)
    tau = {a: agreement(plain[a], got[a]) for a in addresses}
    means = {a: t.mean(axis=0) for a, t in tau.items()}
    where = [(float(t), a, h) for a, taus in means.items() for h, t in enumerate(taus)]
    shown = []
    for _, address, head in dict.fromkeys((min(where), max(where))):
        image = int(tau[address][:, head].argmin())
        pictures = [m[address][image].reshape(-1, *m[address].shape[-3:])[0, head] for m in (plain, got)]
        behind = got.get(address + evaluate_order.SEEN)
        pictures.append(None if behind is None else behind[image].reshape(-1, *behind.shape[-3:])[0, head])
        shown.append(attention.Head(address, head, image, float(tau[address][image, head]), *pictures))
    data = attention.Attention(seen.name, means, len(some), shown)
    attention.draw(path := folder / "attention.svg", data)
    yield _made(path, "Attention, head by head", attention.caption(data), "attention")


def agreement(plain: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Kendall's tau of every image and head [b h], mean over rows and windows, of maps [b h q k] or [b m h q k]."""
    places = np.arange(min(ROWS, plain.shape[-2])) * plain.shape[-2] // min(ROWS, plain.shape[-2])
    pair = [jnp.asarray(np.take(m, places, axis=-2)) for m in (plain, got)]
    each = [np.asarray(_kendall(a, b)) for a, b in zip(*pair, strict=True)]
    return np.stack([t.mean(axis=-1).reshape(-1, t.shape[-2]).mean(axis=0) for t in each])


_kendall = jax.jit(evaluate_order.kendall)


def _damage(folder: Path, seen: Seen, loader: Loader, outputs: Mapping[str, Any]) -> Iterator[Figure]:
    """The images that differ most, with predictions or maps."""
    plain, got = outputs["float"], outputs[seen.name]
    maps = isinstance(got, evaluate_maps.Predictions)
    path = folder / "damaged.svg"
    if maps:
        alike = evaluate_maps.correlations(plain.maps, got.maps)
        places = np.argsort(alike, kind="stable")[: damaged.SHOWN]
        pictures = shown_images(loader, places)
        parts = list(plain.maps[places]), list(got.maps[places])
        data = damaged.DamagedMaps(seen.name, pictures, places, *parts, alike[places], float(alike.mean()))
        damaged.draw_maps(path, data)
        caption = damaged.caption_maps(data)
    else:
        flipped = plain.logits.argmax(axis=1) != got.logits.argmax(axis=1)
        kl = evaluate.divergences(plain, got)
        places = damaged.order(flipped, kl, damaged.SHOWN)
        pictures = shown_images(loader, places)
        p, q = (damaged.probabilities(x.logits[places]) for x in (plain, got))
        labels, classes = got.labels[places], loader.source.classes
        counts = int(flipped.sum()), len(flipped)
        data = damaged.Damaged(seen.name, pictures, places, labels, p, q, kl[places], classes, *counts)
        damaged.draw(path, data)
        caption = damaged.caption(data)
    yield _made(path, "The most damaged images", caption, "images")


def shown_images(loader: Loader, places: np.ndarray) -> list[np.ndarray]:
    """The images at these places among the evaluated ones that could be read, values 0..1, [y x c]."""
    made, rows, found, held = loader.preprocess, loader.indices, {}, 0
    if not loader.skipped:  # else another look at all says which those are
        rows, places = rows[places], np.arange(len(places))
    for batch in Loader(loader.source, made, min(loader.batch_size, len(rows)), rows):
        good = batch["image"][batch["mask"]]
        found |= {int(i): good[i - held].copy() for i in places if held <= i < held + len(good)}
        held += len(good)
    std, mean = np.asarray(made.std, np.float32), np.asarray(made.mean, np.float32)
    return [found[int(i)] * std + mean for i in places]
