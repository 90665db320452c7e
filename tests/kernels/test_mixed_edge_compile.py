"""The kernels of the mixed edge group compiled for GPUs that are not here: no spills, few registers, wide loads."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import pytest
from aot import ARCHITECTURES, Report, compile_triton, run_apart

# (dtype, channels innermost?): what a launch divides into 64 positions of 16 channels, or 1024 positions of one.
LAYOUTS = (("fp32", True), ("fp32", False), ("bf16", True))
DARTS = (3, 3, 1, 4, 3, 3, 2, 4, 5, 5, 1, 4, 5, 5, 2, 4)
# Pointers to what has the precision of the state; of the rest, what is not float32.
STATES = {
    "x_ptr",
    "g_ptr",
    "taps_ptr",
    "filter_ptr",
    "dx_ptr",
    "total_ptr",
    *(f"{letter}{t}" for letter in "yd" for t in range(4)),
}
BYTES = {"alive_ptr", "winner_ptr"}


def compile_kernels() -> Report:
    from engine.kernels.mixed_edge import triton_group, triton_sum

    window = {"STRIDE": 1, "WIDTH": 32}
    kernels: dict[str, tuple[Any, dict[str, Any]]] = {
        "term moments": (triton_sum.term_moments_kernel, {"COUNT": 4}),
        "weighted sum": (triton_sum.weighted_sum_kernel, {"COUNT": 4, "BASED": True}),
        "term products": (triton_sum.term_products_kernel, {"COUNT": 4}),
        "term gradients": (triton_sum.term_gradients_kernel, {"COUNT": 4}),
        "read": (triton_group.read_kernel, {"KINDS": DARTS, **window}),
        "read strided": (triton_group.read_kernel, {"KINDS": (3, 3, 1, 1), "STRIDE": 2, "WIDTH": 33}),
        "sums": (triton_group.sums_kernel, window),
        "products": (triton_group.products_kernel, window),
        "cotangents": (triton_group.cotangents_kernel, window),
        "gradient": (triton_group.gradient_kernel, {"KINDS": DARTS, **window}),
        "filters": (triton_group.filters_kernel, {"KINDS": DARTS, "PLACES": 272, **window}),
    }
    return {
        f"{name} {dtype} {'last' if last else 'planar'} sm_{arch}": compile_one(kernel, constants, dtype, last, arch)
        for arch in ARCHITECTURES
        for name, (kernel, constants) in kernels.items()
        for dtype, last in LAYOUTS
    }


def compile_one(kernel: Any, constants: dict[str, Any], dtype: str, last: bool, arch: int) -> dict[str, int]:
    def pointer(name: str) -> str:
        if name in BYTES:
            return "*i8"
        return f"*{dtype}" if name in STATES or (name == "out_ptr" and "totals" not in name and kernel_stores_states) else "*fp32"

    kernel_stores_states = kernel.__name__ in ("weighted_sum_kernel", "sums_kernel")
    arguments = {name: pointer(name) for name in kernel.arg_names if name.endswith("_ptr") or name in STATES}
    from engine.kernels.mixed_edge.launch_group import WINDOW_ELEMENTS
    from engine.kernels.mixed_edge.triton_sum import ELEMENTS

    elements, block_c = WINDOW_ELEMENTS if "WIDTH" in constants else ELEMENTS, 16 if last else 1
    shape = {"LAST": last, "BLOCK_P": elements // block_c, "BLOCK_C": block_c}
    return compile_triton(kernel, arguments, {**constants, **shape}, arch, aligned=["channels", "positions"])


if __name__ == "__main__":
    print(json.dumps(compile_kernels()))
