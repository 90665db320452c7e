"""Kernels of :func:`engine.kernels.mixed_edge.mixed_sum`, divided into programs as :mod:`.triton_blocks` says.

Factors are read once a program. A term whose weight is zero is masked out of the loads, so that its memory is not touched;
nothing waits for the host. Up to four terms a launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.mixed_edge.triton_blocks import Blocks, moments, place, shuffled, tile

TERMS = 4


@triton.jit
def _term(y0, y1, y2, y3, T: tl.constexpr):
    if T < 2:
        return y0 if T == 0 else y1
    else:
        return y2 if T == 2 else y3


@triton.jit
def term_moments_kernel(
    y0,
    y1,
    y2,
    y3,
    alive_ptr,
    mean_ptr,
    spread_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    COUNT: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Means and mean squared deviations (T, B, S, C) of the terms' blocks of positions."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    split, splits = tl.program_id(1), tl.num_programs(1)
    number = tl.minimum(BLOCK_P, positions - split * BLOCK_P).to(tl.float32)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    for t in tl.static_range(COUNT):
        lives = tl.load(alive_ptr + t * samples + sample) != 0
        y = tl.load(_term(y0, y1, y2, y3, t) + here, mask=live & lives, other=0.0).to(tl.float32)
        mean, spread = moments(y, live, number)
        out = ((t * samples + sample) * splits + split) * channels + c
        tl.store(mean_ptr + out, mean, mask=c < channels)
        tl.store(spread_ptr + out, spread, mask=c < channels)


@triton.jit
def weighted_sum_kernel(
    y0,
    y1,
    y2,
    y3,
    total_ptr,
    alive_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    COUNT: tl.constexpr,
    BASED: tl.constexpr,
    PARTS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out = total + shift (B, C) + sum_t scale (T, B, C) y_t, in the channels PARTS c of total and out."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    there = sample * channels * PARTS * positions + shuffled(p, c, 0, positions, channels, PARTS, LAST)
    plane = sample * channels + c
    out = tl.load(shift_ptr + plane, mask=c < channels, other=0.0) + tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    if BASED:
        out += tl.load(total_ptr + there, mask=live, other=0.0).to(tl.float32)
    for t in tl.static_range(COUNT):
        lives = tl.load(alive_ptr + t * samples + sample) != 0
        y = tl.load(_term(y0, y1, y2, y3, t) + here, mask=live & lives, other=0.0).to(tl.float32)
        out += y * tl.load(scale_ptr + t * samples * channels + plane, mask=c < channels, other=0.0)
    tl.store(out_ptr + there, out.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def term_products_kernel(
    g_ptr,
    y0,
    y1,
    y2,
    y3,
    alive_ptr,
    mean_ptr,
    totals_ptr,
    products_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    COUNT: tl.constexpr,
    PARTS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of g (B, S, C) and of g (y_t - mean_t) (T, B, S, C) over the blocks of positions; g in the channels PARTS c."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    split, splits = tl.program_id(1), tl.num_programs(1)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    there = sample * channels * PARTS * positions + shuffled(p, c, 0, positions, channels, PARTS, LAST)
    g = tl.load(g_ptr + there, mask=live, other=0.0).to(tl.float32)
    tl.store(totals_ptr + (sample * splits + split) * channels + c, tl.sum(g, 0)[None, :], mask=c < channels)
    for t in tl.static_range(COUNT):
        lives = tl.load(alive_ptr + t * samples + sample) != 0
        y = tl.load(_term(y0, y1, y2, y3, t) + here, mask=live & lives, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + (t * samples + sample) * channels + c, mask=c < channels, other=0.0)
        product = tl.sum(tl.where(live & lives, g * (y - mean), 0.0), 0)[None, :]
        out = ((t * samples + sample) * splits + split) * channels + c
        tl.store(products_ptr + out, product, mask=c < channels)


@triton.jit
def term_gradients_kernel(
    g_ptr,
    y0,
    y1,
    y2,
    y3,
    d0,
    d1,
    d2,
    d3,
    alive_ptr,
    mean_ptr,
    direct_ptr,
    slope_ptr,
    constant_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    COUNT: tl.constexpr,
    PARTS: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """d_t = constant_t + slope_t (y_t - mean_t) + direct_t g, with factors (T, B, C)."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    there = sample * channels * PARTS * positions + shuffled(p, c, 0, positions, channels, PARTS, LAST)
    g = tl.load(g_ptr + there, mask=live, other=0.0).to(tl.float32)
    for t in tl.static_range(COUNT):
        lives = tl.load(alive_ptr + t * samples + sample) != 0
        y = tl.load(_term(y0, y1, y2, y3, t) + here, mask=live & lives, other=0.0).to(tl.float32)
        plane = (t * samples + sample) * channels + c
        mean = tl.load(mean_ptr + plane, mask=c < channels, other=0.0)
        direct = tl.load(direct_ptr + plane, mask=c < channels, other=0.0)
        slope = tl.load(slope_ptr + plane, mask=c < channels, other=0.0)
        constant = tl.load(constant_ptr + plane, mask=c < channels, other=0.0)
        d = tl.where(lives, constant + slope * (y - mean) + direct * g, 0.0)
        out = _term(d0, d1, d2, d3, t)
        tl.store(out + here, d.to(out.dtype.element_ty), mask=live)


