"""The edge group on a GPU as torch sees it: opaque custom operators, their shapes for the compiler, gradients around them.

As :mod:`.sum_operators`; the CPU registration is the arithmetic of :mod:`.group` with planes of single samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.mixed_edge import group
from engine.kernels.mixed_edge.norm import per_row, per_unit
from engine.kernels.mixed_edge.planes import channels_last, empty_image, laid_out, wide_dtype
from engine.kernels.mixed_edge.reference import Setting, group_reference, in_parts
from engine.kernels.transforms import plain_gradients


class DeviceEdge(torch.autograd.Function):
    """As :class:`engine.kernels.mixed_edge.group.MixedEdge`, with partial channels: (..., offset, passing, filters...)."""

    @staticmethod
    def forward(ctx: Any, setting: Setting, alive: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        x, factors, offset, passing, *filters = tensors
        sums, taps, mean, rstd = _edge(setting.text, alive, x, factors, offset, passing, filters)
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
        x, factors, offset, passing, *filters = tensors
        edges, needs_filters = factors.shape[1], any(needed[4:])
        given = alive, x, factors, passing, mean, rstd, list(cotangents[:edges]), list(cotangents[edges:]), filters
        dx, dfactors, doffset, dpassing, dfilters = _edge_gradients(setting.text, *given, needed[0], needs_filters)
        return (
            None,
            None,
            dx if needed[0] else None,
            dfactors.to(factors.dtype) if needed[1] else None,
            doffset.to(offset.dtype) if needed[2] else None,
            dpassing.to(passing.dtype) if needed[3] else None,
            *([g.to(x.dtype) for g in dfilters] if needs_filters else [None] * len(filters)),
        )


def group_on_device(setting: Setting, alive: Tensor, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """:class:`DeviceEdge` on the GPU where x lies."""
    with torch.cuda.device_of(x):
        return DeviceEdge.apply(setting, alive, x, *tensors)


@torch.library.custom_op("engine::mixed_edge", mutates_args=(), device_types="cpu")
def _edge(
    setting: str,
    alive: Tensor,
    x: Tensor,
    factors: Tensor,
    offset: Tensor | None,
    passing: Tensor | None,
    filters: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """The sums (E, B, parts C, H', W'), the taps, and what the operations are normalised with, (3, B, C)."""
    read, last = Setting.read(setting), channels_last(x)
    statistics: list[Tensor] = []

    def whole(setting: Setting, alive: Tensor, x: Tensor, factors: Tensor, offset: Any, _: Any, *filters: Tensor) -> list[Tensor]:
        sums, taps, *found = group.evaluated(group.Plan.of(setting, alive, len(x)), alive, x, factors, offset, filters)
        statistics.extend(found)
        return [*sums, *taps]

    if read.parts > 1:
        outputs = in_parts(whole, read, alive, x, factors, offset, passing, *filters)
    else:
        outputs = whole(read, alive, x, factors, offset, None, *filters)
    edges = factors.shape[1]
    sums = _stacked(x, outputs[:edges])
    mean, rstd = (part.contiguous() for part in statistics)
    return sums, [laid_out(tap, last) for tap in outputs[edges:]], mean, rstd


@_edge.register_kernel("cuda")
def _(
    setting: str,
    alive: Tensor,
    x: Tensor,
    factors: Tensor,
    offset: Tensor | None,
    passing: Tensor | None,
    filters: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    from engine.kernels.mixed_edge import device

    return device.edge_forward(Setting.read(setting), alive, x, factors, offset, passing, filters)


@_edge.register_fake
def _(
    setting: str,
    alive: Tensor,
    x: Tensor,
    factors: Tensor,
    offset: Tensor | None,
    passing: Tensor | None,
    filters: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    read = Setting.read(setting)
    channels, size = x.shape[1] // read.parts, [-(-n // read.stride) for n in x.shape[2:]]
    mean = factors.new_empty(3, x.shape[0], channels, dtype=wide_dtype(x))
    taps = [empty_image(x, x.shape[0], channels, *size) for _ in filters]
    return _stack(x, factors.shape[1], x.shape[0], x.shape[1], *size), taps, mean, torch.empty_like(mean)


@torch.library.custom_op("engine::mixed_edge_gradients", mutates_args=(), device_types="cpu")
def _edge_gradients(
    setting: str,
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
    read, last = Setting.read(setting), channels_last(x)
    parts, width = read.parts, x.shape[1] // read.parts
    own = x[:, :width]
    g = [empty_image(x, *_size(x, read)).zero_() if given is None else given for given in cotangents]
    plan = group.Plan.of(read, alive, len(x))
    into, dfactors, doffset = group.sum_gradients(plan, alive, mean, rstd, own, factors, [y[:, ::parts] for y in g], needs_x)
    dfilters, through = group.tap_gradients(read, own, filters, of_taps, needs_x, [needs_filters] * len(filters))
    dx, dpassing = x.new_empty(0), mean.new_empty(0, 0)
    if into is not None:
        dx = into if through is None else into + through
    if passing is not None:
        from_passing, dpassing = _passing_gradients(x[:, width:], passing.to(mean.dtype), g, read)
        dx = torch.cat([dx, from_passing], 1) if needs_x else dx
    found = [torch.zeros_like(k) if dk is None else dk for k, dk in zip(filters, dfilters, strict=True)]
    wide = [dk.to(mean.dtype).contiguous() for dk in found] if needs_filters else []
    dfactors, doffset, dpassing = (part.to(mean.dtype).contiguous() for part in (dfactors, doffset, dpassing))
    return laid_out(dx, last) if needs_x else dx, dfactors, doffset, dpassing, wide


def _passing_gradients(rest: Tensor, passing: Tensor, cotangents: Sequence[Tensor], setting: Setting) -> tuple[Tensor, Tensor]:
    """What passes by, (B, (parts - 1) C, H, W), its weights (R, E) and the sums' cotangents -> gradients of the first two."""
    value, places = rest, None
    if setting.stride == 2:
        value, places = F.max_pool2d(rest, 2, 2, ceil_mode=True, return_indices=True)
    weights = per_unit(passing.unsqueeze(-1), len(rest))  # (E, B, 1)
    into, found = torch.zeros_like(value, dtype=passing.dtype), []
    for g, weight in zip(cotangents, weights, strict=True):
        parts = g.permute(0, 2, 3, 1).unflatten(3, (-1, setting.parts))[..., 1:]
        behind = parts.transpose(3, 4).flatten(3).permute(0, 3, 1, 2).to(passing.dtype)
        into += behind * weight[..., None, None]
        found.append((behind * value).sum((1, 2, 3)))
    if places is not None:
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        into = backward(into.to(rest.dtype), rest, [2, 2], [2, 2], [0, 0], [1, 1], True, places)
    return into.to(rest.dtype), per_row(torch.stack(found).unsqueeze(-1), len(passing)).squeeze(-1)


