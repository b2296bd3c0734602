# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many devices: calibration and training in parts
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jvq-project/jvq/blob/main/notebooks/05_multi_device.ipynb)
#
# You will see a 4-bit Vision Transformer calibrated on one, two and eight devices, with states that are the same to the
# last bit, train it for two dozen steps on all of them, and split wide weights between devices. Nothing in it names a
# platform, so that it is meant for TPU slices and several GPUs too (it was tried on simulated devices alone). Where
# there is no accelerator, a CPU is made to look like eight devices, which share its cores: nothing here is about speed.

# %%
try:
    import jvq
except ImportError:  # in Colab
    # %pip install -q git+https://github.com/jvq-project/jvq
    import jvq

import glob
import os

if not any(glob.glob(f"/dev/{kind}") for kind in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*")):  # no accelerator
    # before JAX looks for devices, when it reads it
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from jvq import evaluate
from jvq.core.mesh import Rounds, everywhere, mesh_of, placed, split
from jvq.data import Preprocess, batches, open_source, sample, train_batches
from jvq.data.augment import preparation
from jvq.schedule import Schedule
from jvq.train import Objective, run

FAST = os.environ.get("JVQ_NOTEBOOK_FAST") == "1"  # a smaller run, for the tests
TESTED = 130 if FAST else 1010  # images on which accuracy is measured: not a multiple of anything
STEPS = 4 if FAST else 24
NUMBERS = [n for n in (1, 2, 8) if n <= jax.device_count()]

plt.rcParams.update({"figure.dpi": 90, "figure.constrained_layout.use": True, "font.size": 9})
print("running on", jax.devices())

# %% [markdown]
# ## 1. A mesh
#
# A mesh names the devices' axes: images lie in parts along `data`, weights whole on each device. Below, every rectangle
# is a part of an array, with the number of the device that has it: a batch of 16 images (rows), and a weight.

# %%
checkpoint = jvq.open_weights("fashion_vit")
model, params, preprocess = checkpoint.model, checkpoint.params, Preprocess.from_dict(checkpoint.preprocess)
images = sample(open_source("fashion", "train"), preprocess, 37, seed=0).images
mesh = mesh_of()
print(mesh)

batch, mask = split(mesh, images[:16])
jax.debug.visualize_array_sharding(batch.reshape(len(batch), -1))

# %%
kernel = everywhere(mesh, params)["block00"]["mlp"]["fc1"]["kernel"]
jax.debug.visualize_array_sharding(kernel)

# %% [markdown]
# ## 2. Calibration: the same state on any number of devices
#
# There are 37 calibration images, which no number of devices divides. Each device is given two at a time; what is
# missing in the last round is filled up, and a mask says so.

# %%
for part in Rounds(mesh, images, 2):
    print(f"images {part.first} to {part.first + part.mask.sum() - 1}, filled up by {(~part.mask).sum()}")

# %% [markdown]
# The plan: weights of 4 bits with a scale per output channel, groups of channels and of attention rows chosen for every
# image (IGQ-ViT), a percentile for query, key and value.

# %%
known = jvq.sites(model.forward, params, model.image)
recipe = [
    ("*", jvq.Uniform(8)),
    ("block*.w", jvq.Uniform(4, "o")),
    ("*/qkv.w", jvq.Uniform(4, "she")),
    ("block*.x", jvq.Grouped(4, 8, "d")),
    ("*/pv.p", jvq.Grouped(4, 8, "hq", nonnegative=True)),
    *[
        (f"*/{role}", jvq.Uniform(4, "h", range="percentile", percentile=(0.1, 0.01)))
        for role in ("qk.q", "qk.k", "pv.v")
    ],
]
plan = jvq.resolve(recipe, known)
states = {
    n: jvq.calibrate(model.forward, params, images, plan, known, batch=2, mesh=mesh_of(n) if n else None)
    for n in (0, *NUMBERS)
}

for n in NUMBERS:
    pairs = zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[n]), strict=True)
    same = [np.array_equal(a, b) for a, b in pairs]
    print(f"{n} devices: {sum(same)} of {len(same)} arrays are identical to those without a mesh")
    assert all(same)

# %% [markdown]
# The state of a quantiser in groups decides which group a channel of an image belongs to: equal states, equal groups.

# %% [markdown]
# ## 3. Evaluation
#
# `predict` splits every batch. The last one is uneven; all images are counted, and each once.

# %%
test = open_source("fashion", "test")
loader = batches(test, preprocess, 250, np.arange(TESTED))
quantized = evaluate.runner(model.forward, plan)


