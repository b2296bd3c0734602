"""torch's ``.pth``, ``.pt`` and ``.bin`` files, read without running what is in their pickles.

With torch installed its ``weights_only`` reader reads them. Without it, or for a clearer word on a refusal, the zip
format is read here: ``data.pkl`` beside the storages ``data/0``, ``data/1``, ... An unpickler that knows nothing but
tensors and ordered dictionaries refuses everything else by name.
"""

import importlib.util
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

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
PREFIXES = ("_orig_mod.", "module.", "backbone.")  # of torch.compile, DataParallel, and DINO's wrapper


def read(path: Path) -> Arrays:
    """The arrays of a checkpoint, bare names, wherever in it they are. ``ValueError`` in one line."""
    if not zipfile.is_zipfile(path):
        return state(_by_torch(path), path)
    if importlib.util.find_spec("torch"):
        try:
            return state(_by_torch(path), path)
        except pickle.UnpicklingError:
            pass  # ours says which name it was
    return state(unpickled(path), path)


def _by_torch(path: Path) -> Any:
    """What torch reads, tensors as arrays."""
    if not importlib.util.find_spec("torch"):
        raise ValueError(
            f"weights: {path} is not in torch's zip format: the one before torch 1.6 needs torch to read it; "
            "save it again with torch.save"
        )
    import torch  # pyright: ignore[reportMissingImports]

    def plain(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            x = x.detach().cpu()
            return (x.float() if x.is_floating_point() else x).numpy()
        return {name: plain(y) for name, y in x.items()} if isinstance(x, Mapping) else None

    try:
        return plain(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise
        raise ValueError(f"weights: {path} cannot be read by torch: {str(error).splitlines()[0]}") from None
    except (OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"weights: {path} cannot be read by torch: {str(error).splitlines()[0]}") from None


def state(found: Any, path: Path) -> Arrays:
    """The dictionary of arrays inside a checkpoint: averaged weights before raw ones; without wrappers' prefixes."""
    while isinstance(found, Mapping) and not any(isinstance(x, np.ndarray) for x in found.values()):
        inside = next((name for name in INSIDE if isinstance(found.get(name), Mapping)), None)
        if inside is None:
            keys = ", ".join(str(name) for name in list(found)[:6]) or "nothing"
            raise ValueError(f"weights: {path} holds no state_dict under {', '.join(INSIDE)}; it holds {keys}")
        found = found[inside]
    if not isinstance(found, Mapping):
        raise ValueError(f"weights: {path} holds no dictionary of arrays")
    arrays = {str(name): x for name, x in found.items() if isinstance(x, np.ndarray)}
    return bare(arrays)


def bare(arrays: Arrays) -> Arrays:
    """The names without wrappers' prefixes; where a backbone stands beside other modules, the backbone."""
    while prefix := next((p for p in PREFIXES if any(name.startswith(p) for name in arrays)), None):
        arrays = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    return arrays


# --- The zip format -------------------------------------------------------------------------------------------------


def unpickled(path: Path) -> Any:
    """What a zip checkpoint holds, tensors as arrays. ``ValueError`` names what it refuses."""
    try:
        with zipfile.ZipFile(path) as file:
            pickles = [name for name in file.namelist() if name.split("/")[-1] == "data.pkl"]
            if len(pickles) != 1:
                raise ValueError(f"weights: {path} is a zip file without torch's data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            if f"{root}byteorder" in file.namelist() and file.read(f"{root}byteorder") != b"little":
                raise ValueError(f"weights: {path} was written on a big-endian machine, which is not read")
            with file.open(pickles[0]) as stream:
                return Unpickler(stream, file, root, path).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"weights: {path} cannot be read as a torch checkpoint: {error}") from None
    except (TypeError, AttributeError, IndexError, ImportError) as error:  # a pickle that calls what cannot be called
        raise ValueError(f"weights: {path} cannot be read as a torch checkpoint (malformed pickle: {error})") from None


class Unpickler(pickle.Unpickler):
    """Knows ordered dictionaries, tensors and their storages. No name outside that is ever looked up."""

    def __init__(self, stream: Any, file: zipfile.ZipFile, root: str, path: Path):
        super().__init__(stream)
        self.file, self.root, self.path = file, root, path
        self.known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": self.parameter,
        }

    def find_class(self, module_name: str, global_name: str) -> Any:
        """The stand-in for a name; a storage type stands for its dtype."""
        if module_name == "torch" and global_name in STORAGES:
            return np.dtype(STORAGES[global_name])
        name = f"{module_name}.{global_name}"
        if name not in self.known:
            raise ValueError(
                f"weights: {self.path} wants to load '{name}', which is no weight; it is refused. Save its state_dict "
                "alone and try again"
            )
        return self.known[name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        """A storage as a flat array."""
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"an unknown kind of storage, {kind}")
        return np.frombuffer(self.file.read(f"{self.root}data/{key}"), dtype)[:numel]

    @staticmethod
    def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
        """A view into a storage, its bounds checked, copied."""
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, np.ndarray) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise pickle.UnpicklingError("a tensor without a storage")
        if len(shape) != len(strides):
            raise pickle.UnpicklingError("a tensor whose strides do not fit its shape")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if 0 in shape:
            return np.zeros(shape, storage.dtype)
        if last >= storage.size:
            raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
        steps = [step * storage.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False).copy()

    @staticmethod
    def parameter(data: np.ndarray, *_: Any) -> np.ndarray:
        """A parameter is its data."""
        return data
