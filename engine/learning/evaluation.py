"""How well tasks of unseen classes are learned: accuracy with an interval over tasks, under a named protocol."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from engine.learning.inner import SGD, Params, adapt
from engine.learning.outer import Predict, Problem
from engine.learning.tasks import Task


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracy and loss over T tasks, and half the width of the normal 95 % interval of the mean accuracy."""

    mean: float
    half_width: float
    loss: float
    tasks: int

    @classmethod
    def of(cls, correct: Tensor, losses: Tensor) -> Accuracy:
        """From each task's share of right answers (T,) and loss (T,)."""
        count = len(correct)
        spread = float(correct.double().std()) if count > 1 else math.nan
        return cls(float(correct.double().mean()), 1.96 * spread / math.sqrt(count), float(losses.double().mean()), count)

    def to_dict(self) -> dict[str, float | int]:
        """Plain JSON types."""
        return {"accuracy": self.mean, "interval": self.half_width, "loss": self.loss, "tasks": self.tasks}


def evaluate(
    problem: Problem, params: Params, batches: Iterator[Task], *, together: bool, shared: Predict | None = None
) -> Accuracy:
    """Learn every task's support and classify its queries.

    Args:
        problem: rates and inner steps; nothing is meta-learned here.
        params: the meta-parameters.
        batches: tasks, some at a time.
        together: run the tasks of a batch under vmap, which is faster for MLPs, or one after the other.
        shared: ``shared(params, (support and query) x)`` gives the outputs of all samples with the statistics of the support
            alone; None classifies queries with the statistics of all queries of the task (transductive).
    """

    def one(task: Task) -> tuple[Tensor, Tensor]:
        learner = adapt(problem.loss, params, task.support, problem.steps, SGD(problem.rates), first_order=True)
        if shared is None:
            outputs = problem.predict(learner.params, task.query_x)
        else:
            both = torch.cat([task.support_x, task.query_x])
            outputs = shared(learner.params, both)[len(task.support_x) :]
        right = (outputs.argmax(-1) == task.query_y).to(outputs.dtype).mean()
        return right, problem.criterion(outputs, task.query_y)

    found: list[tuple[Tensor, Tensor]] = []
    for tasks in batches:
        if together:
            found.append(vmap(one)(tasks))
        else:
            each = [one(tasks.take(t)) for t in range(len(tasks.support_y))]
            found.append((torch.stack([right for right, _ in each]), torch.stack([loss for _, loss in each])))
    return Accuracy.of(torch.cat([right for right, _ in found]), torch.cat([loss for _, loss in found]))


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
    """``shared`` of :func:`evaluate` for a module, from the parameters that ``effective`` makes of the meta-parameters."""
    leading = with_leading_statistics(module, count)
    return lambda params, x: functional_call(leading, effective(params), (x,))


def with_steps(problem: Problem, steps: int) -> Problem:
    """The same problem with another number of inner steps."""
    return replace(problem, steps=steps)
