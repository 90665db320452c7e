"""Sums of normalised terms with gradients of their own: see :func:`engine.kernels.mixed_edge.mixed_sum`.

The gradients are an operator too, whose own gradients are closed (:func:`engine.kernels.mixed_edge.norm.second_factors`), so that
a Hessian product costs a reduction and three passes a term where the library would build a graph of elementwise operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.kernels.mixed_edge.batch_sum import BatchSum, serves
from engine.kernels.mixed_edge.norm import Norm, cotangent_factors, folded, per_row, per_unit, second_factors, statistics
from engine.kernels.mixed_edge.planes import (
    Spans,
    add_scaled,
    channels_behind,
    covers,
    mean_products,
    moments,
    planes,
    spans,
    unit_count,
)
from engine.kernels.mixed_edge.reference import placed, sum_reference
from engine.kernels.transforms import plain_gradients


class Layout(NamedTuple):
    """What is fixed in a call: the normalisation, how many units planes are divided into, and in which a term exists."""

    norm: Norm
    units: int
    where: Sequence[Spans]

    @classmethod
    def of(cls, norm: Norm, units: int, alive: Tensor) -> Layout:
        """That of terms of which ``alive`` (R, T) says which rows take them."""
        return cls(norm, units, [spans(column, units) for column in alive.T.tolist()])

    def planes(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (U, P, C)."""
        return planes(channels_behind(x), self.units)

    def rows(self, alive: Tensor, factors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The rows of a single target, as (1, T, U, C) and (1, T, U, 1)."""
        weights = per_unit(factors.to(dtype), self.units).unsqueeze(0)
        return weights, per_unit(alive.unsqueeze(-1), self.units).unsqueeze(0)


class MixedSum(torch.autograd.Function):
    """(norm, alive (R, T) bool, factors (R, T, C), offset (R, C) or None, total or None, terms...) -> the sum (B, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, norm: Norm, alive: Tensor, *tensors: Any) -> Tensor:
        factors, offset, total, *terms = tensors
        first = channels_behind(terms[0])
        layout = Layout.of(norm, unit_count(first, norm, len(alive)), alive)
        sums, mean, rstd = added(layout, alive, factors, offset, total, terms)
        ctx.layout = layout
        ctx.save_for_backward(alive, mean, rstd, factors, *terms)
        return sums

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        alive, mean, rstd, factors, *terms = ctx.saved_tensors
        _, _, needs_factors, needs_offset, needs_total, *needed = ctx.needs_input_grad
        differentiate = MixedSumGradient.apply if torch.is_grad_enabled() else gradients
        arguments = (ctx.layout, tuple(needed), alive, mean, rstd, cotangents[0], factors, *terms)
        dfactors, doffset, *dterms = differentiate(*arguments)[: 2 + len(terms)]
        found = [dfactors if needs_factors else None, doffset if needs_offset else None, cotangents[0] if needs_total else None]
        return None, None, *found, *dterms


def sum_on_cpu(
    norm: Norm,
    alive: Tensor,
    factors: Tensor,
    offset: Tensor | None,
    total: Tensor | None,
    *terms: Tensor,
    parts: int = 1,
) -> Tensor:
    """:class:`BatchSum` where it serves, else :class:`MixedSum`; with partial channels every ``parts``-th channel takes it."""
    if parts > 1:
        return placed(sum_on_cpu(norm, alive, factors, offset, None, *terms), total, parts)
    if serves(norm, alive, factors, total, terms):
        return BatchSum.apply(norm.eps, factors[0], None if offset is None else offset[0], total, *terms)
    return MixedSum.apply(norm, alive, factors, offset, total, *terms)


class MixedSumGradient(torch.autograd.Function):
    """(layout, which terms need theirs, alive, mean, rstd, g, factors, terms...) -> gradients of factors, offset and terms."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, needed: tuple[bool, ...], alive: Tensor, *tensors: Any) -> tuple[Any, ...]:
        mean, rstd, g, factors, *terms = tensors
        *found, totals, products = gradients(layout, needed, alive, *tensors)
        ctx.layout, ctx.needed = layout, needed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(alive, mean, rstd, totals, products, g, factors, *terms)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        alive, mean, rstd, totals, products, g, factors, *terms = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(g: Tensor, *tensors: Tensor) -> list[Any]:
                return _plain_gradients(ctx.layout.norm, ctx.needed, alive, g, *tensors)

            needed = ctx.needs_input_grad[5:]
            return *[None] * 5, *plain_gradients(plain, (g, factors, *terms), needed, cotangents)
        found = _second_gradients(ctx, (alive, mean, rstd, totals, products), g, factors, terms, cotangents)
        return *[None] * 5, *found


def added(
    layout: Layout, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, terms: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum (B, C, H, W), and the means and factors (T, U, C) that the terms are normalised with."""
    first, units = channels_behind(terms[0]), layout.units
    values = [layout.planes(term) for term in terms]
    mean, rstd = _statistics(values, layout)
    more = None if offset is None else per_unit(offset.to(mean.dtype), units).unsqueeze(0)
    scale, shift = folded(*layout.rows(alive, factors, mean.dtype), more, mean, rstd)
    if total is None:
        sums = torch.empty_like(values[0]).copy_(shift[0].unsqueeze(1))
    else:
        sums = layout.planes(total) + shift[0].unsqueeze(1)
    for t, y in enumerate(values):
        add_scaled(sums, y, scale[0, t], layout.where[t])
    return sums.reshape(first.shape).permute(0, 3, 1, 2).to(terms[0].dtype), mean, rstd


def _statistics(values: list[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """Means and factors (T, U, C) that the terms are normalised with; terms that no row takes are not read."""
    none = values[0].new_zeros(values[0].shape[0], values[0].shape[2])
    if layout.norm.kind == "none":
        mean = none.expand(len(values), *none.shape)
        return mean, torch.ones_like(mean)
    pairs = [moments(y) if where else (none, none) for y, where in zip(values, layout.where, strict=True)]
    return statistics(torch.stack([m for m, _ in pairs]), torch.stack([v for _, v in pairs]), layout.norm)


def gradients(layout: Layout, needed: Sequence[bool], alive: Tensor, *tensors: Any) -> tuple[Any, ...]:
    """Gradients of the factors (R, T, C), the offset (R, C) and the terms; the means of g (U, C) and g z_t (T, U, C)."""
    mean, rstd, cotangent, factors, *terms = tensors
    norm, units, where = layout
    g = layout.planes(cotangent)
    totals, positions, buffer = g.mean(1), g.shape[1], torch.empty_like(g)
    # Where a plane has statistics of its own, g (y - m) and (g - mean g) y have one sum, so g is centred once for all terms.
    alone = norm.kind == "batch" and norm.groups == units
    left, centre = (g - totals.unsqueeze(1), torch.zeros_like(mean)) if alone else (g, mean)
    values = [
        None if not where[t] else layout.planes(term) if alone else layout.planes(term) - mean[t].unsqueeze(1)
        for t, term in enumerate(terms)
    ]
    none = torch.zeros_like(totals)
    products = rstd * torch.stack(
        [none if y is None else mean_products(left, y, span, buffer) for y, span in zip(values, where, strict=True)]
    )
    direct, slope, constant = cotangent_factors(
        *layout.rows(alive, factors, mean.dtype), rstd, totals.unsqueeze(0), products.unsqueeze(0), norm
    )
    slope = slope * rstd
    constant = constant - slope * (mean - centre)
    dterms: list[Tensor | None] = [None] * len(terms)
    for t, (term, y) in enumerate(zip(terms, values, strict=True)):
        if y is not None and needed[t]:
            parts = [(g, direct[0, t])] if norm.kind == "none" else [(y, slope[t]), (g, direct[0, t])]
            dterms[t] = _combined(parts, constant[t], where[t], term)
    dfactors = per_row(products * positions, len(alive)).to(factors.dtype)
    doffset = per_row(totals * positions, len(alive)).to(factors.dtype)
    return dfactors, doffset, *dterms, totals, products


def _second_gradients(
    ctx: Any, statistics: Sequence[Tensor], cotangent: Tensor, factors: Tensor, terms: Sequence[Tensor], given: Sequence[Any]
) -> list[Tensor | None]:
    """Gradients of the cotangent, the factors and the terms from those of what :func:`gradients` returns."""
    (alive, mean, rstd, totals, products), (norm, units, where) = statistics, ctx.layout
    of_factors, of_offset, *of_terms = given
    needs_g, needs_factors, *needs_terms = ctx.needs_input_grad[5:]
    g = ctx.layout.planes(cotangent)
    buffer, none = torch.empty_like(g), torch.zeros_like(totals)
    values = [ctx.layout.planes(term) - mean[t].unsqueeze(1) if where[t] else None for t, term in enumerate(terms)]
    seen = [None if u is None or not where[t] else ctx.layout.planes(u) for t, u in enumerate(of_terms)]
    sums = [
        (none, none, none)
        if u is None or y is None
        else (_mean(u, span), mean_products(u, y, span, buffer), mean_products(g, u, span, buffer))
        for u, y, span in zip(seen, values, where, strict=True)
    ]
    u1, uy, gu = (torch.stack(column) for column in zip(*sums, strict=True))
    weights, living = (rows[0] for rows in ctx.layout.rows(alive, factors, mean.dtype))
    direct = torch.zeros_like(weights) if of_factors is None else per_unit(of_factors.to(mean.dtype), units)
    second = second_factors(weights, living, rstd, totals, products, (u1, uy * rstd, gu), direct, norm)
    found: list[Tensor | None] = [None, None, *[None] * len(terms)]
    if needs_g:
        constant = second.constant.sum(0)
        if of_offset is not None:
            constant = constant + per_unit(of_offset.to(mean.dtype), units)
        dg = torch.empty_like(g).copy_(constant.unsqueeze(1))
        for t, (u, y) in enumerate(zip(seen, values, strict=True)):
            for value, factor in ((u, second.u), (y, second.z * rstd)):
                if value is not None:
                    add_scaled(dg, value, factor[t], where[t])
        found[0] = _image(dg, cotangent)
    if needs_factors:
        found[1] = per_row(second.weights * g.shape[1], len(alive)).to(factors.dtype)
    for t, (term, u, y) in enumerate(zip(terms, seen, values, strict=True)):
        if y is not None and needs_terms[t]:
            parts = [(y, second.z_of_term[t] * rstd[t]), (g, second.g_of_term[t])]
            parts += [] if u is None else [(u, second.u_of_term[t])]
            found[2 + t] = _combined(parts, second.constant_of_term[t], where[t], term)
    return found


def _combined(parts: Sequence[tuple[Tensor, Tensor]], constant: Tensor, where: Spans, like: Tensor) -> Tensor:
    """A constant (U, C) and tensors (U, P, C) times their factors (U, C), in the shape of a term; zero outside the spans."""
    (first, factor), *others = parts
    if covers(where, first):
        total = torch.addcmul(constant.unsqueeze(1), first, factor.unsqueeze(1))
    else:
        total = torch.zeros_like(first)
        for span in where:
            total[span] = torch.addcmul(constant[span].unsqueeze(1), first[span], factor[span].unsqueeze(1))
    for value, factor in others:
        add_scaled(total, value, factor, where)
    return _image(total, like)


def _image(flat: Tensor, like: Tensor) -> Tensor:
    """(U, P, C) -> (B, C, H, W)."""
    return flat.reshape(like.shape[0], *like.shape[2:], like.shape[1]).permute(0, 3, 1, 2).to(like.dtype)


def _mean(x: Tensor, where: Spans) -> Tensor:
    """The planes' means (U, C); zero outside the spans."""
    if covers(where, x):
        return x.mean(1)
    means = x.new_zeros(x.shape[0], x.shape[2])
    for span in where:
        means[span] = x[span].mean(1)
    return means


def _plain_gradients(norm: Norm, needed: Sequence[bool], alive: Tensor, g: Tensor, *tensors: Tensor) -> list[Tensor | None]:
    """What :func:`gradients` computes, in operators of torch."""
    places = [0, *(1 + t for t, wanted in enumerate(needed) if wanted)]
    leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in tensors]
    factors, *terms = leaves
    with torch.enable_grad():
        value = sum_reference(norm, alive, factors, None, None, *terms)
        gradients = torch.autograd.grad(value, [leaves[i] for i in places], g, create_graph=True)
    found: list[Tensor | None] = [None] * len(leaves)
    for place, gradient in zip(places, gradients, strict=True):
        found[place] = gradient
    doffset = g.sum((2, 3)).unflatten(0, (len(alive), -1)).sum(1)
    return [found[0], doffset.to(factors.dtype), *found[1:]]
