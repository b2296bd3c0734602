"""Runs side by side: a table here, and a page with their protocols, sites, and accuracy against cost.

    python -m jvq.report runs/igq_demo runs/minmax_demo [--out=compare.html]
    python -m jvq.report runs/igq_demo

Arguments are folders of runs, or files as their report.json. With one of them, its report.html is made again.
"""

from pathlib import Path

from absl import app, flags

from jvq.mistakes import one_line

FLAGS = flags.FLAGS
if __name__ == "__main__":
    flags.DEFINE_string("out", None, "file to write: by default compare.html here, or report.html in the only run")


def main(argv: list[str]) -> None:
    """Shows the runs, and writes the page."""
    from jvq.core import files
    from jvq.report import Console, compare, reading, show
    from jvq.report.page import html
    from jvq.report.write import PAGE

    if len(argv) < 2:
        raise ValueError("an argument is needed, the folder of a run or several: python -m jvq.report runs/igq_demo")
    runs = reading.named([Path(arg) for arg in argv[1:]])
    alone = len(runs) == 1
    out = Path(FLAGS.out) if FLAGS.out is not None else runs[0].folder / PAGE if alone else Path("compare.html")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise ValueError(f"out: {out} cannot be written: it must be a file in a folder that exists")
    text = html(runs[0].report, runs[0].folder) if alone else compare.html(runs)
    console = Console()
    if alone:
        show(runs[0].report, console)
    else:
        compare.show(runs, console)
    files.replace(out, text, "out: ")
    console.say(f"{'report' if alone else 'comparison'}: {out}")


def entry() -> None:
    """``python -m jvq.report``."""

    def guarded(argv: list[str]) -> None:
        with one_line(ValueError):
            main(argv)

    app.run(guarded)


if __name__ == "__main__":
    entry()
