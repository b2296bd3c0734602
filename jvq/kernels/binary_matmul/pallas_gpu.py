"""Pallas for GPUs of the Hopper kind: a warpgroup counts the bits of 64 x 64 outputs, one word after another.

Mosaic has no instruction that counts bits. Four sums of eight bits lie side by side in a word, those of up to 31 words
(248 of 255); they are added up only then. Words come in pieces, the next while one is counted.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Int, UInt32

SIDE = 64  #: rows and columns of a block: 32 counts a thread
WORDS = 24  #: of a piece, at most; 31 would fit into its sums
STAGES = 3  #: pieces on their way


@partial(jax.jit, static_argnames=("k", "kind", "interpret"))
def matmul(
    x: UInt32[Array, "g m w"], w: UInt32[Array, "g n w"], k: int, kind: str, interpret: bool = False
) -> Int[Array, "g m n"]:
    """The products int32 [g m n] of packed rows. Declines jax before 0.11."""
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(f"binary_matmul: 'pallas_gpu' needs jax 0.11 or newer, this is {jax.__version__}")
    (g, m, words), n = x.shape, w.shape[1]
    if 0 in (g, m, n):
        return jnp.zeros((g, m, n), jnp.int32)
    pieces = -(-words // WORDS)
    size = -(-words // pieces)
    # words in front: those of neighbouring rows lie side by side; what is filled up counts nothing
    left, right = (
        jnp.swapaxes(jnp.pad(a, ((0, 0), (0, -a.shape[1] % SIDE), (0, pieces * size - words))), 1, 2) for a in (x, w)
    )
    # the product is ``offset - sign * 2 * count``: of each row where the bits of x are 0 and 1
    ones = jnp.sum(jax.lax.population_count(left), axis=1, dtype=jnp.uint32).astype(jnp.int32)
    offset = jnp.full_like(ones, k) if kind == "xnor" else -ones
    return _product(left, right, offset, size, kind, interpret)[:, :m, :n]


def _mosaic() -> Any:
    """Pallas for GPUs: imported where it is used, as older jax has another; untyped, as its own types are wrong."""
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu


def _product(x: jax.Array, w: jax.Array, offset: jax.Array, size: int, kind: str, interpret: bool) -> jax.Array:
    """The product int32 [g m n] of words [g w m] and [g w n], whole blocks, with ``offset`` [g m] added to rows."""
    plgpu = _mosaic()
    (g, words, m), n = x.shape, w.shape[2]

    def kernel(x_gmem: Any, w_gmem: Any, offset_gmem: Any, out_gmem: Any, out_smem: Any) -> None:
        batch = jax.lax.axis_index("g")
        row, column = (pl.ds(jax.lax.axis_index(a) * SIDE, SIDE) for a in ("m", "n"))

        def step(_: Any, x_smem: Any, w_smem: Any, total: jax.Array) -> jax.Array:
            return total + _counts(x_smem, w_smem, size, kind)

        total = plgpu.emit_pipeline(
            step,
            grid=(words // size,),
            in_specs=[plgpu.BlockSpec((size, SIDE), lambda p: (p, 0))] * 2,
            max_concurrent_steps=STAGES,
            init_carry=plgpu.layout_cast(jnp.full((SIDE, SIDE), 0, jnp.int32), plgpu.Layout.WGMMA),
        )(x_gmem.at[batch, :, row], w_gmem.at[batch, :, column])
        twice = total * (-2 if kind == "xnor" else 2)
        out_smem[...] = twice + _spread(offset_gmem.at[batch, row], 0)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out_gmem.at[batch, row, column])
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((g, m, n), jnp.int32),
        grid=(n // SIDE, m // SIDE, g),
        grid_names=("n", "m", "g"),
        scratch_types=[
            plgpu.SMEM(
                (SIDE, SIDE), jnp.int32, transforms=(plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))
            )
        ],
        **({"interpret": plgpu.InterpretGPUParams()} if interpret else {}),
    )(x, w, offset)


def _spread(ref: Any, axis: int) -> jax.Array:
    """The numbers [64] of a reference along one axis of a block."""
    plgpu = _mosaic()
    part = plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)
    return jax.lax.broadcast_in_dim(part, (SIDE, SIDE), (axis,))


def _counts(x: Any, w: Any, size: int, kind: str) -> jax.Array:
    """How many bits are set in both, or differ: int32 [64 64] of one piece, words [size 64]."""
    plgpu = _mosaic()
    combine = jnp.bitwise_xor if kind == "xnor" else jnp.bitwise_and

    def word(j: jax.Array, sums: jax.Array) -> jax.Array:
        bits = combine(_spread(x.at[j], 0), _spread(w.at[j], 1))
        pairs = bits - ((bits >> 1) & 0x55555555)
        nibbles = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
        return sums + ((nibbles + (nibbles >> 4)) & 0x0F0F0F0F)

    nothing = plgpu.layout_cast(jnp.full((SIDE, SIDE), 0, jnp.uint32), plgpu.Layout.WGMMA)
    sums = jax.lax.fori_loop(0, size, word, nothing)
    halves = (sums & 0x00FF00FF) + ((sums >> 8) & 0x00FF00FF)
    return ((halves & 0xFFFF) + (halves >> 16)).astype(jnp.int32)
