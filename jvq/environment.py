"""Where a result was made: command, commit, versions, device."""

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Commit, versions and device."""
    packages = ("jvq", "jax", "jaxlib", "flax", "numpy", "grain")
    versions = {"python": platform.python_version()} | {name: _version(name) for name in packages}
    devices = jax.devices()
    device = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
    return {"commit": _commit(), "versions": versions, "device": device}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that jvq runs from, with ``-dirty`` where it has changes; None outside one."""
    here = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != here.parent:
        return None
    return (git("rev-parse", "HEAD") or "none") + ("-dirty" if git("status", "--porcelain") else "")


def command_line() -> str:
    """The command that started this process."""
    return f"python -m jvq.main {shlex.join(sys.argv[1:])}".rstrip()
