"""Convolutions of an edge group: every branch's 1x1, or its pair 1xk and kx1, in one product with the statistics of its output.

    y[b, n, o, p] = sum_{i, t} x[b, n, i, s p + t - (k - 1) / 2] w[b, o, i, t]      (t along one axis; 1x1: k = 1)
    mean[b, g, o], var[b, g, o] over the samples n of group g and the positions p of y

for B branches, each with its own input and weight, and G groups (tasks or candidates) of N / G consecutive samples. A
normalisation behind such a convolution then needs no pass of its own over y to find its statistics. With groups = N they are
those of single samples, from which group normalisation's follow: the mean of the channels' means, and of their variances plus
the variance of those means.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.mixed_edge.planes import moments
from engine.kernels.transforms import is_transformed

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Normalisable(NamedTuple):
    """``y`` (B, N, O, H', W') in channels_last order, and ``mean`` and biased ``variance`` (B, G, O), float32 or float64."""

    y: Tensor
    mean: Tensor
    variance: Tensor


def grouped_pointwise(x: Tensor, weight: Tensor, *, groups: int = 1) -> Normalisable:
    """The 1x1 convolutions of B branches, with the statistics of their outputs.

    Args:
        x: (B, N, I, H, W), of any strides (channels_last samples are read best); branches that share an input are an expanded
            axis, which is not copied.
        weight: (B, O, I).
        groups: G, dividing N.

    Returns:
        See :class:`Normalisable`; differentiable twice in all three parts. Costs B N H W O I multiply-adds; on a GPU with Triton
        one launch, and a small one that joins the statistics of its programs in float64 (repeated runs give the same bits).
        The CPU runs one batched product and reads its output twice.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape or device.
    """
    if weight.ndim != 3:
        raise ValueError(f"weight: expected (B, O, I), got {tuple(weight.shape)}")
    weight = weight[..., None, None]
    _check(x, weight, groups)
    return Normalisable(*_convolve(x, weight, 1, groups))


def grouped_pair(x: Tensor, first: Tensor, second: Tensor, *, stride: int = 1, groups: int = 1) -> Normalisable:
    """A 1xk and then a kx1 convolution ("same" padding) a branch, with the statistics of the second one's output.

    Args:
        x: (B, N, I, H, W), as for :func:`grouped_pointwise`.
        first: (B, M, I, 1, k), with ``stride`` along both axes. second: (B, O, M, k', 1). k and k' odd.
        groups: G, dividing N.

    Returns:
        See :class:`Normalisable`. The first product's output passes through memory once: to keep it on the chip, every program
        would have to form k' - 1 more rows of it for all M channels.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape or device.
    """
    for name, weight, place in (("first", first, 3), ("second", second, 4)):
        if weight.ndim != 5 or weight.shape[place] != 1 or not weight.shape[7 - place] % 2:
            form = "(B, M, I, 1, k)" if name == "first" else "(B, O, M, k, 1)"
            raise ValueError(f"{name}: expected {form} with an odd k, got {tuple(weight.shape)}")
    if stride < 1:
        raise ValueError(f"stride: expected at least 1, got {stride}")
    _check(x, first, groups)
    _check_weight(x, first.shape[1], second)
    middle, _, _ = _convolve(x, first, stride, 0)
    return Normalisable(*_convolve(middle, second, 1, groups))


def convolution_reference(x: Tensor, weight: Tensor, stride: int, groups: int) -> Normalisable:
    """The module's formula, branch by branch and group by group: weight (B, O, I, kh, kw)."""
    padding = (weight.shape[3] // 2, weight.shape[4] // 2)
    y = torch.stack([F.conv2d(image, kernel, None, stride, padding) for image, kernel in zip(x, weight, strict=True)])
    parts = y.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)
    return Normalisable(y, parts.mean(3), parts.var(3, correction=0))


def _convolve(x: Tensor, weight: Tensor, stride: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """``groups`` 0: no statistics (empty ones)."""
    return _plain(x, weight, stride, groups) if is_transformed() else _Convolution.apply(x, weight, stride, groups)


def _plain(x: Tensor, weight: Tensor, stride: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Without kernels: branch by branch, which the CPU library does at least as fast as one batched product of 1x1 ones."""
    branches, outputs, _, kh, kw = weight.shape
    if branches:
        every = zip(x.unbind(), weight.unbind(), strict=True)
        each = [F.conv2d(image, kernel, None, stride, (kh // 2, kw // 2)).movedim(1, -1) for image, kernel in every]
        y = torch.stack(each)
    else:
        y = x.new_zeros(0, x.shape[1], *_sizes(x, stride), outputs)
    return y.movedim(-1, 2), *_statistics(y, groups)


def _statistics(y: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """y (B, N, H, W, O) -> mean and biased variance (B, G, O), in two passes."""
    if not groups:
        mean, variance = (y.new_empty(y.shape[0], 0, y.shape[-1], dtype=statistics_dtype(y)) for _ in range(2))
        return mean, variance
    rows = y.to(statistics_dtype(y)).unflatten(1, (groups, -1)).flatten(2, 4)
    if torch.is_grad_enabled() or not y.numel() or y.device.type != "cpu":
        mean = rows.mean(2)
        return mean, (rows - mean[:, :, None]).square().mean(2)
    pairs = [moments(part.unsqueeze(0)) for part in rows.flatten(0, 1)]
    means, variances = (torch.cat(column).unflatten(0, rows.shape[:2]) for column in zip(*pairs, strict=True))
    return means, variances


def statistics_dtype(y: Tensor) -> torch.dtype:
    """Statistics of half precision outputs are float32."""
    return torch.float64 if y.dtype == torch.float64 else torch.float32


class _Convolution(torch.autograd.Function):
    """x, weight (B, O, I, kh, kw) -> (y, mean, variance); its backward pass is made of torch's own operations.

    A branch at a time, whose gradients then lie in the cache of a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, variance = (_operator if x.is_cuda else _plain)(x, weight, stride, groups)
        ctx.save_for_backward(x, weight, y, mean)
        ctx.stride, ctx.groups = stride, groups
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y, mean = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        found = []
        for branch, (image, kernel) in enumerate(zip(x, weight, strict=True)):
            grad = grads[0][branch]
            if ctx.groups:
                grad = _with_statistics(grad, y[branch], mean[branch], grads[1][branch], grads[2][branch])
            found.append(_branch_gradients(grad, image, kernel, ctx.stride, wanted))
        gradients = zip(*found, strict=True) if found else [[], []]
        stacked = [torch.stack(list(part)) if need else None for part, need in zip(gradients, wanted, strict=True)]
        return *stacked, None, None


def _branch_gradients(grad: Tensor, image: Tensor, kernel: Tensor, stride: int, wanted: Sequence[bool]) -> list[Any]:
    """Of the image and of the kernel. The input gradient of a 1x1 convolution is one, which the CPU library is faster at."""
    padding = [size // 2 for size in kernel.shape[2:]]
    turned = kernel.shape[2:] == (1, 1) and stride == 1
    mask = [wanted[0] and not turned, wanted[1], False]
    settings = (None, [stride] * 2, padding, [1, 1], False, [0, 0], 1, mask)
    found: list[Any] = [None, None]
    if any(mask):
        found = list(torch.ops.aten.convolution_backward(grad, image, kernel, *settings)[:2])
    if wanted[0] and turned:
        found[0] = F.conv2d(grad, kernel.transpose(0, 1))
    return found


def _with_statistics(grad: Tensor, y: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
    """dL/dy (N, O, H, W) of a branch with its statistics' part, (dmean + 2 dvar (y - mean)) / count; mean and so on (G, O)."""
    parts = y.unflatten(0, (len(mean), -1))
    count = parts.shape[1] * y.shape[2:].numel()
    shift, slope, center = (part[:, None, :, None, None] for part in (grad_mean / count, 2 * grad_variance / count, mean))
    whole = torch.addcmul(shift - slope * center, parts, slope).add_(grad.unflatten(0, parts.shape[:2]))
    return whole.flatten(0, 1).to(grad.dtype)


@torch.library.custom_op("engine::convolution_statistics", mutates_args=(), device_types="cpu")
def _operator(x: Tensor, weight: Tensor, stride: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    return _plain(x, weight, stride, groups)


@_operator.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, stride: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    if not x.numel() or not weight.numel() or x.dtype == torch.float64 or find_spec("triton") is None:
        return _plain(x, weight, stride, groups)
    from engine.kernels.triton_pointwise import launch_convolution

    return launch_convolution(x, weight, stride, groups)


@_operator.register_fake
def _(x: Tensor, weight: Tensor, stride: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    high, wide = _sizes(x, stride)
    y = x.new_empty(x.shape[0], x.shape[1], high, wide, weight.shape[1]).movedim(-1, 2)
    mean = x.new_empty(x.shape[0], groups, weight.shape[1], dtype=statistics_dtype(x))
    return y, mean, torch.empty_like(mean)


def _sizes(x: Tensor, stride: int) -> tuple[int, int]:
    """Height and width of the output of a convolution with "same" padding."""
    return (x.shape[3] - 1) // stride + 1, (x.shape[4] - 1) // stride + 1


def _check(x: Tensor, weight: Tensor, groups: int) -> None:
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected {', '.join(str(d) for d in DTYPES)}, got {x.dtype} {tuple(x.shape)}")
    if x.ndim != 5 or x.layout != torch.strided:
        raise ValueError(f"x: expected strided (B, N, I, H, W), got {x.layout} {tuple(x.shape)}")
    _check_weight(x, x.shape[2], weight)
    if groups < 1 or x.shape[1] % groups:
        raise ValueError(f"groups: expected a positive divisor of the {x.shape[1]} samples of x {tuple(x.shape)}, got {groups}")


def _check_weight(x: Tensor, inputs: int, weight: Tensor) -> None:
    if weight.dtype != x.dtype:
        raise TypeError(f"weight: expected {x.dtype} as x is, got {weight.dtype} {tuple(weight.shape)}")
    if weight.device != x.device or weight.layout != torch.strided:
        given = f"{weight.layout} {tuple(weight.shape)} on {weight.device}"
        raise ValueError(f"weight: expected strided on {x.device}, got {given}")
    if weight.shape[0] != x.shape[0] or weight.shape[2] != inputs:
        given = f"{tuple(weight.shape)} for x {tuple(x.shape)}"
        raise ValueError(f"weight: expected {x.shape[0]} branches and {inputs} channels in, got {given}")
