"""Pallas for GPUs of the Hopper kind: blocks come into shared memory through a pipeline and are multiplied there.

TMA reads zeros beyond the ends of m and n and writes nothing there, but moves whole tiles of the swizzled layout: so m
is filled up to 8 rows, n to 32 outputs and k to a whole block, with zeros, and no further.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float32, Int8, Int32

from jvq.kernels.int8_matmul.terms import AXES, Terms, finish, stacked, sums_of, terms

COLUMNS = 128  #: outputs of a block
ROWS = 64  #: rows of a block, those of one instruction; twice as many where that still makes enough blocks
PROCESSORS = 132  #: of an H100 or H200: with fewer blocks some have nothing to do
DEPTH = 128  #: codes along k of a block: as many bytes as the widest swizzle takes, or half of them
STAGES = 4  #: blocks on their way


def int8_matmul(
    x: Int8[Array, "g m k"],
    w: Int8[Array, "gw n k"],
    *,
    x_scale: Float32[Array, "_ _ 1"],
    w_scale: Float32[Array, "_ 1 _"],
    x_zero: Int32[Array, "_ _ 1"] | None = None,
    w_zero: Int32[Array, "_ 1 _"] | None = None,
    w_sum: Int32[Array, "_ 1 n"] | None = None,
    bias: Float32[Array, " n"] | None = None,
    interpret: bool = False,
) -> Float32[Array, "g m n"]:
    """The product, as :func:`~jvq.kernels.int8_matmul.int8_matmul` says.

    Raises ``NotImplementedError`` before jax 0.11, whose kernels for GPUs are written and interpreted otherwise.
    """
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(f"int8_matmul: 'pallas_gpu' needs jax 0.11 or newer, this is {jax.__version__}")
    shape, (gw, n, _) = (*x.shape[:2], w.shape[1]), w.shape
    x, x_scale, x_zero = stacked(x, gw, x_scale, x_zero)
    w_sum = sums_of(w) if x_zero is not None and w_sum is None else w_sum
    t = terms(x, n, x_scale=x_scale, w_scale=w_scale, x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias)
    depth = min((DEPTH, DEPTH // 2), key=lambda size: -x.shape[2] % size)  # what fills up less, else the larger
    y = _product(_filled(x, 1, 8, depth), _filled(w, 1, 32, depth), t, depth, interpret)
    return y[:, : x.shape[1], :n].reshape(shape)


def _filled(a: jax.Array, *multiples: int) -> jax.Array:
    """``a`` with zeros behind, so that each axis is a multiple of the number given for it."""
    return jnp.pad(a, [(0, -size % multiple) for size, multiple in zip(a.shape, multiples, strict=True)])


def _product(x: jax.Array, w: jax.Array, t: Terms, depth: int, interpret: bool) -> jax.Array:
    """The values [g m n] of x [g m k] times w [g|1 n k], filled up, with their terms."""
    plgpu = _mosaic()
    (g, m, k), (gw, n, _) = x.shape, w.shape
    columns = pl.cdiv(n, COLUMNS)
    rows = ROWS if g * pl.cdiv(m, 2 * ROWS) * columns < PROCESSORS else 2 * ROWS
    # terms [g|1 m] or [g|1 n], whole blocks of them: they are read from memory as they are
    vectors, structure = jax.tree.flatten(t)
    kinds = [kind for kind, a in zip(AXES, t, strict=True) if a is not None]
    vectors = [
        _filled(a.reshape(len(a), -1), 1, rows if kind == "m" else COLUMNS)
        for a, kind in zip(vectors, kinds, strict=True)
    ]
    swizzled = (plgpu.TilingTransform((8, depth)), plgpu.SwizzleTransform(depth))
    stored = (plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128))

    def kernel(x_gmem, w_gmem, *refs):
        *of_terms, y_gmem, y_smem = refs
        i, r, c = (jax.lax.axis_index(name) for name in ("g", "m", "n"))
        row, column = pl.ds(r * rows, rows), pl.ds(c * COLUMNS, COLUMNS)

        def product(acc):
            def step(_, x_smem, w_smem):
                plgpu.wgmma(acc, x_smem, w_smem.T)
                plgpu.wgmma_wait(1)  # the step before is done: its blocks may be overwritten

            plgpu.emit_pipeline(
                step,
                grid=(k // depth,),
                in_specs=[
                    plgpu.BlockSpec((size, depth), lambda d: (0, d), transforms=swizzled, delay_release=1)
                    for size in (rows, COLUMNS)
                ],
                max_concurrent_steps=STAGES,
            )(x_gmem.at[i, row], w_gmem.at[i if gw > 1 else 0, column])
            return acc[...]

        total = pl.run_scoped(product, plgpu.ACC((rows, COLUMNS), jnp.int32))
        spread = [
            _spread(ref.at[i if ref.shape[0] > 1 else 0, row if kind == "m" else column], kind, (rows, COLUMNS))
            for ref, kind in zip(of_terms, kinds, strict=True)
        ]
        y_smem[...] = finish(total, jax.tree.unflatten(structure, spread))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_smem, y_gmem.at[i, row, column])
        plgpu.wait_smem_to_gmem(0)

    mode: dict[str, Any] = {"interpret": plgpu.InterpretGPUParams()} if interpret else {}
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((g, m, n), jnp.float32),
        grid=(g, columns, pl.cdiv(m, rows)),
        grid_names=("g", "n", "m"),
        scratch_types=[plgpu.SMEM((rows, COLUMNS), jnp.float32, transforms=stored)],
        **mode,
    )(x, w, *vectors)


def _spread(ref: Any, kind: str, block: tuple[int, int]) -> jax.Array:
    """What a block's rows [m] or columns [n] have, spread over the block."""
    plgpu, axis = _mosaic(), "mn".index(kind)
    a = plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1 - axis), optimized=False)
    return jax.lax.broadcast_in_dim(a, block, (axis,))


def _mosaic() -> Any:
    """Pallas for GPUs, without types: an old jax has another, and only who asks for this kernel needs it."""
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu
