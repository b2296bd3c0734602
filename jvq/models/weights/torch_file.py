"""torch's ``.pth``, ``.pt`` and ``.bin`` files, read without running what is in their pickles.

The zip format is read here, with torch installed or without: ``data.pkl`` beside the storages ``data/0``, ``data/1``,
... ``pickled`` works out what the pickle says, knows nothing but tensors and ordered dictionaries, and refuses
everything else by name. The format before torch 1.6 is left to torch's ``weights_only`` reader.
"""

import importlib.util
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jvq.core import reading
from jvq.models.weights import pickled

Arrays = dict[str, np.ndarray]
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
INSIDE = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "module", "net", "weights")
SAFE = (2, 6)  #: before this version of torch ``weights_only`` could be made to run code (CVE-2025-32434)
LARGEST = 2**24  #: bytes of a pickle: those of a thousand tensors take 200,000
DEEPEST = 8  #: dictionaries around the one of arrays
PREFIXES = ("_orig_mod.", "module.", "backbone.")  # of torch.compile, DataParallel, and DINO's wrapper


def read(path: Path) -> Arrays:
    """The arrays of a checkpoint, bare names, wherever in it they are. ``ValueError`` in one line."""
    return state(unpickled(path) if zipfile.is_zipfile(path) else _by_torch(path), path)


def _by_torch(path: Path) -> Any:
    """What torch reads, tensors as arrays."""
    if not importlib.util.find_spec("torch"):
        raise ValueError(
            f"weights: {path} is not in torch's zip format: the one before torch 1.6 needs torch to read it; "
            "save it again with torch.save"
        )
    version = metadata.version("torch")
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < SAFE:
        raise ValueError(f"weights: {path} is not in torch's zip format, and torch {version} would run what is in it")
    import torch  # pyright: ignore[reportMissingImports]

    def plain(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu()
            return (x.float() if x.is_floating_point() else x).numpy()
        return {name: plain(y) for name, y in x.items()} if isinstance(x, Mapping) else None

    try:
        return plain(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, *reading.BROKEN) as error:
        raise ValueError(f"weights: {path} cannot be read by torch: {(str(error).splitlines() or [''])[0]}") from None


def state(found: Any, path: Path) -> Arrays:
    """The dictionary of arrays inside a checkpoint: averaged weights before raw ones; without wrappers' prefixes."""
    for _ in range(DEEPEST):  # a dictionary may hold itself
        if not isinstance(found, Mapping) or any(isinstance(x, np.ndarray) for x in found.values()):
            break
        inside = next((name for name in INSIDE if isinstance(found.get(name), Mapping)), None)
        if inside is None:
            keys = ", ".join(str(name) for name in list(found)[:6]) or "nothing"
            raise ValueError(f"weights: {path} holds no state_dict under {', '.join(INSIDE)}; it holds {keys}")
        found = found[inside]
    else:
        raise ValueError(f"weights: {path} holds dictionaries in dictionaries, and no arrays")
    if not isinstance(found, Mapping):
        raise ValueError(f"weights: {path} holds no dictionary of arrays")
    return bare({str(name): x for name, x in found.items() if isinstance(x, np.ndarray)})


def bare(arrays: Arrays) -> Arrays:
    """The names without wrappers' prefixes; where a backbone stands beside other modules, the backbone."""
    while prefix := next((p for p in PREFIXES if any(name.startswith(p) for name in arrays)), None):
        arrays = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    return arrays


# --- The zip format -------------------------------------------------------------------------------------------------


def unpickled(path: Path) -> Any:
    """What a zip checkpoint holds, tensors as arrays. ``ValueError`` names what it refuses."""
    what = f"weights: {path} cannot be read as a torch checkpoint"
    with reading.shown(what, pickled.Refused, *reading.BROKEN), reading.members(path) as found:
        pickles = [name for name in found.sizes if name.split("/")[-1] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"weights: {path} is a zip file without torch's data.pkl")
        if found.sizes[pickles[0]] > LARGEST:
            raise ValueError(f"{what}: its pickle has {found.sizes[pickles[0]]} bytes, more than {LARGEST}")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in found.sizes and found.read(f"{root}byteorder") != b"little":
            raise ValueError(f"weights: {path} was written on a big-endian machine, which is not read")
        tensors = Tensors(found, root, path)
        return pickled.values(found.read(pickles[0]), tensors.named, tensors.storage)


class Tensors:
    """What stands for torch's names and storages in a pickle; all tensors together have a bearable size."""

    def __init__(self, file: reading.Members, root: str, path: Path):
        self.file, self.root, self.path = file, root, path
        self.left = reading.allowed(path.stat().st_size)  # bytes: strides of 0 repeat a number as often as they like
        self.storages: dict[str, bytes] = {}  # each once, whatever types it is said to be of
        self.known = {
            "collections.OrderedDict": pickled.ordered,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": self.parameter,
        }

    def named(self, name: str) -> Any:
        """The stand-in for a name; a storage type stands for its dtype."""
        if name.removeprefix("torch.") in STORAGES and name.startswith("torch."):
            return np.dtype(STORAGES[name.removeprefix("torch.")])
        if name not in self.known:
            raise ValueError(
                f"weights: {self.path} wants to load '{name}', which is no weight; it is refused. Save its state_dict "
                "alone and try again"
            )
        return self.known[name]

    def storage(self, pid: Any) -> np.ndarray:
        """A storage as a flat array."""
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickled.Refused("an unknown kind of storage")
        if not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise pickled.Refused("a storage without a name or a size")
        if key not in self.storages:
            self.storages[key] = self.file.read(f"{self.root}data/{key}")
        return np.frombuffer(self.storages[key], dtype)[:numel]

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
        """A view into a storage, its bounds checked, copied."""
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, np.ndarray) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise pickled.Refused("a tensor without a storage")
        if len(shape) != len(strides):
            raise pickled.Refused("a tensor whose strides do not fit its shape")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 in shape:
            return np.zeros(shape, storage.dtype)
        if last >= storage.size:
            raise pickled.Refused("a tensor that reaches beyond its storage")
        self.left -= math.prod(shape) * storage.itemsize
        if self.left < 0:
            raise pickled.Refused("tensors of far more bytes than the file has")
        steps = [step * storage.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False).copy()

    @staticmethod
    def parameter(data: Any, *_: Any) -> np.ndarray:
        """A parameter is its data."""
        return pickled.of_kind(data, np.ndarray)
