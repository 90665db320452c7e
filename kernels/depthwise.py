"""Depthwise convolutions whose gradients are made of the convolutions that the CPU library is fast at.

The library's own backward of a depthwise convolution takes a slow path unless the kernel is 3x3 without dilation (one thread,
64x16x32x32 with channels innermost: 0.17 ms for that weight gradient, 4.7 ms for a 5x5 one, 2.3 ms for a dilated 3x3 one and 2.1
ms for its input gradient). Three identities avoid it:

* the input gradient of a convolution of stride 1 is the convolution of the cotangent with the kernel turned round;
* a convolution whose stride equals its dilation d is one without either on every d-th row and column; the weight gradient of a
  dilated one is the sum of those of its d^2 interleaved subgrids;
* the weight gradient of a larger kernel consists of those of 3x3 kernels on shifted inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.transforms import is_transformed, plain_gradients

Pair = tuple[int, int]

# The most columns of a kernel whose weight gradient the CPU library is fast at.
COLUMNS = 3


class FrozenDepthwise(torch.autograd.Function):
    """See :func:`frozen_depthwise`. Its backward takes and returns plain tensors, so that a graph can be walked through it."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, dilation, weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.stride, ctx.padding, ctx.dilation = inputs
        ctx.size = x.shape[2:]
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weight,) = ctx.saved_tensors
        return input_gradient(gradients[0], weight, ctx.size, ctx.stride, ctx.padding, ctx.dilation), *[None] * 4


