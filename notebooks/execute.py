"""Writes the notebooks with their outputs: ``python notebooks/execute.py [01_tour ...]``, all of them by default.

What people edit and review is ``NAME.py``. ``NAME.ipynb`` is made from it here, by running its cells in a fresh kernel;
where one fails nothing is written. Needs the extra ``test``.
"""

import os
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SECONDS = 1800  #: that one cell may take


def names() -> list[str]:
    """All notebooks, in order."""
    return sorted(path.stem for path in HERE.glob("[0-9]*_*.py"))


def executed(name: str) -> Any:
    """The notebook that ``name``.py is, with its outputs."""
    notebook = jupytext.read(HERE / f"{name}.py")
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name=KERNEL["name"], resources={"metadata": {"path": HERE}}
    )
    client.execute()
    return clean(notebook)


def clean(notebook: Any) -> Any:
    """The notebook without what differs from one run to the next though nothing has changed."""
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i:02d}", {}
    notebook.metadata = {"jupytext": {"formats": "ipynb,py:percent"}, "kernelspec": KERNEL}
    return notebook


def write(notebook: Any, path: Path) -> None:
    """Writes it whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(nbformat.writes(notebook) + "\n")
    os.replace(part, path)


def main(wanted: list[str]) -> int:
    """0 where every notebook ran; says in one line a notebook which did not, and why."""
    failed = 0
    for name in wanted or names():
        try:
            write(executed(name), HERE / f"{name}.ipynb")
        except CellExecutionError as error:
            print(f"{name}: {error.ename}: {error.evalue}\n{error.traceback}", file=sys.stderr)
            failed = 1
        else:
            print(f"{name}.ipynb: {(HERE / f'{name}.ipynb').stat().st_size / 1024:.0f} KiB")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
