"""What a tiny ViT comes to on given devices; as a script on each of several numbers of them, written to a file.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/distributed/on_devices.py FOLDER

The number of devices is read when JAX starts, so that this runs in a process of its own.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jvq.core.calibrate import calibrate
from jvq.core.mesh import everywhere, lying_as, mesh_of, placed
from jvq.core.recipe import resolve, sites
from jvq.evaluate import predict, runner, score
from jvq.methods import igq, liu21, nuclear
from jvq.methods.bias import sequential_mean_errors
from jvq.methods.sensitivity import _product_bytes, sweep, sweep_modules
from jvq.models import build
from jvq.quantizers import Grouped, Learned, Uniform
from jvq.schedule import Schedule
from jvq.train import Objective, run

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "classes": 3}
COUNT, BATCH = 37, 2  # of images; of a unit: rounds of 2, 4 and 16, the last of each filled up
NUMBERS = (1, 2, 8)  # of devices along data
RULES = [("block.*/mlp/fc1/kernel", ".m"), ("block.*/mlp/fc1/bias", "m"), ("block.*/mlp/fc2/kernel", "m.")]
RECIPE = [
    ("*", Uniform(8)),
    ("*.w", Uniform(4, "o", range="mse")),
    ("*/qkv.w", Uniform(4, "she")),
    ("*/mlp/*.x", Grouped(4, 3, "d", restarts=1, iterations=5)),
    ("*/pv.p", Grouped(4, 3, "hq", nonnegative=True, mstep="mean", restarts=1, iterations=5)),
    ("*/qk.q", Uniform(4, "h", range="percentile", percentile=(1.0, 0.1))),
    ("*/qk.k", Uniform(4, range="mse")),
    ("*/pv.v", Learned(4, "h")),
]  # fmt: skip
SEARCH = dict(bits=4, steps=5, rounds=2, mixed=True, mixed_bits=(3, 5), activations="groups", groups=2)
SEARCH |= dict(bias_correction="search")  # that of the pass at the end is not the same to the bit
GROUPS = dict(bits=3, groups=2, restarts=1, iterations=5, candidates=(2, 3), allocation="bops")

model = build("vit", SPEC)
rng = np.random.default_rng(0)
params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.1, 0.5, s.shape), jnp.float32), model.shapes())
images = rng.normal(size=(COUNT, *model.image)).astype(np.float32)
labels = rng.integers(3, size=COUNT).astype(np.int32)
known = sites(model.forward, params, model.image)


def states(mesh):
    """Calibration in one pass, with some of the values left out, and site by site."""
    plan = resolve(RECIPE, known)
    given = model.forward, params, images, plan, known
    found = {"parallel": calibrate(*given, batch=BATCH, values=COUNT * 24, mesh=mesh)}
    few = {a: plan[a] for a in ("block00/mlp/fc1.x", "block00/mlp/fc1.w", "block00/mlp/fc2.x")}
    found["sequential"] = calibrate(*given[:3], few, known, batch=BATCH, sequential=True, mesh=mesh)
    return found


def swept(mesh):
    """Divergences, in units of two images, and how they were kept; of modules by both measures."""
    plan = {a: q for a, q in resolve(RECIPE, known).items() if a.endswith(("fc1.x", "pv.p", "fc2.w"))}
    state = calibrate(model.forward, params, images, plan, known, mesh=mesh)
    journal = {}
    how = dict(memory=BATCH * _product_bytes(known), journal=journal, mesh=mesh)
    some = {a: [q] for a, q in plan.items()}, {a: [state[a]] for a in plan}
    loss = sweep(model.forward, params, images, *some, known, **how)
    modules = {m.name: m.addresses for m in nuclear.modules(known)}
    given = model.forward, params, images
    return {
        "loss": loss,
        "journal": journal,
        "modules": sweep_modules(*given, modules, plan, [state], batch=BATCH, mesh=mesh),
        "omegas": nuclear.omegas(*given, plan, [state], known, batch=BATCH, mesh=mesh),
    }


def fitted(method, mesh, **options):
    """The plan's widths and numbers of groups, states, and parameters of a method."""
    chosen = method.Options(**options)
    plan = resolve(method.recipe(chosen, known), known)
    fit = method.fit(chosen, model.forward, params, images, plan, known, mesh=mesh)
    widths = {a: [q.bits, getattr(q, "groups", 0)] for a, q in fit.plan.items()}
    searched = {s: [n["left"], n["right"], n["score"]] for s, n in fit.notes.get("search", {}).items()}
    return {"plan": widths, "states": fit.qstate, "params": fit.params, "search": searched}


