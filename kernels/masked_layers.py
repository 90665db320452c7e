"""Layers with masked weights: threshold, mask and multiply happen where a linear layer's product loads the weight.

    y = x w^T + bias,  w = m(s) * phi;    of P = dy^T x:  dphi = m * P,  ds = phi * P        (see :mod:`engine.kernels.masked`)

so one product gives both gradients. With a task axis, P has one, phi and dphi have one, and ds is the sum over it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.masked import as_threshold, check_pair, keep, masked
from engine.kernels.masked_convolution import Geometry, MaskedConvolution, by_task
from engine.kernels.transforms import is_transformed


def masked_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Tensor | float,
    bias: Tensor | None = None,
    *,
    bits: Tensor | None = None,
) -> Tensor:
    """x w^T + bias with w = m(scores) * weight.

    Args:
        x: (..., I), or (T, N, I) where tasks have their own weights.
        weight: (O, I), or (T, O, I): own weights per task under the shared mask.
        scores: (O, I); threshold: 0-dim tensor or float, as in :func:`engine.kernels.masked.masked`.
        bias: (O,), or (T, O) with weights per task.
        bits: the mask of these very scores, from :func:`engine.kernels.masked.pack` or
            :func:`engine.kernels.score_gradient.update_scores_`: a kernel then reads a bit a weight and no scores.

    Returns:
        (..., O). Costs N O I multiply-adds a task and one pass over the weights; the gradients of weight and scores share one
        product. On a GPU with Triton the masked weight is never written out; under torch.func's transforms, torch.compile and in
        float64 it is. There the products are rounded as torch's own are (``torch.set_float32_matmul_precision``). Where the
        backward pass builds a graph (the outer loop), it is made of torch's operations.

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape or device.
    """
    check_pair(weight, scores)
    _check_input(x, weight, scores, bias, rank=2)
    _check_bits(bits, scores)
    if _has_kernels(x):
        rows = x if weight.ndim == 3 else x.reshape(1, -1, x.shape[-1])
        y = _Linear.apply(rows, weight.expand(len(rows), -1, -1), scores, as_threshold(threshold, scores), bits)
        y = y if bias is None else y + (bias[:, None] if bias.ndim == 2 else bias)
        return y.reshape(*x.shape[:-1], -1)
    w = masked(weight, scores, threshold)
    if weight.ndim == 2:
        return F.linear(x, w, bias)
    if bias is None:
        return torch.bmm(x, w.mT)
    return torch.baddbmm(bias.expand(w.shape[:2])[:, None], x, w.mT)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Tensor | float,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bits: Tensor | None = None,
) -> Tensor:
    """2-D convolution with w = m(scores) * weight.

    Args:
        x: (N, C, H, W), or (T, N, C, H, W) where tasks have their own weights.
        weight: (O, C / groups, kh, kw), or (T, O, C / groups, kh, kw): own weights per task under the shared mask.
        scores: (O, C / groups, kh, kw); threshold: 0-dim tensor or float, as in :func:`masked`.
        bias: (O,), or (T, O) with weights per task.
        bits: the mask of these very scores, as in :func:`masked_linear`.

    Returns:
        (N, O, H', W') or (T, N, O, H', W'). On a GPU with Triton one launch for all tasks, channels innermost in the result,
        and the masked weight is never written out; the gradients of weight and scores share one product (precisions and the
        outer loop as in :func:`masked_linear`). Elsewhere it is written out once and tasks run one after the other, a library
        call each: a convolution reads each weight at every position, so masks are 5 % of its traffic or less (reference note
        meta-ticket, 11).

    Raises:
        TypeError, ValueError: an argument of a wrong dtype, rank, shape or device.
    """
    check_pair(weight, scores)
    _check_input(x, weight, scores, bias, rank=4, groups=groups)
    _check_bits(bits, scores)
    geometry = Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)
    if _has_kernels(x):
        tasks = weight.ndim == 5
        images, each = (x, weight) if tasks else (x[None], weight[None])
        y = MaskedConvolution.apply(images, each, scores, as_threshold(threshold, scores), bits, geometry)
        y = y if bias is None else y + bias.reshape(-1, 1, weight.shape[-4], 1, 1)
        return y if tasks else y[0]
    w = masked(weight, scores, threshold)
    return F.conv2d(x, w, bias, *geometry) if weight.ndim == 4 else by_task(x, w, geometry, bias)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.dtype != torch.float64 and find_spec("triton") is not None and not is_transformed()


class _Linear(torch.autograd.Function):
    """x (T, N, I), weight (T, O, I), scores (O, I) -> (T, N, O) by the operators below."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, scores, threshold, bits)
        return _gemm(x, weight, scores, threshold, bits, False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scores, threshold, bits = ctx.saved_tensors
        (grad,) = grads
        x_grad = weight_grad = score_grad = None
        if torch.is_grad_enabled():  # a graph is being built: operations whose own derivatives torch knows
            product = torch.bmm(grad.mT, x)
            x_grad = torch.bmm(grad, masked(weight, scores, threshold))
            return x_grad, masked(product, scores, threshold), (product * weight).sum(0).to(scores.dtype), None, None
        if ctx.needs_input_grad[0]:
            x_grad = _gemm(grad, weight.mT, scores.mT, threshold, bits, True)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            weight_grad, score_grad = _gradients(grad, x, weight, scores, threshold, bits)
        return x_grad, weight_grad, score_grad, None, None


@torch.library.custom_op("engine::masked_gemm", mutates_args=(), device_types="cpu")
def _gemm(x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, transposed: bool) -> Tensor:
    """x (T, N, K) times the masked weight (T, O, K): (T, N, O). ``transposed``: bits are in the order of scores.mT."""
    return torch.bmm(x, keep(weight, scores, threshold).mT)


@_gemm.register_kernel("cuda")
def _(x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, transposed: bool) -> Tensor:
    if not x.numel() or not weight.numel():
        return x.new_zeros(x.shape[0], x.shape[1], weight.shape[1])
    from engine.kernels.triton_masked import launch_masked_gemm

    return launch_masked_gemm(x, weight, scores, threshold, bits, transposed)


@_gemm.register_fake
def _(x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None, transposed: bool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[1])


@torch.library.custom_op("engine::masked_gradients", mutates_args=(), device_types="cpu")
def _gradients(
    cotangent: Tensor, x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dphi (T, O, I) and ds (O, I) of the product cotangent^T x, (T, N, O) and (T, N, I)."""
    product = torch.bmm(cotangent.mT, x)
    return keep(product, scores, threshold), (product * weight).sum(0).to(scores.dtype)


@_gradients.register_kernel("cuda")
def _(
    cotangent: Tensor, x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None
) -> tuple[Tensor, Tensor]:
    if not x.numel() or not weight.numel():
        return weight.new_zeros(weight.shape), torch.zeros_like(scores, memory_format=torch.contiguous_format)
    from engine.kernels.triton_masked import launch_masked_gradients

    return launch_masked_gradients(cotangent, x, weight, scores, threshold, bits)


@_gradients.register_fake
def _(
    cotangent: Tensor, x: Tensor, weight: Tensor, scores: Tensor, threshold: Tensor, bits: Tensor | None
) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), torch.empty_like(scores, memory_format=torch.contiguous_format)


def _check_bits(bits: Tensor | None, scores: Tensor) -> None:
    if bits is None:
        return
    if bits.dtype != torch.uint8:
        raise TypeError(f"bits: expected torch.uint8, got {bits.dtype} {tuple(bits.shape)}")
    count = -(-scores.numel() // 8)
    if tuple(bits.shape) != (count,) or not bits.is_contiguous() or bits.device != scores.device:
        given = f"{tuple(bits.shape)}, strides {bits.stride()}, on {bits.device}"
        raise ValueError(f"bits: expected contiguous ({count},) on {scores.device} for scores {tuple(scores.shape)}, got {given}")


def _check_input(x: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None, rank: int, groups: int = 1) -> None:
    """``rank`` is that of a weight without tasks."""
    shapes = f"weight {tuple(weight.shape)} and scores {tuple(scores.shape)}"
    tasks = weight.ndim - rank
    if scores.ndim != rank or tasks not in (0, 1):
        raise ValueError(f"weight: expected {rank} axes as scores have, or a task axis before them, got {shapes}")
    for name, tensor in (("x", x), ("bias", bias)):
        if tensor is not None and (tensor.dtype != weight.dtype or tensor.device != weight.device):
            wanted = f"{weight.dtype} on {weight.device} as weight is"
            raise TypeError(f"{name}: expected {wanted}, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}")
    wanted_rank = x.ndim >= 1 if (rank, tasks) == (2, 0) else x.ndim == {2: 3, 4: 4 + tasks}[rank]
    channels = weight.shape[tasks + 1] * groups
    if not wanted_rank or x.shape[1 + tasks if rank == 4 else -1] != channels or (tasks and x.shape[0] != weight.shape[0]):
        form = {(2, 0): "(..., I)", (2, 1): "(T, N, I)", (4, 0): "(N, C, H, W)", (4, 1): "(T, N, C, H, W)"}[rank, tasks]
        raise ValueError(f"x: expected {form} with {channels} channels for weight {tuple(weight.shape)}, got {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) not in (weight.shape[tasks : tasks + 1], weight.shape[: tasks + 1]):
        raise ValueError(f"bias: expected one element an output of weight {tuple(weight.shape)}, got {tuple(bias.shape)}")
