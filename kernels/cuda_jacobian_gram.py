"""csrc/jacobian_gram.cu behind the same function as the Triton kernel, see :mod:`engine.kernels.jacobian_gram`."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.cuda_source import cuda_function, launch
from engine.kernels.jacobian_gram import cut_tiles, pair_count

SOURCE = "jacobian_gram.cu"
# As in the source: samples of a block, outputs and inputs of a tile, threads; floats of 8 warps' stages and of 32 samples' tiles.
ROWS, TILE, THREADS = 32, 32, 256
SHARED_BYTES = 4 * (8 * 512 + ROWS * (TILE * TILE + 1))


def launch_jacobian_gram_cuda(left: Tensor, right: Tensor) -> Tensor:
    """float32 (G, R, Q, O), (G, R', Q, I), none of them empty -> (G, R, R) float64."""
    groups, samples, positions, outputs = left.shape
    inputs = right.shape[3]
    pairs = pair_count(samples, ROWS)
    splits, per_split = cut_tiles(-(-outputs // TILE) * -(-inputs // TILE), groups * pairs)
    partial = torch.empty(groups, pairs, splits, ROWS, ROWS, dtype=torch.float64, device=left.device)
    out = torch.empty(groups, samples, samples, dtype=torch.float64, device=left.device)
    sizes = [samples, positions, outputs, inputs, splits, pairs, per_split, samples // right.shape[1]]
    launch(
        cuda_function(SOURCE, "partial_gram", SHARED_BYTES),
        groups * pairs * splits,
        THREADS,
        [left, right, partial, *sizes, *left.stride(), *right.stride()],
        SHARED_BYTES,
    )
    add_partials = cuda_function(SOURCE, "add_partials")
    launch(add_partials, -(-out.numel() // THREADS), THREADS, [partial, out, out.numel(), samples, splits, pairs])
    return out
