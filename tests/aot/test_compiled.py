"""Every Pallas kernel compiles for the devices of ``devices.toml``, not here, and multiplies in integers there.

    pytest -m aot tests/aot

in an environment with the compilers: ``pip install -e '.[test,aot]'``. Lowering is not compiling: what does not fit on
chip and what a device cannot do shows only here. A process of its own compiles, since a bad kernel may end it.
"""

import importlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jvq.kernels

SCRIPT = Path(__file__).with_name("compile_cases.py")
spec = importlib.util.spec_from_file_location("compile_cases", SCRIPT)
compile_cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compile_cases)

PACKAGES = ("libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm")
LIMIT = 600  # seconds that one process may take
KERNELS = {
    found.name: importlib.import_module(f"jvq.kernels.{found.name}")
    for found in pkgutil.iter_modules(jvq.kernels.__path__)
    if found.ispkg
}
REAL = {op: [case for case in getattr(kernel, "CASES", ()) if case.real] for op, kernel in KERNELS.items()}
TARGETS = [
    (op, device)
    for op, kernel in KERNELS.items()
    for device, impl in compile_cases.IMPLEMENTATION.items()
    if impl in kernel.IMPLEMENTATIONS
]


def missing():
    """The packages that compile and are not installed."""
    installed = {dist.name for dist in metadata.distributions()}
    return [name for name in PACKAGES if name not in installed]


def run(device, op, indices, results):
    """The exit status and the last words of a process that compiles some cases; its lines go to ``results``."""
    command = [sys.executable, str(SCRIPT), device, op, str(results), *map(str, indices)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, errors="replace")
    except subprocess.TimeoutExpired:
        return f"took more than {LIMIT} s", ""
    said = [line for line in ended.stderr.splitlines() if line.strip()]
    fatal = [line for line in said if re.match(r"F\d{4} ", line)]  # how libtpu and XLA say why they end the process
    return f"ended with {ended.returncode}", " | ".join(fatal or said[-3:])


def settled(lines, indices, status, said):
    """``{index: line}`` of the cases that a process settled: the one in which it ended has failed.

    A process compiles equal kernels once, and prints nothing the second time: such a case has to be alone in one.
    """
    done = {line["index"]: line for line in lines if line["outcome"] != "begun"}
    if len(done) < len(indices):
        at = next(index for index in indices if index not in done)
        done[at] = {"index": at, "outcome": "failed", "seconds": 0, "why": f"the process {status}: {said}"}
    return {index: line for index, line in done.items() if len(indices) == 1 or not is_silent(line)}


def is_silent(line):
    """Whether a GPU's kernel was compiled without its PTX being printed."""
    return line["outcome"] == "compiled" and line["kernels"] and not line["ptx"] and line["impl"] == "pallas_gpu"


def compiled(device, op, folder):
    """A line for each real case of a kernel, in their order, whatever becomes of the processes."""
    done, together = {}, len(REAL[op])
    while left := [index for index in range(len(REAL[op])) if index not in done]:
        results = folder / f"{len(list(folder.iterdir()))}.jsonl"
        results.touch()
        status, said = run(device, op, left[:together], results)
        lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
        new = settled(lines, left[:together], status, said)
        done, together = done | new, len(left) if new else 1
    return [done[index] for index in range(len(REAL[op]))]


def complaint(line):
    """What is wrong with a case; nothing where it compiled to what it should, or was declined."""
    if line["outcome"] != "compiled":
        return line["why"] if line["outcome"] == "failed" else ""
    if not line["kernels"]:
        return "there is no Pallas kernel in the compiled program"
    if is_silent(line):
        return "the compiler printed no PTX"
    if line["impl"] != "pallas_gpu" or "int8" not in line["products"]:
        return ""
    types = [key.split()[1].split(".") for key in line["instructions"]]
    if not any(t[0] == "s32" and {*t[1:3]} <= {"s8", "u8"} for t in types):
        return f"no integer tensor instructions in the PTX, but {line['instructions'] or 'none at all'}"
    if "float" not in line["products"] and any(t[0] != "s32" for t in types):
        return f"all its products are of integers, but some are in floats in the PTX: {line['instructions']}"
    return ""


def described(line, what):
    """A line of the list at the end."""
    made = ", ".join(f"{count} {name}" for name, count in line.get("instructions", {}).items())
    return "; ".join(filter(None, [f"{what}: {line['outcome']}, {line['seconds']:.1f} s", made, line.get("why")]))


@pytest.mark.aot
def test_the_compilers_are_installed():
    if lacking := missing():
        pytest.fail(f"{', '.join(lacking)} not installed here: pip install -e '.[test,aot]'", pytrace=False)
    versions = {metadata.version(name) for name in ("jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt")}
    assert len(versions) == 1, f"the CUDA plugin and jaxlib are of different versions: {versions}"
    assert (compile_cases.toolkit() / "nvvm" / "libdevice" / "libdevice.10.bc").exists()


