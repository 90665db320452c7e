"""The kernels of masked layers and of the updates, compiled for GPUs that are not here: no spills, a register ceiling."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from aot import ARCHITECTURES, Report, compile_triton

# Whether the mask comes from bits, and the product's direction: bits, whose place is computed, take the registers.
MODES = [(True, "forward"), (True, "back"), (False, "forward")]
# What a block may ask for on sm_80.
SHARED_LIMIT = 163 * 1024
UNSPECIALISED = {"rate": "fp32", "momentum": "fp32", "decay": "fp32", "scale": "fp32", "floor": "fp32"}
MOMENTS = {"b1": "fp32", "c1": "fp32", "b2": "fp32", "c2": "fp32", "scale_ptr": "*fp32", "floor_ptr": "*fp32"}


def pointers(kernel: Any, dtype: str, **others: str) -> dict[str, str]:
    """Types of a kernel's arguments: ``dtype`` behind every pointer, but for ``others``."""
    return {name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr")} | UNSPECIALISED | others


def compile_updates(arch: int) -> Report:
    from engine.kernels import triton_updates as module

    modes: list[tuple[Any, str, str, dict[str, Any], dict[str, str]]] = [
        (module.sgd_kernel, "fp32", "number", {"MOMENTUM": True}, {}),
        (module.sgd_kernel, "bf16", "each", {"MOMENTUM": True}, {}),
        (module.adam_kernel, "fp32", "number", {"COUNTED": False, "DECOUPLED": True}, MOMENTS),
        (module.adam_kernel, "bf16", "each", {"COUNTED": True, "DECOUPLED": False}, MOMENTS),
        (module.reptile_kernel, "fp32", "number", {}, {}),
        (module.reptile_kernel, "bf16", "each", {}, {}),
        (module.update_scores_kernel, "fp32", "number", {}, {"bits_ptr": "*u8"}),
        (module.update_scores_kernel, "bf16", "one", {}, {"bits_ptr": "*u8"}),
    ]
    return {
        f"{kernel.fn.__name__} {dtype} {rate} sm_{arch}": compile_triton(
            kernel,
            pointers(kernel, dtype, **others),
            {"RATE": rate, "BLOCK": module.BLOCK, **constants},
            arch,
            warps=module.WARPS,
        )
        for kernel, dtype, rate, constants, others in modes
    }


def compile_products(arch: int) -> Report:
    from engine.kernels import triton_masked as module

    found: Report = {}
    kept = {"scores_ptr": "*fp32", "bits_ptr": "*u8", "threshold_ptr": "*fp32"}
    # What is contiguous in a forward pass (x, weight and scores along the inputs), and in the gradient of x.
    layouts = {
        "forward": ("x_input", "weight_input", "scores_input", "bits_input"),
        "back": ("x_input", "weight_output", "scores_output", "bits_output"),
    }
    # Half precision is compiled as bfloat16 only: float16 differs in the name of one instruction.
    modes = {("fp32", "ieee"): 3, ("fp32", "tf32"): 2, ("bf16", "ieee"): 1}
    for dtype, precision in modes:
        exact = (dtype, precision) == ("fp32", "ieee")
        common = {"PRECISION": precision, "WIDEN": dtype == "fp32"}
        kernel = module.masked_gemm_kernel
        even = [name for name in kernel.arg_names if name.split("_")[0] in ("x", "weight", "scores", "inputs", "outputs")]
        for tile, (bits, layout) in product(
            module.EXACT_GEMM_TILES if exact else module.GEMM_TILES, MODES[: modes[dtype, precision]]
        ):
            blocks = {"BLOCK_N": tile.rows, "BLOCK_O": tile.outputs, "BLOCK_K": tile.inputs}
            found[f"gemm {blocks} {layout} {dtype} {precision} bits={bits} sm_{arch}"] = compile_triton(
                kernel,
                pointers(kernel, dtype, out_ptr="*fp32", **kept),
                {"BITS": bits, **common, **blocks, **dict.fromkeys(layouts[layout], 1)},
                arch,
                aligned=even,
                warps=tile.warps,
                stages=module.STAGES,
            )
        kernel, tile = module.masked_gradients_kernel, module.choose_gradient_tile(exact)
        blocks = {"BLOCK_N": tile.rows, "BLOCK_O": tile.outputs, "BLOCK_I": tile.inputs}
        whole = ("cotangent_output", "x_input", "weight_input", "scores_input")
        for bits in (True, False) if exact else (True,):
            found[f"gradients {dtype} {precision} bits={bits} sm_{arch}"] = compile_triton(
                kernel,
                pointers(kernel, dtype, **kept, score_grad_ptr="*fp32"),
                {"BITS": bits, **common, **blocks, **dict.fromkeys(whole, 1)},
                arch,
                aligned=["outputs", "inputs", "cotangent_row", "x_row", "weight_output", "scores_output"],
                warps=tile.warps,
                stages=module.STAGES,
            )
    return found


def compile_convolutions(arch: int) -> Report:
    from engine.kernels import triton_masked_conv as module

    found: Report = {}
    kept = {"scores_ptr": "*fp32", "bits_ptr": "*u8", "threshold_ptr": "*fp32", "out_ptr": "*fp32"}
    # Channels innermost, as the kernels leave their results.
    even = ["inputs", "outputs", *(f"{name}_{axis}" for name in "xg" for axis in ("task", "sample", "row", "column"))]
    for dtype, precision in (("fp32", "ieee"), ("fp32", "tf32"), ("bf16", "ieee")):
        exact = (dtype, precision) == ("fp32", "ieee")
        settings = {"PRECISION": precision, "WIDEN": dtype == "fp32"}
        kernel, tile = module.masked_conv_kernel, module.EXACT_TILE if exact else module.TILE
        blocks = {"BLOCK_P": tile.rows, "BLOCK_O": tile.outputs, "BLOCK_K": tile.inputs}
        for bits, back in ((True, False), (True, True), (False, False)):
            found[f"convolution {dtype} {precision} bits={bits} back={back} sm_{arch}"] = compile_triton(
                kernel,
                pointers(kernel, dtype, **kept),
                {"BITS": bits, "BACK": back, "x_channel": 1, **settings, **blocks},
                arch,
                aligned=even,
                warps=tile.warps,
                stages=module.STAGES,
            )
        kernel, tile = module.conv_products_kernel, module.EXACT_PRODUCT_TILE if exact else module.PRODUCT_TILE
        blocks = {"BLOCK_N": tile.rows, "BLOCK_O": tile.outputs, "BLOCK_I": tile.inputs}
        found[f"convolution products {dtype} {precision} sm_{arch}"] = compile_triton(
            kernel,
            pointers(kernel, dtype, out_ptr="*fp32"),
            {"x_channel": 1, "g_channel": 1, **settings, **blocks},
            arch,
            aligned=even,
            warps=tile.warps,
            stages=module.STAGES,
        )
    return found


def compile_score_gradient(arch: int) -> Report:
    from engine.kernels import triton_score_gradient as module

    kernel, tile = module.score_gradient_kernel, module.TILE
    blocks = {"BLOCK_N": tile.rows, "BLOCK_O": tile.outputs, "BLOCK_I": tile.inputs}
    return {
        f"score_gradient {precision} sm_{arch}": compile_triton(
            kernel,
            pointers(kernel, "fp32"),
            {"PRECISION": precision, "SECOND_ORDER": True, **blocks},
            arch,
            aligned=["outputs", "inputs"],
            warps=tile.warps,
        )
        for precision in ("ieee", "tf32")
    }


def compile_kernels() -> Report:
    built: Report = {}
    for arch in ARCHITECTURES:
        built |= compile_updates(arch) | compile_products(arch) | compile_convolutions(arch) | compile_score_gradient(arch)
    return built


@pytest.fixture(scope="module")
def kernels(reports: dict[str, Report]) -> Report:
    return reports[__name__]


def test_nothing_spills_and_all_fit_in_shared_memory(kernels: Report) -> None:
    assert kernels
    assert not {name: made for name, made in kernels.items() if made["spills"] or made["shared"] > SHARED_LIMIT}


def test_updates_leave_room_for_six_blocks(kernels: Report) -> None:
    updates = {name: made for name, made in kernels.items() if "_kernel" in name}
    assert updates
    assert not {name: made for name, made in updates.items() if made["registers"] > 80}


def test_products_run_on_tensor_cores_unless_float32_is_to_be_exact(kernels: Report) -> None:
    products = {
        name: made for name, made in kernels.items() if name.startswith(("gemm", "gradients", "score_gradient", "convolution"))
    }
    assert products
    for name, made in products.items():
        exact = "ieee" in name and ("fp32" in name or name.startswith("score"))
        assert (made["tensor"] > 0) != exact, (name, made)
