"""The masked convolution of :func:`engine.kernels.masked_layers.masked_conv2d` with operators of its own.

    y = x * (m(s) phi);    of P, the gradient of the masked weight:  dphi = m P,  ds = sum_t phi P

so one product gives both gradients, and the mask is applied where a weight is loaded. Tasks lie along a leading axis. The
operators' registrations have the plain formulas for the CPU and the launches of :mod:`.triton_masked_conv` for CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from engine.kernels.masked import keep, masked
from engine.kernels.transforms import plain_gradients

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Stride, padding and dilation along both axes, and the groups of channels; operators take the seven numbers in a row."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def numbers(self) -> list[int]:
        """All seven."""
        return [*self.stride, *self.padding, *self.dilation, self.groups]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Geometry:
        """What :attr:`numbers` were taken of."""
        s0, s1, p0, p1, d0, d1, groups = numbers
        return cls((s0, s1), (p0, p1), (d0, d1), groups)

    def sizes(self, size: Sequence[int], kernel: Sequence[int]) -> Pair:
        """Height and width of the output."""
        every = zip(size, kernel, self.stride, self.padding, self.dilation, strict=True)
        high, wide = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in every)
        return high, wide


class MaskedConvolution(torch.autograd.Function):
    """x (T, N, C, H, W), weight (T, O, C / groups, kh, kw), scores without T, threshold, bits or None -> (T, N, O, H', W').

    Where the backward pass builds a graph it is made of torch's operations.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scores, threshold, bits)
        ctx.geometry = geometry
        return _convolve(x, weight, scores, threshold, bits, geometry.numbers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, scores, threshold, bits), geometry, (grad,) = ctx.saved_tensors, ctx.geometry, grads
        needs_x, needs_weight, needs_scores = needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():

            def plain(x: Tensor, weight: Tensor, scores: Tensor) -> tuple[Tensor]:
                return (by_task(x, masked(weight, scores, threshold), geometry),)

            return *plain_gradients(plain, (x, weight, scores), needed, grads), None, None, None
        x_grad = weight_grad = score_grad = None
        if needs_x:
            x_grad = _input_gradient(grad, weight, scores, threshold, bits, x.shape[3:], geometry.numbers)
        if needs_weight or needs_scores:
            product = _products(grad, x, weight.shape[3:], geometry.numbers)
            weight_grad = keep(product, scores.to(product.dtype), threshold.to(product.dtype)).to(weight.dtype)
            score_grad = (product * weight).sum(0).to(scores.dtype)
        return x_grad, weight_grad, score_grad, None, None, None


def by_task(x: Tensor, w: Tensor, geometry: Geometry, bias: Tensor | None = None) -> Tensor:
    """A library call a task: x (T, N, C, H, W), w (T, O, C / groups, kh, kw), bias (O,) or (T, O)."""
    biases = [None] * len(w) if bias is None else bias.expand(w.shape[:2]).unbind()
    every = zip(x.unbind(), w.unbind(), biases, strict=True)
    return torch.stack([F.conv2d(image, kernel, own, *geometry) for image, kernel, own in every])


@torch.library.custom_op("engine::masked_convolution", mutates_args=(), device_types="cpu")
def _convolve(
    x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, geometry: Sequence[int]
) -> Tensor:
    """The convolution with the masked weight, channels innermost."""
    return _innermost(by_task(x, keep(weight, scores, threshold), Geometry.of(geometry)))


@_convolve.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, geometry: Sequence[int]) -> Tensor:
    made = Geometry.of(geometry)
    size = made.sizes(x.shape[3:], weight.shape[3:])
    if not x.numel() or not weight.numel():
        return _like(x, weight.shape[1], size).zero_()
    from engine.kernels.triton_masked_conv import launch_masked_conv

    return launch_masked_conv(x, weight, scores, threshold, bits, made, size, back=False)


@_convolve.register_fake
def _(x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, geometry: Sequence[int]) -> Tensor:
    return _like(x, weight.shape[1], Geometry.of(geometry).sizes(x.shape[3:], weight.shape[3:]))


@torch.library.custom_op("engine::masked_convolution_input", mutates_args=(), device_types="cpu")
def _input_gradient(
    cotangent: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Tensor,
    bits: Tensor | None,
    size: Sequence[int],
    geometry: Sequence[int],
) -> Tensor:
    """d <cotangent, x * w> / dx for inputs of ``size`` (H, W), channels innermost."""
    stride, padding, dilation, groups = Geometry.of(geometry)
    w = keep(weight, scores, threshold)
    shape = (cotangent.shape[1], weight.shape[2] * groups, *size)
    every = [conv2d_input(shape, k, g, stride, padding, dilation, groups) for k, g in zip(w, cotangent, strict=True)]
    return _innermost(torch.stack(every))


@_input_gradient.register_kernel("cuda")
def _(
    cotangent: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Tensor,
    bits: Tensor | None,
    size: Sequence[int],
    geometry: Sequence[int],
) -> Tensor:
    high, wide = size
    made = Geometry.of(geometry)
    if not cotangent.numel() or not weight.numel():
        return _like(cotangent, weight.shape[2] * made.groups, (high, wide)).zero_()
    from engine.kernels.triton_masked_conv import launch_masked_conv

    return launch_masked_conv(cotangent, weight, scores, threshold, bits, made, (high, wide), back=True)


@_input_gradient.register_fake
def _(
    cotangent: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Tensor,
    bits: Tensor | None,
    size: Sequence[int],
    geometry: Sequence[int],
) -> Tensor:
    high, wide = size
    return _like(cotangent, weight.shape[2] * Geometry.of(geometry).groups, (high, wide))


@torch.library.custom_op("engine::masked_convolution_products", mutates_args=(), device_types="cpu")
def _products(cotangent: Tensor, x: Tensor, kernel: Sequence[int], geometry: Sequence[int]) -> Tensor:
    """P (T, O, C / groups, kh, kw), the gradients of the weights before masking, in at least float32."""
    stride, padding, dilation, groups = Geometry.of(geometry)
    shape = (cotangent.shape[2], x.shape[2] // groups, *kernel)
    every = zip(cotangent, x, strict=True)
    found = [conv2d_weight(image, shape, g, stride, padding, dilation, groups) for g, image in every]
    return torch.stack(found).to(_wide(x)).contiguous()


@_products.register_kernel("cuda")
def _(cotangent: Tensor, x: Tensor, kernel: Sequence[int], geometry: Sequence[int]) -> Tensor:
    high, wide = kernel
    made = Geometry.of(geometry)
    if not cotangent.numel() or not x.numel():
        return x.new_zeros(len(x), cotangent.shape[2], x.shape[2] // made.groups, high, wide, dtype=_wide(x))
    from engine.kernels.triton_masked_conv import launch_conv_products

    return launch_conv_products(cotangent, x, (high, wide), made)


@_products.register_fake
def _(cotangent: Tensor, x: Tensor, kernel: Sequence[int], geometry: Sequence[int]) -> Tensor:
    groups = Geometry.of(geometry).groups
    return x.new_empty(x.shape[0], cotangent.shape[2], x.shape[2] // groups, *kernel, dtype=_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _like(x: Tensor, channels: int, size: Pair) -> Tensor:
    """Empty (T, N, channels, *size), channels innermost."""
    return x.new_empty(x.shape[0], x.shape[1], *size, channels).movedim(-1, 2)


def _innermost(y: Tensor) -> Tensor:
    """The same with channels innermost."""
    return y.movedim(2, -1).contiguous().movedim(-1, 2)
