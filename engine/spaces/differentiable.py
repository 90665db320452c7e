"""Convolution and batch normalisation whose gradients can be differentiated again at the price of a few passes.

A convolution is bilinear, so its input and weight gradients are convolutions too, and all three are derivatives of one trilinear
form <g, x * k>: each one's gradients are the other two. Normalisation by the statistics of the batch has a symmetric Jacobian,
which makes its second derivative five sums a channel and one pass. The library instead builds a long graph of elementwise
operators for the second derivative of the norm, and takes its slow path for the gradients of depthwise convolutions
(:mod:`engine.kernels.depthwise`). Under torch.func, forward mode and torch.compile both are the library's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kernels import depthwise
from engine.kernels.transforms import is_transformed, plain_gradients

EPS = 1e-5
Pair = tuple[int, int]
ONE, ZERO = (1, 1), (0, 0)

_weights_are_held: ContextVar[bool] = ContextVar("weights are held", default=False)


@contextmanager
def weights_held() -> Iterator[None]:
    """Inside, backward passes of this thread form no gradients of convolution weights; they are None.

    For a pass that walks a graph of weights to the gradient of something else, such as a Hessian product for the architecture:
    a Python autograd function is not told which of its gradients anybody will read.
    """
    token = _weights_are_held.set(True)
    try:
        yield
    finally:
        _weights_are_held.reset(token)


class Geometry(NamedTuple):
    """Stride, padding, dilation and groups of a convolution; depthwise ones have as many groups as channels in and out."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def is_pointwise(self, k: Tensor) -> bool:
        """Whether every position is mapped by itself, so that the input gradient is the transposed map."""
        return k.shape[2:] == (1, 1) and self == POINTWISE

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        """x * k."""
        if _is_depthwise(k, self.groups):
            return depthwise.convolve(x, k, *self[:3])
        return F.conv2d(_innermost(x) if x.shape[1] == 1 else x, k, None, *self)

    def input_gradient(self, g: Tensor, k: Tensor, size: Sequence[int]) -> Tensor:
        """d <g, x * k> / dx for inputs of ``size`` (H, W)."""
        if _is_depthwise(k, self.groups):
            return depthwise.input_gradient(g, k, size, *self[:3])
        if self.is_pointwise(k):
            return F.conv2d(g, k.transpose(0, 1))
        # Only its shape and memory format are read; the gradient takes the cotangent's.
        shape = g.shape[0], k.shape[1] * self.groups, *size
        x = g if g.shape == shape else torch.empty(shape, dtype=g.dtype, device=g.device, memory_format=_memory_format(g))
        return self._library(g, x, k, (True, False, False))[0]

    def weight_gradient(self, x: Tensor, g: Tensor, k: Tensor) -> Tensor:
        """d <g, x * k> / dk; of k only the shape is read."""
        if _is_depthwise(k, self.groups):
            return depthwise.weight_gradient(x, g, k.shape[2:], *self[:3])
        return self._library(g, x, k, (False, True, False))[1]

    def _library(self, g: Tensor, x: Tensor, k: Tensor, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
        stride, padding, dilation, groups = self
        return torch.ops.aten.convolution_backward(g, x, k, None, stride, padding, dilation, False, (0, 0), groups, wanted)


POINTWISE = Geometry(ONE, ZERO, ONE, 1)


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


def _innermost(x: Tensor) -> Tensor:
    """(N, 1, H, W) with strides that say channels lie innermost: else the library puts those of all that follows outermost."""
    _, _, height, width = x.shape
    return x.contiguous().as_strided(x.shape, (height * width, 1, width, 1))


def _is_depthwise(k: Tensor, groups: int) -> bool:
    return k.shape[1] == 1 and k.shape[0] == groups > 1


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: Tensor, geometry: Geometry) -> Tensor:
        ctx.geometry, ctx.size = geometry, x.shape[2:]
        # Only the weight's gradient reads x, which is otherwise free for the next operation to be written into.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, k)
        return geometry.forward(x, k)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        (x, k), (g,) = ctx.saved_tensors, cotangents
        needs_x, needs_k, _ = ctx.needs_input_grad
        needs_k = needs_k and not _weights_are_held.get()
        if not torch.is_grad_enabled():
            dx = ctx.geometry.input_gradient(g, k, ctx.size) if needs_x else None
            return dx, ctx.geometry.weight_gradient(x, g, k) if needs_k else None, None
        dx = _InputGradient.apply(g, k, ctx.size, ctx.geometry) if needs_x else None
        dk = _WeightGradient.apply(x, g, k.detach(), ctx.geometry) if needs_k else None
        return dx, dk, None


class _InputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, k: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(g if ctx.needs_input_grad[1] else None, k)
        return geometry.input_gradient(g, k, size)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        (g, k), (x,) = ctx.saved_tensors, cotangents
        needs_g, needs_k, *_ = ctx.needs_input_grad
        dg = _Convolution.apply(x, k, ctx.geometry) if needs_g else None
        dk = _WeightGradient.apply(x, g, k.detach(), ctx.geometry) if needs_k and not _weights_are_held.get() else None
        return dg, dk, None, None


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(x, g)
        return geometry.weight_gradient(x, g, like)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        (x, g), (k,) = ctx.saved_tensors, cotangents
        needs_x, needs_g, *_ = ctx.needs_input_grad
        dx = _InputGradient.apply(g, k, x.shape[2:], ctx.geometry) if needs_x else None
        dg = _Convolution.apply(x, k, ctx.geometry) if needs_g else None
        return dx, dg, None, None


