"""The few-shot supernet from its description: every operation of every edge computed by itself, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.spaces.cells import Cell
from engine.spaces.supernet import Supernet


def norm(x: Tensor) -> Tensor:
    return F.group_norm(x, min(16, x.shape[1]))


def reduced(x: Tensor, convs: list[Tensor], odd: str) -> Tensor:
    """FactorizedReduce of a rectified map, pixel by pixel: the second map is read one row and column further on."""
    height, width = x.shape[-2:]
    shift = 0 if odd == "unshifted" and (height % 2 or width % 2) else 1
    padded = F.pad(x, (0, 1, 0, 1))
    shifted = padded[..., shift::2, shift::2][..., : -(-height // 2), : -(-width // 2)]
    return norm(torch.cat([F.conv2d(x[..., ::2, ::2], convs[0]), F.conv2d(shifted, convs[1])], 1))


def operate(name: str, x: Tensor, stride: int, convs: list[Tensor], odd: str) -> Tensor:
    c = x.shape[1]
    if name == "skip_connect":
        return x if stride == 1 else reduced(x.relu(), convs, odd)
    if name == "avg_pool_3x3BN":
        return norm(F.avg_pool2d(x, 3, stride, 1, count_include_pad=False))
    if name == "max_pool_3x3BN":
        return norm(F.max_pool2d(x, 3, stride, 1))
    if name == "conv_1x5_5x1":
        return norm(F.conv2d(F.conv2d(x.relu(), convs[0], None, stride, (0, 2)), convs[1], None, 1, (2, 0)))
    if name == "dil_conv_3x3":
        return norm(F.conv2d(F.conv2d(x.relu(), convs[0], None, stride, 2, 2, c), convs[1]))
    y = norm(F.conv2d(F.conv2d(x.relu(), convs[0], None, stride, 1, 1, c), convs[1]))
    return y if name == "conv_3x3" else norm(F.conv2d(F.conv2d(y.relu(), convs[2], None, 1, 1, 1, c), convs[3]))


def weights_of(module: nn.Module) -> list[Tensor]:
    return [m.weight for m in module.modules() if isinstance(m, nn.Conv2d)]


def naive_cell(cell: Cell, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
    space, plan = cell.space, cell.plan
    if plan.follows_reduction:
        first = reduced(s0.relu(), weights_of(cell.preprocess0), space.odd)
    else:
        first = norm(F.conv2d(s0.relu(), *weights_of(cell.preprocess0)))
    states = [first, norm(F.conv2d(s1.relu(), *weights_of(cell.preprocess1)))]
    size = [-(-n // 2) if plan.reduces else n for n in s1.shape[-2:]]
    for target in range(2, space.states):
        node = torch.zeros(s1.shape[0], plan.channels, *size, dtype=torch.float64)
        for e, (source, end) in enumerate(space.edges):
            for name, weight in zip(space.operations, weights[e], strict=True):
                if end == target and name != "none" and weight:
                    convs = weights_of(cell.edges[e][name]) if name in cell.edges[e] else []
                    node = node + weight * operate(name, states[source], space.stride(plan.kind, e), convs, space.odd)
        states.append(node)
    return torch.cat(states[2:], 1)


def naive(model: Supernet, x: Tensor, weights: Tensor) -> Tensor:
    s0 = s1 = norm(F.conv2d(x, model.stem.weight, None, 1, 1))
    for cell in model.cells:
        s0, s1 = s1, naive_cell(cell, s0, s1, weights[model.space.kinds.index(cell.plan.kind)])
    return model.classifier(norm(s1).relu().mean((2, 3)))
