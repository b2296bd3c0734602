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
# # What quantisation does to attention
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jvq-project/jvq/blob/main/notebooks/04_attention.ipynb)
#
# You will see attention maps of a Vision Transformer in float, at 8, 4 and 3 bits and at one; how well each keeps the
# order in which a token attends to others; which heads break first; and two remedies, the row groups of IGQ-ViT
# (CVPR 2024) and the ranking loss of Liu et al. (NeurIPS 2021).

# %%
try:
    import jvq
except ImportError:  # in Colab
    # %pip install -q git+https://github.com/jvq-project/jvq
    import jvq

import os

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm

from jvq.data import Preprocess, open_source, sample
from jvq.evaluate_order import SEEN, attention_maps, kendall
from jvq.methods import bivit, igq, liu21, minmax

FAST = os.environ.get("JVQ_NOTEBOOK_FAST") == "1"  # a smaller run, for the tests
CALIBRATION = 4 if FAST else 16  # images

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

# %%
checkpoint = jvq.open_weights("fashion_vit")
model, params = checkpoint.model, checkpoint.params
preprocess = Preprocess.from_dict(checkpoint.preprocess)
images = sample(open_source("fashion", "train"), preprocess, CALIBRATION, seed=0).images
drawn = sample(open_source("fashion", "test"), preprocess, 8, seed=1)  # what is looked at
known = jvq.sites(model.forward, params, model.image)
maps = [address for address, operand in known.items() if operand.role == "p"]
print(f"{len(maps)} attention maps, letters {known[maps[0]].letters}: {known[maps[0]].shape[1:]} for each image")

# %% [markdown]
# ## 1. Five models
#
# All of them quantise weights and activations inside the model, after training: at 8, 4 and 3 bits by min-max, at one
# by signs and steps, as Bi-ViT begins before it trains. `attention_maps` plays the model and gives the maps behind the
# softmax and, under the address with `^`, as the product with the values sees them: through their own quantiser.


# %%
def fitted(method, options, only="*"):
    """Plan and state of a method, for the addresses that match ``only``; the others stay float."""
    plan = jvq.resolve(method.recipe(options, known), known)
    plan = {address: plan[address] for address in plan if only == "*" or address.endswith(only)}
    fit = method.fit(options, model.forward, params, images, plan, known)
    return fit.plan, fit.qstate


models = {"float": ({}, {})}
models |= {f"W{b}A{b}": fitted(minmax, minmax.Options(b)) for b in (8, 4, 3)}
models["binary"] = fitted(bivit, bivit.Options())
seen = {name: attention_maps((model.forward, params), *fit, maps, drawn.images) for name, fit in models.items()}

# %%
BLOCK, HEAD, QUERY = "block02/attn/pv.p", 0, 0
grid = model.spec.grid
figure, cells = plt.subplots(3, len(models), figsize=(9, 5.6))
top = seen["float"][BLOCK][0, HEAD].max()
for column, (name, found) in zip(cells.T, seen.items(), strict=True):
    soft = found[BLOCK][0, HEAD]
    product = found.get(BLOCK + SEEN, found[BLOCK])[0, HEAD]
    for cell, values in zip(column, (soft, product, product[QUERY, 1:].reshape(grid)), strict=True):
        cell.imshow(values, cmap="magma", norm=PowerNorm(0.5, 0, top), interpolation="nearest")
        cell.set(xticks=[], yticks=[])
    column[0].set_title(name, loc="center")
    column[1].set_xlabel(f"{len(np.unique(product))} values", fontsize=8)
for cell, text in zip(
    cells[:, 0], ("after softmax", "as the product\nsees it", "class token,\nover the image"), strict=True
):
    cell.set_ylabel(text)
figure.suptitle(
    f"{BLOCK}, head {HEAD}, of one image (rows: query, columns: key; brightness by square root)", fontsize=9
)
plt.show()

zero = {name: (found.get(BLOCK + SEEN, found[BLOCK]) == 0).mean() for name, found in seen.items()}
print("entries of this map that the product sees as 0:", ", ".join(f"{n} {share:.0%}" for n, share in zero.items()))

# %% [markdown]
# A softmax map has few large entries and many small ones, and one range for the whole map goes to its largest entry. At
# 3 bits everything below half of a seventh of that is 0.
#
# ## 2. Is the order kept?
#
# What matters about a row is first of all its order: which keys a token attends to more than to which. Kendall's tau
# compares every pair of keys in a row: 1 where all pairs are in the float model's order, 0 for chance, -1 for all
# reversed. Pairs that become equal count against it.


# %%
def agreement(found, suffix=""):
    """Kendall's tau with the float model, [map, head], mean over images and rows."""
    rows = (kendall(seen["float"][a], found.get(a + suffix, found[a])).mean(axis=(0, 2)) for a in maps)
    return np.stack([np.asarray(row) for row in rows])


order = {name: agreement(found) for name, found in seen.items() if name != "float"}
through = {name: agreement(found, SEEN) for name, found in seen.items() if name != "float"}
print("tau, mean over heads   " + "".join(f"{name:>9}" for name in order))
for i, address in enumerate(maps):
    print(f"{address:22} " + "".join(f"{order[name][i].mean():9.2f}" for name in order))
print(f"{'seen by the product':22} " + "".join(f"{through[name].mean():9.2f}" for name in order))

# %% [markdown]
# ## 3. Which heads break
#
# The mean hides that heads differ. Here each cell is a head; its number is tau after softmax. Is it the depth that
# tells, since errors add up on the way, or the head's own shape?

