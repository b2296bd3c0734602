"""Many processes: how they find each other, agree, and end together. The engine underneath is ``jax.distributed``.

All processes run the same program on their own devices, and meet wherever one of these functions is called: all call
it, in the same order. The first process leads: it alone says and writes what a person sees. Of a single process
nothing here asks anything, so that it costs nothing.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

SILENCE = 100  #: seconds without a sign of life after which a process counts as dead, as JAX has it
PATIENCE = 300  #: seconds in which all processes have to begin
LINGER = 2  #: seconds that the leading process stays after an error, which the others may be just about to find too
PART = 2**26  #: bytes that are exchanged at a time
LOST = re.compile(r"gloo|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|coordination|connection (closed|reset|refused)", re.I)
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Agreed(ValueError):
    """An error that all processes raise at the same place: they end together, without a word of their peers."""


def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    silence: int = SILENCE,
    patience: int = PATIENCE,
) -> int:
    """The number of processes, after this one has joined the others; before anything asks JAX for devices.

    Without arguments they are those of the cluster that JAX finds (SLURM, Open MPI, Kubernetes, a TPU pod); where there
    is none, or of one process, nothing is joined. Raises ``ValueError`` where arguments are missing, or the others.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == len(given):
        if _detected() <= 1:
            return 1
    elif missing:
        raise ValueError(f"many processes: {' and '.join(missing)} missing: it takes all three, or none in a cluster")
    elif not re.fullmatch(r".+:\d+", str(coordinator)):
        raise ValueError(f"--coordinator: got '{coordinator}', must be the first process's address: HOST:PORT")
    elif processes < 1:  # type: ignore[operator]
        raise ValueError(f"--processes: got {processes}, must be at least 1")
    elif not 0 <= process < processes:  # type: ignore[operator]
        raise ValueError(f"--process: got {process}, must be 0 to {processes - 1}")  # type: ignore[operator]
    elif processes == 1:
        return 1
    if silence < 1:
        raise ValueError(f"--silence: got {silence}, must be at least 1 second")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    here = re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\]):\d+", str(coordinator))
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            coordinator_bind_address=coordinator if here else None,  # else JAX would listen to the whole network
            heartbeat_timeout_seconds=silence,
            initialization_timeout=patience,
        )
    except RuntimeError as error:
        what = f"many processes: not all of {processes or 'them'} have come to {coordinator or 'the first'}"
        raise ValueError(f"{what} within {patience} s: {_first_line(error)}") from error
    _last_word(f"jvq: {_name()}: another process has ended, or cannot be reached; {KEPT}")
    return jax.process_count()


KEPT = "what was written before is as it was, and the same command goes on from there"


def count() -> int:
    """How many processes there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def many() -> bool:
    """Whether there are several processes."""
    return count() > 1


def leads() -> bool:
    """Whether this is the process that says and writes."""
    return not many() or jax.process_index() == 0


def shared(value: Any) -> list[Any]:
    """What all processes have said, in their order: JSON values."""
    if not many():
        return [value]
    from jax.experimental import multihost_utils

    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(said)))
    filled = np.zeros(int(sizes.max()), np.uint8)
    filled[: len(said)] = said
    rows = multihost_utils.process_allgather(filled)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def agreed(value: Any) -> Any:
    """What the leading process has said, a JSON value; what the others say is not asked for."""
    return shared(value if leads() else None)[0] if many() else value


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    return any(shared(bool(flag))) if many() else flag


def led(work: Callable[[], Any]) -> Any:
    """What ``work()`` gives on the leading process, a JSON value, on all; its ``ValueError`` is raised on all."""
    if not many():
        return work()
    said: Any = None
    if leads():
        try:
            said = work(), None
        except ValueError as error:
            said = None, str(error)
    value, wrong = agreed(said)
    if wrong is not None:
        raise Agreed(wrong)
    return value


def sent(content: bytes | None) -> bytes | None:
    """What the leading process has, on all; what the others have is not asked for."""
    if not many():
        return content
    size = agreed(None if content is None else len(content))
    if size is None:
        return None
    from jax.experimental import multihost_utils

    parts = []
    for first in range(0, size, PART):
        held = content[first : first + PART] if leads() and content else bytes(min(PART, size - first))
        parts.append(multihost_utils.broadcast_one_to_all(np.frombuffer(held, np.uint8)).tobytes())
    return b"".join(parts)


def share(things: int) -> slice:
    """Which of so many things are this process's: a part as large as those of the others, or by one smaller."""
    if not many():
        return slice(0, things)
    bounds = np.linspace(0, things, count() + 1).round().astype(int)
    return slice(*map(int, bounds[jax.process_index() :][:2]))


