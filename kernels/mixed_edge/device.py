"""The two operators on a GPU: the arithmetic of :mod:`.norm` between launches of Triton kernels.

Nothing waits for the host, sizes are static and partial results are merged in a fixed order, so a pass can be captured in a CUDA
graph and repeats its bits. float64 takes the plain formulation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.kernels.mixed_edge.launch_group import Filters, Group
from engine.kernels.mixed_edge.norm import Norm, cotangent_factors, folded, per_row, per_unit, statistics
from engine.kernels.mixed_edge.reference import Setting, group_reference, sum_reference
from engine.kernels.mixed_edge.triton_blocks import channels_last, laid_out
from engine.kernels.mixed_edge.triton_sum import TERMS, launch_gradients, launch_moments, launch_products, launch_sum
from engine.kernels.transforms import plain_gradients


class DeviceSum(torch.autograd.Function):
    """As :class:`engine.kernels.mixed_edge.weighted_sum.MixedSum`; more than four terms are added four at a time."""

    @staticmethod
    def forward(ctx: Any, norm: Norm, alive: Tensor, *tensors: Any) -> Tensor:
        factors, offset, total, *terms = tensors
        last = channels_last(terms[0])
        values = [laid_out(term, last) for term in terms]
        samples = len(values[0])
        living = per_unit(alive.unsqueeze(-1), samples)
        lives = living.squeeze(-1).to(torch.int8).contiguous()
        mean, rstd = _standard(values, lives, norm)
        added = None if offset is None else per_unit(offset.float(), samples).unsqueeze(0)
        scale, shift = folded(per_unit(factors.float(), samples).unsqueeze(0), living.unsqueeze(0), added, mean, rstd)
        out = None if total is None else laid_out(total, last)
        constant = shift[0].contiguous()
        for start in range(0, len(values), TERMS):
            part = slice(start, start + TERMS)
            out = launch_sum(values[part], out, lives[part], scale[0, part].contiguous(), constant)
            constant = torch.zeros_like(constant)
        ctx.norm = norm
        ctx.save_for_backward(alive, mean, rstd, *tensors)
        assert out is not None
        return out

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        alive, mean, rstd, *tensors = ctx.saved_tensors
        norm, needed = ctx.norm, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():

            def plain(*inputs: Any) -> tuple[Tensor]:
                return (sum_reference(norm, alive, *inputs),)

            return None, None, *plain_gradients(plain, tensors, needed, cotangents)
        factors, offset, _, *terms = tensors
        last, positions, samples = channels_last(terms[0]), terms[0].shape[2:].numel(), len(terms[0])
        g, values = laid_out(cotangents[0], last), [laid_out(term, last) for term in terms]
        living = per_unit(alive.unsqueeze(-1), samples)
        lives = living.squeeze(-1).to(torch.int8).contiguous()
        parts = [slice(start, start + TERMS) for start in range(0, len(values), TERMS)]
        sums = [launch_products(g, values[part], lives[part], mean[part].contiguous()) for part in parts]
        totals, products = sums[0][0] / positions, torch.cat([product for _, product in sums]) * rstd / positions
        weights = per_unit(factors.float(), samples).unsqueeze(0)
        direct, slope, constant = cotangent_factors(
            weights, living.unsqueeze(0), rstd, totals.unsqueeze(0), products.unsqueeze(0), norm
        )
        dterms: list[Tensor | None] = [None] * len(terms)
        if any(needed[3:]):
            slope = slope * rstd
            for part in parts:
                each = (factor[part].contiguous() for factor in (mean, direct[0], slope, constant))
                dterms[part] = launch_gradients(g, values[part], lives[part], *each)
        return (
            None,
            None,
            per_row(products * positions, len(alive)).to(factors.dtype) if needed[0] else None,
            per_row(totals * positions, len(alive)).to(offset.dtype) if needed[1] else None,
            cotangents[0] if needed[2] else None,
            *dterms,
        )


def _standard(values: list[Tensor], lives: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Means and factors (T, B, C) that the terms are normalised with."""
    if norm.kind == "none":
        mean = torch.zeros(len(values), *values[0].shape[:2], device=values[0].device)
        return mean, torch.ones_like(mean)
    pairs = [launch_moments(values[i : i + TERMS], lives[i : i + TERMS]) for i in range(0, len(values), TERMS)]
    return statistics(torch.cat([mean for mean, _ in pairs]), torch.cat([variance for _, variance in pairs]), norm)


