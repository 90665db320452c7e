"""Depthwise 3x3 convolution of dilation 2 with a backward pass made of convolutions without dilation.

The CPU library's own backward of a dilated depthwise convolution falls to a slow path (three to five times the time of one
without dilation). Even and odd rows and columns do not meet in it, though, so its weight gradient is that of an ordinary
convolution of the four subgrids, and its input gradient is the same dilated convolution with the kernel turned round.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def dilated_depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """``x`` (N, C, H, W) with ``weight`` (C, 1, 3, 3), dilation 2, padding 2, stride 1 or 2 -> (N, C, ceil(H/stride), ...).

    Differentiable once. At stride 2 only every second row and column is read, so nothing is dilated there.
    """
    if stride == 2:
        return F.conv2d(every_second(x, 0), weight, None, 1, 1, 1, x.shape[1])
    return _Dilated.apply(x, weight)


def every_second(x: Tensor, start: int) -> Tensor:
    """``x[:, :, start::2, start::2]`` of (N, C, H, W), whose gradient stays channels_last; differentiable once."""
    return _EverySecond.apply(x, start)


class _EverySecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, start: int) -> Tensor:
        ctx.shape, ctx.start = x.shape, start
        return x[:, :, start::2, start::2].contiguous(memory_format=torch.channels_last)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.new_zeros(ctx.shape).contiguous(memory_format=torch.channels_last)
        whole[:, :, ctx.start :: 2, ctx.start :: 2] = gradient
        return whole, None


class _Dilated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, 1, 2, 2, x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        channels = x.shape[1]
        input_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            input_gradient = F.conv2d(gradient, weight.flip(2, 3), None, 1, 2, 2, channels)
        if ctx.needs_input_grad[1]:
            ones = [1, 1]
            weight_gradient = torch.ops.aten.convolution_backward(
                _subgrids(gradient), _subgrids(x), weight, None, ones, ones, ones, False, [0, 0], channels, [False, True, False]
            )[1]
        return input_gradient, weight_gradient


def _subgrids(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (4N, C, ceil(H/2), ceil(W/2)): even and odd rows and columns apart, odd sizes filled up with zeros."""
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    apart = x.permute(0, 2, 3, 1).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # N, H/2, 2, W/2, 2, C
    return apart.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
