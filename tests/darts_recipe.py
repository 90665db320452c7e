"""Regenerates the closed-form inputs, weights and architectures of tests/golden/darts.json (its key "recipe")."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.spaces.space import DARTS
from engine.spaces.supernet import Supernet


@cache
def golden() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "golden" / "darts.json").read_text())


def wave(shape: tuple[int, ...] | torch.Size, number: int) -> Tensor:
    j = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.9 * j + 0.011 * j * j + 0.37 * number).view(shape)


def fill(model: Supernet, shift_from_cell: int | None = None, shift: int = 500000) -> None:
    """Closed-form weights; from ``shift_from_cell`` on, the last cell and the head of an auxiliary model have shifted numbers."""

    def convolution(module: nn.Module, number: int) -> None:
        assert isinstance(module, nn.Conv2d)
        weight = module.weight
        with torch.no_grad():
            weight.copy_((2 / weight[0].numel()) ** 0.5 * wave(weight.shape, number))

    convolution(model.stem, 1)
    width = model.stem_norm.weight.shape
    with torch.no_grad():
        model.stem_norm.weight.copy_(1 + 0.1 * wave(width, 2))
        model.stem_norm.bias.copy_(0.1 * wave(width, 3))
    head = 0 if shift_from_cell is None else shift
    with torch.no_grad():
        linear = model.classifier.weight
        linear.copy_(linear.shape[1] ** -0.5 * wave(linear.shape, 4 + head))
        model.classifier.bias.copy_(0.1 * wave(model.classifier.bias.shape, 5 + head))
    for c, cell in enumerate(model.cells):
        base = 1000 * (c + 1) + (shift if shift_from_cell is not None and c >= shift_from_cell else 0)
        for module, first in ((cell.preprocess0, 10), (cell.preprocess1, 12)):
            for q, conv in enumerate(m for m in module.modules() if isinstance(m, nn.Conv2d)):
                convolution(conv, base + first + q)
        for e, edge in enumerate(cell.edges):
            for name, operation in edge.items():
                column = model.space.operations.index(name)
                for q, conv in enumerate(m for m in operation.modules() if isinstance(m, nn.Conv2d)):
                    convolution(conv, base + 100 + 32 * e + 4 * column + q)


def alphas() -> Tensor:
    i = torch.arange(len(DARTS.edges) * len(DARTS.operations), dtype=torch.float64).view(len(DARTS.edges), -1)
    return torch.stack([0.5 * torch.sin(1.1 * i + 0.2), 0.5 * torch.cos(0.7 * i + 0.1)])


def batch(count: int, size: int, offset: int) -> tuple[Tensor, Tensor]:
    shape = (count, 3, size, size)
    j = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    b = torch.arange(count)
    return wave(shape, 900000 + offset) + 0.3 * torch.cos(0.021 * j + offset), (7 * b + 3 * offset + b * b) % 10
