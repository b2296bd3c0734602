"""Checkpoints of a training run, by orbax: written beside the training, whole or not at all; the latest and the best.

What a checkpoint is of (model, recipe, data, options) stands beside it, and a run that is something else is refused.
Of many processes each writes what it holds, all into the leading one's folder, which all have to see.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jvq.core import files, hosts, reading

ABOUT = "about.json"  #: what the checkpoints are of
STEPS = "steps"  #: folder of orbax's
SHOWN = 6  #: differences that an error names


class Keeper:
    """The checkpoints of one run in one folder: the two latest and, where they are ``scored``, the one of the best.

    ``about`` says what is trained, in JSON values. A folder of something else raises ``ValueError`` with what differs.
    A save that was interrupted leaves the earlier checkpoints as they were.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], every: int = 500, *, scored: bool = False) -> None:
        import orbax.checkpoint as ocp  # takes seconds, so only who trains pays
        from orbax.checkpoint import checkpoint_managers as policies

        if every < 1:
            raise ValueError(f"checkpoints: every {every} steps, must be at least 1")
        self.folder, self.every, self.scored = Path(hosts.agreed(str(folder.resolve()))), every, scored
        hosts.led(lambda: _claim(self.folder, about))
        folder.mkdir(parents=True, exist_ok=True)  # where this process has one of its own, for what lies beside
        kept: list[Any] = [policies.LatestN(n=2)]
        if scored:
            kept.append(policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=_score if scored else None,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self.args = ocp.args
        try:
            self.manager = ocp.CheckpointManager(self.folder / STEPS, options=options)
        except Exception as error:  # of all kinds, where a file of orbax's is damaged
            raise ValueError(f"checkpoints in {self.folder} cannot be read: {reading.line(error)}") from error

    def save(self, step: int, tree: Any, score: float | None = None) -> None:
        """Keeps ``tree`` as it is at ``step``; returns as soon as the arrays are copied.

        ``ValueError``: it cannot be written, or the folder was taken away, with what lies beside; orbax would make it.
        """
        self._there()
        metrics = None if score is None else {"score": float(score)}
        with self._writing():
            self.manager.save(step, args=self.args.StandardSave(tree), metrics=metrics)

    def restored(self, like: Any, step: int | None = None) -> Any:
        """The tree of the latest checkpoint, or of ``step``, in the form of ``like``; ``like`` where there is none.

        ``ValueError``: it is damaged.
        """
        step = self.manager.latest_step() if step is None else step
        if step is None:
            return like
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(x)), like)
        try:
            return self.manager.restore(step, args=self.args.StandardRestore(shapes))
        except Exception as error:  # orbax and tensorstore raise of all kinds where a file of theirs is damaged
            raise ValueError(f"checkpoints: {self.folder / STEPS / str(step)}: {reading.line(error)}") from error

    def best(self) -> int | None:
        """The step of the highest score; None where there are none."""
        return self.manager.best_step() if self.scored else None

    def last(self) -> Path | None:
        """The folder of the latest whole checkpoint."""
        self.wait()
        step = self.manager.latest_step()
        return None if step is None else self.folder / STEPS / str(step)

    def wait(self) -> None:
        """Returns when all that was saved is on disk. ``ValueError``: it cannot be, for want of space perhaps."""
        with self._writing():
            self.manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a full disk is an OSError, or one of tensorstore's own with a page of text
            self._there()
            known = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
            why = next((words for words in known if words in str(error)), reading.line(error))
            raise ValueError(f"checkpoints: {self.folder} cannot be written: {why}") from error

    def _there(self) -> None:
        if not (self.folder / ABOUT).exists():
            raise ValueError(f"checkpoints: {self.folder} is not there any more")

    def close(self) -> None:
        """Ends the threads that write."""
        with self._writing():
            self.manager.close()


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]


def _sharding(x: Any) -> Any:
    return x.sharding if isinstance(x, jax.Array) else None


def _claim(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes what the checkpoints are of; where there are some, compares. ``ValueError``: they are of another run."""
    path, wanted = folder / ABOUT, json.loads(json.dumps(about))
    if any(step.name.isdigit() for step in (folder / STEPS).glob("*")):
        if not path.exists():
            raise ValueError(f"checkpoints in {folder}: no {ABOUT} says what they are of; delete them")
        stored = reading.json_value(path.read_bytes(), f"checkpoints in {folder}: {ABOUT} is not JSON")
        changed = differences(stored, wanted)
        if changed:
            shown = "; ".join(changed[:SHOWN])
            more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise ValueError(
                f"checkpoints in {folder} are of another run, use another folder or delete it: {shown}{more}"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(files.cannot(folder, error, "checkpoints: ")) from error
    files.replace(path, json.dumps(wanted, indent=1), "checkpoints: ")


def differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """What differs between two trees of JSON values, a line each: ``method.bits: stored 4, wanted 3``."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = list(dict.fromkeys([*stored, *wanted]))
        parts = [differences(stored.get(k), wanted.get(k), f"{name}.{k}" if name else k) for k in keys]
        return [line for part in parts for line in part]
    return [] if stored == wanted else [f"{name}: stored {stored!r}, wanted {wanted!r}"]
