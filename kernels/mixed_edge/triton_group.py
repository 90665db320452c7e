"""Kernels of :func:`engine.kernels.mixed_edge.mixed_edge`: one reads a state for everything, the others need its statistics.

    read        x -> taps of all filters, moments of both pools                              (reads 1, writes D tensors)
    sums        x -> the E sums                                                              (reads 1, writes E)
    products    x, g -> sums of g and g y, and which place of each window won the maximum    (reads 1 + E, writes 1/4)
    cotangents  x, g -> what flows into either pool's output                                 (reads 1 + E, writes 2)
    gradient    those, g, the taps' cotangents -> dx                                         (reads 3 + E + D, writes 1)
    filters     x, the taps' cotangents -> the filters' gradients                            (reads 1 + D)

Neighbours come out of the caches: pools are computed again in each kernel that needs them instead of being stored. Everything
gathers, nothing is added atomically. Filters are sorted into kinds: KINDS is a flat tuple of (kernel height, width, dilation,
count). Kinds are unrolled; the filters of a kind and their places are loops, since unrolled places take all registers and spill.
Images are WIDTH wide; a network has few widths.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.mixed_edge.triton_sum import moments, place, tile


@triton.jit
def _pools(x_ptr, c, p, live, channels, height, out_width, STRIDE: tl.constexpr, WIDTH: tl.constexpr, LAST: tl.constexpr):
    """Maximum, its place in the window (the first of equals in row-major order), average, one over the count."""
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
def _rectified(x_ptr, r, q, c, live, channels, height, WIDTH: tl.constexpr, LAST: tl.constexpr):
    inside = live & (r >= 0) & (r < height) & (q >= 0) & (q < WIDTH)
    v = tl.load(x_ptr + place(r * WIDTH + q, c, height * WIDTH, channels, LAST), mask=inside, other=0.0)
    return tl.maximum(v.to(tl.float32), 0.0)


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
    KINDS: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Taps (D, B, C, H', W'), kinds behind one another, and moments (2, B, S, C) of the pools' blocks of positions."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    x_ptr += sample * channels * height * WIDTH
    largest, _, average, _ = _pools(x_ptr, c, p, live, channels, height, out_width, STRIDE, WIDTH, LAST)
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
        for _ in tl.range(KINDS[4 * kind + 3], loop_unroll_factor=1):
            total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
            for tap in tl.range(KINDS[4 * kind] * KINDS[4 * kind + 1], loop_unroll_factor=1):
                r = row + (tap // KINDS[4 * kind + 1] - KINDS[4 * kind] // 2) * KINDS[4 * kind + 2]
                q = column + (tap % KINDS[4 * kind + 1] - KINDS[4 * kind + 1] // 2) * KINDS[4 * kind + 2]
                weight = tl.load(filter_ptr + tap * channels + c, mask=c < channels, other=0.0).to(tl.float32)
                total += _rectified(x_ptr, r, q, c, live, channels, height, WIDTH, LAST) * weight
            tl.store(taps_ptr, total.to(taps_ptr.dtype.element_ty), mask=live)
            taps_ptr += samples.to(tl.int64) * channels * positions
            filter_ptr += KINDS[4 * kind] * KINDS[4 * kind + 1] * channels


@triton.jit
def sums_kernel(
    x_ptr,
    alive_ptr,
    scale_ptr,
    shift_ptr,
    out_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    height,
    out_width,
    edges,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out (E, B, C, H', W') = shift (E, B, C) + scale (E, 3, B, C) times the operations that are alive (E, 3, B)."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    x_ptr += sample * channels * height * WIDTH
    largest, _, average, _ = _pools(x_ptr, c, p, live, channels, height, out_width, STRIDE, WIDTH, LAST)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    for e in range(edges):
        out = tl.load(shift_ptr + (e * samples + sample) * channels + c, mask=c < channels, other=0.0)
        out += tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        row = e * 3 * samples + sample
        out += _weighted(largest, alive_ptr, scale_ptr, row, c, channels)
        out += _weighted(average, alive_ptr, scale_ptr, row + samples, c, channels)
        if STRIDE == 1:
            itself = tl.load(x_ptr + place(p, c, positions, channels, LAST), mask=live, other=0.0).to(tl.float32)
            out += _weighted(itself, alive_ptr, scale_ptr, row + 2 * samples, c, channels)
        to = out_ptr + e * samples.to(tl.int64) * channels * positions + here
        tl.store(to, out.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def _weighted(y, alive_ptr, scale_ptr, row, c, channels):
    lives = tl.load(alive_ptr + row) != 0
    return tl.where(lives, y * tl.load(scale_ptr + row * channels + c, mask=c < channels, other=0.0), 0.0)


@triton.jit
def products_kernel(
    x_ptr,
    g_ptr,
    alive_ptr,
    mean_ptr,
    totals_ptr,
    products_ptr,
    winner_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    height,
    out_width,
    edges,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of g (E, B, S, C) and of g (y - mean) (E, 3, B, S, C), mean (3, B, C); the maximum's places (B, C, H', W') int8."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    split, splits = tl.program_id(1), tl.num_programs(1)
    x_ptr += sample * channels * height * WIDTH
    largest, winner, average, _ = _pools(x_ptr, c, p, live, channels, height, out_width, STRIDE, WIDTH, LAST)
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    tl.store(winner_ptr + here, winner.to(tl.int8), mask=live)
    mean = mean_ptr + sample * channels + c
    largest -= tl.load(mean, mask=c < channels, other=0.0)
    average -= tl.load(mean + samples * channels, mask=c < channels, other=0.0)
    for e in range(edges):
        g = tl.load(g_ptr + e * samples.to(tl.int64) * channels * positions + here, mask=live, other=0.0).to(tl.float32)
        tl.store(totals_ptr + ((e * samples + sample) * splits + split) * channels + c, tl.sum(g, 0)[None, :], mask=c < channels)
        row = e * 3 * samples + sample
        _store_product(products_ptr, alive_ptr, g, largest, row, split, splits, c, channels)
        _store_product(products_ptr, alive_ptr, g, average, row + samples, split, splits, c, channels)
        itself = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        if STRIDE == 1:
            itself = tl.load(x_ptr + place(p, c, positions, channels, LAST), mask=live, other=0.0).to(tl.float32)
        _store_product(products_ptr, alive_ptr, g, itself, row + 2 * samples, split, splits, c, channels)


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
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """What flows into the maximum and, over the count, into the average: (2, B, C, H', W') float32; see the module norm."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    x_ptr += sample * channels * height * WIDTH
    largest, _, average, share = _pools(x_ptr, c, p, live, channels, height, out_width, STRIDE, WIDTH, LAST)
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
        g = tl.load(g_ptr + e * samples.to(tl.int64) * channels * positions + here, mask=live, other=0.0).to(tl.float32)
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
    dx_ptr,
    samples,
    channels,
    positions,
    channel_blocks,
    out_height,
    out_width,
    edges,
    KINDS: tl.constexpr,
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
    here = sample * channels * positions + place(p, c, positions, channels, LAST)
    if STRIDE == 1:
        for e in range(edges):
            direct = tl.load(direct_ptr + ((3 * e + 2) * samples + sample) * channels + c, mask=c < channels, other=0.0)
            dx += direct * tl.load(g_ptr + e * whole + here, mask=live, other=0.0).to(tl.float32)
    if len(KINDS) > 0:
        through = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for kind in tl.static_range(len(KINDS) // 4):
            for _ in tl.range(KINDS[4 * kind + 3], loop_unroll_factor=1):
                for at in tl.range(KINDS[4 * kind] * KINDS[4 * kind + 1], loop_unroll_factor=1):
                    down = (at // KINDS[4 * kind + 1] - KINDS[4 * kind] // 2) * KINDS[4 * kind + 2]
                    right = (at % KINDS[4 * kind + 1] - KINDS[4 * kind + 1] // 2) * KINDS[4 * kind + 2]
                    r, q, inside = _reader(row, column, down, right, live, out_height, out_width, STRIDE)
                    from_ = image + place(r * out_width + q, c, outputs, channels, LAST)
                    weight = tl.load(filter_ptr + at * channels + c, mask=c < channels, other=0.0).to(tl.float32)
                    through += tl.load(taps_ptr + from_, mask=inside, other=0.0).to(tl.float32) * weight
                taps_ptr += whole
                filter_ptr += KINDS[4 * kind] * KINDS[4 * kind + 1] * channels
        x = tl.load(x_ptr + here, mask=live, other=0.0).to(tl.float32)
        dx += tl.where(x > 0, through, 0.0)
    tl.store(dx_ptr + here, dx.to(dx_ptr.dtype.element_ty), mask=live)


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
    PLACES: tl.constexpr,
    KINDS: tl.constexpr,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The filters' gradients over one block of positions of one sample, (B, S, PLACES, C): PLACES weights a channel in all."""
    sample, c, p = tile(channels, channel_blocks, BLOCK_P, BLOCK_C)
    live = (p < positions) & (c < channels)
    x_ptr += sample * channels * height * WIDTH
    taps_ptr += sample * channels * positions + place(p, c, positions, channels, LAST)
    out_ptr += (sample * tl.num_programs(1) + tl.program_id(1)) * PLACES * channels + c
    row, column = p // out_width * STRIDE, p % out_width * STRIDE
    for kind in tl.static_range(len(KINDS) // 4):
        for _ in tl.range(KINDS[4 * kind + 3], loop_unroll_factor=1):
            g = tl.load(taps_ptr, mask=live, other=0.0).to(tl.float32)
            for tap in tl.range(KINDS[4 * kind] * KINDS[4 * kind + 1], loop_unroll_factor=1):
                r = row + (tap // KINDS[4 * kind + 1] - KINDS[4 * kind] // 2) * KINDS[4 * kind + 2]
                q = column + (tap % KINDS[4 * kind + 1] - KINDS[4 * kind + 1] // 2) * KINDS[4 * kind + 2]
                total = tl.sum(g * _rectified(x_ptr, r, q, c, live, channels, height, WIDTH, LAST), 0)[None, :]
                tl.store(out_ptr, total, mask=c < channels)
                out_ptr += channels
            taps_ptr += samples.to(tl.int64) * channels * positions
