"""The plain formulation of the mixed edge group, in every precision and under every transform of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kernels.mixed_edge.norm import Norm, per_unit

Pair = tuple[int, int]


class Setting(NamedTuple):
    """What is fixed in a call: the normalisation, the stride of all operations, the filters' dilations, the parts of a state."""

    norm: Norm
    stride: int
    dilations: tuple[int, ...]
    parts: int = 1

    @property
    def text(self) -> str:
        """All of it as one string, since operators take no structures."""
        kind, groups, eps = self.norm.kind, self.norm.groups, self.norm.eps
        return " ".join(map(str, (kind, groups, repr(eps), self.stride, self.parts, *self.dilations)))

    @classmethod
    def read(cls, text: str) -> Setting:
        """The setting that :attr:`text` was made of."""
        kind, groups, eps, stride, parts, *dilations = text.split()
        norm = Norm(cast(Any, kind), int(groups), float(eps))
        return cls(norm, int(stride), tuple(map(int, dilations)), int(parts))


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
    norm: Norm, alive: Tensor, factors: Tensor, offset: Tensor | None, total: Tensor | None, *terms: Tensor, parts: int = 1
) -> Tensor:
    """total + offset + sum_t factors_t norm(term_t) over the terms that are alive, in every ``parts``-th channel of total.

    ``alive`` (R, T) and ``factors`` (R, T, C) have one row for B/R consecutive samples, as has ``offset`` (R, C).
    """
    if parts > 1:
        return placed(sum_reference(norm, alive, factors, offset, None, *terms), total, parts)
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
    passing: Tensor | None,
    *filters: Tensor,
) -> list[Tensor]:
    """The E sums of max pool, average pool and skip, then the depthwise convolutions of relu(x).

    ``alive`` (R, E, 3), ``factors`` (R, E, 3, C), ``offset`` (R, E, C); with partial channels ``passing`` (R, E).
    """
    if setting.parts > 1:
        return in_parts(group_reference, setting, alive, x, factors, offset, passing, *filters)
    norm, stride, dilations, _ = setting
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


def in_parts(
    whole: Callable[..., Sequence[Tensor]],
    setting: Setting,
    alive: Tensor,
    x: Tensor,
    factors: Tensor,
    offset: Tensor | None,
    passing: Tensor | None,
    *filters: Tensor,
) -> list[Tensor]:
    """Partial channels: ``whole`` on the first C of a state's ``parts`` C channels, and the others, weighted, between its own."""
    assert passing is not None
    parts, edges, width = setting.parts, factors.shape[1], x.shape[1] // setting.parts
    outputs = whole(setting._replace(parts=1), alive, x[:, :width], factors, offset, None, *filters)
    rest = x[:, width:] if setting.stride == 1 else F.max_pool2d(x[:, width:], 2, 2, ceil_mode=True)
    sums = [interleaved(y, rest * _image(passing[:, e, None], rest), parts) for e, y in enumerate(outputs[:edges])]
    return [*sums, *outputs[edges:]]


def interleaved(first: Tensor, rest: Tensor, parts: int) -> Tensor:
    """Channel c of ``first`` (B, C, H, W) becomes channel parts c, channel i C + c of ``rest`` parts c + i + 1.

    PC-DARTS's shuffle of both behind one another, written once and with channels innermost.
    """
    between = rest.permute(0, 2, 3, 1).unflatten(3, (parts - 1, -1)).transpose(3, 4)
    return torch.cat([first.permute(0, 2, 3, 1).unsqueeze(4), between.to(first.dtype)], 4).flatten(3).permute(0, 3, 1, 2)


def placed(value: Tensor, total: Tensor | None, parts: int) -> Tensor:
    """total + ``value`` (B, C, H, W) in every ``parts``-th channel, (B, parts C, H, W); the others are total's, or zero."""
    if total is None:
        return interleaved(
            value, value.new_zeros(()).expand(value.shape[0], (parts - 1) * value.shape[1], *value.shape[2:]), parts
        )
    every = total.permute(0, 2, 3, 1).unflatten(3, (-1, parts))
    first = every[..., :1] + value.permute(0, 2, 3, 1).unsqueeze(4)
    return torch.cat([first.to(total.dtype), every[..., 1:]], 4).flatten(3).permute(0, 3, 1, 2)


def same_padding(weight: Tensor, dilation: int) -> Pair:
    """The padding that keeps the resolution at stride 1."""
    height, width = (dilation * (k - 1) // 2 for k in weight.shape[2:])
    return height, width


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """(R, C) or (R, 1) -> (B, C, 1, 1)."""
    return per_unit(rows, like.shape[0])[..., None, None]
