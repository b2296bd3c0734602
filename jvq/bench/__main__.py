"""Float, int8, packed, grouped and binary models beside bf16, onnxruntime and torch: time and memory.

  python -m jvq.bench                          ViT-B and DeiT-T, 1 and 8 images
  python -m jvq.bench --models=tiny --batches=1 --rounds=3       in half a minute
  python -m jvq.bench --only='jvq-w8*' --out=times.json          some variants

Medians of interleaved rounds, and speed over the float model's.
"""

import logging
import os
import sys
from pathlib import Path

from absl import app, flags

from jvq import usage
from jvq.mistakes import one_line

MODELS = flags.DEFINE_list("models", ["vit_b", "deit_t"], "Models: vit_b, deit_t, tiny")
BATCHES = flags.DEFINE_list("batches", ["1", "8"], "Images of one call, each size on its own")
ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each variant is timed", lower_bound=1)
ONLY = flags.DEFINE_list("only", [], "Variants, as globs ('jvq-*'); always with the float model beside them")
THREADS = flags.DEFINE_integer("threads", 2, "Cores for everything; 0: what each library takes", lower_bound=0)
MEMORY = flags.DEFINE_bool("memory", True, "Also measure peak memory, each variant in a process of its own")
OUT = flags.DEFINE_string("out", None, "A file for the numbers as JSON")


def main(argv: list[str]) -> None:
    """Measures what the flags say and shows the table."""
    if len(argv) > 1:
        raise ValueError(f"unexpected argument '{argv[1]}': options start with --")
    from jvq.bench.running import Settings, bench
    from jvq.bench.table import table, write
    from jvq.bench.variants import chosen
    from jvq.environment import environment
    from jvq.report import Console

    if not all(text.isdigit() and int(text) for text in BATCHES.value):
        raise ValueError(f"--batches: got {','.join(BATCHES.value)}, must be numbers of images")
    out = Path(OUT.value) if OUT.value else None
    if out is not None and not out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}")
    settings = Settings([int(text) for text in BATCHES.value], ROUNDS.value, THREADS.value, MEMORY.value)
    console, about = Console(), environment()
    command = " ".join(["python -m jvq.bench", *sys.argv[1:]])
    rows = bench(MODELS.value, chosen(ONLY.value), settings, console)
    console.out.print(table(rows))
    console.say(f"{command}; {about['device']}, jax {about['versions']['jax']}, {len(cores()) or '?'} cores")
    console.say("CPU: of all threads. speed: the float model's median over the variant's, of the same rounds.")
    if out is not None:
        write({"command": command, **about, "settings": settings._asdict(), "rows": rows}, out)


def cores() -> list[int]:
    """The processor cores that this process may run on, where the system says so."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(threads: int) -> None:
    """Keeps the process, and those that it starts, on that many of its cores. Before JAX counts them."""
    if threads and cores():
        os.sched_setaffinity(0, cores()[:threads])


def entry() -> None:
    """``python -m jvq.bench``: mistakes end in one line and exit code 2."""
    logging.getLogger("jax").setLevel(logging.WARNING)  # else every start tells which accelerators are not there

    def guarded(argv: list[str]) -> None:
        pin(THREADS.value)
        with one_line(ValueError):
            main(argv)

    names = ("models", "batches", "only", "rounds", "threads", "memory", "out")
    app.run(guarded, flags_parser=usage.reader(__doc__ or "", names))


if __name__ == "__main__":
    entry()
