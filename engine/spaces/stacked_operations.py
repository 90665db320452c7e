"""The operations of the MetaNAS space on many edges at once: ``x`` holds the edges' inputs side by side, (N, edges*C, H, W).

Each takes its layers' weights, stacked along the output channels in the order of the edges, and returns what its last norm takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.depthwise import depthwise, frozen_depthwise

EPS = 1e-5
SKIP = "skip_connect"


def batch_norm(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Normalise by the statistics of the batch; ``scale`` and ``shift`` are (C,)."""
    return F.batch_norm(x, None, None, scale, shift, training=True, eps=EPS)


def rows(stacked: Tensor, every: tuple[int, ...], some: tuple[int, ...]) -> Tensor:
    """The weights of some edges out of a stack of all edges of a stage."""
    if some == every:
        return stacked
    return stacked.unflatten(0, (len(every), -1))[[every.index(e) for e in some]].flatten(0, 1)


def _depthwise(x: Tensor, layers: list[Tensor], stride: int, groups: int, edges: int) -> Tensor:
    y = F.conv2d(x, layers[0], None, stride, 1, 1, x.shape[1])
    return F.conv2d(y, layers[1], groups=edges)


def _separable(x: Tensor, layers: list[Tensor], stride: int, groups: int, edges: int) -> Tensor:
    y = batch_norm(_depthwise(x, layers, stride, groups, edges)).relu()
    return _depthwise(y, layers[2:], 1, groups, edges)


def _dilated(x: Tensor, layers: list[Tensor], stride: int, groups: int, edges: int) -> Tensor:
    return F.conv2d(depthwise(x, layers[0], (stride, stride), (2, 2), (2, 2)), layers[1], groups=edges)


def _wide(x: Tensor, layers: list[Tensor], stride: int, groups: int, edges: int) -> Tensor:
    y = F.conv2d(x, layers[0], None, stride, (0, 2), groups=groups)
    return F.conv2d(y, layers[1], None, 1, (2, 0), groups=edges)


def reduced(x: Tensor, layers: list[Tensor], stride: int, groups: int, edges: int) -> Tensor:
    """FactorizedReduce as one convolution of the map and the shifted map, with zeros where the other half reads.

    So the channels of an edge come out behind one another.
    """
    width = x.shape[1] // edges
    shift = 1 if x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0 else 0
    pairs = zip(_every_second(x, 0).split(width, 1), _every_second(x, shift).split(width, 1), strict=True)
    both = torch.cat([part for pair in pairs for part in pair], 1)
    first, second = (w.flatten(1).unflatten(0, (edges, -1)) for w in layers)
    weight = torch.cat([F.pad(first, (0, width)), F.pad(second, (width, 0))], 1)
    return F.conv2d(both, weight.flatten(0, 1)[..., None, None], groups=edges)


# (input, layers, stride, groups of the first convolution, edges) -> what the last norm takes.
RUN: Mapping[str, Callable[[Tensor, list[Tensor], int, int, int], Tensor]] = {
    "conv_1x5_5x1": _wide,
    "conv_3x3": _depthwise,
    "sep_conv_3x3": _separable,
    "dil_conv_3x3": _dilated,
    SKIP: reduced,
}


def average_pool(x: Tensor, stride: int) -> Tensor:
    """3x3 means with padding 1 that leave the padding out, as a depthwise convolution with ones."""
    ones = x.new_ones(x.shape[1], 1, 3, 3)
    count = F.conv2d(x.new_ones(1, 1, *x.shape[2:]), ones[:1], None, stride, 1)
    return frozen_depthwise(x, ones, (stride, stride), (1, 1), (1, 1)) / count


def _every_second(x: Tensor, start: int) -> Tensor:
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
        like, form = gradient, torch.channels_last
        whole = torch.empty(ctx.shape, dtype=like.dtype, device=like.device, memory_format=form).zero_()
        whole[:, :, ctx.start :: 2, ctx.start :: 2] = gradient
        return whole, None
