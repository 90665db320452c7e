"""Region hashing and episode kernels compiled for absent GPUs: no spills, few registers, the instructions that were meant.

The Triton kernels are compiled in a process of their own, since the mode (interpret or compile) is read when they are decorated.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aot import ARCHITECTURES, ROOT, WIDE_LOAD, Report, build_triton


def compiled_for(
    kernel: Any, arguments: dict[str, str], constants: dict[str, Any], arch: int, aligned: tuple[str, ...]
) -> dict[str, Any]:
    """What the compiler made of one configuration; integers in ``constants`` are specialised, as the JIT does with ones."""
    built = build_triton(kernel, arguments, constants, arch, aligned=aligned)
    if built is None:
        return {}
    ptx, used, _ = built
    return used | {
        "wide loads": len(re.findall(WIDE_LOAD, ptx)),
        "wide stores": len(re.findall(r"\bst\.global\S*\.v4\.b32|\bst\.global\S*\.v2\.b64", ptx)),
        "flushes": ".ftz" in ptx,
        "divisions": sorted(set(re.findall(r"\bdiv\.\w+\.f32", ptx))),
        "fused": "fma." in ptx,
    }


def compile_kernels() -> Report:
    from engine.kernels.triton_episode import gather_episode_kernel
    from engine.kernels.triton_regions import SMALL_TILE_WORDS, TILE_WORDS, finish_kernel, fold_signs_kernel

    found = {}
    pointers = {"gate_ptr": "*u8", "state_ptr": "*i64", "out_ptr": "*i64", "partial_ptr": "*i64", "length": "i64"}
    words = {
        "samples": "i32",
        "neurons": "i32",
        "inner": "i32",
        "per_group": "i32",
        "words_per_split": "i32",
        "threshold": "fp32",
    }
    strides = {"stride_sample": "i64", "stride_outer": "i64", "stride_inner": "i64", "seed0": "i64", "seed1": "i64"}
    aligned = ("x_ptr", "state_ptr", "out_ptr", "neurons", "stride_sample")
    for arch in ARCHITECTURES:
        for dtype in ("fp32", "bf16", "fp64"):
            for plain in (True, False):
                tile = TILE_WORDS if plain and dtype != "fp64" else SMALL_TILE_WORDS
                stride_one = {"stride_inner" if plain else "stride_outer": 1}
                for block_w in (1, tile):  # the ends of the table, with what takes most registers: two lanes, gated
                    cut = {"BLOCK_B": tile // block_w, "BLOCK_W": block_w, "FINISH": block_w == 1}
                    constants = {"LANES": 2, "GATED": True, "PLAIN": plain, **cut, **stride_one}
                    arguments = {"x_ptr": f"*{dtype}", **pointers, **words, **strides}
                    name = f"fold {dtype} {'plain' if plain else 'strided'} words={block_w} sm_{arch}"
                    found[name] = compiled_for(fold_signs_kernel, arguments, constants, arch, aligned)
        ones = {"samples": 1, "neurons": 1, "inner": 1, "stride_sample": 1, "stride_inner": 1}
        constants = {"LANES": 1, "GATED": False, "PLAIN": True, "FINISH": True, "BLOCK_B": 32, "BLOCK_W": 1, **ones}
        found[f"fold one neuron sm_{arch}"] = compiled_for(
            fold_signs_kernel, {"x_ptr": "*fp16", **pointers, **words, **strides}, constants, arch, ("x_ptr",)
        )
        constants = {"LANES": 2, "GATED": True, "BLOCK": 128}
        arguments = {**pointers, "size": "i32", "splits": "i32", "per_group": "i32"}
        found[f"finish sm_{arch}"] = compiled_for(finish_kernel, arguments, constants, arch, ("partial_ptr", "out_ptr"))
        arguments = {"images_ptr": "*u8", "index_ptr": "*i64", "tops_ptr": "*i64", "lefts_ptr": "*i64", "flips_ptr": "*u8"}
        arguments |= {"mean_ptr": "*fp32", "std_ptr": "*fp32", "out_ptr": "*fp32"}
        arguments |= dict.fromkeys(("bank", "channels", "height", "width", "padding", "size", "pixels"), "i32")
        for name, ones in (
            ("", {}),
            (" one", {"bank": 1, "channels": 1, "height": 1, "width": 1, "padding": 1, "size": 1, "pixels": 1}),
        ):
            found[f"episode{name} sm_{arch}"] = compiled_for(
                gather_episode_kernel,
                arguments,
                {"BLOCK": 1 if ones else 1024, **ones},
                arch,
                ("images_ptr", "out_ptr", "pixels"),
            )
    return found


@pytest.fixture(scope="module")
def compiled(reports: dict[str, Report]) -> Report:
    return reports[__name__]


def test_no_triton_kernel_spills(compiled: Report) -> None:
    assert len(compiled) == len(ARCHITECTURES) * 16
    assert {name: built for name, built in compiled.items() if built["spills"]} == {}


def test_triton_kernels_stay_below_their_register_ceilings(compiled: Report) -> None:
    """128 registers let four programs of four warps share a multiprocessor; the usual case, plain float32 or bfloat16, has 80."""
    over = {
        name: built["registers"]
        for name, built in compiled.items()
        if built["registers"] > (80 if re.match(r"fold (fp32|bf16) plain|episode|finish", name) else 128)
    }
    assert over == {}


def test_plain_neurons_are_read_and_pixels_written_sixteen_bytes_at_a_time(compiled: Report) -> None:
    narrow = [name for name, built in compiled.items() if re.match("fold .* plain", name) and not built["wide loads"]]
    narrow += [name for name, built in compiled.items() if re.match("episode sm", name) and not built["wide stores"]]
    assert narrow == []


def test_arithmetic_is_what_torch_does(compiled: Report) -> None:
    """No flushed denormals (their sign counts), rounded divisions, and no product fused into a sum."""
    assert not [name for name, built in compiled.items() if built["flushes"]]
    episodes = [built for name, built in compiled.items() if name.startswith("episode")]
    assert all(built["divisions"] == ["div.rn.f32"] and not built["fused"] for built in episodes)


@pytest.mark.parametrize("arch", [*ARCHITECTURES, 100])
def test_cuda_source_compiles_without_spills(arch: int, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("nvcc is neither on PATH nor in /usr/local/cuda/bin")
    command = [
        nvcc,
        "-std=c++17",
        f"-arch=sm_{arch}",
        "--resource-usage",
        "-Werror",
        "all-warnings",
        str(ROOT / "csrc" / "regions.cu"),
    ]
    done = subprocess.run([*command, "-cubin", "-o", str(tmp_path / "regions.cubin")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    names = re.findall(r"Function properties for (\w+)", report)
    assert sorted(names) == ["finish_signs", "fold_signs_bfloat16", "fold_signs_float32"]
    assert (
        re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report) == [("0", "0", "0")] * 3
    )
    assert all(int(registers) <= 48 for registers in re.findall(r"Used (\d+) registers", report))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_source_votes(arch: int, tmp_path: Path) -> None:
    """Its reason to exist: signs are packed by warp votes."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("nvcc is neither on PATH nor in /usr/local/cuda/bin")
    out = tmp_path / "regions.ptx"
    command = [nvcc, "-std=c++17", f"-arch=sm_{arch}", "-ptx", str(ROOT / "csrc" / "regions.cu"), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    assert out.read_text().count("vote.sync.ballot") >= 2 * 16