class TrainedDepthwise(torch.autograd.Function):
    """See :func:`depthwise`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        ctx.stride, ctx.padding, ctx.dilation = stride, padding, dilation
        ctx.save_for_backward(x, weight)
        return convolve(x, weight, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        settings, needed = (ctx.stride, ctx.padding, ctx.dilation), ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():

            def plain(x: Tensor, weight: Tensor) -> tuple[Tensor]:
                return (F.conv2d(x, weight, None, *settings, weight.shape[0]),)

            return *plain_gradients(plain, (x, weight), needed, gradients), None, None, None
        dx = input_gradient(gradients[0], weight, x.shape[2:], *settings) if needed[0] else None
        dw = weight_gradient(x, gradients[0], weight.shape[2:], *settings) if needed[1] else None
        return dx, dw, None, None, None


def convolve(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """(N, C, H, W) and (C, 1, kh, kw) -> (N, C, H', W')."""
    step = _subgrid(stride, padding, dilation)
    if step > 1:
        x, stride, padding, dilation = x[:, :, ::step, ::step], (1, 1), (padding[0] // step, padding[1] // step), (1, 1)
    return F.conv2d(x, weight, None, stride, padding, dilation, weight.shape[0])


def input_gradient(cotangent: Tensor, weight: Tensor, size: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """(N, C, H', W') and the weight (C, 1, kh, kw) -> the gradient of an input of ``size`` (H, W)."""
    step = _subgrid(stride, padding, dilation)
    if step > 1:
        small = [-(-n // step) for n in size]
        inner = input_gradient(cotangent, weight, small, (1, 1), (padding[0] // step, padding[1] // step), (1, 1))
        return _spread(inner, stride, size)
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    turned = tuple(r - p for r, p in zip(reach, padding, strict=True))
    spread = _spread(cotangent, stride, [h + r - 2 * q for h, r, q in zip(size, reach, turned, strict=True)])
    return F.conv2d(spread, weight.flip(2, 3), None, 1, turned, dilation, weight.shape[0])


def weight_gradient(x: Tensor, cotangent: Tensor, kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """(N, C, H, W) and (N, C, H', W') -> (C, 1, kh, kw)."""
    step = _subgrid(stride, padding, dilation)
    if step > 1:
        x, stride, padding, dilation = x[:, :, ::step, ::step], (1, 1), (padding[0] // step, padding[1] // step), (1, 1)
    if max(dilation) > 1 and max(stride) == 1:
        if any(p % d for p, d in zip(padding, dilation, strict=True)):
            x, padding = F.pad(x, (padding[1], 0, padding[0], 0)), (0, 0)
        x, cotangent = _interleaved(x, dilation), _interleaved(cotangent, dilation)
        stride, padding, dilation = (1, 1), (padding[0] // dilation[0], padding[1] // dilation[1]), (1, 1)
    same = tuple((n - 1) // s + 1 for n, s in zip(x.shape[2:], stride, strict=True)) == tuple(cotangent.shape[2:])
    if max(dilation) > 1 or (max(kernel) <= COLUMNS and same):
        return _library_weight_gradient(x, cotangent, kernel, stride, padding, dilation)
    return _gradient_by_columns(x, cotangent, kernel, stride, padding)


def _subgrid(stride: Pair, padding: Pair, dilation: Pair) -> int:
    """The step of the rows and columns that are read at all, where a convolution of stride 1 on those alone does the same."""
    step = stride[0]
    return step if {*stride, *dilation} == {step} and not any(p % step for p in padding) else 1


def _interleaved(x: Tensor, step: Pair) -> Tensor:
    """(N, C, H, W) -> (sh sw N, C, ceil(H / sh), ceil(W / sw)): rows and columns by their remainder, filled up with zeros."""
    (down, right), (height, width) = step, x.shape[2:]
    if height % down or width % right:
        x = F.pad(x, (0, -width % right, 0, -height % down))
    grids = x.permute(0, 2, 3, 1).unflatten(2, (-1, right)).unflatten(1, (-1, down))
    return grids.permute(2, 4, 0, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


def _gradient_by_columns(x: Tensor, cotangent: Tensor, kernel: Sequence[int], stride: Pair, padding: Pair) -> Tensor:
    """At most three columns of the kernel at a time, each on what it reads of x with zeros around where padding is read."""
    gradient = x.new_zeros(x.shape[1], 1, *kernel)
    reach = [s * (n - 1) for s, n in zip(stride, cotangent.shape[2:], strict=True)]
    bottom = reach[0] + kernel[0] - padding[0] - x.shape[2]
    for start in range(0, kernel[1], COLUMNS):
        width = min(COLUMNS, kernel[1] - start)
        left, read = padding[1] - start, reach[1] + width
        if -x.shape[3] < left < read:  # otherwise these columns read padding only
            seen = F.pad(x, (left, read - left - x.shape[3], padding[0], bottom))
            part = _library_weight_gradient(seen, cotangent, (kernel[0], width), stride, (0, 0), (1, 1))
            gradient[..., start : start + width] = part
    return gradient


def _library_weight_gradient(
    x: Tensor, cotangent: Tensor, kernel: Sequence[int], stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    weight = x.new_empty(x.shape[1], 1, *kernel)  # its shape is all that is read
    options = (None, stride, padding, dilation, False, (0, 0), x.shape[1], (False, True, False))
    return torch.ops.aten.convolution_backward(cotangent, x, weight, *options)[1]


def _spread(x: Tensor, stride: Pair, size: Sequence[int]) -> Tensor:
    """``x`` (N, C, H, W) with ``stride - 1`` zeros after each position, cut or filled up with zeros to ``size``."""
    if max(stride) == 1:
        return x
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    spread = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout).zero_()
    spread[:, :, :: stride[0], :: stride[1]][:, :, : x.shape[2], : x.shape[3]] = x
    return spread


def frozen_depthwise(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Depthwise convolution with a weight that needs no gradient.

    Args:
        x: (N, C, H, W); its gradient is exact.
        weight: (C, 1, kh, kw), treated as a constant.
        stride, padding, dilation: at most ``dilation * (kernel - 1)`` padding a side.
    """
    return FrozenDepthwise.apply(x, weight, stride, padding, dilation)


def depthwise(x: Tensor, weight: Tensor, stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1)) -> Tensor:
    """Depthwise convolution with gradients of every order for x (N, C, H, W) and weight (C, 1, kh, kw).

    The gradients are exact and cost what the module's identities cost; only those that are asked for are formed. Under
    torch.func, forward mode, torch.compile and on a GPU it is ``F.conv2d``. ``padding`` is at most ``dilation * (kernel - 1)`` a
    side.

    Raises:
        ValueError: shapes that do not fit.
    """
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[:2] != (x.shape[1], 1):
        raise ValueError(f"weight: expected (C, 1, kh, kw) for x (N, C, H, W), got {tuple(weight.shape)} for {tuple(x.shape)}")
    if any(p > d * (k - 1) for p, d, k in zip(padding, dilation, weight.shape[2:], strict=True)):
        raise ValueError(f"padding: expected at most dilation * (kernel - 1), got {padding} for {tuple(weight.shape)}")
    if x.device.type != "cpu" or is_transformed():
        return F.conv2d(x, weight, None, stride, padding, dilation, weight.shape[0])
    return TrainedDepthwise.apply(x, weight, stride, padding, dilation)
