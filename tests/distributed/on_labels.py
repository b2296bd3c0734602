"""What one of several processes makes of stored soft labels and of finished rows, written to a file.

python tests/distributed/on_labels.py FOLDER HOST:PORT 2 0 & python tests/distributed/on_labels.py ... 2 1
"""

import functools
import os
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jvq import kept
from jvq.core import hosts
from jvq.core.mesh import DATA, everywhere, mesh_of
from jvq.data import CropPolicy, InMemory, Preprocess, SoftLabels, crop_batches, label_folder, soft_labels
from jvq.export.quantizer_text import KINDS
from jvq.mistakes import one_line
from jvq.models import build
from jvq.report import Console

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "classes": 7}
PREPROCESS = Preprocess((8, 8), None, "bicubic", (0.5,), (0.25,))
IMAGES, SHARD, CROPS, KEEP, CALLED = 11, 4, 6, 3, 8  # three shards, of 4, 4 and 3 images; crops that the teacher gets
BATCH, EPOCHS = 12, 9  # of crops: with 4 of an image the middle one's belong to two processes


class Pictures:
    """A source that notes what is read of it, one image at a time."""

    name, classes = "pictures", ()

    def __init__(self):
        rng = np.random.default_rng(1)
        self.held = InMemory("pictures", rng.integers(0, 256, (IMAGES, 12, 15, 1), np.uint8), np.arange(IMAGES) % 7)
        self.read = []

    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        self.read.append(i)
        return self.held[i]


class Teacher:
    """A tiny ViT that counts how often it is asked."""

    def __init__(self):
        rng, model = np.random.default_rng(0), build("vit", SPEC)
        self.params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), model.shapes())
        self.forward, self.calls = jax.jit(model.forward), 0

    def __call__(self, images):
        self.calls += 1
        return self.forward(self.params, images)


def write(folder, source, teacher, **more):
    """The labels in the folder."""
    named = {"teacher_name": "vit", "teacher_digest": "abc", "classes": 7, "crops": CROPS, "keep": KEEP}
    policy = CropPolicy((0.3, 1.0))
    return soft_labels.write(
        folder, source, PREPROCESS, teacher, **named, policy=policy, shard=SHARD, batch=CALLED, **more
    )


def batches(labels, source, mesh, per_image):
    """All batches, stacked by name; and which images were read for them."""
    source.read = []
    made = [*crop_batches(source, labels, PREPROCESS, BATCH, per_image, EPOCHS, 5, mesh=mesh)]
    return {name: np.stack([batch[name] for batch in made]) for name in made[0]} | {"read": np.asarray(source.read)}


def labelled(folder, mine):
    """The labels, written by all, damaged, and written again; what was asked of the teacher; the batches of them."""
    source, first, again = Pictures(), Teacher(), Teacher()
    write(mine / "labels", source, first)
    where = folder / "labels"
    hosts.shared(0)  # all have opened them
    if hosts.leads():
        (where / "00000.npy").unlink()
        (where / "00002.npy").write_bytes(b"damaged")
    hosts.shared(0)
    labels = write(mine / "labels", source, again)
    assert labels.folder == where
    with_some = write(mine / "some", source, Teacher(), indices=[9, 2, 5, 3, 0])
    assert len(with_some) == 5
    opened, mesh = SoftLabels.open(where, source), mesh_of()
    found = {f"batches{m}": batches(opened, source, mesh, m) for m in (3, 4)}
    return {**found, "calls": np.asarray([first.calls, again.calls])}


def never():
    raise AssertionError("computed again")


def values(mesh):
    """A value with arrays on this process alone, on all whole, and on all in parts."""
    plan = {"a.x": KINDS["Uniform"](4)}
    whole = everywhere(mesh, jnp.arange(3.0))
    rows = np.arange(2.0 * mesh.size, dtype=np.float32)
    parts = jax.make_array_from_callback(rows.shape, NamedSharding(mesh, P(DATA)), lambda at: rows[at])
    return {"plan": plan, "own": np.arange(5), "whole": whole, "parts": parts, "none": None}


def finished(process, mine):
    """What is found of the work of an earlier run, and what all compute again."""
    console, computed = Console(quiet=True), []
    console.say = lambda text: None

    def keep(mark="mark"):
        return kept.Kept(mine, mark, console)

    def work(result):
        computed.append(result)
        return result

    begun = values(mesh_of())
    keep()("a", lambda: begun)
    took = keep()("a", never)
    assert isinstance(took["whole"], jax.Array)
    assert took["plan"] == begun["plan"]
    assert took["none"] is None
    assert all(took[name].sharding.device_set == {jax.local_devices()[0]} for name in ("whole", "parts"))
    keep("other")("a", functools.partial(work, 1))  # another run's
    assert keep("other")("a", never) == 1
    if process == 1:  # who does not understand what the leading one has found
        real, kept._unpacked = kept._unpacked, _raises
    assert keep("other")("a", functools.partial(work, 2)) == 2
    if process == 1:
        kept._unpacked = real
    if hosts.leads():
        for path in kept.folder(mine).iterdir():
            path.write_bytes(path.read_bytes()[:50])
    assert keep("other")("a", functools.partial(work, 3)) == 3
    marks = [_of(mine, about, console).mark for about in ("same", "same", f"differs in {process}")]
    return {
        "computed": np.asarray(computed),
        "took": {name: took[name] for name in ("own", "whole", "parts")},
        "marks": np.asarray(marks),
        "sent": np.frombuffer(_sent(process), np.uint8),
    }


def _raises(*_):
    raise ValueError("not here")


def _of(mine, about, console):
    source = InMemory("made", np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32))
    checkpoint = types.SimpleNamespace(params={"a": everywhere(mesh_of(), jnp.ones(2))})
    return kept.Kept.of(about, mine, checkpoint, types.SimpleNamespace(source=source), source, console)


def _sent(process):
    """Ten bytes of the leading process, four at a time."""
    assert hosts.sent(None) is None
    assert hosts.sent(b"") == b""
    hosts.PART, before = 4, hosts.PART
    said = hosts.sent(bytes(range(10)) if hosts.leads() else os.urandom(3))
    hosts.PART = before
    return said


def main(folder, address, number, process):
    """All of it, in files of the folder."""
    hosts.joined(address, number, process, silence=60, patience=120)
    mine = folder if hosts.leads() else folder / f"own-{process}"
    mine.mkdir(exist_ok=True)
    found = labelled(folder, mine) | finished(process, mine)
    flat = {}
    for name, value in found.items():
        flat |= {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    np.savez(folder / f"process-{process}.npz", **flat)
    lost = folder / "seen-by-0"
    if hosts.leads():
        lost.mkdir()
        label_folder.replace(lost / label_folder.HEADER, b"{}")
    else:
        label_folder.HEADER = "elsewhere"  # as on a host that has another folder there
    soft_labels._seen_by_all(lost)


if __name__ == "__main__":
    with hosts.ending(), one_line(ValueError), hosts.noticing():
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
