"""The two operators on a GPU: the arithmetic of :mod:`.norm` between launches of Triton kernels.

Nothing waits for the host, sizes are static and partial results are merged in a fixed order, so a pass can be captured in a CUDA
graph and repeats its bits. What torch sees of them is in :mod:`.operators`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.kernels.mixed_edge.launch_group import Filters, Group
from engine.kernels.mixed_edge.norm import Norm, cotangent_factors, folded, per_row, per_unit, statistics
from engine.kernels.mixed_edge.planes import channels_last, laid_out
from engine.kernels.mixed_edge.reference import Setting
from engine.kernels.mixed_edge.triton_sum import TERMS, launch_gradients, launch_moments, launch_products, launch_sum


def sum_forward(
    setting: Setting, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, terms: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, and what its terms are normalised with, (T, B, C); more than four terms are added four at a time."""
    (norm, _, _, parts), last, samples = setting, channels_last(terms[0]), len(terms[0])
    values = [laid_out(term, last) for term in terms]
    living, lives = _living(alive, samples)
    mean, rstd = _standard(values, lives, norm)
    added = None if offset is None else per_unit(offset.float(), samples).unsqueeze(0)
    scale, shift = folded(per_unit(factors.float(), samples).unsqueeze(0), living.unsqueeze(0), added, mean, rstd)
    out = _room(values[0], total, last, parts)
    before = out if parts > 1 else None if total is None else laid_out(total, last)
    constant = shift[0].contiguous()
    for start in range(0, len(values), TERMS):
        part = slice(start, start + TERMS)
        launch_sum(values[part], before, lives[part], scale[0, part].contiguous(), constant, out, parts)
        before, constant = out, torch.zeros_like(constant)
    return out, mean, rstd


