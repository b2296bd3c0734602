"""What every kernel must satisfy before it has tests of its own: each implementation against ``ref``, on small cases.

A kernel is tested by being a folder of ``jvq/kernels``, an implementation by being in its ``IMPLEMENTATIONS``. Those
for a device that is not here run in interpret mode, and compiled where it is (``JAX_PLATFORMS=cuda pytest
tests/kernels``). What one declines is skipped with its reason.
"""

import functools
import importlib
import inspect
import pkgutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jvq.kernels
from jvq.kernels.choosing import DEVICES

KERNELS = {
    found.name: importlib.import_module(f"jvq.kernels.{found.name}")
    for found in pkgutil.iter_modules(jvq.kernels.__path__)
    if found.ispkg
}
SMALL = {op: [case for case in getattr(kernel, "CASES", ()) if not case.real] for op, kernel in KERNELS.items()}
PLAIN = ("ref", "xla")  # they compute whatever the kernel takes, on any device

each_kernel = pytest.mark.parametrize("op", KERNELS)
each_implementation = pytest.mark.parametrize(
    ("op", "impl"), [(op, impl) for op, kernel in KERNELS.items() for impl in kernel.IMPLEMENTATIONS]
)
each_small_case = pytest.mark.parametrize(
    ("op", "impl", "index"),
    [
        pytest.param(op, impl, index, id=f"{op}-{impl}-{case.name}")
        for op, kernel in KERNELS.items()
        for impl in kernel.IMPLEMENTATIONS
        if impl != "ref"
        for index, case in enumerate(SMALL[op])
    ],
)


def arrays(op, index):
    return SMALL[op][index].arrays(np.random.default_rng(0))


def public(op, **options):
    """What the function of the kernel's name gives for its first small case."""
    static = {**SMALL[op][0].static, **options}
    return jax.tree.map(np.asarray, jax.jit(functools.partial(getattr(KERNELS[op], op), **static))(**arrays(op, 0)))


def is_elsewhere(impl):
    """Whether the implementation is written for a device that this process does not have."""
    return jax.default_backend() not in DEVICES.get(impl, (jax.default_backend(),))


@functools.cache  # the reference meets every implementation, and each implementation two tests
def outcome(op, impl, index):
    """What an implementation gives for a small case, as NumPy arrays; the ``NotImplementedError`` where it declines."""
    static = dict(SMALL[op][index].static) | ({"interpret": True} if is_elsewhere(impl) else {})
    run = jax.jit(functools.partial(KERNELS[op].IMPLEMENTATIONS[impl], **static))
    try:
        return jax.tree.map(np.asarray, run(**arrays(op, index)))
    except NotImplementedError as e:
        return e


