"""How a launch over planes is divided into programs, and what its kernels have in common.

A program works on one sample, BLOCK_C channels and BLOCK_P positions; reductions leave one partial result a block of positions,
which are merged in a fixed order afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.mixed_edge.planes import channels_last

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
def shuffled(p, c, part, positions, channels, PARTS: tl.constexpr, LAST: tl.constexpr):
    """Where channel PARTS c + part lies in a sample of PARTS times the ``channels``."""
    return place(p, c * PARTS + part, positions, channels * PARTS, LAST)


@triton.jit
def moments(y, live, number):
    """Mean and mean squared deviation of the ``number`` live positions, (1, BLOCK_C)."""
    mean = tl.sum(tl.where(live, y, 0.0), 0)[None, :] / number
    deviation = tl.where(live, y - mean, 0.0)
    return mean, tl.sum(deviation * deviation, 0)[None, :] / number


class Blocks:
    """How a launch over ``positions`` of planes like those of ``x`` (B, parts C, H, W), C channels at a time, is divided."""

    def __init__(self, x: Tensor, positions: int, elements: int = ELEMENTS, parts: int = 1) -> None:
        self.samples, self.channels = x.shape[0], x.shape[1] // parts
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
