"""Kernels of :func:`engine.kernels.mixed_edge.mixed_edge`: one reads a state for everything, the others need its statistics.

    read        x -> taps of all filters, moments of both pools                              (reads 1, writes D tensors)
    sums        x -> the E sums                                                              (reads 1, writes E)
    products    x, g -> sums of g and g y, and which place of each window won the maximum    (reads 1 + E, writes 1/4)
    cotangents  x, g -> what flows into either pool's output                                 (reads 1 + E, writes 2)
    gradient    those, g, the taps' cotangents -> dx                                         (reads 3 + E + D, writes 1)
    filters     x, the taps' cotangents -> the filters' gradients                            (reads 1 + D)

Neighbours come out of the caches: pools are computed again in each kernel that needs them instead of being stored. Everything
gathers, nothing is added atomically. Filters are sorted into kinds: KINDS is a flat tuple of (kernel height, width, dilation,
count). Kinds are unrolled; the filters of a kind and their places are loops, since unrolled places take all registers and spill:
``most`` bounds them, larger than any, so that the compiler does not know how long they are. Images are WIDTH wide.

With partial channels a state has PARTS times the ``channels`` that operations see, which are its first ones. What they make of
channel c goes to channel PARTS c of a sum, and channel i channels + c of the state, weighted, to PARTS c + i: the shuffle of
PC-DARTS is where a program stores, and reads in the backward.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.mixed_edge.triton_blocks import moments, place, shuffled, tile


@triton.jit
def pools(x_ptr, c, p, live, channels, height, out_width, STRIDE: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """Maximum, its place in the window (the first of equals in row-major order), average, one over the count.

    Here and below ``channels`` are all that the state has.
    """
    row, column = p // out_width * STRIDE, p % out_width * STRIDE
    total = tl.zeros(live.shape, tl.float32)
    largest = tl.full(live.shape, float("-inf"), tl.float32)
    winner = tl.full(live.shape, -1, tl.int32)
    count = tl.zeros(p.shape, tl.float32)
    for tap in tl.static_range(9):
        r, q = row + tap // 3 - 1, column + tap % 3 - 1
        inside = (r >= 0) & (r < height) & (q >= 0) & (q < WIDTH)
        v = tl.load(x_ptr + place(r * WIDTH + q, c, height * WIDTH, channels, LAST), mask=live & inside, other=0.0).to(tl.float32)
        total += v
        count += inside.to(tl.float32)
        better = inside & ((v > largest) | (winner < 0))
        largest = tl.where(better, v, largest)
        winner = tl.where(better, tap, winner)
    share = 1.0 / tl.maximum(count, 1.0)
    return tl.where(live, largest, 0.0), winner, total * share, share


@triton.jit
def rectified(x_ptr, r, q, c, live, channels, height, WIDTH: tl.constexpr, LAST: tl.constexpr):
    inside = live & (r >= 0) & (r < height) & (q >= 0) & (q < WIDTH)
    v = tl.load(x_ptr + place(r * WIDTH + q, c, height * WIDTH, channels, LAST), mask=inside, other=0.0)
    return tl.maximum(v.to(tl.float32), 0.0)


@triton.jit
def bypass(x_ptr, c, p, live, channels, height, out_width, STRIDE: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """What passes by the operations: the state itself, or with stride 2 the maximum of the 2x2 elements that exist."""
    row, column = p // out_width * STRIDE, p % out_width * STRIDE
    v = tl.load(x_ptr + place(row * WIDTH + column, c, height * WIDTH, channels, LAST), mask=live, other=0.0).to(tl.float32)
    if STRIDE == 2:
        for tap in tl.static_range(1, 4):
            r, q = row + tap // 2, column + tap % 2
            inside = live & (r < height) & (q < WIDTH)
            other = tl.load(x_ptr + place(r * WIDTH + q, c, height * WIDTH, channels, LAST), mask=inside, other=float("-inf"))
            v = tl.maximum(v, other.to(tl.float32))
    return v


@triton.jit
def read_kernel(
    x_ptr,
    filter_ptr,
    taps_ptr,
    mean_ptr,
    spread_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    height,
    out_width,
    most,
    KINDS: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Taps (D, B, C, H', W'), kinds behind one another, and moments (2, B, S, C) of the pools' blocks of positions."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    x_ptr += sample * channels * PARTS * height * WIDTH
    largest, _, average, _ = pools(x_ptr, c, p, live, channels * PARTS, height, out_width, STRIDE, WIDTH, LAST)
    split, splits = tl.program_id(1), tl.num_programs(1)
    number = tl.minimum(BLOCK_P, positions - split * BLOCK_P).to(tl.float32)
    out = (sample * splits + split) * channels + c
    mean, spread = moments(largest, live, number)
    tl.store(mean_ptr + out, mean, mask=c < channels)
    tl.store(spread_ptr + out, spread, mask=c < channels)
    out += samples.to(tl.int64) * splits * channels
    mean, spread = moments(average, live, number)
    tl.store(mean_ptr + out, mean, mask=c < channels)
    tl.store(spread_ptr + out, spread, mask=c < channels)
    taps_ptr += sample * channels * positions + place(p, c, positions, channels, LAST)
    row, column = p // out_width * STRIDE, p % out_width * STRIDE
    for kind in tl.static_range(len(KINDS) // 4):
        for _ in range(tl.minimum(KINDS[4 * kind + 3], most)):
            total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
            for tap in range(tl.minimum(KINDS[4 * kind] * KINDS[4 * kind + 1], most)):
                r = row + (tap // KINDS[4 * kind + 1] - KINDS[4 * kind] // 2) * KINDS[4 * kind + 2]
                q = column + (tap % KINDS[4 * kind + 1] - KINDS[4 * kind + 1] // 2) * KINDS[4 * kind + 2]
                weight = tl.load(filter_ptr + tap * channels + c, mask=c < channels, other=0.0).to(tl.float32)
                total += rectified(x_ptr, r, q, c, live, channels * PARTS, height, WIDTH, LAST) * weight
            tl.store(taps_ptr, total.to(taps_ptr.dtype.element_ty), mask=live)
            taps_ptr += samples.to(tl.int64) * channels * positions
            filter_ptr += KINDS[4 * kind] * KINDS[4 * kind + 1] * channels


@triton.jit
def sums_kernel(
    x_ptr,
    alive_ptr,
    scale_ptr,
    shift_ptr,
    passing_ptr,
    out_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    height,
    out_width,
    edges,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out (E, B, PARTS C, H', W') = shift (E, B, C) + scale (E, 3, B, C) times the operations that are alive (E, 3, B).

    ``passing`` (E, B) weighs the other channels.
    """
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    every = channels * PARTS
    x_ptr += sample * every * height * WIDTH
    largest, _, average, _ = pools(x_ptr, c, p, live, every, height, out_width, STRIDE, WIDTH, LAST)
    out_ptr += sample * every * positions
    whole = samples.to(tl.int64) * every * positions
    for e in range(edges):
        out = tl.load(shift_ptr + (e * samples + sample) * channels + c, mask=c < channels, other=0.0)
        out += tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        row = e * 3 * samples + sample
        out += _weighted(largest, alive_ptr, scale_ptr, row, c, channels)
        out += _weighted(average, alive_ptr, scale_ptr, row + samples, c, channels)
        if STRIDE == 1:
            itself = tl.load(x_ptr + place(p, c, positions, every, LAST), mask=live, other=0.0).to(tl.float32)
            out += _weighted(itself, alive_ptr, scale_ptr, row + 2 * samples, c, channels)
        to = out_ptr + e * whole + shuffled(p, c, 0, positions, channels, PARTS, LAST)
        tl.store(to, out.to(out_ptr.dtype.element_ty), mask=live)
    for part in tl.static_range(1, PARTS):
        v = bypass(x_ptr, part * channels + c, p, live, every, height, out_width, STRIDE, WIDTH, LAST)
        for e in range(edges):
            to = out_ptr + e * whole + shuffled(p, c, part, positions, channels, PARTS, LAST)
            tl.store(to, (v * tl.load(passing_ptr + e * samples + sample)).to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def _weighted(y, alive_ptr, scale_ptr, row, c, channels):
    lives = tl.load(alive_ptr + row) != 0
    return tl.where(lives, y * tl.load(scale_ptr + row * channels + c, mask=c < channels, other=0.0), 0.0)