def _four(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [*tensors, *[tensors[0]] * (TERMS - len(tensors))]


def launch_moments(terms: Sequence[Tensor], alive: Tensor) -> tuple[Tensor, Tensor]:
    """Up to four terms (B, C, H, W) of one layout, alive (T, B) int8 -> means and variances (T, B, C)."""
    blocks = Blocks(terms[0], terms[0].shape[2:].numel())
    mean, spread = blocks.partials(terms[0], len(terms)), blocks.partials(terms[0], len(terms))
    term_moments_kernel[blocks.grid](
        *_four(terms), alive, mean, spread, *blocks.sizes, COUNT=len(terms), **blocks.constants, num_warps=4
    )
    return blocks.merged(mean, spread)


def launch_sum(
    terms: Sequence[Tensor], total: Tensor | None, alive: Tensor, scale: Tensor, shift: Tensor, out: Tensor, parts: int
) -> None:
    """out = total + shift (B, C) + sum_t scale (T, B, C) y_t, in every ``parts``-th channel of out, the others left alone."""
    blocks = Blocks(terms[0], terms[0].shape[2:].numel())
    weighted_sum_kernel[blocks.grid](
        *_four(terms),
        terms[0] if total is None else total,
        alive,
        scale,
        shift,
        out,
        *blocks.sizes,
        COUNT=len(terms),
        BASED=total is not None,
        PARTS=parts,
        **blocks.constants,
        num_warps=4,
    )


def launch_products(g: Tensor, terms: Sequence[Tensor], alive: Tensor, mean: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Sums over planes of g (B, parts C, H, W), (B, C) of its every ``parts``-th channel, and of g (y_t - mean_t), (T, B, C)."""
    blocks = Blocks(terms[0], g.shape[2:].numel())
    totals, products = blocks.partials(g), blocks.partials(g, len(terms))
    fixed = {"COUNT": len(terms), "PARTS": parts, **blocks.constants}
    term_products_kernel[blocks.grid](g, *_four(terms), alive, mean, totals, products, *blocks.sizes, **fixed, num_warps=4)
    return totals.sum(-2), products.sum(-2)


def launch_gradients(
    g: Tensor,
    terms: Sequence[Tensor],
    alive: Tensor,
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    parts: int,
) -> list[Tensor]:
    """The terms' gradients, constant_t + slope_t (y_t - mean_t) + direct_t g; mean, direct, slope and constant are (T, B, C)."""
    blocks, found = Blocks(terms[0], g.shape[2:].numel()), [torch.empty_like(y) for y in terms]
    term_gradients_kernel[blocks.grid](
        g,
        *_four(terms),
        *_four(found),
        alive,
        *factors,
        *blocks.sizes,
        COUNT=len(terms),
        PARTS=parts,
        **blocks.constants,
        num_warps=4,
    )
    return found
