"""Masked linear layers in Triton: see :mod:`engine.kernels.masked_layers` for the functions that are computed.

The mask comes from scores and threshold, or from packed bits (an eighth of a byte a weight instead of four), where a weight is
loaded or a gradient is stored, so a masked weight is never written out. Products are float32, or with half precision operands on
tensor cores into float32. Sums over programs are made by a second pass in a fixed order: repeated runs give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

# Programs that fill a large GPU a few times over; a fixed number, since the order of the sums depends on it.
TARGET_PROGRAMS = 512


@triton.jit
def _kept(scores_ptr, bits_ptr, sigma, here, row, column, scores_row, scores_column, bits_row, bits_column, BITS: tl.constexpr):
    """m of a tile, int1; ``row`` and ``column`` are int64 and broadcast to the tile."""
    if BITS:
        place = row * bits_row + column * bits_column
        byte = tl.load(bits_ptr + (place >> 3), mask=here, other=0).to(tl.int32)
        return ((byte >> (place & 7).to(tl.int32)) & 1) != 0
    else:
        scores = tl.load(scores_ptr + row * scores_row + column * scores_column, mask=here, other=0.0).to(tl.float32)
        return (scores < sigma) == 0


@triton.jit
def _product(left, right, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """total + left @ right. WIDEN: as float32 operands (always for float32; the interpreter cannot multiply bfloat16)."""
    if WIDEN:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision=PRECISION)
    else:
        return tl.dot(left, right, total)


@triton.jit(do_not_specialize=["rows", "splits", "blocks_per_split"])
def masked_gemm_kernel(
    x_ptr,
    weight_ptr,
    scores_ptr,
    bits_ptr,
    threshold_ptr,
    out_ptr,
    rows,
    outputs,
    inputs,
    splits,
    blocks_per_split,
    x_task,
    x_row,
    x_input,
    weight_task,
    weight_output,
    weight_input,
    scores_output,
    scores_input,
    bits_output,
    bits_input,
    BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out (splits, T, rows, outputs) float32 = x (T, rows, inputs) (m * weight (T, outputs, inputs))^T over a split's inputs."""
    tiles_n, tiles_o = tl.cdiv(rows, BLOCK_N), tl.cdiv(outputs, BLOCK_O)
    program = tl.program_id(0)
    split, tile = program % splits, program // splits
    o = (tile % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    n = (tile // tiles_o % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    task = (tile // tiles_o // tiles_n).to(tl.int64)
    sigma = tl.load(threshold_ptr).to(tl.float32)
    total = tl.zeros([BLOCK_N, BLOCK_O], tl.float32)
    x_rows = x_ptr + task * x_task + n[:, None] * x_row
    weight_rows = weight_ptr + task * weight_task + o[None, :] * weight_output
    for block in range(0, blocks_per_split):
        k = ((split * blocks_per_split + block) * BLOCK_K + tl.arange(0, BLOCK_K)).to(tl.int64)
        x = tl.load(x_rows + k[None, :] * x_input, mask=(n < rows)[:, None] & (k < inputs)[None, :], other=0.0)
        here = (k < inputs)[:, None] & (o < outputs)[None, :]
        weight = tl.load(weight_rows + k[:, None] * weight_input, mask=here, other=0.0)
        kept = _kept(
            scores_ptr, bits_ptr, sigma, here, o[None, :], k[:, None], scores_output, scores_input, bits_output, bits_input, BITS
        )
        weight = tl.where(kept, weight.to(tl.float32), 0.0).to(weight.dtype)
        total = _product(x, weight, total, PRECISION, WIDEN)
    tasks = tl.num_programs(0) // (splits * tiles_o * tiles_n)
    place = ((split * tasks + task) * rows + n)[:, None] * outputs + o[None, :]
    tl.store(out_ptr + place, total, mask=(n < rows)[:, None] & (o < outputs)[None, :])


@triton.jit
def rank_tile(
    left_ptr, right_ptr, rows, outputs, inputs, o, i, left_row, left_output, right_row, right_input, total,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """total + left^T right over ``rows``: a tile of a gradient of low rank."""
    for start in range(0, rows, BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        left_here = (o < outputs)[:, None] & (n < rows)[None, :]
        left = tl.load(left_ptr + n[None, :] * left_row + o[:, None] * left_output, mask=left_here, other=0.0)
        right_here = (n < rows)[:, None] & (i < inputs)[None, :]
        right = tl.load(right_ptr + n[:, None] * right_row + i[None, :] * right_input, mask=right_here, other=0.0)
        total = _product(left, right, total, PRECISION, WIDEN)
    return total


@triton.jit(do_not_specialize=["tasks", "rows"])
def masked_gradients_kernel(
    cotangent_ptr,
    x_ptr,
    weight_ptr,
    scores_ptr,
    bits_ptr,
    threshold_ptr,
    weight_grad_ptr,
    score_grad_ptr,
    tasks,
    rows,
    outputs,
    inputs,
    cotangent_task,
    cotangent_row,
    cotangent_output,
    x_task,
    x_row,
    x_input,
    weight_task,
    weight_output,
    weight_input,
    scores_output,
    scores_input,
    BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Of P_t = cotangent_t^T x_t: weight_grad (T, outputs, inputs) = m P_t, score_grad (outputs, inputs) = sum_t weight_t P_t."""
    tiles_i = tl.cdiv(inputs, BLOCK_I)
    o = (tl.program_id(0) // tiles_i * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    i = (tl.program_id(0) % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)
    here = (o < outputs)[:, None] & (i < inputs)[None, :]
    sigma = tl.load(threshold_ptr).to(tl.float32)
    kept = _kept(scores_ptr, bits_ptr, sigma, here, o[:, None], i[None, :], scores_output, scores_input, inputs, 1, BITS)
    place = o[:, None] * inputs + i[None, :]
    score_grad = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    long = tl.full([], 0, tl.int64)
    for t in range(0, tasks):
        task = long + t
        product = rank_tile(
            cotangent_ptr + task * cotangent_task, x_ptr + task * x_task, rows, outputs, inputs, o, i,
            cotangent_row, cotangent_output, x_row, x_input, tl.zeros([BLOCK_O, BLOCK_I], tl.float32),
            PRECISION, WIDEN, BLOCK_N,
        )  # fmt: skip
        weight_tile = weight_ptr + task * weight_task + o[:, None] * weight_output + i[None, :] * weight_input
        score_grad += tl.load(weight_tile, mask=here, other=0.0).to(tl.float32) * product
        tl.store(weight_grad_ptr + task * outputs * inputs + place, tl.where(kept, product, 0.0), mask=here)
    tl.store(score_grad_ptr + place, score_grad, mask=here)


@dataclass(frozen=True)
class Tile:
    """Rows, outputs and inputs that a program holds at a time."""

    rows: int
    outputs: int
    inputs: int
    warps: int = 4


# Exact float32 products are made by ordinary multiply-adds, whose operands take the registers of a larger tile.
EXACT_GEMM_TILES = (Tile(16, 32, 32), Tile(32, 32, 32))
GEMM_TILES = (Tile(16, 32, 64), Tile(32, 32, 64), Tile(64, 64, 32, warps=8))
EXACT_GRADIENT_TILE, GRADIENT_TILE = Tile(16, 32, 32), Tile(16, 32, 64)
STAGES = 2


def choose_gemm_tile(rows: int, exact: bool) -> Tile:
    """The smallest that holds all rows of a task (25 of a 5-way 5-shot support set take 32), or the largest."""
    tiles = EXACT_GEMM_TILES if exact else GEMM_TILES
    return next((tile for tile in tiles if rows <= tile.rows), tiles[-1])


def choose_gradient_tile(exact: bool) -> Tile:
    """Of the gradient that a program holds; it reads 16 rows at a time."""
    return EXACT_GRADIENT_TILE if exact else GRADIENT_TILE


def precision() -> str:
    """How float32 products are rounded: as torch's own are, by its setting."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def launch_masked_gemm(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, transposed: bool, widen: bool = False
) -> Tensor:
    """(T, N, K), (T, O, K), (O, K) -> (T, N, O); ``transposed``: bits are those of a (K, O) mask. ``widen``: float32 products."""
    (tasks, rows, inputs), outputs = x.shape, weight.shape[1]
    exact = x.dtype == torch.float32 and precision() == "ieee"
    tile = choose_gemm_tile(rows, exact)
    programs = tasks * triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs)
    blocks = triton.cdiv(inputs, tile.inputs)
    per_split = triton.cdiv(blocks, min(blocks, triton.cdiv(TARGET_PROGRAMS, programs)))
    splits = triton.cdiv(blocks, per_split)
    out = torch.empty(splits, tasks, rows, outputs, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        masked_gemm_kernel[(programs * splits,)](
            x,
            weight,
            scores,
            scores if bits is None else bits,
            threshold,
            out,
            rows,
            outputs,
            inputs,
            splits,
            per_split,
            *x.stride(),
            *weight.stride(),
            *scores.stride(),
            *((1, outputs) if transposed else (inputs, 1)),
            BITS=bits is not None,
            PRECISION=precision(),
            WIDEN=widen or x.dtype == torch.float32,
            BLOCK_N=tile.rows,
            BLOCK_O=tile.outputs,
            BLOCK_K=tile.inputs,
            num_warps=tile.warps,
            num_stages=STAGES,
        )
    return (out[0] if splits == 1 else out.sum(0)).to(x.dtype)


def launch_masked_gradients(
    cotangent: Tensor, x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, widen: bool = False
) -> tuple[Tensor, Tensor]:
    """(T, N, O), (T, N, I), (T, O, I), (O, I) -> gradients of the weight (T, O, I) and of the scores (O, I)."""
    tasks, rows, outputs = cotangent.shape
    inputs, tile = x.shape[2], choose_gradient_tile(x.dtype == torch.float32 and precision() == "ieee")
    weight_grad = torch.empty(tasks, outputs, inputs, dtype=weight.dtype, device=x.device)
    score_grad = torch.empty(outputs, inputs, dtype=scores.dtype, device=x.device)
    with torch.cuda.device_of(x):
        masked_gradients_kernel[(triton.cdiv(outputs, tile.outputs) * triton.cdiv(inputs, tile.inputs),)](
            cotangent,
            x,
            weight,
            scores,
            scores if bits is None else bits,
            threshold,
            weight_grad,
            score_grad,
            tasks,
            rows,
            outputs,
            inputs,
            *cotangent.stride(),
            *x.stride(),
            *weight.stride(),
            *scores.stride(),
            BITS=bits is not None,
            PRECISION=precision(),
            WIDEN=widen or x.dtype == torch.float32,
            BLOCK_N=tile.rows,
            BLOCK_O=tile.outputs,
            BLOCK_I=tile.inputs,
            num_warps=tile.warps,
            num_stages=STAGES,
        )
    return weight_grad, score_grad
