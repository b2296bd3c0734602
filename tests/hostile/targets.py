"""The table: every loader with whole input, how that is changed, and what must hold of what it accepts all the same."""

import random
from collections.abc import Callable
from typing import Any

from jvq.data import open_source
from jvq.data.records import CorruptImage

from . import inputs, loading, models, mutations, structured
from .trial import Files, Target


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
    return Target(
        f"image: {name}",
        inputs.picture(kind, mode, **more),
        one(change),
        loading.image,
        loading.pixels,
        (CorruptImage,),
    )


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


TARGETS: tuple[Target, ...] = (
    Target("weights: jvq", models.native_file, one(structured.safetensors), loading.weights, loading.whole_model),
    Target("weights: jvq, a Swin", models.swin_file, one(structured.safetensors), loading.weights, loading.whole_model),
    Target(
        "weights: safetensors", models.foreign_file, one(structured.safetensors), loading.foreign, loading.whole_model
    ),
    Target("weights: config.json of timm", models.beside, json_of, loading.weights, loading.whole_model),
    Target(
        "weights: config.json of transformers", models.of_transformers, json_of, loading.weights, loading.whole_model
    ),
    Target("weights: npz", models.npz_file, one(structured.npz), loading.weights, loading.whole_model),
    Target("weights: pth", models.pth_file, one(structured.pth), loading.weights, loading.whole_model),
    Target("weights: ONNX", models.onnx_file, one(structured.onnx_graph), loading.weights, loading.whole_model),
    Target("weights: orbax", models.orbax_folder, any_of, loading.weights, loading.whole_model, seconds=20, weight=20),
    Target("packed: file", models.packed_file, one(structured.packed), loading.unpacked, loading.deployed, weight=2),
    Target("packed: folder", models.packed_folder, any_of, loading.unpacked, loading.deployed, seconds=20, weight=20),
    Target("soft labels", inputs.soft_labels, any_of, loading.labels, loading.identical),
    Target(
        "npz data set", inputs.npz_set, one(structured.npz), lambda p: open_source("npz", "test", p), loading.labelled
    ),
    Target("journal", inputs.journal, one(mutations.lines), loading.written_down, loading.strings, ()),
    Target("config: values", inputs.run_values, one(mutations.text), loading.values, loading.plain),
    Target("config: overrides", inputs.overrides, override_changed, loading.override, loading.plain, weight=4),
    Target("checkpoints", inputs.kept, any_of, loading.step, loading.plain, seconds=20, weight=40),
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
