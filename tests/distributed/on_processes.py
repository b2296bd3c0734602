"""What a tiny ViT comes to on one of several processes, written to a file; and what is then restored by a single one.

    python tests/distributed/on_processes.py work FOLDER HOST:PORT 2 0 & python ... 2 1
    python tests/distributed/on_processes.py rules FOLDER HOST:PORT 2 0 & python ... 2 1
    python tests/distributed/on_processes.py restore FOLDER
    python tests/distributed/on_processes.py together FOLDER HOST:PORT 2 0 & python ... 2 1

The processes join before anything is computed, so that they are not those of the test.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvq.checkpoints import Keeper
from jvq.core import hosts
from jvq.core.calibrate import calibrate
from jvq.core.freeze import freeze
from jvq.core.mesh import everywhere, gathered, mesh_of, placed, single
from jvq.core.recipe import resolve, sites
from jvq.data import Loader, Preprocess, sample, train_batches
from jvq.data.records import CorruptImage
from jvq.evaluate import predict, runner, score
from jvq.journal import Journal, fingerprint
from jvq.methods import oscillation
from jvq.mistakes import one_line
from jvq.models import build
from jvq.quantizers import Grouped, Learned, Uniform
from jvq.schedule import Schedule
from jvq.train import Objective, beginning, run

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "classes": 3}
PREPROCESS = Preprocess((8, 8), None, "bicubic", (0.5,), (0.25,))
COUNT, BATCH, DRAWN = 37, 10, 13  # of images; of a batch, no multiple of 4; for calibration
CORRUPT = (7, 22)
RECIPE = [
    ("*", Uniform(8)),
    ("*.w", Uniform(4, "o")),
    ("*/fc2.w", Learned(4, "o", start="mean")),  # a sum over both parts
    ("*/qkv.w", Uniform(4, "she")),
    ("*/fc1.x", Grouped(4, 3, "d", restarts=1, iterations=5)),
    ("*/qk.k", Uniform(4, range="mse")),
]
SCHEDULE = Schedule(2, 1e-2)
RULES = [
    ("block.*/attn/qkv/kernel", "..m."),
    ("block.*/attn/qkv/bias", ".m."),
    ("block.*/mlp/fc1/kernel", ".m"),
    ("block.*/mlp/fc1/bias", "m"),
    ("block.*/mlp/fc2/kernel", "m."),
]


class Pictures:
    """A source that notes what is read of it; two images cannot be read."""

    name, classes = "pictures", ("a", "b", "c")

    def __init__(self):
        self.pixels = np.random.default_rng(1).integers(0, 256, (COUNT, 8, 8, 1), dtype=np.uint8)
        self.labels = np.random.default_rng(2).integers(3, size=COUNT)
        self.read, self.whole = [], False

    def __len__(self):
        return COUNT

    def __getitem__(self, i):
        self.read.append(i)
        if i in CORRUPT and not self.whole:
            raise CorruptImage(f"picture {i}: broken")
        return {"image": self.pixels[i], "label": int(self.labels[i])}

    def taken(self):
        """What was read since this was asked last."""
        read, self.read = self.read, []
        return np.sort(np.asarray(read, int))


class World:
    """A model, its parameters (by ``rules`` in parts), and pictures; made after the processes have joined."""

    def __init__(self, mesh=None, rules=()):
        rng = np.random.default_rng(0)
        self.model = build("vit", SPEC)
        shapes = self.model.shapes()
        self.params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.5, s.shape), jnp.float32), shapes)
        self.params = placed(self.params, mesh, rules) if rules else self.params
        self.known = sites(self.model.forward, self.params, self.model.image)
        self.pictures = Pictures()

    def calibrated(self, mesh):
        """What was drawn, the states of all quantisers, and which pictures this process has read."""
        drawn = sample(self.pictures, PREPROCESS, DRAWN, 3)
        plan = resolve(RECIPE, self.known)
        given = self.model.forward, self.params, drawn.images, plan, self.known
        state = calibrate(*given, batch=2, values=DRAWN * 24, mesh=mesh)
        packed = single(freeze(self.params, plan, state, self.known)[0])
        return {"drawn": drawn._asdict(), "state": state, "packed": packed, "read": self.pictures.taken()}

    def evaluated(self, mesh):
        """Logits and score of four uneven batches, what was skipped, and which pictures this process has read."""
        loader = Loader(self.pictures, PREPROCESS, BATCH, mesh=mesh)
        forward, params = runner(self.model.forward, {}), everywhere(mesh, self.params)
        got = predict(lambda x: forward(params, {}, x), loader, "", mesh=mesh)
        found = {"logits": got.logits, "labels": got.labels, "score": list(score(got, got))}
        return {**found, "skipped": np.asarray(loader.skipped), "read": self.pictures.taken()}

    def objective(self):
        def loss(p, fixed, batch, key):
            noise = 0.01 * jax.random.normal(key, batch["image"].shape)
            logits = self.model.forward(p, batch["image"].astype(jnp.float32) / 255 + noise)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), {}

        return Objective(loss)

    def trained(self, mesh, folder=None):
        """Parameters and moments after two steps, also as a checkpoint in the folder."""
        self.pictures.whole = True

        def stream(start):
            return train_batches(self.pictures, 8, 5, 1, start=start, mesh=mesh)

        keeper = None if folder is None else Keeper(folder, {"test": "processes"}, every=1)
        with contextlib.nullcontext() if keeper is None else contextlib.closing(keeper):
            progress = run(self.objective(), self.params, stream, SCHEDULE, jax.random.key(7), keeper=keeper, mesh=mesh)
        read, self.pictures.whole = self.pictures.taken(), False
        return {"trained": progress.trained, "moments": optax.tree_utils.tree_get(progress.state, "mu"), "read": read}

    def restored(self, mesh, folder):
        """The same out of the checkpoint."""
        begin = everywhere(mesh, beginning(self.objective(), self.params, SCHEDULE.optimizer(), SCHEDULE))
        with contextlib.closing(Keeper(folder, {"test": "processes"}, every=1)) as keeper:
            progress = keeper.restored(begin)
        return {"trained": progress.trained, "moments": optax.tree_utils.tree_get(progress.state, "mu")}


def flat(tree):
    """The arrays of a tree by their paths, whole."""
    leaves = jax.tree_util.tree_leaves_with_path(gathered(tree))
    return {"/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): np.asarray(x) for path, x in leaves}


def ruled(folder, process):
    """What comes of wide weights in two parts along ``model``, and how they lie on this process's devices."""
    mesh, before = mesh_of(model=2), jax.live_arrays()
    world = World(mesh, RULES)
    found = {
        "calibrated": world.calibrated(mesh),
        "evaluated": world.evaluated(mesh),
        "trained": world.trained(mesh, (folder if hosts.leads() else folder / f"own-{process}") / "parts"),
        "fingerprint": np.asarray(fingerprint(world.params)),
    }
    shown = {"begin": world.params, "end": found["trained"]["trained"], "moments": found["trained"]["moments"]}
    kernel = world.params["block00"]["attn"]["qkv"]["kernel"]  # none but it and its moments has its shape
    live = [x for x in jax.live_arrays() if x.shape == kernel.shape and not any(x is y for y in before)]
    found["live"] = np.asarray([len(live), *(len(x.addressable_shards) for x in live if _is_whole(x))])
    shown = {when: tree["block00"] for when, tree in shown.items()} | {"tracks": oscillation.begin(kernel)._asdict()}
    return {**found, "shown": {when: _lying(tree) for when, tree in shown.items()}}


