"""Config files by name: where they are, and what each says of itself, read without running it."""

import ast
import re
from pathlib import Path

from jvq.core.errors import nearest

FOLDER = "configs"
TIME = re.compile(r"\b(seconds|minutes?|hours?|days?)\b")
CLAUSES = re.compile(r"[:;,)](?=[\s.;,]|$)|\s\(|\.$")  # what stands between them; not in 0.3 or igq_demo.py
UNTIMED = re.compile(r"\b[Nn]ot (timed|known|measured)")  # a sentence that says no time


def folders() -> list[Path]:
    """Where config files are looked for by name: here, in the checkout that jvq runs from, in the installed package."""
    package = Path(__file__).parent
    repository = [package.parent / FOLDER] if (package.parent / "pyproject.toml").is_file() else []
    here = Path(FOLDER)
    found = {p.resolve(): p for p in [package / "assets" / FOLDER, *repository, here] if p.is_dir()}
    return [*found.values()][::-1]


def known() -> dict[str, Path]:
    """Every config by name; of two with one name the first that :func:`folders` finds."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.py")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def located(value: str) -> str:
    """``value``, which may have an argument behind a colon, with the path of its file in front.

    ``igq_demo``, ``igq_demo.py`` and ``configs/igq_demo.py`` are all found where any of :func:`folders` has it. Raises
    ``ValueError`` with the nearest names where there is no such file.
    """
    name, colon, argument = value.partition(":")
    path = Path(name)
    candidates = [path, path.with_name(f"{path.name}.py")] if path.name else []
    if path.parent in (Path(), Path(FOLDER)):
        stem = path.name.removesuffix(".py")
        candidates += [folder / f"{stem}.py" for folder in folders()]
    for candidate in candidates:
        if candidate.is_file():
            return f"{candidate}{colon}{argument}"
    raise ValueError(f"--config: no file '{name}'{_near(path)}")


def _near(path: Path) -> str:
    """The end of an error: names like that of ``path``, in its own folder or among those that are known."""
    own = path.parent not in (Path(), Path(FOLDER)) and path.parent.is_dir()
    if own and (beside := sorted(p.stem for p in path.parent.glob("*.py"))):
        return nearest(path.name.removesuffix(".py"), beside)
    if not known():
        return f": {missing()}"
    return nearest(path.name.removesuffix(".py"), known())


def missing() -> str:
    """What to do where there is no config at all."""
    return f"there is no folder {FOLDER} here, nor with jvq: run from a checkout, or name a file"


def summary(path: Path) -> tuple[str, str]:
    """The first line of the file's docstring, and how long it says that it takes; "" where it does not."""
    text = docstring(path)
    first = " ".join(text.partition("\n\n")[0].split()).replace("``", "")
    return first.rstrip("."), takes(text.partition("\n\n")[2])


def method(path: Path) -> str:
    """The method that the file names in its call of ``config``; "" where it does so in no plain way."""
    for node in ast.walk(_parsed(path)):
        match node:
            case ast.Call(func=ast.Name(id="config"), args=[_, ast.Constant(value=str(name)), *_]):
                return name
    return ""


def docstring(path: Path) -> str:
    """The file's docstring; "" where there is none or the file is no Python."""
    return ast.get_docstring(_parsed(path)) or ""


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text())
    except (SyntaxError, ValueError, OSError):  # no Python, no text, no file
        return ast.Module([], [])


def takes(text: str) -> str:
    """The clauses of the first sentence of ``text`` that say how long something takes, but commands."""
    prose = "\n".join(line for line in text.splitlines() if not line.startswith((" ", "python ")))
    for sentence in re.split(r"(?<=\.)\s+|\n\n", prose):
        clauses = [" ".join(clause.split()).strip(".") for clause in CLAUSES.split(sentence)]
        found = [clause.removeprefix("and ") for clause in clauses if TIME.search(clause)]
        if found and not UNTIMED.search(sentence):
            first = found[0].split()[0]
            return (first.lower() if first[1:].islower() or len(first) == 1 else first) + ", ".join(found)[len(first) :]
    return ""
