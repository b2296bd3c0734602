"""Processes of their own for the scripts of this folder: started together, ended together, never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 420  #: after which what still runs is killed, and the test has failed
CLUSTERS = ("SLURM_", "OMPI_", "KUBERNETES_")  #: of which JAX would find the others


def address():
    """A port that nobody listens to just now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return f"localhost:{listener.getsockname()[1]}"


def started(args, devices=1, **more):
    """A process in a session of its own, so that all that it started can be killed with it."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    env = {name: x for name, x in env.items() if not name.startswith(CLUSTERS)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *args], env=env, start_new_session=True, **pipes, **more)


def ended(processes, seconds=SECONDS):
    """(exit code, stdout, stderr) of each; a hang is an error, and nothing stays behind."""
    until, found = time.monotonic() + seconds, []
    try:
        for process in processes:
            out, err = process.communicate(timeout=max(1.0, until - time.monotonic()))
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return found


def together(args, number, seconds=SECONDS, devices=1):
    """What comes of a script with its arguments on so many processes, told where the first is and which each is."""
    where = address()
    return ended([started([*args, where, str(number), str(i)], devices) for i in range(number)], seconds)
