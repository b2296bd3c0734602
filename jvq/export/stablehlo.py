"""StableHLO: a deployment as one file that JAX runs without jvq, by ``jax.export``, one file a platform.

The file is safetensors: two serialized modules (uint8), and what they take, in the order of ``arguments`` in the
header. ``unpack`` turns the packed weights into what products read, once; ``model`` takes images and that. So the
modules hold no weights, and the file is as small as the packed weights are. All it takes to run one, with jax, NumPy
and safetensors alone::

    import json
    import jax
    from jax import export
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:
        header = {name: json.loads(text) for name, text in f.metadata().items()}
        packed = [f.get_tensor(name) for name in header["arguments"]]
        unpack, model = (export.deserialize(bytearray(f.get_tensor(name))) for name in ("unpack", "model"))
    ready = jax.jit(unpack.call)(*packed)
    run = jax.jit(model.call)
    logits = run(images, *ready)  # images float32 [b y x c], which went through header["preprocess"]

Header (all values are JSON): ``format`` "jvq-stablehlo", ``version``, ``platform``, ``batch`` (null: any), ``integers``
(products of integers; else fake quantisation in float32), ``image`` (y, x, c), ``arguments``, ``jax`` (the version that
wrote it), ``architecture``, ``spec``, ``preprocess``, ``recipe``, ``protocol``, ``notes``, ``digest`` (SHA-256 of all
else). A newer jax reads what an older one wrote, for half a year by JAX's promise; not the other way round.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.errors import InconclusiveDimensionOperation
from safetensors import SafetensorError, safe_open

from jvq.core import axes
from jvq.core.errors import nearest
from jvq.core.packed import Encoded, Packed, is_encoded, unpack_bits
from jvq.core.recipe import sites
from jvq.export.contents import leaf_name
from jvq.export.deployment import Deployment
from jvq.integer import Rows, integer_dot, prepared
from jvq.models.weights.native import write

FORMAT, VERSION = "jvq-stablehlo", 1
PLATFORMS = ("cpu", "cuda", "tpu")
MODULES = ("unpack", "model")
HEADER = (
    *("format", "version", "platform", "batch", "integers", "image", "arguments", "jax", "architecture", "spec"),
    *("preprocess", "recipe", "protocol", "notes", "digest"),
)


@partial(jax.tree_util.register_dataclass, data_fields=["planes", "zero", "rest"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Held:
    """Rows whose codes of less than 8 bits, which products read as bytes, are bit planes in the file."""

    planes: Any  # of the packed weight
    zero: Any  # of the packed weight, where the rows have it taken off; else None, as of signs
    rest: Rows  # without codes

    @classmethod
    def of(cls, packed: Packed, rows: Rows) -> "Held":
        taken_off = rows.zero is None
        return cls(packed.planes, packed.zero if taken_off else None, dataclasses.replace(rows, codes=None))

    def rows(self) -> Rows:
        """The rows with their codes, int8 [p n k]."""
        letters, summed, shape = self.rest.letters, self.rest.summed, self.rest.shape
        codes = unpack_bits(self.planes, shape[0])
        if self.zero is not None:
            codes = codes - self.zero
        elif self.rest.zero is None:  # none to begin with: signs
            codes = 2 * codes - 1
        kept = "".join(a for a in letters if a not in summed)
        n = math.prod(shape[i] for i in axes.indices(kept, letters))
        codes = codes.transpose(axes.indices(kept + summed, letters)).reshape(n, self.rest.parts, -1)
        return dataclasses.replace(self.rest, codes=jnp.swapaxes(codes, 0, 1).astype(jnp.int8))


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A loaded model: called with images [b y x c] it gives outputs [b ...]."""

    header: Mapping[str, Any]
    path: Path
    ready: tuple[jax.Array, ...]  # unpacked
    model: Callable[..., jax.Array]  # of images and those

    def __call__(self, images: jax.typing.ArrayLike) -> jax.Array:
        x = jnp.asarray(images, jnp.float32)
        batch, image = self.header["batch"], tuple(self.header["image"])
        if x.shape[1:] != image or x.ndim != 4 or (batch is not None and x.shape[0] != batch):
            wanted = ("any number" if batch is None else batch, *image)
            raise ValueError(f"{self.path}: images of shape {x.shape}, the model wants {wanted} (b, y, x, c)")
        return self.model(x, *self.ready)


