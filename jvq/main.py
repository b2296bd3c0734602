"""Quantises a model as a config says, or trains one, and writes a report.

  python -m jvq.main --config igq_demo         a trained ViT at 4 bits, 80 s
  python -m jvq.main --config igq_demo:swin --config.method.bits=3
  python -m jvq.main --config igq_demo --dry   what is quantised, and by what

A config is a Python file: igq_demo stands for configs/igq_demo.py, what
follows a colon is its argument; all it sets is a flag, --config.KEY=VALUE.

  python -m jvq.list configs                   what each shows, and takes
  python -m jvq.list igq                       the options of a method
  python -m jvq.main --help --config igq_demo  all that a config sets
  python -m jvq.deploy FILE                    a run's packed.safetensors in
                                               integers; ONNX, StableHLO
"""

import contextlib
import importlib.util
import logging
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import absl.logging
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from jvq import config_files, usage
from jvq.core.errors import nearest
from jvq.mistakes import one_line, without_echoes

CONFIG = config_flags.DEFINE_config_file("config", None, "What to run: a name, or the path of a file", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where results go; default: the next free runs/NAME")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Write over a report that --workdir already holds")
RESUME = flags.DEFINE_bool("resume", False, "Go on in --workdir, behind the parts that are reported")
SITES = flags.DEFINE_bool("sites", False, "List every address with its letters and shape, and stop")
DRY = flags.DEFINE_bool("dry", False, "Show the resolved plan, and stop")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of many processes")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0")
SILENCE = flags.DEFINE_integer("silence", 100, "Seconds until a silent process counts as dead")


