"""How well tasks of unseen classes are learned: accuracy with an interval over tasks, under a named protocol."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from engine.learning.inner import SGD, Params, adapt
from engine.learning.outer import Predict, Problem
from engine.learning.tasks import Task

Outputs = Callable[[Params, Task], Tensor]
"""``outputs(params, tasks)``: what T tasks answer to their queries, (T, N, K), once their supports are learned."""


def half_width(values: Sequence[float]) -> float:
    """Half the normal 95 % interval of a mean over tasks, NaN of a single one."""
    return 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Tested:
    """Every test task's share of right answers, empty in a regression, and its loss."""

    right: list[float]
    losses: list[float]

    def to_dict(self) -> dict[str, float | int]:
        """Mean accuracy, or in a regression the mean loss alone, with half its 95 % interval over the tasks."""
        headline = self.right or self.losses
        found: dict[str, float | int] = {"accuracy": fmean(self.right)} if self.right else {}
        return {**found, "interval": half_width(headline), "loss": fmean(self.losses), "tasks": len(self.losses)}


def score_outputs(problem: Problem, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Share of right answers and loss of each task, both (T,), from (T, N, K) outputs; shares are 0 in a regression."""
    losses = vmap(problem.criterion)(outputs, targets)
    if problem.regression:
        return torch.zeros_like(losses), losses
    return (outputs.argmax(-1) == targets).to(losses.dtype).mean(-1), losses


def learned_outputs(problem: Problem, *, together: bool, shared: Predict | None = None) -> Outputs:
    """The query outputs of any module by its own inner loop.

    Args:
        problem: rates and inner steps; nothing is meta-learned here.
        together: run the tasks of a batch under vmap, or one after the other, which is faster for convolutions on a CPU.
        shared: ``shared(params, (support and query) x)`` gives the outputs of all samples with the statistics of the support
            alone; None classifies queries with the statistics of all queries of the task (transductive).
    """

    def one(params: Params, task: Task) -> Tensor:
        learner = adapt(problem.loss, params, task.support, problem.steps, SGD(problem.rates), first_order=True)
        if shared is None:
            return problem.predict(learner.params, task.query_x)
        return shared(learner.params, torch.cat([task.support_x, task.query_x]))[len(task.support_x) :]

    def run(params: Params, tasks: Task) -> Tensor:
        if together:
            return vmap(lambda task: one(params, task))(tasks)
        return torch.stack([one(params, tasks.take(t)) for t in range(len(tasks.support_y))])

    return run


class _LeadingNorm(nn.Module):
    """A BatchNorm that takes its statistics from the first ``count`` samples and applies them to all."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d, count: int) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.count = norm.weight, norm.bias, norm.eps, count

    def forward(self, x: Tensor) -> Tensor:
        axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        variance, mean = torch.var_mean(x[: self.count], dim=axes, correction=0, keepdim=True)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight.view(shape) + self.bias.view(shape)


def with_leading_statistics(module: nn.Module, count: int) -> nn.Module:
    """A copy of ``module`` whose BatchNorms take their statistics from the first ``count`` samples of a batch alone.

    With the support first and the queries behind it, no query sees another. Parameters keep their names.
    """
    copied = copy.deepcopy(module)
    for name, part in list(copied.named_modules()):
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(copied.get_submodule(parent), own, _LeadingNorm(part, count))
    return copied


def support_predict(module: nn.Module, count: int, effective: Callable[[Params], Params]) -> Predict:
    """``shared`` of :func:`learned_outputs` for a module, from the parameters that ``effective`` makes of the meta-parameters."""
    leading = with_leading_statistics(module, count)
    return lambda params, x: functional_call(leading, effective(params), (x,))


def with_steps(problem: Problem, steps: int) -> Problem:
    """The same problem with another number of inner steps."""
    return replace(problem, steps=steps)
