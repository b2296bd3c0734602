"""How far something long is: a bar where what was printed can be redrawn, a line now and then where it cannot."""

import importlib
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PAUSE, SHARE, LONGEST = 15.0, 0.1, 300.0  #: seconds between lines: at least, as a share of those gone by, at most
WINDOW = 600.0  #: seconds over which speed is estimated: steps may take a minute each
CELL = 0.5  #: seconds between two states of a notebook's line
WIDTH = 30  #: characters of a notebook's bar


class Bar:
    """A bar over ``total`` items, or bytes; None where nobody knows how many there will be.

    On a terminal it is redrawn in place, and gone at the end. In a notebook it is a line of the cell's output, which
    stays. In a file or a pipe there is a line at the start, another after 15 seconds and then ever fewer, each with the
    remaining time, and one at the end if there was any between; with ``last`` there is one at the end in any case.
    """

    def __init__(
        self,
        out: Console,
        text: str,
        total: int | None,
        *,
        in_bytes: bool = False,
        last: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.out, self.text, self.total, self.in_bytes, self.last, self.clock = out, text, total, in_bytes, last, clock
        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        counted = DownloadColumn() if in_bytes else MofNCompleteColumn()
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.rich = Progress(
            *columns, counted, *times, console=out, transient=True, get_time=clock, speed_estimate_period=WINDOW
        )
        self.rich.add_task(text, total=total)
        (self.task,) = self.rich.tasks
        self.live, self.cell = out.is_terminal and not out.is_jupyter, None
        self.said, self.spoke, self.more = clock(), False, ""

    def __enter__(self) -> "Bar":
        if self.live:
            self.rich.start()
        elif self.out.is_jupyter and not self.out.quiet:
            self.cell = importlib.import_module("IPython.display").display(
                _plain(self._cell()), raw=True, display_id=True
            )
        else:
            self._say(f"{self.text} ...")
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if self.live:
            self.rich.stop()
        elif self.cell is not None:
            self.cell.update(_plain(self._ended() if kind is None else self._line() + ", stopped"), raw=True)
        elif kind is None and (self.spoke or self.last):
            self._say(self._ended())

    def at(self, done: int, more: str = "", total: int | None = None) -> None:
        """Moves to ``done``; ``more`` are the latest numbers, ``total`` how many there are, if that is known by now."""
        self.more, self.total = more, self.total if total is None else total
        text = f"{self.text} ({more})" if more else self.text
        self.rich.update(self.task.id, completed=done, description=text, total=self.total)
        if self.live:
            return
        now = self.clock()
        gone = now - (self.task.start_time or now)
        if self.cell is not None and now - self.said >= CELL:
            self.cell.update(_plain(self._cell()), raw=True)
            self.said = now
        elif self.cell is None and now - self.said >= min(max(PAUSE, SHARE * gone), LONGEST) and done != self.total:
            self._say(self._line())
            self.said, self.spoke = now, True

    def _say(self, line: str) -> None:
        self.out.print(line, markup=False, soft_wrap=True)

    def _line(self) -> str:
        """``calibrating: 12 of 40 (loss 0.3), 2 min 05 s left``."""
        left = self.task.time_remaining
        more = f" ({self.more})" if self.more else ""
        return f"{self.text}: {self._count()}{more}" + ("" if left is None else f", {lasting(float(left))} left")

    def _ended(self) -> str:
        more = f" ({self.more})" if self.more else ""
        return f"{self.text}: {self._count()}{more} in {lasting(self.task.elapsed or 0.0)}"

    def _cell(self) -> str:
        """The line with a bar in front, as wide as what is done."""
        if not self.total:
            return self._line()
        full = min(WIDTH, round(WIDTH * self.task.completed / self.total))
        return f"{'━' * full}{'╌' * (WIDTH - full)}  {self._line()}"

    def _count(self) -> str:
        scale = 1e6 if self.in_bytes else 1
        shown = [f"{n / scale:.0f}" for n in (self.task.completed, self.total) if n is not None]
        return " of ".join(shown) + (" MB" if self.in_bytes else "")


def lasting(seconds: float) -> str:
    """``8 s``, ``2 min 05 s``, ``3 h 07 min``, ``2 d 3 h``."""
    whole = round(seconds)
    for size, name, small, unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name} " + (f"{rest} {unit}" if unit == "h" else f"{rest:02} {unit}")
    return f"{whole} s"


def _plain(text: str) -> dict[str, str]:
    return {"text/plain": text}
