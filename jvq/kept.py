"""What a run has finished so far: fits and evaluations in files of its workdir, until its report is written.

The same run in the same folder goes on behind them. They are of one config, one model, one data set, one version of
everything: with any other they are made again. Beside them lie the checkpoints of a float training.
Of many processes the leading one reads and writes: what it has found it sends to the others.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jvq import evaluate, evaluate_maps
from jvq.config import Run
from jvq.core import files, hosts
from jvq.core.calibrate import Fitted
from jvq.core.mesh import gathered
from jvq.data import CorruptImage, Loader, Source
from jvq.export import quantizer_text
from jvq.journal import fingerprint
from jvq.models.weights import Checkpoint
from jvq.report import Console

FOLDER = "unfinished"  #: of the workdir
LARGEST = 2**28  #: bytes of a value that is kept: of greater ones (a million logits of each image) there are too many
SEEN = 16  #: images of a source that are compared, evenly spread
TUPLES: dict[str, Any] = {
    "Fitted": Fitted, "Predictions": evaluate.Predictions, "Maps": evaluate_maps.Predictions,
}  # fmt: skip
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "scipy")  #: whose versions may change a number


def folder(workdir: Path) -> Path:
    """Where a run of that workdir keeps what it has finished."""
    return workdir / FOLDER


def clear(workdir: Path) -> None:
    """Removes what was kept: the report is written."""
    shutil.rmtree(folder(workdir), ignore_errors=True)


class Kept:
    """``kept(key, function, *args)`` is what the function gives, or gave in an earlier run of the same ``mark``."""

    def __init__(self, workdir: Path, mark: str, console: Console) -> None:
        self.folder, self.mark, self.console = folder(workdir), mark, console

    @classmethod
    def of(
        cls, cfg: Run, workdir: Path, checkpoint: Checkpoint, loader: Loader, train: Source, console: Console
    ) -> "Kept":
        """What a run of the config has finished in its workdir; of many processes they are all in its mark."""
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        about = (repr(cfg), versions, sources(), str(jax.devices()), seen(loader.source), seen(train))
        mark = fingerprint(checkpoint.params, *about)
        return cls(workdir, fingerprint(*hosts.shared(mark)) if hosts.many() else mark, console)

    def __call__(self, key: str, function: Callable[..., Any], *args: Any) -> Any:
        """The value under the key, kept before this returns unless it is too large."""
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        found = self._found(path, key)
        if found is not None:
            self.console.say(f"{key}: taken from {path}")
            return found[0]
        value = function(*args)
        arrays: dict[str, np.ndarray] = {}
        try:
            packed = _packed(value, arrays)
        except TypeError as error:  # a quantiser of somebody's own
            self.console.say(f"{key}: an interruption would lose it: {error}")
            packed = None
        if packed is not None and sum(x.nbytes for x in arrays.values()) <= LARGEST:
            text = json.dumps({"mark": self.mark, "key": key, "value": packed})
            hosts.led(lambda: self._write(path, text, arrays))
        return value

    def evaluated(self, key: str, loader: Loader, function: Callable[..., Any], *args: Any) -> Any:
        """The same of a pass over the loader's images; ``loader.skipped`` is what that pass has skipped."""
        value, skipped = self(key, lambda: (function(*args), list(loader.skipped)))
        loader.skipped = skipped
        return value

    def _write(self, path: Path, text: str, arrays: Mapping[str, np.ndarray]) -> None:
        try:
            self.folder.mkdir(exist_ok=True)  # a workdir that was taken away does not come back without what it held
        except OSError as error:
            raise ValueError(files.cannot(self.folder, error)) from error
        with files.replacing(path) as part, part.open("xb") as file:
            np.savez(file, text=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]

    def _found(self, path: Path, key: str) -> tuple[Any] | None:
        """The value of an earlier run in a 1-tuple; None where the leading process has none, or one cannot take it."""
        content, found = None, None
        if hosts.leads():
            with contextlib.suppress(OSError):
                content = path.read_bytes()
            found = None if content is None else self._read(content, key)
        content = hosts.sent(None if found is None else content)
        if content is None:
            return None
        if not hosts.leads():
            found = self._read(content, key)
        return None if hosts.any_of(found is None) else found

    def _read(self, content: bytes, key: str) -> tuple[Any] | None:
        """The value in a 1-tuple; None where the content is of another run, or damaged."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                said = json.loads(file["text"].tobytes())
                if (said["mark"], said["key"]) != (self.mark, key):
                    return None
                return (_unpacked(said["value"], file),)
        except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
            return None


def _packed(x: Any, arrays: dict[str, np.ndarray]) -> Any:
    """``x`` in JSON, its arrays put into ``arrays``. ``TypeError`` for what is not known here."""
    pack = functools.partial(_packed, arrays=arrays)
    if isinstance(x, jax.Array | np.ndarray | np.generic) and not isinstance(x, float):
        name, kind = f"a{len(arrays)}", "jax" if isinstance(x, jax.Array) else "numpy"
        arrays[name] = np.asarray(gathered(x))
        if arrays[name].dtype.kind not in "biufU":
            raise TypeError(f"an array of {arrays[name].dtype} cannot be kept")
        return [kind if np.ndim(x) or kind == "jax" else "number", name]
    if x is None or isinstance(x, bool | int | float | str):
        return ["plain", x]
    if isinstance(x, Mapping):
        return ["dict", [[pack(k), pack(v)] for k, v in x.items()]]
    for name, kind in TUPLES.items():
        if type(x) is kind:
            return [name, [pack(v) for v in x]]
    if isinstance(x, list | tuple):
        return ["list" if isinstance(x, list) else "tuple", [pack(v) for v in x]]
    if quantizer_text.KINDS.get(type(x).__name__) is not type(x):
        raise TypeError(f"{type(x).__name__} cannot be kept")
    return ["quantizer", quantizer_text.written(x)]


def _unpacked(x: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """What was packed; ``ValueError`` for what is no such thing."""
    kind, value = x
    if kind in ("jax", "numpy", "number"):
        found = arrays[value]
        return jnp.asarray(found) if kind == "jax" else found[()] if kind == "number" else found
    if kind == "plain":
        return value
    if kind == "quantizer":
        return quantizer_text.read(value)
    if kind == "dict":
        return {_unpacked(k, arrays): _unpacked(v, arrays) for k, v in value}
    inner = [_unpacked(v, arrays) for v in value]
    if kind in TUPLES:
        return TUPLES[kind](*inner)
    if kind not in ("list", "tuple"):
        raise ValueError(f"no value is a {kind}")
    return inner if kind == "list" else tuple(inner)


def seen(source: Source) -> str:
    """A short digest of a source: its name, its length and some images, among them those that cannot be read."""
    digest = hashlib.sha256(f"{source.name} {len(source)}".encode())
    for i in np.unique(np.linspace(0, len(source) - 1, SEEN).astype(np.int64)):
        try:
            record = source[int(i)]
        except CorruptImage:
            digest.update(b"corrupt")
            continue
        digest.update(f"{record['image'].shape} {record['label']}".encode() + record["image"].tobytes())
    return digest.hexdigest()[:16]


def sources() -> str:
    """A short digest of this package's own code: who changes it wants the numbers anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
