"""Writing a report: whole or not at all, and never over another one unasked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jvq.core import files
from jvq.report.page import html
from jvq.report.tables import markdown

SCHEMA = "jvq.report/1"
NAME = "report.json"
PAGE = "report.html"


def claim(workdir: Path, overwrite: bool) -> None:
    """Makes the folder ready to be written to; ``ValueError`` where it cannot be, or holds a report already."""
    if (workdir / NAME).exists() and not overwrite:
        raise ValueError(f"workdir: {workdir} already holds a report; use another --workdir, or --overwrite")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".jvq-write-test"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"workdir: {workdir} cannot be written to ({error.strerror})") from None


def write(report: Mapping[str, Any], workdir: Path) -> None:
    """``report.md``, ``report.html`` with the pictures that lie there, and ``report.json``, into the folder."""
    data = json.dumps(report, indent=1, allow_nan=False) + "\n"
    text = {"report.md": markdown(report), PAGE: html(report, workdir), NAME: data}
    for name, content in text.items():
        files.replace(workdir / name, content)
