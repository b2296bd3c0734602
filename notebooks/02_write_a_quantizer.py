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
# # Write a quantiser
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jvq-project/jvq/blob/main/notebooks/02_write_a_quantizer.ipynb)
#
# You will see a quantiser written from nothing in some twenty lines, the contract that every quantiser has to meet
# and what it says where one does not, and the new quantiser in a recipe on a Vision Transformer beside those of the
# package.

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
from jvq.core import axes, ranges
from jvq.core.quantizer import Overhead
from jvq.core.rounding import fake_quantize
from jvq.core.samples import whole
from jvq.data import Preprocess, batches, open_source, sample
from jvq.quantizers import contract
from jvq.quantizers.uniform import check_bits, integers

FAST = os.environ.get("JVQ_NOTEBOOK_FAST") == "1"  # a smaller run, for the tests
TESTED = 250 if FAST else 2000  # images on which accuracy is measured

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
# ## 1. The idea
#
# Min-max ranges reach to the outermost value, which may be far from all others. An old remedy is to clip at $k$
# standard deviations: the few values beyond are cut, the many inside get finer steps. So our quantiser `Sigma` takes
# the interval from $\mu - k\sigma$ to $\mu + k\sigma$, but never a larger one than min-max would.
#
# ## 2. Twenty lines
#
# A quantiser is a frozen dataclass. Its fields are what the user chooses. What calibration finds is no field but the
# *state*, a small dict of float32 arrays, so that it can be saved, trained and put on any device:
#
# | member | what it is for |
# |---|---|
# | `bits` | the width of the codes |
# | `check(letters, shape)` | refuses an operand that it does not fit, before anything is computed |
# | `apart` | axes whose indices calibration must tell apart |
# | `form` | itself without what `apply` does not look at: widths then share compiled programs |
# | `init(samples, letters)` | the state, from calibration samples or from a weight |
# | `apply(state, x, letters)` | `x` rounded, with gradients: *fake quantisation* |
# | `encode(state, x, letters)` | the same as integers, with the scale and the zero point that decode them |
# | `overhead(...)` | bit-operations at run time, beyond the product |
#
# Axes are named by letters: `keep="o"` on a weight `do` is a range for every output channel.


# %%
@dataclasses.dataclass(frozen=True)
class Sigma:
    """Uniform steps, clipped at ``k`` standard deviations. State, float32: ``scale zero`` [keep], ``levels`` []."""

    bits: int = 4
    keep: str = ""
    k: float = 3.0
    apart = property(lambda self: self.keep)
    form = property(lambda self: Sigma(keep=self.keep))

    def check(self, letters, shape):
        check_bits(self.bits)
        axes.require(self.keep, letters, what="keep")

    def init(self, samples, letters):
        samples, over = whole(samples, letters, self.apart), axes.others(self.keep, letters)
        mean, std = (f(samples.values, axis=over, keepdims=True) for f in (jnp.mean, jnp.std))
        least, most = samples.bounds(self.keep)
        lower, upper = jnp.maximum(least, mean - self.k * std), jnp.minimum(most, mean + self.k * std)
        levels = ranges.level_count(self.bits)
        scale, zero = ranges.affine(lower, upper, levels, "extend")
        return {"scale": scale.squeeze(over), "zero": zero.squeeze(over), "levels": levels}

    def apply(self, state, x, letters):
        return fake_quantize(x, *self._steps(state, letters), state["levels"], jnp.float32(1.0))

    def encode(self, state, x, letters):
        return integers(x, *self._steps(state, letters), state["levels"])

    def overhead(self, letters, shape, contracted, product, beta):
        return Overhead()  # scales are known beforehand, and factor out of the product

    def _steps(self, state, letters):
        kept = axes.ordered(self.keep, letters)
        return (axes.expand(state[name], kept, letters) for name in ("scale", "zero"))


# %% [markdown]
# `fake_quantize` rounds and has the gradient of the straight-through estimator; `integers` makes the codes. Both take
# any scale and zero point, and give the same numbers to the bit.
#
# ## 3. The contract
#
# A quantiser that is a little wrong gives a model that is a little worse, and nobody notices. `contract.check` runs
# what the package's own quantisers are tested with: that integers decode to what `apply` computes, that no image
# depends on the others of its batch, that more bits give less error, that a new width compiles nothing anew, that
# constants stay finite. Silence means that all is well.

# %%
contract.check(Sigma())
contract.check(Sigma(bits=3, keep="d", k=2.0))
contract.check(Sigma(keep="o"), letters="do", shape=(64, 32))  # a weight
print(len(contract.CLAUSES), "clauses met:", ", ".join(clause.__name__ for clause in contract.CLAUSES))

# %% [markdown]
# And here are three mistakes that are easily made. Each would run, and give numbers that look reasonable.


# %%
class LooksAround(Sigma):
    """State: as Sigma. Wrong: the step depends on the largest value of the batch."""

    form = property(lambda self: LooksAround(keep=self.keep))

    def _steps(self, state, x):
        scale = 2 * jnp.abs(x).max() / state["levels"]
        return jnp.full((1,) * x.ndim, scale), jnp.full((1,) * x.ndim, jnp.round(state["levels"] / 2))

    def apply(self, state, x, letters):
        return fake_quantize(x, *self._steps(state, x), state["levels"], jnp.float32(1.0))

    def encode(self, state, x, letters):
        return integers(x, *self._steps(state, x), state["levels"])