@pytest.mark.aot
def test_every_kind_of_device_has_kernels():
    assert {compile_cases.IMPLEMENTATION[device] for _, device in TARGETS} == set(compile_cases.DEVICES)
    assert all(REAL.values())


@pytest.mark.aot
@pytest.mark.skipif(bool(missing()), reason="the compilers are not installed")
@pytest.mark.parametrize(("op", "device"), TARGETS)
def test_a_kernel_compiles(op, device, tmp_path, record_property):
    lines, wrong = compiled(device, op, tmp_path), []
    for case, line in zip(REAL[op], lines, strict=True):
        record_property("compiled", described(line, f"{op}, {case.name}, {device}"))
        if says := complaint(line):
            wrong.append(f"{case.name}: {says}")
    assert not wrong, "\n".join(["", *wrong])
    assert any(line["outcome"] == "compiled" for line in lines), "it declines every real case"


# What is judged by, in the ordinary tests too

LINE = {
    "index": 0,
    "outcome": "compiled",
    "impl": "pallas_gpu",
    "seconds": 1,
    "kernels": 1,
    "products": ["int8"],
    "instructions": {},
    "ptx": 99,
}
WGMMA = "{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {%r9}, %rd4, %rd5, p; }"


def test_tensor_instructions_are_counted_by_their_types():
    ptx = f"{WGMMA}\n{WGMMA}\nmma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {{%r1}}\nwgmma.fence.sync.aligned;"
    ptx += "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}\nwgmma.commit_group.sync.aligned;\n"
    counts = {"wgmma s32.s8.s8": 2, "mma s32.s8.u8.s32": 1, "wgmma f32.bf16.bf16": 1}
    assert compile_cases.instructions(ptx) == counts


def test_products_are_told_apart_by_their_operands():
    def f(x, w, y):
        z = jnp.einsum("mk,nk->mn", x, w, preferred_element_type=jnp.int32)
        return z, y @ y, jax.jit(lambda a: a @ a)(y.astype(jnp.bfloat16)), z @ z

    x = jax.ShapeDtypeStruct((4, 4), jnp.int8)
    text = jax.jit(f).lower(x, x, jax.ShapeDtypeStruct((4, 4), jnp.float32)).as_text()
    assert sorted(compile_cases.products(text)) == ["float", "float", "int8"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "no integer tensor instructions in the PTX, but none"),
        ({"instructions": {"wgmma f32.bf16.bf16": 4}}, "no integer tensor instructions .*bf16"),
        ({"instructions": {"wgmma s32.s8.s8": 4, "wgmma f32.bf16.bf16": 1}}, "some are in floats"),
        ({"instructions": {"wgmma s32.s8.s8": 4}, "kernels": 0}, "no Pallas kernel"),
        ({"instructions": {"wgmma s32.s8.s8": 4}, "ptx": 0}, "printed no PTX"),
        ({"outcome": "failed", "why": "shared memory"}, "shared memory"),
        ({"instructions": {"wgmma s32.s8.s8": 4}}, "^$"),
        ({"instructions": {"mma s32.s8.s8.s32": 4}}, "^$"),
        ({"instructions": {"wgmma s32.s8.s8": 4, "wgmma f32.bf16.bf16": 1}, "products": ["int8", "float"]}, "^$"),
        ({"products": []}, "^$"),
        ({"impl": "pallas_tpu", "ptx": 0}, "^$"),
        ({"outcome": "declined", "why": "too wide"}, "^$"),
    ],
)
def test_a_case_is_judged(change, says):
    assert re.search(says, complaint(LINE | change))


def test_a_process_that_ends_fails_the_case_it_was_at_and_no_other():
    lines = [{"index": 3, "outcome": "begun"}, LINE | {"index": 3}, {"index": 5, "outcome": "begun"}]
    done = settled(lines, [3, 5, 6], "ended with -11", "Segmentation fault")
    assert {index: line["outcome"] for index, line in done.items()} == {3: "compiled", 5: "failed"}
    assert done[5]["why"] == "the process ended with -11: Segmentation fault"
    assert settled([], [0], "ended with 1", "")[0]["outcome"] == "failed"
    assert settled(lines[:2], [3], "ended with 0", "") == {3: LINE | {"index": 3}}
    silent = LINE | {"ptx": 0}
    assert settled([LINE, silent | {"index": 1}], [0, 1], "ended with 0", "") == {0: LINE}
    assert settled([silent], [0], "ended with 0", "") == {0: silent}