def assert_same(got, want, tolerance):
    """Both have the same arrays: integers equal, floats but for ``tolerance`` of the greatest magnitude."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        if jax.numpy.issubdtype(w.dtype, np.floating) and tolerance:
            g, w = g.astype(np.float64), w.astype(np.float64)
            assert np.isfinite(w).all()
            np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * np.abs(w).max(initial=0))
        else:
            np.testing.assert_array_equal(g, w)


# What a folder holds


def test_there_are_kernels():
    folders = {path.parent.name for path in Path(jvq.kernels.__path__[0]).glob("*/*.py")}
    assert folders == set(KERNELS)
    assert "int8_matmul" in KERNELS


@each_kernel
def test_a_folder_holds_a_function_of_its_name_and_what_computes_it(op):
    kernel = KERNELS[op]
    function = getattr(kernel, op)
    assert callable(function)
    assert inspect.signature(function).parameters["impl"].default == "auto"
    assert {op, "IMPLEMENTATIONS", "CASES"} <= set(kernel.__all__)
    assert {*PLAIN} <= set(kernel.IMPLEMENTATIONS)
    written = {path.stem for path in Path(kernel.__file__).parent.glob("pallas_*.py")}
    assert written == {impl for impl in kernel.IMPLEMENTATIONS if impl.startswith("pallas_")}
    assert written <= set(DEVICES)
    assert all("interpret" in inspect.signature(kernel.IMPLEMENTATIONS[impl]).parameters for impl in written)


@each_kernel
def test_cases_are_small_and_real_and_have_names_of_their_own(op):
    cases = KERNELS[op].CASES
    assert {case.real for case in cases} == {True, False}
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert all(0 <= case.tolerance <= 0.01 for case in cases)
    assert all(case.macs >= 0 for case in cases)


# What an implementation computes


@each_small_case
def test_an_implementation_gives_what_the_reference_gives(op, impl, index):
    got, want = outcome(op, impl, index), outcome(op, "ref", index)
    if isinstance(got, NotImplementedError):
        assert impl not in PLAIN
        pytest.skip(str(got))
    assert_same(got, want, SMALL[op][index].tolerance)


@each_kernel
def test_the_reference_says_something_about_every_case(op):
    results = [outcome(op, "ref", index) for index in range(len(SMALL[op]))]
    assert not any(isinstance(r, Exception) for r in results)
    assert any(len(np.unique(leaf)) > 1 for r in results for leaf in jax.tree.leaves(r))


@each_implementation
def test_an_implementation_computes_something(op, impl):
    results = [outcome(op, impl, index) for index in range(len(SMALL[op]))]
    declined = [r for r in results if isinstance(r, NotImplementedError)]
    assert all(str(r) and "\n" not in str(r) for r in declined), "a reason is one line"
    if len(declined) == len(results):
        assert impl == "pallas_gpu", declined[0]
        assert is_elsewhere(impl), declined[0]
        assert jax.__version_info__ < (0, 11), declined[0]  # it cannot be interpreted there


# Which one the public function takes


@each_kernel
def test_auto_gives_what_the_reference_gives(op):
    assert_same(public(op), outcome(op, "ref", 0), SMALL[op][0].tolerance)


@each_implementation
def test_a_named_implementation_never_falls_back(op, impl):
    if is_elsewhere(impl):
        with pytest.raises(NotImplementedError, match=f"(?=.*{op})(?=.*{impl})(?=.*{jax.default_backend()})") as e:
            public(op, impl=impl)
        assert "\n" not in str(e.value)
    elif not isinstance(want := outcome(op, impl, 0), NotImplementedError):
        assert_same(public(op, impl=impl), want, SMALL[op][0].tolerance)


@each_kernel
def test_an_unknown_implementation_is_refused_with_the_nearest(op):
    with pytest.raises(ValueError, match=rf"{op} has no implementation 'xls' \(did you mean 'xla'\?\)") as e:
        public(op, impl="xls")
    assert "\n" not in str(e.value)


# The comparison itself


@pytest.mark.parametrize(
    ("got", "want", "tolerance"),
    [
        (np.int32([1, 2]), np.int32([1, 3]), 0.5),
        (np.int32([1, 2]), np.int64([1, 2]), 0.0),
        (np.int32([[1, 2]]), np.int32([1, 2]), 0.0),
        (np.float32([1, 2]), np.float32([1, 2 + 1e-6]), 0.0),
        (np.float32([1, 2]), np.float32([1, 2.1]), 0.01),
        (np.float32([1, np.nan]), np.float32([1, 2]), 0.01),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), 0.01),
        ((np.int32([1]),), [np.int32([1])], 0.0),
    ],
)
def test_a_difference_is_seen(got, want, tolerance):
    with pytest.raises(AssertionError):
        assert_same(got, want, tolerance)


def test_what_is_within_the_tolerance_of_the_greatest_is_the_same():
    assert_same(np.float32([0.01, 2]), np.float32([0, 2.01]), 0.01)
    assert_same({"y": np.int32([1])}, {"y": np.int32([1])}, 0.0)
