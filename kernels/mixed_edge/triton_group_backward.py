"""The backward kernels of the group: see :mod:`.triton_group` for what each reads and writes."""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.mixed_edge.triton_blocks import place, shuffled, tile
from engine.kernels.mixed_edge.triton_group import bypass, pools, rectified


@triton.jit
def products_kernel(
    x_ptr,
    g_ptr,
    alive_ptr,
    mean_ptr,
    totals_ptr,
    products_ptr,
    passed_ptr,
    winner_ptr,
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
    """Sums of g (E, B, S, C) and of g (y - mean) (E, 3, B, S, C), mean (3, B, C); the maximum's places (B, C, H', W') int8.

    With partial channels also those of g times what passed by, added over its parts, (E, B, S, C).
    """
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    split, splits = tl.program_id(1), tl.num_programs(1)
    every = channels * PARTS
    x_ptr += sample * every * height * WIDTH
    largest, winner, average, _ = pools(x_ptr, c, p, live, every, height, out_width, STRIDE, WIDTH, LAST)
    g_ptr += sample * every * positions
    whole = samples.to(tl.int64) * every * positions
    tl.store(winner_ptr + sample * channels * positions + place(p, c, positions, channels, LAST), winner.to(tl.int8), mask=live)
    mean = mean_ptr + sample * channels + c
    largest -= tl.load(mean, mask=c < channels, other=0.0)
    average -= tl.load(mean + samples * channels, mask=c < channels, other=0.0)
    for e in range(edges):
        g = tl.load(g_ptr + e * whole + shuffled(p, c, 0, positions, channels, PARTS, LAST), mask=live, other=0.0).to(tl.float32)
        tl.store(totals_ptr + ((e * samples + sample) * splits + split) * channels + c, tl.sum(g, 0)[None, :], mask=c < channels)
        row = e * 3 * samples + sample
        _store_product(products_ptr, alive_ptr, g, largest, row, split, splits, c, channels)
        _store_product(products_ptr, alive_ptr, g, average, row + samples, split, splits, c, channels)
        itself = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        if STRIDE == 1:
            itself = tl.load(x_ptr + place(p, c, positions, every, LAST), mask=live, other=0.0).to(tl.float32)
        _store_product(products_ptr, alive_ptr, g, itself, row + 2 * samples, split, splits, c, channels)
        if PARTS > 1:
            passed = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
            for part in tl.static_range(1, PARTS):
                v = bypass(x_ptr, part * channels + c, p, live, every, height, out_width, STRIDE, WIDTH, LAST)
                to = e * whole + shuffled(p, c, part, positions, channels, PARTS, LAST)
                passed += v * tl.load(g_ptr + to, mask=live, other=0.0).to(tl.float32)
            to = ((e * samples + sample) * splits + split) * channels + c
            tl.store(passed_ptr + to, tl.sum(passed, 0)[None, :], mask=c < channels)


@triton.jit
def _store_product(products_ptr, alive_ptr, g, y, row, split, splits, c, channels):
    lives = tl.load(alive_ptr + row) != 0
    product = tl.sum(tl.where(lives, g * y, 0.0), 0)[None, :]
    tl.store(products_ptr + (row * splits + split) * channels + c, product, mask=c < channels)


@triton.jit
def cotangents_kernel(
    x_ptr,
    g_ptr,
    mean_ptr,
    direct_ptr,
    slope_ptr,
    constant_ptr,
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
    """What flows into the maximum and, over the count, into the average: (2, B, C, H', W') float32; see the module norm."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    every = channels * PARTS
    x_ptr += sample * every * height * WIDTH
    largest, _, average, share = pools(x_ptr, c, p, live, every, height, out_width, STRIDE, WIDTH, LAST)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    plane, whole = sample * channels + c, samples * channels
    known = c < channels
    largest -= tl.load(mean_ptr + plane, mask=known, other=0.0)
    average -= tl.load(mean_ptr + whole + plane, mask=known, other=0.0)
    into_largest = largest * tl.load(slope_ptr + plane, mask=known, other=0.0)
    into_largest += tl.load(constant_ptr + plane, mask=known, other=0.0)
    into_average = average * tl.load(slope_ptr + whole + plane, mask=known, other=0.0)
    into_average += tl.load(constant_ptr + whole + plane, mask=known, other=0.0)
    for e in range(edges):
        from_ = (e * samples + sample) * every * positions + shuffled(p, c, 0, positions, channels, PARTS, LAST)
        g = tl.load(g_ptr + from_, mask=live, other=0.0).to(tl.float32)
        into_largest += g * tl.load(direct_ptr + 3 * e * whole + plane, mask=known, other=0.0)
        into_average += g * tl.load(direct_ptr + (3 * e + 1) * whole + plane, mask=known, other=0.0)
    tl.store(out_ptr + here, into_largest, mask=live)
    tl.store(out_ptr + samples.to(tl.int64) * channels * positions + here, into_average * share, mask=live)


@triton.jit
def gradient_kernel(
    x_ptr,
    g_ptr,
    taps_ptr,
    filter_ptr,
    winner_ptr,
    pooled_ptr,
    direct_ptr,
    passing_ptr,
    dx_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    out_height,
    out_width,
    edges,
    most,
    KINDS: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dx at ``positions`` input positions, gathered from the outputs that read them."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    row, column = p // WIDTH, p % WIDTH
    outputs = out_height * out_width
    image, whole = sample * channels * outputs, samples.to(tl.int64) * channels * outputs
    dx = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tap in tl.static_range(9):
        r, q, inside = _reader(row, column, tap // 3 - 1, tap % 3 - 1, live, out_height, out_width, STRIDE)
        from_ = image + place(r * out_width + q, c, outputs, channels, LAST)
        winner = tl.load(winner_ptr + from_, mask=inside, other=-1)
        dx += tl.load(pooled_ptr + from_, mask=inside & (winner == tap), other=0.0)
        dx += tl.load(pooled_ptr + whole + from_, mask=inside, other=0.0)
    every = channels * PARTS
    x_ptr += sample * every * positions
    dx_ptr += sample * every * positions
    g_ptr += sample * every * outputs
    if STRIDE == 1:
        for e in range(edges):
            direct = tl.load(direct_ptr + ((3 * e + 2) * samples + sample) * channels + c, mask=c < channels, other=0.0)
            dx += direct * tl.load(
                g_ptr + e * whole * PARTS + shuffled(p, c, 0, outputs, channels, PARTS, LAST), mask=live, other=0.0
            ).to(tl.float32)
    if len(KINDS) > 0:
        through = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for kind in tl.static_range(len(KINDS) // 4):
            for _ in range(tl.minimum(KINDS[4 * kind + 3], most)):
                for at in range(tl.minimum(KINDS[4 * kind] * KINDS[4 * kind + 1], most)):
                    down = (at // KINDS[4 * kind + 1] - KINDS[4 * kind] // 2) * KINDS[4 * kind + 2]
                    right = (at % KINDS[4 * kind + 1] - KINDS[4 * kind + 1] // 2) * KINDS[4 * kind + 2]
                    r, q, inside = _reader(row, column, down, right, live, out_height, out_width, STRIDE)
                    from_ = image + place(r * out_width + q, c, outputs, channels, LAST)
                    weight = tl.load(filter_ptr + at * channels + c, mask=c < channels, other=0.0).to(tl.float32)
                    through += tl.load(taps_ptr + from_, mask=inside, other=0.0).to(tl.float32) * weight
                taps_ptr += whole
                filter_ptr += KINDS[4 * kind] * KINDS[4 * kind + 1] * channels
        x = tl.load(x_ptr + place(p, c, positions, every, LAST), mask=live, other=0.0).to(tl.float32)
        dx += tl.where(x > 0, through, 0.0)
    tl.store(dx_ptr + place(p, c, positions, every, LAST), dx.to(dx_ptr.dtype.element_ty), mask=live)
    for part in tl.static_range(1, PARTS):
        wins = live
        if STRIDE == 2:
            wins = _wins(x_ptr, part * channels + c, row, column, live, every, positions, WIDTH, LAST)
        reader = row // STRIDE * out_width + column // STRIDE
        into = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for e in range(edges):
            from_ = e * whole * PARTS + shuffled(reader, c, part, outputs, channels, PARTS, LAST)
            g = tl.load(g_ptr + from_, mask=wins, other=0.0).to(tl.float32)
            into += g * tl.load(passing_ptr + e * samples + sample)
        to = place(p, part * channels + c, positions, every, LAST)
        tl.store(dx_ptr + to, into.to(dx_ptr.dtype.element_ty), mask=live)


@triton.jit
def _wins(x_ptr, c, row, column, live, channels, positions, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """Whether an element is the maximum of its 2x2 window, the first of equals in row-major order."""
    own = tl.load(x_ptr + place(row * WIDTH + column, c, positions, channels, LAST), mask=live, other=0.0).to(tl.float32)
    mine = row % 2 * 2 + column % 2
    wins = live
    for tap in tl.static_range(4):
        r, q = row - row % 2 + tap // 2, column - column % 2 + tap % 2
        inside = live & (r * WIDTH < positions) & (q < WIDTH)
        v = tl.load(x_ptr + place(r * WIDTH + q, c, positions, channels, LAST), mask=inside, other=float("-inf")).to(tl.float32)
        wins = wins & ((v < own) | ((v == own) & (mine <= tap)) | (mine == tap))
    return wins


@triton.jit
def _reader(row, column, down, right, live, out_height, out_width, STRIDE: tl.constexpr):
    """The output that reads an input position at a displacement, and whether it exists."""
    r, q = row - down, column - right
    exact = (r >= 0) & (q >= 0) & (r % STRIDE == 0) & (q % STRIDE == 0)
    r, q = r // STRIDE, q // STRIDE
    return r, q, live & exact & (r < out_height) & (q < out_width)


@triton.jit
def filters_kernel(
    x_ptr,
    taps_ptr,
    out_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    height,
    out_width,
    most,
    PLACES: tl.constexpr,
    KINDS: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The filters' gradients over one block of positions of one sample, (B, S, PLACES, C): PLACES weights a channel in all."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    x_ptr += sample * channels * PARTS * height * WIDTH
    taps_ptr += sample * channels * positions + place(p, c, positions, channels, LAST)
    out_ptr += (sample * tl.num_programs(1) + tl.program_id(1)) * PLACES * channels + c
    row, column = p // out_width * STRIDE, p % out_width * STRIDE
    number = 0
    for kind in tl.static_range(len(KINDS) // 4):
        for _ in range(tl.minimum(KINDS[4 * kind + 3], most)):
            g = tl.load(taps_ptr, mask=live, other=0.0).to(tl.float32)
            for tap in range(tl.minimum(KINDS[4 * kind] * KINDS[4 * kind + 1], most)):
                r = row + (tap // KINDS[4 * kind + 1] - KINDS[4 * kind] // 2) * KINDS[4 * kind + 2]
                q = column + (tap % KINDS[4 * kind + 1] - KINDS[4 * kind + 1] // 2) * KINDS[4 * kind + 2]
                total = tl.sum(g * rectified(x_ptr, r, q, c, live, channels * PARTS, height, WIDTH, LAST), 0)[None, :]
                tl.store(out_ptr + number * channels, total, mask=c < channels)
                number += 1
            taps_ptr += samples.to(tl.int64) * channels * positions
