"""Runs of several processes, of which one is killed; each starts from the warm one of :mod:`killing`."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import killing

SECONDS = 200  #: after which what still runs is killed, and the test has failed


def child(args: list[str], log: str) -> None:
    """What a process does: its part of the run; in the end it waits for the others, as when an interpreter ends."""
    import jax

    try:
        killing.child("jvq.main", args, log)
    finally:
        jax.distributed.shutdown()


def started(server: killing.Server, args: list[str], logs: list[Path]) -> list:
    """The processes of a run, as many as there are files for what they say."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        where = f"localhost:{listener.getsockname()[1]}"
    found = []
    for i, log in enumerate(logs):
        joining = [f"--coordinator={where}", f"--processes={len(logs)}", f"--process={i}"] if len(logs) > 1 else []
        found.append(server.context.Process(target=child, args=([*args, *joining], str(log))))
        found[-1].start()
    return found


def ended(processes: list, there: Callable[[], bool] | None = None, killed: int = 0) -> list[int]:
    """The exit codes of all; as soon as something is ``there``, the one that is to be ``killed`` is no more."""
    until = time.monotonic() + SECONDS
    try:
        while any(process.exitcode is None for process in processes):
            if there is not None and there():
                processes[killed].kill()
                there = None
            processes[0].join(0.01)
            assert time.monotonic() < until, "it hangs"
    finally:
        for process in processes:
            process.kill()
    assert there is None, "what it was to be killed at never came"
    return [process.exitcode for process in processes]
