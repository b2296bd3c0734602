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
# # A tour: from float weights to a model that runs in integers
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jvq-project/jvq/blob/main/notebooks/01_tour.ipynb)
#
# You will see a small trained Vision Transformer, every product that it computes, and what the numbers in these
# products look like. Then you quantise it to 4 bits in three ways, compare what each costs and gives, write the best
# one to a file, and run that file in integers. It takes about a minute on a CPU; nothing is downloaded.

# %%
try:
    import jvq
except ImportError:  # in Colab
    # %pip install -q git+https://github.com/jvq-project/jvq
    import jvq

import os
import tempfile
from collections import Counter
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from jvq import accounting, evaluate
from jvq.data import Preprocess, batches, open_source, sample
from jvq.export import Deployment, load, save
from jvq.methods import igq, minmax

FAST = os.environ.get("JVQ_NOTEBOOK_FAST") == "1"  # a smaller run, for the tests
TESTED = 250 if FAST else 2000  # images on which accuracy is measured
BITS = 4

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
# ## 1. A model and its data
#
# `open_weights` takes a name or a path and gives a *checkpoint*: the model as a pure function, its parameters, and the
# preprocessing that it expects. This one was trained on Fashion-MNIST and ships with the package.

# %%
checkpoint = jvq.open_weights("fashion_vit")
model, params = checkpoint.model, checkpoint.params
preprocess = Preprocess.from_dict(checkpoint.preprocess)
train, test = open_source("fashion", "train"), open_source("fashion", "test")
images = sample(train, preprocess, 32, seed=0).images  # what all methods calibrate on
tests = batches(test, preprocess, 250, range(TESTED))

spec = model.spec
print(f"{model.architecture}: {spec.depth} blocks, {spec.heads} heads, width {spec.dim}, images {model.image}")
print(f"{sum(x.size for x in jax.tree.leaves(params)):,} parameters")

# %% [markdown]
# ## 2. Sites: every product has an address
#
# The model multiplies only through one callable that it gets as an argument, `dot(site, equation, **two_operands)`. So
# its products have names, and every operand an *address*: the site, a dot, a role. The roles are `x`, `w` (input and
# weight of a linear layer), `q`, `k` (attention scores) and `p`, `v` (attention map times values). Axes have letters
# and are never numbered: `b` image, `n` token, `d` input channel, `o` output channel, `h` head, `q`, `k` query and key.

# %%
known = jvq.sites(model.forward, params, model.image)
print(f"{len(known)} operands. The first block:\n")
print(f"{'address':22} {'letters':8} {'shape of one image':20} product")
for address, operand in known.items():
    if address.startswith("block00"):
        print(f"{address:22} {operand.letters:8} {operand.shape!s:20} {operand.out}")

# %% [markdown]
# ## 3. Ranges: why few bits hurt
#
# A uniform quantiser of $b$ bits cuts an interval into $2^b - 1$ equal steps. With one range for a whole tensor the
# interval is as wide as the widest of its channels, and narrow channels have to do with few steps. So look at the
# channels first. `recording` is a dot that also keeps the operands that you ask for.


# %%
@jax.jit
def operands(params, images):
    tape = {}
    model.forward(params, images, jvq.recording(tape, lambda address: address.endswith(".x")))
    return tape


tape = jax.device_get(operands(params, images))
shown = ("block03/attn/proj.x", "block00/mlp/fc2.x")
figure, panels = plt.subplots(1, 2, figsize=(9, 3))
for panel, address in zip(panels, shown, strict=True):
    x = tape[address]  # [image, token, channel]
    order = np.argsort(np.ptp(x, axis=(0, 1)))
    for some, colour, label in ((x, "#9ecae1", f"in {len(x)} images"), (x[:1], "#08519c", "in the first of them")):
        lower, upper = some.min(axis=(0, 1))[order], some.max(axis=(0, 1))[order]
        panel.fill_between(range(len(order)), lower, upper, step="mid", color=colour, linewidth=0, label=label)
    for end, label in ((x.min(), None), (x.max(), "one range for the tensor")):
        panel.axhline(end, color="tab:red", linewidth=1, linestyle="--", label=label)
    panel.set(title=f"{address}: range of each channel", xlabel="channel, narrowest first", ylabel="value")
