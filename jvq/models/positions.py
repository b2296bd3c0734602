"""Position tables: on another grid, as torch resizes them (DINOv2 and DeiT were published with that resize); sin-cos.

Cubic convolution (Keys 1981) with a = -0.75, as ``torch.nn.functional.interpolate(mode="bicubic")`` has it without
aligned corners and antialiasing; ``jax.image.resize`` takes a = -0.5. In NumPy: these are weights.
"""

import numpy as np
from jaxtyping import Float, Int

SHARPNESS = -0.75  # Keys's a


def torch_bicubic(grid: Float[np.ndarray, "h w d"], new: tuple[int, int]) -> Float[np.ndarray, "h2 w2 d"]:
    """The table [h w d] on a grid of ``new`` = (h2, w2) cells: float64 inside, the input's dtype comes back."""
    wide = grid.astype(np.float64)
    for axis, length in enumerate(new):
        where, weights = taps(wide.shape[axis], length)
        column = (-1, *(1,) * (2 - axis))  # over the axes behind the one that is resized
        wide = sum(
            (weights[:, t].reshape(column) * np.take(wide, where[:, t], axis=axis) for t in range(4)),
            start=np.zeros(()),
        )
    return wide.astype(grid.dtype)


def taps(old: int, new: int) -> tuple[Int[np.ndarray, "n 4"], Float[np.ndarray, "n 4"]]:
    """For each of ``new`` cells the four old cells that it is made of, clamped at the border, and their weights.

    Cell centres lie at half-integers, so that the borders of both grids fall together.
    """
    at = (np.arange(new) + 0.5) * old / new - 0.5
    left = np.floor(at)
    away = np.abs((at - left)[:, None] - np.arange(-1, 3))  # distance to the four cells, 0..2
    a = SHARPNESS
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = ((a * away - 5 * a) * away + 8 * a) * away - 4 * a
    where = np.clip(left[:, None] + np.arange(-1, 3), 0, old - 1).astype(np.int64)
    return where, np.where(away <= 1, near, far)


def sincos(grid: tuple[int, int], dim: int) -> Float[np.ndarray, "n d"]:
    """The fixed table [h w, d] of MoCo v3 and big_vision: sines and cosines of the column, then of the row."""
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, got {dim}")
    rate = 1e4 ** -(np.arange(dim // 4) / (dim // 4 - 1))
    y, x = (np.outer(at.reshape(-1), rate) for at in np.mgrid[: grid[0], : grid[1]])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)
