"""What training says of itself while it runs: lines of JSON always, TensorBoard where it is wanted."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvq.core import files


class Log:
    """Metrics by step, appended to a file of JSON lines, and to TensorBoard events in a folder where one is given.

    ``begin(step)`` drops what an interrupted run said of steps after its last checkpoint: they are made again.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        self.path, self.start, self.spent = path, time.monotonic(), 0.0
        self.tensorboard = tensorboard
        self.events: Any = None

    def begin(self, step: int) -> None:
        """Starts, or goes on, behind ``step``."""
        lines = _lines(self.path)
        kept = [line for line in lines if line["step"] <= step] if step else []
        self.spent = max((line["seconds"] for line in kept), default=0.0)
        self.start = time.monotonic()
        if self.tensorboard is not None:
            from tensorboardX import SummaryWriter  # type: ignore[import]  # an extra

            self.events = SummaryWriter(str(self.tensorboard), purge_step=step + 1)
        if self.path.exists():  # also where its last line was cut off
            files.replace(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """A line: the step, the numbers, and the seconds of training so far."""
        line = {"step": step, **numbers, "seconds": self.spent + time.monotonic() - self.start}
        files.append(self.path, json.dumps(line) + "\n")
        if self.events is not None:
            for name, value in numbers.items():
                self.events.add_scalar(name, value, step)
            self.events.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log."""
    return _lines(path)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Up to the first that was cut off."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found
