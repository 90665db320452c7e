"""The Zen score: how strongly the last feature maps answer a small change of a random image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from engine.runs.streams import stream
from engine.scoring.kernels import selects
from engine.scoring.plain import run_on, stand_ins
from engine.scoring.proxies.norms import NormScales
from engine.scoring.proxies.values import degenerate, scored
from engine.scoring.result import Score

# The published size of the change, and of the batch.
GAMMA = 1e-2
IMAGES = 16


def zen(model: nn.Module, images: Tensor, seed: int = 0) -> Score:
    """Zen score of one draw: log of the mean L1 change of the last maps before the pooling, plus the logs of the norms' scales.

    Weights of all layers that are not norms are standard normal, the images (of the shape of ``images``) Gaussian noise x and
    x + 0.01 x' (at most 16), all drawn by ``seed`` on the CPU. The last maps are the last tensor of more than two axes that is
    made. Published for batch normalisation; other norms are treated alike. No change at all is ``singular``.
    """
    selected = selects("weights", model)
    generator = stream(seed, "zen")
    stands = stand_ins(model, set())
    for name, p in model.named_parameters():
        if selected(name, p):
            stands[name] = torch.randn(p.shape, generator=generator).to(p)
    x, change = (torch.randn(images[:IMAGES].shape, generator=generator).to(images) for _ in range(2))

    def body() -> Score:
        with torch.no_grad():
            with NormScales(len(x)) as plain:
                model(x)
            with NormScales(len(x)) as changed:
                model(x + GAMMA * change)
        if plain.last_map is None or changed.last_map is None:
            raise ValueError("model: zen needs feature maps, tensors of more than two axes that begin with the images")
        difference = float((plain.last_map - changed.last_map).double().flatten(1).abs().sum(1).mean())
        if difference == 0:
            return degenerate("zen")
        return scored("zen", (math.log(difference) if difference > 0 else math.nan) + sum(plain.logarithms))

    return run_on(model, stands, body)
