"""Region hashing in Triton: see :mod:`engine.kernels.regions` for the function that is computed.

One program reads the words of BLOCK_B samples, BLOCK_W words of 64 neurons at a time, and keeps one sum a sample and lane. With
one program along the words the same launch finishes the state; with several, each stores its sum and a second launch adds them
(integers mod 2^64: any order gives the same bits).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.regions import GOLDEN, lane_count, signed

# 2048 neurons a tile: 16 a thread, so that eight 2-byte or four 4-byte ones make one 16-byte load. Half of that where neurons are
# wide or scattered: compiled for sm_80 and sm_90, those would take over 200 registers, or spill.
TILE_WORDS, SMALL_TILE_WORDS = 32, 16
WARPS = 4
# Programs that fill a large GPU several times over (a guess, not tuned on a device); the hash does not depend on it.
TARGET_PROGRAMS = 1024


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _mixed(words, seed, place, total):
    key = _mix(seed.to(tl.uint64) + (place + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)
    return tl.where((place < total)[None, :], _mix(words ^ key[None, :]), 0)


@triton.jit
def _finished(state, digest, length):
    return _mix(state.to(tl.uint64) + digest + length.to(tl.uint64)).to(tl.int64)


@triton.jit(do_not_specialize=["length", "seed0", "seed1", "per_group", "words_per_split"])
def fold_signs_kernel(
    x_ptr,
    gate_ptr,
    state_ptr,
    out_ptr,
    samples,
    neurons,
    inner,
    stride_sample,
    stride_outer,
    stride_inner,
    threshold,
    length,
    seed0,
    seed1,
    per_group,
    words_per_split,
    LANES: tl.constexpr,
    GATED: tl.constexpr,
    PLAIN: tl.constexpr,
    FINISH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Neuron i of sample b lies at b stride_sample + (i // inner) stride_outer + (i % inner) stride_inner; PLAIN: ... + i."""
    sample = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    split = tl.program_id(1)
    real = sample < samples
    alive = real
    if GATED:
        alive = real & (tl.load(gate_ptr + sample // per_group, mask=real, other=0) != 0)
    digest0 = tl.zeros([BLOCK_B, BLOCK_W], tl.uint64)  # summed over the words only once, after the loop: that sum crosses warps
    digest1 = tl.zeros([BLOCK_B, BLOCK_W], tl.uint64)
    bit = tl.arange(0, 32)
    half = tl.arange(0, 2).to(tl.uint64) * 32
    total = (neurons + 63) // 64
    begin = split * words_per_split
    for start in range(begin, tl.minimum(begin + words_per_split, total), BLOCK_W):
        i = start * 64 + tl.arange(0, 2 * BLOCK_W)[:, None] * 32 + bit[None, :]
        wide = i.to(tl.int64)
        offset = wide if PLAIN else (i // inner).to(tl.int64) * stride_outer + (i % inner).to(tl.int64) * stride_inner
        live = alive[:, None, None] & (i < neurons)[None, :, :]
        x = tl.load(x_ptr + sample[:, None, None] * stride_sample + offset[None, :, :], mask=live, other=0.0)
        if x_ptr.dtype.element_ty != tl.float64:
            x = x.to(tl.float32)
        # Half words first: 32-bit shuffles are half of what 64-bit ones cost.
        signs = tl.sum(((x > threshold) & live).to(tl.uint32) << bit.to(tl.uint32)[None, None, :], 2)
        words = tl.sum(tl.reshape(signs, [BLOCK_B, BLOCK_W, 2]).to(tl.uint64) << half[None, None, :], 2)
        place = start + tl.arange(0, BLOCK_W)
        digest0 += _mixed(words, seed0, place, total)
        if LANES == 2:
            digest1 += _mixed(words, seed1, place, total)
    for lane in tl.static_range(LANES):
        digest = tl.sum(digest0 if lane == 0 else digest1, 1)
        if FINISH:
            old = tl.load(state_ptr + sample * LANES + lane, mask=real, other=0)
            tl.store(out_ptr + sample * LANES + lane, tl.where(alive, _finished(old, digest, length), old), mask=real)
        else:
            tl.store(out_ptr + (split.to(tl.int64) * samples + sample) * LANES + lane, digest.to(tl.int64), mask=real)


@triton.jit(do_not_specialize=["size", "length", "splits", "per_group"])
def finish_kernel(
    partial_ptr,
    gate_ptr,
    state_ptr,
    out_ptr,
    size,
    length,
    splits,
    per_group,
    LANES: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the splits' sums (splits, size) and finish the ``size`` = samples * LANES elements of the state, one a thread."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = i < size
    digest = tl.zeros([BLOCK], tl.uint64)
    for split in range(0, splits):
        digest += tl.load(partial_ptr + split * size.to(tl.int64) + i, mask=real, other=0).to(tl.uint64)
    old = tl.load(state_ptr + i, mask=real, other=0)
    new = _finished(old, digest, length)
    if GATED:
        new = tl.where(tl.load(gate_ptr + i // LANES // per_group, mask=real, other=0) != 0, new, old)
    tl.store(out_ptr + i, new, mask=real)


@dataclass(frozen=True)
class Tiling:
    """How a launch is cut; a pure function of the shape (:func:`choose_tiling`)."""

    block_b: int
    block_w: int
    splits: int
    words_per_split: int


def choose_tiling(samples: int, neurons: int, plain: bool, itemsize: int) -> Tiling:
    """Many samples a program where they are short; several programs a sample where samples are few and long."""
    tile = TILE_WORDS if plain and itemsize <= 4 else SMALL_TILE_WORDS
    words = max(1, triton.cdiv(neurons, 64))
    block_w = min(tile, triton.next_power_of_2(words))
    block_b = tile // block_w
    programs = triton.cdiv(max(1, samples), block_b)
    tiles = triton.cdiv(words, block_w)
    per_split = block_w * triton.cdiv(tiles, min(tiles, triton.cdiv(TARGET_PROGRAMS, programs)))
    return Tiling(block_b, block_w, triton.cdiv(words, per_split), per_split)


def collapse(x: Tensor) -> tuple[int, int, int] | None:
    """(inner, stride_outer, stride_inner) of the neurons of a sample, where two strides describe them; None where they do not."""
    runs: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * stride:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    if len(runs) > 2:
        return None
    inner, step = runs[-1] if runs else (1, 1)
    return inner, runs[0][1] if len(runs) == 2 else 0, step


def launch_fold_signs(
    state: Tensor, x: Tensor, seeds: tuple[int, int], threshold: float, gate: Tensor | None, tiling: Tiling | None = None
) -> Tensor:
    """Run the kernels on checked arguments; copies ``x`` only where more than two strides describe a sample."""
    state = state.contiguous()
    samples = len(x)
    if not samples:
        return torch.empty_like(state)
    neurons = x[0].numel()
    if neurons > 2**31 - 64 * TILE_WORDS:
        raise ValueError(f"x: expected fewer than 2^31 neurons a sample, got shape {tuple(x.shape)}")
    layout = collapse(x)
    if layout is None:
        x, layout = x.contiguous(), (neurons, 0, 1)
    inner, outer, step = layout
    plain = inner == neurons and step == 1
    cut = tiling or choose_tiling(samples, neurons, plain, x.element_size())
    lanes = lane_count(state)
    shared = {"LANES": lanes, "GATED": gate is not None}
    mask = state if gate is None else gate.contiguous().view(torch.uint8)
    length = signed(neurons * GOLDEN)
    per_group = samples if gate is None else samples // len(gate)
    out = torch.empty_like(state)
    target = out if cut.splits == 1 else state.new_empty(cut.splits, samples, lanes)
    grid = (triton.cdiv(samples, cut.block_b), cut.splits)
    with torch.cuda.device_of(x):
        fold_signs_kernel[grid](
            x,
            mask,
            state,
            target,
            samples,
            neurons,
            inner,
            x.stride(0),
            outer,
            step,
            threshold,
            length,
            *(signed(seed) for seed in seeds),
            per_group,
            cut.words_per_split,
            **shared,
            PLAIN=plain,
            FINISH=cut.splits == 1,
            BLOCK_B=cut.block_b,
            BLOCK_W=cut.block_w,
            num_warps=WARPS,
        )
        if cut.splits > 1:
            block = 128
            finish_kernel[(triton.cdiv(samples * lanes, block),)](
                target, mask, state, out, state.numel(), length, cut.splits, per_group, **shared, BLOCK=block, num_warps=WARPS
            )
    return out
