"""The inner loop: how a network learns one task, as a pure function that further derivatives can be taken of.

Parameters are dicts of tensors by name. A parameter of rate zero is frozen: its gradient is not formed, so an inner loop of the
head alone (ANIL) ends its backward pass at the head. Meta-parameters that the loss reads, such as the scores of a masked
network, are parameters of rate zero too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value

from engine.kernels.updates import DEFAULT_ADAM, AdamRule, adam
from engine.runs.profiling import span

Params = dict[str, Tensor]
Loss = Callable[[Params, Any], Tensor]


class InnerOptimizer(Protocol):
    """A stateless description of an update; ``state`` is whatever ``start`` returned or ``step`` left."""

    @property
    def rates(self) -> Mapping[str, float]:
        """The rate of each name."""

    def start(self, params: Params) -> Any:
        """The state before the first step."""

    def step(self, params: Params, gradients: Params, state: Any) -> tuple[Params, Any]:
        """The parameters after one step, as new tensors, and the new state."""


@dataclass(frozen=True)
class SGD:
    """phi <- phi - rate * gradient, with a rate for each name; a name that is not there, or has rate 0, is frozen."""

    rates: Mapping[str, float]

    def start(self, params: Params) -> None:
        """Nothing is remembered."""

    def step(self, params: Params, gradients: Params, state: None) -> tuple[Params, None]:
        """One step of gradient descent."""
        return {name: value - self.rates[name] * gradients[name] for name, value in params.items()}, None


@dataclass(frozen=True)
class Adam:
    """Adam with a rate for each name; ``rule`` holds its betas and eps. As :func:`engine.kernels.updates.adam`."""

    rates: Mapping[str, float]
    rule: AdamRule = DEFAULT_ADAM

    def start(self, params: Params) -> tuple[int, Params, Params]:
        """No steps, and zero moments."""
        zeros = {name: torch.zeros_like(value) for name, value in params.items()}
        return 0, zeros, zeros

    def step(
        self, params: Params, gradients: Params, state: tuple[int, Params, Params]
    ) -> tuple[Params, tuple[int, Params, Params]]:
        """One step with bias-corrected moments."""
        count, first, second = state
        found = {
            n: adam(value, gradients[n], first[n], second[n], count + 1, rate=self.rates[n], rule=self.rule)
            for n, value in params.items()
        }
        theta, m, v = ({n: each[part] for n, each in found.items()} for part in range(3))
        return theta, (count + 1, m, v)


class Adapted(NamedTuple):
    """What a task was learned to.

    ``params``: all parameters after the last step. ``losses`` (S,): the support loss before each step. ``gradients``: the sum
    of the gradients over the steps, by name, of what was adapted; constants to any outer derivative.
    """

    params: Params
    losses: Tensor
    gradients: Params


def moving(rates: Mapping[str, float], names: Iterable[str]) -> list[str]:
    """The names whose rate is not zero, in the order of ``names``."""
    return [name for name in names if rates.get(name, 0.0) != 0.0]


def adapt(
    loss: Loss, params: Params, support: Any, steps: int, optimizer: InnerOptimizer, *, first_order: bool = False
) -> Adapted:
    """Learn one task: ``steps`` updates of the parameters whose rate is not zero (Meta-ticket, Eqs. 1 and 2).

    Args:
        loss: ``loss(params, support)``, a scalar; pure.
        params: all parameters by name.
        support: passed to ``loss`` as it is.
        steps: 0 or more.
        optimizer: :class:`SGD`, :class:`Adam` or what behaves like them.
        first_order: treat the inner gradients as constants in outer derivatives (first-order MAML).

    Costs a forward and a backward pass a step. Everything is differentiable and works under ``torch.func.vmap``.
    """
    names = moving(optimizer.rates, params)
    frozen = {name: value for name, value in params.items() if name not in names}
    current = {name: params[name] for name in names}
    state, losses = optimizer.start(current), []
    total: Params = {}
    for _ in range(steps):
        with span("inner step"):
            gradients, value = grad_and_value(lambda moved: loss({**frozen, **moved}, support))(current)
            detached = {name: gradient.detach() for name, gradient in gradients.items()}
            total = {name: total[name] + g for name, g in detached.items()} if total else detached
            losses.append(value)
            current, state = optimizer.step(current, detached if first_order else gradients, state)
    reference = next(iter(params.values()))
    stacked = torch.stack(losses) if losses else reference.new_zeros(0)
    return Adapted({**params, **current}, stacked, total)
