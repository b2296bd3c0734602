"""How a command reads its flags: ``--help`` is a short text and its own flags, a mistake is one line."""

import sys
from collections.abc import Callable, Sequence

from absl import flags
from rich.console import Console
from rich.table import Table

from jvq.mistakes import one_line

ASKED = ("-h", "-help", "--help", "-?", "--helpshort")
END = "--helpfull also lists the flags of the libraries beneath."


def asked(argv: Sequence[str]) -> bool:
    """Whether the arguments ask for help."""
    return any(arg in ASKED for arg in argv[1:])


def reader(text: str, names: Sequence[str]) -> Callable[[list[str]], list[str]]:
    """What ``app.run`` takes as ``flags_parser``: shows ``text`` and the flags ``names`` if asked, else reads all."""

    def read(argv: list[str]) -> list[str]:
        if asked(argv):
            show(text, names)
            sys.exit(0)
        with one_line(flags.Error):
            return flags.FLAGS(argv)

    return read


def show(text: str, names: Sequence[str]) -> None:
    """Prints the text and the flags."""
    console = Console(highlight=False, markup=False)
    for paragraph in text.replace("``", "").strip().split("\n\n"):
        wide = max(map(len, paragraph.splitlines())) > console.width
        prose = wide and not paragraph.startswith(" ")  # else the lines are as they are: commands
        console.print(" ".join(paragraph.split()) if prose else paragraph, "\n", soft_wrap=not prose, sep="")
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name in names:
        flag = flags.FLAGS[name]
        table.add_row(f"  {_written(flag)}", _about(flag))
    console.print(table)
    console.print("\n" + END, soft_wrap=True)


def _written(flag: flags.Flag) -> str:
    """``--workdir=TEXT``, ``--weights=fast|small``, ``--dry``."""
    if flag.boolean:
        return f"--{'[no]' if flag.default else ''}{flag.name}"
    kind = {"int": "N", "float": "X", "comma separated list of strings": "A,B"}.get(flag.flag_type(), "TEXT")
    return f"--{flag.name}={'|'.join(getattr(flag.parser, 'enum_values', None) or [kind])}"


def _about(flag: flags.Flag) -> str:
    """What the flag's definition says, with its default."""
    default = (flag.default_as_str or "").strip("'")
    shown = "" if flag.boolean or default in ("", "None") else f" [{default}]"
    said = (flag.help or "").removeprefix(f"<{'|'.join(getattr(flag.parser, 'enum_values', None) or [])}>: ")
    return " ".join(said.split()) + shown
