"""The outer gradient: how good the meta-parameters were for learning tasks, differentiated through learning.

One :class:`Problem` and several ways to the same numbers: :func:`automatic` differentiates through the inner loop,
:func:`analytic` runs the adjoint recursion with one Hessian-vector product a step, and :mod:`engine.learning.mlp` writes both
out for MLPs. :func:`meta_gradient` puts tasks through one of them, in a loop, under vmap or as a batch, in chunks that fit the
memory.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap
from torch.nn.functional import cross_entropy, mse_loss

from engine.errors import ConfigurationError
from engine.learning.inner import SGD, Params, adapt, moving
from engine.learning.tasks import Task
from engine.runs.memory import out_of_memory
from engine.runs.profiling import span

Predict = Callable[[Params, Tensor], Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of (N, K) logits."""
    return cross_entropy(logits, labels)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of (N, K) outputs."""
    return mse_loss(outputs, targets)


@dataclass(frozen=True)
class Problem:
    """What is learned inside, what outside.

    Args:
        predict: ``predict(params, x)``, (N, K) outputs; pure.
        rates: inner learning rate of each adapted parameter; a name that is not there is frozen.
        steps: inner steps S.
        learned: names of the meta-parameters, of which the outer gradient is formed. Names may be in both or in neither.
        first_order: inner gradients are constants of the outer gradient (first-order MAML).
        criterion: mean loss of outputs and labels.
    """

    predict: Predict
    rates: Mapping[str, float]
    steps: int
    learned: tuple[str, ...]
    first_order: bool = False
    criterion: Criterion = mean_cross_entropy

    def __post_init__(self) -> None:
        if not self.learned:
            raise ConfigurationError("the outer loop has nothing to learn; name at least one meta-parameter")

    @property
    def regression(self) -> bool:
        """Whether targets are numbers, so that no answer is right or wrong."""
        return self.criterion is mean_squared_error

    def loss(self, params: Params, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean loss over a support or a query."""
        return self.criterion(self.predict(params, batch[0]), batch[1])


class Sums(NamedTuple):
    """Outer gradients by name, summed over T tasks, with each task's query loss (T,) and outputs (T, N, K).

    Gradients may lie in memory that the next call overwrites.
    """

    gradients: Params
    losses: Tensor
    outputs: Tensor


OneTask = Callable[[Problem, Params, Task], tuple[Params, Tensor, Tensor]]
ManyTasks = Callable[[Params, Task], Sums]


def automatic(problem: Problem, params: Params, task: Task) -> tuple[Params, Tensor, Tensor]:
    """Outer gradient by differentiating through the inner loop; returns (gradients, query loss, query outputs).

    Keeps the graphs of all S inner steps: S + 1 times the memory of a training step, and S times its double backward.
    """

    def outer(learned: Params) -> tuple[Tensor, Tensor]:
        optimizer = SGD(problem.rates)
        learner = adapt(
            problem.loss, {**params, **learned}, task.support, problem.steps, optimizer, first_order=problem.first_order
        )
        outputs = problem.predict(learner.params, task.query_x)
        return problem.criterion(outputs, task.query_y), outputs

    start = {name: params[name] for name in problem.learned}
    gradients, (value, outputs) = grad_and_value(outer, has_aux=True)(start)
    return gradients, value, outputs


def analytic(problem: Problem, params: Params, task: Task) -> tuple[Params, Tensor, Tensor]:
    """Outer gradient by the adjoint recursion of gradient descent; returns what :func:`automatic` does.

    With lambda_S the gradient of the query loss at the adapted parameters, H_k the support Hessian at step k over all
    parameters and r the rates (0 where frozen),

        lambda_k = lambda_{k+1} - H_k (r lambda_{k+1}),    k = S-1 .. 0.

    Scores are frozen parameters, so their part of lambda_0 is the score gradient of the reference note meta-ticket, section 2.
    Keeps only the parameters of each step; one Hessian-vector product (forward over reverse) a step.
    """
    names = list(dict.fromkeys([*moving(problem.rates, params), *problem.learned]))
    rest = {name: value for name, value in params.items() if name not in names}

    def support_loss(moved: Params) -> Tensor:
        return problem.loss({**rest, **moved}, task.support)

    trajectory = [{name: params[name] for name in names}]
    for _ in range(problem.steps):
        step = adapt(problem.loss, {**rest, **trajectory[-1]}, task.support, 1, SGD(problem.rates))
        trajectory.append({name: step.params[name] for name in names})

    def query_loss(moved: Params) -> tuple[Tensor, Tensor]:
        outputs = problem.predict({**rest, **moved}, task.query_x)
        return problem.criterion(outputs, task.query_y), outputs

    adjoint, (value, outputs) = grad_and_value(query_loss, has_aux=True)(trajectory.pop())
    while trajectory and not problem.first_order:
        at = trajectory.pop()
        tangent = {name: problem.rates.get(name, 0.0) * adjoint[name] for name in names}
        product = jvp(grad(support_loss), (at,), (tangent,))[1]
        adjoint = {name: adjoint[name] - product[name] for name in names}
    return {name: adjoint[name] for name in problem.learned}, value, outputs


