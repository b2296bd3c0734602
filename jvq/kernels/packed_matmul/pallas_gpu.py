"""Pallas for GPUs of the Hopper kind: a field of bytes is unpacked in registers, in shared memory it meets x.

Eight bits know no shift there, and no addition. So a field stays where it is in its byte, ``code << bit``, and the top
bit is turned, which takes 128 off what the byte is as an int8: ``sum(x * code) = (acc + 128 * sum(x)) >> bit``, and
that is exact. For bfloat16 the same is put right before the product. A code of 3 bits is in two bytes: with integers
that is a product each, whose sums are put together.
TMA reads zeros and writes nothing beyond the ends of its operands, which are multiples of its tiles: rows of x and w
are filled up to 8, k to a block, the outputs of a field to whole blocks.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float32, Int32, UInt8

from jvq.kernels.packed_matmul.layout import FIELDS, join_columns, parts, split_columns
from jvq.kernels.packed_matmul.terms import AXES, Terms, finish, prepared

COLUMNS = 64  #: outputs of a block: those of one tile of 8-bit registers
ROWS = 64  #: rows of a block, those of one instruction; twice as many where that still makes enough blocks
PROCESSORS = 132  #: of an H100 or H200: with fewer blocks some have nothing to do
STAGES = 4  #: blocks on their way
UNPACKED = 3  #: unpacked blocks: one is written, one is read, one may still be read by a slower warp

Given = dict[str, tuple[str, jax.Array]]  #: what goes with rows "m" or with columns "n", by name


def packed_matmul(
    x: jax.Array,
    w: UInt8[Array, "gw p r k"],
    *,
    bits: int,
    n: int,
    x_scale: Float32[Array, "_ _ 1"] | None,
    w_scale: Float32[Array, "_ 1 _"],
    x_zero: Int32[Array, "_ _ 1"] | None = None,
    w_zero: Int32[Array, "_ 1 _"] | None = None,
    w_sum: Int32[Array, "_ 1 n"] | None = None,
    bias: Float32[Array, " n"] | None = None,
    interpret: bool = False,
) -> Float32[Array, "g m n"]:
    """The product, as :func:`~jvq.kernels.packed_matmul.packed_matmul` says.

    Raises ``NotImplementedError`` before jax 0.11, whose kernels for GPUs are written and interpreted otherwise, and
    for float32, which has no tensor instruction of its precision.
    """
    if jax.__version_info__ < (0, 11):
        raise NotImplementedError(f"packed_matmul: 'pallas_gpu' needs jax 0.11 or newer, this is {jax.__version__}")
    if x.dtype == jnp.float32:
        raise NotImplementedError("packed_matmul: 'pallas_gpu' multiplies int8 and bfloat16, not float32")
    shape, gw = (*x.shape[:2], n), w.shape[0]
    x, t = prepared(x, gw, n, x_scale=x_scale, w_scale=w_scale, x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias)
    given: Given = {name: (axis, a) for name, axis, a in zip(Terms._fields, AXES, t, strict=True) if a is not None}
    if x_scale is not None:
        given["before"] = "m", jnp.sum(x, axis=2, keepdims=True, dtype=jnp.int32)
    elif w_zero is not None:
        given["before"] = "n", jnp.broadcast_to(w_zero, (*w_zero.shape[:2], n)).astype(x.dtype)
    most = 128 // x.dtype.itemsize  # a row of a block is as many bytes as the widest swizzle takes, or half of that
    depth = min((most, most // 2), key=lambda size: -x.shape[2] % size)
    bytes_ = _filled(jax.lax.bitcast_convert_type(w, jnp.int8), 1, 1, 8, depth)
    y = _product(_filled(x, 1, 8, depth), bytes_, t, given, bits, depth, interpret)
    return join_columns(y[:, : x.shape[1]], bits, n).reshape(shape)


def _mosaic() -> Any:
    """The module that kernels for GPUs are written with: imported late, since jax 0.10 has another; untyped."""
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu


def _filled(a: jax.Array, *multiples: int) -> jax.Array:
    """``a`` with zeros behind, so that each axis is a multiple of the number given for it."""
    return jnp.pad(a, [(0, -size % multiple) for size, multiple in zip(a.shape, multiples, strict=True)])


def _product(
    x: jax.Array, w: jax.Array, t: Terms, given: Given, bits: int, depth: int, interpret: bool
) -> Float32[Array, "g m c"]:
    """The values of x [g m k] and bytes [g|1 p r k], filled up; ``given`` are the terms there are, and their axes.

    Among them is what goes before: sums of x, which are always needed, or the zero points of w that floats meet.
    """
    plgpu = _mosaic()
    (g, m, k), (gw, _, r, _), fields = x.shape, w.shape, FIELDS[bits]
    blocks, exact = pl.cdiv(r, COLUMNS), x.dtype == jnp.int8
    rows = ROWS if g * pl.cdiv(m, 2 * ROWS) * blocks * fields < PROCESSORS else 2 * ROWS
    vectors = [_vector(a, axis, rows, bits, blocks) for axis, a in given.values()]
    of_x, of_bytes = _tiled(depth, x.dtype), _tiled(depth, jnp.int8)
    planes = len(parts(bits, 0))
    products = planes if exact else 1  # bfloat16 codes are whole before they are multiplied

    def kernel(x_gmem, w_gmem, *refs):
        *of_terms, y_gmem, codes_smem, y_smem = refs
        i, r, c, f = (jax.lax.axis_index(name) for name in ("g", "m", "n", "f"))
        row, column, iw = pl.ds(r * rows, rows), pl.ds(c * COLUMNS, COLUMNS), i if gw > 1 else 0
        where = {"m": row, "n": pl.ds((f * blocks + c) * COLUMNS, COLUMNS)}
        parted = parts(bits, f)

        def vector(name: str, shape: tuple[int, int], axis: int, layout: Any) -> jax.Array:
            ref = dict(zip(given, of_terms, strict=True))[name]
            part = ref.at[i if ref.shape[0] > 1 else 0, where[given[name][0]]]
            a = plgpu.load(part, layout=layout.reduce(1 - axis), optimized=False)
            return jax.lax.broadcast_in_dim(a, shape, (axis,))

        def multiply(*sums):
            def step(at, x_smem, *w_smem):
                slot = jax.lax.rem(at[0], UNPACKED)
                zero = None
                if not exact and "before" in given:
                    zero = vector("before", (COLUMNS, depth), 0, plgpu.Layout.WGMMA_8BIT)
                for p, codes in enumerate(_codes(w_smem, parted, x.dtype, zero)):
                    codes_smem[slot, p] = codes
                plgpu.commit_smem()
                for p, total in enumerate(sums):
                    plgpu.wgmma(total, x_smem, codes_smem.at[slot, p].T)
                plgpu.wgmma_wait(products)  # the products of the step before are done: its x may be overwritten

            plgpu.emit_pipeline(
                step,
                grid=(k // depth,),
                in_specs=[
                    plgpu.BlockSpec((rows, depth), lambda d: (0, d), transforms=of_x, delay_release=1),
                    *[plgpu.BlockSpec((COLUMNS, depth), lambda d: (0, d), transforms=of_bytes)] * planes,
                ],
                max_concurrent_steps=STAGES,
            )(x_gmem.at[i, row], *[w_gmem.at[iw, plane, column] for plane, *_ in parted])
            return [a[...] for a in sums]

        # registers are asked for apart from shared memory, which interpreting insists on
        acc = plgpu.ACC((rows, COLUMNS), jnp.int32 if exact else jnp.float32)
        sums, block, layout = pl.run_scoped(multiply, *[acc] * products), (rows, COLUMNS), plgpu.Layout.WGMMA
        if exact:
            x_sum = vector("before", block, 0, layout) * 128
            sums = [((a + x_sum) >> bit) << first for a, (_, bit, _, first) in zip(sums, parted, strict=True)]
        spread = {
            name: vector(name, block, "mn".index(axis), layout) for name, (axis, _) in given.items() if name != "before"
        }
        y_smem[...] = finish(sums[0] if len(sums) == 1 else sums[0] + sums[1], t._replace(**spread))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(y_smem, y_gmem.at[i, row, where["n"]])
        plgpu.wait_smem_to_gmem(0)

    mode: dict[str, Any] = {"interpret": plgpu.InterpretGPUParams()} if interpret else {}
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((g, m, fields * blocks * COLUMNS), jnp.float32),
        grid=(g, blocks, fields, pl.cdiv(m, rows)),
        grid_names=("g", "n", "f", "m"),
        scratch_types=[
            plgpu.SMEM((UNPACKED, products, COLUMNS, depth), x.dtype, transforms=of_x),
            plgpu.SMEM((rows, COLUMNS), jnp.float32, transforms=_tiled(32, jnp.float32)),
        ],
        **mode,
    )(x, w, *vectors)


def _vector(a: jax.Array, axis: str, rows: int, bits: int, blocks: int) -> jax.Array:
    """What goes with rows or columns as [g|1 c], in whole blocks."""
    if axis == "m":
        return _filled(a.reshape(len(a), -1), 1, rows)
    return split_columns(a.reshape(len(a), -1), bits, blocks * COLUMNS)


def _tiled(width: int, dtype: Any) -> tuple[Any, ...]:
    """How a block with ``width`` values a row lies in shared memory."""
    plgpu = _mosaic()
    return plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(width * jnp.dtype(dtype).itemsize)


def _codes(w_smem: Any, parted: Any, dtype: Any, zero: jax.Array | None) -> list[jax.Array]:
    """What is multiplied for a block of bytes of each part: as many int8 blocks, or one of floats less ``zero``."""
    turned = [_top_turned(ref, part) for ref, part in zip(w_smem, parted, strict=True)]
    if dtype == jnp.int8:
        return turned
    first, *rest = (_value(a, part, dtype) for a, part in zip(turned, parted, strict=True))
    codes = first + rest[0] if rest else first
    return [codes if zero is None else codes - zero]


def _top_turned(ref: Any, part: tuple[Any, Any, int, int]) -> jax.Array:
    """``(code << bit) - 128`` for a block of bytes, int8."""
    plgpu = _mosaic()
    _, bit, width, _ = part
    block = plgpu.load(ref, layout=plgpu.Layout.WGMMA_8BIT, optimized=False)
    mask = jnp.asarray((2**width - 1) << bit, jnp.int32).astype(jnp.int8)
    return (block & mask) ^ jnp.int8(-128)


def _value(shifted: jax.Array, part: tuple[Any, Any, int, int], dtype: Any) -> jax.Array:
    """What a part adds to a code, of what :func:`_top_turned` gives; exact, it has at most 8 bits on the way."""
    _, bit, _, first = part
    unit = (2.0**first / (jnp.int32(1) << bit).astype(jnp.float32)).astype(dtype)
    return (shifted.astype(dtype) + jnp.asarray(128, dtype)) * unit
