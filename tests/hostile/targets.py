"""Every loader with whole input, how that is changed, and what must hold of what it accepts all the same."""

import functools
import io
import json
import pickle
import random
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from PIL import Image

from jvq.core import reading
from jvq.data import Preprocess, open_source
from jvq.data.folder import read_image
from jvq.data.records import CorruptImage, InMemory
from jvq.models import build
from jvq.models.weights import Checkpoint, native, open_weights, to_timm

from . import mutations, structured
from .trial import Files, Target

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 12, "depth": 2, "heads": 2, "classes": 3}
SWIN = {"image": (8, 8), "patch": 2, "dim": 8, "depths": (1, 1), "heads": (1, 2), "window": 2, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
GREY = {"mean": [0.5], "std": [0.25], "size": [8, 8], "resize": 8, "interpolation": "bicubic"}


@functools.cache
def checkpoint(architecture: str = "vit") -> Checkpoint:
    """A tiny model with random weights."""
    model, rng = build(architecture, SPEC if architecture == "vit" else SWIN), np.random.default_rng(0)
    params = jax.tree.map(lambda s: jax.numpy.asarray(rng.normal(0, 0.3, s.shape), "float32"), model.shapes())
    preprocess = PREPROCESS if architecture == "vit" else {**PREPROCESS, "mean": [0.5] * 3, "std": [0.25] * 3}
    return Checkpoint(model, params, preprocess, {"top1": 0.5})


def timm_arrays() -> dict[str, np.ndarray]:
    """The model's arrays by timm's names."""
    return {name: np.ascontiguousarray(x) for name, x in to_timm(checkpoint()).items()}


# --- Whole input ----------------------------------------------------------------------------------------------------


def native_file(folder: Path) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    native.save(checkpoint(), folder / "a.safetensors")
    return {"a.safetensors": (folder / "a.safetensors").read_bytes()}


def swin_file(folder: Path) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    native.save(checkpoint("swin"), folder / "a.safetensors")
    return {"a.safetensors": (folder / "a.safetensors").read_bytes()}


def foreign_file(_: Path) -> Files:
    from safetensors.numpy import save

    return {"a.safetensors": save(timm_arrays(), {"format": "pt"})}


def beside(_: Path) -> Files:
    config = {
        "architecture": "vit_small_patch4",
        "num_classes": 3,
        "model_args": {"num_heads": 2, "embed_dim": 12},
        "pretrained_cfg": {
            "input_size": [1, 8, 8],
            "crop_pct": 0.9,
            "mean": [0.5],
            "std": [0.5],
            "interpolation": "bicubic",
        },
    }
    before = {
        "size": {"height": 8, "width": 8},
        "resample": 3,
        "image_mean": [0.5],
        "image_std": [0.5],
        "do_normalize": True,
    }
    files = foreign_file(_)
    return {
        "config.json": json.dumps(config).encode(),
        "preprocessor_config.json": json.dumps(before).encode(),
        "model.safetensors": files["a.safetensors"],
    }


def of_transformers(_: Path) -> Files:
    config = {
        "model_type": "vit", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4,
        "num_channels": 1, "image_size": 8, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        "architectures": ["ViTForImageClassification"],
    }  # fmt: skip
    return {**beside(_), "config.json": json.dumps(config).encode()}


def npz_file(_: Path) -> Files:
    from jvq.models.weights import augreg, spec

    found, out = checkpoint(), {}
    flat = {name: np.asarray(x) for name, x in native.traverse.flatten_dict(found.params, sep="/").items()}
    flat["patch/kernel"] = flat["patch/kernel"].reshape(4, 4, 1, -1)
    for name, x in flat.items():
        out |= (
            spec.theirs(augreg.VIT.names(name), x, augreg.VIT.row(name).layout)
            if "proj/kernel" not in name
            else {augreg.VIT.names(name)[0]: x.reshape(2, 6, 12)}
        )
    stream = io.BytesIO()
    np.savez_compressed(stream, **out)
    return {"a.npz": stream.getvalue()}


class _Storage:
    """Pickled as torch pickles a storage."""

    def __init__(self, key: str, size: int) -> None:
        self.key, self.size = key, size


class _Tensor:
    """Pickled as torch pickles a tensor."""

    def __init__(self, key: str, array: np.ndarray) -> None:
        self.storage, self.shape = _Storage(key, array.size), array.shape
        self.strides = tuple(n // 4 for n in array.strides)

    def __reduce__(self) -> Any:
        return _rebuild_tensor_v2, (self.storage, 0, self.shape, self.strides, False, OrderedDict())


def _rebuild_tensor_v2(*_: Any) -> None: ...
def FloatStorage(*_: Any) -> None: ...


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python can name what is not there
    def persistent_id(self, obj: Any) -> Any:
        return ("storage", FloatStorage, obj.key, "cpu", obj.size) if isinstance(obj, _Storage) else None

    def save_global(self, obj: Any, name: str | None = None) -> None:
        known = {_rebuild_tensor_v2: b"ctorch._utils\n_rebuild_tensor_v2\n", FloatStorage: b"ctorch\nFloatStorage\n"}
        if obj in known:
            self.write(known[obj])
        else:
            super().save_global(obj, name)

    dispatch = {**pickle._Pickler.dispatch, type(FloatStorage): save_global}  # type: ignore[attr-defined]  # noqa: RUF012


def pth_file(_: Path) -> Files:
    arrays, stream, out = timm_arrays(), io.BytesIO(), io.BytesIO()
    tree = OrderedDict((name, _Tensor(str(i), x)) for i, (name, x) in enumerate(arrays.items()))
    _Pickler(stream, 2).dump({"epoch": 3, "model": tree, "best": 0.5})
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("archive/data.pkl", stream.getvalue())
        file.writestr("archive/byteorder", "little")
        for i, x in enumerate(arrays.values()):
            file.writestr(f"archive/data/{i}", x.tobytes())
    return {"a.pth": out.getvalue()}


def onnx_file(_: Path) -> Files:
    import onnx

    tensors, nodes = [], []
    for name, x in timm_arrays().items():
        if x.ndim == 2 and name.endswith("weight"):
            tensors.append(onnx.numpy_helper.from_array(np.ascontiguousarray(x.T), f"onnx::MatMul_{len(tensors)}"))
            out, bias = f"/{name}/out", name.replace(".weight", ".bias")
            nodes.append(onnx.helper.make_node("MatMul", ["x", tensors[-1].name], [out], name=f"/{name}/MatMul"))
            nodes.append(onnx.helper.make_node("Add", [bias, out], [f"/{name}/sum"]))
        else:
            tensors.append(onnx.numpy_helper.from_array(x, name))
    nodes.append(onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.ones(2))))
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors))
    return {"a.onnx": model.SerializeToString()}


