"""The kernels of the mixed edge group compiled for GPUs that are not here: no spills, few registers, wide loads."""

from __future__ import annotations

from typing import Any

import pytest
from aot import ARCHITECTURES, Report, compile_triton

# (dtype, channels innermost?): what a launch divides into positions of 16 channels, or of one.
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
    from engine.kernels.mixed_edge import triton_group, triton_group_backward, triton_sum

    window, whole = {"STRIDE": 1, "WIDTH": 32, "PARTS": 1}, {"PARTS": 1}
    strided, partial = {"STRIDE": 2, "WIDTH": 33}, {"STRIDE": 2, "WIDTH": 32, "PARTS": 4}
    kernels: dict[str, tuple[Any, dict[str, Any]]] = {
        "term moments": (triton_sum.term_moments_kernel, {"COUNT": 4}),
        "weighted sum": (triton_sum.weighted_sum_kernel, {"COUNT": 4, "BASED": True, **whole}),
        "term products": (triton_sum.term_products_kernel, {"COUNT": 4, **whole}),
        "term gradients": (triton_sum.term_gradients_kernel, {"COUNT": 4, **whole}),
        "read": (triton_group.read_kernel, {"KINDS": DARTS, **window}),
        "read strided": (triton_group.read_kernel, {"KINDS": (3, 3, 1, 1), "PARTS": 1, **strided}),
        "sums": (triton_group.sums_kernel, window),
        "products": (triton_group_backward.products_kernel, window),
        "cotangents": (triton_group_backward.cotangents_kernel, window),
        "gradient": (triton_group_backward.gradient_kernel, {"KINDS": DARTS, **window}),
        "filters": (triton_group_backward.filters_kernel, {"KINDS": DARTS, "PLACES": 272, **window}),
    }
    found = {
        f"{name} {dtype} {'last' if last else 'planar'} sm_{arch}": compile_one(kernel, constants, dtype, last, arch)
        for arch in ARCHITECTURES
        for name, (kernel, constants) in kernels.items()
        for dtype, last in LAYOUTS
    }
    # Partial channels: the kernels that do more with them, where they read most.
    kernels = {
        "partial sums": (triton_group.sums_kernel, partial),
        "partial products": (triton_group_backward.products_kernel, partial),
        "partial gradient": (triton_group_backward.gradient_kernel, {"KINDS": DARTS, **partial}),
    }
    for name, (kernel, constants) in kernels.items():
        for arch in ARCHITECTURES:
            found[f"{name} fp32 last sm_{arch}"] = compile_one(kernel, constants, "fp32", True, arch)
    return found


def compile_one(kernel: Any, constants: dict[str, Any], dtype: str, last: bool, arch: int) -> dict[str, int]:
    from engine.kernels.mixed_edge.launch_group import GRADIENT_WARPS, WINDOW_ELEMENTS, WINDOW_WARPS
    from engine.kernels.mixed_edge.triton_blocks import ELEMENTS

    states = STATES | ({"out_ptr"} if kernel.__name__ in ("weighted_sum_kernel", "sums_kernel") else set())
    pointers = {name for name in kernel.arg_names if name.endswith("_ptr")} | (STATES & set(kernel.arg_names))
    types = {name: "*i8" if name in BYTES else f"*{dtype}" if name in states else "*fp32" for name in pointers}
    block_c = 16 if last else 1
    elements, warps = (WINDOW_ELEMENTS, WINDOW_WARPS[last]) if "WIDTH" in constants else (ELEMENTS, 4)
    shape = {"LAST": last, "BLOCK_P": elements // block_c, "BLOCK_C": block_c}
    if kernel.__name__ == "gradient_kernel":
        warps = GRADIENT_WARPS
    return compile_triton(kernel, types, {**constants, **shape}, arch, aligned=["channels", "positions"], warps=warps)


@pytest.fixture(scope="module")
def compiled(reports: dict[str, Report]) -> Report:
    return reports[__name__]


def test_no_kernel_spills(compiled: Report) -> None:
    assert len(compiled) == (11 * len(LAYOUTS) + 3) * len(ARCHITECTURES)
    assert {name: made["spills"] for name, made in compiled.items() if made["spills"]} == {}


def test_five_blocks_fit_on_a_multiprocessor(compiled: Report) -> None:
    """Where channels lie innermost; 128 threads with 96 registers each."""
    assert {name: made["registers"] for name, made in compiled.items() if " last " in name and made["registers"] > 96} == {}


def test_channels_that_lie_innermost_are_read_sixteen_bytes_at_a_time(compiled: Report) -> None:
    narrow = {name for name, made in compiled.items() if " fp32 last " in name and not made["wide loads"]}
    assert {name for name in narrow if "gradient " not in name} == set()  # see GRADIENT_WARPS
