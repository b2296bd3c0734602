"""Reports of earlier runs, read back: whole, of a schema that is known, or an error in one line."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jvq.core.errors import nearest
from jvq.report.write import NAME, SCHEMA

PARTS = {  # of every report, with the types that the tables count on
    "command": str, "versions": dict, "device": str, "seconds": dict, "method": str, "model": dict, "data": dict,
    "protocol": dict, "bops_formula": str, "rows": list, "sites": dict, "warnings": list,
}  # fmt: skip
OF_ROWS = ("name", "bytes", "bops", "cost")


class Run(NamedTuple):
    """A report, the folder that it lies in, and what the run is called among others."""

    report: Mapping[str, Any]
    folder: Path
    name: str = ""


def read(path: Path) -> Run:
    """The report in a folder, or in a file of any name. ``ValueError`` where there is none that can be shown."""
    file = path / NAME if path.is_dir() else path
    if not file.exists():
        raise ValueError(_missing(path))
    try:
        report = json.loads(file.read_text("utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON, or not whole: {error}") from None
    check(report, file)
    return Run(report, file.parent)


def check(report: Any, file: Path) -> None:
    """``ValueError`` where the file's content is no report, or one of a later schema."""
    schema = report.get("schema") if isinstance(report, dict) else None
    kind, version = SCHEMA.split("/")
    match = re.fullmatch(rf"{kind}/(\d+)", schema) if isinstance(schema, str) else None
    if match is None:
        raise ValueError(f"{file} is no report of a run: its schema is {schema!r}, not '{SCHEMA}'")
    if int(match[1]) > int(version):
        raise ValueError(f"{file} was written by a newer jvq ('{schema}'); this one reads up to '{SCHEMA}'")
    for part, kind in PARTS.items():
        if not isinstance(report.get(part), kind):
            raise ValueError(f"{file} is no whole report: '{part}' is missing, or not what it should be")
    rows = report["rows"]
    if not rows or not all(isinstance(row, dict) and all(name in row for name in OF_ROWS) for row in rows):
        raise ValueError(f"{file} is no whole report: every one of its rows needs {', '.join(OF_ROWS)}")


def named(paths: list[Path]) -> list[Run]:
    """The runs at the paths, each called by as much of its folder's end as tells it from the others."""
    runs = [read(path) for path in paths]
    files = [path.name if path.is_file() and path.name != NAME else "" for path in paths]
    ends = [[*run.folder.resolve().parts, *filter(None, [file])] for run, file in zip(runs, files, strict=True)]
    if len({tuple(end) for end in ends}) < len(ends):
        raise ValueError("the same report is named twice")
    deep = next(n for n in range(1, 1 + max(map(len, ends))) if len({tuple(e[-n:]) for e in ends}) == len(ends))
    return [run._replace(name="/".join(end[-deep:])) for run, end in zip(runs, ends, strict=True)]


def _missing(path: Path) -> str:
    """Why there is no report at the path, and where there is one."""
    if not path.is_dir():
        beside = [x.name for x in sorted(path.parent.glob("*")) if x.is_dir()] if path.parent.is_dir() else []
        return f"no folder or file '{path}'{nearest(path.name, beside)}"
    parts = sorted(x.parent.name for x in path.glob(f"*/{NAME}"))
    if parts:
        one = path / parts[0]
        return f"{path} holds no report itself but those of its parts: {', '.join(parts)}; name one, such as {one}"
    return f"{path} holds no {NAME}: it is not the folder of a run, or the run did not end"


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")
