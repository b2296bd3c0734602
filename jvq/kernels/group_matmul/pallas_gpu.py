"""Pallas for GPUs of the Hopper kind: every digit of x meets a block of w in shared memory, an accumulator a digit.

A ladder's codes are one digit; scales of any kind make three (:mod:`jvq.core.fixed_point`), which XLA splits off
beforehand. All images meet the same w, so their rows are one matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float32, Int8, Int32

from jvq.core.fixed_point import fixed_point, joined
from jvq.kernels.group_matmul.values import own, values

ROWS, TILE = 64, 8  #: rows of a block, those of one instruction; how many rows memory is read and written by
COLUMNS = 64  #: outputs of a block: three accumulators of 64 x 64 leave room in the registers
DEPTH = 128  #: codes along k of a block: as many bytes as the widest swizzle takes
STAGES = 4  #: blocks on their way


def group_matmul(
    x: Int8[Array, "b m k"],
    group: Int32[Array, "b k"] | None,
    w: Int8[Array, "n k"],
    *,
    scale: Float32[Array, " g"],
    zero: Int32[Array, " g"] | None,
    w_scale: Float32[Array, " c"],
    w_zero: Int32[Array, " z"] | None = None,
    bias: Float32[Array, " n"] | None = None,
    ladder: bool = False,
    interpret: bool = False,
) -> Float32[Array, "b m n"]:
    """The product, as :func:`~jvq.kernels.group_matmul.group_matmul` says.

    Raises ``NotImplementedError`` before jax 0.11, whose kernels for GPUs are written and interpreted otherwise.
    """
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(f"group_matmul: 'pallas_gpu' needs jax 0.11 or newer, this is {jax.__version__}")
    (b, m, k), n = x.shape, w.shape[0]
    if ladder:
        digits, unit = [x.astype(jnp.int32)], jnp.broadcast_to(scale[:, None, None], (b, m, 1))
    else:
        assert group is not None
        digits, unit = fixed_point(values(x, own(scale, group), None if zero is None else own(zero, group)))
    rows = [digit.reshape(b * m, k) for digit in digits]
    vectors = [_filled(unit.reshape(-1), ROWS), _filled(jnp.broadcast_to(w_scale, (n,)), COLUMNS)]
    vectors.append(_filled(jnp.zeros(n, jnp.float32) if bias is None else bias, COLUMNS))
    if w_zero is not None:
        vectors.append(_filled(jnp.broadcast_to(w_zero, (n,)), COLUMNS))
        vectors.extend(_filled(row.sum(axis=1), ROWS) for row in rows)
    x_digits = jnp.stack([_filled(row.astype(jnp.int8), TILE, DEPTH) for row in rows])  # the rest is read as zeros
    y = _product(x_digits, _filled(w, COLUMNS, DEPTH), vectors, interpret)
    return y[: b * m, :n].reshape(b, m, n)


def _mosaic() -> Any:
    """The module of kernels for GPUs: imported when one is made, which the oldest jax does not get to."""
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu


def _filled(a: jax.Array, *multiples: int) -> jax.Array:
    """``a`` with zeros behind, so that each axis is a multiple of the number given for it."""
    return jnp.pad(a, [(0, -size % multiple) for size, multiple in zip(a.shape, multiples, strict=True)])


def _product(x: jax.Array, w: jax.Array, vectors: list[jax.Array], interpret: bool) -> jax.Array:
    """The product [m n] of digits [i m k], whole tiles, and w [n k], whole blocks; :func:`_finish` takes vectors."""
    plgpu = _mosaic()
    count, m, k = x.shape
    n = w.shape[0]
    swizzled = (plgpu.TilingTransform((TILE, DEPTH)), plgpu.SwizzleTransform(DEPTH))
    held = 1 if k > DEPTH else 0  # how many steps longer a block is held than its own
    mode: dict[str, Any] = {"interpret": plgpu.InterpretGPUParams()} if interpret else {}

    def kernel(x_gmem, w_gmem, *refs):
        *given, out_gmem, out_smem = refs
        row, column = (pl.ds(jax.lax.axis_index(a) * size, size) for a, size in (("m", ROWS), ("n", COLUMNS)))

        def multiply(*sums):
            def step(_, x_smem, w_smem):
                for i in range(count):
                    plgpu.wgmma(sums[i], x_smem.at[i], w_smem.T)
                plgpu.wgmma_wait(count * held)  # the step before is done: its blocks may be overwritten

            plgpu.emit_pipeline(
                step,
                grid=(k // DEPTH,),
                in_specs=[
                    plgpu.BlockSpec((count, ROWS, DEPTH), lambda j: (0, 0, j), transforms=swizzled, delay_release=held),
                    plgpu.BlockSpec((COLUMNS, DEPTH), lambda j: (0, j), transforms=swizzled, delay_release=held),
                ],
                max_concurrent_steps=STAGES,
            )(x_gmem.at[:, row], w_gmem.at[column])
            return [a[...] for a in sums]

        # registers are asked for apart from shared memory, which interpreting insists on
        sums = pl.run_scoped(multiply, *[plgpu.ACC((ROWS, COLUMNS), jnp.int32)] * count)
        out_smem[...] = _finish(sums, given, row, column)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_smem, out_gmem.at[row, column])
        plgpu.wait_smem_to_gmem(0)

    stored = (plgpu.TilingTransform((TILE, 32)), plgpu.SwizzleTransform(128))
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((m, n), jnp.float32),
        grid=(n // COLUMNS, pl.cdiv(m, ROWS)),
        grid_names=("n", "m"),
        scratch_types=[plgpu.SMEM((ROWS, COLUMNS), jnp.float32, transforms=stored)],
        **mode,
    )(x, w, *vectors)


def _finish(sums: list[jax.Array], vectors: list[Any], row: Any, column: Any) -> jax.Array:
    """A block of the product from its sums and vectors: units [m], the weights' scales and bias [n].

    Where weights have zero points those follow, [n], and then each digit's sums over k, [m].
    """
    plgpu = _mosaic()

    def load(ref: Any, axis: int) -> jax.Array:
        part, layout = ref.at[(row, column)[axis]], plgpu.Layout.WGMMA.reduce(1 - axis)
        return jax.lax.broadcast_in_dim(plgpu.load(part, layout=layout, optimized=False), (ROWS, COLUMNS), (axis,))

    unit, scale, bias, *rest = vectors
    if rest:
        zero = load(rest[0], 1)
        sums = [a - load(of, 0) * zero for a, of in zip(sums, rest[1:], strict=True)]
    return joined(sums) * load(unit, 0) * load(scale, 1) + load(bias, 1)
