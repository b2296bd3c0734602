"""Parameter trees: a qwix tree as ours with Packed leaves, and back."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jvq.core.errors import nearest
from jvq.core.packed import Encoded, Packed, is_encoded
from jvq.export.contents import leaf_name
from jvq.export.qwix.arrays import integers, packed_of, qarray_of
from jvq.export.qwix.naming import Rename, check_rename, theirs
from jvq.export.qwix.package import qwix

SHOWN = 3  #: misfits in an error
QARRAY = ({"qvalue", "scale"}, {"qvalue", "scale", "zero_point"})  #: a QArray as a dict


def from_qwix(tree: Any, like: Any, *, rename: Mapping[str, str] = {}) -> Any:
    """The tree of ``like`` (a model's parameters, or their shapes) with the values of ``tree``: QArrays as Packed.

    ``tree``: the parameters of a Flax Linen model, or an NNX state; WithAux wrappers and boxed values are opened, float
    leaves stay as they are. ``rename`` as in :func:`~jvq.export.qwix.rules.rules`. A Packed leaf of ``like`` says in
    what form its codes are packed. ``ValueError``: a leaf that lacks, is too much, or does not fit.
    """
    ours, there = _ours(like, rename), leaves(tree)
    lines = misfits({their: tuple(leaf.shape) for their, leaf in ours.values()}, there)
    if lines:
        shown = ", ".join(lines[:SHOWN]) + (f", ... {len(lines)} in all" if len(lines) > SHOWN else "")
        raise ValueError(f"qwix: the tree does not fit the model (- missing, + unexpected, ~ misshapen): {shown}")
    found = [_here(their, there[their], leaf) for their, leaf in ours.values()]
    return jax.tree.unflatten(jax.tree.structure(like, is_leaf=is_encoded), found)


def to_qwix(params: Any, *, like: Any = None, rename: Mapping[str, str] = {}) -> dict[str, Any]:
    """The parameters as nested dicts with a ``qwix.QArray`` for each Packed leaf; float leaves as they are.

    ``like``, if given, is the tree of a PTQ model of qwix, abstract or not: a leaf that is a WithAux there is one here,
    so that the model takes the result in the place of its own. ``ValueError``: a leaf that no QArray holds, or that
    does not fit ``like``.
    """
    there, out = None if like is None else leaves(like), {}
    for name, (their, leaf) in _ours(params, rename).items():
        if isinstance(leaf, Encoded):
            if not isinstance(leaf, Packed):
                raise ValueError(f"qwix: {name}: {type(leaf).__name__} are for our kernels; convert what freeze gives")
            leaf = _named(name, lambda leaf=leaf: qarray_of(leaf))
        _insert(out, their.split("/"), leaf if there is None else _wrapped(their, leaf, there))
    return out


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a qwix tree by path: arrays, QArrays and WithAux; a dict or state of a QArray's parts is one."""
    found: dict[str, Any] = {}

    def walk(node: Any, path: tuple[str, ...]) -> None:
        node = unboxed(node)
        if isinstance(node, Mapping) and set(node) == {"array"}:  # a WithAux in an NNX state
            node = unboxed(node["array"])
        if isinstance(node, Mapping) and set(node) in QARRAY:
            node = qwix().QArray(**{part: unboxed(node[part]) for part in node})
        if isinstance(node, Mapping | list | tuple):
            children = node.items() if isinstance(node, Mapping) else enumerate(node)
            for key, child in children:
                walk(child, (*path, str(key)))
        elif node is not None:
            found["/".join(path)] = node

    walk(tree, ())
    return found


def unboxed(x: Any) -> Any:
    """What an ``nnx.Variable`` or Linen's metadata (``nn.Partitioned``) holds; anything else as it is."""
    while True:
        if hasattr(x, "get_raw_value"):
            x = x.get_raw_value()
        elif hasattr(x, "replace_boxed"):
            x = x.value if hasattr(x, "value") else x.unbox()
        else:
            return x


def misfits(wanted: Mapping[str, tuple[int, ...]], there: Mapping[str, Any]) -> list[str]:
    """What of the leaves ``there`` does not fit the shapes ``wanted``, a line each, with the nearest path."""
    lines = [f"-{name}{nearest(name, [n for n in there if n not in wanted])}" for name in wanted if name not in there]
    lines += [f"+{name}{nearest(name, [n for n in wanted if n not in there])}" for name in there if name not in wanted]
    for name, shape in wanted.items():
        got = tuple(opened(there[name]).shape) if name in there else shape
        if got != shape:
            lines.append(f"~{name} is {got}, the model has {shape}")
    return lines


def opened(leaf: Any) -> Any:
    """The array or QArray in a WithAux, a QArray's parts without boxes; other leaves as they are."""
    if hasattr(leaf, "how"):
        leaf = unboxed(leaf.array)
    if not hasattr(leaf, "qvalue"):
        return leaf
    return leaf.replace(**{part: unboxed(getattr(leaf, part)) for part in ("qvalue", "scale", "zero_point")})


def _ours(tree: Any, rename: Rename) -> dict[str, tuple[str, Any]]:
    """Our leaves by path, an encoded one whole, each with its path in the other model."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_encoded)
    ours = {leaf_name(path): leaf for path, leaf in found}
    check_rename(rename, list(ours))
    named = {name: (theirs(name, rename), leaf) for name, leaf in ours.items()}
    for their, n in Counter(their for their, _ in named.values()).items():
        if n > 1:
            raise ValueError(f"qwix: rename: {n} of our parameters would be '{their}'")
    return named


def _here(name: str, leaf: Any, like: Any) -> Any:
    """Their leaf as ours."""
    leaf = opened(leaf)
    if not hasattr(leaf, "qvalue"):
        return jnp.asarray(leaf)
    form = like if isinstance(like, Packed) else None
    return _named(name, lambda: packed_of(integers(leaf.qvalue, leaf.scale, leaf.zero_point, leaf.qtype), form))


def _wrapped(name: str, leaf: Any, there: Mapping[str, Any]) -> Any:
    """Our leaf in the WithAux that their model has there; as it is where it has none."""
    if name not in there:
        raise ValueError(f"qwix: the model of like has no parameter '{name}'{nearest(name, there)}")
    wrapper = there[name]
    if tuple(opened(wrapper).shape) != tuple(leaf.shape):
        raise ValueError(f"qwix: {name} is {tuple(leaf.shape)}, the model of like has {tuple(opened(wrapper).shape)}")
    if hasattr(wrapper, "how") != hasattr(leaf, "qvalue"):
        is_, has = ("packed", "a float") if hasattr(leaf, "qvalue") else ("float", "a quantised one")
        raise ValueError(f"qwix: {name} is {is_}, the model of like has {has} there: other rules?")
    return wrapper.replace(array=leaf) if hasattr(wrapper, "how") else leaf


def _insert(tree: dict[str, Any], path: Sequence[str], leaf: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def _named(name: str, made: Callable[[], Any]) -> Any:
    """What ``made()`` gives; its ``ValueError`` with the path in front."""
    try:
        return made()
    except ValueError as error:
        raise ValueError(f"qwix: {name}: {error}") from None
