"""Runs that are killed: small ones through everything that takes long, in processes that start from a warm one.

A process is forked from a server that has imported jax and jvq and has computed nothing, so that a run of some seconds
is a run and not an import. ``SIGKILL`` reaches it after so many seconds of processor time; then the same command is
started again.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SPEC = {"image": (8, 8), "channels": 1, "patch": 4, "dim": 16, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "classes": 3}
PREPROCESS = {"size": [8, 8], "resize": None, "interpolation": "bicubic", "mean": [0.5], "std": [0.25]}
COLOURED = {"model": SPEC | {"channels": 3}, "preprocess": PREPROCESS | {"mean": [0.5] * 3, "std": [0.25] * 3}}
QUICK = {"groups": 2, "start": "quantile", "mstep": "cover"}  # what compiles fast
ALLOCATION = {"allocation": "bops", "candidates": (1, 2), "allocation_rest": "float"}
TRAINED = {"batch": 24, "epochs": 2, "save_every": 15, "learning_rate": 3e-3}
STORED = {"distillation": "stored", "crops": 2, "bits": 3, "bin_strength": 1e-3, **TRAINED}
TABLE = {"seeds": 2}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {  # by name a method and what is set
    "calibration": ("igq", QUICK),
    "sweep": ("igq", QUICK | ALLOCATION | TABLE),
    "labels": ("vvtq", STORED),
    "training": ("supervised", {"model": SPEC, "preprocess": PREPROCESS, **TRAINED}),
}
SMALL = {"figures": False, "rows": {"six": {"name": "minmax", "bits": 6}}}
MORE: dict[str, tuple[str, dict[str, Any]]] = {  # the least that quantises; and out of folders of images
    "minmax": ("minmax", SMALL),
    "photos": ("minmax", SMALL),
    "photos_training": ("supervised", {**COLOURED, **TRAINED, "epochs": 32}),
}
EXPORT = "export"  #: a packed model as ONNX and as StableHLO
CONFIG = """
from jvq.config import config


def get_config(arg=None):
    import killing

    return killing.config_of(arg, {root!r})
"""
SERVED = ["jvq.main", "jvq.run", "jvq.sweep", "jvq.training", "orbax.checkpoint", "grain", "matplotlib.figure"]
TIMED = ("seconds", "command", "commit")  #: of a report, what two runs need not have alike: this checkout may change
LINGERS = 10.0  #: seconds that what a process has started may outlive it
TIMES = re.compile(r'"seconds": ?[\d.e-]+')


def config_of(name: str, root: str) -> Any:
    """The config of a run on the files in ``root``."""
    from jvq.config import config

    method, options = (RUNS | MORE)[name]
    photos = name.startswith("photos")
    file = "coloured.safetensors" if photos else "vit.safetensors"
    weights = {} if method == "supervised" else {"weights": f"{root}/{file}"}
    kind, folder = ("folder", f"{root}/photos") if photos else ("npz", root)
    data = {"name": kind, "dir": folder, "calibration": 8, "batch": 8 if photos else 64}
    return config(name, method, data=data, **{"figures": name == "calibration"} | weights | options)


def prepare(root: Path, images: int = 1100) -> None:
    """Writes the model, the data and the config file that the runs need."""
    rng = np.random.default_rng(0)
    _save(root / "vit.safetensors", SPEC, PREPROCESS, rng)
    for split, count in (("train", images), ("test", 200)):
        shown, labels = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8), rng.integers(0, 3, count)
        np.savez(root / f"{split}.npz", images=shown, labels=labels)
    (root / "kill.py").write_text(CONFIG.format(root=str(root)))


def prepare_photos(root: Path, images: int = 96) -> None:
    """Writes folders of so many images for training and for evaluation, and the model that is to see them."""
    from PIL import Image

    rng = np.random.default_rng(1)
    _save(root / "coloured.safetensors", COLOURED["model"], COLOURED["preprocess"], rng)
    for split in ("train", "test"):
        for i in range(images):
            path = root / "photos" / split / "abc"[i % 3] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def _save(path: Path, spec: dict[str, Any], preprocess: dict[str, Any], rng: np.random.Generator) -> None:
    import jax
    import jax.numpy as jnp

    from jvq.models import build
    from jvq.models.weights import Checkpoint, save

    model = build("vit", spec)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), model.shapes())
    save(Checkpoint(model, params, preprocess, {}), path)


def command(root: Path, name: str, workdir: Path) -> list[str]:
    """Module and arguments of a run."""
    if name != EXPORT:
        return ["jvq.main", f"--config={root}/kill.py:{name}", f"--workdir={workdir}", "--resume"]
    files = f"--onnx={workdir}/model.onnx", f"--stablehlo={workdir}/model.zip"
    return ["jvq.deploy", f"{root}/packed.safetensors", "--images=0", *files]


class Gate:
    """A stream that writes on, but at the first text with ``at`` in it says so and waits until it may."""

    def __init__(self, stream: Any, at: str, line: Connection) -> None:
        self.stream, self.at, self.line = stream, at, line

    def write(self, text: str) -> int:
        """Writes the text, then waits where it is the one."""
        done = self.stream.write(text)
        if self.at and self.at in text:
            self.at = ""
            self.line.send(None)
            self.line.recv()
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def child(module: str, args: list[str], log: str, at: str = "", line: Connection | None = None) -> None:
    """What the forked process does: the command, its output appended to ``log``; at the text ``at`` it waits."""
    os.setsid()  # what it starts is in its group
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[attr]
    if line is not None:
        from jvq import progress

        progress.PAUSE = 0.0  # a line for the first item of whatever is counted, not after 15 seconds
        sys.stdout = Gate(sys.stdout, at, line)  # type: ignore[assignment]
    sys.argv = [module, *args]
    if module == "jvq.main":
        from jvq import main

        main.entry()
    else:
        sys.modules.pop(module, None)  # else it is warned of
        runpy.run_module(module, run_name="__main__", alter_sys=True)


class Ended(NamedTuple):
    """How a process ended: its exit code, negative for a signal, what it said last, its processor seconds; who is left.

    ``left`` are the processes of its group that are still there.
    """

    code: int
    said: str
    seconds: float
    left: list[int]


class Server:
    """Starts processes, one at a time."""

    def __init__(self, served: list[str] = SERVED) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(served)

    def run(
        self,
        words: list[str],
        log: Path,
        after: float | None = None,
        number: int = signal.SIGKILL,
        at: tuple[str, Callable[[], Any]] | None = None,
    ) -> Ended:
        """A command to its end; with ``after`` a signal reaches it behind so many processor seconds.

        With ``at``, a text and a function, the function is called while the command waits where it has said the text.
        """
        before = log.stat().st_size if log.exists() else 0
        near, far = self.context.Pipe() if at else (None, None)
        process = self.context.Process(target=child, args=(words[0], words[1:], str(log), at[0] if at else "", far))
        process.start()
        assert process.pid is not None
        spent, sent = 0.0, False
        while process.exitcode is None:
            spent = max(spent, cpu_seconds(process.pid))
            if after is not None and spent >= after and not sent:
                os.kill(process.pid, number)
                sent = True
            if at and near and not sent and near.poll():
                sent = True
                at[1]()
                near.send(None)
            process.join(0.02)
        lines = log.read_text()[before:].strip().splitlines() if log.exists() else []
        assert process.exitcode is not None
        assert sent or not at, f"it never said '{at and at[0]}'"
        return Ended(process.exitcode, lines[-1].strip() if lines else "starting", spent, left(process.pid))


def left(leader: int) -> list[int]:
    """Who is still there of a group whose leader has ended, some seconds later."""
    until = time.monotonic() + LINGERS
    while (found := group(leader)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def group(leader: int) -> list[int]:
    """The processes of a group that are there, those that have ended and wait to be noticed left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
            found += [int(path.parent.name)] if int(of) == leader and state != "Z" else []
    return found