def stacked(rows: np.ndarray) -> np.ndarray:
    """The rows [n ...] of all processes [sum of n ...], in the order of the processes; bit for bit."""
    if not many():
        return rows
    from jax.experimental import multihost_utils

    rows = np.ascontiguousarray(rows)
    counts = shared(len(rows))
    width = int(np.prod(rows.shape[1:], dtype=np.int64)) * rows.itemsize
    step = max(1, PART // width)
    parts: list[list[np.ndarray]] = [[] for _ in counts]
    for first in range(0, max(counts), step):  # in parts: every device holds what is exchanged
        size = min(step, max(counts) - first)
        sent = np.zeros((size, width), np.uint8)  # as bytes: JAX would make float64 and int64 narrower
        mine = rows[first : first + size]
        sent[: len(mine)] = mine.reshape(len(mine), width // rows.itemsize).view(np.uint8)
        got = multihost_utils.process_allgather(sent)
        for i, count in enumerate(counts):
            parts[i].append(got[i][: max(0, min(count - first, size))])
    whole = np.concatenate([part for mine in parts for part in mine])
    return np.frombuffer(whole.tobytes(), rows.dtype).reshape(-1, *rows.shape[1:])


@contextlib.contextmanager
def noticing() -> Iterator[None]:
    """An error that says that a peer is gone becomes a ``ValueError`` of one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # gloo's come as both
        if many() and not isinstance(error, Agreed) and LOST.search(str(error)):
            what = f"{_name()}: another process has ended, or cannot be reached ({_first_line(error)})"
            _alone_on_stderr()
            raise ValueError(f"{what}; {KEPT}") from error
        raise


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """The end of one of many processes: by an error of its own at once, else with the others.

    An orderly end waits for the others, and they may be waiting for this one. Its connections are closed when it is
    gone, and they hear of that.
    """
    try:
        yield
    except BaseException as error:
        if not many():
            raise
        together = isinstance(error.__context__, Agreed | KeyboardInterrupt) or isinstance(error, Agreed)
        leaving = isinstance(error, SystemExit)
        if together or (leaving and not error.code):
            raise
        if not leaving:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        if leads():
            time.sleep(LINGER)
        os._exit(error.code if leaving and isinstance(error.code, int) else 1)


def _detected() -> int:
    """How many processes the cluster has in which JAX finds this one; 1 where it finds none.

    JAX has no public way to ask that without joining, and joining takes devices away from a single process of SLURM.
    """
    try:
        from jax._src.clusters import ClusterEnv

        count = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, PATIENCE)[1]
    except (ImportError, AttributeError, TypeError):
        return 1
    return count or 1


def _name() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]


def _alone_on_stderr() -> None:
    """Python alone writes to stderr from here on: a thread of JAX's may be about to say the same in a page."""
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _last_word(line: str) -> None:
    """Lets the process end in a line, with exit code 2, where JAX aborts it: when the coordinator is gone, or a peer
    has been silent for too long. Of what JAX prints before, a page, nothing can be taken away: its callback for that
    cannot be called from Python. A handler of Python's own would not be reached before the process is gone.
    """
    said, stderr = f"{line}\n".encode(), os.dup(2)

    def end(number: int) -> None:
        del number
        os.write(stderr, said)
        os._exit(2)

    keep = _last_word.__dict__.setdefault("kept", [])  # C holds the address, Python has to hold the object
    keep.append(_HANDLER(end))
    system = ctypes.CDLL(None).signal
    system.argtypes, system.restype = [ctypes.c_int, _HANDLER], ctypes.c_void_p
    system(signal.SIGABRT, keep[-1])
