"""Kernels of :func:`engine.kernels.mixed_edge.mixed_sum`, and what they share with those of the group.

A program works on one sample, BLOCK_C channels and BLOCK_P positions; reductions leave one partial result a block of positions,
which are merged in a fixed order afterwards. Factors are read once a program. A term whose weight is zero is masked out of the
loads, so that its memory is not touched; nothing waits for the host. Up to four terms a launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

TERMS = 4
# Elements of a program of four warps: eight a thread. Compiled without spilling; not tuned on a GPU.
ELEMENTS = 1024


@triton.jit
def tile(channels, channel_blocks, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """The sample, the channels (1, BLOCK_C) and the positions (BLOCK_P, 1) of this program."""
    sample = (tl.program_id(0) // channel_blocks).to(tl.int64)
    c = tl.program_id(0) % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    return sample, c, p


@triton.jit
def place(p, c, positions, channels, LAST: tl.constexpr):
    """Where an element of a sample lies: channels innermost (LAST), or positions."""
    return p * channels + c if LAST else c * positions + p


@triton.jit
def moments(y, live, number):
    """Mean and mean squared deviation of the ``number`` live positions, (1, BLOCK_C)."""
    mean = tl.sum(tl.where(live, y, 0.0), 0)[None, :] / number
    deviation = tl.where(live, y - mean, 0.0)
    return mean, tl.sum(deviation * deviation, 0)[None, :] / number


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
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out = total + shift (B, C) + sum_t scale (T, B, C) y_t."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    plane = sample * channels + c
    out = tl.load(shift_ptr + plane, mask=c < channels, other=0.0) + tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    if BASED:
        out += tl.load(total_ptr + here, mask=live, other=0.0).to(tl.float32)
    for t in tl.static_range(COUNT):
        lives = tl.load(alive_ptr + t * samples + sample) != 0
        y = tl.load(_term(y0, y1, y2, y3, t) + here, mask=live & lives, other=0.0).to(tl.float32)
        out += y * tl.load(scale_ptr + t * samples * channels + plane, mask=c < channels, other=0.0)
    tl.store(out_ptr + here, out.to(out_ptr.dtype.element_ty), mask=live)


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
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of g (B, S, C) and of g (y_t - mean_t) (T, B, S, C) over the blocks of positions."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    split, splits = tl.program_id(1), tl.num_programs(1)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    g = tl.load(g_ptr + here, mask=live, other=0.0).to(tl.float32)
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
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """d_t = constant_t + slope_t (y_t - mean_t) + direct_t g, with factors (T, B, C)."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    g = tl.load(g_ptr + here, mask=live, other=0.0).to(tl.float32)
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


class Blocks:
    """How a launch over tensors like ``x`` (B, C, H, W) with ``positions`` positions a plane is divided into programs."""

    def __init__(self, x: Tensor, positions: int, elements: int = ELEMENTS) -> None:
        self.samples, self.channels = x.shape[:2]
        self.positions, self.last = positions, channels_last(x)
        self.block_c = min(16, triton.next_power_of_2(self.channels)) if self.last else 1
        self.block_p = max(1, min(triton.next_power_of_2(positions), elements // self.block_c))
        self.channel_blocks = triton.cdiv(self.channels, self.block_c)
        self.splits = triton.cdiv(positions, self.block_p)

    @property
    def grid(self) -> tuple[int, int]:
        return self.samples * self.channel_blocks, self.splits

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.samples, self.channels, self.positions, self.channel_blocks

    @property
    def constants(self) -> dict[str, int | bool]:
        return {"LAST": self.last, "BLOCK_P": self.block_p, "BLOCK_C": self.block_c}

    def partials(self, x: Tensor, *axes: int) -> Tensor:
        """Room for (..., B, S, C) results."""
        return torch.empty(*axes, self.samples, self.splits, self.channels, dtype=torch.float32, device=x.device)

    def merged(self, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of whole planes, (..., B, C), from those of their blocks."""
        counts = torch.full((self.splits, 1), float(self.block_p), device=mean.device)
        counts[-1] = self.positions - (self.splits - 1) * self.block_p
        shares = counts / self.positions
        whole = (shares * mean).sum(-2)
        return whole, (shares * (spread + (mean - whole.unsqueeze(-2)).square())).sum(-2)


def channels_last(x: Tensor) -> bool:
    """Whether channels lie innermost."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def laid_out(x: Tensor, last: bool) -> Tensor:
    """``x`` (B, C, H, W), copied if it is not in that layout."""
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


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


def launch_sum(terms: Sequence[Tensor], total: Tensor | None, alive: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """total + shift (B, C) + sum_t scale (T, B, C) y_t, in the layout and precision of the terms."""
    blocks, out = Blocks(terms[0], terms[0].shape[2:].numel()), torch.empty_like(terms[0])
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
        **blocks.constants,
        num_warps=4,
    )
    return out


def launch_products(g: Tensor, terms: Sequence[Tensor], alive: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over planes of g, (B, C), and of g (y_t - mean_t), (T, B, C)."""
    blocks = Blocks(g, g.shape[2:].numel())
    totals, products = blocks.partials(g), blocks.partials(g, len(terms))
    term_products_kernel[blocks.grid](
        g, *_four(terms), alive, mean, totals, products, *blocks.sizes, COUNT=len(terms), **blocks.constants, num_warps=4
    )
    return totals.sum(-2), products.sum(-2)


def launch_gradients(
    g: Tensor, terms: Sequence[Tensor], alive: Tensor, mean: Tensor, direct: Tensor, slope: Tensor, constant: Tensor
) -> list[Tensor]:
    """The terms' gradients, constant_t + slope_t (y_t - mean_t) + direct_t g, from factors (T, B, C)."""
    blocks, found = Blocks(g, g.shape[2:].numel()), [torch.empty_like(y) for y in terms]
    term_gradients_kernel[blocks.grid](
        g,
        *_four(terms),
        *_four(found),
        alive,
        mean,
        direct,
        slope,
        constant,
        *blocks.sizes,
        COUNT=len(terms),
        **blocks.constants,
        num_warps=4,
    )
    return found
