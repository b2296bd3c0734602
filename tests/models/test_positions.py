"""Position tables on another grid: as torch resizes them."""

import numpy as np
import pytest

from jvq.models.positions import taps, torch_bicubic


@pytest.mark.parametrize("new", [(3, 4), (6, 8), (2, 9), (1, 1), (37, 5)])
def test_torch_agrees(new, rng):
    torch = pytest.importorskip("torch")
    grid = rng.normal(size=(3, 4, 5)).astype(np.float32)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(grid.transpose(2, 0, 1))[None].double(), size=new, mode="bicubic", align_corners=False
    )
    got = torch_bicubic(grid, new)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want[0].numpy().transpose(1, 2, 0), rtol=0, atol=1e-6)


def test_the_weights_of_half_a_step_by_hand():
    where, weights = taps(2, 4)  # centres of the new cells in the old grid: -0.25, 0.25, 0.75, 1.25
    assert where.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    t = 0.25  # from the cell on the left; Keys's polynomials at 1.25, 0.25, 0.75, 1.75 with a = -0.75
    want = [-0.75 * t * (1 - t) ** 2, 1 - 2.25 * t**2 + 1.25 * t**3]
    np.testing.assert_allclose(weights[1, :2], want, rtol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-12)


def test_the_same_grid_and_a_constant_stay(rng):
    grid = rng.normal(size=(3, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(torch_bicubic(grid, (3, 4)), grid)
    np.testing.assert_allclose(torch_bicubic(np.ones((3, 4, 1), np.float32), (5, 9)), 1, rtol=1e-6)
