"""Per-sample Jacobian and Gram in Triton: see :mod:`engine.kernels.jacobian_gram` for the function that is computed.

A program takes ROWS samples of one candidate and a run of parameter tiles. It forms the tile of its samples' gradients in
registers, a batch of samples at a time (a batched product over positions), widens it to float64, multiplies it with itself and
goes on to the next tile; its sum of (ROWS, ROWS) products is all that it stores. A second launch adds the sums in a fixed
order, so that repeated runs give the same bits.

More than ROWS samples are taken in pairs of half blocks: the program of pair (a, b) holds the ROWS/2 samples of a and those of b,
so every two samples meet in some program, and a gradient is formed once for every other half block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cuda_source import shared_memory
from engine.kernels.jacobian_gram import cut_tiles, pair_count

DEPTHWISE_CHANNELS = 16
DEPTHWISE_PRODUCTS = 2**10
DEPTHWISE_WARPS = 4


@triton.jit(do_not_specialize=["samples", "positions", "splits", "pairs", "tiles_per_split", "repeat"])
def partial_gram_kernel(
    left_ptr,
    right_ptr,
    partial_ptr,
    samples,
    positions,
    outputs,
    inputs,
    splits,
    pairs,
    tiles_per_split,
    repeat,
    left_group,
    left_sample,
    left_position,
    left_output,
    right_group,
    right_sample,
    right_position,
    right_input,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """partial (G, pairs, splits, ROWS, ROWS) float64: each program's sum over its parameter tiles."""
    program = tl.program_id(0)
    split, pair, group = program % splits, program // splits % pairs, (program // splits // pairs).to(tl.int64)
    high = 1
    while high * (high + 1) // 2 <= pair:
        high += 1
    low = pair - high * (high - 1) // 2
    HALF: tl.constexpr = ROWS // 2
    BATCHES: tl.constexpr = ROWS // BATCH
    tiles_i = tl.cdiv(inputs, BLOCK_I)
    begin = split * tiles_per_split
    gram = tl.zeros([ROWS, ROWS], tl.float64)
    for tile in range(begin, tl.minimum(begin + tiles_per_split, tl.cdiv(outputs, BLOCK_O) * tiles_i)):
        o = (tile // tiles_i * BLOCK_O + tl.arange(0, BLOCK_O))[None, :, None]
        i = (tile % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I))[None, None, :]
        rows = tl.zeros([BATCHES, BATCH, BLOCK_O * BLOCK_I], tl.float32)
        for batch in range(0, BATCHES):
            local = batch * BATCH + tl.arange(0, BATCH)
            sample = tl.where(local < HALF, low * HALF + local, (high - 1) * HALF + local)
            real = (sample < samples)[:, None, None]
            left_rows = (left_ptr + group * left_group + sample.to(tl.int64) * left_sample)[:, None, None]
            right_rows = (right_ptr + group * right_group + (sample // repeat).to(tl.int64) * right_sample)[:, None, None]
            left_rows += o.to(tl.int64) * left_output
            right_rows += i.to(tl.int64) * right_input
            gradient = tl.zeros([BATCH, BLOCK_O, BLOCK_I], tl.float32)
            for start in range(0, positions, BLOCK_Q):
                q = start + tl.arange(0, BLOCK_Q)
                left_q, right_q = q[None, None, :], q[None, :, None]
                left_here = real & (o < outputs) & (left_q < positions)
                left = tl.load(left_rows + left_q.to(tl.int64) * left_position, mask=left_here, other=0.0)
                right_here = real & (i < inputs) & (right_q < positions)
                right = tl.load(right_rows + right_q.to(tl.int64) * right_position, mask=right_here, other=0.0)
                gradient = tl.dot(left.to(tl.float32), right.to(tl.float32), gradient, input_precision=PRECISION)
            ours = (tl.arange(0, BATCHES) == batch)[:, None, None]
            rows = tl.where(ours, tl.reshape(gradient, [1, BATCH, BLOCK_O * BLOCK_I]), rows)
        wide = tl.reshape(rows, [ROWS, BLOCK_O * BLOCK_I]).to(tl.float64)
        gram = tl.dot(wide, tl.trans(wide), gram, out_dtype=tl.float64)
    local = tl.arange(0, ROWS)
    place = program.to(tl.int64) * ROWS * ROWS + local[:, None] * ROWS + local[None, :]
    tl.store(partial_ptr + place, gram)


@triton.jit(do_not_specialize=["size", "samples", "splits", "pairs"])
def add_partials_kernel(partial_ptr, out_ptr, size, samples, splits, pairs, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out (G, samples, samples), ``size`` elements: the splits' sums in order; (r, s) and (s, r) read the same."""
    HALF: tl.constexpr = ROWS // 2
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = element < size
    r, s = element // samples % samples, element % samples
    upper, lower = tl.maximum(r, s), tl.minimum(r, s)
    high = tl.maximum(upper // HALF, 1)
    low = tl.where(upper // HALF == lower // HALF, 0, lower // HALF)
    row = upper % HALF + tl.where(upper // HALF == high, HALF, 0)
    column = lower % HALF + tl.where(lower // HALF == high, HALF, 0)
    pair = element // samples // samples * pairs + high * (high - 1) // 2 + low
    first = pair * splits * (ROWS * ROWS) + row * ROWS + column
    total = tl.zeros([BLOCK], tl.float64)
    for split in range(0, splits):
        total += tl.load(partial_ptr + first + split * (ROWS * ROWS), mask=real, other=0.0)
    tl.store(out_ptr + element, total, mask=real)


@triton.jit(do_not_specialize=["samples", "positions", "wide", "channels", "channel_blocks", "taps", "tap_columns", "repeat"])
def depthwise_rows_kernel(
    left_ptr,
    right_ptr,
    rows_ptr,
    samples,
    positions,
    wide,
    channels,
    channel_blocks,
    taps,
    tap_columns,
    repeat,
    left_group,
    left_sample,
    left_y,
    left_x,
    left_channel,
    right_group,
    right_sample,
    right_y,
    right_x,
    right_channel,
    right_tap_y,
    right_tap_x,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """rows (G, samples, channels, taps) float32: one program a sample and block of channels."""
    program = tl.program_id(0)
    row = (program // channel_blocks).to(tl.int64)
    group, sample = row // samples, row % samples
    c = (program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    t = tl.arange(0, BLOCK_T)
    tap = (t // tap_columns).to(tl.int64) * right_tap_y + (t % tap_columns).to(tl.int64) * right_tap_x
    left_row = left_ptr + group * left_group + sample * left_sample
    right_row = right_ptr + group * right_group + sample // repeat * right_sample
    channel, window = (c < channels)[None, :], (c < channels)[None, :, None] & (t < taps)[None, None, :]
    total = tl.zeros([BLOCK_Q, BLOCK_C, BLOCK_T], tl.float32)
    for start in range(0, positions, BLOCK_Q):
        q = start + tl.arange(0, BLOCK_Q)
        y, x = (q // wide).to(tl.int64), (q % wide).to(tl.int64)
        here = (y * left_y + x * left_x)[:, None] + c[None, :] * left_channel
        left = tl.load(left_row + here, mask=(q < positions)[:, None] & channel, other=0.0).to(tl.float32)
        there = (y * right_y + x * right_x)[:, None, None] + c[None, :, None] * right_channel + tap[None, None, :]
        right = tl.load(right_row + there, mask=(q < positions)[:, None, None] & window, other=0.0).to(tl.float32)
        total += left[:, :, None] * right
    out = row * channels * taps + c[:, None] * taps + t[None, :]
    tl.store(rows_ptr + out, tl.sum(total, 0), mask=(c < channels)[:, None] & (t < taps)[None, :])


@dataclass(frozen=True)
class Tile:
    """What a program of :func:`partial_gram_kernel` holds: ``outputs`` x ``inputs`` parameters of ``rows`` samples.

    It forms them for ``batch`` samples and reads ``positions`` positions at a time.
    """

    rows: int
    outputs: int
    inputs: int
    batch: int = 8
    positions: int = 16
    warps: int = 8

    @property
    def constants(self) -> dict[str, int]:
        return {
            "ROWS": self.rows,
            "BATCH": self.batch,
            "BLOCK_O": self.outputs,
            "BLOCK_I": self.inputs,
            "BLOCK_Q": self.positions,
        }


# 2^14 gradients are 128 KiB in float64, which is what fits. Compiled for sm_80 and sm_90 without spilling by
# Triton 3.6 and 3.7; not tuned on a GPU.
TILES = (Tile(16, 32, 32), Tile(32, 16, 32), Tile(64, 16, 16))
# Half as much, for GPUs that give a block less than 128 KiB (sm_86, sm_89, sm_120).
SMALL_TILES = (Tile(16, 16, 32, batch=4, warps=4), Tile(32, 16, 16, batch=4))


def choose_tile(samples: int, device: torch.device) -> Tile:
    """The smallest tile that holds all samples, or the one with most, of those that fit on the device."""
    tiles = SMALL_TILES if device.type == "cuda" and shared_memory(device) < 128 * 1024 else TILES
    return next((tile for tile in tiles if samples <= tile.rows), tiles[-1])


def load_stages(left: Tensor, right: Tensor, precision: str) -> int:
    """Loads of whole vectors run one tile ahead of tensor cores; the addresses of single elements, and the operands of ordinary
    float32 multiply-adds, would take too many registers for that.
    """
    if precision == "ieee":
        return 1
    whole = all(
        factor.stride(3) == 1
        and factor.data_ptr() % 16 == 0
        and not any(size % 16 for size in (factor.shape[3], *factor.stride()[:3]))
        for factor in (left, right)
    )
    return 2 if whole else 1


def launch_jacobian_gram(left: Tensor, right: Tensor, precision: str, tile: Tile | None = None) -> Tensor:
    """(G, R, Q, O), (G, R', Q, I), none of them empty -> (G, R, R) float64; ``precision`` is ``"ieee"`` or ``"tf32"``."""
    groups, samples, positions, outputs = left.shape
    inputs = right.shape[3]
    tile = tile or choose_tile(samples, left.device)
    pairs = pair_count(samples, tile.rows)
    tiles = triton.cdiv(outputs, tile.outputs) * triton.cdiv(inputs, tile.inputs)
    splits, per_split = cut_tiles(tiles, groups * pairs)
    partial = torch.empty(groups, pairs, splits, tile.rows, tile.rows, dtype=torch.float64, device=left.device)
    out = torch.empty(groups, samples, samples, dtype=torch.float64, device=left.device)
    with torch.cuda.device_of(left):
        partial_gram_kernel[(groups * pairs * splits,)](
            left,
            right,
            partial,
            samples,
            positions,
            outputs,
            inputs,
            splits,
            pairs,
            per_split,
            samples // right.shape[1],
            *left.stride(),
            *right.stride(),
            PRECISION=precision,
            **tile.constants,
            num_warps=tile.warps,
            num_stages=load_stages(left, right, precision),
        )
        add_partials_kernel[(triton.cdiv(out.numel(), 128),)](
            partial, out, out.numel(), samples, splits, pairs, ROWS=tile.rows, BLOCK=128, num_warps=4
        )
    return out


def launch_depthwise_rows(left: Tensor, right: Tensor) -> Tensor:
    """(G, R, H, W, C), (G, R', H, W, C, kh, kw), none of them empty -> per-sample gradients (G, R, C, kh, kw) float32."""
    groups, samples, high, wide, channels = left.shape
    taps = right.shape[5:].numel()
    rows = torch.empty(groups, samples, channels, *right.shape[5:], dtype=torch.float32, device=left.device)
    channel_blocks = triton.cdiv(channels, DEPTHWISE_CHANNELS)
    with torch.cuda.device_of(left):
        depthwise_rows_kernel[(groups * samples * channel_blocks,)](
            left,
            right,
            rows,
            samples,
            high * wide,
            wide,
            channels,
            channel_blocks,
            taps,
            right.shape[6],
            samples // right.shape[1],
            *left.stride(),
            *right.stride(),
            **depthwise_constants(taps),
            num_warps=DEPTHWISE_WARPS,
        )
    return rows


def depthwise_constants(taps: int) -> dict[str, int]:
    """A program takes as many positions at a time as give a thread 8 products; with more, four blocks do not fit (Triton 3.6)."""
    columns = triton.next_power_of_2(taps)
    positions = max(1, DEPTHWISE_PRODUCTS // DEPTHWISE_CHANNELS // columns)
    return {"BLOCK_Q": positions, "BLOCK_C": DEPTHWISE_CHANNELS, "BLOCK_T": columns}
