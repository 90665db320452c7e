"""Outer optimisers on one flat buffer of meta-parameters, with everything that a checkpoint needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.kernels.updates import AdamRule, adam_, sgd_
from engine.learning.schedules import Schedule

ADAMW = AdamRule(decoupled=True)


class OuterUpdate(Protocol):
    """Moves a flat buffer (P,) in place; ``state`` are the tensors that resuming needs, updated in place too."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Moments by name."""

    def step(self, parameters: Tensor, gradient: Tensor, step: int) -> None:
        """Outer step number ``step``, counted from 0."""


@dataclass
class Momentum:
    """SGD with momentum: v <- mu v + g, theta <- theta - rate(step) v."""

    velocity: Tensor
    schedule: Schedule
    momentum: float = 0.9

    @property
    def state(self) -> dict[str, Tensor]:
        """The velocity."""
        return {"velocity": self.velocity}

    def step(self, parameters: Tensor, gradient: Tensor, step: int) -> None:
        """One step."""
        sgd_(parameters, gradient, self.velocity, rate=self.schedule(step), momentum=self.momentum)


@dataclass
class AdamW:
    """AdamW without decay unless the rule has one."""

    first: Tensor
    second: Tensor
    schedule: Schedule
    rule: AdamRule = ADAMW

    @classmethod
    def zeros(cls, like: Tensor, schedule: Schedule) -> AdamW:
        """With moments of zero."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), schedule)

    @property
    def state(self) -> dict[str, Tensor]:
        """Both moments."""
        return {"first": self.first, "second": self.second}

    def step(self, parameters: Tensor, gradient: Tensor, step: int) -> None:
        """One step."""
        adam_(parameters, gradient, self.first, self.second, step + 1, rate=self.schedule(step), rule=self.rule)


@dataclass
class Parts:
    """Consecutive parts of the buffer, each with an optimiser of its own; ``sizes`` add up to P."""

    sizes: tuple[int, ...]
    updates: tuple[OuterUpdate, ...]

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors of all parts."""
        return {f"{name}{number}": t for number, update in enumerate(self.updates) for name, t in update.state.items()}

    def step(self, parameters: Tensor, gradient: Tensor, step: int) -> None:
        """One step of every part."""
        for update, own, slope in zip(self.updates, parameters.split(self.sizes), gradient.split(self.sizes), strict=True):
            update.step(own, slope, step)