def reptile(problem: Problem, params: Params, task: Task) -> tuple[Params, Tensor, Tensor]:
    """Reptile's outer direction, phi - phi_S, in the place of a gradient; returns what :func:`automatic` does.

    With outer SGD of rate e, the mean over tasks is phi <- phi + e mean(phi_S - phi) (Nichol, Achiam and Schulman 2018).
    """
    learner = adapt(problem.loss, params, task.support, problem.steps, SGD(problem.rates))
    outputs = problem.predict(learner.params, task.query_x)
    direction = {name: params[name] - learner.params[name] for name in problem.learned}
    return direction, problem.criterion(outputs, task.query_y), outputs


def looped(problem: Problem, one: OneTask = automatic) -> ManyTasks:
    """Tasks one after the other: the memory of one, and faster than vmap for convolutions on a CPU."""

    def run(params: Params, tasks: Task) -> Sums:
        found = [one(problem, params, tasks.take(t)) for t in range(len(tasks.support_y))]
        total = {name: torch.stack([gradients[name] for gradients, _, _ in found]).sum(0) for name in problem.learned}
        return Sums(total, torch.stack([loss for _, loss, _ in found]), torch.stack([outputs for *_, outputs in found]))

    return run


def vmapped(problem: Problem, one: OneTask = automatic) -> ManyTasks:
    """All tasks as one batch under ``torch.func.vmap``."""

    def run(params: Params, tasks: Task) -> Sums:
        gradients, losses, outputs = vmap(lambda task: one(problem, params, task))(tasks)
        return Sums({name: value.sum(0) for name, value in gradients.items()}, losses, outputs)

    return run


def meta_gradient(
    run: ManyTasks, params: Params, tasks: Task, *, chunk: int | None = None, halved: Callable[[int], None] | None = None
) -> Sums:
    """Mean outer gradient over T tasks, losses (T,) and outputs (T, N, K); arguments as of :func:`summed_gradient`."""
    sums = summed_gradient(run, params, tasks, chunk=chunk, halved=halved)
    return sums._replace(gradients={name: value.div_(len(tasks.support_y)) for name, value in sums.gradients.items()})


def summed_gradient(
    run: ManyTasks, params: Params, tasks: Task, *, chunk: int | None = None, halved: Callable[[int], None] | None = None
) -> Sums:
    """What ``run`` returns of T tasks, ``chunk`` tasks at a time (all at once if None).

    Chunks bound the memory and change the result by rounding only. Running out of memory halves the chunk, tells ``halved`` the
    new size and goes on with the tasks that are left; with one task a chunk the error passes through.
    """
    total = len(tasks.support_y)
    size, done, parts = min(chunk or total, total), 0, []
    gradients: Params = {}
    while done < total:
        try:
            with span("task batch"):
                sums = run(params, tasks.take(slice(done, done + size)))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or size == 1:
                raise
            size //= 2
            if halved is not None:
                halved(size)
            gc.collect()
            if tasks.support_x.is_cuda:
                torch.cuda.empty_cache()
            continue
        for name, value in sums.gradients.items():
            gradients[name] = gradients[name].add_(value) if done else value if size == total else value.clone()
        parts.append(sums)
        done += size
    return Sums(gradients, torch.cat([part.losses for part in parts]), torch.cat([part.outputs for part in parts]))
