"""Pallas for GPUs of the Hopper kind: a program has 64 query rows of one image and head, and all keys in shared memory.

It goes over the keys twice, in blocks of 64: for the greatest score and the sum of each row, then for the codes of p
and their product with v. So scores never leave the registers, whatever the number of keys, at the price of a second
product of q and k. Products of int8 need both operands with the summed axis last: v comes transposed.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.attention.terms import Terms, terms

ROWS = 64  #: rows of a program: those of one instruction
KEYS = 64  #: keys of a block: its scores are 32 registers a thread
WIDEST = 128  #: bytes of a row that a swizzle takes
SHARED = 227 * 1024  #: bytes of shared memory that a program may have


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
    """The output of the heads, float32 [b h q e]; see ``attention``.

    Declines p without codes (there is no float32 product on tensor cores), keys that do not fit, and jax before 0.11.
    """
    del k_zero  # adds the same to all scores of a row
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(f"attention: 'pallas_gpu' needs jax 0.11 or newer, this is {jax.__version__}")
    if p_scale is None:
        raise NotImplementedError("attention: 'pallas_gpu' multiplies codes of p only: give p_scale")
    b, h, queries, e = q.shape
    count = k.shape[2]
    wide = next((n for n in (32, 64) if e <= n), e + -e % WIDEST)
    rows, blocks = queries + -queries % ROWS, -(-count // KEYS)
    needed = 2 * blocks * KEYS * wide + ROWS * (wide + KEYS + 4 * wide) + 1024
    if needed > SHARED or wide > 256:
        raise NotImplementedError(
            f"attention: {count} keys of {e} channels take {needed} bytes of shared memory, there are {SHARED}"
        )
    added = terms(k, v, q_scale, k_scale, v_scale, q_zero, v_zero, p_scale, p_zero, p_levels)
    in_blocks = (b * h * blocks, KEYS, wide)
    turned = jnp.swapaxes(_filled(v, blocks * KEYS, wide).reshape(in_blocks), 1, 2)
    optional = {
        "keys": None if added.keys is None else _filled(added.keys, 1, blocks * KEYS),
        "bias": None if bias is None else _filled(bias, rows, blocks * KEYS),
        "values": None if added.values is None else _filled(jnp.broadcast_to(added.values, (b, h, 1, e)), 1, wide),
    }
    there = {name: a.reshape(-1, *a.shape[2:]) for name, a in optional.items() if a is not None}
    images, heads = (1, 1) if bias is None else bias.shape[:2]
    at = partial(_index, h=h, images=images, heads=heads)
    operands = {
        "floats": _scalars(b, h, jnp.float32, added.scale, added.inverse, added.scaled),
        "ints": _scalars(b, h, jnp.int32, added.p_zero, added.v_zero),
        "q": _filled(q, rows, wide).reshape(b * h, rows, wide),
        "k": _filled(k, blocks * KEYS, wide).reshape(in_blocks),
        "v": turned,
        **there,
    }
    out = _run(operands, added, at, count, p_levels, interpret)
    return out.reshape(b, h, rows, wide)[:, :, :queries, :e]


def _mosaic() -> Any:
    """Pallas for GPUs: imported where it is used, as older jax has another; untyped, as its own types are wrong."""
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu


def _filled(a: jax.Array, m: int, n: int) -> jax.Array:
    """``a`` with zeros behind, so that its matrices are [m n]."""
    return jnp.pad(a, ((0, 0), (0, 0), (0, m - a.shape[2]), (0, n - a.shape[3])))


def _scalars(b: int, h: int, dtype: Any, *parts: jax.Array | None) -> jax.Array:
    """The numbers of each image and head one after another, 0 for None."""
    filled = [jnp.zeros((1, 1, 1, 1), dtype) if a is None else a for a in parts]
    return jnp.concatenate([jnp.broadcast_to(a[..., 0], (b, h, 1)) for a in filled], axis=2).reshape(-1)


def _index(g: jax.Array, h: int, images: int, heads: int) -> Any:
    """Which matrix of [1|b 1|h] image and head g has: programs count both in one number."""
    return (jax.lax.div(g, h) if images > 1 else 0) * heads + (jax.lax.rem(g, h) if heads > 1 else 0)


def _run(operands: dict[str, jax.Array], added: Terms, at: Any, count: int, p_levels: int, interpret: bool):
    """The output [g rows wide] of operands that are filled up."""
    plgpu = _mosaic()
    g, rows, wide = operands["q"].shape
    blocks = operands["k"].shape[0] // g
    names = tuple(operands)

    def swizzled(width: int, size: int = 1) -> tuple:
        span = min(WIDEST, width * size)
        return (plgpu.TilingTransform((8, span // size)), plgpu.SwizzleTransform(span))

    def kernel(*refs):
        given = dict(zip(names, refs, strict=False))
        out, q_smem, k_smem, v_smem, p_smem, out_smem, arrived = refs[len(names) :]
        head, row = jax.lax.axis_index("head"), pl.ds(jax.lax.axis_index("row") * ROWS, ROWS)
        all_keys = pl.ds(head * blocks, blocks)
        plgpu.copy_gmem_to_smem(given["q"].at[head, row], q_smem, arrived)
        plgpu.copy_gmem_to_smem(given["k"].at[all_keys], k_smem, arrived)
        plgpu.copy_gmem_to_smem(given["v"].at[all_keys], v_smem, arrived)
        plgpu.barrier_wait(arrived)
        scores = partial(_scores, given, q_smem, k_smem, head, row, at, count)
        greatest, total = jax.lax.fori_loop(0, blocks, partial(_seen, scores), _unseen())
        out_smem[...] = _values(given, scores, greatest, total, (v_smem, p_smem), added, head, count, p_levels)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out.at[head, row])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((g, rows, wide), jnp.float32),
        grid=(rows // ROWS, g),
        grid_names=("row", "head"),
        scratch_types=[
            plgpu.SMEM((ROWS, wide), jnp.int8, transforms=swizzled(wide)),
            plgpu.SMEM((blocks, KEYS, wide), jnp.int8, transforms=swizzled(wide)),
            plgpu.SMEM((blocks, wide, KEYS), jnp.int8, transforms=swizzled(KEYS)),
            plgpu.SMEM((ROWS, KEYS), jnp.int8, transforms=swizzled(KEYS)),
            plgpu.SMEM((ROWS, wide), jnp.float32, transforms=swizzled(wide, 4)),
            plgpu.Barrier(num_arrivals=3),
        ],
        **({"interpret": plgpu.InterpretGPUParams()} if interpret else {}),
    )(*operands.values())


def _unseen() -> tuple[jax.Array, jax.Array]:
    """The greatest score and the sum of powers of rows of which nothing is known."""
    plgpu = _mosaic()
    layout = plgpu.Layout.WGMMA.reduce(1)
    return (
        plgpu.layout_cast(jnp.full((ROWS,), -jnp.inf, jnp.float32), layout),
        plgpu.layout_cast(jnp.full((ROWS,), 0.0, jnp.float32), layout),
    )


def _seen(scores: Any, j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The greatest score and the sum of powers, with block j."""
    greatest, total = carry
    block = scores(j)
    new = jnp.maximum(greatest, block.max(axis=1))
    return new, total * jnp.exp(greatest - new) + jnp.exp(block - _down(new, block.shape)).sum(axis=1)