# %%
figure, panels = plt.subplots(1, len(order), figsize=(9, 2.6), sharey=True)
for panel, (name, tau) in zip(panels, order.items(), strict=True):
    shown = panel.imshow(tau, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for i, j in np.ndindex(*tau.shape):
        panel.text(
            j,
            i,
            f"{tau[i, j]:.2f}",
            ha="center",
            va="center",
            color="black" if tau[i, j] > 0.6 else "white",
            fontsize=8,
        )
    panel.set(title=name, xlabel="head", xticks=range(tau.shape[1]))
panels[0].set_yticks(range(len(maps)), [address.split("/")[0] for address in maps])
figure.colorbar(shown, ax=panels, label="Kendall's tau")
plt.show()

tau = order["W3A3"]
worst, best = (np.unravel_index(f(tau), tau.shape) for f in (np.argmin, np.argmax))
spread = np.stack([found.std(axis=-1).mean(axis=(0, 2)) for found in (seen["float"][a] for a in maps)])
for word, (i, j) in (("worst", worst), ("best", best)):
    told = f"tau {tau[i, j]:.2f}, standard deviation within its rows {spread[i, j]:.3f}"
    print(f"{word} at 3 bits: {maps[i].split('/')[0]} head {j}, {told}")
depth = np.broadcast_to(np.arange(len(maps))[:, None], tau.shape)
for what, number in (("how deep the head lies", depth), ("how peaked its float rows are", spread)):
    print(f"correlation over heads of tau with {what}: {np.corrcoef(number.ravel(), tau.ravel())[0, 1]:+.2f}")

# %% [markdown]
# ## 4. Row groups: a quantiser for flat rows, another for peaked ones
#
# Rows differ: one is nearly flat at $1/n$, the next has one large entry. IGQ-ViT keeps several quantisers for a map,
# and each row of each image uses the one whose upper bound is nearest to its own maximum. Here only the maps are
# quantised, everything else is float.

# %%
BITS = 3
alone = {
    "one range": fitted(minmax, minmax.Options(BITS), ".p"),
    "8 groups (IGQ)": fitted(igq, igq.Options(BITS, groups=8), ".p"),
}
kept = {name: attention_maps((model.forward, params), *fit, maps, drawn.images) for name, fit in alone.items()}
grouped, state = alone["8 groups (IGQ)"][0][BLOCK], alone["8 groups (IGQ)"][1][BLOCK]
x = seen["float"][BLOCK]
group = np.asarray(grouped.assignment(state, x, known[BLOCK].letters))  # [image, head, query]
peak = x.max(axis=-1)

figure, panels = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(1.3, 1))
rank = np.argsort(np.argsort(peak.ravel()))
for g in np.argsort(np.asarray(state["upper"])):
    mine = group.ravel() == g
    panels[0].scatter(rank[mine], peak.ravel()[mine], s=3)
bound = float((2**BITS - 1) * alone["one range"][1][BLOCK]["scale"])
panels[0].axhline(bound, color="tab:red", linestyle="--", linewidth=1)
panels[0].text(0, bound, "the one range", color="tab:red", va="bottom", fontsize=8)
panels[0].set(title=f"{BLOCK}: rows, a colour a group", xlabel="rank of the row", ylabel="largest entry of the row")
places = np.arange(len(maps))
for i, (name, colour) in enumerate(zip(alone, ("tab:gray", "tab:blue"), strict=True)):
    tau = agreement(kept[name], SEEN).mean(axis=1)
    panels[1].bar(places + 0.4 * i - 0.2, tau, 0.4, color=colour, label=f"{name}: {tau.mean():.2f}")
panels[1].set_xticks(places, [address.split("/")[0] for address in maps], fontsize=8)
panels[1].set(title=f"tau of the maps that products see, {BITS} bits", ylim=(0, 1.25))
panels[1].legend(fontsize=8, loc="upper left", ncols=2)
plt.show()

for name, found in kept.items():
    error = np.mean([np.square(found[a + SEEN] - found[a]).sum() / np.square(found[a]).sum() for a in maps])
    print(f"{name:15} error of the maps {error:.1%} of their square")

# %% [markdown]
# ## 5. A ranking loss in the search
#
# Liu et al. search each interval for the product that correlates best with the float one, and for query and key they
# add a hinge on pairs of scores: the quantised order should be the float order. Only queries and keys are quantised
# here. The paper gives the term the weight 0.1; here it has 1, so that it has a say.

# %%
searches = {
    "no search": (minmax, minmax.Options(BITS, symmetric=True, keep="h")),
    "searched": (liu21, liu21.Options(BITS, ranking=False, bias_correction="none", rounds=2, steps=50)),
    "with ranking": (liu21, liu21.Options(BITS, gamma=1.0, bias_correction="none", rounds=2, steps=50)),
}
tried = {}
for name, (method, options) in searches.items():
    fit = fitted(method, options, (".q", ".k"))
    tried[name] = agreement(attention_maps((model.forward, params), *fit, maps, drawn.images))
    print(f"{name:13} tau {tried[name].mean():.3f}, its worst head {tried[name].min():.3f}")
gain = tried["with ranking"] - tried["searched"]
error = gain.std() / np.sqrt(gain.size)
print(f"what ranking adds to the search: {gain.mean():+.4f}, with a standard error over the heads of {error:.4f}")

# %% [markdown]
# Compare what the search adds with what the ranking term adds to it. In whole runs on this model
# (`configs/liu21_ablation.py`) the term shows no effect on accuracy. At one bit the order itself is lost, and has to be
# trained: `configs/bivit_demo.py`.