def save_stablehlo(
    deployment: Deployment,
    path: str | Path,
    *,
    platform: str = "cpu",
    batch: int | None = None,
    integers: bool = True,
) -> None:
    """Writes the deployment to ``path`` for a platform, whole or not at all; for any batch unless one is named.

    Products are XLA's on every platform: what our own kernels compile to is not part of StableHLO. ``ValueError``: a
    platform that is none, a batch below 1, a folder that is not there, and where no batch is named a product that
    asks how many images there are.
    """
    path = Path(path)
    if platform not in PLATFORMS:
        raise ValueError(f"stablehlo: platform '{platform}' is not known{nearest(platform, PLATFORMS)}")
    if batch is not None and batch < 1:
        raise ValueError(f"stablehlo: batch must be at least 1, or None for any, got {batch}")
    if not path.parent.is_dir():
        raise ValueError(f"stablehlo: there is no folder {path.parent} to write {path.name} into")
    model = deployment.model
    held = {"params": _held(deployment) if integers else deployment.params, "qstate": dict(deployment.qstate)}
    named, tree = jax.tree_util.tree_flatten_with_path(held)
    arrays = {leaf_name(keys): np.asarray(leaf) for keys, leaf in named}
    ready = jax.eval_shape(partial(_unpacked, integers=integers), held)
    form = jax.tree.structure(ready)

    def unpack(*leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(_unpacked(jax.tree.unflatten(tree, leaves), integers))

    def run(images: jax.Array, *leaves: jax.Array) -> jax.Array:
        parts = jax.tree.unflatten(form, leaves)
        exact = integer_dot(deployment.plan, parts["qstate"], impl="xla")
        return model.forward(parts["params"], images, exact if integers else deployment.dot(parts["qstate"]))

    size = export.symbolic_shape("b")[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((size, *model.image), "float32")
    of = partial(export.export, platforms=[platform])
    try:
        modules = of(jax.jit(unpack))(*map(_shape, arrays.values())), of(jax.jit(run))(images, *jax.tree.leaves(ready))
    except (InconclusiveDimensionOperation, TypeError) as error:  # a kernel that asks how many rows there are
        if batch is not None:
            raise
        why = _line(error).partition(". ")[0]
        raise ValueError(f"stablehlo: this model cannot be exported for any batch, name one, batch=8: {why}") from error
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "platform": platform,
        "batch": batch,
        "integers": integers,
        "image": model.image,
        "arguments": list(arrays),
        "jax": jax.__version__,
        "architecture": model.architecture,
        "spec": dataclasses.asdict(model.spec),
        "preprocess": dict(deployment.preprocess),
        "recipe": dict(deployment.recipe),
        "protocol": dict(deployment.protocol),
        "notes": dict(deployment.notes),
    }
    for name, module in zip(MODULES, modules, strict=True):
        arrays[name] = np.frombuffer(bytes(module.serialize()), np.uint8)
    text = {name: json.dumps(value) for name, value in header.items()}
    write(arrays, path, text | {"digest": json.dumps(_digest(text, arrays))})


def load_stablehlo(path: str | Path) -> Artefact:
    """The model at ``path``, unpacked and ready to run. ``ValueError``: one line on what does not fit this process."""
    path = Path(path)
    header, arrays = _read(path)
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if header["platform"] != here:
        raise ValueError(f"stablehlo: {path} is for {header['platform']}, this process runs on {here}: export it anew")
    try:
        unpack, model = (export.deserialize(bytearray(arrays[name].tobytes())) for name in MODULES)
        packed = [arrays[name] for name in header["arguments"]]
        ready = jax.jit(unpack.call)(*packed)
    except Exception as error:  # the digest was right: another jax wrote it
        why = f"written by jax {header['jax']}, this is jax {jax.__version__}: {_line(error)}"
        raise ValueError(f"stablehlo: {path} cannot be run, {why}") from None
    return Artefact(header, path, tuple(ready), jax.jit(model.call))


def _held(deployment: Deployment) -> Any:
    """The parameter tree as integer products read it, in the fewest bits."""
    known = sites(deployment.model.forward, deployment.params, deployment.model.image)
    ready = prepared(deployment.params, known)

    def hold(packed: Any, rows: Any) -> Any:
        wide = isinstance(rows, Rows) and rows.form == "int8" and rows.bits < 8
        return Held.of(packed, rows) if wide else rows

    return jax.tree.map(hold, deployment.params, ready, is_leaf=is_encoded)


def _unpacked(tree: Any, integers: bool) -> Any:
    """Parameters and state as products read them: weights as rows, or as floats."""

    def unpack(leaf: Any) -> Any:
        if isinstance(leaf, Held):
            return leaf.rows()
        return leaf.unpack() if isinstance(leaf, Encoded) and not integers else leaf

    return jax.tree.map(unpack, tree, is_leaf=lambda x: isinstance(x, Held | Encoded))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays, as they were written."""
    try:
        with safe_open(path, framework="numpy") as f:
            text = f.metadata() or {}
            if text.get("format") != json.dumps(FORMAT):
                raise ValueError(f"stablehlo: {path} is no StableHLO file of jvq (format: {text.get('format')})")
            header = {name: json.loads(value) for name, value in text.items()}
            version = header.get("version", VERSION)
            if not isinstance(version, int):
                raise ValueError(f"stablehlo: {path} has version {version!r}, which is no number")
            if version > VERSION:
                raise ValueError(f"stablehlo: {path} has version {version}, this jvq reads up to {VERSION}")
            lacking = [name for name in HEADER if name not in header]
            if lacking:
                raise ValueError(f"stablehlo: {path} lacks {', '.join(lacking)} in its header")
            arrays = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"stablehlo: {path} cannot be read: {_line(error)}") from None
    del text["digest"]
    if header["digest"] != _digest(text, arrays):
        raise ValueError(f"stablehlo: {path} was changed since it was written: its digest is another")
    return header, arrays


def _digest(text: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of header and arrays."""
    found = hashlib.sha256(json.dumps(dict(sorted(text.items()))).encode())
    for name, x in sorted(arrays.items()):
        found.update(f"{name} {x.dtype} {x.shape} ".encode())
        found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()


def _shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
