"""The kernels of an edge group's convolutions, compiled for GPUs that are not here: no spills, a register ceiling."""

from __future__ import annotations

from typing import Any

import pytest
from aot import ARCHITECTURES, Report, compile_triton


def compile_kernels() -> Report:
    from engine.kernels import triton_pointwise as module

    found: Report = {}
    kernel = module.convolution_kernel
    even = [name for name in kernel.arg_names if name.startswith(("x_", "weight_"))] + ["inputs", "outputs"]
    for arch in ARCHITECTURES:
        for dtype, precision in (("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "ieee")):
            exact = (dtype, precision) == ("fp32", "ieee")
            for tile in module.EXACT_TILES if exact else module.TILES:
                # Channels side by side, as in the channels_last format; a 1x1 or a 1xk kernel, and one along the rows.
                constants: dict[str, Any] = {"STATISTICS": True, "PRECISION": precision, "WIDEN": dtype == "fp32"}
                constants |= {**tile.constants, "x_input": 1, "weight_input": 1, "ALONG_ROWS": tile is module.TILES[0]}
                found[f"convolution {tile.constants} {dtype} {precision} sm_{arch}"] = compile_triton(
                    kernel,
                    dict.fromkeys(("x_ptr", "weight_ptr", "y_ptr"), f"*{dtype}") | {"partial_ptr": "*fp32"},
                    constants,
                    arch,
                    aligned=even,
                    warps=tile.warps,
                    stages=module.load_stages(4 if dtype == "fp32" else 2),
                )
        found[f"join sm_{arch}"] = compile_triton(
            module.join_statistics_kernel,
            {"partial_ptr": "*fp32", "mean_ptr": "*fp32", "variance_ptr": "*fp32"},
            {"BLOCK_P": 64, "BLOCK": module.JOINED},
            arch,
        )
    return found


@pytest.fixture(scope="module")
def kernels(reports: dict[str, Report]) -> Report:
    return reports[__name__]


def test_nothing_spills_and_three_blocks_fit(kernels: Report) -> None:
    assert kernels
    assert not {name: made for name, made in kernels.items() if made["spills"] or made["registers"] > 144}


def test_products_run_on_tensor_cores_unless_float32_is_to_be_exact(kernels: Report) -> None:
    products = {name: made for name, made in kernels.items() if name.startswith("convolution")}
    assert all((made["tensor"] > 0) != ("fp32 ieee" in name) for name, made in products.items()), products
