"""Masked convolutions in Triton: see :mod:`engine.kernels.masked_convolution` for the functions that are computed.

A convolution is one product a tap of the kernel, over positions and channels, and so is its input gradient, which reads the
cotangent where the convolution would have written it; the mask is applied where a weight is loaded, so a masked weight is never
written out. All tasks are one launch. Activations may have any strides; results lie with channels innermost, weights' products as
weights do. Sums over programs are made by a second pass in a fixed order: repeated runs give the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.masked_convolution import Geometry, Pair
from engine.kernels.triton_masked import TARGET_PROGRAMS, Tile, _kept, _product, precision


@triton.jit
def _source(row, column, tap, sizes_high, sizes_wide, taps_wide, step_high, step_wide, pad_high, pad_wide, apart_high, apart_wide,
            BACK: tl.constexpr):  # fmt: skip
    """Where a position reads through a tap, and whether that exists: the input of an output, or (BACK) the output of an input."""
    down, right = tap // taps_wide * apart_high - pad_high, tap % taps_wide * apart_wide - pad_wide
    if BACK:
        r, q = row - down, column - right
        exact = (r >= 0) & (q >= 0) & (r % step_high == 0) & (q % step_wide == 0)
        r, q = r // step_high, q // step_wide
        return r, q, exact & (r < sizes_high) & (q < sizes_wide)
    else:
        r, q = row * step_high + down, column * step_wide + right
        return r, q, (r >= 0) & (r < sizes_high) & (q >= 0) & (q < sizes_wide)


@triton.jit(do_not_specialize=["rows", "tiles_p"])
def masked_conv_kernel(
    x_ptr,
    weight_ptr,
    scores_ptr,
    bits_ptr,
    threshold_ptr,
    y_ptr,
    rows,
    tiles_p,
    groups,
    inputs,
    outputs,
    high,
    wide,
    high_out,
    wide_out,
    taps,
    taps_wide,
    step_high,
    step_wide,
    pad_high,
    pad_wide,
    apart_high,
    apart_wide,
    x_task,
    x_sample,
    x_channel,
    x_row,
    x_column,
    weight_output,
    weight_input,
    BACK: tl.constexpr,
    BITS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y (T, N, H', W', groups * outputs) of x (T, N, groups * inputs, H, W); ``rows`` are the positions of a task's samples.

    Weights are contiguous, (T, groups, ...) with ``taps`` innermost; BACK exchanges which of their axes is summed over.
    """
    tiles_o = tl.cdiv(outputs, BLOCK_O)
    program = tl.program_id(0)
    o = (program % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    p = program // tiles_o % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    group = (program // tiles_o // tiles_p % groups).to(tl.int64)
    task = (program // tiles_o // tiles_p // groups).to(tl.int64)
    sample, row, column = (p // (high_out * wide_out)).to(tl.int64), p % (high_out * wide_out) // wide_out, p % wide_out
    sigma = tl.load(threshold_ptr).to(tl.float32)
    images = x_ptr + task * x_task + sample * x_sample + group * inputs * x_channel
    size = inputs.to(tl.int64) * outputs * taps
    total = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    for tap in range(0, taps):
        r, q, inside = _source(row, column, tap, high, wide, taps_wide, step_high, step_wide, pad_high, pad_wide, apart_high,
                               apart_wide, BACK)  # fmt: skip
        inside = inside & (p < rows)
        source = images + r.to(tl.int64) * x_row + q.to(tl.int64) * x_column
        for start in range(0, inputs, BLOCK_K):
            k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
            x = tl.load(source[:, None] + k[None, :] * x_channel, mask=inside[:, None] & (k < inputs)[None, :], other=0.0)
            here = (k < inputs)[:, None] & (o < outputs)[None, :]
            place = group * size + o[None, :] * weight_output + k[:, None] * weight_input + tap
            weight = tl.load(weight_ptr + task * groups * size + place, mask=here, other=0.0)
            kept = _kept(scores_ptr, bits_ptr, sigma, here, place, 0, 1, 0, 1, 0, BITS)
            weight = tl.where(kept, weight.to(tl.float32), 0.0).to(weight.dtype)
            total = _product(x, weight, total, PRECISION, WIDEN)
    to = (task * rows + p)[:, None] * groups * outputs + group * outputs + o[None, :]
    tl.store(y_ptr + to, total.to(y_ptr.dtype.element_ty), mask=(p < rows)[:, None] & (o < outputs)[None, :])


@triton.jit(do_not_specialize=["rows", "splits", "blocks_per_split"])
def conv_products_kernel(
    g_ptr,
    x_ptr,
    out_ptr,
    rows,
    splits,
    blocks_per_split,
    groups,
    inputs,
    outputs,
    high,
    wide,
    high_out,
    wide_out,
    taps,
    taps_wide,
    step_high,
    step_wide,
    pad_high,
    pad_wide,
    apart_high,
    apart_wide,
    g_task,
    g_sample,
    g_channel,
    g_row,
    g_column,
    x_task,
    x_sample,
    x_channel,
    x_row,
    x_column,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """out (splits, T, groups * outputs, inputs, taps) float32: cotangents times inputs, summed over a split's positions."""
    tiles_o, tiles_i = tl.cdiv(outputs, BLOCK_O), tl.cdiv(inputs, BLOCK_I)
    program = tl.program_id(0)
    split, tile = program % splits, program // splits
    i = (tile % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)
    o = (tile // tiles_i % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    tap = tile // tiles_i // tiles_o % taps
    whole = (tile // tiles_i // tiles_o // taps).to(tl.int64)  # task and group
    group, task = whole % groups, whole // groups
    g_images = g_ptr + task * g_task + (group * outputs + o)[None, :] * g_channel
    x_images = x_ptr + task * x_task + (group * inputs + i)[None, :] * x_channel
    total = tl.zeros([BLOCK_O, BLOCK_I], tl.float32)
    for block in range(0, blocks_per_split):
        p = (split * blocks_per_split + block) * BLOCK_N + tl.arange(0, BLOCK_N)
        sample, row, column = (p // (high_out * wide_out)).to(tl.int64), p % (high_out * wide_out) // wide_out, p % wide_out
        r, q, inside = _source(row, column, tap, high, wide, taps_wide, step_high, step_wide, pad_high, pad_wide, apart_high,
                               apart_wide, False)  # fmt: skip
        inside = inside & (p < rows)
        at = sample * g_sample + row.to(tl.int64) * g_row + column.to(tl.int64) * g_column
        g = tl.load(g_images + at[:, None], mask=inside[:, None] & (o < outputs)[None, :], other=0.0)
        at = sample * x_sample + r.to(tl.int64) * x_row + q.to(tl.int64) * x_column
        x = tl.load(x_images + at[:, None], mask=inside[:, None] & (i < inputs)[None, :], other=0.0)
        total = _product(tl.trans(g), x, total, PRECISION, WIDEN)
    matrices = tl.num_programs(0) // (splits * tiles_i * tiles_o * taps)
    place = (((split * matrices + whole) * outputs + o)[:, None] * inputs + i[None, :]) * taps + tap
    tl.store(out_ptr + place, total, mask=(o < outputs)[:, None] & (i < inputs)[None, :])


# Positions, channels out and channels in (or of a product: positions summed at a time, channels out, channels in). Exact float32
# products are made by ordinary multiply-adds, whose operands take the registers of a larger tile.
TILE, EXACT_TILE = Tile(64, 32, 32), Tile(32, 32, 16)
PRODUCT_TILE, EXACT_PRODUCT_TILE = Tile(32, 32, 32), Tile(16, 32, 32)
STAGES = 2


def launch_masked_conv(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Tensor,
    bits: Tensor | None,
    geometry: Geometry,
    size: Pair,
    *,
    back: bool,
    widen: bool = False,
) -> Tensor:
    """x (T, N, C, H, W) and weight (T, O, C / groups, kh, kw), neither empty -> (T, N, O, *size).

    ``back``: x is a cotangent (T, N, O, H, W) and the result the gradient (T, N, C, *size). ``widen``: float32 products.
    """
    tasks, samples, _, high, wide = x.shape
    _, outputs, inputs, kh, kw = weight.shape
    groups, exact = geometry.groups, x.dtype == torch.float32 and precision() == "ieee"
    outputs, tile = outputs // groups, EXACT_TILE if exact else TILE
    strides = (inputs * kh * kw, kh * kw)
    if back:
        outputs, inputs, strides = inputs, outputs, strides[::-1]
    rows = samples * size[0] * size[1]
    tiles_p = triton.cdiv(rows, tile.rows)
    y = torch.empty(tasks, samples, *size, groups * outputs, dtype=x.dtype, device=x.device)
    weight, scores = weight.contiguous(), scores.contiguous()
    with torch.cuda.device_of(x):
        masked_conv_kernel[(tasks * groups * tiles_p * triton.cdiv(outputs, tile.outputs),)](
            x,
            weight,
            scores,
            scores if bits is None else bits,
            threshold,
            y,
            rows,
            tiles_p,
            groups,
            inputs,
            outputs,
            high,
            wide,
            *size,
            kh * kw,
            kw,
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
            *x.stride(),
            *strides,
            BACK=back,
            BITS=bits is not None,
            PRECISION=precision(),
            WIDEN=widen or x.dtype == torch.float32,
            BLOCK_P=tile.rows,
            BLOCK_O=tile.outputs,
            BLOCK_K=tile.inputs,
            num_warps=tile.warps,
            num_stages=STAGES,
        )
    return y.movedim(-1, 2)


def launch_conv_products(cotangent: Tensor, x: Tensor, kernel: Pair, geometry: Geometry, widen: bool = False) -> Tensor:
    """(T, N, O, H', W') and (T, N, C, H, W), neither empty -> the weights' gradient before masking, float32."""
    tasks, samples, outputs, *size = cotangent.shape
    groups = geometry.groups
    outputs, inputs = outputs // groups, x.shape[2] // groups
    tile = EXACT_PRODUCT_TILE if x.dtype == torch.float32 and precision() == "ieee" else PRODUCT_TILE
    rows, taps = samples * size[0] * size[1], kernel[0] * kernel[1]
    programs = tasks * groups * taps * triton.cdiv(outputs, tile.outputs) * triton.cdiv(inputs, tile.inputs)
    blocks = triton.cdiv(rows, tile.rows)
    per_split = triton.cdiv(blocks, min(blocks, triton.cdiv(TARGET_PROGRAMS, programs)))
    splits = triton.cdiv(blocks, per_split)
    out = torch.empty(splits, tasks, groups * outputs, inputs, *kernel, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        conv_products_kernel[(programs * splits,)](
            cotangent,
            x,
            out,
            rows,
            splits,
            per_split,
            groups,
            inputs,
            outputs,
            *x.shape[3:],
            *size,
            taps,
            kernel[1],
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
            *cotangent.stride(),
            *x.stride(),
            PRECISION=precision(),
            WIDEN=widen or x.dtype == torch.float32,
            BLOCK_N=tile.rows,
            BLOCK_O=tile.outputs,
            BLOCK_I=tile.inputs,
            num_warps=tile.warps,
            num_stages=STAGES,
        )
    return out[0] if splits == 1 else out.sum(0)