@_edge_gradients.register_kernel("cuda")
def _(
    setting: str,
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
    from engine.kernels.mixed_edge import device

    given = alive, x, factors, passing, mean, rstd, cotangents, of_taps, filters
    return device.edge_gradients(Setting.read(setting), *given, needs_x, needs_filters)


@_edge_gradients.register_fake
def _(
    setting: str,
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
    rows, edges, channels = alive.shape[0], factors.shape[1], x.shape[1] // Setting.read(setting).parts
    return (
        empty_image(x, *x.shape) if needs_x else x.new_empty(0),
        mean.new_empty(rows, edges, 3, channels),
        mean.new_empty(rows, edges, channels),
        mean.new_empty(0, 0) if passing is None else mean.new_empty(rows, edges),
        [mean.new_empty(k.shape) for k in filters] if needs_filters else [],
    )


def _size(x: Tensor, setting: Setting) -> list[int]:
    """Of a sum."""
    return [*x.shape[:2], *(-(-n // setting.stride) for n in x.shape[2:])]


def _stack(x: Tensor, count: int, batch: int, channels: int, height: int, width: int) -> Tensor:
    """Empty (count, B, C, H, W) in the layout of x."""
    if not channels_last(x):
        return x.new_empty(count, batch, channels, height, width)
    return x.new_empty(count, batch, height, width, channels).permute(0, 1, 4, 2, 3)


def _stacked(x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    stack = _stack(x, len(outputs), *outputs[0].shape)
    for place, y in zip(stack, outputs, strict=True):
        place.copy_(y)
    return stack