def _living(alive: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Which terms exist, for every sample: (..., B, 1) bool and (..., B) int8."""
    living = per_unit(alive.unsqueeze(-1), samples)
    return living, living.squeeze(-1).to(torch.int8).contiguous()


def _room(like: Tensor, total: Tensor | None, last: bool, parts: int) -> Tensor:
    """What a sum is written to; the channels of other parts are the total's."""
    if parts == 1:
        return torch.empty_like(like)
    if total is not None:
        return laid_out(total, last).clone()
    batch, channels, height, width = like.shape
    if last:
        return like.new_zeros(batch, height, width, parts * channels).permute(0, 3, 1, 2)
    return like.new_zeros(batch, parts * channels, height, width)


def _per_row(planes: Tensor, rows: int) -> Tensor:
    """(..., B, C) -> the sums (R, ..., C), laid out as their shape is registered."""
    return per_row(planes, rows).contiguous()


def _standard(values: list[Tensor], lives: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Means and factors (T, B, C) that the terms are normalised with."""
    if norm.kind == "none":
        mean = torch.zeros(len(values), *values[0].shape[:2], device=values[0].device)
        return mean, torch.ones_like(mean)
    pairs = [launch_moments(values[i : i + TERMS], lives[i : i + TERMS]) for i in range(0, len(values), TERMS)]
    mean, rstd = statistics(torch.cat([mean for mean, _ in pairs]), torch.cat([variance for _, variance in pairs]), norm)
    return mean.contiguous(), rstd


def sum_gradients(
    setting: Setting,
    alive: Tensor,
    factors: Tensor,
    mean: Tensor,
    rstd: Tensor,
    cotangent: Tensor,
    terms: Sequence[Tensor],
    wanted: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of the factors (R, T, C), the offset (R, C) and, if ``wanted``, the terms."""
    (norm, _, _, parts), last, samples = setting, channels_last(terms[0]), len(terms[0])
    positions = terms[0].shape[2:].numel()
    g, values = laid_out(cotangent, last), [laid_out(term, last) for term in terms]
    living, lives = _living(alive, samples)
    slices = [slice(start, start + TERMS) for start in range(0, len(values), TERMS)]
    sums = [launch_products(g, values[part], lives[part], mean[part].contiguous(), parts) for part in slices]
    totals, products = sums[0][0] / positions, torch.cat([product for _, product in sums]) * rstd / positions
    weights = per_unit(factors.float(), samples).unsqueeze(0)
    direct, slope, constant = cotangent_factors(
        weights, living.unsqueeze(0), rstd, totals.unsqueeze(0), products.unsqueeze(0), norm
    )
    every = (mean, direct[0], slope * rstd, constant)
    dterms: list[Tensor] = []
    for part in slices if wanted else []:
        m, d, s, c = (factor[part].contiguous() for factor in every)
        dterms += launch_gradients(g, values[part], lives[part], (m, d, s, c), parts)
    rows = len(alive)
    return _per_row(products * positions, rows), _per_row(totals * positions, rows), dterms


def edge_forward(
    setting: Setting,
    alive: Tensor,
    x: Tensor,
    factors: Tensor,
    offset: Tensor | None,
    passing: Tensor | None,
    filters: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """The sums (E, B, parts C, H', W'), the taps, and what the operations are normalised with, (3, B, C)."""
    state, samples = laid_out(x, channels_last(x)), len(x)
    group = Group(state, setting.stride, setting.parts)
    taps, mean, variance = group.read(Filters(filters, setting.dilations, state))
    living, lives = _living(alive, samples)
    if setting.norm.kind == "none":
        mean, rstd = torch.zeros_like(mean), torch.ones_like(mean)
    else:
        mean, rstd = statistics(mean, variance, setting.norm)
    # The skip connection is not normalised.
    mean, rstd = torch.cat([mean, torch.zeros_like(mean[:1])]), torch.cat([rstd, torch.ones_like(rstd[:1])])
    added = None if offset is None else per_unit(offset.float(), samples)
    scale, shift = folded(per_unit(factors.float(), samples), living, added, mean, rstd)
    sums = group.sums(lives, scale.contiguous(), shift.contiguous(), _by_sample(passing, mean, samples))
    return sums, taps, mean, rstd


def _by_sample(passing: Tensor | None, like: Tensor, samples: int) -> Tensor:
    """Weights (R, E) of what passes by -> (E, B); without partial channels nobody reads them."""
    if passing is None:
        return like.new_zeros(1)
    return per_unit(passing.float().unsqueeze(-1), samples).squeeze(-1).contiguous()


def edge_gradients(
    setting: Setting,
    alive: Tensor,
    x: Tensor,
    factors: Tensor,
    passing: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    cotangents: Sequence[Tensor | None],
    of_taps: Sequence[Tensor | None],
    filters: Sequence[Tensor],
    needs_x: bool,
    needs_filters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of x (empty unless ``needs_x``), the factors (R, E, 3, C), the offset (R, E, C), passing (R, E) and the filters.

    Those of the filters only if ``needs_filters``.
    """
    samples, rows = len(x), len(alive)
    state = laid_out(x, channels_last(x))
    group, sorted_filters = Group(state, setting.stride, setting.parts), Filters(filters, setting.dilations, state)
    living, lives = _living(alive, samples)
    g = group.stack(cotangents, setting.parts)
    totals, products, passed, winner = group.products(g, lives, mean.contiguous())
    positions = group.blocks.positions
    totals, products = totals / positions, products * rstd / positions
    direct, slope, constant = cotangent_factors(per_unit(factors.float(), samples), living, rstd, totals, products, setting.norm)
    taps = group.stack([of_taps[j] for j in sorted_filters.order])
    dx = x.new_empty(0)
    if needs_x:
        each = (direct.contiguous(), (slope * rstd).contiguous(), constant.contiguous())
        weights = _by_sample(passing, mean, samples)
        dx = group.gradient(g, taps, sorted_filters, winner, mean.contiguous(), each, weights)
    dpassing = passed.new_zeros(0, 0) if passing is None else _per_row(passed.unsqueeze(-1), rows).squeeze(-1)
    dfactors, doffset = _per_row(products * positions, rows), _per_row(totals * positions, rows)
    return dx, dfactors, doffset, dpassing, group.filter_gradients(taps, sorted_filters) if needs_filters else []
