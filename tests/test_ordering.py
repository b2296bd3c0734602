"""Paired tests of rows against scipy and against made-up errors whose order is known."""

import numpy as np
import pytest
import scipy.stats

from jvq import ordering


def errors(gain, noise, seeds=3, images=4000, seed=0):
    """Two rows whose images differ much, and whose difference is ``gain`` with little noise."""
    rng = np.random.default_rng(seed)
    image = rng.exponential(size=(1, images)) * 10
    worse = image + rng.normal(0, noise, (seeds, images))
    return {"kl": worse}, {"kl": image - gain + rng.normal(0, noise, (seeds, images))}


def test_pairing_finds_a_small_gain_in_large_differences_between_images():
    worse, better = errors(0.02, 0.2)
    found = ordering.paired(worse, better)["kl"]
    assert 0 < found["low"] < 0.02 < found["high"]
    assert found["low"] < found["gain"] < found["high"]
    assert found["of"] == 3
    unpaired = scipy.stats.ttest_ind(worse["kl"].mean(axis=0), better["kl"].mean(axis=0))
    assert unpaired.pvalue > 0.5  # what pairing is for


def test_the_interval_is_that_of_the_paired_t_test():
    worse, better = errors(0.5, 2.0)
    found = ordering.paired(worse, better)["kl"]
    test = scipy.stats.ttest_rel(worse["kl"].mean(axis=0), better["kl"].mean(axis=0)).confidence_interval(0.95)
    assert found["low"] == pytest.approx(test.low, abs=0.006)
    assert found["high"] == pytest.approx(test.high, abs=0.006)


def test_the_other_way_round_is_the_same_with_the_other_sign():
    worse, better = errors(0.5, 1.0)
    forth, back = ordering.paired(worse, better)["kl"], ordering.paired(better, worse)["kl"]
    assert forth["gain"] == -back["gain"]
    assert back["high"] < 0 < forth["low"]
    assert forth["seeds"] + back["seeds"] == 3


def test_equal_rows_are_open():
    worse, _ = errors(0.0, 1.0)
    found = ordering.paired(worse, worse)["kl"]
    assert (found["gain"], found["low"], found["high"], found["seeds"]) == (0, 0, 0, 0)
    noisy = ordering.paired(*errors(0.0, 1.0, seed=4))["kl"]
    assert noisy["low"] < 0 < noisy["high"]


def test_the_same_errors_give_the_same_interval():
    assert ordering.paired(*errors(0.1, 1.0)) == ordering.paired(*errors(0.1, 1.0))


def test_chains_read_from_worse_to_better():
    known = ["minmax", "igq", "igq_12"]
    assert ordering.parse("", known) == []
    assert ordering.parse(" minmax < igq<igq_12, minmax<igq_12", known) == [known, ["minmax", "igq_12"]]


@pytest.mark.parametrize(
    ("text", "says"),
    [("minmax<iqg", "order: there is no row 'iqg' .did you mean 'igq'"), ("igq", "'igq' alone is no order")],
)
def test_chains_that_do_not_read(text, says):
    with pytest.raises(ValueError, match=says):
        ordering.parse(text, ["minmax", "igq"])
