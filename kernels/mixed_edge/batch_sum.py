"""The usual weighted sum of a search on the CPU: one mixture, statistics of the whole batch, channels innermost, no weight zero.

What :class:`engine.kernels.mixed_edge.weighted_sum.MixedSum` computes for planes (U, P, C) with U = 1, without its bookkeeping:
a step calls it a hundred times on tensors that small operators outlast. Values are (P, C), numbers of planes (T, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.kernels.mixed_edge.norm import Norm, second_factors
from engine.kernels.mixed_edge.planes import WIDE
from engine.kernels.mixed_edge.reference import sum_reference
from engine.kernels.transforms import plain_gradients


def serves(norm: Norm, alive: Tensor, factors: Tensor, total: Tensor | None, terms: Sequence[Tensor]) -> bool:
    """Whether :class:`BatchSum` computes this sum, of ``alive`` (R, T) and ``factors`` (R, T, C)."""
    tensors = terms if total is None else [total, *terms]
    return (
        norm.kind == "batch"
        and norm.groups == len(alive) == 1
        and factors.dtype in (torch.float32, torch.float64)
        and all(x.dtype == factors.dtype and x.is_contiguous(memory_format=torch.channels_last) for x in tensors)
        and bool(alive.all())
    )


class BatchSum(torch.autograd.Function):
    """(eps, factors (T, C), offset (C,) or None, total or None, terms...) -> the sum (B, C, H, W)."""

    @staticmethod
    def forward(ctx: Any, eps: float, *tensors: Any) -> Tensor:
        factors, offset, total, *terms = tensors
        values = [_flat(y) for y in terms]
        mean, rstd = _statistics(values, eps)
        scale = factors * rstd
        shift = (scale * mean).sum(0).neg_()
        if offset is not None:
            shift += offset
        sums = torch.addcmul(shift, values[0], scale[0]) if total is None else _flat(total) + shift
        for y, factor in list(zip(values, scale.unbind(), strict=True))[total is None :]:
            sums.addcmul_(y, factor)
        ctx.eps = eps
        ctx.save_for_backward(mean, rstd, factors, *terms)
        return _image(sums, terms[0])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        mean, rstd, factors, *terms = ctx.saved_tensors
        _, needs_factors, needs_offset, needs_total, *needed = ctx.needs_input_grad
        g = cotangents[0].contiguous(memory_format=torch.channels_last)
        gradients = BatchSumGradient.apply if torch.is_grad_enabled() else _gradients
        dfactors, doffset, *dterms = gradients(ctx.eps, tuple(needed), mean, rstd, g, factors, *terms)[: 2 + len(terms)]
        found = [dfactors if needs_factors else None, doffset if needs_offset else None, cotangents[0] if needs_total else None]
        return None, *found, *dterms


class BatchSumGradient(torch.autograd.Function):
    """(eps, which terms need theirs, mean, rstd, g, factors, terms...) -> gradients of factors, offset and terms."""

    @staticmethod
    def forward(ctx: Any, eps: float, needed: tuple[bool, ...], *tensors: Any) -> tuple[Any, ...]:
        mean, rstd, g, factors, *terms = tensors
        *found, totals, products = _gradients(eps, needed, *tensors)
        ctx.eps, ctx.needed = eps, needed
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mean, rstd, totals, products, g, factors, *terms)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        mean, rstd, totals, products, g, factors, *terms = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(g: Tensor, *tensors: Tensor) -> list[Any]:
                return _plain_gradients(ctx.eps, ctx.needed, g, *tensors)

            return *[None] * 4, *plain_gradients(plain, (g, factors, *terms), ctx.needs_input_grad[4:], cotangents)
        statistics = mean, rstd, totals, products
        return *[None] * 4, *_second_gradients(ctx.needs_input_grad[4:], statistics, g, factors, terms, cotangents)


def _flat(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (P, C), a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _image(flat: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _statistics(values: Sequence[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """Means and 1 / sqrt(var + eps), (T, C); deviations from the mean are squared, so nothing cancels.

    The library's pass is slow over few channels: several positions side by side are as many channels more.
    """
    positions, channels = values[0].shape
    side = WIDE // channels if channels < WIDE and positions % (WIDE // channels) == 0 else 1
    shape = (1, side * channels, positions // side, 1)
    stride = (positions * channels, 1, side * channels, side * channels)
    pairs = [torch.batch_norm_update_stats(y.as_strided(shape, stride), None, None, 0.0) for y in values]
    means, variances = (torch.stack(column).unflatten(1, (side, channels)) for column in zip(*pairs, strict=True))
    mean = means.mean(1)
    variance = (variances + (means - mean.unsqueeze(1)).square_()).mean(1) if side > 1 else variances[:, 0]
    return mean, (variance + eps).rsqrt_()


def _gradients(eps: float, needed: Sequence[bool], *tensors: Any) -> tuple[Any, ...]:
    """Gradients of the factors (T, C), the offset (C,) and the terms; the means of g (C,) and g z_t (T, C)."""
    mean, rstd, cotangent, factors, *terms = tensors
    g, values = _flat(cotangent), [_flat(y) for y in terms]
    count, buffer = len(g), torch.empty_like(g)
    totals = g.sum(0).div_(count)
    left = g - totals  # g (y - m) and (g - mean g) y have one sum, so g is centred once for all terms
    products = torch.stack([torch.mul(left, y, out=buffer).sum(0) for y in values]).mul_(rstd).div_(count)
    direct = factors * rstd
    slope = (direct * products).mul_(rstd).neg_()
    constant = (slope * mean).neg_()
    dterms: list[Tensor | None] = [None] * len(terms)
    for t, y in enumerate(values):
        if needed[t]:
            dterms[t] = _image(torch.addcmul(constant[t], y, slope[t]).addcmul_(left, direct[t]), terms[t])
    return products * count, totals * count, *dterms, totals, products


def _second_gradients(
    needed: Sequence[bool],
    statistics: tuple[Tensor, Tensor, Tensor, Tensor],
    cotangent: Tensor,
    factors: Tensor,
    terms: Sequence[Tensor],
    given: Sequence[Any],
) -> list[Tensor | None]:
    """Gradients of the cotangent, the factors and the terms from those of what :func:`_gradients` returns."""
    (mean, rstd, totals, products), (of_factors, of_offset, *of_terms) = statistics, given
    needs_g, needs_factors, *needs_terms = needed
    g, values = _flat(cotangent), [_flat(y) for y in terms]
    buffer, count, none = torch.empty_like(g), len(g), torch.zeros_like(totals)
    seen = [None if u is None else _flat(u.contiguous(memory_format=torch.channels_last)) for u in of_terms]
    sums = [
        (none, none, none)
        if u is None
        else (u.sum(0), torch.sub(y, m, out=buffer).mul_(u).sum(0), torch.mul(g, u, out=buffer).sum(0))
        for u, y, m in zip(seen, values, mean, strict=True)
    ]
    u1, uy, gu = (torch.stack(column).div_(count).unsqueeze(1) for column in zip(*sums, strict=True))
    r = rstd.unsqueeze(1)
    direct = torch.zeros_like(r) if of_factors is None else of_factors.unsqueeze(1)
    alive = torch.ones(len(terms), 1, 1, dtype=torch.bool)
    planes = (factors.unsqueeze(1), alive, r, totals, products.unsqueeze(1), (u1, uy * r, gu), direct)
    second = second_factors(*planes, Norm("batch"))
    found: list[Tensor | None] = [None, None, *[None] * len(terms)]
    z = second.z[:, 0] * rstd
    if needs_g:
        constant = second.constant.sum((0, 1)) - (z * mean).sum(0)
        dg = torch.empty_like(g).copy_(constant if of_offset is None else constant + of_offset)
        for t, (u, y) in enumerate(zip(seen, values, strict=True)):
            dg.addcmul_(y, z[t])
            if u is not None:
                dg.addcmul_(u, second.u[t, 0])
        found[0] = _image(dg, cotangent)
    if needs_factors:
        found[1] = second.weights[:, 0] * count
    slope = second.z_of_term[:, 0] * rstd
    constant = second.constant_of_term[:, 0] - slope * mean
    for t, (term, u, y) in enumerate(zip(terms, seen, values, strict=True)):
        if needs_terms[t]:
            dy = torch.addcmul(constant[t], y, slope[t]).addcmul_(g, second.g_of_term[t, 0])
            found[2 + t] = _image(dy if u is None else dy.addcmul_(u, second.u_of_term[t, 0]), term)
    return found


def _plain_gradients(eps: float, needed: Sequence[bool], g: Tensor, *tensors: Tensor) -> list[Tensor | None]:
    """What :func:`_gradients` computes, in operators of torch."""
    places = [0, *(1 + t for t, wanted in enumerate(needed) if wanted)]
    leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in tensors]
    factors, *terms = leaves
    alive = torch.ones(1, len(terms), dtype=torch.bool)
    with torch.enable_grad():
        value = sum_reference(Norm("batch", 1, eps), alive, factors.unsqueeze(0), None, None, *terms)
        gradients = torch.autograd.grad(value, [leaves[i] for i in places], g, create_graph=True)
    found: list[Tensor | None] = [None] * len(leaves)
    for place, gradient in zip(places, gradients, strict=True):
        found[place] = gradient
    return [found[0], g.sum((0, 2, 3)), *found[1:]]
