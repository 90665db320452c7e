"""SynFlow: how much of a positive signal can flow from the images to the outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from engine.scoring.kernels import selects
from engine.scoring.plain import flat_outputs, run_on
from engine.scoring.proxies.norms import WithoutNorms
from engine.scoring.proxies.values import degenerate, scored
from engine.scoring.result import Score

# Where the flow overflows, an image and a gradient of the outputs this small, instead of ones, double the range of exponents.
TINY = 1e-250


def synflow(model: nn.Module, image: Tensor) -> Score:
    """Logarithm of SynFlow: log sum |w dR/dw|, R the summed outputs for an image of ones.

    All weights enter by their absolute values, norms are left out, and biases are zero, which makes R proportional to the image:
    where that overflows float64, smaller images and gradients are taken and scaled back in the logarithm. ``image`` (1, ...)
    gives the shape. The weights are those of all layers that are not norms; a network without flow is ``singular``.
    """
    value = _log_flow(model, image, 1.0)
    if math.isfinite(value):
        return scored("synflow", value)
    if value == -math.inf:
        return degenerate("synflow")
    return scored("synflow", _log_flow(model, image, TINY) - 2 * math.log(TINY))


def _log_flow(model: nn.Module, image: Tensor, level: float) -> float:
    selected = selects("weights", model)
    stands: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        positive = p.detach().abs().double() if selected(name, p) else torch.zeros_like(p, dtype=torch.float64)
        stands[name] = positive.requires_grad_(selected(name, p))
    weights = [p for p in stands.values() if p.requires_grad]
    ones = torch.full(image.shape, level, dtype=torch.float64, device=image.device)

    def body() -> float:
        with WithoutNorms():
            y = flat_outputs(model(ones), 1)
        if not y.requires_grad:
            return -math.inf
        gradients = torch.autograd.grad(y, weights, torch.full_like(y, level), allow_unused=True)
        flow = sum(float((w.detach() * g).abs().sum()) for w, g in zip(weights, gradients, strict=True) if g is not None)
        return math.log(flow) if flow > 0 else -math.inf if flow == 0 else math.nan

    return run_on(model, stands, body)
