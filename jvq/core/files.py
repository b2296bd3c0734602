"""Writing files: each is whole, and on the disk, when it has its name; whoever is killed leaves what was there before.

A file is written under a temporary name beside its own, flushed to the disk and renamed. A ``*.part`` that a killed
process left is nothing that anyone reads, and is gone when the same file is written again.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PART = ".part"  #: at the end of the temporary name


def cache() -> Path:
    """The folder of everything that can be had again."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("JVQ_CACHE") or Path(base) / "jvq").expanduser()


@contextlib.contextmanager
def replacing(path: Path, what: str = "") -> Iterator[Path]:
    """The path of a temporary file, for the block to write, that takes the place of ``path`` when the block ends.

    ``ValueError`` in one line that begins with ``what`` where the disk is full or the folder not to be written to;
    then, and after any other error, ``path`` is what it was.
    """
    part = path.with_name(path.name + PART)
    try:
        part.unlink(missing_ok=True)  # of a killed run; a link would be written through
        yield part
        handle = os.open(part, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(part, path)
        sync(path.parent)
    except Exception as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ValueError(cannot(path, error, what)) from error
        raise


def replace(path: Path, content: bytes | str, what: str = "") -> None:
    """Puts ``content`` into the file as a whole (text as UTF-8); errors as of :func:`replacing`."""
    with replacing(path, what) as part, part.open("xb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def append(path: Path, text: str, what: str = "") -> None:
    """Adds lines to a file: on the disk when this returns, and where that cannot be, none of them.

    ``ValueError`` in one line as of :func:`replacing`. Only a kill in between leaves a piece of a line at the end.
    """
    length = 0
    try:
        with path.open("ab") as file:
            length = file.tell()
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, length)
        raise ValueError(cannot(path, error, what)) from error


def cannot(path: Path, error: OSError, what: str = "") -> str:
    """Why a file is not there, in a line: ``what``, the path and the system's word."""
    return f"{what}{path} cannot be written: {error.strerror or error}"


def sync(folder: Path) -> None:
    """Makes the names in the folder last through a power cut, where its file system can promise that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
