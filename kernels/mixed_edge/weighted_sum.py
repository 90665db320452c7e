"""Sums of normalised terms with a gradient of their own: see :func:`engine.kernels.mixed_edge.mixed_sum`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.kernels.mixed_edge.norm import Norm, cotangent_factors, folded, per_row, per_unit, statistics
from engine.kernels.mixed_edge.planes import add_scaled, channels_behind, mean_products, moments, planes, spans, unit_count
from engine.kernels.mixed_edge.reference import sum_reference
from engine.kernels.transforms import plain_gradients


class MixedSum(torch.autograd.Function):
    """(norm, alive (R, T) bool, factors (R, T, C), offset (R, C) or None, total or None, terms...) -> the sum (B, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, norm: Norm, alive: Tensor, *tensors: Any) -> Tensor:
        factors, offset, total, *terms = tensors
        first = channels_behind(terms[0])
        units = unit_count(first, norm, len(alive))
        values = [planes(channels_behind(term), units) for term in terms]
        where = [spans(column, units) for column in alive.T.tolist()]
        mean, rstd = _statistics(values, where, norm)
        weights, living, added = _per_unit(alive, factors, offset, units, mean.dtype)
        scale, shift = folded(weights, living, added, mean, rstd)
        base = torch.zeros_like(values[0]) if total is None else planes(channels_behind(total), units)
        sums = base + shift[0].unsqueeze(1)
        for t, y in enumerate(values):
            add_scaled(sums, y, scale[0, t], where[t])
        ctx.norm, ctx.units, ctx.where = norm, units, where
        ctx.save_for_backward(alive, mean, rstd, *tensors)
        return sums.reshape(first.shape).permute(0, 3, 1, 2).to(terms[0].dtype)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        alive, mean, rstd, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():

            def plain(*inputs: Any) -> tuple[Tensor]:
                return (sum_reference(ctx.norm, alive, *inputs),)

            return None, None, *plain_gradients(plain, tensors, needed, cotangents)
        factors, offset, _, *terms = tensors
        dfactors, doffset, dterms = _gradients(ctx, alive, mean, rstd, factors, terms, needed[3:], cotangents[0])
        found = [
            dfactors.to(factors.dtype) if needed[0] else None,
            doffset.to(offset.dtype) if needed[1] else None,
            cotangents[0] if needed[2] else None,
        ]
        return None, None, *found, *dterms


def _per_unit(alive: Tensor, factors: Tensor, offset: Tensor | None, units: int, dtype: torch.dtype) -> Any:
    """The rows of a single target as (1, T, U, C), (1, T, U, 1) and (1, U, C)."""
    added = None if offset is None else per_unit(offset.to(dtype), units).unsqueeze(0)
    return per_unit(factors.to(dtype), units).unsqueeze(0), per_unit(alive.unsqueeze(-1), units).unsqueeze(0), added


def _statistics(values: list[Tensor], where: list[list[slice]], norm: Norm) -> tuple[Tensor, Tensor]:
    """Means and factors (T, U, C) that the terms are normalised with; terms that no row takes are not read."""
    none = values[0].new_zeros(values[0].shape[0], values[0].shape[2])
    if norm.kind == "none":
        mean = none.expand(len(values), *none.shape)
        return mean, torch.ones_like(mean)
    buffer = torch.empty_like(values[0])
    pairs = [moments(y, buffer) if where[t] else (none, none) for t, y in enumerate(values)]
    return statistics(torch.stack([m for m, _ in pairs]), torch.stack([v for _, v in pairs]), norm)


def _gradients(
    ctx: Any,
    alive: Tensor,
    mean: Tensor,
    rstd: Tensor,
    factors: Tensor,
    terms: list[Tensor],
    needed: Sequence[bool],
    cotangent: Tensor,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Gradients of the factors (R, T, C), of the offset (R, C) and of the terms."""
    norm, units, where = ctx.norm, ctx.units, ctx.where
    g = planes(channels_behind(cotangent), units)
    positions = g.shape[1]
    totals = g.sum(1) / positions
    buffer = torch.empty_like(g)
    nothing = torch.zeros_like(totals)
    # Each becomes its term's gradient; until then it holds what the term deviates from its mean.
    deviations = [
        torch.sub(planes(channels_behind(term), units), mean[t].unsqueeze(1)) if where[t] else None
        for t, term in enumerate(terms)
    ]
    products = rstd * torch.stack(
        [nothing if y is None else mean_products(g, y, where[t], buffer) for t, y in enumerate(deviations)]
    )
    weights, living, _ = _per_unit(alive, factors, None, units, mean.dtype)
    direct, slope, constant = cotangent_factors(weights, living, rstd, totals.unsqueeze(0), products.unsqueeze(0), norm)
    slope = slope * rstd
    dterms: list[Tensor | None] = []
    for t, (term, y) in enumerate(zip(terms, deviations, strict=True)):
        if y is None or not needed[t]:
            dterms.append(None)
            continue
        if norm.kind == "none":
            y.zero_()
        else:
            torch.addcmul(constant[t].unsqueeze(1), y, slope[t].unsqueeze(1), out=y)
        add_scaled(y, g, direct[0, t], where[t])
        shape = (term.shape[0], *term.shape[2:], term.shape[1])
        dterms.append(y.reshape(shape).permute(0, 3, 1, 2).to(term.dtype))
    return per_row(products * positions, len(alive)), per_row(totals * positions, len(alive)), dterms
