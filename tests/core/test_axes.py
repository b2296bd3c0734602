"""Axis letters: splitting equations, finding and expanding axes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jvq.core import axes


@pytest.mark.parametrize(
    ("equation", "operands", "out"),
    [
        ("bnd,do->bno", ("bnd", "do"), "bno"),
        (" bnd, dshe -> sbnhe ", ("bnd", "dshe"), "sbnhe"),
        ("bhqk,bkhe->bqhe", ("bhqk", "bkhe"), "bqhe"),
    ],
)
def test_split_gives_every_operand_its_letters(equation, operands, out):
    assert axes.split(equation) == (operands, out)


@pytest.mark.parametrize(
    ("equation", "says"),
    [("bnd,do", "no '->'"), ("bnn,do->bno", "'bnn'"), ("b1d,do->bo", "'b1d'"), ("...d,do->bo", "distinct letters")],
)
def test_split_refuses_what_names_no_axis(equation, says):
    with pytest.raises(ValueError, match=says):
        axes.split(equation)


def test_contracted_letters_are_those_that_the_product_lacks():
    assert axes.contracted("bhqk", "bqhe") == "k"
    assert axes.contracted("bnd", "bno") == "d"
    assert axes.contracted("bqhe", "bhqk") == "e"


def test_positions_and_order_come_from_the_operand():
    assert axes.indices("kh", "bhqk") == (3, 1)
    assert axes.others("bq", "bhqk") == (1, 3)
    assert axes.others("", "do") == (0, 1)
    assert axes.ordered("qb", "bhqk") == "bq"


def test_expand_puts_axes_of_length_one(rng):
    x = rng.normal(size=(2, 5)).astype(np.float32)
    y = axes.expand(jnp.asarray(x), "hq", "bhqk")
    assert y.shape == (1, 2, 5, 1)
    np.testing.assert_array_equal(y, x[None, :, :, None])


@pytest.mark.parametrize("letters", ["qh", "hx"])
def test_expand_refuses_another_order_and_unknown_letters(letters):
    with pytest.raises(ValueError, match="cannot expand"):
        axes.expand(jnp.zeros((2, 5)), letters, "bhqk")


def test_require_names_the_missing_letter_and_those_there():
    axes.require("ob", "bno", what="keep")
    with pytest.raises(ValueError, match=r"keep: no axis 'h' in an operand with letters 'do' \(there are: d, o\)"):
        axes.require("h", "do", what="keep")
    with pytest.raises(ValueError, match="twice"):
        axes.require("oo", "do", what="keep")
