"""What is read from source: first sentences, and the comment behind each field."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from jvq.config import Data
from jvq.describing import comments, fields, first_line, plain, written
from jvq.methods import METHODS

Choice = Literal["", "max"]


@dataclasses.dataclass(frozen=True)
class Base:
    """A base."""

    bits: int = 4  # of weights and activations
    rate: float | None = None  # type: ignore[assignment]
    table: Mapping[str, int] = dataclasses.field(default_factory=dict)  # of ``names``
    must: str = dataclasses.field(kw_only=True)

    size = 3  # no field

    def __post_init__(self) -> None:
        self_bits: int = self.bits  # no field either
        assert self_bits


@dataclasses.dataclass(frozen=True)
class Options(Base):
    """What it has more."""

    bits: int = 1
    range: Choice = "max"  # how; "#" is no comment: '# x'
    counts: tuple[int, ...] = (1, 2)
    empty: str = ""


def test_fields_have_their_comments_and_those_of_their_bases():
    found = {f.name: f for f in fields(Options)}
    assert [*found] == [f.name for f in dataclasses.fields(Options)]
    assert found["bits"][1:] == ("int", "1", "of weights and activations")
    assert found["rate"][1:] == ("float | None", "None", "")
    assert found["table"][1:] == ("Mapping of str, int", "{}", "of names")
    assert found["must"][1:] == ("str", "", "")
    assert found["range"][1:] == ('"" | max', "max", "how; \"#\" is no comment: '# x'")
    assert found["counts"][1:] == ("(int, ...)", "(1, 2)", "")
    assert found["empty"][1:] == ("str", "''", "")


def test_an_own_comment_wins_over_that_of_the_base():
    @dataclasses.dataclass(frozen=True)
    class Other(Base):
        bits: int = 2  # of weights alone

    assert comments(Other)["bits"] == "of weights alone"
    assert comments(Other)["table"] == "of names"


@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_every_method_are_read(name):
    found = fields(METHODS[name].Options)
    assert [f.name for f in found] == [f.name for f in dataclasses.fields(METHODS[name].Options)]
    said = [f for f in found if f.about or "|" in f.type.removesuffix(" | None")]
    assert len(said) >= 0.6 * len(found), "most options say what they are, in a comment or by their choices"


def test_the_comments_are_those_of_the_source():
    found = {f.name: f for f in fields(METHODS["igq"].Options)}
    assert found["groups"] == ("groups", "int", "8", "quantisers a linear input")
    assert found["qkv"].type == "tensor | head | float"
    assert {f.name: f.about for f in fields(Data)}["calibration"] == "images, drawn by the seed"


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"), (int | None, "int | None"), (tuple[int, int], "(int, int)"), (Any, "Any"),
        (Literal["a", "b"] | None, "a | b | None"), (tuple[Literal["a"], ...], "(a, ...)"), (Mapping, "Mapping"),
    ],
)  # fmt: skip
def test_types_read_as_one_would_say_them(hint, text):
    assert written(hint) == text


@pytest.mark.parametrize(
    ("docstring", "says"),
    [
        ("One thing.\n\nAnd more.", "One thing"),
        ("One thing, on\n    two lines. Another.", "One thing, on two lines"),
        ("Liu et al. 2021: intervals (Huang et al. 2024), and more. Next.",
         "Liu et al. 2021: intervals (Huang et al. 2024), and more"),
        ("The sign of x [... d] times [d ...]. Next.", "The sign of x [... d] times [d ...]"),
        ("``bits`` of :func:`jvq.core.packed.pack_bits`, or :class:`Packed`. x.", "bits of pack_bits, or Packed"),
        ("Products p . q of 0.3 bits.", "Products p . q of 0.3 bits"),
        (None, ""),
    ],
)  # fmt: skip
def test_the_first_sentence(docstring, says):
    assert first_line(docstring) == says


def test_markup_is_left_out():
    assert plain("``a`` and :data:`~x.y.Z` at 1:2") == "a and Z at 1:2"
