"""Episode images in Triton: see :mod:`engine.kernels.episode` for the function that is computed.

One program writes BLOCK neighbouring pixels of one plane (sample, channel), each byte of the bank read at most once a window.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4
# Pixels a program; a small plane takes one program of the next power of two.
BLOCK = 1024


@triton.jit
def gather_episode_kernel(
    images_ptr,
    index_ptr,
    tops_ptr,
    lefts_ptr,
    flips_ptr,
    mean_ptr,
    std_ptr,
    out_ptr,
    bank,
    channels,
    height,
    width,
    padding,
    size,
    pixels,
    BLOCK: tl.constexpr,
):
    plane = tl.program_id(0)
    sample = plane // channels
    channel = plane % channels
    index = tl.load(index_ptr + sample)
    top = tl.load(tops_ptr + sample)
    left = tl.load(lefts_ptr + sample)
    legal = (index >= 0) & (index < bank)
    legal = legal & (top >= 0) & (top + size <= height + 2 * padding)
    legal = legal & (left >= 0) & (left + size <= width + 2 * padding)
    # In range, they fit 32 bits; out of range, nothing is read.
    top = tl.where(legal, top, 0).to(tl.int32)
    left = tl.where(legal, left, 0).to(tl.int32)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = top + i // size - padding
    column = left + i % size - padding
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    column = tl.where(tl.load(flips_ptr + sample) != 0, width - 1 - column, column)
    source = images_ptr + (index * channels + channel) * height * width
    byte = tl.load(source + row * width + column, mask=inside & legal & (i < pixels), other=0).to(tl.float32)
    # Rounded division: a plain / compiles to an approximate one, and the values are to match torch's.
    value = tl.div_rn(tl.div_rn(byte, 255.0) - tl.load(mean_ptr + channel), tl.load(std_ptr + channel))
    tl.store(out_ptr + plane.to(tl.int64) * pixels + i, tl.where(legal, value, float("nan")), mask=i < pixels)


def launch_gather_episode(
    images: Tensor, index: Tensor, tops: Tensor, lefts: Tensor, flips: Tensor, mean: Tensor, std: Tensor, padding: int, size: int
) -> Tensor:
    """Run the kernel on checked arguments."""
    bank, channels, height, width = images.shape
    out = torch.empty(len(index), channels, size, size, device=images.device)
    pixels = size * size
    block = min(BLOCK, triton.next_power_of_2(pixels))
    if not out.numel():
        return out
    vectors = (tensor.contiguous() for tensor in (index, tops, lefts, flips.view(torch.uint8), mean, std))
    with torch.cuda.device_of(images):
        gather_episode_kernel[(len(index) * channels, triton.cdiv(pixels, block))](
            images, *vectors, out, bank, channels, height, width, padding, size, pixels, BLOCK=block, num_warps=WARPS
        )
    return out