def files_of(folder: Path) -> Files:
    """A folder's files by their names in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def orbax_folder(folder: Path) -> Files:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "a").absolute(), checkpoint().params)
    return files_of(folder / "a")


@functools.cache
def deployment() -> Any:
    from jvq.core.calibrate import fresh
    from jvq.core.recipe import resolve, sites
    from jvq.export import Deployment
    from jvq.quantizers import Uniform

    found, rng = checkpoint(), np.random.default_rng(1)
    known = sites(found.model.forward, found.params, found.model.image)
    recipe = [
        ("*.w", Uniform(bits=4, keep="o")),
        ("*/qkv.w", Uniform(bits=3, keep="sh")),
        ("*.[xqkpv]", Uniform(bits=8)),
    ]
    plan, state = resolve(recipe, known), {}
    for address, quantizer in plan.items():
        x: Any = jax.numpy.asarray(rng.uniform(size=(4, *known[address].shape[1:])), "float32")
        for key in known[address].path or ():
            x = x[key] if not isinstance(x, jax.Array) else found.params[key]
        state[address] = fresh(quantizer, x, known[address].letters)
    return Deployment.of(found, plan, state, known, {"seed": 0})


def packed_file(folder: Path) -> Files:
    from jvq.export import save

    folder.mkdir(parents=True, exist_ok=True)
    save(deployment(), folder / "a.safetensors")
    return {"a.safetensors": (folder / "a.safetensors").read_bytes()}


def packed_folder(folder: Path) -> Files:
    from jvq.export import save_folder

    save_folder(deployment(), folder / "a")
    return files_of(folder / "a")


@functools.cache
def images() -> InMemory:
    rng = np.random.default_rng(2)
    return InMemory("made up", rng.integers(0, 256, (20, 8, 8, 1), np.uint8), np.arange(20) % 3)


def soft_labels(folder: Path) -> Files:
    from jvq.data.soft_labels import write

    def teacher(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1)[:, :3]

    said = {
        "teacher_name": "made up",
        "teacher_digest": "0",
        "classes": 3,
        "crops": 2,
        "keep": 2,
        "shard": 8,
        "batch": 16,
    }
    write(folder / "a", images(), Preprocess.from_dict(PREPROCESS), teacher, indices=range(1, 20), **said)
    return files_of(folder / "a")


def npz_set(_: Path) -> Files:
    stream = io.BytesIO()
    np.savez_compressed(stream, images=images().images, labels=images().labels)
    return {"a.npz": stream.getvalue()}


def journal(folder: Path) -> Files:
    from jvq.journal import Journal

    folder.mkdir(parents=True, exist_ok=True)
    found = Journal(folder / "a.jsonl", "abc")
    for i in range(6):
        found[f"key {i}"] = {"loss": i / 7, "bits": [i, None]}
    return files_of(folder)


def picture(kind: str, mode: str = "RGB", **options: Any) -> Callable[[Path], Files]:
    """An image of one of Pillow's modes in a file of one kind."""

    def make(_: Path) -> Files:
        rng, stream = np.random.default_rng(3), io.BytesIO()
        made = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
        wide = Image.fromarray(rng.integers(0, 2**16, (20, 30), np.uint16))
        made = wide if mode == "I;16" else made.convert(mode)
        more = {"save_all": True, "append_images": [made.rotate(90), made]} if options.pop("animated", False) else {}
        made.save(stream, kind, **options, **more)
        return {f"a.{'jpg' if kind == 'JPEG' else 'png'}": stream.getvalue()}

    return make


