"""The weighted sum on a GPU as torch sees it: opaque custom operators, their shapes for the compiler, gradients around them.

A value and its gradients are an operator each. Its CUDA registration is the launches of :mod:`.device`; its CPU registration is
the arithmetic of :mod:`.weighted_sum` with planes of single samples, so that what is registered can be checked without a GPU.
The setting travels as one string. Second derivatives are the plain formulation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.kernels.mixed_edge import weighted_sum
from engine.kernels.mixed_edge.norm import Norm
from engine.kernels.mixed_edge.planes import channels_last, empty_image, laid_out, wide_dtype
from engine.kernels.mixed_edge.reference import Setting, placed, sum_reference
from engine.kernels.transforms import plain_gradients


class DeviceSum(torch.autograd.Function):
    """As :class:`engine.kernels.mixed_edge.weighted_sum.MixedSum`, with partial channels."""

    @staticmethod
    def forward(ctx: Any, norm: Norm, parts: int, alive: Tensor, *tensors: Any) -> Tensor:
        factors, offset, total, *terms = tensors
        ctx.setting = Setting(norm, 1, (), parts)
        out, mean, rstd = _sum(ctx.setting.text, alive, factors, offset, total, terms)
        ctx.save_for_backward(alive, mean, rstd, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        alive, mean, rstd, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():

            def plain(*inputs: Any) -> tuple[Tensor]:
                return (sum_reference(ctx.setting.norm, alive, *inputs, parts=ctx.setting.parts),)

            return None, None, None, *plain_gradients(plain, tensors, needed, cotangents)
        factors, offset, _, *terms = tensors
        wanted = any(needed[3:])
        found = _sum_gradients(ctx.setting.text, alive, factors, mean, rstd, cotangents[0], terms, wanted)
        dfactors, doffset, dterms = found
        return (
            None,
            None,
            None,
            dfactors.to(factors.dtype) if needed[0] else None,
            doffset.to(offset.dtype) if needed[1] else None,
            cotangents[0] if needed[2] else None,
            *(dterms if wanted else [None] * len(terms)),
        )


def sum_on_device(
    norm: Norm, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, *terms: Tensor, parts: int = 1
) -> Tensor:
    """:class:`DeviceSum` on the GPU where the terms lie."""
    with torch.cuda.device_of(terms[0]):
        return DeviceSum.apply(norm, parts, alive, factors, offset, total, *terms)


@torch.library.custom_op("engine::mixed_sum", mutates_args=(), device_types="cpu")
def _sum(
    setting: str, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, terms: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, and the means and factors (T, B, C) that the terms are normalised with."""
    norm, _, _, parts = Setting.read(setting)
    layout = weighted_sum.Layout.of(norm, len(terms[0]), alive)
    value, mean, rstd = weighted_sum.added(layout, alive, factors, offset, None if parts > 1 else total, terms)
    value = placed(value, total, parts) if parts > 1 else value
    return laid_out(value, channels_last(terms[0])), mean.contiguous(), rstd


@_sum.register_kernel("cuda")
def _(
    setting: str, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, terms: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    from engine.kernels.mixed_edge import device

    return device.sum_forward(Setting.read(setting), alive, factors, offset, total, terms)


@_sum.register_fake
def _(
    setting: str, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, terms: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, height, width = terms[0].shape
    mean = factors.new_empty(len(terms), batch, channels, dtype=wide_dtype(terms[0]))
    out = empty_image(terms[0], batch, Setting.read(setting).parts * channels, height, width)
    return out, mean, torch.empty_like(mean)


@torch.library.custom_op("engine::mixed_sum_gradients", mutates_args=(), device_types="cpu")
def _sum_gradients(
    setting: str,
    alive: Tensor,
    factors: Tensor,
    mean: Tensor,
    rstd: Tensor,
    cotangent: Tensor,
    terms: Sequence[Tensor],
    wanted: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of the factors (R, T, C), the offset (R, C) and, if ``wanted``, the terms; else none of those."""
    norm, _, _, parts = Setting.read(setting)
    layout, last = weighted_sum.Layout.of(norm, len(terms[0]), alive), channels_last(terms[0])
    arguments = (alive, mean, rstd, cotangent[:, ::parts], factors, *terms)
    dfactors, doffset, *found, _, _ = weighted_sum.gradients(layout, [wanted] * len(terms), *arguments)
    dterms = [torch.zeros_like(y) if g is None else laid_out(g, last) for g, y in zip(found, terms, strict=True)]
    return dfactors.to(mean.dtype).contiguous(), doffset.to(mean.dtype).contiguous(), dterms if wanted else []


@_sum_gradients.register_kernel("cuda")
def _(
    setting: str,
    alive: Tensor,
    factors: Tensor,
    mean: Tensor,
    rstd: Tensor,
    cotangent: Tensor,
    terms: Sequence[Tensor],
    wanted: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    from engine.kernels.mixed_edge import device

    return device.sum_gradients(Setting.read(setting), alive, factors, mean, rstd, cotangent, terms, wanted)


@_sum_gradients.register_fake
def _(
    setting: str,
    alive: Tensor,
    factors: Tensor,
    mean: Tensor,
    rstd: Tensor,
    cotangent: Tensor,
    terms: Sequence[Tensor],
    wanted: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    rows, channels = alive.shape[0], terms[0].shape[1]
    dterms = [empty_image(terms[0], *y.shape) for y in terms] if wanted else []
    return mean.new_empty(rows, len(terms), channels), mean.new_empty(rows, channels), dterms
