"""Name tables: which array of a file is which parameter of ours, and with which axes.

A row says both names and the layout between them in axis letters. Names carry ``{i}`` (block or stage), ``{j}`` (block
of a stage), ``{next}`` (the stage after ``{i}``) and ``{s}`` (one of q, k, v as the table calls them; three arrays of
theirs make one of ours). Our side is the *open* form of a parameter, in which a patch kernel still has its axes
[p q c d] and a fused projection may or may not have its heads apart: [d s o] or [d s h e]; ``closed`` in ``spec.py``
gives it the model's shape.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from einops import EinopsError, rearrange

from jvq.core.errors import nearest
from jvq.models.weights.bounds import floats

Arrays = dict[str, np.ndarray]
QKV = 3  # the length of axis s


class Row(NamedTuple):
    """One line of a table."""

    theirs: str  # templates with "|" between them; the first is the one that is written
    ours: str
    layout: str  # einops, theirs to ours; stacked parts are axis s in front


@dataclass(frozen=True)
class Table:
    """The names of one format for one architecture."""

    format: str  # "timm"
    architecture: str  # "vit" or "swin"
    rows: tuple[Row, ...]
    parts: tuple[str, str, str] = ("q", "k", "v")  # what stands for {s}
    prepare: Callable[[Arrays], Arrays] = lambda arrays: arrays  # their dialects into the table's names
    ignored: str = r"(?!)"  # buffers and training-only arrays: a regular expression on prepared names
    refused: Mapping[str, str] = field(default_factory=dict)  # regular expression: why we cannot compute it

    @cached_property
    def patterns(self) -> list[tuple[re.Pattern[str], Row]]:
        """A regular expression per template."""
        return [(pattern(text, self.parts), row) for row in self.rows for text in row.theirs.split("|")]

    def match(self, name: str) -> tuple[Row, str, int | None] | None:
        """The row, our name and the part (0, 1, 2 of q, k, v) that a name of theirs stands for."""
        for expression, row in self.patterns:
            if found := expression.fullmatch(name):
                at = found.groupdict()
                part = self.parts.index(at.pop("s")) if "s" in at else None
                return row, filled(row.ours, at), part
        return None

    def names(self, ours: str) -> list[str]:
        """What they call a parameter of ours: three names where q, k and v are apart. Empty: the table has none."""
        for row in self.rows:
            if found := pattern(row.ours, self.parts).fullmatch(ours):
                text = row.theirs.split("|")[0]
                parts = self.parts if "{s}" in text else ("",)
                return [filled(text, found.groupdict()).replace("{s}", s) for s in parts]
        return []

    def row(self, ours: str) -> Row:
        """The row of a parameter of ours."""
        return next(row for row in self.rows if pattern(row.ours, self.parts).fullmatch(ours))


def pattern(template: str, parts: tuple[str, ...]) -> re.Pattern[str]:
    """A template as a regular expression with groups i, j, next, s."""
    text = re.escape(template)
    for letter in ("i", "j", "next"):
        text = re.sub(rf"\\{{{letter}(:02d)?\\}}", rf"(?P<{letter}>\\d+)", text)
    return re.compile(text.replace(r"\{s\}", f"(?P<s>{'|'.join(parts)})"))


def filled(template: str, at: Mapping[str, str]) -> str:
    """The template with its numbers; ``{next}`` is one more than ``{i}``, whichever of the two is known."""
    numbers = {letter: int(text) for letter, text in at.items()}
    if "next" in numbers:
        numbers["i"] = numbers.pop("next") - 1
    numbers["next"] = numbers.get("i", 0) + 1
    return template.replace("{s}", "{{s}}").format(**numbers)


@dataclass(frozen=True)
class Opened:
    """A file's arrays under our names in the open form, and what they were called."""

    table: Table
    where: str  # for errors
    arrays: Arrays  # ours: array
    origin: dict[str, list[str]]  # ours: theirs
    unexpected: list[str]
    ignored: list[str]

    def complaint(self, lines: list[str]) -> ValueError:
        """One error out of all that does not fit."""
        shown = ", ".join(lines[:6]) + (f", ... {len(lines)} in all" if len(lines) > 6 else "")
        what = f"{self.table.format} {self.table.architecture}"
        return ValueError(
            f"weights: {self.where} (read as {what}) does not fit the model (- missing, + unexpected, ~ shape): {shown}"
        )

    def missing(self, ours: str) -> list[str]:
        """A line per array of theirs that a parameter of ours lacks, with the nearest name that nobody asked for."""
        names = self.table.names(ours) or [ours]
        there = self.origin.get(ours, [])
        return [f"-{name}{nearest(name, self.unexpected)}" for name in names if name not in there]

    def shape(self, ours: str, letters: str) -> dict[str, int]:
        """The lengths of an array's axes by letter. Raises ``ValueError`` where the array is missing or has others."""
        if ours not in self.arrays:
            raise self.complaint(self.missing(ours) + [f"+{name}" for name in self.unexpected])
        shape = self.arrays[ours].shape
        if len(shape) != len(letters.split()):
            raise self.complaint([f"~{', '.join(self.origin[ours])} has shape {shape}, not axes {letters}"])
        return dict(zip(letters.split(), shape, strict=True))


