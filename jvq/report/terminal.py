"""What a run shows on the terminal: progress, tables, plans."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import rich.box
from rich.console import Console as RichConsole
from rich.table import Table

from jvq.core.quantizer import Quantizer
from jvq.core.recipe import Sites
from jvq.progress import Bar
from jvq.report.tables import figures_of, row_cells, row_head


class Console:
    """Says what is being done, and how far it is; where ``stopping`` says so it goes no further.

    Between two items of :meth:`track` that raises ``KeyboardInterrupt``.
    """

    def __init__(self, quiet: bool = False, stopping: Callable[[], bool] = lambda: False) -> None:
        self.stopping = stopping
        self.out = RichConsole(quiet=quiet, highlight=False, markup=False)
        if not (self.out.is_terminal or self.out.is_jupyter) and "COLUMNS" not in os.environ:
            self.out.width = 200  # in a file or a pipe nothing has to be folded

    def say(self, text: str) -> None:
        """A line."""
        self.out.print(text, markup=False, soft_wrap=True)

    def track(self, items: Iterable[Any], text: str, total: int | None = None) -> Iterator[Any]:
        """The items, while it is shown how many are done and how long the others will take (:class:`Bar`)."""
        count = total if total is not None else len(items) if isinstance(items, Sized) else None
        with Bar(self.out, text, count) as bar:
            for done, item in enumerate(items, 1):
                if self.stopping():
                    raise KeyboardInterrupt
                yield item
                bar.at(done)

    def steps(self, total: int, text: str) -> "Steps":
        """A bar that is moved by hand, for loops that count steps themselves."""
        return Steps(Bar(self.out, text, total, last=True))


class Steps:
    """A bar over steps with the latest numbers beside it."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def __enter__(self) -> "Steps":
        self.bar.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.bar.__exit__(*exc)

    def at(self, step: int, numbers: Mapping[str, float]) -> None:
        """Moves to ``step``."""
        self.bar.at(step, ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()))


def show(report: Mapping[str, Any], console: Console) -> None:
    """The headline table and what it says."""
    made = table(row_head(report["rows"]))
    for row in report["rows"]:
        made.add_row(*row_cells(row), style="bold" if row["name"] == report["method"] else "")
    console.out.print(made)
    for line in figures_of(report):
        console.say(line)
    for line in report["warnings"]:
        console.say(f"warning: {line}")


def show_sites(known: Sites, console: Console) -> None:
    """Every address with its letters and shape."""
    made = table(("address", "letters", "shape", "product", "parameter"))
    for address, o in known.items():
        extents = [str(n) for n in o.shape] if o.path is not None else ["b", *map(str, o.shape[1:])]
        made.add_row(address, o.letters, " x ".join(extents), o.out, "/".join(o.path or ()))
    console.out.print(made)


def show_plan(plan: Mapping[str, Quantizer], known: Sites, console: Console) -> None:
    """Every address with its quantiser; addresses without one are float."""
    made = table(("address", "letters", "quantiser"))
    for address, o in known.items():
        quantizer = plan.get(address)
        made.add_row(address, o.letters, "float" if quantizer is None else describe(quantizer))
    console.out.print(made)


def describe(quantizer: Quantizer) -> str:
    """The quantiser with its bits and what differs from its defaults."""
    shown = [
        f"{f.name}={getattr(quantizer, f.name)!r}"
        for f in dataclasses.fields(quantizer)  # type: ignore[arg-type]
        if f.name in ("bits", "groups", "along", "keep") or getattr(quantizer, f.name) != f.default
    ]
    return f"{type(quantizer).__name__}({', '.join(shown)})"


def table(head: Iterable[str], left: bool = False) -> Table:
    """An empty table: names in front stay in one piece, other columns are words (``left``) or numbers."""
    made = Table(box=rich.box.SIMPLE_HEAD)
    for i, name in enumerate(head):
        justify = "left" if left or i == 0 or name in ("letters", "quantiser", "parameter") else "right"
        made.add_column(name, justify=justify, overflow="fold", no_wrap=i == 0)
    return made
