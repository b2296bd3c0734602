"""Reading ahead: in threads of this process, or in processes of their own; what comes out is the same, in order.

Pillow decodes and resizes outside the interpreter's lock, so threads do where there are few cores. Processes leave this
one to the model, and what is done under the lock is then done by several. A batch comes back through shared memory
(``/dev/shm``); of each worker up to three are under way.
"""

import gc
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from jvq.data.records import Gathers, Source

THREADS = 4  #: that read; also the cores up to which they are enough
MOST = 16  #: processes that are chosen by themselves
AUTOMATIC = -1  #: as many as the cores ask for
DIED = r"Worker process was terminated unexpectedly with exit code (-?\d+)"  # grain's words


def processes(workers: int, source: Source, batches: int) -> int:
    """How many processes read ``batches`` batches: ``workers``, but no more than batches, and none out of memory.

    -1 leaves it to the machine: threads do on up to four cores, else a process for each core but one, at most 16.
    """
    if workers < AUTOMATIC:
        raise ValueError(f"loader: workers must be a number of processes, 0 (threads) or -1 (chosen), got {workers}")
    if isinstance(source, Gathers):
        return 0
    if workers == AUTOMATIC:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = 0 if cores <= THREADS else min(cores - 1, MOST)
    return min(workers, batches)


def described(workers: int, source: Source) -> str:
    """How images are read, in words."""
    if isinstance(source, Gathers):
        return "from memory"
    return f"in {workers} processes" if workers else f"in {THREADS} threads"


def ahead(made: Any, source: Source, workers: int) -> Iterator[Any]:
    """The elements of the ``grain.MapDataset`` in order, made ahead; what is left early stops its threads or processes.

    ``ValueError``: a process died. An error that was raised in one comes out as it was.
    """
    import grain

    if workers:
        _let_flags_be_read()
        dataset = made.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        dataset = dataset.mp_prefetch(grain.multiprocessing.MultiprocessingOptions(workers, 1), _begin)
    else:
        threads = 0 if isinstance(source, Gathers) else THREADS
        dataset = made.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    elements, element = iter(dataset), None
    try:
        while True:
            try:
                element = next(elements)
            except StopIteration:
                return
            except RuntimeError as error:
                if found := re.search(DIED, str(error)):
                    raise ValueError(_died(int(found[1]), workers, source)) from error
                raise
            yield jax.tree.map(_own, element) if workers else element
    except ValueError as error:
        if workers:
            error.__traceback__ = None  # grain's frames hold what was read ahead
        raise
    finally:
        elements.close()
        if workers:  # of what was read ahead some is in cycles: the shared memory would outlive this process
            del elements, element
            gc.collect()


def _let_flags_be_read() -> None:
    """grain asks its own flags, of which absl tells nothing before a command line was parsed, as in a notebook."""
    if not flags.FLAGS.is_parsed():
        for name in flags.FLAGS:
            if name.startswith("grain"):
                flags.FLAGS[name].present = 1  # its default counts


def _own(leaf: Any) -> Any:
    """An array out of shared memory as a plain one, so that the former is free at once."""
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


def _begin(number: int, count: int) -> None:
    """What a worker does first: Ctrl-C is its parent's to answer, and it ends when its parent does, however that was.

    Otherwise the workers of a killed process would wait for ever.
    """
    del number, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _died(code: int, workers: int, source: Source) -> str:
    """Why reading ended, in a line."""
    what = f"loader: one of {workers} processes that read '{source.name}' died"
    if code >= 0:
        return f"{what} with exit code {code}; what it said stands above"
    name = signal.Signals(-code).name if -code in {*signal.Signals} else str(-code)
    why = {
        "SIGKILL": ": the system does so where memory runs out; fewer workers or a smaller batch need less",
        "SIGBUS": ": /dev/shm is full; fewer workers or a smaller batch need less",
    }
    return f"{what} of {name}{why.get(name, '')}"