panels[0].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 0.05))
plt.show()

print(f"of the {2**BITS - 1} steps of a {BITS}-bit quantiser for the whole tensor, the median channel uses")
for address in shown:
    steps = (2**BITS - 1) / np.ptp(tape[address])
    overall, here = (np.median(np.ptp(tape[address], axis=axis)) for axis in ((0, 1), 1))
    print(f"   {address:20} {steps * overall:.1f} over all images, {steps * here:.1f} in one image")

# %% [markdown]
# So in one image half of the channels use but a few of the steps. And which channels are wide differs from image to
# image (below), so that no choice made beforehand fits all. That is why IGQ-ViT lets every image choose.

# %%
width = np.ptp(tape["block03/attn/proj.x"], axis=1)[:8]  # [image, channel]
figure, panel = plt.subplots(figsize=(9, 2.2))
shown_map = panel.imshow(width, aspect="auto", cmap="viridis")
panel.set(title="block03/attn/proj.x: width of each channel in eight images", xlabel="channel", ylabel="image")
figure.colorbar(shown_map, ax=panel, label="max - min")
plt.show()

# %% [markdown]
# ## 4. A recipe, a plan, a state
#
# A *recipe* is a list of rules, address pattern to quantiser; the last rule that matches wins, and `None` leaves float.
# `resolve` makes it a *plan* and finds every mistake before anything is computed: a pattern that matches nothing, an
# axis that is not there. `calibrate` looks at the images and gives the *state*, the scales and zero points. A *method*
# is a function that writes the recipe, with the options of its paper.
#
# Three of them, all 4 bits for weights and activations, with the patch embedding and the head at 8 as is usual:
#
# - **min-max**: a range for each activation, from the smallest to the largest value that calibration saw;
# - **percentile**: the same, with 0.1 % cut off at each end;
# - **IGQ-ViT** (CVPR 2024): 8 quantisers for each activation; every channel (or attention row) of every image uses the
#   one that fits it best.

# %%
methods = {
    "min-max": (minmax, minmax.Options(BITS)),
    "percentile": (minmax, minmax.Options(BITS, range="percentile", weight_range="percentile")),
    "IGQ, 8 groups": (igq, igq.Options(BITS, groups=8)),
}


def quantised(method, options):
    plan = jvq.resolve(method.recipe(options, known), known)
    fit = method.fit(options, model.forward, params, images, plan, known)
    return fit.plan, Deployment.of(checkpoint, fit.plan, fit.qstate, known, method.protocol(options))


models = {name: quantised(*chosen) for name, chosen in methods.items()}
plan, igq_model = models["IGQ, 8 groups"]
for address in ("block00/mlp/fc1.w", "block00/mlp/fc1.x", "block00/attn/pv.p"):
    print(address, "\n   ", plan[address])

# %% [markdown]
# `Deployment.of` has also *frozen* the model: its weights are now packed integers, in the place of the float arrays.

# %%
kernel = igq_model.params["block00"]["mlp"]["fc1"]["kernel"]
before = params["block00"]["mlp"]["fc1"]["kernel"]
print(f"{before.nbytes:,} bytes of float32 became {kernel.nbytes:,}: {kernel.bits} bits a weight, and the scales")

# %% [markdown]
# ## 5. What it gives and what it costs
#
# Top-1 is the share of right answers. *Agreement* is the share of images on which the quantised model says the same as
# the float model: it is the finer measure, and needs no labels. *Bit-operations* are multiply-accumulates times the
# width of both operands, plus what the quantisers themselves do at run time.

# %%
run_float = jax.jit(model.forward)
reference = evaluate.predict(lambda x: run_float(params, x), tests, "float")
rows = {"float": (evaluate.score(reference, reference), accounting.tree_bytes(params), accounting.bops(known, {}))}
outputs = {}
for name, (plan, deployment) in models.items():
    outputs[name] = evaluate.predict(jax.jit(deployment.forward), tests, name)
    size = accounting.tree_bytes(deployment.params, deployment.qstate)
    rows[name] = evaluate.score(reference, outputs[name]), size, accounting.bops(known, plan)