class DeviceEdge(torch.autograd.Function):
    """As :class:`engine.kernels.mixed_edge.group.MixedEdge`."""

    @staticmethod
    def forward(ctx: Any, setting: Setting, alive: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        x, factors, offset, *weights = tensors
        state = laid_out(x, channels_last(x))
        group, samples = Group(state, setting.stride), len(state)
        filters = Filters(weights, setting.dilations, state)
        taps, mean, variance = group.read(filters)
        living = per_unit(alive.unsqueeze(-1), samples)
        if setting.norm.kind == "none":
            mean, rstd = torch.zeros_like(mean), torch.ones_like(mean)
        else:
            mean, rstd = statistics(mean, variance, setting.norm)
        # The skip connection is not normalised.
        mean, rstd = torch.cat([mean, torch.zeros_like(mean[:1])]), torch.cat([rstd, torch.ones_like(rstd[:1])])
        added = None if offset is None else per_unit(offset.float(), samples)
        scale, shift = folded(per_unit(factors.float(), samples), living, added, mean, rstd)
        sums = group.sums(living.squeeze(-1).to(torch.int8).contiguous(), scale.contiguous(), shift.contiguous())
        ctx.set_materialize_grads(False)
        ctx.setting = setting
        ctx.save_for_backward(alive, mean, rstd, *tensors)
        return *sums.unbind(), *taps

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        alive, mean, rstd, *tensors = ctx.saved_tensors
        setting, needed = ctx.setting, ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():

            def plain(*inputs: Any) -> list[Tensor]:
                return group_reference(setting, alive, *inputs)

            return None, None, *plain_gradients(plain, tensors, needed, cotangents)
        x, factors, offset, *weights = tensors
        edges, samples = factors.shape[1], len(x)
        state = laid_out(x, channels_last(x))
        group, filters = Group(state, setting.stride), Filters(weights, setting.dilations, state)
        living = per_unit(alive.unsqueeze(-1), samples)
        g = group.stack(cotangents[:edges])
        totals, products, winner = group.products(g, living.squeeze(-1).to(torch.int8).contiguous(), mean.contiguous())
        positions = group.blocks.positions
        totals, products = totals / positions, products * rstd / positions
        direct, slope, constant = cotangent_factors(
            per_unit(factors.float(), samples), living, rstd, totals, products, setting.norm
        )
        given = [cotangents[edges + j] for j in filters.order]
        taps = group.stack(given)
        found: list[Tensor | None] = [None] * len(tensors)
        if needed[0]:
            each = (direct.contiguous(), (slope * rstd).contiguous(), constant.contiguous())
            found[0] = group.gradient(g, taps, filters, winner, mean.contiguous(), each)
        if needed[1]:
            found[1] = per_row(products * positions, len(alive)).to(factors.dtype)
        if needed[2]:
            found[2] = per_row(totals * positions, len(alive)).to(offset.dtype)
        if any(needed[3:]):
            found[3:] = [
                gradient.to(weight.dtype) if wanted else None
                for gradient, weight, wanted in zip(group.filter_gradients(taps, filters), weights, needed[3:], strict=True)
            ]
        return None, None, *found


def sum_on_device(
    norm: Norm, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, *terms: Tensor
) -> Tensor:
    """:class:`DeviceSum` on the GPU where the terms lie."""
    with torch.cuda.device_of(terms[0]):
        return DeviceSum.apply(norm, alive, factors, offset, total, *terms)


def group_on_device(setting: Setting, alive: Tensor, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """:class:`DeviceEdge` on the GPU where x lies."""
    with torch.cuda.device_of(x):
        return DeviceEdge.apply(setting, alive, x, *tensors)
