"""Pallas for GPUs of the Hopper kind: blocks of what a group is chosen by come twice, to be measured and to be encoded.

One block after another passes through registers, so that an axis may have any length; the second time they come from
the cache. The chosen group's few numbers wait in registers, one for each channel or row.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.group_encode.ladder import code_offset, per_group

ROWS, COLUMNS = 64, 16  #: of a block: 8 values a thread
TILE = 16  #: columns are filled up to a multiple of it: TMA moves 16 bytes, that many codes
STAGES = 4  #: blocks on their way
ENDS = (float("inf"), float("-inf"))  #: what any value is less and greater than


def group_encode(
    x: Float32[Array, "b n d"],
    lower: Float32[Array, " g"],
    upper: Float32[Array, " g"],
    scale: Float32[Array, " g"],
    zero: Float32[Array, " g"],
    levels: Float32[Array, ""],
    *,
    bits: int = 8,
    nonnegative: bool = False,
    ladder: bool = False,
    distance: str = "squared",
    along: str = "d",
    interpret: bool = False,
) -> tuple[Int8[Array, "b n d"], Int32[Array, "b p"]]:
    """The codes and the groups, as :func:`~jvq.kernels.group_encode.group_encode` says.

    Raises ``NotImplementedError`` before jax 0.11, whose kernels for GPUs are written and interpreted otherwise.
    """
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(f"group_encode: 'pallas_gpu' needs jax 0.11 or newer, this is {jax.__version__}")
    wide = 8 if code_offset(bits) else 7  # no other width has an executable of its own
    return _encode(x, lower, upper, scale, zero, levels, wide, nonnegative, ladder, distance, along, interpret)


@partial(jax.jit, static_argnums=range(6, 12))
def _encode(
    x: Float32[Array, "b n d"],
    lower: Float32[Array, " g"],
    upper: Float32[Array, " g"],
    scale: Float32[Array, " g"],
    zero: Float32[Array, " g"],
    levels: Float32[Array, ""],
    bits: int,
    nonnegative: bool,
    ladder: bool,
    distance: str,
    along: str,
    interpret: bool,
) -> tuple[Int8[Array, "b n d"], Int32[Array, "b p"]]:
    _, n, d = x.shape
    numbers = jnp.concatenate([lower, upper, *per_group(upper, scale, zero, bits=bits, ladder=ladder), levels[None]])
    filled = jnp.pad(x, ((0, 0), (0, 0), (0, -d % TILE)))
    over, count, many = (0, n, d) if along == "d" else (1, d, n)
    codes, group = _run(filled, numbers, over, count, nonnegative, distance, interpret)
    return codes[:, :, :d], group[:, :many]


def _mosaic() -> Any:
    """Pallas for GPUs: imported where it is used, as older jax has another; untyped, as its own types are wrong."""
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu


def _run(
    x: jax.Array, numbers: jax.Array, over: int, count: int, nonnegative: bool, distance: str, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    """Codes [b n d] and groups [b p], whole blocks, of x, of which ``count`` values along the axis ``over`` count."""
    plgpu = _mosaic()
    shape = (ROWS, COLUMNS)
    b, blocks = x.shape[0], [pl.cdiv(size, block) for size, block in zip(x.shape[1:], shape, strict=True)]
    kept = shape[1 - over]
    lines = (plgpu.TilingTransform((1, COLUMNS)),)  # any other tiling wants whole tiles of rows, so a copy of x
    block = plgpu.BlockSpec(shape, lambda j: (j, 0) if over == 0 else (0, j), transforms=lines)
    pipeline = partial(plgpu.emit_pipeline, grid=(blocks[over],), in_specs=[block], max_concurrent_steps=STAGES)

    def kernel(x_gmem: Any, numbers_gmem: Any, codes_gmem: Any, group_gmem: Any, codes_smem: Any, group_smem: Any):
        image, part = jax.lax.axis_index("b"), pl.ds(jax.lax.axis_index("p") * kept, kept)

        def at(along: Any) -> tuple:
            return (image, along, part) if over == 0 else (image, part, along)

        def measure(index: Any, x_smem: Any, ends: Any) -> Any:
            return _measured(index[0], _load(x_smem), ends, over, count)

        none = [plgpu.layout_cast(jnp.full(shape, end, jnp.float32), plgpu.Layout.WGMMA) for end in ENDS]
        low, high = pipeline(measure, init_carry=tuple(none))(x_gmem.at[at(slice(None))])
        high = high.max(axis=over)
        low = jnp.zeros_like(high) if nonnegative else low.min(axis=over)
        group, own = _nearest(low, high, numbers_gmem, distance)
        group_smem[...] = plgpu.layout_cast(group, plgpu.Layout.WGMMA.reduce(over))  # 0 everywhere has no layout yet
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(group_smem, group_gmem.at[image, part])

        def encode(index: Any, x_smem: Any) -> None:
            codes = _codes(_load(x_smem), own, numbers_gmem[numbers.shape[0] - 1], over)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the codes before are gone: these come to the same place
            codes_smem[...] = codes
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(codes_smem, codes_gmem.at[at(pl.ds(index[0] * shape[over], shape[over]))])

        pipeline(encode)(x_gmem.at[at(slice(None))])
        plgpu.wait_smem_to_gmem(0)

    codes, group = plgpu.kernel(
        kernel,
        out_type=[
            jax.ShapeDtypeStruct(x.shape, jnp.int8),
            jax.ShapeDtypeStruct((b, blocks[1 - over] * kept), jnp.int32),
        ],
        grid=(blocks[1 - over], b),
        grid_names=("p", "b"),
        scratch_types=[plgpu.SMEM(shape, jnp.int8, transforms=lines), plgpu.SMEM((kept,), jnp.int32)],
        **({"interpret": plgpu.InterpretGPUParams()} if interpret else {}),
    )(x, numbers)
    return codes, group


def _load(smem: Any) -> jax.Array:
    """A block of x, float32 [64 16], in registers."""
    plgpu = _mosaic()
    return plgpu.load(smem, layout=plgpu.Layout.WGMMA, optimized=False)


def _codes(x: jax.Array, own: list[jax.Array], levels: jax.Array, over: int) -> jax.Array:
    """The codes int8 [64 16] of a block, by what each channel or row of it has of its own."""
    inverse, zero, off, step = (jax.lax.broadcast_in_dim(a, x.shape, (1 - over,)) for a in own)
    codes = jnp.clip(jnp.round(x * inverse) + zero, 0.0, levels)
    return ((codes - off) * step).astype(jnp.int32).astype(jnp.int8)


def _measured(j: jax.Array, x: jax.Array, ends: tuple[jax.Array, jax.Array], over: int, count: int) -> Any:
    """The least and greatest values at every place of a block, with those of block ``j``."""
    size = (ROWS, COLUMNS)[over]
    least, most = x, x
    if count % size:  # what is beyond the end comes as zeros
        plgpu = _mosaic()
        place = plgpu.broadcasted_iota(jnp.int32, (ROWS, COLUMNS), over, layout=plgpu.Layout.WGMMA)
        there = place + j * size < count
        least, most = (jnp.where(there, x, end) for end in ENDS)
    return jnp.minimum(ends[0], least), jnp.maximum(ends[1], most)


def _nearest(low: jax.Array, high: jax.Array, numbers: Any, distance: str) -> tuple[jax.Array, list[jax.Array]]:
    """The nearest group int32 [p] of each (low, high), and what it encodes with: the last four numbers of each."""
    size = jnp.abs if distance == "absolute" else _square
    groups = (numbers.shape[0] - 1) // 6
    least, group = jnp.full_like(high, jnp.inf), jnp.zeros_like(high, jnp.int32)
    own = [jnp.full_like(high, numbers[row * groups]) for row in range(2, 6)]
    for g in range(groups):
        away = size(low - numbers[g]) + size(high - numbers[groups + g])
        nearer = away < least
        least, group = jnp.minimum(away, least), jnp.where(nearer, g, group)
        own = [jnp.where(nearer, numbers[row * groups + g], a) for row, a in zip(range(2, 6), own, strict=True)]
    return group, own


def _square(a: jax.Array) -> jax.Array:
    """The square, rounded: else the sum of two takes one of them as it is, and equal distances are no longer equal."""
    return jax.lax.optimization_barrier(a * a)
