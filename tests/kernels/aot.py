"""Compile kernels for GPUs that are not here and read what the compiler made of them: registers, spills, instructions.

Triton reads its mode (interpret or compile) when a kernel is decorated, so a test file compiles in a process of its own: run as a
program it prints what it found, and its tests read that from :func:`run_apart`.
"""

from __future__ import annotations

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

Report = dict[str, dict[str, int]]

# Of so many processes that compile the same list this is which; every process takes its turns.
SHARE, SHARES = int(os.environ.get("AOT_SHARE", 0)), int(os.environ.get("AOT_SHARES", 1))
_turns = itertools.count()


def run_apart(script: str, folder: Path, interpret: bool = False) -> Any:
    """Run a test file as a program, compiling into ``folder`` or interpreting, and read the JSON that it prints.

    Compilers share the work among two processes, and what they print is put together.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    shares = 1 if interpret else 2
    started = []
    for share in range(shares):
        own = {"TRITON_CACHE_DIR": str(folder / str(share)), "AOT_SHARE": str(share), "AOT_SHARES": str(shares)}
        (folder / str(share)).mkdir()
        settings = environment | own | ({"TRITON_INTERPRET": "1"} if interpret else {})
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([sys.executable, script], env=settings, stdout=pipe, stderr=pipe, text=True))
    printed = []
    for process in started:
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        printed.append(json.loads(out))
    return printed[0] if interpret else merged(*printed)


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
    if next(_turns) % SHARES != SHARE:
        return {}
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else arguments.get(name, "i32") for name in names}
    even = [name for name in names if signature[name].startswith("*") or (name in aligned and name not in constants)]
    source = ASTSource(kernel, signature, dict(constants), {(names.index(name),): [["tt.divisibility", 16]] for name in even})
    built = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "num_stages": stages})
    cubin = Path(os.environ["TRITON_CACHE_DIR"]) / "kernel.cubin"
    cubin.write_bytes(built.asm["cubin"])
    sass = _tool("nvdisasm", "-c", cubin)
    usage = _tool("cuobjdump", "--dump-resource-usage", cubin)
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "shared": built.metadata.shared,
        "tensor": len(re.findall(r"\bHG?MMA", sass)),
        "tensor64": len(re.findall(r"\bDMMA", sass)),
        "wide loads": len(re.findall(r"\bLDG(?:STS)?\.\S*128", sass)),
    }


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
        spilled = sum(int(count) for count in re.findall(r"(\d+) bytes (?:stack frame|spill (?:stores|loads))", part))
        shared = re.findall(r"(\d+) bytes smem", part)
        registers = int(re.findall(r"Used (\d+) registers", part)[0])
        kernels[part[: part.index("'")]] = {
            "registers": registers,
            "spills": spilled,
            "shared": int(shared[0]) if shared else 0,
        }
    return kernels


def _tool(name: str, *arguments: Any) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout
