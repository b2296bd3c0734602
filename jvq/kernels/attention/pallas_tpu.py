"""Pallas for TPUs: a program has a block of query rows of one image and head, and all of its keys on the chip."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.attention.terms import Terms, terms

LANES = 128  #: scores of keys lie side by side in as many lanes
ROWS = 32  #: int8 tiles have as many rows
SCORES = 2**18  #: of one program: 1 MiB in float32, a few times
KEYS = 4096  #: the most that are taken at once
CHANNELS = 512  #: of a head


@partial(jax.jit, static_argnames=("p_levels", "interpret"))
def attend(
    *,
    q: Int8[Array, "b h q e"],
    k: Int8[Array, "b h k e"],
    v: Int8[Array, "b h k e"],
    q_scale: Float32[Array, "#b #h 1 1"],
    k_scale: Float32[Array, "#b #h 1 1"],
    v_scale: Float32[Array, "#b #h 1 1"],
    q_zero: Int32[Array, "#b #h 1 1"] | None = None,
    k_zero: Int32[Array, "#b #h 1 1"] | None = None,
    v_zero: Int32[Array, "#b #h 1 1"] | None = None,
    bias: Float32[Array, "#b #h q k"] | None = None,
    p_scale: Float32[Array, "1 #h 1 1"] | None = None,
    p_zero: Int32[Array, "1 #h 1 1"] | None = None,
    p_levels: int = 255,
    interpret: bool = False,
) -> Float32[Array, "b h q e"]:
    """The output of the heads, float32 [b h q e]; see ``attention``. Declines what does not fit on the chip."""
    del k_zero  # adds the same to all scores of a row
    b, h, queries, e = q.shape
    count = k.shape[2]
    if count > KEYS or e > CHANNELS:
        raise NotImplementedError(
            f"attention on TPU keeps all keys on the chip: at most {KEYS} of {CHANNELS} channels, got {count} of {e}"
        )
    added = terms(k, v, q_scale, k_scale, v_scale, q_zero, v_zero, p_scale, p_zero, p_levels)
    keys = _up(count, LANES)
    rows = min(_up(queries, ROWS), max(SCORES // keys // ROWS * ROWS, ROWS))
    grid = (b * h, pl.cdiv(queries, rows))
    filled = rows * grid[1]
    across, down = keys - count, filled - queries
    operands = {
        "floats": (_scalars(b, h, jnp.float32, added.scale, added.inverse, added.scaled), None),
        "ints": (_scalars(b, h, jnp.int32, added.p_zero, added.v_zero), None),
        "q": _whole(jnp.pad(q, ((0, 0), (0, 0), (0, down), (0, 0))), h, rows),
        "k": _whole(jnp.pad(k, ((0, 0), (0, 0), (0, across), (0, 0))), h),
        "v": _whole(jnp.pad(v, ((0, 0), (0, 0), (0, across), (0, 0))), h),
    }
    if added.keys is not None:
        operands["keys"] = _whole(jnp.pad(added.keys, ((0, 0), (0, 0), (0, 0), (0, across))), h)
    if bias is not None:
        operands["bias"] = _whole(jnp.pad(bias, ((0, 0), (0, 0), (0, down), (0, across))), h, rows)
    if added.values is not None:
        operands["values"] = _whole(jnp.broadcast_to(added.values, (b, h, 1, e)), h)
    scalar = pl.BlockSpec(memory_space=pltpu.SMEM)
    out = pl.pallas_call(
        partial(_program, tuple(operands), count, p_levels, added),
        grid=grid,
        in_specs=[scalar if spec is None else spec for _, spec in operands.values()],
        out_specs=pl.BlockSpec((1, 1, rows, e), lambda g, i: (g // h, g % h, i, 0)),
        out_shape=jax.ShapeDtypeStruct((b, h, filled, e), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
    )(*[a for a, _ in operands.values()])
    return out[:, :, :queries]


def _up(n: int, multiple: int) -> int:
    """The least multiple that is not below n."""
    return -(-n // multiple) * multiple


def _scalars(b: int, h: int, dtype: Any, *parts: jax.Array | None) -> jax.Array:
    """The numbers of each image and head in a row [b h parts], 0 for None."""
    filled = [jnp.zeros((1, 1, 1, 1), dtype) if a is None else a for a in parts]
    return jnp.concatenate([jnp.broadcast_to(a[..., 0], (b, h, 1)) for a in filled], axis=2).reshape(-1)


def _whole(a: jax.Array, h: int, rows: int | None = None) -> tuple[jax.Array, pl.BlockSpec]:
    """An operand [1|b 1|h m n], of which a program has the matrix [m n] of its image and head, or a block of rows."""
    images, heads, m, n = a.shape

    def index(g: jax.Array, i: jax.Array) -> tuple:
        return (g // h if images > 1 else 0, g % h if heads > 1 else 0, i if rows else 0, 0)

    return a, pl.BlockSpec((1, 1, rows or m, n), index)


def _program(names: tuple[str, ...], count: int, p_levels: int, added: Terms, *refs: Any) -> None:
    """One block of rows: scores of all keys, their softmax and its product with the values."""
    *inputs, out = refs
    given = dict(zip(names, inputs, strict=True))
    g = pl.program_id(0)
    scale, inverse, scaled = (given["floats"][3 * g + i] for i in range(3))
    p_zero, v_zero = (given["ints"][2 * g + i] for i in range(2))
    scores = _product(given["q"][0, 0], given["k"][0, 0], 1)
    if "keys" in given:
        scores = scores + given["keys"][0, 0]
    scores = scores.astype(jnp.float32) * scale
    if "bias" in given:
        scores = scores + given["bias"][0, 0]
    there = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) < count
    scores = jnp.where(there, scores, -jnp.inf)
    powers = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    total = powers.sum(axis=1, keepdims=True)
    values = given["v"][0, 0]
    if added.inverse is None:
        floats = values.astype(jnp.float32) - v_zero.astype(jnp.float32)
        floats = jnp.dot(powers, floats, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
        out[0, 0] = floats * (scaled / total)
        return
    codes = jnp.round(powers * (inverse / total)) + p_zero.astype(jnp.float32)
    codes = jnp.clip(codes, 0.0, float(p_levels)) - float(added.shift)
    codes = jnp.where(there, codes, 0.0)  # what is filled up counts nothing, whatever the zero point
    products = _product(codes.astype(jnp.int32).astype(jnp.int8), values, 0)
    if "values" in given:
        products = products + given["values"][0, 0]
    if added.v_zero is not None:
        products = products - v_zero * codes.sum(axis=1, keepdims=True).astype(jnp.int32)  # exact: below 2**24
    out[0, 0] = products.astype(jnp.float32) * scaled


def _product(a: jax.Array, b: jax.Array, along: int) -> jax.Array:
    """The exact product int32 [m n] of int8 [m k] with b, summed over its axis ``along``."""
    return jax.lax.dot_general(a, b, (((1,), (along,)), ((), ())), preferred_element_type=jnp.int32)