def run_values(_: Path) -> Files:
    from jvq.config import config

    more = {
        "weights": "fashion_vit",
        "rows": {"p": {"name": "minmax", "range": "percentile"}},
        "parts": {"a": {"seed": 1}},
    }
    return {"a.json": json.dumps(config("x", "igq", **more).to_dict()).encode()}


def kept(folder: Path) -> Files:
    from jvq.checkpoints import Keeper

    keeper = Keeper(folder / "a", {"model": "x", "bits": [4, 3]}, scored=True)
    for step in (1, 2):
        keeper.save(step, {"w": np.arange(6.0, dtype=np.float32) * step, "step": np.int32(step)}, 0.5)
    keeper.wait()
    keeper.close()
    return files_of(folder / "a")


# --- Loading --------------------------------------------------------------------------------------------------------


def weights(path: Path) -> Checkpoint:
    """As a run opens them."""
    found = open_weights(str(path), model={"heads": 2} if path.suffix != ".safetensors" or path.is_dir() else None)
    Preprocess.from_dict(found.preprocess)
    return found


def foreign(path: Path) -> Checkpoint:
    found = open_weights(str(path), model={"heads": 2})
    Preprocess.from_dict(found.preprocess)
    return found


def foreign_checkpoint_of(path: Path, data: bytes) -> Checkpoint:
    path.write_bytes(data)
    return foreign(path)


def unpacked(path: Path) -> Any:
    from jvq.export import load, load_folder

    return load_folder(path) if path.is_dir() else load(path)


def labels(path: Path) -> Any:
    from jvq.data.soft_labels import SoftLabels, recover

    found = SoftLabels.open(path, images())
    records = [found.record(i, images()[int(place)]["image"]) for i, place in enumerate(found.indices)]
    recover(records[0]["index"], records[0]["value"], found.classes, "smooth")
    return found.indices, np.stack(records)


def image(path: Path) -> np.ndarray:
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of what it reads all the same
        found = read_image(path)
    Preprocess.from_dict(GREY)(found)
    return found


