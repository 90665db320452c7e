"""The plain formulation of the mixed edge group, in every precision and under every transform of torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.mixed_edge.norm import Norm, per_unit

Pair = tuple[int, int]


class Setting(NamedTuple):
    """What is fixed in a call: the normalisation, the stride of all operations, the filters' dilations."""

    norm: Norm
    stride: int
    dilations: tuple[int, ...]


def normalised(x: Tensor, norm: Norm) -> Tensor:
    """(B, C, H, W) -> the same, normalised."""
    if norm.kind == "none":
        return x
    if norm.kind == "group":
        return F.group_norm(x, norm.groups, eps=norm.eps)
    return torch.cat([_standardised(part, norm.eps) for part in x.chunk(norm.groups)])


def _standardised(x: Tensor, eps: float) -> Tensor:
    """Written out, because third derivatives through the library's own batch normalisation are wrong in silence."""
    wide = x if x.dtype == torch.float64 else x.float()
    if x.shape[0] * x.shape[2] * x.shape[3] == 0:
        return x
    centred = wide - wide.mean((0, 2, 3), keepdim=True)
    return (centred * (centred.square().mean((0, 2, 3), keepdim=True) + eps).rsqrt()).to(x.dtype)


def sum_reference(
    norm: Norm, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, *terms: Tensor
) -> Tensor:
    """total + offset + sum_t factors_t norm(term_t) over the terms that are alive.

    ``alive`` (R, T) and ``factors`` (R, T, C) have one row for B/R consecutive samples, as has ``offset`` (R, C).
    """
    out = torch.zeros_like(terms[0]) if total is None else total
    if offset is not None:
        out = out + _image(offset, out)
    for t, term in enumerate(terms):
        living = _image(alive[:, t, None], term)
        y = normalised(torch.where(living, term, 0), norm)
        out = out + torch.where(living, _image(factors[:, t], term) * y, 0)
    return out.to(terms[0].dtype)


def group_reference(
    setting: Setting,
    alive: Tensor,
    x: Tensor,
    factors: Tensor,
    offset: Tensor | None,
    *filters: Tensor,
) -> list[Tensor]:
    """The E sums of max pool, average pool and skip, then the depthwise convolutions of relu(x).

    ``alive`` (R, E, 3), ``factors`` (R, E, 3, C), ``offset`` (R, E, C).
    """
    norm, stride, dilations = setting
    largest = normalised(F.max_pool2d(x, 3, stride, 1), norm)
    average = normalised(F.avg_pool2d(x, 3, stride, 1, count_include_pad=False), norm)
    operations = (largest, average, x) if stride == 1 else (largest, average)
    sums = []
    for e in range(factors.shape[1]):
        out = torch.zeros_like(largest) if offset is None else torch.zeros_like(largest) + _image(offset[:, e], largest)
        for o, y in enumerate(operations):
            out = out + torch.where(_image(alive[:, e, o, None], y), _image(factors[:, e, o], y) * y, 0)
        sums.append(out)
    return sums + [
        F.conv2d(F.relu(x), weight, None, stride, same_padding(weight, dilation), dilation, x.shape[1])
        for weight, dilation in zip(filters, dilations, strict=True)
    ]


def same_padding(weight: Tensor, dilation: int) -> Pair:
    """The padding that keeps the resolution at stride 1."""
    height, width = (dilation * (k - 1) // 2 for k in weight.shape[2:])
    return height, width


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """(R, C) or (R, 1) -> (B, C, 1, 1)."""
    return per_unit(rows, like.shape[0])[..., None, None]
