"""Whole input of each other loader: data sets, soft labels, images, journals, configs, checkpoints of a run."""

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jvq.data import Preprocess
from jvq.data.records import InMemory

from .models import PREPROCESS, files_of
from .trial import Files


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


def picture(kind: str, mode: str = "RGB", animated: bool = False, **options: Any) -> Callable[[Path], Files]:
    """An image of one of Pillow's modes in a file of one kind."""

    def make(_: Path) -> Files:
        rng, stream = np.random.default_rng(3), io.BytesIO()
        made = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
        wide = Image.fromarray(rng.integers(0, 2**16, (20, 30), np.uint16))
        made = wide if mode == "I;16" else made.convert(mode)
        more = {"save_all": True, "append_images": [made.rotate(90), made]} if animated else {}
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


def overrides(_: Path) -> Files:
    said = "--config.seed=3\x1f--config.method.bits=4\x1f--config.data.calibration=16\x1f--config.widths=W8A8,W4A4"
    return {"a.txt": said.encode()}
