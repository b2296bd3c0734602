"""What the source says of itself: a docstring's first sentence, and behind each field of a dataclass its comment."""

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from typing import Any, NamedTuple

SENTENCE = re.compile(
    r"(?<=[^\W_][.])(?<! al[.])\s|(?<=[`'\")\]%][.])\s"
)  #: where one ends: not in "et al. 2021", "[... n]"


class Field(NamedTuple):
    """A field of a dataclass, in words."""

    name: str
    type: str  # "int | None"; the choices of a Literal: "max | mse"
    default: str  # as it is given on the command line; "": there is none
    about: str  # the comment behind it


def first_line(text: str | None) -> str:
    """The first sentence of a docstring, as one line without markup; "" where there is none."""
    paragraph = " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
    return plain(SENTENCE.split(paragraph, maxsplit=1)[0]).rstrip(".")


def plain(text: str) -> str:
    """The text without the markup of docstrings: ``:func:`a.b``` is b, double backquotes are left out."""
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?([\w]+)`", r"\1", text).replace("``", "")


def fields(kind: type) -> list[Field]:
    """The fields of a dataclass in order, each with the comment that stands behind it, or behind it in a base."""
    hints, said = typing.get_type_hints(kind), comments(kind)
    found = []
    for f in dataclasses.fields(kind):
        made = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        default = "" if made is dataclasses.MISSING else made if made and isinstance(made, str) else repr(made)
        found.append(Field(f.name, written(hints[f.name]), default, said.get(f.name, "")))
    return found


def comments(kind: type) -> dict[str, str]:
    """By field the comment behind it in the source of a class, or of the bases whose fields it has."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = textwrap.dedent(inspect.getsource(base))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        lines = {t.start[0]: t.string.lstrip("#: ") for t in tokens if t.type == tokenize.COMMENT}
        lines = {n: text for n, text in lines.items() if not re.match(r"type:|noqa|fmt:|pyright:", text)}
        (body,) = ast.parse(source).body
        for node in typing.cast(ast.ClassDef, body).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                if text := " ".join(lines[n] for n in span if n in lines):
                    found[node.target.id] = plain(text)
    return found


def written(hint: Any) -> str:
    """A type as one would say it: ``int | None``, ``max | mse`` for a Literal, ``tuple of int``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(f"{choice}" if choice != "" else '""' for choice in inner)
    if origin in (types.UnionType, typing.Union):
        return " | ".join(written(part) for part in inner)
    if hint is type(None) or hint is None:
        return "None"
    if origin is tuple:
        return f"({', '.join('...' if part is Ellipsis else written(part) for part in inner)})"
    name = getattr(origin or hint, "__name__", str(hint))
    return name if not inner else f"{name} of {', '.join(written(part) for part in inner)}"
