"""One input to one loader, and what that came to: refused in one clear line, accepted and right, or a defect."""

import contextlib
import random
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Files = dict[str, bytes]  # names in a folder; one of them for a loader of files
LONGEST = 1500  #: letters of a line that a person still reads
WAITING = 20  #: times a loader's seconds of computing that it may take by the clock: others compute here too


@dataclass(frozen=True)
class Target:
    """A loader and what it is given."""

    name: str
    make: Callable[[Path], Files]  # whole input
    change: Callable[[random.Random, Files], tuple[str, bytes]]  # which file, and what it holds then
    load: Callable[[Path], Any]
    same: Callable[[Any, Any], str]  # (of whole input, of changed input) -> what is wrong with what was accepted
    errors: tuple[type[Exception], ...] = (ValueError,)  # themselves, not kinds of them
    seconds: float = 5.0
    weight: int = 1  # what a trial costs, in trials of the quickest loader


@dataclass
class Found:
    """What became of the inputs."""

    tried: Counter = field(default_factory=Counter)  # refused, accepted, accepted the same, defect
    defects: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # what: the first input
    lines: Counter = field(default_factory=Counter)  # of refusals, their first words
    slowest: float = 0.0


class Hanging(BaseException):
    """The loader took too long; no loader catches it."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises ``Hanging`` in whatever computes for longer, or waits for far longer."""

    def over(*_: Any) -> None:
        raise Hanging

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, WAITING * seconds))
    before = {number: signal.signal(number, over) for number, _, _ in clocks}
    for _, clock, most in clocks:
        signal.setitimer(clock, most)
    try:
        yield
    finally:
        for _, clock, _ in clocks:
            signal.setitimer(clock, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def clear(error: BaseException, errors: tuple[type[Exception], ...]) -> str:
    """What is wrong with the error; empty where it is one line of a kind that the loader promises."""
    said = str(error)
    if type(error) not in errors:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} from {Path(frame.filename).name}:{frame.lineno}: {said[:120]!r}"
    if not said or "\n" in said or not said.isprintable():
        return f"not one printable line: {said[:120]!r}"
    if len(said) > LONGEST:
        return f"a line of {len(said)} letters: {said[:60]!r}"
    return ""


def judged(target: Target, path: Path, whole: Any) -> tuple[str, str]:
    """(refused, accepted or defect; its line)."""
    try:
        with limited(target.seconds), warnings.catch_warnings():
            warnings.simplefilter("error")
            got = target.load(path)
    except Hanging:
        return "defect", f"hangs for more than {target.seconds:g} s"
    except Exception as error:
        wrong = clear(error, target.errors)
        return ("defect", wrong) if wrong else ("refused", str(error))
    wrong = target.same(whole, got)
    return ("defect", f"accepted: {wrong}") if wrong else ("accepted", "")


def whole(target: Target, folder: Path) -> tuple[Files, Path, Any]:
    """The input as it should be, written to the folder; what to load; and what that gives."""
    files = target.make(folder / "made")
    root = folder / "tried"
    for name, data in files.items():
        put(root / name, data)
    path = root if len(files) > 1 else root / next(iter(files))
    return files, path, target.load(path)


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tried(target: Target, folder: Path, count: int, seed: int = 0) -> Found:
    """What ``count`` changed inputs come to."""
    made, found = whole(target, folder), Found()
    for i in range(count):
        one(target, made, random.Random(f"{target.name} {seed} {i}"), f"input {i}", found)
    return found


def one(target: Target, made: tuple[Files, Path, Any], rng: random.Random, which: str, found: Found) -> None:
    """Tries one input, drawn by the generator."""
    name, data = target.change(rng, made[0])
    given(target, made, name, data, which, found)


def given(
    target: Target, made: tuple[Files, Path, Any], name: str, data: bytes, which: str, found: Found
) -> tuple[str, str]:
    """What comes of ``data`` in the place of a file, (refused, accepted or defect; its line), noted in ``found``."""
    files, path, right = made
    changed = (path if path.is_dir() else path.parent) / name
    put(changed, data)
    begun = time.perf_counter()
    verdict, line = judged(target, path, right)
    found.slowest = max(found.slowest, time.perf_counter() - begun)
    put(changed, files[name])
    found.tried[verdict] += 1
    if verdict == "defect":
        found.defects.setdefault(line.split(" at 0x")[0], (f"{name}, {which}", data))
    elif verdict == "refused":
        found.lines[line[:60]] += 1
    return verdict, line
