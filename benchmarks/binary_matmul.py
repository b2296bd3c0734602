"""How fast products of packed signs are beside the float32 products of the same shapes, in one run.

    python benchmarks/binary_matmul.py [--impl=xla] [--rounds=7] [--calls=5]

Shapes are those of DeiT: a block's linear layers for one image, and the scores and values of three heads. Operands are
packed already; "packing" also packs the activations, as a layer does. Kinds are timed in turn, several calls at a time,
and the fastest round counts. A ratio above 1 means that the packed product is faster. Compiling is reported too. A few
seconds; `taskset -c 0` in front keeps all of it on one core.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jvq.kernels.binary_matmul import binary_matmul, pack_words, sign_words

FLAGS = flags.FLAGS
flags.DEFINE_string("impl", "auto", "implementation of the packed product")
flags.DEFINE_integer("rounds", 7, "how often each is timed", lower_bound=1)
flags.DEFINE_integer("calls", 5, "products that are timed at once", lower_bound=1)


class Case(NamedTuple):
    """A product [lead m n] of rows of k bits."""

    name: str
    lead: tuple[int, ...]  # of both operands
    m: int
    k: int
    n: int
    kind: str = "xnor"


CASES = (
    Case("T qkv", (), 198, 192, 576),
    Case("T fc2", (), 198, 768, 192),
    Case("B proj", (), 197, 192, 768),
    Case("B fc1", (), 197, 768, 3072),
    Case("B fc2", (), 197, 3072, 768),
    Case("scores", (3,), 198, 64, 198),
    Case("values", (3,), 198, 198, 64, "and"),
)


def main(argv: list[str]) -> None:
    del argv
    print(f"{jax.default_backend()}, impl={FLAGS.impl}")
    for case in CASES:
        runs = products(case)
        compiled = {name: seconds(run, 1) for name, run in runs.items()}
        best = dict.fromkeys(runs, math.inf)
        for _ in range(FLAGS.rounds):
            for name, run in runs.items():
                best[name] = min(best[name], seconds(run, FLAGS.calls))
        shape = "x".join(str(s) for s in (*case.lead, case.m, case.k, case.n))
        print(
            f"{case.name} {shape} {case.kind}: float {1e6 * best['float']:.0f} us, packed "
            f"{1e6 * best['packed']:.0f} us; float / packed = {best['float'] / best['packed']:.2f}, with packing "
            f"{best['float'] / best['packing']:.2f}; compiled in {compiled['packed']:.2f} s",
            flush=True,
        )


def products(case: Case) -> dict[str, Callable[[], jax.Array]]:
    """The product as float32, from packed operands, and with the packing of ``x``."""
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(np.where(rng.random((*case.lead, rows, case.k)) < 0.5, -1, 1), jnp.float32)
        for rows in (case.m, case.n)
    )

    def packed_x(x: jax.Array) -> jax.Array:
        return sign_words(x) if case.kind == "xnor" else pack_words(x > 0)

    multiply = jax.jit(lambda a, b: jnp.einsum("...mk,...kn->...mn", a, b))
    packed = jax.jit(lambda a, b: binary_matmul(a, b, case.k, case.kind, FLAGS.impl))
    packing = jax.jit(lambda a, b: binary_matmul(packed_x(a), b, case.k, case.kind, FLAGS.impl))
    upright = jnp.swapaxes(w, -1, -2)  # as layers keep their kernels: [d o]
    words = jax.jit(packed_x)(x), jax.jit(sign_words)(w)
    return {
        "float": lambda: multiply(x, upright),
        "packed": lambda: packed(*words),
        "packing": lambda: packing(x, words[1]),
    }


def seconds(run: Callable[[], jax.Array], calls: int) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(run())
    return (time.perf_counter() - start) / calls


if __name__ == "__main__":
    app.run(main)