def _down(a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """``a`` [m], a number for each row, as [m n]."""
    return jax.lax.broadcast_in_dim(a, shape, (0,))


def _scores(
    given: dict[str, Any], q_smem: Any, k_smem: Any, head: jax.Array, row: Any, at: Any, count: int, j: jax.Array
) -> jax.Array:
    """The scores float32 [64 64] of block j of the keys; -inf where there is none."""
    plgpu = _mosaic()

    def multiply(sums: Any) -> jax.Array:
        plgpu.wgmma(sums, q_smem, k_smem.at[j].T)
        return sums[...]

    shape = (ROWS, KEYS)
    across = pl.ds(j * KEYS, KEYS)
    products = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.int32))
    if "keys" in given:
        part = plgpu.load(given["keys"].at[head, 0, across], layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
        products = products + jax.lax.broadcast_in_dim(part, shape, (1,))
    scores = products.astype(jnp.float32) * given["floats"][3 * head]
    if "bias" in given:
        part = given["bias"].at[at(head), row, across]
        scores = scores + plgpu.load(part, layout=plgpu.Layout.WGMMA, optimized=False)
    return jnp.where(_there(j, count), scores, -jnp.inf) if count % KEYS else scores


def _there(j: jax.Array, count: int) -> jax.Array:
    """Which keys of block j there are [64 64]."""
    plgpu = _mosaic()
    place = plgpu.broadcasted_iota(jnp.int32, (ROWS, KEYS), 1, layout=plgpu.Layout.WGMMA)
    return place + j * KEYS < count


def _values(
    given: dict[str, Any],
    scores: Any,
    greatest: jax.Array,
    total: jax.Array,
    smem: tuple[Any, Any],
    added: Terms,
    head: jax.Array,
    count: int,
    p_levels: int,
) -> jax.Array:
    """The output float32 [64 wide] of the rows: the codes of p of one block after another times its values."""
    plgpu = _mosaic()
    v_smem, p_smem = smem
    blocks, wide, _ = v_smem.shape
    shape = (ROWS, wide)
    factor, p_zero = given["floats"][3 * head + 1] / total, given["ints"][2 * head].astype(jnp.float32)

    def multiply(sums: Any) -> tuple[jax.Array, jax.Array]:
        def step(j: jax.Array, summed: jax.Array) -> jax.Array:
            block = scores(j)
            p = jnp.exp(block - _down(greatest, block.shape)) * _down(factor, block.shape)
            codes = jnp.clip(jnp.round(p) + p_zero, 0.0, float(p_levels)) - float(added.shift)
            if count % KEYS:  # what is filled up counts nothing, whatever the zero point
                codes = jnp.where(_there(j, count), codes, 0.0)
            p_smem[...] = codes.astype(jnp.int32).astype(jnp.int8)
            plgpu.commit_smem()
            plgpu.wgmma(sums, p_smem, v_smem.at[j].T)
            plgpu.wgmma_wait(0)  # the next block's codes come to the same place
            return summed + codes.sum(axis=1)

        summed = jax.lax.fori_loop(0, blocks, step, _unseen()[1])
        return sums[...], summed

    products, summed = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.int32))
    if "values" in given:
        part = plgpu.load(given["values"].at[head, 0], layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
        products = products + jax.lax.broadcast_in_dim(part, shape, (1,))
    if added.v_zero is not None:
        products = products - _down(summed.astype(jnp.int32) * given["ints"][2 * head + 1], shape)  # exact: below 2**24
    return products.astype(jnp.float32) * given["floats"][3 * head + 2]
