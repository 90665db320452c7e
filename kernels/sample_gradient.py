"""Per-sample weight gradients of convolutions and linear layers.

For every sample n, G_n = d(sum of cotangent_n * output_n)/d(weight). The reference asks autograd, one sample at a time; the fast
formulations are chosen by :func:`choose`, a pure function of shapes, from a table measured on one thread of an AVX-512 CPU
(``python -m bench run sample-gradient``), never by timing at run time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ConvGeometry:
    """What a convolution is besides its tensors: weight shape (O, I/groups, *kernel) and per-dimension settings."""

    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.weight_shape[2:]

    @property
    def depthwise(self) -> bool:
        """One input and one output channel a group."""
        return self.weight_shape[1] == 1 and self.weight_shape[0] == self.groups

    @property
    def pointwise(self) -> bool:
        """A matrix product at every position that is read."""
        return self.groups == 1 and math.prod(self.kernel) == 1 and not any(self.padding)


def conv_sample_gradient_reference(x: Tensor, cotangent: Tensor, geometry: ConvGeometry) -> Tensor:
    """:func:`conv_sample_gradient` by one library call a sample and cotangent."""
    zero = x.new_zeros(geometry.weight_shape)
    rows = [
        torch.stack(
            [
                _weight_gradient(x[n : n + 1], cotangent[n : n + 1, k], zero, geometry, geometry.groups)
                for k in range(cotangent.shape[1])
            ]
        )
        for n in range(len(x))
    ]
    return torch.stack(rows).flatten(2)


def conv_sample_gradient(x: Tensor, cotangent: Tensor, geometry: ConvGeometry, *, ordered: bool = True) -> Tensor:
    """Per-sample gradients of a convolution's weight.

    Args:
        x: input (N, I, *S).
        cotangent: K gradients of the output, (N, K, O, *S').
        geometry: the convolution; any number of spatial dimensions, strides, dilations and groups.
        ordered: False allows any fixed order of the weight's elements, which saves a copy and is all a Gram matrix needs.

    Returns:
        (N, K, P) with the weight flattened. Costs the multiply-adds of K batched weight gradients, N * K * S' * P.
    """
    formulation = choose(cotangent.shape, geometry, x.dtype)
    if formulation == "matrix":
        return _matrix(x, cotangent, geometry, ordered)
    if formulation == "shift":
        return _shift(x, cotangent, geometry)
    if formulation == "correlate":
        return _correlate(x, cotangent, geometry)
    return _grouped(x, cotangent, geometry)


def choose(cotangent: torch.Size, geometry: ConvGeometry, dtype: torch.dtype = torch.float32) -> str:
    """Pick the formulation: ``"matrix"`` (batched product, unfolded where the kernel is wider than one position), ``"correlate"``
    (depthwise: the cotangent is the kernel of one grouped convolution), ``"shift"`` (depthwise: one product and sum a kernel
    position), or ``"grouped"`` (every sample a group of one library weight gradient).
    """
    # The library has no fast grouped convolution in float64 (seen: 13 against 8 s for twelve ablations of the golden supernet).
    wide = dtype == torch.float64
    if geometry.depthwise and len(geometry.kernel) == 2:
        return "shift" if wide else "correlate"
    if geometry.groups > 1 or len(geometry.kernel) != 2:
        return "grouped"
    if geometry.pointwise or wide:
        return "matrix"
    # Measured at 1x5: with few positions the library's grouped weight gradient falls off (30 ms against 8 at 192 channels, 8x8),
    # with many it avoids writing out the unfolded input (5 against 10 ms at 48 channels, 32x32).
    return "matrix" if math.prod(cotangent[3:]) <= 64 else "grouped"


def unfold(x: Tensor, geometry: ConvGeometry) -> Tensor:
    """The input windows of a dense 2-D convolution: (N, I, H, W) -> (N, H'*W', kh*kw*I), the kernel's positions outermost."""
    (kh, kw), (ph, pw) = geometry.kernel, geometry.padding
    (sh, sw), (dh, dw) = geometry.stride, geometry.dilation
    padded = x.permute(0, 2, 3, 1)
    if ph or pw:
        padded = F.pad(padded, (0, 0, pw, pw, ph, ph))
    high = (padded.shape[1] - dh * (kh - 1) - 1) // sh + 1
    wide = (padded.shape[2] - dw * (kw - 1) - 1) // sw + 1
    taps = [
        padded[:, i * dh : i * dh + sh * (high - 1) + 1 : sh, j * dw : j * dw + sw * (wide - 1) + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return (torch.cat(taps, 3) if len(taps) > 1 else taps[0]).flatten(1, 2)


def _weight_gradient(x: Tensor, cotangent: Tensor, weight: Tensor, geometry: ConvGeometry, groups: int) -> Tensor:
    return torch.ops.aten.convolution_backward(
        cotangent,
        x,
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0] * len(geometry.kernel),
        groups,
        [False, True, False],
    )[1]


def _grouped(x: Tensor, cotangent: Tensor, geometry: ConvGeometry) -> Tensor:
    # Channel order (sample, group, cotangent, channel): every (sample, group) is a group of one big convolution.
    (samples, count), groups, shape = cotangent.shape[:2], geometry.groups, geometry.weight_shape
    per_group = shape[0] // groups
    out = cotangent.unflatten(2, (groups, per_group)).transpose(1, 2).reshape(1, -1, *cotangent.shape[3:])
    weight = x.new_zeros(()).expand(samples * count * shape[0], *shape[1:])
    gradient = _weight_gradient(x.reshape(1, -1, *x.shape[2:]), out, weight, geometry, samples * groups)
    return gradient.reshape(samples, groups, count, -1).transpose(1, 2).reshape(samples, count, -1)


def _matrix(x: Tensor, cotangent: Tensor, geometry: ConvGeometry, ordered: bool) -> Tensor:
    samples, count = cotangent.shape[:2]
    left = cotangent.permute(0, 3, 4, 1, 2).flatten(3).flatten(1, 2).mT
    gradient = _products(left, unfold(x, geometry))
    if ordered and math.prod(geometry.kernel) > 1:
        gradient = gradient.unflatten(2, (-1, geometry.weight_shape[1])).transpose(2, 3)
    return gradient.reshape(samples, count, -1)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(N, A, Q) @ (N, Q, B). On the CPU torch multiplies float32 batches with MKL, whose AVX-512 path is closed to some
    processors; oneDNN's is open to all. One call a product costs 40 us, so only large ones go there (measured: 3.7 against 7.5 ms
    for 30 x (192, 64) @ (64, 960), level at half that size and below).
    """
    macs = left.shape[1] * left.shape[2] * right.shape[2]
    if (
        macs < 5_000_000
        or left.device.type != "cpu"
        or left.dtype != torch.float32
        or not hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return torch.bmm(left, right)
    multiply = torch.ops.mkldnn._linear_pointwise
    products = left.new_empty(len(left), left.shape[1], right.shape[2])
    for product, a, b in zip(products, left, right, strict=True):
        product.copy_(multiply(a, b.mT, None, "none", [], ""))
    return products


def _correlate(x: Tensor, cotangent: Tensor, geometry: ConvGeometry) -> Tensor:
    # d(weight)[i, j] = sum over positions p of x[stride * p + dilation * (i, j)] * cotangent[p]: a convolution of x with the
    # cotangent as kernel in which stride and dilation change places; it may reach past the kernel when the stride leaves a
    # remainder. One call a cotangent, because the library has no fast path for several kernels a channel (seen: 4.8 ms for six
    # against six times 0.25).
    samples, count, channels = cotangent.shape[:3]
    image = x.reshape(1, samples * channels, *x.shape[2:])
    high, wide = geometry.kernel
    rows = []
    for k in range(count):
        kernel = cotangent[:, k].reshape(samples * channels, 1, *cotangent.shape[3:])
        full = F.conv2d(image, kernel, None, geometry.dilation, geometry.padding, geometry.stride, samples * channels)
        rows.append(full[..., :high, :wide].reshape(samples, 1, -1))
    return torch.cat(rows, 1) if count > 1 else rows[0]


def _shift(x: Tensor, cotangent: Tensor, geometry: ConvGeometry) -> Tensor:
    # d(weight)[i, j] = sum over positions p of x[stride * p + dilation * (i, j) - padding] * cotangent[p], where x has that
    # position.
    steps = zip(
        geometry.kernel, geometry.padding, geometry.stride, geometry.dilation, x.shape[2:], cotangent.shape[3:], strict=True
    )
    rows, columns = ([_overlap(i * d - p, s, size, out) for i in range(k)] for k, p, s, d, size, out in steps)
    image, weights = x.permute(0, 2, 3, 1).unsqueeze(1), cotangent.movedim(2, -1)
    taps = [(image[:, :, h, w] * weights[:, :, p, q]).sum((2, 3)) for p, h in rows for q, w in columns]
    return torch.stack(taps, 3).flatten(2)


def _overlap(offset: int, stride: int, size: int, out: int) -> tuple[slice, slice]:
    """Output positions p whose input position ``stride * p + offset`` lies in an axis of ``size``, and those input positions."""
    first = max(0, -(offset // stride))
    count = max(0, min(out, (size - 1 - offset) // stride + 1) - first)
    start = stride * first + offset
    return slice(first, first + count), slice(start, start + stride * count, stride)


def linear_sample_gradient(x: Tensor, cotangent: Tensor) -> Tensor:
    """Per-sample gradients of a linear layer: (N, Q, I), (N, K, Q, O) -> (N, K, O*I), summed over the Q positions."""
    left = cotangent.transpose(2, 3).flatten(1, 2)
    return _products(left, x).view(len(x), cotangent.shape[1], -1)