def values(path: Path) -> Any:
    from jvq.config import runs

    def tuples(tree: Any) -> Any:  # which JSON lacks
        if isinstance(tree, dict):
            return {name: tuples(x) for name, x in tree.items()}
        return tuple(tuples(x) for x in tree) if isinstance(tree, list) else tree

    try:
        tree = tuples(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        return {}  # Python's to refuse
    return runs(tree)


def override(path: Path) -> Any:
    """The runs of a config file with overrides, as the command reads them; what it would print, where it refuses."""
    from absl import flags
    from ml_collections import config_flags

    from jvq import main
    from jvq.config import runs

    fresh, said = flags.FlagValues(), path.read_text()
    file = Path(main.__file__).parents[1] / "configs" / "igq_demo.py"
    config_flags.DEFINE_config_file("config", None, "", flag_values=fresh, lock_config=True)
    arguments = ["", f"--config={file}", *said.split("\x1f")]
    try:
        # ml_collections looks there for what is overridden, and loads the file in a way that Python deprecates
        with mock.patch.object(sys, "argv", arguments), warnings.catch_warnings(action="ignore"):
            fresh(arguments)
    except Exception as error:
        raise ValueError(reading.line(" ".join(main._text(error).split()))) from None  # the command's one line
    return runs(fresh.config)


def overrides(_: Path) -> Files:
    said = "--config.seed=3\x1f--config.method.bits=4\x1f--config.data.calibration=16\x1f--config.widths=W8A8,W4A4"
    return {"a.txt": said.encode()}


def override_changed(rng: random.Random, files: Files) -> tuple[str, bytes]:
    """Overrides of other keys with odd values."""
    keys = (
        *("seed", "method.bits", "method.groups", "data.images", "data.name", "weights", "rules", "widths", "seeds"),
        *("resolution", "rows", "rows.a.name", "model.image", "model", "preprocess.mean", "parts.a", "method.name"),
        *("order", "method", "data", "nothing", "method.nothing", ""),
    )
    texts = (
        *map(str, mutations.VALUES),
        "(1,2)",
        "[1",
        "{'a':1}",
        "lambda: 1",
        "()",
        "True",
        "W4A4",
        "a<b",
        "@",
        "1e5",
    )
    said = [f"--config.{rng.choice(keys)}={rng.choice(texts)}" for _ in range(rng.randint(1, 3))]
    data = "\x1f".join(said).encode("utf-8", "replace")
    return "a.txt", data if rng.random() < 0.8 else mutations.of_bytes(rng, data).decode("latin1").encode()


def step(path: Path) -> Any:
    from jvq.checkpoints import Keeper

    keeper = Keeper(path, {"model": "x", "bits": [4, 3]}, scored=True)
    try:
        return keeper.restored({"w": np.zeros(6, np.float32), "step": np.int32(0)})
    finally:
        keeper.close()


def written_down(path: Path) -> dict[str, Any]:
    from jvq.journal import Journal

    return dict(Journal(path, "abc"))


# --- What must hold -------------------------------------------------------------------------------------------------


def whole_model(right: Checkpoint, got: Checkpoint) -> str:
    """A model that can run: float32 parameters of its shapes, all finite."""
    wanted = jax.tree.map(lambda x: (x.shape, "float32"), got.model.shapes())
    if jax.tree.map(lambda x: (x.shape, str(x.dtype)), got.params) != wanted:
        return "parameters of other shapes than the model's"
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(got.params)):
        return "values that are not finite"
    if got.model.spec != right.model.spec:
        jax.eval_shape(got.model.forward, got.params, jax.ShapeDtypeStruct((1, *got.model.image), "float32"))
    return ""


def identical(right: Any, got: Any) -> str:
    """The same to the bit."""
    a, b = jax.tree.leaves(right), jax.tree.leaves(got)
    if len(a) != len(b) or any(np.asarray(x).tobytes() != np.asarray(y).tobytes() for x, y in zip(a, b, strict=True)):
        return "other numbers, in a format with a checksum"
    return ""


def deployed(right: Any, got: Any) -> str:
    """Arrays to the bit, as the digest was not touched; a header that was edited and signed anew may say otherwise."""
    if got.model.spec != right.model.spec or got.plan != right.plan:
        jax.eval_shape(got.forward, jax.ShapeDtypeStruct((1, *got.model.image), "float32"))
        return ""
    return identical((right.params, right.qstate), (got.params, got.qstate))


def pixels(_: np.ndarray, got: np.ndarray) -> str:
    """An image of a bearable size."""
    return (
        "" if got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3 and got.size else f"{got.dtype} {got.shape}"
    )