def top1(n):
    """Predictions, and the share of right ones, on n devices."""
    mesh = mesh_of(n)
    on, state = everywhere(mesh, (params, states[n]))
    got = evaluate.predict(lambda x: quantized(on, state, x), loader, "evaluating", mesh=mesh)
    return got, (got.logits.argmax(axis=1) == got.labels).mean()


found = {n: top1(n) for n in NUMBERS}
for n, (got, share) in found.items():
    apart = np.abs(got.logits - found[1][0].logits).max()
    print(f"{n} devices: {len(got.labels)} images, top-1 {100 * share:.2f} %, logits differ by at most {apart:.1e}")

# %% [markdown]
# ## 4. Two dozen steps of training
#
# A 3-bit model with learned scales learns from the float one. Batches of 64 lie in parts, everything else whole on all
# devices; XLA adds up the gradients, in an order that depends on the number of devices. So steps are equal to rounding,
# but only until a value on the edge between two codes falls to the other side: from there on, training is another of
# many like it. One device does the same when every weight begins a ten-millionth larger, which the third curve shows.

# %%
student = jvq.resolve(
    [("block*.w", jvq.Learned(3, "o")), ("*/qkv.w", jvq.Learned(3, "she")), ("block*.[xqkpv]", jvq.Learned(3))], known
)
begin = {
    "params": params,
    "q": jvq.calibrate(model.forward, params, images, student, known, batch=2, mesh=mesh),
}
prepare = preparation(preprocess, 2)


def loss(trained, teacher, batch, key):
    """KL of the student's predictions from the teacher's, on the same augmented images."""
    x = prepare(key, batch["image"])
    told = jax.nn.softmax(model.forward(teacher, x))
    said = model.forward(trained["params"], x, jvq.quantized(student, trained["q"]))
    return optax.softmax_cross_entropy(said, told).mean() - optax.softmax_cross_entropy(jnp.log(told), told).mean(), {}


def trained_on(n, begin):
    """The loss of every step on n devices."""
    curve = []
    run(
        Objective(loss, fixed=params),
        begin,
        lambda start: train_batches(open_source("fashion", "train"), 64, 0, 1, start=start),
        Schedule(STEPS, 5e-4),
        jax.random.key(0),
        every=1,
        on_step=lambda step, numbers: curve.append(numbers["loss"]),
        mesh=mesh_of(n),
    )
    return np.array(curve)


curves = {f"{n} device" + "s" * (n > 1): trained_on(n, begin) for n in dict.fromkeys((1, NUMBERS[-1]))}
nudged = {**begin, "params": jax.tree.map(lambda x: x * (1 + 1e-7), params)}
curves["1 device, weights larger by 1e-7"] = trained_on(1, nudged)
for name, curve in curves.items():
    apart = np.abs(curve - curves["1 device"])
    print(f"{name}: loss {curve[0]:.3f} to {curve[-1]:.3f}; from one device's", end=" ")
    print(f"at first {apart[0]:.0e}, at most {apart.max():.0e}")

# %%
figure, axes = plt.subplots(figsize=(5, 2.6))
for (name, curve), style in zip(curves.items(), ("-", "o", "x"), strict=False):
    axes.plot(range(1, STEPS + 1), curve, style, markersize=4, label=name)
axes.set_xlabel("step")
axes.set_ylabel("KL from the float model, nats")
axes.set_ylim(bottom=0)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 5. Wide weights in parts
#
# A second axis of the mesh, `model`, takes weights that rules name: a regular expression over the parameter's name, and
# a letter for each of its axes, `.` whole and `m` in parts. The MLP's first kernel is split by its columns, the second
# by its rows, so that a block needs one sum over devices.

# %%
rules = [("block.*/mlp/fc1/kernel", ".m"), ("block.*/mlp/fc1/bias", "m"), ("block.*/mlp/fc2/kernel", "m.")]
if jax.device_count() % 2 == 0:
    wide = mesh_of(None, 2)
    laid = placed(params, wide, rules)
    jax.debug.visualize_array_sharding(laid["block00"]["mlp"]["fc1"]["kernel"].T)  # a row for each hidden channel
    forward = jax.jit(lambda p, x: model.forward(p, x))
    x, mask = split(wide, images)
    apart = np.abs(np.asarray(forward(laid, x))[mask] - np.asarray(forward(params, jnp.asarray(images)))).max()
    print(f"logits differ by at most {apart:.1e}")

# %% [markdown]
# ## Where to go on
#
# `python -m jvq.main --config configs/igq_demo.py` does all this by itself with every device that there is;
# `--config.mesh.data=4` and `--config.mesh.rules=...` say otherwise. What is identical on any number of devices, and
# what only to rounding, is in `docs/devices.md`.
