"""The tail of an error line."""

from jvq.core.errors import nearest


def test_names_what_is_near():
    assert nearest("squred", ["absolute", "squared"]) == " (did you mean 'squared'?)"


def test_lists_what_there_is_where_nothing_is_near():
    assert nearest("xyz", ["a", "b"]) == " (there are: a, b)"
    assert nearest("xyz", []) == " (there are none)"
    assert nearest("xyz", [f"n{i}" for i in range(40)]).endswith(", n11, ... 40 in all)")