class Drifts(Sigma):
    """State: as Sigma. Wrong: what is trained is not what is deployed."""

    form = property(lambda self: Drifts(keep=self.keep))

    def apply(self, state, x, letters):
        scale, _ = self._steps(state, letters)
        return scale * jnp.round(x / scale)  # nothing is clipped


class Knows(Sigma):
    """State: as Sigma. Wrong: the form forgets its k, but the width is read from the field."""

    form = property(lambda self: Knows(keep=self.keep))

    def apply(self, state, x, letters):
        return super().apply({**state, "levels": jnp.float32(2**self.bits - 1)}, x, letters)

    def encode(self, state, x, letters):
        return super().encode({**state, "levels": jnp.float32(2**self.bits - 1)}, x, letters)


for quantizer in (LooksAround(), Drifts(), Knows()):
    try:
        contract.check(quantizer)
    except ValueError as error:
        print(f"{error}\n")

# %% [markdown]
# ## 4. In a recipe
#
# A quantiser that meets the contract works everywhere: in recipes, calibration, packing, integer products, training.
# Here it quantises all activations inside the embedded ViT; weights are min-max at the same width, a range for each
# output channel. What is $k$ to be? We try some at 4 bits, and put the package's ways to find a static range beside
# them. (On test images, to keep this short: to choose $k$ for a result, take others.)

# %%
checkpoint = jvq.open_weights("fashion_vit")
model, params = checkpoint.model, checkpoint.params
preprocess = Preprocess.from_dict(checkpoint.preprocess)
images = sample(open_source("fashion", "train"), preprocess, 32, seed=0).images
tests = batches(open_source("fashion", "test"), preprocess, 250, range(TESTED))
known = jvq.sites(model.forward, params, model.image)
run_float = jax.jit(model.forward)
reference = evaluate.predict(lambda x: run_float(params, x), tests, "float")


runners = {}


def runner(forms):
    """One compiled program for all quantisers of the same forms: this is what ``form`` is for."""
    if forms not in runners:
        runners[forms] = evaluate.runner(model.forward, dict(forms))
    return runners[forms]


def agreement(activation):
    """The share of test images on which the model still says what the float model says."""
    recipe = [
        ("block*.w", jvq.Uniform(activation.bits, keep="o")),
        ("*/qkv.w", jvq.Uniform(activation.bits, keep="she")),
        *((f"block*.{role}", activation) for role in "xqkpv"),
    ]
    plan = jvq.resolve(recipe, known)
    state = jvq.calibrate(model.forward, params, images, plan, known)
    packed, rest, state = jvq.freeze(params, plan, state, known)
    forward = runner(tuple((address, q.form) for address, q in rest.items()))
    return evaluate.score(reference, evaluate.predict(lambda x: forward(packed, state, x), tests, "")).agreement


multiples = (4.0, 8.0) if FAST else (2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
sigma = {k: agreement(Sigma(4, k=k)) for k in multiples}
others = {
    "min-max": agreement(jvq.Uniform(4)),
    "percentile 0.1": agreement(jvq.Uniform(4, range="percentile")),
    "least squares": agreement(jvq.Uniform(4, range="mse")),
}
best = max(sigma, key=sigma.get)
for name, value in {f"Sigma, k = {best:g}": sigma[best], **others}.items():
    print(f"{name:18} agrees with float on {value:.1%}")
print(len(runners), "programs were compiled for", len(sigma) + len(others), "models")

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3))
panels[0].plot(multiples, [100 * sigma[k] for k in multiples], "o-", color="tab:blue", label="Sigma")
for (name, value), colour in zip(others.items(), ("tab:gray", "tab:orange", "tab:green"), strict=True):
    panels[0].axhline(100 * value, color=colour, linestyle="--", linewidth=1, label=name)
panels[0].set(title="W4A4: agreement with the float model, %", xlabel="k, standard deviations")
panels[0].legend(fontsize=8)

address = "block03/attn/pv.p"  # attention after softmax: many small values, few large ones


@jax.jit
def operand(params, images):
    tape = {}
    model.forward(params, images, jvq.recording(tape, lambda a: a == address))
    return tape[address]


x, letters = np.asarray(operand(params, images)), known[address].letters
panels[1].hist(x.ravel(), 120, color="lightgray", log=True)
for quantizer, colour, height in ((jvq.Uniform(4), "tab:gray", 0.9), (Sigma(4, k=best), "tab:blue", 0.98)):
    state = quantizer.init(jnp.asarray(x), letters)
    grid = np.unique(np.asarray(quantizer.apply(state, jnp.asarray(x), letters)))
    at = np.full(len(grid), height)
    panels[1].plot(grid, at, "|", color=colour, transform=panels[1].get_xaxis_transform(), markersize=9)
    name = type(quantizer).__name__.replace("Uniform", "min-max")
    panels[1].annotate(name, (grid[-1], height), xycoords=panels[1].get_xaxis_transform(), color=colour, fontsize=8,
                       xytext=(6, -3), textcoords="offset points")  # fmt: skip
panels[1].set(title=f"{address}: values, and what of the 16 codes is used", xlabel="value", ylabel="count")
plt.show()

# %% [markdown]
# Too small a $k$ cuts what matters, too large a one is min-max again; the optimum is where the two losses balance.
#
# ## To go on
#
# - Put the class into a file of `jvq/quantizers/` and its name into `__init__.py`: the contract tests pick it up, and
#   the file format of packed models will know it. `CONTRIBUTING.md` says the rest.
# - Give it a trained scale: `jvq/quantizers/learned.py` is a model of that, `03_qat` shows how it trains.
