"""The contract as a function: quantisers of jvq meet it, and each clause is broken by a quantiser made for that."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jvq.core.quantizer import Codes, Overhead
from jvq.quantizers import Signs, Uniform, contract
from jvq.quantizers.uniform import integers


def broken(**changes):
    """Uniform of 4 bits with members in the place of its own."""
    changes.setdefault("form", property(lambda self: type(self)(keep=self.keep)))
    made = type("Broken", (Uniform,), {"__doc__": "State: as Uniform.", **changes})
    return dataclasses.dataclass(frozen=True)(made)(bits=4)


class Loose(Uniform):
    """State: as Uniform; but changes are allowed."""

    __hash__ = None


def forgets(self, state, x, letters):
    return Uniform.apply(self, {**state, "levels": jnp.float32(2**self.bits - 1)}, x, letters)


def looks_around(self, state, x, letters):
    most = jnp.abs(x).max()
    return Uniform.apply(self, {**state, "scale": 2 * most / state["levels"]}, x, letters)


def rounds_more(self, state, x, letters):
    return Uniform.apply(self, state, x, letters) * 0.999


def divides(self, state, x, letters):
    return x / jnp.abs(x).max(axis=-1, keepdims=True)


def halves(self, samples, letters):
    return {name: x.astype(jnp.float16) for name, x in Uniform.init(self, samples, letters).items()}


def another_shape(self, samples, letters):
    state = Uniform.init(self, samples, letters)
    return {**state, "extra": jnp.zeros(self.bits, jnp.float32)}


def no_codes(self, state, x, letters):
    codes = Uniform.encode(self, state, x, letters)
    return codes._replace(codes=codes.codes + 1, zero=codes.zero + 1)


def wide(self, state, x, letters):
    return Uniform.encode(self, state, x, letters)._replace(codes=x)


def coarse(self, samples, letters):
    state = Uniform.init(self, samples, letters)
    return {**state, "levels": jnp.float32(7.0), "scale": jnp.float32(0.5 + 0.01 * self.bits)}


def identity(self, state, x, letters):
    return Codes(jnp.zeros(x.shape, jnp.int32), jnp.ones_like(x), jnp.zeros(x.shape, jnp.int32), x)


def of_seven(self):
    return type(self)(bits=self.bits, keep=self.keep)


def coarser(self):
    return type(self)(keep=self.keep, symmetric=True)


def symmetric_apply(self, state, x, letters):
    shift = jnp.float32(1.0 if self.symmetric else 0.0)
    return Uniform.apply(self, {**state, "zero": state["zero"] + shift}, x, letters)


def symmetric_encode(self, state, x, letters):
    shift = jnp.float32(1.0 if self.symmetric else 0.0)
    return Uniform.encode(self, {**state, "zero": state["zero"] + shift}, x, letters)


def both(function):
    """``apply`` by that function, and ``encode`` which gives the same: codes of nothing, the value as an offset."""
    return dict(
        apply=function,
        encode=lambda self, s, x, letters: identity(self, s, function(self, s, x, letters), letters),
    )


BREAKS = {
    "lacks apart, form": (type("Bare", (), dict.fromkeys(("bits", "check", "init", "apply", "encode", "overhead")))(),
                          "described: it lacks apart, form"),
    "not hashable": (Loose(4), "described: it must be a dataclass|described: it must be hashable"),
    "no State": (broken(__doc__="A quantiser."), "described: the docstring must say"),
    "any width": (broken(check=lambda self, letters, shape: None), "refuses: check must raise .* for bits=0"),
    "other words": (broken(check=lambda self, letters, shape: bad(self.bits)), "refuses: .* bits=0, it says 'no'"),
    "half precision": (broken(init=halves), "decodes: the state must be float32, it has float16"),
    "apply is not decode": (broken(apply=rounds_more), r"decodes: encode\(...\).decode\(\) must be .* values differ"),
    "codes beyond": (broken(encode=no_codes), "decodes: codes must lie in 0 to 15, they go from 1 to 16"),
    "codes are float": (broken(encode=wide), "decodes: the codes must be int32, they are float32"),
    "nothing": (broken(**both(lambda self, s, x, letters: x)), "decodes: a quantiser that changes nothing"),
    "another dtype": (broken(apply=lambda self, s, x, letters: Uniform.apply(self, s, x, letters).astype(jnp.float16)),
                      "decodes: apply must give float32, it gives float16"),
    "another shape": (broken(apply=lambda self, s, x, letters: Uniform.apply(self, s, x, letters)[:, :, :1]),
                      r"decodes: apply must give \(4, 10, 16\), it gives \(4, 10, 1\)"),
    "looks at others": (broken(**both(looks_around)), "alone: an image must be quantised the same"),
    "no finer": (broken(init=coarse), "finer: more bits must give less error, mean squares go"),
    "width of its own": (broken(**both(forgets)), "traced: apply must take the width from the state, at 5 bits"),
    "compiles anew": (broken(init=another_shape), "traced: another width must not compile anew"),
    "form keeps bits": (broken(form=property(of_seven)), "formed: form must leave out the width"),
    "form is another": (broken(form=property(coarser), apply=symmetric_apply, encode=symmetric_encode),
                        "formed: form.apply must do what apply does"),
    "divides by zero": (broken(**both(divides)), "constants: values must stay finite .* 0.0|finer"),
    "half a count": (broken(overhead=lambda self, *given: Overhead(find=0.5)), "counts: overhead must be counts"),
}  # fmt: skip


def bad(bits):
    if isinstance(bits, bool) or not 1 <= bits <= 16:
        raise ValueError("no")


@pytest.mark.parametrize(("quantizer", "says"), BREAKS.values(), ids=BREAKS)
def test_a_clause_that_is_broken_is_named_in_one_line(quantizer, says):
    with pytest.raises(ValueError, match=says) as caught:
        contract.check(quantizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("quantizer", "letters", "shape"),
    [
        (Uniform(4, "d"), "bnd", (4, 10, 16)),
        (Uniform(4, "o"), "do", (8, 12)),  # a weight: no images
        (Uniform(3, "h", range="mse"), "bhqk", (3, 2, 5, 5)),
        (Signs(), "bnd", (4, 10, 16)),  # of one width
    ],
)
def test_quantisers_of_jvq_meet_it_on_operands_of_any_letters(quantizer, letters, shape):
    contract.check(quantizer, letters, shape)


def test_an_axis_that_the_operand_lacks_is_said():
    with pytest.raises(ValueError, match="no axis 'h' in an operand with letters 'bnd'"):
        contract.check(Uniform(4, "h"))


def test_letters_and_shape_must_agree():
    with pytest.raises(ValueError, match="the letters 'bn' name 2 axes, the shape .* has 3"):
        contract.check(Uniform(), "bn", (4, 10, 16))


def test_what_the_quantiser_itself_raises_goes_through():
    with pytest.raises(ZeroDivisionError):
        contract.check(broken(init=lambda self, samples, letters: 1 // 0))


def test_the_operand_has_outlier_channels():
    x = contract.operand()
    assert x.shape == contract.SHAPE
    spread = x.std(axis=(0, 1))
    assert spread.max() / spread.min() > 50
    assert isinstance(integers(x, jnp.ones_like(x), jnp.zeros_like(x), jnp.float32(3)).codes, jax.Array)
