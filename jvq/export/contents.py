"""What a packed file or folder holds: one header of JSON values and arrays by name, checked in one place.

The schema is in ``docs/packed_format.md``. A file and a folder differ only in where header and arrays lie.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jvq.core import reading
from jvq.core.errors import nearest
from jvq.core.packed import Packed
from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Sites, resolve, sites
from jvq.export import quantizer_text
from jvq.export.deployment import Deployment
from jvq.models import ARCHITECTURES, Model
from jvq.models.weights import bounds

FORMAT, VERSION = "jvq-packed", 1
HEADER = {  # every key, and what stands there
    "format": str,
    "version": int,
    "jvq": str,
    "model": dict,
    "packed": dict,
    "arrays": list,
    "quantizers": dict,
    "recipe": dict,
    "protocol": dict,
    "preprocess": dict,
    "notes": dict,
}
DTYPES = ("float32", "int32", "uint8")
SHOWN = 6  #: misfits, or differences, that an error names

Arrays = dict[str, np.ndarray]


class Contents(NamedTuple):
    """A header and the arrays that it lists, in its order."""

    header: dict[str, Any]
    arrays: Arrays

    @property
    def text(self) -> str:
        """The header as one line of JSON."""
        return json.dumps(self.header, separators=(",", ":"), allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 over the header's text, which has every name, dtype and shape, and then all bytes of the arrays."""
        found = hashlib.sha256(self.text.encode())
        for x in self.arrays.values():
            found.update(np.ascontiguousarray(x).data)
        return found.hexdigest()


# --- Out -------------------------------------------------------------------------------------------------------------


def contents(deployment: Deployment) -> Contents:
    """The contents that stand for a deployment. ``ValueError``: it could not be read back, and so is not written."""
    flat, packed, arrays = flattened(deployment.params), {}, {}
    for name, leaf in flat.items():
        if isinstance(leaf, Packed):
            packed[name] = [leaf.bits, list(leaf.shape)]
            arrays |= {f"{name}.{part}": x for part, x in _parts(leaf).items()}
        else:
            arrays[name] = np.asarray(leaf)
    for address, state in deployment.qstate.items():
        arrays |= {f"state/{address}/{name}": np.asarray(x) for name, x in state.items()}
    arrays = {name: arrays[name] for name in sorted(arrays)}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "jvq": _version(),
        "model": {
            "architecture": deployment.model.architecture,
            "spec": dataclasses.asdict(deployment.model.spec),
        },
        "packed": packed,
        "arrays": [[name, str(x.dtype), list(x.shape)] for name, x in arrays.items()],
        "quantizers": {address: quantizer_text.written(q) for address, q in deployment.plan.items()},
        "recipe": dict(deployment.recipe),
        "protocol": dict(deployment.protocol),
        "preprocess": dict(deployment.preprocess),
        "notes": dict(deployment.notes),
    }
    try:
        made = Contents(json.loads(json.dumps(header, allow_nan=False)), arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"packed: protocol, preprocess and notes must be JSON values: {error}") from None
    restored(made, "the deployment")
    return made


def _version() -> str:
    """jvq's, as installed."""
    try:
        return metadata.version("jvq")
    except metadata.PackageNotFoundError:
        return "unknown"


def _parts(leaf: Packed) -> Arrays:
    """A packed leaf's arrays; zero points in bit planes of as many bits as the greatest needs, where they can be."""
    found = {"planes": np.asarray(leaf.planes), "scale": np.asarray(leaf.scale)}
    if leaf.zero is None:
        return found
    zero = np.asarray(leaf.zero)
    if zero.dtype == np.int32 and zero.shape == leaf.scale.shape and zero.size and zero.min() >= 0:
        place = np.arange(max(int(zero.max()).bit_length(), 1))[:, None]
        digits = (zero.reshape(1, -1) >> place & 1).astype(np.uint8)
        zero = np.packbits(digits, axis=1, bitorder="little")
    return {**found, "zero": zero}


