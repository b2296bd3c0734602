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
# # Training at 3 bits, and weights that oscillate
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jvq-project/jvq/blob/main/notebooks/03_qat.ipynb)
#
# You will see a Vision Transformer trained with 3-bit weights and activations: the loss, the learned scales on their
# way, weights that cannot decide between two codes, and what a regulariser does to them. The pieces are those of VVTQ
# (TMLR 2024); the loop is written out, so that there is nothing hidden.

# %%
try:
    import jvq
except ImportError:  # in Colab
    # %pip install -q git+https://github.com/jvq-project/jvq
    import jvq

import dataclasses
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jvq import evaluate
from jvq.data import Preprocess, batches, open_source, sample, train_batches
from jvq.data.augment import preparation
from jvq.methods import latent, vvtq
from jvq.tapes import on_tapes
from jvq.train import Objective, beginning, stepper

FAST = os.environ.get("JVQ_NOTEBOOK_FAST") == "1"  # a smaller run, for the tests
STEPS = 10 if FAST else 120  # 600 for a real run
BATCH = 16 if FAST else 32  # 128 for a real run
TESTED = 250 if FAST else 1000  # images on which accuracy is measured

plt.rcParams.update(
    {
        "figure.dpi": 90,
        "figure.constrained_layout.use": True,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "legend.frameon": False,
    }
)
print("running on", *jax.devices())

# %% [markdown]
# ## 1. What is trained
#
# Behind every 3-bit weight stands a float one, the *latent* weight, which the optimiser moves; products see it rounded
# to one of eight values, `scale * code`. The gradient passes through the rounding as if it were not there (the
# straight-through estimator), and the scales are trained as well (LSQ). The float checkpoint is where training begins
# and also the teacher: the student learns to give the teacher's probabilities.

# %%
checkpoint = jvq.open_weights("fashion_vit")
model = checkpoint.model
preprocess = Preprocess.from_dict(checkpoint.preprocess)
train = open_source("fashion", "train")
images = sample(train, preprocess, 32, seed=0).images
tests = batches(open_source("fashion", "test"), preprocess, 250, range(TESTED))
known = jvq.sites(model.forward, checkpoint.params, model.image)

options = vvtq.Options(bits=3, steps=STEPS, batch=BATCH, learning_rate=1e-3, bin_strength=0.02)
plan = jvq.resolve(vvtq.recipe(options, known), known)
start = vvtq.fit(options, model.forward, checkpoint.params, images, plan, known).qstate
print(plan["block02/mlp/fc1.w"], "\n", plan["block02/mlp/fc2.x"], sep="")

# %% [markdown]
# ## 2. The loop
#
# `on_tapes` plays student and teacher side by side and gives the loss; `stepper` makes the step out of the loss, an
# optional regulariser and the optimiser. After each step we look at one layer: its codes and where its latent weights
# lie among them.

# %%
WATCHED = "block02/mlp/fc1.w"


def learned(options):
    """What is trained at the end, and step by step: the loss, a scale of each layer, codes and places of one layer."""
    schedule = options.schedule(len(train))
    loss = on_tapes(
        vvtq.tape_loss(options, known),
        model.heads,
        plan,
        preparation(preprocess, options.shift),
        teacher=model.heads,
        heads=True,
    )
    begin = {"params": checkpoint.params, "q": {address: dict(state) for address, state in start.items()}}
    objective = Objective(
        loss,
        checkpoint.params,
        vvtq.regularizer(options, plan, known, STEPS),
        vvtq.after(options, plan, known),
        vvtq.carried(plan, known, begin),
    )
    optimizer = schedule.optimizer()
    step = jax.jit(stepper(objective, optimizer, schedule))
    progress, key, seen = beginning(objective, begin, optimizer, schedule), jax.random.key(0), []
    for i, batch in zip(range(STEPS), train_batches(train, BATCH, 0, 1), strict=False):
        progress, numbers = step(progress, checkpoint.params, batch, jax.random.fold_in(key, i))
        seen.append(jax.device_get((numbers["loss"], *look(progress.trained))))
    losses, scales, codes, places = (np.stack(part) for part in zip(*seen, strict=True))
    return progress.trained, losses, scales, codes, places


@jax.jit
def look(trained):
    weights = latent.followed(plan, known)
    scales = jnp.stack([trained["q"][address]["scale"].mean() for address in weights])
    quantizer, operand = weights[WATCHED], known[WATCHED]
    codes, places = (f(quantizer, trained, operand).ravel() for f in (latent.codes, latent.steps))
    return scales, codes, places


runs = {
    "without regulariser": learned(dataclasses.replace(options, bin_strength=0.0)),
    "with it": learned(options),
}

# %% [markdown]
# ## 3. Does it learn?

