"""Tables as the page's templates take them: cells with what they are sorted by and how they stand out."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jvq.report.tables import Chosen, Table

NUMBER = re.compile(r"[+-]?\d")
NAMES = ("address", "site", "module", "model", "run", "field")  #: headings of what is called by a name, set as code


class Cell(NamedTuple):
    """A text; ``key`` is what it is sorted by where the text does not say it, ``bar`` the length of a bar, 0..1."""

    text: str
    kind: str = ""
    key: str = ""
    bar: float | None = None


class Heading(NamedTuple):
    """Of a column; numbers stand at the right."""

    text: str
    kind: str = ""
    says: str = ""


class Line(NamedTuple):
    """A row of a table."""

    cells: Sequence[Cell]
    kind: str = ""


class Grid(NamedTuple):
    """A table of a page."""

    head: Sequence[Heading]
    lines: Sequence[Line]


def grid(table: Table) -> Grid:
    """The table, the chosen cells marked."""
    lines = [Line([Cell(str(x), "chosen" if isinstance(x, Chosen) else "") for x in row]) for row in table.rows]
    return aligned(table.head, lines)


def aligned(head: Sequence[str], lines: Sequence[Line], says: Sequence[str] = ()) -> Grid:
    """The lines under their heading, columns of numbers at the right, names as code."""
    kinds = [_kind(text, (line.cells[i].text for line in lines), i) for i, text in enumerate(head)]
    marked = [
        Line(
            [c._replace(kind=f"{kind} {c.kind}".strip()) for c, kind in zip(line.cells, kinds, strict=True)], line.kind
        )
        for line in lines
    ]
    hints = [*says, *[""] * (len(head) - len(says))]
    return Grid([Heading(*x) for x in zip(head, kinds, hints, strict=True)], marked)


def _kind(head: str, texts: Iterable[str], place: int) -> str:
    if head in NAMES and place < 2:
        return "name"
    return "number" if all(NUMBER.match(text) for text in texts if text not in ("", "-")) else "text"