def main(argv: list[str]) -> None:
    """Runs what the config says."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument '{argv[1]}': options start with --")
    if CONFIG.value is None:
        raise ValueError(
            "--config is missing, e.g. --config igq_demo (python -m jvq.list configs shows all; try --help)"
        )
    from jvq import report
    from jvq.config import runs
    from jvq.core import hosts

    parts = runs(CONFIG.value)
    if SITES.value or DRY.value:
        _look(next(iter(parts.values())), report.Console())
        return
    if RESUME.value and not WORKDIR.value:
        raise ValueError("--resume goes on in the folder that --workdir names")
    hosts.joined(COORDINATOR.value, PROCESSES.value, PROCESS.value, SILENCE.value)
    if hosts.leads():
        _led(parts, report.Console())
        return
    names = hosts.led(list)  # the parts that are left, as the leading process finds them
    with tempfile.TemporaryDirectory(prefix="jvq-") as folder:  # it writes the same as the leading one, for nobody
        _run({part: parts[part] for part in names}, Path(folder), report.Console(quiet=True))


def _led(parts, console) -> None:
    """Runs the parts in the workdir, as the leading process or the only one."""
    from jvq.core import hosts

    workdir = Path(WORKDIR.value) if WORKDIR.value else _free(Path("runs") / CONFIG.value.name, [*parts])
    new = not workdir.exists()
    parts = {part: parts[part] for part in hosts.led(lambda: _claimed([*parts], workdir, console))}
    try:
        _run(parts, workdir, console)
    except (ValueError, OSError):
        if new:
            for folder in (*(workdir / part for part in parts if part), workdir):
                with contextlib.suppress(OSError):  # where something was written, it stays
                    folder.rmdir()
        raise


def _claimed(parts: list[str], workdir: Path, console) -> list[str]:
    """The parts that are left to run, their folders ready."""
    from jvq import report, run

    if RESUME.value:
        done = [part for part in parts if (workdir / part / "report.json").exists()]
        console.say(f"done already: {', '.join(part or str(workdir) for part in done) or 'nothing'}")
        for part in done:
            run.ended(workdir / part)  # the end of its end may have been interrupted
        parts = [part for part in parts if part not in done]
    for part in parts:
        report.claim(workdir / part, OVERWRITE.value)
    return parts


def _run(parts, workdir: Path, console) -> None:
    """Runs the parts; a signal ends them behind the running piece of work, with a line that says how to go on."""
    import jax

    from jvq import interrupts, run
    from jvq.core import hosts
    from jvq.environment import command_line

    with interrupts.heeded() as stop:
        stop.said = f"jvq: to go on: {_again(workdir)}"
        console.stopping = lambda: hosts.any_of(stop.stopping())  # all stop at the same place
        try:
            for part, cfg in parts.items():
                if part:
                    console.say(f"part {part} of {', '.join(parts)}")
                    jax.clear_caches()  # hundreds of executables of earlier parts would use up its memory maps
                run.run(cfg, workdir / part, console, command_line())
        except KeyboardInterrupt:
            stop.number = max(hosts.shared(stop.number))  # it may have reached another process alone
            if not hosts.leads():
                sys.exit(stop.code)
            rows = [str(path) for part in parts if (path := workdir / part / "report.partial.md").exists()]
            where = f"; the rows so far are in {', '.join(rows)}" if rows else ""
            print(f"jvq: stopped by {stop.name}{where}\n{stop.said}", file=sys.stderr)
            sys.exit(stop.code)


def _again(workdir: Path) -> str:
    """The command that goes on with this one in its folder."""
    args = sys.argv[1:]
    more = [] if WORKDIR.value else [f"--workdir={workdir}"]
    if not (RESUME.value or OVERWRITE.value):  # who writes over a report has one of each part already
        more.append("--resume")
    return shlex.join(["python", "-m", "jvq.main", *args, *more])


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


def _parse(argv: list[str]) -> list[str]:
    """Reads the flags; a config that cannot be loaded, or a key that it lacks, is one line like any other mistake."""
    with one_line(Exception, text=_text):
        found, at = _config_of(argv)
        if usage.asked(argv):
            _help(found)
            sys.exit(0)
        argv = [f"--config={found}" if i == at else arg for i, arg in enumerate(argv)]
        try:
            return flags.FLAGS(argv)
        except (KeyError, AttributeError) as error:
            raise ValueError(_unknown(found, argv) or _text(error)) from error


def _config_of(argv: list[str]) -> tuple[str, int | None]:
    """The config that the arguments ask for, its path made whole, and which of them names it; "" and None without."""
    for i, arg in enumerate(argv):
        name, equals, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and name == "config":
            if not equals and i + 1 < len(argv):
                argv[i : i + 2] = [f"--config={argv[i + 1]}"]
                value = argv[i].partition("=")[2]
            return config_files.located(value), i
    return "", None


def _help(config: str) -> None:
    """Shows how to start; with a config what that is, and everything in it that can be set."""
    if not config:
        own = ("config", "workdir", "dry", "sites", "resume", "overwrite")
        usage.show(__doc__ or "", (*own, "coordinator", "processes", "process", "silence"))
        return
    from jvq.report import Console

    path, console = Path(config.partition(":")[0]), Console()
    console.say(f"{path}\n\n{config_files.docstring(path)}\n")
    for key, value in _keys(_loaded(config)).items():
        console.say(f"  --config.{key}={'' if value is None else value}")


def _loaded(config: str) -> ConfigDict:
    """What the config file at a path, with its argument behind a colon, returns."""
    path, colon, argument = config.partition(":")
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([argument] if colon else []))


def _keys(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a tree of options by its dotted key."""
    found: dict[str, Any] = {}
    for key in tree:
        value = tree[key]
        found |= _keys(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {f"{prefix}{key}": value}
    return found


def _unknown(config: str, argv: list[str]) -> str:
    """Which option on the command line the config lacks, and the nearest that it has; "" where it has them all."""
    known = _keys(_loaded(config))
    for arg in argv:
        key = arg.lstrip("-").partition("=")[0].removeprefix("config.")
        if arg.lstrip("-").startswith("config.") and key not in known:
            branch, _, leaf = key.rpartition(".")
            same = " or ".join(repr(other) for other in known if other.rpartition(".")[2] == leaf)
            beside = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == branch]
            near = f" (did you mean {same}?)" if same else nearest(leaf, beside) if beside else nearest(key, known)
            return f"config: there is no option '{key}'{near}"
    return ""


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


def _said(error: BaseException) -> str:
    """What an error of a run says: the disk's (no space left, no such folder) with the file that it is about."""
    if not isinstance(error, OSError):
        return _text(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)


def entry() -> None:
    """``python -m jvq.main``."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    sys.unraisablehook = without_echoes(sys.unraisablehook)
    logging.getLogger("jax").setLevel(logging.WARNING)  # else every start tells which accelerators are not there

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:  # app.run has made it INFO, and every checkpoint would take a screen
            absl.logging.set_verbosity(absl.logging.FATAL)  # nor pages of a full disk: an exception says that in a line
        from jvq.core import hosts

        with hosts.ending(), one_line(ValueError, OSError, text=_said), hosts.noticing():
            main(argv)

    app.run(guarded, flags_parser=_parse)


if __name__ == "__main__":
    entry()
