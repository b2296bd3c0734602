"""One model after the other: every variant prepared, loaded, timed in turn with all others, then its memory."""

import importlib.util
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jvq.bench import table
from jvq.bench.bed import Bed, Prepared, Run, Variant, random
from jvq.bench.memory import Job, peak
from jvq.bench.timing import interleaved
from jvq.bench.variants import BASE
from jvq.core.calibrate import calibrate_all
from jvq.report import Console


class Settings(NamedTuple):
    """How to measure."""

    batches: Sequence[int] = (1, 8)
    rounds: int = 9
    threads: int = 2  # 0: what each library chooses
    memory: bool = True


def bench(models: Sequence[str], variants: Sequence[Variant], settings: Settings, console: Console) -> list[table.Row]:
    """A row for every model, batch and variant."""
    rows = []
    for name in models:
        with tempfile.TemporaryDirectory() as folder:
            console.say(f"{name}: random weights, calibrating")
            bed = Bed.of(name, Path(folder))
            found, skipped = prepare(bed, variants)
            for batch in settings.batches:
                rows += measured(bed, batch, variants, found, skipped, settings, console)
    return rows


def prepare(bed: Bed, variants: Sequence[Variant]) -> tuple[dict[str, Prepared], dict[str, str]]:
    """What every variant computes with, and of those that cannot be run the reason, by name."""
    there, found, skipped = [], {}, {}
    for v in variants:
        lacking = [package for package in v.needs if importlib.util.find_spec(package) is None]
        if lacking:
            skipped[v.name] = f"{' and '.join(lacking)} not installed"
        else:
            there.append(v)
    plans = [v.plan(bed.known) if v.plan else {} for v in there]
    states = calibrate_all(bed.model.forward, bed.params, bed.images, plans, bed.known)
    for v, plan, qstate in zip(there, plans, states, strict=True):
        try:
            found[v.name] = v.prepare(bed, plan, qstate)
        except (ValueError, NotImplementedError) as error:  # what it cannot express
            skipped[v.name] = " ".join(str(error).split())
    return found, skipped


def measured(
    bed: Bed,
    batch: int,
    variants: Sequence[Variant],
    found: Mapping[str, Prepared],
    skipped: Mapping[str, str],
    settings: Settings,
    console: Console,
) -> list[table.Row]:
    """The rows of one model at one batch size."""
    images = random(bed.model, batch, np.random.default_rng(1))
    runs: dict[str, Run] = {}
    load: dict[str, float] = {}
    for v in variants:
        if v.name in found:
            console.say(f"{bed.name}, batch {batch}: loading {v.name}")
            runs[v.name], load[v.name] = _loaded(v, found[v.name], images, settings.threads)
    rounds = console.track(range(settings.rounds), f"{bed.name}, batch {batch}: timing")
    times = interleaved(runs, images, rounds)
    runs.clear()  # before other processes need the memory
    rows = []
    for v in variants:
        if v.name in skipped:
            rows.append(table.row(bed.name, batch, v.name, v.does, skipped=skipped[v.name]))
            continue
        numbers: dict[str, Any] = table.timed(times[v.name], times[BASE])
        numbers |= {"bytes": found[v.name].nbytes, "load_s": load[v.name]}
        if settings.memory:
            console.say(f"{bed.name}, batch {batch}: peak memory of {v.name}")
            numbers["peak_bytes"] = peak(Job(v.name, images.shape, settings.threads), found[v.name])
        rows.append(table.row(bed.name, batch, v.name, v.does, **numbers))
    return rows


def _loaded(variant: Variant, prepared: Prepared, images: np.ndarray, threads: int) -> tuple[Run, float]:
    """The variant called once, and the seconds from its weights to its first result."""
    start = time.perf_counter()
    run = variant.start(prepared.what, threads)
    run(images)
    return run, time.perf_counter() - start
