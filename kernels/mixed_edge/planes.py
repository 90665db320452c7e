"""What a forward and a backward do with whole tensors on the CPU: moments of planes, weighted sums, products with cotangents.

A plane is what shares one factor: a channel of a unit, which is one sample, or all samples of a normalisation group where those
lie together in memory. Tensors are views (U, P, C) of U units with P positions. ``spans`` say for which units a term exists:
nothing is read or written for the others. Large results are written into a buffer that is used again where they are not kept:
memory that is taken and given back in the same step costs several times what the arithmetic does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.mixed_edge.norm import Norm

Spans = Sequence[slice]

# Channels from which on the CPU library's pass for batch statistics is at full speed.
WIDE = 64


def channels_behind(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C) in at least float32."""
    return (x if x.dtype in (torch.float32, torch.float64) else x.float()).permute(0, 2, 3, 1)


def channels_last(x: Tensor) -> bool:
    """Whether channels lie innermost."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def laid_out(x: Tensor, last: bool) -> Tensor:
    """``x`` (B, C, H, W), copied if it is not in that layout."""
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def empty_image(like: Tensor, batch: int, channels: int, height: int, width: int) -> Tensor:
    """Empty (B, C, H, W) in the layout of ``like``."""
    if not channels_last(like):
        return like.new_empty(batch, channels, height, width)
    return like.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)


def wide_dtype(x: Tensor) -> torch.dtype:
    """What the statistics of x are computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def unit_count(x: Tensor, norm: Norm, rows: int) -> int:
    """How many units x (B, H, W, C) is divided into; a mixture has ``rows`` rows."""
    together = x.shape[0] > 0 and x.is_contiguous()
    if norm.kind == "group" or not together:
        return x.shape[0]
    return norm.groups if norm.kind == "batch" else rows


def planes(x: Tensor, units: int) -> Tensor:
    """(B, H, W, C) -> (U, P, C); a view where the units were counted for a tensor of this layout."""
    positions = x.shape[:3].numel() // units if units else x.shape[1] * x.shape[2]
    return x.reshape(units, positions, x.shape[3])


def spans(alive: Sequence[bool], units: int) -> list[slice]:
    """The runs of units in whose rows a term is alive; each row serves units / len(alive) consecutive ones."""
    share, start = units // len(alive), None
    found = []
    for row, lives in enumerate([*alive, False]):
        if lives and start is None:
            start = row * share
        elif not lives and start is not None:
            found.append(slice(start, row * share))
            start = None
    return found


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane, (U, C); deviations from the mean are squared, so nothing cancels."""
    units, positions, channels = y.shape
    side = WIDE // channels if channels < WIDE and positions % (WIDE // channels) == 0 else 1
    if units != 1 or not y.is_contiguous():
        mean = y.mean(1)
        deviation = y - mean.unsqueeze(1)
        return mean, deviation.mul_(deviation).mean(1)
    # The library's pass is slow over few channels: several positions side by side are as many channels more.
    shape, width = (1, side * channels, positions // side, 1), side * channels
    mean, variance = torch.batch_norm_update_stats(y.as_strided(shape, (y.numel(), 1, width, width)), None, None, 0.0)
    if side == 1:
        return mean.unsqueeze(0), variance.unsqueeze(0)
    mean, variance = mean.view(side, channels), variance.view(side, channels)
    centre = mean.mean(0, keepdim=True)
    return centre, (variance + (mean - centre).square()).mean(0, keepdim=True)


def add_scaled(total: Tensor, y: Tensor, scale: Tensor, where: Spans) -> None:
    """``total`` += ``scale`` (U, C) times ``y``, in place."""
    if covers(where, total):
        total.addcmul_(y, scale.unsqueeze(1))
        return
    for span in where:
        total[span].addcmul_(y[span], scale[span].unsqueeze(1))


def mean_products(a: Tensor, b: Tensor, where: Spans, buffer: Tensor) -> Tensor:
    """The planes' means of a b, (U, C); zero outside the spans."""
    if covers(where, a):
        return torch.mul(a, b, out=buffer).sum(1) / a.shape[1]
    means = a.new_zeros(a.shape[0], a.shape[2])
    for span in where:
        means[span] = torch.mul(a[span], b[span], out=buffer[span]).sum(1) / a.shape[1]
    return means


def covers(where: Spans, x: Tensor) -> bool:
    """Whether the spans are all units of x."""
    return len(where) == 1 and where[0].start == 0 and where[0].stop == x.shape[0]