print(f"{TESTED} test images, weights and activations at {BITS} bits\n")
print(f"{'':16} {'top-1':>8} {'agreement':>10} {'KL':>8} {'size':>9} {'GBOPs':>8}")
for name, (score, size, bops) in rows.items():
    told = f"{score.top1:8.2%} {score.agreement:10.2%} {score.kl:8.4f}"
    print(f"{name:16} {told} {size / 1024:5.0f} KiB {bops / 1e9:8.3f}")

# %%
colours = {"min-max": "tab:gray", "percentile": "tab:orange", "IGQ, 8 groups": "tab:blue"}
figure, panels = plt.subplots(1, 2, figsize=(9, 2.6), width_ratios=(1, 1.4))
lost = {name: 100 * (1 - rows[name][0].agreement) for name in models}
bars = panels[0].barh(list(lost), list(lost.values()), color=[colours[name] for name in lost])
panels[0].bar_label(bars, fmt="%.1f %%", padding=3)
panels[0].invert_yaxis()
panels[0].set(title="answers that are no longer the float model's", xlim=(0, 1.2 * max(lost.values())), xticks=[])
panels[0].spines["bottom"].set_visible(False)
letters = {address: operand.letters for address, operand in known.items()}
errors = {}
for name, (plan, deployment) in models.items():
    inside = {a: q for a, q in plan.items() if a.startswith("block") and a.endswith((".x", ".p"))}
    state = {address: deployment.qstate[address] for address in inside}
    errors[name] = evaluate.site_errors(model.forward, params, inside, state, letters, images)
    panels[1].semilogy([100 * e for e in errors[name].values()], ".-", color=colours[name], label=name, linewidth=1)
maps = [i for i, address in enumerate(inside) if address.endswith(".p")]
panels[1].set_xticks(maps, [f"map of\n{list(inside)[i].split('/')[0]}" for i in maps])
panels[1].yaxis.set_major_formatter("{x:g} %")
panels[1].set(title="error of each linear input and attention map, of its square")
panels[1].legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
plt.show()

best = min(lost, key=lost.get)
print(f"fewest answers changed: {best}, {lost[best]:.1f} %; min-max changes {lost['min-max']:.1f} %")
for name in models:
    worst = max(errors[name], key=errors[name].get)
    print(f"{name:14} worst error {errors[name][worst]:6.2%} at {worst}")

# %% [markdown]
# ## 6. To a file, and into integers
#
# The file holds the packed weights, the activations' quantisers and the protocol. It is read back to the bit, and
# refused where it is damaged. `integer()` then computes the products of codes with exact int32 sums; the kernels are
# chosen for the device at hand. Fake quantisation, which everything above used, computes the same in float32.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "packed.safetensors"
    save(igq_model, path)
    print(
        f"written: {path.stat().st_size / 1024:.0f} KiB, of {accounting.tree_bytes(params) / 1024:.0f} KiB in float32"
    )
    loaded = load(path)

in_integers = evaluate.predict(loaded.integer(), tests, "integers")
same = in_integers.logits.argmax(axis=1) == outputs["IGQ, 8 groups"].logits.argmax(axis=1)
print(f"in integers: top-1 {evaluate.score(reference, in_integers).top1:.2%}, ", end="")
print(f"{(~same).sum()} of {TESTED} answers differ from fake quantisation\n")
print("how the products are computed:")
for way, count in Counter(loaded.ways().values()).items():
    print(f"   {way}: {count} sites")

# %% [markdown]
# ## Where to go on
#
# - `02_write_a_quantizer`: your own quantiser in twenty lines, checked by the contract.
# - `03_qat`: train at 3 bits and watch weights oscillate.
# - `04_attention`: what quantisation does to attention maps.
# - The same from the command line, with a report: `python -m jvq.main --config configs/igq_demo.py`.
