"""What weights and architecture parameters are between two steps of a bilevel search, and the two optimisers that move them.

Weights are one flat vector, so a step, its clipping and its momentum are a few passes over one buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engine.learning.flat import Layout
from engine.spaces.mixture import Mixture


class FlatNetwork:
    """A module as a function of one vector of weights (P,); it must have no buffers, and what it computes leaves no trace."""

    def __init__(self, model: nn.Module) -> None:
        if next(model.buffers(), None) is not None:
            raise ValueError("model: buffers (running statistics) cannot be part of a pure function; build it without")
        parameters = dict(model.named_parameters())
        self.layout = Layout.of(parameters)
        self.start = self.layout.pack({name: p.detach() for name, p in parameters.items()})
        self._model = model.requires_grad_(False)

    def __call__(self, w: Tensor, x: Tensor, mixture: Mixture | None) -> Any:
        """Weights (P,), images (B, C, H, W) and a mixture if the module takes one -> what it makes of them, as logits (B, K)."""
        return functional_call(self._model, self.layout.views(w), (x, mixture))


@dataclass
class Sgd:
    """SGD with momentum and L2 penalty on a flat vector; ``velocity`` is m in m <- momentum m + g + decay w, w <- w - rate m.

    ``nesterov`` takes w <- w - rate (g + decay w + momentum m) instead, as torch.optim.SGD does.
    """

    velocity: Tensor
    momentum: float = 0.9
    decay: float = 3e-4
    clip: float = math.inf
    nesterov: bool = False

    def step(self, w: Tensor, gradient: Tensor, rate: float) -> None:
        """Move ``w`` in place. Gradients longer than ``clip`` are scaled to it. Nothing is read by the host."""
        direction = torch.add(clipped(gradient, self.clip), w, alpha=self.decay)
        self.velocity.mul_(self.momentum).add_(direction)
        w.sub_(direction.add_(self.velocity, alpha=self.momentum) if self.nesterov else self.velocity, alpha=rate)

    @property
    def inertia(self) -> Tensor:
        """What the momentum alone would add to the next direction."""
        return self.momentum * self.velocity


@dataclass
class Adam:
    """Adam (Kingma and Ba 2015) with an L2 penalty added to the gradient, on one tensor of architecture parameters.

    Gradients longer than ``clip`` are scaled to it before the penalty is added.
    """

    first: Tensor
    second: Tensor
    count: int = 0
    rate: float = 3e-4
    decay: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    eps: float = 1e-8
    clip: float = math.inf

    def step(self, a: Tensor, gradient: Tensor) -> None:
        """Move ``a`` in place. Nothing is read by the host."""
        self.count += 1
        gradient = clipped(gradient, self.clip).add(a, alpha=self.decay)
        self.first.lerp_(gradient, 1 - self.betas[0])
        self.second.lerp_(gradient * gradient, 1 - self.betas[1])
        mean = self.first / (1 - self.betas[0] ** self.count)
        root = (self.second / (1 - self.betas[1] ** self.count)).sqrt_().add_(self.eps)
        a.sub_(mean.div_(root), alpha=self.rate)


@dataclass
class Bilevel:
    """The whole state of a search between two steps: weights ``w`` (P,), architecture ``a``, and their optimisers."""

    w: Tensor
    a: Tensor
    sgd: Sgd
    adam: Adam

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, apart from ``adam.count``."""
        return {
            "weights": self.w,
            "velocity": self.sgd.velocity,
            "alphas": self.a,
            "alphas_first": self.adam.first,
            "alphas_second": self.adam.second,
        }

    def restore(self, tensors: dict[str, Tensor], count: int) -> None:
        """Take the values of a checkpoint, in place."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        self.adam.count = count


def clipped(gradient: Tensor, clip: float) -> Tensor:
    """The gradient scaled to the length ``clip`` if it is longer, without a read by the host."""
    if clip == math.inf:
        return gradient
    return gradient * (clip / (gradient.norm() + 1e-6)).clamp(max=1.0)


def cosine(start: float, end: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch on half a cosine from ``start`` (epoch 0) to ``end`` (epoch ``epochs``)."""
    return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def warmed_cosine(start: float, end: float, epoch: int, epochs: int, warm_up: int = 0) -> float:
    """:func:`cosine`, but in the first ``warm_up`` epochs a line that reaches ``start`` with the last (PC-DARTS on ImageNet)."""
    return start * (epoch + 1) / warm_up if epoch < warm_up else cosine(start, end, epoch, epochs)