def cpu_seconds(pid: int) -> float:
    """Processor seconds of a process so far: unlike those of the clock they do not depend on who else computes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def result(workdir: Path) -> dict[str, str]:
    """By its name a digest of every file of a workdir, without times; of orbax's folders only which there are."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if "/steps/" in name:
            found[name.partition("/steps/")[0] + "/steps/" + name.partition("/steps/")[2].split("/")[0]] = ""
        elif path.is_file():
            found[name] = hashlib.sha256(_timeless(path)).hexdigest()[:12]
    return found


def _timeless(path: Path) -> bytes:
    if path.name == "report.json":
        report = json.loads(path.read_text())
        return json.dumps({k: v for k, v in report.items() if k not in TIMED}).encode()
    if path.name in ("report.md", "report.html"):  # the same as JSON, with times in sentences
        return b""
    return TIMES.sub("", path.read_text()).encode() if path.suffix == ".jsonl" else path.read_bytes()


class Chain(NamedTuple):
    """A run that was killed ``len(kills)`` times: what it had said last each time, and what is wrong in the end."""

    kills: list[str]
    wrong: list[str]


def whole(server: Server, root: Path, name: str, times: int = 2) -> tuple[dict[str, str], float]:
    """What a run comes to that nobody kills, and its processor seconds: where its programs are compiled already."""
    if name == EXPORT:
        whole(server, root, "minmax", 1)  # what is exported: it has static scales, as ONNX needs
    workdir = root / f"{name}_whole"
    for _ in range(times):
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir()
        ended = server.run(command(root, name, workdir), workdir.with_suffix(".log"))
        assert not ended.code, workdir.with_suffix(".log").read_text()
    if name == "minmax":
        shutil.copy(workdir / "packed.safetensors", root)
    return result(workdir), ended.seconds


def chain(server: Server, root: Path, name: str, workdir: Path, moments: list[float], whole: dict[str, str]) -> Chain:
    """The run killed after each of the seconds, then left alone, and compared with ``whole``."""
    workdir.mkdir()
    words, log, kills = command(root, name, workdir), workdir.with_suffix(".log"), []
    for moment in moments:
        ended = server.run(words, log, moment)
        if ended.code == -signal.SIGKILL:
            kills.append(ended.said)
        elif ended.code:
            return Chain(kills, [f"exit code {ended.code}: {ended.said}"])
    last = server.run(words, log)
    if last.code:
        return Chain(kills, [f"exit code {last.code}: {last.said}"])
    got = result(workdir)
    differ = [name for name in sorted({*got, *whole}) if got.get(name) != whole.get(name)]
    return Chain(
        kills, [f"{n}: {'missing' if n not in got else 'stray' if n not in whole else 'other'}" for n in differ]
    )


def moments(rng: random.Random, count: int, seconds: float) -> list[float]:
    """So many random moments of a run of that length."""
    return [rng.uniform(0.02, 1.0) * seconds for _ in range(count)]


def stages(kills: list[str]) -> str:
    """What was going on when a run was killed, most frequent first."""
    found = Counter(re.sub(r"[\d.,:(/].*|<.*| \.\.\.$", "", said).strip() or "starting" for said in kills)
    return ", ".join(f"{name} {count}" for name, count in found.most_common())
