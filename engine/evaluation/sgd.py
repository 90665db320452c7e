"""Stochastic gradient descent whose whole state is named tensors, so that it goes into a checkpoint as it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SGD:
    """Momentum, Nesterov's momentum and weight decay, as ``torch.optim.SGD`` defines them (without dampening).

    ``velocity`` holds one buffer a parameter, by its name. Importing torch's optimisers takes seconds; this is twelve lines.
    """

    def __init__(self, network: nn.Module, *, momentum: float, nesterov: bool, weight_decay: float) -> None:
        self.parameters = dict(network.named_parameters())
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.velocity = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter by its gradient, which is then dropped; a parameter without one stays as it is."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            gradient = parameter.grad.add_(parameter, alpha=self.weight_decay)
            velocity = self.velocity[name].mul_(self.momentum).add_(gradient)
            parameter.sub_(gradient.add_(velocity, alpha=self.momentum) if self.nesterov else velocity, alpha=rate)
            parameter.grad = None

    def load(self, velocity: Mapping[str, Tensor]) -> None:
        """Take the buffers of a checkpoint."""
        for name, buffer in self.velocity.items():
            buffer.copy_(velocity[name])
