"""Compiles real cases of a kernel for a device that is not here, and writes a line of JSON about each.

    python tests/aot/compile_cases.py "H200" int8_matmul /dev/stdout [INDEX...]

INDEX counts the kernel's real cases; all of them without one. It runs in a process of its own, where nothing has
imported jax yet: a kernel that a compiler cannot take may end the process. A line ``begun`` goes before each case, so
that what reads the lines knows which one that was. ``PTX=FILE`` in the environment keeps the PTX of the last case.
"""

import ctypes
import functools
import importlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEVICES = tomllib.loads((HERE / "devices.toml").read_text("utf-8"))
IMPLEMENTATION = {device: impl for impl, devices in DEVICES.items() for device in devices}
CALLS = {"pallas_tpu": "tpu_custom_call", "pallas_gpu": "mosaic_gpu"}  # what a Pallas kernel is in a compiled program

# Tensor instructions of PTX, and products of StableHLO, of 8-bit integers and of floats.
PTX = re.compile(r"\b(?:wgmma\.mma_async|mma)\.sync\.[\w.:]+")
PRODUCT = re.compile(r"dot_general.*: \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\)")


def toolkit() -> Path:
    """The folder with ``bin/ptxas`` and ``nvvm/libdevice`` of the packages nvidia-cuda-nvcc and nvidia-nvvm."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(place) / "cu13" for place in (found.submodule_search_locations or ())] if found else []
    return next((folder for folder in folders if (folder / "bin" / "ptxas").exists()), Path("no CUDA toolkit"))


def prepare() -> None:
    """The environment that jax, libtpu and the CUDA plugin read when they are imported."""
    cuda = toolkit()
    os.environ |= {
        "JAX_PLATFORMS": "cpu",  # what this process computes with; compilers need no device
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is kept is not compiled
        "TPU_SKIP_MDS_QUERY": "1",  # libtpu: do not ask a cloud which machine this is
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes: none of them has the chip that the lock is for
        "TPU_STDERR_LOG_LEVEL": "3",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # no driver, no versions to check
        "MOSAIC_GPU_DUMP_PTX": "1",  # to standard output
        "XLA_FLAGS": f"--xla_gpu_cuda_data_dir={cuda} --xla_gpu_autotune_level=0",  # there is nothing to tune on
        "PATH": f"{cuda / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def target(device: str) -> Any:
    """A device to compile for, in JAX's words."""
    from jax.experimental.topologies import get_topology_desc

    impl = IMPLEMENTATION[device]
    name = DEVICES[impl][device]
    if impl == "pallas_tpu":
        return get_topology_desc(platform="tpu", topology_name=name).devices[0]
    described = (HERE / name).read_text("utf-8")
    return get_topology_desc(platform="cuda", topology="1x1x1", target_config=described).devices[0]


def abstract(arrays: Any, sharding: Any = None) -> Any:
    """Shapes and dtypes in place of the operands, on the device."""
    import jax
    import numpy as np

    def struct(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)

    return jax.tree.map(struct, arrays)


def products(stablehlo: str) -> list[str]:
    """``"int8"`` or ``"float"`` for each product of a program in StableHLO; what is neither is left out."""
    pairs = [match.groups() for match in PRODUCT.finditer(stablehlo)]
    return [
        "int8" if left == right == "i8" else "float"
        for left, right in pairs
        if left == right == "i8" or re.fullmatch(r"b?f\d+", left)
    ]


def instructions(ptx: str) -> dict[str, int]:
    """How often each tensor instruction stands in PTX, by its types: ``{"wgmma s32.s8.s8": 8}``."""
    counts: dict[str, int] = {}
    for name in PTX.findall(ptx):
        types = [part for part in name.split(".") if re.fullmatch(r"[su]\d+|b?f\d+|tf32|e\dm\d\w*|b1", part)]
        key = f"{name.split('.')[0]} {'.'.join(types)}"
        counts[key] = counts.get(key, 0) + 1
    return counts


@contextmanager
def standard_output() -> Iterator[list[str]]:
    """A list that holds, afterwards, what was printed to file descriptor 1, from whichever language."""
    flush = ctypes.CDLL(None).fflush
    printed: list[str] = []
    with tempfile.TemporaryFile() as kept:
        before = os.dup(1)
        flush(None)
        os.dup2(kept.fileno(), 1)
        try:
            yield printed
        finally:
            flush(None)
            os.dup2(before, 1)
            os.close(before)
            kept.seek(0)
            printed.append(kept.read().decode(errors="replace"))


def compile_case(op: str, impl: str, case: Any, device: Any) -> dict[str, Any]:
    """What is in the compiled program: the products that it stands for, the tensor instructions that compute them."""
    import jax
    import numpy as np

    implementations = importlib.import_module(f"jvq.kernels.{op}").IMPLEMENTATIONS
    operands = case.arrays(np.random.default_rng(0))
    run, plain = (functools.partial(implementations[name], **case.static) for name in (impl, "xla"))
    placed = abstract(operands, jax.sharding.SingleDeviceSharding(device))
    here = jax.sharding.Mesh([device], "x").abstract_mesh  # where Pallas looks up what the chip can do
    with jax.sharding.use_abstract_mesh(here), standard_output() as printed:
        program = jax.jit(run).lower(**placed).compile().as_text() or ""
    (ptx,) = printed
    if "PTX" in os.environ:
        Path(os.environ["PTX"]).write_text(ptx, "utf-8")
    return {
        "kernels": program.count(f'custom_call_target="{CALLS[impl]}'),
        "products": products(jax.jit(plain).lower(**abstract(operands)).as_text()),
        "instructions": instructions(ptx),
        "ptx": len(ptx),
    }


def main(device: str, op: str, results: str, *indices: str) -> None:
    prepare()
    impl = IMPLEMENTATION[device]
    cases = [case for case in importlib.import_module(f"jvq.kernels.{op}").CASES if case.real]
    chip = target(device)
    with open(results, "a", encoding="utf-8") as out:

        def say(**line: Any) -> None:
            print(json.dumps(line), file=out, flush=True)

        for index in map(int, indices or range(len(cases))):
            say(index=index, outcome="begun")
            start = time.perf_counter()
            try:
                line = {"outcome": "compiled", "impl": impl, **compile_case(op, impl, cases[index], chip)}
            except NotImplementedError as e:
                line = {"outcome": "declined", "why": str(e)}
            except Exception as e:  # whatever a compiler raises is what there is to report
                line = {"outcome": "failed", "why": f"{type(e).__name__}: {e}"[:2000]}
            say(index=index, seconds=round(time.perf_counter() - start, 2), **line)


if __name__ == "__main__":
    main(*sys.argv[1:])
