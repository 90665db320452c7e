"""Kernels compiled for GPUs that are not here: no spills, a register ceiling, the instructions that were meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aot import ARCHITECTURES, ROOT, Report, compile_cuda, compile_triton, nvcc

SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
SMALL_ARCHITECTURE = 89
# What a block may ask for on sm_80, and on GPUs that have less.
SHARED_LIMIT, SMALL_SHARED_LIMIT = 163 * 1024, 99 * 1024


def compile_kernels() -> Report:
    from engine.kernels import triton_jacobian_gram as jacobian

    found = {}
    strides = ["left_group", "left_sample", "left_position", "right_group", "right_sample", "right_position"]
    # (dtype, whole vectors?): whether channels lie side by side, in multiples of 16, as in the channels_last format.
    layouts: list[tuple[str, bool]] = [("fp32", True), ("fp32", False), ("bf16", False)]
    for tile in (*jacobian.TILES, *jacobian.SMALL_TILES):
        for precision in ("ieee", "tf32"):
            for arch in ARCHITECTURES if tile in jacobian.TILES else [SMALL_ARCHITECTURE]:
                for dtype, whole in layouts:
                    if dtype == "bf16" and (arch, tile.rows) != (90, 32):  # one will do: no spill that fp32 has not
                        continue
                    constants: dict[str, Any] = {"PRECISION": precision, **tile.constants}
                    size, loads = f"{tile.rows}x{tile.outputs}x{tile.inputs}", "whole" if whole else "single"
                    found[f"partial_gram {size} {precision} {dtype} {loads} sm_{arch}"] = compile_triton(
                        jacobian.partial_gram_kernel,
                        {"left_ptr": f"*{dtype}", "right_ptr": f"*{dtype}", "partial_ptr": "*fp64"},
                        constants | ({"left_output": 1, "right_input": 1} if whole else {}),
                        arch,
                        aligned=["outputs", "inputs", *strides] if whole else [],
                        warps=tile.warps,
                        stages=2 if whole and precision == "tf32" else 1,
                    )
    for arch in ARCHITECTURES:
        found[f"add_partials sm_{arch}"] = compile_triton(
            jacobian.add_partials_kernel, {"partial_ptr": "*fp64", "out_ptr": "*fp64"}, {"ROWS": 32, "BLOCK": 128}, arch
        )
        for taps in (1, 9, 25):
            for dtype in ("fp32", "bf16"):
                found[f"depthwise_rows {taps} {dtype} sm_{arch}"] = compile_triton(
                    jacobian.depthwise_rows_kernel,
                    {"left_ptr": f"*{dtype}", "right_ptr": f"*{dtype}", "rows_ptr": "*fp32"},
                    jacobian.depthwise_constants(taps),
                    arch,
                    warps=jacobian.DEPTHWISE_WARPS,
                )
    return found


@pytest.fixture(scope="module")
def triton_kernels(reports: dict[str, Report]) -> Report:
    return reports[__name__]


def test_triton_kernels_do_not_spill_and_fit_in_shared_memory(triton_kernels: Report) -> None:
    assert triton_kernels
    for name, made in triton_kernels.items():
        limit = SMALL_SHARED_LIMIT if name.endswith(f"sm_{SMALL_ARCHITECTURE}") else SHARED_LIMIT
        assert (made["spills"], made["shared"] <= limit) == (0, True), (name, made)


def test_gram_products_run_on_float64_tensor_cores_and_gradients_on_tf32_ones_where_allowed(triton_kernels: Report) -> None:
    grams = {name: made for name, made in triton_kernels.items() if name.startswith("partial_gram")}
    assert all((made["tensor64"] > 0) == (f"sm_{SMALL_ARCHITECTURE}" not in name) for name, made in grams.items())
    assert all((made["tensor"] > 0) == ("tf32" in name) for name, made in grams.items())


def test_depthwise_rows_leave_room_for_four_blocks(triton_kernels: Report) -> None:
    assert all(made["registers"] <= 128 for name, made in triton_kernels.items() if name.startswith("depthwise"))


def test_channels_last_float32_is_loaded_in_whole_vectors(triton_kernels: Report) -> None:
    assert all(made["wide loads"] > 0 for name, made in triton_kernels.items() if "fp32 whole" in name)


@pytest.mark.parametrize(
    ("source", "arch"),
    # What needs a Hopper is compiled for it alone.
    [(source, arch) for source in SOURCES for arch in ARCHITECTURES if arch >= 90 or not source.stem.endswith("hopper")],
    ids=str,
)
def test_cuda_sources_do_not_spill(source: Path, arch: int, tmp_path: Path) -> None:
    if nvcc() is None:
        pytest.skip("nvcc is neither on PATH nor in /usr/local/cuda/bin")
    kernels = compile_cuda(source, arch, tmp_path)
    assert kernels
    assert not {name: made for name, made in kernels.items() if made["spills"] or made["registers"] > 255}
