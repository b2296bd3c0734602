"""How sensitive attention and MLP modules are to their width: nuclear norm times squared error.

Source: Liu et al. 2021, eq. 18. Each module is quantised alone, as a whole, on what the float model gives it; one pass
does so with all of them, because what enters a module is taken from the float model again.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jvq.core.calibrate import Track, silent
from jvq.core.dot import packed_dot, quantized, recording
from jvq.core.mesh import Rounds, everywhere, gathered
from jvq.core.quantizer import Quantizer, State
from jvq.core.recipe import Forward, Plan, Sites, forms
from jvq.methods.bias import bias_of

Looked = Literal["map", "scores", "output"]
OUTPUT = {"attn": "proj.y", "mlp": "fc2.y"}
INPUT = {  # the operands that are a module's input, as far as they are there; the last three of a merged attention
    "attn": ("qkv.x", "query_key.x", "value.x", "qk.k"),
    "mlp": ("fc1.x",),
}


class Module(NamedTuple):
    """An attention or an MLP: what shares one width."""

    name: str  # block03/attn
    kind: str  # attn or mlp
    addresses: tuple[str, ...]
    parameters: int  # of its weights

    def looked(self, attention: Looked) -> str:
        """The address of what its sensitivity is measured on."""
        if self.kind == "mlp" or attention == "output":
            return f"{self.name}/{OUTPUT[self.kind]}"
        return f"{self.name}/" + {"map": "pv.p", "scores": "qk.y"}[attention]


def modules(known: Sites) -> list[Module]:
    """The model's modules in order. Patch embedding, merging and heads belong to none."""
    found: dict[str, list[str]] = {}
    for address, o in known.items():
        parent = o.site.rpartition("/")[0]
        if parent.rpartition("/")[2] in OUTPUT:
            found.setdefault(parent, []).append(address)
    return [
        Module(
            name,
            name.rpartition("/")[2],
            tuple(addresses),
            sum(int(np.prod(known[a].shape)) for a in addresses if known[a].path is not None),
        )
        for name, addresses in found.items()
    ]


def nuclear_norm(y: Float[Array, "*lead n d"]) -> Float[Array, "*lead"]:
    """The sum of the singular values of each matrix, float32."""
    return jnp.linalg.svd(y.astype(jnp.float32), compute_uv=False).sum(axis=-1)


def omegas(
    forward: Forward,
    params: Any,
    images: np.ndarray,
    plan: Plan,
    states: Sequence[Mapping[str, State]],
    known: Sites,
    *,
    looked: tuple[Looked, Looked] = ("map", "map"),
    batch: int = 8,
    track: Track = silent,
    mesh: Mesh | None = None,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """By module its sensitivity under each of ``states`` (of the plan, a width each), and its nuclear norm.

    ``looked``: whose norm and whose error an attention has. The norm is the mean over images (and heads, and windows),
    the error the mean over images of the sum over entries.
    """
    found = modules(known)
    norms: dict[str, list[float]] = {m.name: [] for m in found}  # of every image
    errors: dict[str, list[list[float]]] = {m.name: [[] for _ in states] for m in found}
    static = forms({a: plan[a] for m in found for a in m.addresses if a in plan})
    norm_at, error_at = (tuple((m.name, m.looked(at)) for m in found) for at in looked)
    entries = tuple(a for m in found for a in _inputs(m, known))
    biases = {m.name: bias_of(params, known, f"{m.name}/fc2") for m in found if m.kind == "mlp"}
    params = everywhere(mesh, params)
    for x, mask, _ in track(Rounds(mesh, images, batch), "sensitivity of modules"):
        for name, values in gathered(_norms(forward, norm_at, params, biases, x)).items():
            norms[name] += values[mask].tolist()
        for j, state in enumerate(states):
            mine = {a: state[a] for a, _ in static}
            for name, values in gathered(_errors(forward, static, error_at, entries, params, mine, x)).items():
                errors[name][j] += values[mask].tolist()
    norm = {name: math.fsum(each) / len(images) for name, each in norms.items()}
    error = {name: [math.fsum(each) / len(images) for each in mine] for name, mine in errors.items()}
    return {name: [norm[name] * e for e in error[name]] for name in norm}, norm


def _inputs(module: Module, known: Sites) -> list[str]:
    """The addresses of a module's input."""
    there = [a for end in INPUT[module.kind] if (a := f"{module.name}/{end}") in known]
    return there[:1] if there[0].endswith("qkv.x") else there  # keys of its own


@partial(jax.jit, static_argnums=(0, 1))
def _norms(forward: Forward, looked: Any, params: Any, biases: Any, x: jax.Array) -> dict[str, jax.Array]:
    """Of every image [b]."""
    tape: dict[str, jax.Array] = {}
    wanted = {address for _, address in looked}
    forward(params, x, recording(tape, wanted.__contains__, packed_dot()))
    found = {}
    for name, address in looked:
        y = tape[address]
        bias = biases.get(name)
        norm = nuclear_norm(y if bias is None else y + bias.reshape(*[1] * (y.ndim - bias.ndim), *bias.shape))
        found[name] = norm.reshape(x.shape[0], -1).mean(axis=1)
    return found


@partial(jax.jit, static_argnums=range(4))
def _errors(
    forward: Forward,
    plan: tuple[tuple[str, Quantizer], ...],
    looked: Any,
    entries: Any,
    params: Any,
    qstate: Any,
    x: Any,
) -> dict[str, jax.Array]:
    """Squared errors of every image [b], summed over entries."""
    plain: dict[str, jax.Array] = {}
    tape: dict[str, jax.Array] = {}
    wanted = {address for _, address in looked}
    forward(params, x, recording(plain, lambda a: a in wanted or a in entries, packed_dot()))
    inner = quantized(dict(plan), qstate)

    def dot(site: str, equation: str, /, **operands: Any) -> jax.Array:
        float_inputs = {role: plain[a] for role in operands if (a := f"{site}.{role}") in entries}
        return inner(site, equation, **{**operands, **float_inputs})

    forward(params, x, recording(tape, wanted.__contains__, packed_dot(dot)))
    off = {name: tape[address] - plain[address] for name, address in looked}
    return {name: jnp.square(d).reshape(x.shape[0], -1).sum(axis=1) for name, d in off.items()}
