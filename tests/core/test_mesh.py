"""Where arrays lie: rounds of units, rules for wide weights, sums of a fixed order. Many devices: tests/distributed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core.mesh import Rounds, added, everywhere, gathered, mesh_of, parts, placed, rules_of, single, split

PARAMS = {"block00": {"mlp": {"fc1": {"kernel": np.zeros((4, 6)), "bias": np.zeros(6)}}}}


@pytest.fixture(scope="module")
def mesh():
    return mesh_of()


def test_all_devices_are_on_the_data_axis(mesh):
    assert dict(mesh.shape) == {"data": jax.device_count(), "model": 1}
    assert parts(mesh) == jax.device_count()
    assert parts(None) == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1), "mesh.data: got 0, must be at least 1"),
        ((1, -2), "mesh.model: got -2, must be at least 1"),
        ((64, 2), r"mesh: data=64 times model=2 are 128 devices, there are \d+ \(cpu\)"),
        ((None, 7), r"mesh.model: got 7, which does not divide the \d+ devices"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        mesh_of(*sizes)


@pytest.mark.parametrize("meshed", [False, True])
@pytest.mark.parametrize(("count", "unit"), [(1, 1), (1, 9), (8, 8), (9, 8), (13, 4), (20, 3)])
def test_rounds_hold_every_image_once_and_in_order(mesh, meshed, count, unit):
    images = np.arange(1.0, count + 1, dtype=np.float32)[:, None]
    found = [*Rounds(mesh if meshed else None, images, unit)]
    np.testing.assert_array_equal(np.concatenate([r.images[r.mask] for r in found]), images)
    for r in found:
        assert not np.asarray(r.images[~r.mask]).any()  # padding is zeros
        assert r.first == int(r.images[0, 0]) - 1
    if meshed:  # every device sees units of one size
        assert {len(r.images) for r in found} == {min(unit, count) * parts(mesh)}
    else:
        assert sum(len(r.images) for r in found) == count


def test_a_split_is_filled_up_with_zeros_that_the_mask_names(mesh):
    tree = {"x": np.ones((3, 2), np.float32), "y": np.ones(3, np.int32)}
    arrays, mask = split(mesh, tree, 5 * parts(mesh))
    assert mask.tolist() == [True] * 3 + [False] * (5 * parts(mesh) - 3)
    for name, x in gathered(arrays).items():
        assert x.dtype == tree[name].dtype
        np.testing.assert_array_equal(x[mask], tree[name])
        assert not x[~mask].any()


def test_what_lies_on_the_mesh_stays_and_the_rest_is_brought_there(mesh):
    laid = everywhere(mesh, {"a": np.ones(3), "b": jnp.ones(2)})
    assert {x.sharding.mesh for x in jax.tree.leaves(laid)} == {mesh}
    assert everywhere(mesh, laid)["a"] is laid["a"]
    assert everywhere(None, PARAMS) is PARAMS
    assert single(laid)["b"].sharding.device_set == {jax.devices()[0]}


def test_a_sum_does_not_depend_on_how_its_rows_are_divided(rng):
    rows = (rng.normal(size=(30, 5)) * 10.0 ** rng.integers(-8, 8, (30, 5))).astype(np.float32)
    want = added(0.0, rows)
    np.testing.assert_allclose(want, [math.fsum(column) for column in rows.T.astype(np.float64)], rtol=1e-12, atol=1e-6)
    for cut in range(31):
        np.testing.assert_array_equal(added(added(0.0, rows[:cut]), rows[cut:]), want)


def test_rules_read_as_they_are_written():
    assert rules_of("block.*/fc1/kernel=.m, head/bias=m") == [("block.*/fc1/kernel", ".m"), ("head/bias", "m")]
    assert rules_of(" ") == []
    for bad in ("kernel", "=m", "kernel="):
        with pytest.raises(ValueError, match=r"mesh.rules: '.*' must read 'pattern=letters'"):
            rules_of(bad)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("block00/mlp/fc1/kernal", ".m"), "matches no parameter.*block00/mlp/fc1/kernel"),
        (("kernel", ".m"), "matches no parameter"),  # the whole name, not a part
        ((".*(", ".m"), "not a regular expression"),
        ((".*/kernel", ".x"), "'x' must be '.' .* or 'm'"),
        ((".*/kernel", "m"), r"block00/mlp/fc1/kernel has shape \(4, 6\): it needs 2 letters, at most one of them 'm'"),
        ((".*/kernel", "mm"), "at most one of them 'm'"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused(mesh, rule, message):
    with pytest.raises(ValueError, match=rf"mesh rule '.*'.*{message}"):
        placed(PARAMS, mesh, [rule])
