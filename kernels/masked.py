"""Masked weights: a weight exists where its score is not below its layer's threshold, and scores are trained straight through.

    w = m(s) * phi,    m(s) = 1 where s >= sigma, else 0,    dm/ds := 1                             (Meta-ticket, Eqs. 3 to 5)

so that, for a gradient g with respect to w, d/dphi = m * g and d/ds = phi * g: pruned weights receive score gradients too and
may come back. The derivative of m stays 1 in every further derivative: that of m * g with respect to s is g, as the outer loop
through adapted weights needs it. Where a layer multiplies by w, both gradients come from the one product g = dy^T x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def threshold(scores: Tensor, sparsity: float) -> Tensor:
    """sigma: the k-th smallest score, k = 1 + round(sparsity (n - 1)), halves to even.

    Args:
        scores: one layer's scores, n >= 1 of any shape.
        sparsity: 0 to 1. About this fraction falls below the threshold: with 0 it is the smallest score, so nothing does.

    Returns:
        0-dim, in the dtype of ``scores`` (a float32 threshold in a float64 run would move the boundary element); no gradients.
        O(n), without synchronisation. The original's rule (reference note meta-ticket, 1); the paper has floor(sparsity n).
    """
    _check_floating("scores", scores)
    if not scores.numel():
        raise ValueError(f"scores: expected at least one, got shape {tuple(scores.shape)}")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: expected 0 to 1, got {sparsity}")
    k = 1 + round(sparsity * (scores.numel() - 1))
    return scores.detach().flatten().kthvalue(k).values


def mask(scores: Tensor, threshold: Tensor | float) -> Tensor:
    """m: bool, of the shape of ``scores``; False where scores < threshold (ties and NaN stay)."""
    _check_floating("scores", scores)
    return ~(scores.detach() < as_threshold(threshold, scores))


def pack(mask: Tensor) -> Tensor:
    """A bool tensor as bits: uint8 (ceil(n / 8),), element 8 j + i of the contiguous order in bit i of byte j; zeros fill up."""
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected torch.bool, got {mask.dtype} {tuple(mask.shape)}")
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.flatten().numpy(), bitorder="little"))
    bits = F.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).unflatten(0, (-1, 8))
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bool tensor of ``shape`` that :func:`pack` made ``bits`` of."""
    if bits.dtype != torch.uint8:
        raise TypeError(f"bits: expected torch.uint8, got {bits.dtype} {tuple(bits.shape)}")
    count = math.prod(shape)
    if tuple(bits.shape) != (-(-count // 8),):
        raise ValueError(f"bits: expected ({-(-count // 8)},) for a mask of shape {tuple(shape)}, got {tuple(bits.shape)}")
    every = bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
    return every.flatten()[:count].view(shape).bool()


def masked(weight: Tensor, scores: Tensor, threshold: Tensor | float) -> Tensor:
    """w = m(scores) * weight, straight through to the scores.

    Args:
        weight: phi, (*S) of any rank, or (..., *S): own weights per task, of which all share the mask.
        scores: (*S), floating, of any floating dtype; its gradient is summed over the leading axes of ``weight``.
        threshold: sigma, 0-dim tensor or float; no gradients.

    Returns:
        Like ``weight``, exactly 0 where masked (also where the weight is infinite or NaN). Differentiable any number of times,
        forward and backward, under torch.func's transforms. On the CPU one pass: reads weight and scores, writes the result.
    """
    check_pair(weight, scores)
    return _Masked.apply(weight, scores, as_threshold(threshold, scores))


def masked_reference(weight: Tensor, scores: Tensor, threshold: Tensor | float) -> Tensor:
    """:func:`masked` in operations whose derivatives torch knows: s - s is 0 with derivative 1."""
    return weight * ((~(scores < threshold)).to(scores.dtype) + (scores - scores.detach())).to(weight.dtype)


class _Masked(torch.autograd.Function):
    """(weight, scores, threshold) -> m(scores) * weight; its own backward pass is made of itself."""

    @staticmethod
    def forward(weight: Tensor, scores: Tensor, threshold: Tensor) -> Tensor:
        return keep(weight, scores, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, scores, threshold = ctx.saved_tensors
        weight_grad = _Masked.apply(grads[0], scores, threshold) if ctx.needs_input_grad[0] else None
        score_grad = _straight_through(grads[0], weight, scores) if ctx.needs_input_grad[1] else None
        return weight_grad, score_grad, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        weight, scores, threshold = ctx.saved_tensors
        out = torch.zeros_like(weight) if tangents[0] is None else _Masked.apply(tangents[0], scores, threshold)
        return out if tangents[1] is None else out + weight * tangents[1].to(weight.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], weight: Tensor, scores: Tensor, threshold: Tensor) -> tuple[Tensor, int]:
        """Weights of one set of scores become tasks; other scores are laid beside their weights."""
        weight = weight.expand(info.batch_size, *weight.shape) if in_dims[0] is None else weight.movedim(in_dims[0], 0)
        if in_dims[1] is None and in_dims[2] is None:
            return _Masked.apply(weight, scores, threshold), 0
        scores = scores[None] if in_dims[1] is None else scores.movedim(in_dims[1], 0)
        if in_dims[2] is not None:  # s >= sigma exactly where s - sigma >= 0
            scores = scores - threshold.view(-1, *[1] * (scores.ndim - 1))
            threshold = threshold.new_zeros(())
        beside = scores.view(len(scores), *[1] * (weight.ndim - scores.ndim), *scores.shape[1:])
        return _Masked.apply(weight, beside.expand_as(weight), threshold), 0


def keep(weight: Tensor, scores: Tensor, threshold: Tensor) -> Tensor:
    """m(scores) * weight, without derivatives."""
    if (
        weight.device.type == "cpu"
        and weight.dtype == scores.dtype
        and weight.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
    ):
        # ReLU's backward pass keeps what is above a scalar, in one vectorised pass; torch.where takes 13 times as long (measured:
        # 10.4 against 0.8 ms for 3 million weights).
        below = torch.nextafter(threshold, threshold.new_tensor(-math.inf))
        return torch.ops.aten.threshold_backward(weight, scores, below.item())
    return torch.where(scores < threshold, 0, weight)


def _straight_through(grad: Tensor, weight: Tensor, scores: Tensor) -> Tensor:
    """d/ds = phi * g, summed over tasks."""
    product = grad.to(scores.dtype) * weight.to(scores.dtype)
    tasks = weight.ndim - scores.ndim
    return product.sum(tuple(range(tasks))) if tasks else product


def as_threshold(threshold: Tensor | float, scores: Tensor) -> Tensor:
    """sigma as a 0-dim tensor beside ``scores``, in their dtype."""
    if not isinstance(threshold, Tensor):
        return torch.tensor(threshold, dtype=scores.dtype, device=scores.device)
    if threshold.numel() != 1 or threshold.device != scores.device:
        raise ValueError(
            f"threshold: expected one element on {scores.device}, got {tuple(threshold.shape)} on {threshold.device}"
        )
    return threshold.detach().reshape(()).to(scores.dtype)


def _check_floating(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: expected {', '.join(str(d) for d in DTYPES)}, got {tensor.dtype} {tuple(tensor.shape)}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name}: expected a strided tensor, got {tensor.layout} {tuple(tensor.shape)}")


def check_pair(weight: Tensor, scores: Tensor) -> None:
    """Raise a TypeError or ValueError that names what :func:`masked` cannot take."""
    for name, tensor in (("weight", weight), ("scores", scores)):
        _check_floating(name, tensor)
    if weight.shape[weight.ndim - scores.ndim :] != scores.shape or weight.ndim < scores.ndim:
        raise ValueError(f"scores: expected the last axes of weight {tuple(weight.shape)}, got {tuple(scores.shape)}")
    if scores.device != weight.device:
        raise ValueError(f"scores: expected on {weight.device} as weight is, got {tuple(scores.shape)} on {scores.device}")
