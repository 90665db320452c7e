"""Everything that reads one source state, with a gradient of its own: see :func:`engine.kernels.mixed_edge.mixed_edge`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.depthwise import convolve, input_gradient, weight_gradient
from engine.kernels.mixed_edge.norm import Norm, cotangent_factors, folded, per_row, per_unit, statistics
from engine.kernels.mixed_edge.planes import add_scaled, channels_behind, mean_products, moments, planes, spans, unit_count
from engine.kernels.mixed_edge.pools import average_pool, average_pool_backward, max_pool, max_pool_backward
from engine.kernels.mixed_edge.reference import Setting, group_reference, in_parts, same_padding
from engine.kernels.transforms import plain_gradients

OPERATIONS = ("max", "average", "skip")
MAX, AVERAGE, SKIP = range(3)


class Plan(NamedTuple):
    """A setting, the units that planes are divided into, and [edge][operation] in which units an edge takes an operation."""

    setting: Setting
    units: int
    where: list[list[list[slice]]]

    @classmethod
    def of(cls, setting: Setting, alive: Tensor, units: int) -> Plan:
        """That of the mixture's rows ``alive`` (R, E, 3)."""
        return cls(setting, units, [[spans(column, units) for column in edge] for edge in alive.permute(1, 2, 0).tolist()])


