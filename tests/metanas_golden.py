"""Regenerates the closed-form inputs, weights and architectures of tests/golden/metanas.json (its key "recipe")."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.spaces.metanas import Architecture, metanas_supernet
from engine.spaces.space import METANAS
from engine.spaces.supernet import Supernet

KINDS = ("normal", "reduce")


@cache
def golden() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "golden" / "metanas.json").read_text())


def ramp(shape: tuple[int, ...], a: float, b: float, function: Callable[[Tensor], Tensor], scale: float) -> Tensor:
    k = torch.arange(1, prod(shape) + 1, dtype=torch.float64)
    return (scale * function(a * k + b)).view(shape)


def fill(model: nn.Module) -> None:
    """Position t in the order of registration, which is the golden file's ``param_order``."""
    for t, (name, parameter) in enumerate(model.named_parameters()):
        shape = tuple(parameter.shape)
        scale = 0.1 if parameter.dim() == 1 else prod(shape[1:]) ** -0.5
        value = ramp(shape, 0.7, 1.3 * (t + 1), torch.sin, scale)
        with torch.no_grad():
            parameter.copy_(1 + value if name == "stem_norm.weight" else value)


def golden_supernet(channels: int, channels_in: int, classes: int) -> Supernet:
    model = metanas_supernet(channels=channels, outputs=classes, channels_in=channels_in).double()
    fill(model)
    return model


def golden_architecture(architecture: Architecture) -> Tensor:
    alphas = [ramp((i + 2, 7), 0.9, 0.5 * i, f, 1.0) for f in (torch.sin, torch.cos) for i in range(3)]
    betas = [ramp(((i + 2) * (i + 1) // 2,), 1.1, 0.3 * i, f, 0.5) for f in (torch.sin, torch.cos) for i in range(3)]
    parts = alphas + (betas if architecture.sparse_inputs else [])
    return torch.cat([part.flatten() for part in parts])


def named_parts(architecture: Architecture, flat: Tensor) -> dict[str, Tensor]:
    """A flat vector of architecture parameters under the golden file's names."""
    alphas, betas = architecture.split(flat)
    nodes = [[e for e, (_, target) in enumerate(METANAS.edges) if target == node] for node in (2, 3, 4)]
    parts = {f"alpha_{kind}.{i}": alphas[k, edges] for k, kind in enumerate(KINDS) for i, edges in enumerate(nodes)}
    if betas is not None:
        for k, kind in enumerate(KINDS):
            parts |= {f"alpha_pw_{kind}.{i}": part for i, part in enumerate(betas[k].split((1, 3, 6)))}
    return parts


def stats(x: Tensor) -> list[float]:
    flat = x.detach().flatten()
    wave = torch.sin(0.01 * torch.arange(1, len(flat) + 1, dtype=torch.float64))
    summary = [flat.mean(), flat.std(correction=0), flat.abs().mean(), flat[0], flat[-1], (flat * wave).sum()]
    return [float(value) for value in summary]
