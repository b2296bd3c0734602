"""The tracker of oscillating weights: sequences by hand, and the periods of spec 6."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jvq.methods.oscillation import MOMENTUM, THRESHOLD, Track, begin, follow, near_boundary, oscillating


@jax.jit
def along(track, codes):
    """The last track, and all frequencies [t n], after codes [t n]."""

    def step(track, code):
        track = follow(track, code)
        return track, track.frequency

    return jax.lax.scan(step, track, codes)


def followed(codes):
    codes = jnp.asarray(np.asarray(codes, np.float32).reshape(len(codes), -1))
    track, frequency = along(begin(codes[0]), codes[1:])
    return track, np.asarray(frequency)


def by_loop(codes, momentum=MOMENTUM):
    """Frequency and reversals of one weight, spec 6 written out."""
    frequency, direction, reversals = 0.0, 0, 0
    for before, code in itertools.pairwise(codes):
        moved = int(np.sign(code - before))
        back = moved != 0 and moved == -direction
        frequency = momentum * back + (1 - momentum) * frequency
        reversals += back
        direction = moved or direction
    return frequency, reversals


def test_weights_that_stay_or_go_one_way_do_not_oscillate():
    """T1."""
    track, frequency = followed(np.stack([np.zeros(16), np.arange(-8, 8), np.arange(8, -8, -1)], axis=1))
    assert not frequency.any()
    assert track.direction.tolist() == [0, 1, -1]
    assert track.code.tolist() == [0, 7, -7]


def test_alternating_a_thousand_steps_is_999_reversals():
    """T1: 1 - 0.999**999."""
    codes = np.arange(1001) % 2
    _, frequency = followed(codes)
    assert by_loop(codes)[1] == 999
    assert frequency[-1, 0] == pytest.approx(1 - 0.999**999, abs=1e-5)
    assert frequency[-1, 0] == pytest.approx(0.6319, abs=1e-3)
    assert frequency[0, 0] == 0
    assert frequency[1, 0] == np.float32(MOMENTUM)


def test_a_period_has_two_reversals():
    """T1: after many steps f is about 2 / T; a weight oscillates where T is below 400."""
    periods = np.array([2, 10, 100, 300, 500])
    t = np.arange(15000)[:, None]
    track, frequency = followed(t % periods >= periods / 2)
    late = frequency[-3000:]  # whole periods of all of them
    np.testing.assert_allclose(late.mean(axis=0), 2 / periods, rtol=0.01)
    assert late[:, 1].min() > 0.199
    assert late[:, 1].max() < 0.201
    assert late[:, 4].mean() == pytest.approx(0.004, abs=1e-4)
    assert np.asarray(oscillating(track)).tolist() == [True, True, True, True, False]
    assert (late.mean(axis=0) > THRESHOLD).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(("codes", "reversals"), [
    ([0, 1, 1, 2], 0),  # T2: the same direction after a stay
    ([0, 1, 1, 1, 1, 1, 1, 0], 1),  # T2: back after a long pause
    ([0, 1, 0], 1),
    ([0, 1, 0, -1], 1),  # on in the new direction
    ([0, 1, 0, 1], 2),
    ([0, 3, -4], 1),  # however far
    ([0, 0, -1], 0),  # the first change reverses nothing
    ([-2, 1, 1, -2, -2, 1], 2),
])  # fmt: skip
def test_reversals_by_hand(codes, reversals):
    want, count = by_loop(codes)
    assert count == reversals
    assert followed(codes)[1][-1, 0] == pytest.approx(want, rel=1e-6)


def test_random_codes_are_those_of_the_loop(rng):
    codes = np.cumsum(rng.integers(-1, 2, (60, 7)), axis=0)
    track, frequency = followed(codes)
    want = [by_loop(c)[0] for c in codes.T]
    assert max(want) > THRESHOLD
    np.testing.assert_allclose(frequency[-1], want, rtol=1e-5)
    np.testing.assert_array_equal(oscillating(track), np.array(want) > THRESHOLD)
    np.testing.assert_array_equal(oscillating(track, 0.01), np.array(want) > 0.01)


def test_with_a_larger_momentum_one_reversal_is_too_much():
    """Spec 6: at 0.01 it stays above the threshold for 69 steps."""
    track = begin(jnp.zeros(1))
    for code in (1.0, 0.0):
        track = follow(track, jnp.full(1, code), momentum=0.01)
    above = 0
    while bool(oscillating(track)[0]):
        track, above = follow(track, jnp.zeros(1), momentum=0.01), above + 1
    assert abs(above - 69) <= 1


def test_a_track_goes_on_from_where_it_was_kept(rng):
    """T3."""
    codes = jnp.asarray(rng.integers(-2, 2, (20, 5)), jnp.float32)
    whole, _ = along(begin(codes[0]), codes[1:])
    half, _ = along(begin(codes[0]), codes[1:9])
    kept, _ = along(Track(*(jnp.asarray(np.asarray(x)) for x in half)), codes[9:])
    for got, want, kind in zip(kept, whole, ("int16", "int8", "float32"), strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype == kind


def test_every_weight_has_a_track_of_its_own_shape():
    track = begin(jnp.asarray([[1.0, -2.0], [0.0, 3.0]]))
    assert track.code.tolist() == [[1, -2], [0, 3]]
    assert {x.shape for x in track} == {(2, 2)}
    assert not oscillating(track).any()


@pytest.mark.parametrize(("low", "high"), [(-2, 1), (-8, 7)])
def test_near_a_boundary_is_near_where_the_code_changes(low, high):
    """Within 0.05 of one of the values between two codes, and nowhere else: beyond the ends no code changes."""
    steps = np.arange(low - 1.4953, high + 1.5, 0.0137)
    want = [any(abs(u - (code + 0.5)) < 0.05 for code in range(low, high)) for u in steps]
    got = near_boundary(jnp.asarray(steps, jnp.float32), jnp.float32(low), jnp.float32(high))
    assert 0.03 < np.mean(want) < 0.12
    wrong = steps[np.asarray(got) != want]
    assert not wrong.size, f"codes {low} to {high}: wrong at {wrong.round(3)}"