def choose(tables: tuple[Table, ...], arrays: Arrays, where: str) -> tuple[Table, Arrays]:
    """The table that knows most of the names, and the arrays under its names. ``ValueError`` where none knows half."""
    prepared = [(table, table.prepare(arrays)) for table in tables]
    known = [sum(table.match(name) is not None for name in names) for table, names in prepared]
    best = max(range(len(tables)), key=known.__getitem__)
    table, names = prepared[best]
    for expression, why in table.refused.items():
        if found := sorted(name for name in names if re.search(expression, name)):
            raise ValueError(f"weights: {where} (read as {table.format} {table.architecture}): {why} ({found[0]})")
    if not names or known[best] * 2 < sum(not re.search(table.ignored, name) for name in names):
        formats = ", ".join(dict.fromkeys(table.format for table in tables))
        some = ", ".join(list(arrays)[:3]) or "none at all"
        raise ValueError(f"weights: {where} has names of no format that jvq knows ({formats}): {some}, ...")
    return table, names


def opened(table: Table, arrays: Arrays, where: str) -> Opened:
    """The arrays that ``choose`` gives under our names. ``ValueError``: two for one of ours, axes that do not fit."""
    found: dict[str, dict[int | None, str]] = {}
    rows: dict[str, Row] = {}
    unexpected, ignored = [], []
    for name in arrays:
        match = table.match(name)
        if match is None:
            (ignored if re.search(table.ignored, name) else unexpected).append(name)
            continue
        row, ours, part = match
        if found.setdefault(ours, {}).setdefault(part, name) != name or len({p is None for p in found[ours]}) > 1:
            raise ValueError(f"weights: {where}: {name} and {', '.join(found[ours].values())} are both {ours}")
        rows[ours] = row
    out = Opened(table, where, {}, {ours: list(names.values()) for ours, names in found.items()}, unexpected, ignored)
    for ours, names in found.items():
        if None not in names and len(names) < QKV:
            raise out.complaint(out.missing(ours))
        pieces = [arrays[names[part]] for part in sorted(names, key=lambda p: p or 0)]
        out.arrays[ours] = laid_out(pieces, rows[ours].layout, out, list(names.values()))
    return out


def laid_out(pieces: list[np.ndarray], layout: str, file: Opened, names: list[str]) -> np.ndarray:
    """One array of ours, float32, out of one or three of theirs."""
    wide = list(floats(dict(zip(names, pieces, strict=True)), file.where).values())
    sizes = {"s": QKV} if "(s " in layout else {}
    try:
        return rearrange(wide[0] if len(wide) == 1 else np.stack(wide), layout, **sizes)
    except (EinopsError, ValueError):
        shapes = ", ".join(f"{name} has shape {x.shape}" for name, x in zip(names, pieces, strict=True))
        raise file.complaint([f"~{shapes}, not axes {layout.split(' -> ')[0]}"]) from None


def turned(array: np.ndarray, layout: str) -> np.ndarray:
    """An array of ours in the open form with their axes: the inverse of ``laid_out``, but that q, k, v stay stacked."""
    theirs, ours = layout.split(" -> ")
    return np.ascontiguousarray(rearrange(array, f"{ours} -> {theirs}"))