def labelled(_: Any, got: Any) -> str:
    """Images that a loader takes. A zip file's checksums do not tell who wrote them."""
    fine = got.images.dtype == np.uint8 and got.images.ndim == 4 and got.labels.shape == got.images.shape[:1]
    return "" if fine else f"{got.images.dtype} {got.images.shape} {got.labels.shape}"


def plain(right: Any, got: Any) -> str:
    return ""


def strings(right: Any, got: dict[str, Any]) -> str:
    return "" if all(isinstance(key, str) for key in got) else "keys that are no text"


# --- The table ------------------------------------------------------------------------------------------------------


def one(change: mutations.Change) -> Callable[[random.Random, Files], tuple[str, bytes]]:
    """Changes the only file."""

    def changed(rng: random.Random, files: Files) -> tuple[str, bytes]:
        ((name, data),) = files.items()
        return name, change(rng, data)

    return changed


def any_of(rng: random.Random, files: Files) -> tuple[str, bytes]:
    """Changes one of the files, JSON as JSON."""
    name = rng.choice(sorted(files))
    data = files[name]
    if name.endswith(".npy") and rng.random() < 0.5:
        return name, structured.npy_header(rng, data)
    if name.endswith(".jsonl"):
        return name, mutations.lines(rng, data)
    return name, mutations.text(rng, data) if data[:1] == b"{" and rng.random() < 0.8 else mutations.of_bytes(rng, data)


def json_of(rng: random.Random, files: Files) -> tuple[str, bytes]:
    """Changes one of the JSON files."""
    name = rng.choice([name for name in sorted(files) if name.endswith(".json")])
    return name, mutations.text(rng, files[name])


def a_picture(
    name: str, kind: str, mode: str = "RGB", change: mutations.Change = mutations.of_bytes, **more: Any
) -> Target:
    return Target(f"image: {name}", picture(kind, mode, **more), one(change), image, pixels, (CorruptImage,))


TARGETS: tuple[Target, ...] = (
    Target("weights: jvq", native_file, one(structured.safetensors), weights, whole_model),
    Target("weights: jvq, a Swin", swin_file, one(structured.safetensors), weights, whole_model),
    Target("weights: safetensors", foreign_file, one(structured.safetensors), foreign, whole_model),
    Target("weights: config.json of timm", beside, json_of, weights, whole_model),
    Target("weights: config.json of transformers", of_transformers, json_of, weights, whole_model),
    Target("weights: npz", npz_file, one(structured.npz), weights, whole_model),
    Target("weights: pth", pth_file, one(structured.pth), weights, whole_model),
    Target("weights: ONNX", onnx_file, one(structured.onnx_graph), weights, whole_model),
    Target("weights: orbax", orbax_folder, any_of, weights, whole_model, seconds=20, weight=20),
    Target("packed: file", packed_file, one(structured.packed), unpacked, deployed, weight=2),
    Target("packed: folder", packed_folder, any_of, unpacked, deployed, seconds=20, weight=20),
    Target("soft labels", soft_labels, any_of, labels, identical),
    Target("npz data set", npz_set, one(structured.npz), lambda p: open_source("npz", "test", p), labelled),
    Target("journal", journal, one(mutations.lines), written_down, strings, ()),
    Target("config: values", run_values, one(mutations.text), values, plain),
    Target("config: overrides", overrides, override_changed, override, plain, weight=4),
    Target("checkpoints", kept, any_of, step, plain, seconds=20, weight=40),
    a_picture("png", "PNG", change=structured.png),
    a_picture("png, 16 bits", "PNG", "I;16", structured.png),
    a_picture("png, palette", "PNG", "P", structured.png),
    a_picture("png, animated", "PNG", change=structured.png, animated=True),
    a_picture("jpeg", "JPEG"),
    a_picture("jpeg, CMYK", "JPEG", "CMYK"),
    a_picture("jpeg, progressive", "JPEG", progressive=True),
    a_picture("gif", "GIF", "P"),
    a_picture("webp", "WEBP"),
    a_picture("webp, animated", "WEBP", animated=True),
    a_picture("bmp", "BMP"),
)
NAMED = {target.name: target for target in TARGETS}
assert len(NAMED) == len(TARGETS)
