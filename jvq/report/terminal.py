"""What a run shows on the terminal: progress, tables, plans."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import rich.box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Sites
from jvq.report.tables import figures_of, row_cells, row_head


class Console:
    """Says what is being done, and how far it is."""

    def __init__(self, quiet: bool = False) -> None:
        self.out = RichConsole(quiet=quiet, highlight=False)
        if not self.out.is_terminal and "COLUMNS" not in os.environ:
            self.out.width = 200  # in a file or a pipe nothing has to be folded

    def say(self, text: str) -> None:
        """A line."""
        self.out.print(text, markup=False, soft_wrap=True)

    def track(self, items: Iterable[Any], text: str, total: int | None = None) -> Iterable[Any]:
        """The items, under a bar with the remaining time; where there is no terminal, a line at the start."""
        if not self.out.is_terminal:
            self.say(f"{text} ...")
            yield from items
            return
        count = total if total is not None else len(items) if isinstance(items, Sized) else None
        with _bar(self.out) as progress:
            yield from progress.track(items, total=count, description=text)

    def steps(self, total: int, text: str) -> "Steps":
        """A bar that is moved by hand, for loops that count steps themselves."""
        return Steps(self, total, text)


class Steps:
    """A bar over ``total`` steps with the latest numbers; a line every twentieth where there is no terminal."""

    def __init__(self, console: Console, total: int, text: str) -> None:
        self.console, self.total, self.text = console, total, text
        self.progress = _bar(console.out)
        self.task = self.progress.add_task(text, total=total)
        self.said = 0

    def __enter__(self) -> "Steps":
        if self.console.out.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def at(self, step: int, numbers: Mapping[str, float]) -> None:
        """Moves to ``step``."""
        shown = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        if self.console.out.is_terminal:
            self.progress.update(self.task, completed=step, description=f"{self.text} ({shown})")
        elif step == self.total or step * 20 // self.total > self.said:
            self.said = step * 20 // self.total
            self.console.say(f"{self.text}: step {step} of {self.total} ({shown})")


def _bar(out: RichConsole) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=out, transient=True)


def show(report: Mapping[str, Any], console: Console) -> None:
    """The headline table and what it says."""
    table = _table(row_head(report["rows"]))
    for row in report["rows"]:
        table.add_row(*row_cells(row), style="bold" if row["name"] == report["method"] else "")
    console.out.print(table)
    for line in figures_of(report):
        console.say(line)
    for line in report["warnings"]:
        console.say(f"warning: {line}")


def show_sites(known: Sites, console: Console) -> None:
    """Every address with its letters and shape."""
    table = _table(("address", "letters", "shape", "product", "parameter"))
    for address, o in known.items():
        extents = [str(n) for n in o.shape] if o.path is not None else ["b", *map(str, o.shape[1:])]
        table.add_row(address, o.letters, " x ".join(extents), o.out, "/".join(o.path or ()))
    console.out.print(table)


def show_plan(plan: Mapping[str, Quantizer], known: Sites, console: Console) -> None:
    """Every address with its quantiser; addresses without one are float."""
    table = _table(("address", "letters", "quantiser"))
    for address, o in known.items():
        quantizer = plan.get(address)
        table.add_row(address, o.letters, "float" if quantizer is None else describe(quantizer))
    console.out.print(table)


def describe(quantizer: Quantizer) -> str:
    """The quantiser with its bits and what differs from its defaults."""
    shown = [
        f"{f.name}={getattr(quantizer, f.name)!r}"
        for f in dataclasses.fields(quantizer)  # type: ignore[arg-type]
        if f.name in ("bits", "groups", "along", "keep") or getattr(quantizer, f.name) != f.default
    ]
    return f"{type(quantizer).__name__}({', '.join(shown)})"


def _table(head: Iterable[str]) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD)
    for i, name in enumerate(head):
        justify = "left" if i == 0 or name in ("letters", "quantiser", "parameter") else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=i == 0)  # an address stays in one piece
    return table
