"""csrc/jacobian_gram*.cu behind the same function as the Triton kernel, see :mod:`engine.kernels.jacobian_gram`."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.cuda_source import cuda_function, launch, shared_memory
from engine.kernels.jacobian_gram import cut_tiles, pair_count

SOURCE, HOPPER_SOURCE = "jacobian_gram.cu", "jacobian_gram_hopper.cu"
# As in the sources: samples of a block, outputs and inputs of a tile, threads.
ROWS, TILE, THREADS = 32, 32, 256
# Floats of 8 warps' stages and of 32 samples' tiles; on a Hopper two stages of 16 positions a warp, with a barrier each.
SHARED_BYTES = 4 * (8 * 512 + ROWS * (TILE * TILE + 1))
HOPPER_SHARED_BYTES = 4 * (8 * 2 * 1024 + ROWS * (TILE * TILE + 4)) + 8 * 2 * 8


def launch_jacobian_gram_cuda(left: Tensor, right: Tensor) -> Tensor:
    """float32 (G, R, Q, O), (G, R', Q, I), none of them empty -> (G, R, R) float64."""
    return _launched(SOURCE, "partial_gram", SHARED_BYTES, left, right, [*left.stride(), *right.stride()])


def launch_jacobian_gram_hopper(left: Tensor, right: Tensor) -> Tensor:
    """:func:`launch_jacobian_gram_cuda` for factors that :func:`copies_in_bulk`, on a device of capability 9."""
    strides = [*left.stride()[:3], *right.stride()[:3]]
    return _launched(HOPPER_SOURCE, "partial_gram_hopper", HOPPER_SHARED_BYTES, left, right, strides)


def chosen_launcher(left: Tensor, right: Tensor) -> str | None:
    """``"hopper"``, ``"any"`` or None where the device has too little shared memory; by properties of the device and tensors."""
    available = shared_memory(left.device)
    hopper = torch.cuda.get_device_capability(left.device)[0] == 9 and available >= HOPPER_SHARED_BYTES
    if hopper and copies_in_bulk(left) and copies_in_bulk(right):
        return "hopper"
    return "any" if available >= SHARED_BYTES else None


def copies_in_bulk(factor: Tensor) -> bool:
    """Whether every row of channels is a run of memory that begins and ends at multiples of 16 bytes."""
    steps = (factor.shape[3], *factor.stride()[:3], factor.data_ptr() // factor.element_size())
    return factor.stride(3) == 1 and not any(step % 4 for step in steps)


def _launched(source: str, name: str, shared_bytes: int, left: Tensor, right: Tensor, strides: list[int]) -> Tensor:
    groups, samples, positions, outputs = left.shape
    inputs = right.shape[3]
    pairs = pair_count(samples, ROWS)
    splits, per_split = cut_tiles(-(-outputs // TILE) * -(-inputs // TILE), groups * pairs)
    partial = torch.empty(groups, pairs, splits, ROWS, ROWS, dtype=torch.float64, device=left.device)
    out = torch.empty(groups, samples, samples, dtype=torch.float64, device=left.device)
    sizes = [samples, positions, outputs, inputs, splits, pairs, per_split, samples // right.shape[1]]
    arguments: list[Tensor | int] = [left, right, partial, *sizes, *strides]
    launch(cuda_function(source, name, shared_bytes), groups * pairs * splits, THREADS, arguments, shared_bytes)
    add_partials = cuda_function(SOURCE, "add_partials")
    launch(add_partials, -(-out.numel() // THREADS), THREADS, [partial, out, out.numel(), samples, splits, pairs])
    return out