class _Halves(torch.autograd.Function):
    """See :func:`halves`; linear, so its derivatives are itself and its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return _every_second(x, 0), _every_second(x, 1)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return _Joined.apply(*cotangents)


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        batch, channels, height, width = first.shape
        shape, form = (batch, channels, 2 * height, 2 * width), _memory_format(first)
        whole = torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=form).zero_()
        whole[:, :, ::2, ::2], whole[:, :, 1::2, 1::2] = first, second
        return whole

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return _Halves.apply(cotangents[0])


def _every_second(x: Tensor, start: int) -> Tensor:
    return x[:, :, start::2, start::2].contiguous(memory_format=_memory_format(x))


class _Normalisation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, mean, rstd = torch.native_batch_norm(x, None, None, None, None, True, 0.0, EPS)
        ctx.save_for_backward(x, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        x, mean, rstd = ctx.saved_tensors
        g = cotangents[0].contiguous(memory_format=_memory_format(x))
        return (_NormGradient.apply if torch.is_grad_enabled() else _jacobian)(g, x, mean, rstd)


class _NormGradient(torch.autograd.Function):
    """J g with the Jacobian J of the normalisation: per channel r (g - mean(g) - y mean(g y)), symmetric in what it maps."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        ctx.save_for_backward(g, x, mean, rstd)
        return _jacobian(g, x, mean, rstd)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """<u, J g> / M = r (mean(g u) - mean(g) mean(u) - mean(g y) mean(u y)), differentiated for g and for x."""
        (g, x, mean, rstd), (u,) = ctx.saved_tensors, cotangents
        if torch.is_grad_enabled():  # somebody will differentiate once more: plain formulas serve
            return *plain_gradients(_plain_jacobian, (g, x), ctx.needs_input_grad[:2], (u,)), None, None
        y = (x - mean[:, None, None]).mul_(rstd[:, None, None])
        g1, u1, gy, uy, gu = (value.mean((0, 2, 3)) for value in (g, u, g * y, u * y, g * u))
        dg = None
        if ctx.needs_input_grad[0]:
            dg = torch.addcmul((-rstd * u1)[:, None, None], u, rstd[:, None, None])
            dg.addcmul_(y, (-rstd * uy)[:, None, None])
        square = rstd * rstd
        slope, constant = square * (3 * gy * uy + g1 * u1 - gu), square * (g1 * uy + u1 * gy)
        dx = torch.addcmul(constant[:, None, None], y, slope[:, None, None])
        dx.addcmul_(g, (-square * uy)[:, None, None]).addcmul_(u, (-square * gy)[:, None, None])
        return dg, dx, None, None


def _jacobian(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    wanted = (True, False, False)
    return torch.ops.aten.native_batch_norm_backward(g, x, None, None, None, mean, rstd, True, EPS, wanted)[0]


def _plain_jacobian(g: Tensor, x: Tensor) -> tuple[Tensor]:
    def mean(values: Tensor) -> Tensor:
        return values.mean((0, 2, 3), keepdim=True)

    centred = x - mean(x)
    rstd = (mean(centred * centred) + EPS).rsqrt()
    y = centred * rstd
    return (rstd * (g - mean(g) - y * mean(g * y)),)


def batch_norm(x: Tensor) -> Tensor:
    """Normalise (N, C, H, W) by the statistics of the batch: biased variance, eps 1e-5. Differentiable at will."""
    if x.device.type != "cpu" or is_transformed():
        return torch.native_batch_norm(x, None, None, None, None, True, 0.0, EPS)[0]
    return _Normalisation.apply(x)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every second row and column of (N, C, H, W) with even sides, from the first on and from the second on."""
    if x.device.type != "cpu" or is_transformed():
        return x[:, :, ::2, ::2], x[:, :, 1::2, 1::2]
    return _Halves.apply(x)


def convolution(x: Tensor, k: Tensor, geometry: Geometry) -> Tensor:
    """x * k, (N, C, H, W) by (O, C/groups, kh, kw), whose gradients of every order are convolutions."""
    if x.device.type != "cpu" or is_transformed():
        return F.conv2d(x, k, None, *geometry)
    return _Convolution.apply(x, k, geometry)


class Convolution(nn.Conv2d):
    """``nn.Conv2d`` without bias whose gradients of every order are convolutions."""

    @classmethod
    def of(cls, plain: nn.Conv2d) -> Convolution:
        """The same convolution, sharing the weight."""
        assert plain.bias is None and not isinstance(plain.padding, str)  # noqa: PT018
        same = cls(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,  # type: ignore[arg-type]
            plain.stride,  # type: ignore[arg-type]
            plain.padding,  # type: ignore[arg-type]
            plain.dilation,  # type: ignore[arg-type]
            plain.groups,
            bias=False,
        )
        same.weight = plain.weight
        return same

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or is_transformed():
            return super().forward(x)
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        return _Convolution.apply(x, self.weight, geometry)


Model = TypeVar("Model", bound=nn.Module)


def differentiable(model: Model) -> Model:
    """Replace every bias-free convolution of a model by :class:`Convolution`, in place, and return the model."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and child.bias is None:
                module._modules[name] = Convolution.of(child)
    return model
