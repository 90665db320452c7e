"""Convolutions of an edge group in Triton: see :mod:`engine.kernels.pointwise` for the functions that are computed.

A program makes BLOCK_P positions x BLOCK_O channels of one branch and group in registers, stores them, and stores the mean of
each channel over its positions and their squared distances from it. A second launch joins those of all programs in float64, in a
fixed order: a variance is never the difference of two large numbers, and repeated runs give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.pointwise import statistics_dtype
from engine.kernels.triton_masked import precision


@triton.jit(do_not_specialize=["rows", "blocks", "samples_per_group"])
def convolution_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    partial_ptr,
    rows,
    blocks,
    samples_per_group,
    groups,
    inputs,
    outputs,
    high,
    wide,
    high_out,
    wide_out,
    stride,
    taps,
    x_branch,
    x_sample,
    x_input,
    x_row,
    x_column,
    weight_branch,
    weight_output,
    weight_input,
    weight_tap,
    ALONG_ROWS: tl.constexpr,
    STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y (B, N, H', W', outputs); partial (B, G, blocks, 2, outputs). ``rows`` are the positions of a group's samples."""
    tiles_o = tl.cdiv(outputs, BLOCK_O)
    program = tl.program_id(0)
    o = (program % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    block = program // tiles_o % blocks
    group = (program // tiles_o // blocks).to(tl.int64)
    branch = group // groups
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    positions = high_out * wide_out
    sample = (group % groups) * samples_per_group + p // positions
    row = p % positions // wide_out * stride
    column = p % wide_out * stride
    x_samples = x_ptr + branch * x_branch + sample * x_sample
    weight_rows = weight_ptr + branch * weight_branch + o[None, :] * weight_output
    total = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    for tap in range(0, taps):
        y_in = row + (tap - taps // 2 if ALONG_ROWS else 0)
        x_in = column + (0 if ALONG_ROWS else tap - taps // 2)
        inside = (p < rows) & (y_in >= 0) & (y_in < high) & (x_in >= 0) & (x_in < wide)
        source = x_samples + y_in.to(tl.int64) * x_row + x_in.to(tl.int64) * x_column
        for start in range(0, inputs, BLOCK_K):
            k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
            x = tl.load(source[:, None] + k[None, :] * x_input, mask=inside[:, None] & (k < inputs)[None, :], other=0.0)
            here = (k < inputs)[:, None] & (o < outputs)[None, :]
            weight = tl.load(weight_rows + k[:, None] * weight_input + tap * weight_tap, mask=here, other=0.0)
            if WIDEN:
                total = tl.dot(x.to(tl.float32), weight.to(tl.float32), total, input_precision=PRECISION)
            else:
                total = tl.dot(x, weight, total)
    real = (p < rows)[:, None]
    place = (group * rows + p)[:, None] * outputs + o[None, :]
    tl.store(y_ptr + place, total, mask=real & (o < outputs)[None, :])
    if STATISTICS:
        count = tl.minimum(rows - block * BLOCK_P, BLOCK_P)
        mean = tl.sum(total, 0) / count  # rows that do not exist are zero
        away = tl.where(real, total - mean[None, :], 0.0)
        partial = partial_ptr + (group * blocks + block) * 2 * outputs + o
        tl.store(partial, mean, mask=o < outputs)
        tl.store(partial + outputs, tl.sum(away * away, 0), mask=o < outputs)


@triton.jit(do_not_specialize=["rows", "blocks", "size", "outputs"])
def join_statistics_kernel(
    partial_ptr, mean_ptr, variance_ptr, rows, blocks, size, outputs, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr
):
    """mean and variance (B, G, outputs), ``size`` elements, one a thread; the parallel variance of Chan, Golub and LeVeque."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < size
    first = partial_ptr + i // outputs * blocks * 2 * outputs + i % outputs
    mean = tl.zeros([BLOCK], tl.float64)
    squares = tl.zeros([BLOCK], tl.float64)
    for block in range(0, blocks):
        before = block * BLOCK_P
        count = tl.minimum(rows - before, BLOCK_P)
        place = first + block * 2 * outputs
        away = tl.load(place, mask=here, other=0.0).to(tl.float64) - mean
        squares += tl.load(place + outputs, mask=here, other=0.0).to(tl.float64)
        share = count.to(tl.float64) / (before + count)
        mean += away * share
        squares += away * away * share * before
    tl.store(mean_ptr + i, mean, mask=here)
    tl.store(variance_ptr + i, squares / rows, mask=here)


@dataclass(frozen=True)
class Tile:
    """Positions and output channels that a program makes, and the input channels that it reads at a time."""

    positions: int
    outputs: int
    inputs: int
    warps: int = 4

    @property
    def constants(self) -> dict[str, int]:
        return {"BLOCK_P": self.positions, "BLOCK_O": self.outputs, "BLOCK_K": self.inputs}


# The channels of a cell are few: a tile holds 16 or 32 of them and many positions.
TILES = (Tile(128, 16, 16), Tile(64, 32, 32))
EXACT_TILES = (Tile(64, 16, 16, warps=8), Tile(32, 32, 16))
JOINED = 128


def choose_tile(outputs: int, exact: bool) -> Tile:
    """``exact``: float32 products by ordinary multiply-adds, whose operands take the registers of a larger tile."""
    return (EXACT_TILES if exact else TILES)[outputs > 16]


def load_stages(itemsize: int) -> int:
    """Loads that run ahead: what compiles for sm_80 and sm_90 without a spill."""
    return 3 if itemsize == 4 else 2


def launch_convolution(x: Tensor, weight: Tensor, stride: int, groups: int, widen: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, I, H, W) and (B, O, I, kh, kw), neither empty -> y, mean, variance. ``groups`` 0: no statistics."""
    branches, samples, inputs, high, wide = x.shape
    outputs, (kh, kw) = weight.shape[1], weight.shape[3:]
    sizes = ((high - 1) // stride + 1, (wide - 1) // stride + 1)
    tile = choose_tile(outputs, x.dtype == torch.float32 and precision() == "ieee")
    parts = groups or 1
    rows = samples // parts * sizes[0] * sizes[1]
    blocks = triton.cdiv(rows, tile.positions)
    y = torch.empty(branches, samples, *sizes, outputs, dtype=x.dtype, device=x.device)
    mean, variance = (torch.empty(branches, groups, outputs, dtype=statistics_dtype(x), device=x.device) for _ in range(2))
    partial = torch.empty(branches, groups, blocks, 2, outputs, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        convolution_kernel[(branches * parts * blocks * triton.cdiv(outputs, tile.outputs),)](
            x,
            weight,
            y,
            partial,
            rows,
            blocks,
            samples // parts,
            parts,
            inputs,
            outputs,
            high,
            wide,
            *sizes,
            stride,
            kh * kw,
            *x.stride(),
            *weight.stride()[:3],
            weight.stride(3 if kh > 1 else 4),
            ALONG_ROWS=kh > 1,
            STATISTICS=bool(groups),
            PRECISION=precision(),
            WIDEN=widen or x.dtype == torch.float32,
            **tile.constants,
            num_warps=tile.warps,
            num_stages=load_stages(x.element_size()),
        )
        if groups:
            join_statistics_kernel[(triton.cdiv(mean.numel(), JOINED),)](
                partial, mean, variance, rows, blocks, mean.numel(), outputs, BLOCK_P=tile.positions, BLOCK=JOINED, num_warps=4
            )
    return y.movedim(-1, 2), mean, variance