def evaluated(mesh, where=None, batch=16):
    """Logits and score; the last batch is uneven, and an image in the middle cannot be read."""
    plan = resolve([("*.w", Uniform(3, "o")), ("*/qkv.w", Uniform(3, "she"))], known)
    state = calibrate(model.forward, params, images[:4], plan, known)
    on, state = everywhere(mesh, (params if where is None else where, state))
    batches = []
    for i in range(0, COUNT, batch):
        lacking = max(i + batch - COUNT, 0)
        part = np.pad(images[i : i + batch], [(0, lacking), *[(0, 0)] * 3])
        mask = np.arange(i, i + batch) < COUNT
        mask[3] = False
        batches.append({"image": part, "label": np.pad(labels[i : i + batch], (0, lacking)), "mask": mask})
    got = [predict(lambda x, r=r, s=s: r(on, s, x), batches, "", mesh=mesh) for r, s in _models(plan, state)]
    return {"logits": got[1].logits, "labels": got[1].labels, "score": list(score(*got))}


def _models(plan, state):
    return (runner(model.forward, {}), {}), (runner(model.forward, plan), state)


def trained(mesh, where=None):
    """Parameters after two steps, and the optimiser's state."""

    def loss(p, fixed, batch, key):
        logits = model.forward(p, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), {}

    batches = [{"image": images[i : i + 8], "label": labels[i : i + 8]} for i in (0, 8)]
    begin = params if where is None else where
    schedule = Schedule(2, 1e-2, accumulate=1)
    with jax.numpy_dtype_promotion("standard"):  # optax's
        return run(Objective(loss), begin, lambda start: batches[start:], schedule, jax.random.key(0), mesh=mesh)


def plain(mesh):
    """What is compared with one device without a mesh too, by name."""
    found = {"states": states(mesh), "evaluated": evaluated(mesh), "odd": evaluated(mesh, batch=15)}
    return flat({**found, "trained": trained(mesh).trained})


def methods(mesh):
    """The sweeps, IGQ-ViT's allocation, and Liu et al.'s search, corrections and widths, by name."""
    found = {"swept": swept(mesh), "igq": fitted(igq, mesh, **GROUPS)}
    plan = {a: q for a, q in resolve(RECIPE, known).items() if known[a].path is not None}
    state = calibrate(model.forward, params, images, plan, known)
    last = sequential_mean_errors(model.forward, params, images, plan, state, known, mesh)
    return flat({**found, "liu21": fitted(liu21, mesh, **SEARCH), "last": last})


def flat(tree):
    """The arrays of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {"/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): np.asarray(x) for path, x in leaves}


def split_weights():
    """On four by two devices, wide weights in parts: where they lie, also behind training, and what comes out."""
    mesh = mesh_of(4, 2)
    laid = placed(params, mesh, RULES)
    progress = trained(mesh, laid)
    shown = {}
    for name, tree in (
        ("begin", laid),
        ("end", progress.trained),
        ("state", optax.tree_utils.tree_get(progress.state, "mu")),
        ("again", lying_as(jax.device_get(laid), laid)),
    ):
        mlp = tree["block00"]["mlp"]
        kernels = {**{f"{n}/kernel": mlp[n]["kernel"] for n in mlp}, "fc1/bias": mlp["fc1"]["bias"]}
        shown[name] = {n: [s.data.shape for s in x.addressable_shards] for n, x in kernels.items()}
    state = calibrate(model.forward, laid, images, resolve(RECIPE, known), known, batch=BATCH, mesh=mesh)
    return flat(
        {
            "shown": shown,
            "refused": _refused(),
            "evaluated": evaluated(mesh, laid),
            "trained": progress.trained,
            "state": state,
        }
    )


def _refused():
    try:
        placed(params, mesh_of(2, 4), [("head/kernel", ".m")])
    except ValueError as error:
        return np.asarray(str(error))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for number in NUMBERS:
        np.savez(folder / f"{number}.npz", **plain(mesh_of(number)), **methods(mesh_of(number)))
    np.savez(folder / "split.npz", **split_weights())