def _is_whole(x):
    return any(shard.data.shape == x.shape for shard in x.addressable_shards)


def _lying(block):
    """By the name of a parameter the shapes of its parts on this process's devices."""
    leaves = jax.tree_util.tree_leaves_with_path(block)
    return {"/".join(k.key for k in p): np.asarray([s.data.shape for s in x.addressable_shards]) for p, x in leaves}


def worked(folder, process):
    """All that this process comes to."""
    world, mesh = World(), mesh_of()
    mine = folder / f"own-{process}"
    mine.mkdir()
    journal = Journal((folder if hosts.leads() else mine) / "journal", "test")
    rows = np.arange((process + 1) % 4 * 3, dtype=np.float64).reshape(-1, 3) + 0.1 + process
    found = {
        "calibrated": world.calibrated(mesh),
        "evaluated": world.evaluated(mesh),
        "trained": world.trained(mesh, (folder if hosts.leads() else mine) / "kept"),
        "journal": np.asarray(sorted(journal.items())),
        "agreed": np.asarray([hosts.agreed(process + 5), *hosts.shared(process), hosts.any_of(process == 1)]),
        "stacked": hosts.stacked(rows),
        "led": np.asarray(_refused()),
        "small": _small(world.pictures, mesh),
        "ruled": ruled(folder, process),
    }
    np.savez(folder / f"process-{process}.npz", **flat(found))


def _small(pictures, mesh):
    """Labels and masks of batches of fewer images than processes, of which the first has all."""
    found = [*Loader(pictures, PREPROCESS, 1, range(3), mesh=mesh)]
    pictures.taken()
    return {name: np.concatenate([batch[name] for batch in found]) for name in ("label", "mask")}


def _refused():
    def work():
        raise ValueError("not so")

    try:
        hosts.led(work)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def dying(folder, process, last, how):
    """The last process is killed, or makes a mistake, while the others go on to compute together, or alone."""
    journal = Journal(folder / f"journal-{process}", "test")
    journal["a"] = 1
    print(f"begun {hosts.shared(process)}", flush=True)
    if process == last:
        time.sleep(0.5)
        if how == "mistake":
            raise ValueError("a mistake of its own")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "alone":
        time.sleep(60)
    while True:
        hosts.shared(process)


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "restore":
        world, mesh = World(), mesh_of()
        found = {name: world.restored(mesh, where / name) for name in ("kept", "parts") if (where / name).exists()}
        if jax.device_count() > 1:
            mesh = mesh_of(model=2)
            found["again"] = World(mesh, RULES).restored(mesh, where / "parts")
        np.savez(where / f"restored-{jax.device_count()}.npz", **flat(found))
        sys.exit()
    address, number, index = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    with hosts.ending(), one_line(ValueError), hosts.noticing():
        hosts.joined(address, number, index, silence=5 if what == "alone" else 60, patience=60)
        if what == "work":
            worked(where, index)
        elif what == "rules":
            (where / f"own-{index}").mkdir()
            np.savez(where / f"process-{index}.npz", **flat({"ruled": ruled(where, index)}))
        else:
            dying(where, index, number - 1, what)