def _whole_zero(zero: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The zero points int32 out of :func:`_parts`' form."""
    if zero.dtype != np.uint8:
        return zero
    digits = np.unpackbits(zero, axis=1, count=scale.size, bitorder="little").astype(np.int32)
    return (digits << np.arange(len(zero), dtype=np.int32)[:, None]).sum(axis=0, dtype=np.int32).reshape(scale.shape)


# --- In --------------------------------------------------------------------------------------------------------------


def parsed(text: str | bytes, where: str) -> dict[str, Any]:
    """The header in a text. ``ValueError``: no JSON, another format, a newer schema, a key that lacks or is unknown."""
    header = reading.json_value(text, f"packed: the header of {where} is not JSON")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        got = header.get("format") if isinstance(header, dict) else header
        raise ValueError(f"packed: {where} is no packed model of jvq: its format is {got!r}, not '{FORMAT}'")
    version = header.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"packed: {where} has version {version!r}, which is no version")
    if version > VERSION:
        raise ValueError(f"packed: {where} has version {version}, this jvq reads up to {VERSION}: a newer jvq wrote it")
    for name, kind in HEADER.items():
        if name not in header:
            raise ValueError(f"packed: the header of {where} lacks '{name}'")
        if not isinstance(header[name], kind):
            raise ValueError(f"packed: the header of {where}: '{name}' must be a {kind.__name__} of JSON")
    for name in header:
        if name not in HEADER:
            raise ValueError(f"packed: the header of {where} has '{name}', which is unknown{nearest(name, HEADER)}")
    for entry in header["arrays"]:
        if not _listed(entry):
            raise ValueError(f"packed: the header of {where} lists the array {entry!r}, not [name, dtype, shape]")
    names = [name for name, _, _ in header["arrays"]]
    if names != sorted(set(names)):
        raise ValueError(f"packed: the header of {where}: its arrays are not in the order of their names, each once")
    return header


def _listed(entry: Any) -> bool:
    """Whether it reads [name, dtype, shape]."""
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and isinstance(entry[0], str)
        and entry[1] in DTYPES
        and _is_shape(entry[2])
    )


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(quantizer_text.fits(n, int) and n >= 0 for n in value)


def restored(found: Contents, where: str, model: Model | None = None) -> Deployment:
    """The deployment of the contents. ``ValueError`` with one line where they do not fit each other, or ``model``."""
    header, arrays = found
    try:
        own = _model(header["model"])
        if model is not None:
            _check_same(own, model)
        known = _sites(own.architecture, own.spec)
        plan = _plan(header["quantizers"], known)
        states = _states(plan, known)
        lines = misfits(header["packed"], arrays, own, states)
        if lines:
            shown = ", ".join(lines[:SHOWN]) + (f", ... {len(lines)} in all" if len(lines) > SHOWN else "")
            raise ValueError(f"its arrays do not fit the model (- missing, + unexpected, ~ misshapen): {shown}")
        bad = [n for n, x in arrays.items() if not n.startswith("state/") and not np.isfinite(x).all()]
        if bad:
            raise ValueError(f"values that are not finite (NaN or infinite) in {', '.join(bad[:SHOWN])}")
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:  # of a Spec with odd values
        raise ValueError(f"packed: {where}: {one_line(error)}") from None
    state = {a: {n: jnp.asarray(arrays[f"state/{a}/{n}"]) for n in names} for a, names in states.items()}
    params = _tree(header["packed"], arrays, own)
    texts = (header[name] for name in ("preprocess", "recipe", "protocol", "notes"))
    return Deployment(own, params, plan, state, *texts)


def _model(entry: Mapping[str, Any]) -> Model:
    """The model that the header names."""
    name, spec = entry.get("architecture"), entry.get("spec")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is not known{nearest(str(name), ARCHITECTURES)}")
    return bounds.built(name, spec, "its header")


def _check_same(found: Model, wanted: Model) -> None:
    """Raises ``ValueError`` with the differences where the two are not one model."""
    if found.architecture != wanted.architecture:
        raise ValueError(f"it is for another model: architecture {found.architecture}, wanted {wanted.architecture}")
    has, want = dataclasses.asdict(found.spec), dataclasses.asdict(wanted.spec)
    lines = [f"{name} {has[name]!r}, wanted {want[name]!r}" for name in want if has[name] != want[name]]
    if lines:
        raise ValueError(f"it is for another model: {'; '.join(lines)}")


def _plan(entries: Mapping[str, Any], known: Sites) -> dict[str, Quantizer]:
    """The plan of activations, every quantiser checked on its operand."""
    recipe = []
    for address, entry in entries.items():
        if address not in known:
            raise ValueError(f"the model has no operand '{address}'{nearest(address, known)}")
        if known[address].path is not None:
            raise ValueError(f"{address} is a weight: packed, it has no quantiser any more")
        try:
            recipe.append((address, quantizer_text.read(entry)))
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from None
    return resolve(recipe, known)


@functools.lru_cache(maxsize=64)
def _sites(architecture: str, spec: Any) -> Sites:
    """Every operand of the model, from a trace."""
    model = Model(architecture, spec, ARCHITECTURES[architecture][1](spec))
    return sites(model.forward, model.shapes(), model.image)


