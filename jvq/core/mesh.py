"""Many devices: where arrays lie. Images lie in parts along the axis ``data``, wide weights in parts along ``model``.

A *unit* is the images that one device is given at a time. A round is one unit for each device; a unit has the same
size whatever their number, so that every device runs the program that a single one would run, and what is computed of
an image has the same bits. What is said of single images is brought together in their order; what is summed over images
is summed on the host, in that order (:func:`added`): no sum depends on how the images were divided.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from jvq.core.errors import nearest
from jvq.core.recipe import path_of

DATA, MODEL = "data", "model"
PLACES = {".": None, "m": MODEL}  #: what a rule says of an axis: whole on every device, or in parts along ``model``

Rules = Sequence[tuple[str, str]]
"""Ordered rules (regular expression over ``block03/mlp/fc1/kernel``, a letter for each axis: ``.m``); the last match
wins, and what none matches is whole on every device."""


class Split(NamedTuple):
    """Arrays whose first axis lies in parts on the devices, and which of its rows are images: the rest are zeros."""

    arrays: Any
    mask: np.ndarray  # bool [rows]


class Round(NamedTuple):
    """What the devices are given at a time: a unit of images each."""

    images: jax.Array  # [b y x c]
    mask: np.ndarray  # bool [b]: False behind the last image
    first: int  # number of the first image


def mesh_of(data: int | None = None, model: int = 1) -> Mesh:
    """A mesh [data model] of the first ``data * model`` devices; without ``data`` of all that there are.

    Raises ``ValueError`` where there are fewer, or ``model`` does not divide them.
    """
    devices = jax.devices()
    for name, value in (("data", data), ("model", model)):
        if value is not None and value < 1:
            raise ValueError(f"mesh.{name}: got {value}, must be at least 1")
    if data is None and len(devices) % model:
        raise ValueError(f"mesh.model: got {model}, which does not divide the {len(devices)} devices that there are")
    data = len(devices) // model if data is None else data
    if data * model > len(devices):
        there = f"there are {len(devices)} ({devices[0].platform})"
        raise ValueError(f"mesh: data={data} times model={model} are {data * model} devices, {there}")
    auto = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=auto, devices=devices[: data * model])


def parts(mesh: Mesh | None) -> int:
    """Into how many parts images are split."""
    return 1 if mesh is None else mesh.shape[DATA]


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """The tree with every array whole on all devices; what lies on this mesh already stays as it lies."""
    if mesh is None:
        return tree

    def put(x: Any) -> Any:
        return x if _mesh_of(x) == mesh else _laid(x, NamedSharding(mesh, P()))

    return jax.tree.map(put, tree)


def split(mesh: Mesh | None, tree: Any, rows: int | None = None) -> Split:
    """The arrays [b ...] of a tree, all of one length, filled up with zeros to ``rows`` and in parts on the devices.

    Without ``rows`` to the least number that can be divided. Without a mesh they are on one device as they are.
    """
    count = len(jax.tree.leaves(tree)[0])
    if mesh is None:
        return Split(jax.tree.map(jnp.asarray, tree), np.ones(count, bool))
    rows = -(-count // parts(mesh)) * parts(mesh) if rows is None else rows
    assert count <= rows
    assert rows % parts(mesh) == 0

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        filled = x if len(x) == rows else np.concatenate([x, np.zeros((rows - count, *x.shape[1:]), x.dtype)])
        return _laid(filled, NamedSharding(mesh, P(DATA)))

    return Split(jax.tree.map(put, tree), np.arange(rows) < count)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The images [n y x c] in order, ``unit`` of them at a time for every device; the last round is filled up."""

    mesh: Mesh | None
    images: np.ndarray
    unit: int

    @property
    def step(self) -> int:
        return max(1, min(self.unit, len(self.images))) * parts(self.mesh)

    def __len__(self) -> int:
        return -(-len(self.images) // self.step)

    def __iter__(self) -> Iterator[Round]:
        for first in range(0, len(self.images), self.step):
            some = self.images[first : first + self.step]
            yield Round(*split(self.mesh, some, None if self.mesh is None else self.step), first)


def own_rows(mesh: Mesh | None, count: int) -> np.ndarray:
    """Which of ``count`` rows, split as :func:`split` splits them, lie on devices of this process: bool [count]."""
    if mesh is None or not mesh.is_multi_process:
        return np.ones(count, bool)
    rows = -(-count // parts(mesh)) * parts(mesh)
    mine = np.zeros(rows, bool)
    for index in NamedSharding(mesh, P(DATA)).addressable_devices_indices_map((rows,)).values():
        mine[index] = True
    return mine[:count]


def told_apart(mesh: Mesh | None) -> bool:
    """Whether a process is not given all images, so that what is said of them has to be brought together.

    The same in all processes. Where ``model`` goes over several, these are given the same images.
    """
    if mesh is None or not mesh.is_multi_process:
        return False
    processes = {d.process_index for d in mesh.devices.flat}
    return any({d.process_index for d in part.flat} != processes for part in mesh.devices)


def local(tree: Any) -> Any:
    """The tree with what lies on devices of several processes whole on one of this process's; the rest as it lies."""

    def put(x: Any) -> Any:
        there = not isinstance(x, jax.Array) or x.is_fully_addressable
        return x if there else jnp.asarray(gathered(x))

    return jax.tree.map(put, tree)


def own_copies(tree: Any) -> Any:
    """The same, but what lies in parts stays in parts: no process may have room for all of them whole."""

    def put(x: Any) -> Any:
        return local(x) if isinstance(x, jax.Array) and x.is_fully_replicated else x

    return jax.tree.map(put, tree)


def gathered(tree: Any) -> Any:
    """The tree with every array whole on the host, as numpy has it.

    One that lies in parts on devices of several processes is exchanged: all have to ask for it, at the same place.
    """

    def here(x: Any) -> Any:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(x, tiled=True)
        return x

    return jax.device_get(jax.tree.map(here, tree))


def single(tree: Any) -> Any:
    """The tree with every array on one device: what is computed of it there has no parts to be added up."""

    def put(x: Any) -> Any:
        several = isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
        return jnp.asarray(gathered(x)) if several else x

    return jax.tree.map(put, tree)


def lying_as(tree: Any, like: Any) -> Any:
    """The tree with every array where that of ``like`` lies, if that lies in parts: what was read lies whole."""

    def put(x: Any, y: Any) -> Any:
        whole = not isinstance(y, jax.Array) or y.is_fully_replicated
        return x if whole or (isinstance(x, jax.Array) and x.sharding == y.sharding) else _laid(x, y.sharding)

    return jax.tree.map(put, tree, like)


def added(total: Any, rows: Any) -> Any:
    """``total`` plus ``rows`` [b ...], one after the other, float64: the same sum wherever the rows were divided."""
    for row in np.asarray(rows, np.float64):
        total = total + row
    return total


def placed(params: Any, mesh: Mesh, rules: Rules = ()) -> Any:
    """The parameters on the devices: in parts along ``model`` where a rule says so, else whole on each.

    Raises ``ValueError`` for a rule that matches no parameter, has not one letter an axis, or asks for parts that
    would not be equal.
    """
    leaves, form = jax.tree_util.tree_flatten_with_path(params)
    names = ["/".join(path_of(path)) for path, _ in leaves]
    specs = {name: P() for name in names}
    shapes = {name: np.shape(x) for name, (_, x) in zip(names, leaves, strict=True)}
    for pattern, letters in rules:
        where = f"mesh rule '{pattern}={letters}'"
        found = [name for name in names if _compiled(pattern, where).fullmatch(name)]
        if not found:
            raise ValueError(f"{where} matches no parameter{nearest(pattern, names)}")
        for name in found:
            specs[name] = _spec(letters, name, shapes[name], mesh.shape[MODEL], where)
    laid = [_laid(x, NamedSharding(mesh, specs[name])) for name, (_, x) in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(form, laid)


def rules_of(text: str) -> list[tuple[str, str]]:
    """``"block.*/mlp/fc1/kernel=.m,block.*/mlp/fc1/bias=m"`` as rules. ``ValueError`` for what does not read so."""
    found = []
    for rule in filter(None, (part.strip() for part in text.split(","))):
        pattern, equals, letters = rule.rpartition("=")
        if not equals or not pattern or not letters:
            raise ValueError(f"mesh.rules: '{rule}' must read 'pattern=letters', a letter for each axis: '.m'")
        found.append((pattern, letters))
    return found


def _compiled(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{where}: not a regular expression: {error}") from None


def _spec(letters: str, name: str, shape: tuple[int, ...], count: int, where: str) -> P:
    unknown = set(letters) - set(PLACES)
    if unknown:
        raise ValueError(f"{where}: '{min(unknown)}' must be '.' (whole) or 'm' (in parts along model)")
    if len(letters) != len(shape) or letters.count("m") > 1:
        raise ValueError(f"{where}: {name} has shape {shape}: it needs {len(shape)} letters, at most one of them 'm'")
    for letter, size in zip(letters, shape, strict=True):
        if letter == "m" and size % count:
            raise ValueError(f"{where}: {name} has shape {shape}: {size} cannot be split into {count} equal parts")
    return P(*(PLACES[letter] for letter in letters))


def _mesh_of(x: Any) -> Mesh | None:
    """The mesh on which an array lies; None for what lies on none."""
    return x.sharding.mesh if isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) else None  # type: ignore[return-value]


def _laid(x: Any, sharding: Sharding) -> jax.Array:
    """The array as a global one: of what this process has whole, it puts down what its own devices hold."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(x)
    held = np.asarray(x)
    return jax.make_array_from_callback(held.shape, sharding, lambda index: held[index])


def _same(x: jax.Array) -> jax.Array:
    return x
