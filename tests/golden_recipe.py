"""Regenerates the closed-form inputs and weights of tests/golden/metantk.json (its key "recipe")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.spaces.space import FEW_SHOT
from engine.spaces.supernet import Supernet


def golden() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "golden" / "metantk.json").read_text())


def hash_uniform(count: int, stream: int) -> np.ndarray:
    """u(i, stream) of the recipe: all arithmetic modulo 2**32."""
    mask = np.uint64(0xFFFFFFFF)
    h = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64((stream + 1) * 2246822519 % 2**32)) & mask
    h ^= h >> np.uint64(16)
    h = (h * np.uint64(2246822507)) & mask
    h ^= h >> np.uint64(13)
    h = (h * np.uint64(3266489909)) & mask
    h ^= h >> np.uint64(16)
    return (h.astype(np.float64) + 0.5) / 2**32


def symmetric(count: int, stream: int) -> np.ndarray:
    return 2 * hash_uniform(count, stream) - 1


def fill_convolutions(model: nn.Module, first: int) -> None:
    """Number the convolutions in registration order from ``first`` and give each its closed-form weight."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    for number, conv in enumerate(convolutions, start=first):
        fan_in = conv.weight[0].numel()
        values = symmetric(conv.weight.numel(), number) / fan_in**0.5
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(values).view(conv.weight.shape))


def golden_supernet(dtype: torch.dtype = torch.float64) -> Supernet:
    model = Supernet(FEW_SHOT, cells=5, channels=16, outputs=5).double()
    fill_convolutions(model, 0)
    features = model.features
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(symmetric(5 * features, 1000033) / features**0.5).view(5, features))
        model.classifier.bias.zero_()
    return model.to(dtype)


def golden_images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.sqrt(3) * symmetric(30 * 3 * 8 * 8, 1000003)).view(30, 3, 8, 8).to(dtype)


def golden_thin_supernet(dtype: torch.dtype = torch.float64) -> Supernet:
    """The two-cell network of region counts; the absent stem still takes convolution number 0."""
    model = Supernet(FEW_SHOT, cells=2, channels=1, outputs=5, channels_in=1, norm="batchstat", stem=False).double()
    fill_convolutions(model, 1)
    return model.to(dtype)


def golden_patches(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    ys = np.array([-1, -1, -1, 0, 0, 0, 1, 1, 1.0])
    xs = np.array([-1, 0, 1, -1, 0, 1, -1, 0, 1.0])
    batches = []
    for b in range(3):
        u = symmetric(800, 2000003 + b).reshape(200, 4)
        z = symmetric(1800, 2000033 + b).reshape(200, 9)
        x = 1.5 * u[:, 0:1] + 0.2 * u[:, 1:2] * ys + 0.2 * u[:, 2:3] * xs + 0.02 * z
        batches.append(torch.from_numpy(x).view(200, 1, 3, 3).to(dtype))
    return batches
