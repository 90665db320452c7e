"""Compile kernels for GPUs that are not here and read what the compiler made of them: registers, spills, instructions.

Triton reads its mode (interpret or compile) when a kernel is decorated, so kernels are compiled in processes of their own, two
for all test files of a session: each prints what the files' ``compile_kernels`` return. Registers and spills are what ptxas
says, instructions those of the PTX that it is given: tools that read them from the binary take as long as the compiler.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90)

Report = dict[str, dict[str, Any]]
# Sixteen bytes in one instruction, into registers or asynchronously into shared memory.
WIDE_LOAD = r"\bld\.global\S*\.v4\.b32|\bld\.global\S*\.v2\.b64|\bcp\.async\.cg"

# Of so many processes that compile the same list this is which; every process takes its turns.
SHARE, SHARES = int(os.environ.get("AOT_SHARE", 0)), int(os.environ.get("AOT_SHARES", 1))
_turns = itertools.count()


def interpreted(script: str, folder: Path) -> Any:
    """Run a test file as a program in the interpreter's mode, and read the JSON that it prints."""
    return json.loads(_finished(_started([script], folder, TRITON_INTERPRET="1")))


def compiled(modules: Sequence[str], folder: Path) -> dict[str, Report]:
    """What the ``compile_kernels`` of test modules return, by module: two processes share the kernels, caching in ``folder``."""
    started = []
    for share in range(2):
        own = folder / str(share)
        own.mkdir()
        settings = {"AOT_SHARE": str(share), "AOT_SHARES": "2", "TRITON_DUMP_PTXAS_LOG": "1", "TRITON_ALWAYS_COMPILE": "1"}
        started.append(_started([__file__, *modules], own, **settings))
    one, other = (json.loads(_finished(process)) for process in started)
    return {module: merged(one[module], other[module]) for module in modules}


def _started(arguments: Sequence[str], folder: Path, **settings: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder), **settings}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)


def _finished(process: subprocess.Popen[str]) -> str:
    """The last line that a program printed."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out.splitlines()[-1]


def merged(one: Report, other: Report) -> Report:
    """Two processes' reports, each without what the other compiled."""
    assert list(one) == list(other)
    assert all(bool(one[name]) != bool(other[name]) for name in one)
    return {name: one[name] or other[name] for name in one}


def compile_triton(
    kernel: Any,
    arguments: Mapping[str, str],
    constants: Mapping[str, Any],
    arch: int,
    *,
    aligned: Sequence[str] = (),
    warps: int = 4,
    stages: int = 3,
) -> dict[str, int]:
    """One configuration of a Triton kernel; nothing where it is another process's turn.

    Args:
        arguments: types, ``{"x_ptr": "*fp32"}``; an argument that is named in neither mapping is ``i32``.
        constants: values of constexpr arguments, and of integers that the JIT would specialise because they are 1.
        aligned: arguments that the JIT would find divisible by 16. All pointers are taken to be.
    """
    made = build_triton(kernel, arguments, constants, arch, aligned=aligned, warps=warps, stages=stages)
    if made is None:
        return {}
    ptx, used, shared = made
    double = len(re.findall(r"\bmma\.sync\S*\.f64", ptx))
    return {
        "registers": used["registers"],
        "spills": used["spills"],
        "shared": shared,
        "tensor": len(re.findall(r"\b(?:mma\.sync|wgmma\.mma_async)\b", ptx)) - double,
        "tensor64": double,
        "wide loads": len(re.findall(WIDE_LOAD, ptx)),
    }


def build_triton(
    kernel: Any,
    arguments: Mapping[str, str],
    constants: Mapping[str, Any],
    arch: int,
    *,
    aligned: Sequence[str] = (),
    warps: int = 4,
    stages: int = 3,
) -> tuple[str, dict[str, int], int] | None:
    """The PTX of a configuration, its registers and bytes spilled, and its shared bytes; None where it is another's turn.

    Arguments as of :func:`compile_triton`.
    """
    if next(_turns) % SHARES != SHARE:
        return None
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else arguments.get(name, "i32") for name in names}
    even = [name for name in names if signature[name].startswith("*") or (name in aligned and name not in constants)]
    source = ASTSource(kernel, signature, dict(constants), {(names.index(name),): [["tt.divisibility", 16]] for name in even})
    options = {"num_warps": warps, "num_stages": stages}
    with contextlib.redirect_stdout(io.StringIO()) as log:
        built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return built.asm["ptx"], usage(log.getvalue()), built.metadata.shared


def usage(log: str) -> dict[str, int]:
    """Registers and spilled bytes, the stack among them, of one kernel of which ptxas tells."""
    spilled = re.findall(r"(\d+) bytes (?:stack frame|spill (?:stores|loads))", log)
    assert spilled, log
    return {"registers": int(re.findall(r"Used (\d+) registers", log)[0]), "spills": sum(map(int, spilled))}


def nvcc() -> str | None:
    """The CUDA compiler on PATH or in its usual place."""
    usual = Path("/usr/local/cuda/bin/nvcc")
    return shutil.which("nvcc") or (str(usual) if usual.is_file() else None)


def compile_cuda(source: Path, arch: int, folder: Path) -> Report:
    """Every kernel of a CUDA source through nvcc: registers, bytes spilled, static shared bytes."""
    compiler = nvcc()
    assert compiler is not None
    target = folder / f"{source.stem}_{arch}.cubin"
    command = [compiler, "-std=c++17", f"-arch=sm_{arch}", "-cubin", "--resource-usage", "-Werror", "all-warnings", str(source)]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels: Report = {}
    for part in re.split(r"Compiling entry function '", done.stdout + done.stderr)[1:]:
        shared = re.findall(r"(\d+) bytes smem", part)
        kernels[part[: part.index("'")]] = usage(part) | {"shared": int(shared[0]) if shared else 0}
    return kernels


if __name__ == "__main__":
    print(json.dumps({name: importlib.import_module(name).compile_kernels() for name in sys.argv[1:]}))