class MixedEdge(torch.autograd.Function):
    """(setting, alive (R, E, 3) bool, x, factors (R, E, 3, C), offset (R, E, C) or None, filters...) -> E sums, D taps."""

    @staticmethod
    def forward(ctx: Any, setting: Setting, alive: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        x, factors, offset, *filters = tensors
        plan = Plan.of(setting, alive, unit_count(channels_behind(x), setting.norm, len(alive)))
        sums, taps, mean, rstd = evaluated(plan, alive, x, factors, offset, filters)
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        ctx.save_for_backward(alive, mean, rstd, *tensors)
        return *sums, *taps

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        alive, mean, rstd, *tensors = ctx.saved_tensors
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():

            def plain(*inputs: Any) -> list[Tensor]:
                x, factors, offset, *filters = inputs
                return group_reference(ctx.plan.setting, alive, x, factors, offset, None, *filters)

            return None, None, *plain_gradients(plain, tensors, needed, cotangents)
        x, factors, offset, *filters = tensors
        edges = factors.shape[1]
        found: list[Tensor | None] = [None] * len(tensors)
        given = cotangents[:edges]
        if any(g is not None for g in given):
            found[0], dfactors, doffset = sum_gradients(ctx.plan, alive, mean, rstd, x, factors, given, needed[0])
            found[1] = dfactors.to(factors.dtype) if needed[1] else None
            found[2] = doffset.to(offset.dtype) if needed[2] else None
        found[3:], from_taps = tap_gradients(ctx.plan.setting, x, filters, cotangents[edges:], needed[0], needed[3:])
        if from_taps is not None:
            found[0] = from_taps if found[0] is None else found[0].add_(from_taps)
        return None, None, *found


def group_on_cpu(
    setting: Setting, alive: Tensor, x: Tensor, factors: Tensor, offset: Tensor | None, passing: Tensor | None, *filters: Tensor
) -> Sequence[Tensor]:
    """:class:`MixedEdge`, with partial channels on the part of the state that it sees."""
    if setting.parts > 1:
        return in_parts(group_on_cpu, setting, alive, x, factors, offset, passing, *filters)
    return MixedEdge.apply(setting, alive, x, factors, offset, *filters)


def evaluated(
    plan: Plan, alive: Tensor, x: Tensor, factors: Tensor, offset: Tensor | None, filters: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """The sums, the taps, and the means and factors (3, U, C) that the operations are normalised with."""
    (setting, units, where), image = plan, channels_behind(x)
    values = _operations(image, where, setting.stride)
    mean, rstd = _statistics(values, image, units, setting.norm)
    added = None if offset is None else per_unit(offset.to(rstd.dtype), units)
    scale, shift = folded(per_unit(factors.to(rstd.dtype), units), per_unit(alive.unsqueeze(-1), units), added, mean, rstd)
    samples, height, width, channels = image.shape
    size = (samples, -(-height // setting.stride), -(-width // setting.stride), channels)
    sums = [_weighted_sum(values, scale[e], shift[e], edge, size, units) for e, edge in enumerate(where)]
    rectified = F.relu(x) if filters else x
    taps = [
        convolve(rectified, weight, *_geometry(weight, setting, dilation))
        for weight, dilation in zip(filters, setting.dilations, strict=True)
    ]
    return [total.permute(0, 3, 1, 2).to(x.dtype) for total in sums], taps, mean, rstd


def _operations(x: Tensor, where: list[list[list[slice]]], stride: int) -> list[Tensor | None]:
    """Outputs (B, H', W', C) of the operations that some edge takes."""
    wanted = [any(edge[o] for edge in where) for o in range(len(OPERATIONS))]
    return [
        max_pool(x, stride) if wanted[MAX] else None,
        average_pool(x, stride) if wanted[AVERAGE] else None,
        x if wanted[SKIP] else None,
    ]


def _statistics(values: list[Tensor | None], x: Tensor, units: int, norm: Norm) -> tuple[Tensor, Tensor]:
    """Means and factors (3, U, C) that the operations are normalised with; the skip connection is not."""
    none = x.new_zeros(units, x.shape[3])
    mean, rstd = none.expand(3, *none.shape), torch.ones_like(none).expand(3, *none.shape)
    pools = [y for y in values[:SKIP] if y is not None]
    if norm.kind == "none" or not pools:
        return mean, rstd
    pairs = [(none, none) if y is None else moments(planes(y, units)) for y in values[:SKIP]]
    pooled = statistics(torch.stack([m for m, _ in pairs]), torch.stack([v for _, v in pairs]), norm)
    return torch.cat([pooled[0], mean[SKIP:]]), torch.cat([pooled[1], rstd[SKIP:]])


def _weighted_sum(
    values: list[Tensor | None], scale: Tensor, shift: Tensor, where: list[list[slice]], size: tuple[int, ...], units: int
) -> Tensor:
    """The sum (B, H', W', C) of one edge, from factors (3, U, C) and constants (U, C)."""
    flat = [None if y is None else planes(y, units) for y in values]
    given = next((y for y in flat if y is not None), None)
    like = (
        shift.new_empty(units, size[0] * size[1] * size[2] // max(units, 1), size[3])
        if given is None
        else torch.empty_like(given)
    )
    total = like.copy_(shift.unsqueeze(1))
    for o, y in enumerate(flat):
        if y is not None:
            add_scaled(total, y, scale[o], where[o])
    return total.reshape(size)


def sum_gradients(
    plan: Plan,
    alive: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    factors: Tensor,
    cotangents: Sequence[Any],
    wanted: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the sums: of x (None if it is not ``wanted``), the factors (R, E, 3, C) and the offset (R, E, C)."""
    (norm, stride, *_), units, where = plan
    image = channels_behind(x)
    values = _operations(image, where, stride)
    given = [None if g is None else planes(channels_behind(g), units) for g in cotangents]
    example = next(g for g in given if g is not None)
    buffer, positions = torch.empty_like(example), example.shape[1]
    none = rstd.new_zeros(rstd.shape[1:])
    totals = torch.stack([none if g is None else g.sum(1) / positions for g in given])
    # What the operations deviate from their means; the pools' buffers become their cotangents.
    deviations = [
        None if y is None else planes(y, units) if o == SKIP else planes(y, units) - mean[o].unsqueeze(1)
        for o, y in enumerate(values)
    ]
    products = torch.stack(
        [
            none if g is None or y is None else mean_products(g, y, where[e][o], buffer)
            for e, g in enumerate(given)
            for o, y in enumerate(deviations)
        ]
    ).unflatten(0, (len(given), len(OPERATIONS)))
    products = products * rstd
    dfactors, doffset = per_row(products * positions, len(alive)), per_row(totals * positions, len(alive))
    if not wanted:
        return None, dfactors, doffset
    weights, living = per_unit(factors.to(rstd.dtype), units), per_unit(alive.unsqueeze(-1), units)
    direct, slope, constant = cotangent_factors(weights, living, rstd, totals, products, norm)
    slope = slope * rstd

    def gathered(o: int, y: Tensor) -> Tensor:
        """The cotangent of an operation's output, in the place of its deviations; those of the skip connection are x itself."""
        if norm.kind == "none" or o == SKIP:
            y = torch.zeros_like(y)
        else:
            torch.addcmul(constant[o].unsqueeze(1), y, slope[o].unsqueeze(1), out=y)
        for e, g in enumerate(given):
            if g is not None:
                add_scaled(y, g, direct[e, o], where[e][o])
        return y

    dx = torch.zeros_like(image)
    for o, (y, deviation) in enumerate(zip(values, deviations, strict=True)):
        if y is None or deviation is None:
            continue
        cotangent = gathered(o, deviation).reshape(y.shape)
        if o == MAX:
            cotangent = max_pool_backward(image, y, cotangent, stride)
        elif o == AVERAGE:
            cotangent = average_pool_backward(cotangent, image.shape[1], image.shape[2], stride)
        dx += cotangent
    return dx.permute(0, 3, 1, 2).to(x.dtype), dfactors, doffset


def tap_gradients(
    setting: Setting, x: Tensor, filters: Sequence[Any], cotangents: Sequence[Any], needs_x: bool, needed: Sequence[bool]
) -> tuple[list[Tensor | None], Tensor | None]:
    """Gradients of the taps: of the filters, and of x (None where there are no taps, or it is not needed)."""
    gradients: list[Tensor | None] = [None] * len(filters)
    into: Tensor | None = None
    rectified = F.relu(x) if filters else x
    for j, (weight, dilation, g) in enumerate(zip(filters, setting.dilations, cotangents, strict=True)):
        geometry = _geometry(weight, setting, dilation)
        if g is not None and needed[j]:
            gradients[j] = weight_gradient(rectified, g, weight.shape[2:], *geometry)
        if g is not None and needs_x:
            part = input_gradient(g, weight, x.shape[2:], *geometry)
            into = part if into is None else into.add_(part)
    return gradients, None if into is None else torch.ops.aten.threshold_backward(into, x, 0)


def _geometry(weight: Tensor, setting: Setting, dilation: int) -> tuple[Any, Any, Any]:
    """Stride, padding and dilation of a depthwise convolution."""
    return (setting.stride,) * 2, same_padding(weight, dilation), (dilation,) * 2