@functools.lru_cache(maxsize=1024)
def _state(quantizer: Quantizer, letters: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """The shapes of a quantiser's state, by name, from a trace; many operands have the same."""
    return dict(jax.eval_shape(lambda x: quantizer.init(x, letters), jax.ShapeDtypeStruct(shape, "float32")))


def _states(plan: Mapping[str, Quantizer], known: Sites) -> dict[str, dict[str, Any]]:
    """The shapes of every quantiser's state, by address and name."""
    return {a: _state(q, known[a].letters, known[a].shape) for a, q in plan.items()}


def misfits(
    packed: Mapping[str, Any], arrays: Arrays, model: Model, states: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What of the arrays does not fit the model, a line each: - missing, + unexpected, ~ of another dtype or shape."""
    leaves, lines, wanted = flattened(model.shapes()), [], {}
    for name, entry in packed.items():
        if name not in leaves:
            lines.append(f"+{name} is packed, the model has no such parameter{nearest(name, leaves)}")
        elif not isinstance(entry, list) or len(entry) != 2 or entry[0] not in range(1, 17) or not _is_shape(entry[1]):
            lines.append(f"~{name} is packed as {entry!r}, which is not [bits from 1 to 16, shape]")
        elif tuple(entry[1]) != leaves[name].shape:
            lines.append(f"~{name} is packed of shape {tuple(entry[1])}, the model has {leaves[name].shape}")
    if lines:
        return lines
    for name, leaf in leaves.items():
        if name not in packed:
            wanted[name] = ("float32", leaf.shape)
            continue
        bits, (rows, *rest) = packed[name]
        wanted[f"{name}.planes"] = ("uint8", (bits, -(-rows // 8), *rest))
        wanted[f"{name}.scale"] = ("float32", None)
        if bits > 1 or f"{name}.zero" in arrays:  # else signs
            wanted[f"{name}.zero"] = (None, None)
    for address, shapes in states.items():
        for part, x in shapes.items():
            wanted[f"state/{address}/{part}"] = (str(x.dtype), x.shape)
    lines = [f"-{name}{nearest(name, set(arrays) - set(wanted))}" for name in wanted if name not in arrays]
    lines += [f"+{name}{nearest(name, set(wanted) - set(arrays))}" for name in arrays if name not in wanted]
    lines += [
        f"~{name} is {arrays[name].dtype} {arrays[name].shape}, must be {dtype} {shape}"
        for name, (dtype, shape) in wanted.items()
        if name in arrays and shape is not None and (str(arrays[name].dtype), arrays[name].shape) != (dtype, shape)
    ]
    return lines or [line for name, (_, shape) in packed.items() for line in _scaling(name, tuple(shape), arrays)]


def _scaling(name: str, shape: tuple[int, ...], arrays: Arrays) -> list[str]:
    """What of a packed weight's scales and zero points does not fit it."""

    def spreads(x: np.ndarray) -> bool:
        return x.ndim <= len(shape) and all(n in (1, m) for n, m in zip(x.shape[::-1], shape[::-1], strict=False))

    lines, scale, zero = [], arrays[f"{name}.scale"], arrays.get(f"{name}.zero")
    if scale.dtype != np.float32 or not spreads(scale):
        lines.append(f"~{name}.scale is {scale.dtype} {scale.shape}, must be float32 and broadcast against {shape}")
    if zero is not None and zero.dtype == np.uint8:
        if zero.ndim != 2 or not 1 <= len(zero) <= 31 or zero.shape[1] != -(-scale.size // 8):
            lines.append(f"~{name}.zero is uint8 {zero.shape}, must be bit planes of the {scale.size} scales")
    elif zero is not None and (zero.dtype != np.int32 or not spreads(zero)):
        lines.append(f"~{name}.zero is {zero.dtype} {zero.shape}, must be int32 and broadcast against {shape}")
    return lines


def _tree(packed: Mapping[str, Any], arrays: Arrays, model: Model) -> Any:
    """The parameter tree out of arrays that fit."""

    def leaf(path: Any, _: Any) -> Any:
        name = leaf_name(path)
        if name not in packed:
            return jnp.asarray(arrays[name])
        planes, scale = arrays[f"{name}.planes"], arrays[f"{name}.scale"]
        zero = arrays.get(f"{name}.zero")
        whole = None if zero is None else jnp.asarray(_whole_zero(zero, scale))
        return Packed(jnp.asarray(planes), jnp.asarray(scale), whole, tuple(packed[name][1]))

    return jax.tree_util.tree_map_with_path(leaf, model.shapes())


def one_line(error: Exception) -> str:
    """The first line of what an error says, or what it is."""
    return (str(error) or type(error).__name__).splitlines()[0]


def flattened(params: Any) -> dict[str, Any]:
    """The leaves of a parameter tree, a Packed one whole, by their paths: ``block00/attn/qkv/kernel``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda x: isinstance(x, Packed))
    return {leaf_name(path): x for path, x in leaves}


def leaf_name(path: Any) -> str:
    """``block00/attn/qkv/kernel`` for a path in a pytree, as JAX gives it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
