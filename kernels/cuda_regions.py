"""csrc/regions.cu behind the same function as the Triton kernel, see :mod:`engine.kernels.regions`."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from engine.kernels.cuda_source import cuda_function, launch
from engine.kernels.regions import GOLDEN, lane_count, signed

SOURCE = "regions.cu"
WARPS, FINISH_THREADS = 4, 128
# A warp reads 32 words at a time; below this many warps a sample is split (a guess, not tuned on a device).
BATCH_WORDS, TARGET_WARPS = 32, 4096


def launch_fold_signs_cuda(state: Tensor, x: Tensor, seeds: tuple[int, int], threshold: float, gate: Tensor | None) -> Tensor:
    """Run the kernels on checked arguments; ``x`` float32 or bfloat16 with the neurons of a sample side by side, not empty."""
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16"}.get(x.dtype)
    if name is None or not x[0].is_contiguous() or not x.numel():
        got = f"{x.dtype} {tuple(x.shape)}, strides {x.stride()}"
        raise ValueError(f"x: expected float32 or bfloat16, some, contiguous in each sample, got {got}")
    state = state.contiguous()
    samples, neurons, lanes = len(x), x[0].numel(), lane_count(state)
    if neurons > 2**31 - 64 * BATCH_WORDS:
        raise ValueError(f"x: expected fewer than 2^31 neurons a sample, got shape {tuple(x.shape)}")
    batches = -(-neurons // (64 * BATCH_WORDS))
    words_per_split = BATCH_WORDS * -(-batches // min(batches, -(-TARGET_WARPS // samples)))
    splits = -(-neurons // (64 * words_per_split))
    partial, out = state.new_empty(splits, samples, lanes), torch.empty_like(state)
    mask: Tensor | int = 0 if gate is None else gate.contiguous()
    per_group = samples if gate is None else samples // len(gate)
    (threshold_bits,) = struct.unpack("<I", struct.pack("<f", threshold))
    sizes = [samples, neurons, x.stride(0), per_group, words_per_split, threshold_bits, *(signed(seed) for seed in seeds), lanes]
    launch(cuda_function(SOURCE, f"fold_signs_{name}"), -(-samples // WARPS) * splits, 32 * WARPS, [x, mask, partial, *sizes])
    sizes = [state.numel(), lanes, splits, per_group, signed(neurons * GOLDEN)]
    finish = cuda_function(SOURCE, "finish_signs")
    launch(finish, -(-state.numel() // FINISH_THREADS), FINISH_THREADS, [partial, mask, state, out, *sizes])
    return out