# %%
forward = evaluate.runner(model.forward, plan)
float_forward = evaluate.runner(model.forward, {})
reference = evaluate.predict(lambda x: float_forward(checkpoint.params, {}, x), tests, "float")
asked = {"before training": (checkpoint.params, start)}
asked |= {f"after, {name}": (run[0]["params"], run[0]["q"]) for name, run in runs.items()}
print(f"{'float':28} top-1 {evaluate.score(reference, reference).top1:.1%}")
for name, (params, state) in asked.items():
    got = evaluate.predict(lambda x, p=params, s=state: forward(p, s, x), tests, name)
    score = evaluate.score(reference, got)
    print(f"{name:28} top-1 {score.top1:.1%}, agrees with float on {score.agreement:.1%}")

# %%
colours = {"without regulariser": "tab:red", "with it": "tab:blue"}
figure, panels = plt.subplots(1, 2, figsize=(9, 3))
for name, (_, losses, _, _, _) in runs.items():
    window = min(9, STEPS // 2)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    panels[0].plot(losses, color=colours[name], alpha=0.2, linewidth=1)
    panels[0].plot(np.arange(len(smooth)) + window // 2, smooth, color=colours[name], label=name)
panels[0].set(
    title="loss: what the student misses of the teacher", xlabel="step", ylabel="cross-entropy", ylim=(0, None)
)
panels[0].legend()

scales = runs["without regulariser"][2]
names = list(latent.followed(plan, known))
shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names)))
for i in range(len(names)):
    panels[1].plot(100 * (scales[:, i] / scales[0, i] - 1), color=shades[i], linewidth=1)
panels[1].axhline(0, color="black", linewidth=0.6)
panels[1].set(title="scales of the weights, change in %, a line a layer", xlabel="step")
bar = figure.colorbar(plt.cm.ScalarMappable(cmap="viridis"), ax=panels[1], ticks=[0, 1])
bar.ax.set_yticklabels(["first", "last"])
plt.show()

moved = np.abs(scales[-1] / scales[0] - 1)
print(f"the scale that moved most: {names[moved.argmax()]}, by {moved.max():.1%}; median of all {np.median(moved):.1%}")

# %% [markdown]
# ## 4. Weights that cannot decide
#
# A latent weight near the boundary of two codes is pushed back and forth: in the upper code the gradient pulls it down,
# in the lower one up. Each crossing changes the product by a whole step however small the move. A *reversal* is a
# change of the code against the direction of the change before.

# %%
_, _, _, codes, places = runs["without regulariser"]


def reversals(codes):
    """How often the code of each weight changed against its change before: [w] of codes [step w]."""
    count, last = np.zeros(codes.shape[1], int), np.zeros(codes.shape[1])
    for change in np.sign(np.diff(codes, axis=0)):
        count += (change != 0) & (change == -last)
        last = np.where(change != 0, change, last)
    return count


back = reversals(codes)
shown = np.argsort(-back, kind="stable")[:3]
figure, panels = plt.subplots(1, 3, figsize=(9, 2.8), sharex=True)
for panel, w in zip(panels, shown, strict=True):
    low = np.floor(places[:, w].min())
    panel.axhline(low + 0.5, color="tab:gray", linewidth=1, linestyle=":")
    panel.plot(places[:, w], color="black", linewidth=1, label="latent weight")
    panel.step(range(STEPS), codes[:, w], color="tab:red", linewidth=1, alpha=0.7, where="mid", label="code")
    panel.set(title=f"weight {w}: {back[w]} reversals", xlabel="step")
panels[0].set_ylabel("in steps of the scale")
panels[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5. With and without the bin regulariser
#
# The bin regulariser draws latent weights towards the values that their codes stand for, away from the boundaries; its
# strength grows over the training. The default strength is 0.01, for a thousand steps; here it is twice that,
# because there are few. To the right is where all latent weights of the layer lie between their codes: 0 is on the
# value, 0.5 on a boundary.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3))
half = STEPS // 2
for name, (_, _, _, codes, places) in runs.items():
    changes = 100 * (np.diff(codes, axis=0) != 0).mean(axis=1)
    panels[0].plot(np.arange(1, STEPS), changes, color=colours[name], label=name)
    inside = np.abs(places[-1]) < 3.4  # beyond the ends weights are clipped
    off = np.abs(places[-1] - np.round(places[-1]))[inside]
    panels[1].hist(off, 40, range=(0, 0.5), histtype="step", color=colours[name], label=name, density=True)
    some = reversals(codes[half:])
    told = f"{(some >= 1).mean():.2%} of its weights reversed in the last {STEPS - half} steps"
    print(f"{name:20} {told}, {(some >= 2).mean():.2%} more than once; {(off > 0.45).mean():.1%} lie at a boundary")
panels[0].set(title=f"{WATCHED}: codes that change, % a step", xlabel="step", ylim=(0, None))
panels[0].legend()
panels[1].set(title="distance to the value of the code, last step", xlabel="in steps of the scale", ylabel="density")
plt.show()

# %% [markdown]
# ## A real run
#
# `python -m jvq.main --config configs/vvtq_demo.py:vit,3` trains for two epochs with checkpoints, and writes a report
# with these curves. Its docstring has the results at 4, 3 and 2 bits, with and without the regulariser.
