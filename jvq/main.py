"""The command: ``python -m jvq.main --config configs/igq_demo.py [--config.method.bits=6] [--workdir DIR]``.

Every option that ``--dry`` and a config file show can be overridden with ``--config.KEY=VALUE``. Mistakes end in one
line and exit code 2.
"""

import contextlib
import logging
import warnings
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from jvq.core.errors import nearest
from jvq.mistakes import one_line

CONFIG = config_flags.DEFINE_config_file("config", None, "What to run, e.g. configs/igq_demo.py", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where report and results go; default: the next free runs/NAME")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Write over a report that --workdir already holds")
RESUME = flags.DEFINE_bool("resume", False, "Leave out the parts of which --workdir already holds a report")
SITES = flags.DEFINE_bool("sites", False, "List every address with its letters and shape, and stop")
DRY = flags.DEFINE_bool("dry", False, "Show the resolved plan, and stop")


def main(argv: list[str]) -> None:
    """Runs what the config says."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument '{argv[1]}': options start with --")
    if CONFIG.value is None:
        raise ValueError(f"--config is missing, e.g. --config configs/igq_demo.py{nearest('', _configs('configs'))}")
    import jax

    from jvq import report, run
    from jvq.config import runs
    from jvq.environment import command_line

    parts, console = runs(CONFIG.value), report.Console()
    if SITES.value or DRY.value:
        _look(next(iter(parts.values())), console)
        return
    if RESUME.value and (not WORKDIR.value or [*parts] == [""]):
        raise ValueError("--resume goes on with a config of several parts in the folder that --workdir names")
    workdir = Path(WORKDIR.value) if WORKDIR.value else _free(Path("runs") / CONFIG.value.name, [*parts])
    new = not workdir.exists()
    if RESUME.value:
        done = [part for part in parts if (workdir / part / "report.json").exists()]
        console.say(f"done already: {', '.join(done) or 'nothing'}")
        parts = {part: cfg for part, cfg in parts.items() if part not in done}
    for part in parts:
        report.claim(workdir / part, OVERWRITE.value)
    try:
        for part, cfg in parts.items():
            if part:
                console.say(f"part {part} of {', '.join(parts)}")
                jax.clear_caches()  # hundreds of executables of earlier parts would use up the process's memory maps
            run.run(cfg, workdir / part, console, command_line())
    except ValueError:
        if new:
            for folder in (*(workdir / part for part in parts if part), workdir):
                with contextlib.suppress(OSError):  # where something was written, it stays
                    folder.rmdir()
        raise


def _look(cfg, console) -> None:  # without types: they would import everything before the flags are read
    """Shows the addresses, or the plans, without computing anything."""
    from jvq import opening, report, rows

    if cfg.method_name == "supervised":
        raise ValueError("--sites and --dry need a method that quantises; this config trains a float model")
    checkpoint, _ = opening.load(cfg)
    known, found = rows.plans(cfg, checkpoint)
    if SITES.value:
        report.show_sites(known, console)
    if DRY.value:
        row = next(row for row in found if row.name == cfg.method_name)
        report.show_plan(row.plan, row.subject(checkpoint, known).known, console)


def _free(folder: Path, parts: list[str]) -> Path:
    """``folder``, or ``folder-2``, ``-3``, ... : the first without a report of any part."""
    candidate, i = folder, 1
    while any((candidate / part / "report.json").exists() for part in parts):
        i += 1
        candidate = folder.with_name(f"{folder.name}-{i}")
    return candidate


def _configs(folder: str) -> list[str]:
    return sorted(str(p) for p in Path(folder).glob("*.py")) if Path(folder).is_dir() else []


def _check_config_path(argv: list[str]) -> None:
    """Raises ``ValueError`` with the nearest names where the config file is not there."""
    for i, arg in enumerate(argv):
        name, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and name == "config":
            value = value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
            path = Path(value.partition(":")[0])
            if not path.is_file():
                known = _configs(str(path.parent)) or _configs("configs")
                raise ValueError(f"--config: no file '{path}'{nearest(str(path), known)}")


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; a config that cannot be loaded, or a key that it lacks, is one line like any other mistake."""
    with one_line(Exception, text=_text):
        _check_config_path(argv)
        return flags.FLAGS(argv)


def _text(error: BaseException) -> str:
    """What an error says, without what ml_collections wraps around it."""
    if isinstance(error, flags.IllegalFlagValueError) and "Error whilst parsing config file" in str(error):
        while error.__context__ is not None:  # what the config file raised; the text has its traceback
            error = error.__context__
    while error.args and isinstance(error.args[0], Exception):  # AttributeError(KeyError("'btis' ..."))
        error = error.args[0]
    if isinstance(error, KeyError) and error.args:
        return "config: there is no option " + str(error.args[0]).replace("\n", ". ")
    ours = isinstance(error, (ValueError, SyntaxError, flags.Error))
    return str(error) if ours else f"config: {type(error).__name__}: {error}"


def entry() -> None:
    """``python -m jvq.main``."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.getLogger("jax").setLevel(logging.WARNING)  # else every start tells which accelerators are not there

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:  # app.run has made it INFO, and every checkpoint would take a screen
            absl.logging.set_verbosity(absl.logging.WARNING)
        with one_line(ValueError, text=_text):
            main(argv)

    app.run(guarded, flags_parser=_parse)


if __name__ == "__main__":
    entry()
