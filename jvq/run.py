"""One run, as its config says: load, fit, evaluate, report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jvq import kept, quantizing, sweep, training
from jvq.config import Run
from jvq.environment import environment
from jvq.report import SCHEMA, Console, clear_partial, show, write


def run(cfg: Run, workdir: Path, console: Console, command: str = "") -> dict[str, Any]:
    """The report of a run, also written to ``workdir`` and shown. Raises ``ValueError`` for what the user can mend."""
    workdir.mkdir(parents=True, exist_ok=True)
    report = {"schema": SCHEMA, "command": command or "jvq.run", **environment(), "seed": cfg.seed}
    report |= _work(cfg)(cfg, workdir, console)
    write(report, workdir)
    ended(workdir)
    show(report, console)
    console.say(f"report: {workdir / 'report.html'}")
    if (packed := workdir / quantizing.PACKED).exists():
        console.say(f"packed model: {packed} (python -m jvq.deploy {packed})")
    return report


def ended(workdir: Path) -> None:
    """Removes what only a run needs that is to go on: the report is there."""
    clear_partial(workdir)
    kept.clear(workdir)


def _work(cfg: Run) -> Callable[[Run, Path, Console], dict[str, Any]]:
    """What makes the report's parts: training, a table over widths and seeds, or one quantised model."""
    if cfg.method_name == "supervised":
        return training.work
    return sweep.work if sweep.wanted(cfg) else quantizing.work
