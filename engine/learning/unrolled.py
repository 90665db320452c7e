"""Meta-gradients through the steps of a task learner (MetaNAS Eq. 8; LAMANAS Eq. 5 and Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.learning.architecture_task import Loss, Supports, TaskModel, TaskRule
from engine.runs.profiling import span


def unrolled(
    model: TaskModel,
    start: tuple[Tensor, Tensor],
    supports: Supports,
    task: int,
    rule: TaskRule,
    *,
    loss: Loss = F.cross_entropy,
    second_order: bool = True,
) -> tuple[Tensor, Tensor]:
    """K steps of SGD on weights and architecture from one gradient each (paper 002, Eq. 2), as a function of ``start``.

    ``rule`` gives steps, rates and temperatures; its decays and DropPath are not applied. With ``second_order`` the result keeps
    the graph of every step, so the model must be differentiable twice; otherwise it is ``start`` plus constants (FOMAML).
    """
    weights, alphas = start
    for step in range(rule.steps):
        x, y = supports.batch(task, step, "weights")
        searching = step < rule.architecture_steps
        wanted = [weights, alphas] if searching else [weights]
        with span("inner step"):
            value = loss(model(weights, alphas, x, rule.temperature(step)), y)
            gradients: Sequence[Tensor] = torch.autograd.grad(value, wanted, create_graph=second_order)
        if not second_order:
            gradients = [g.detach() for g in gradients]
        weights = weights - rule.rate * gradients[0]
        if searching:
            alphas = alphas - rule.architecture_rate * gradients[1]
    return weights, alphas


def meta_gradient(
    model: TaskModel,
    start: tuple[Tensor, Tensor],
    supports: Supports,
    queries: tuple[Tensor, Tensor],
    rule: TaskRule,
    *,
    others: Sequence[Tensor] = (),
    loss: Loss = F.cross_entropy,
    second_order: bool = True,
) -> tuple[list[Tensor], Tensor]:
    """Mean over the tasks of the gradients of the query cross-entropy with respect to (weights, alphas, *others), and its mean.

    ``queries`` are x (T, M, ...) and y (T, M); ``others`` are parameters that ``loss`` depends on, such as those of a learned
    loss, whose gradient is zero without ``second_order``. Memory: the graph of one task's steps.
    """
    leaves = [t.detach().requires_grad_(t.numel() > 0) for t in start]
    targets = [*leaves, *others]
    total = [torch.zeros_like(t) for t in targets]
    losses = []
    for task in range(len(supports.x)):
        learned = unrolled(model, (leaves[0], leaves[1]), supports, task, rule, loss=loss, second_order=second_order)
        value = F.cross_entropy(model(*learned, queries[0][task], rule.temperature(rule.steps)), queries[1][task])
        wanted = [k for k, t in enumerate(targets) if t.requires_grad]
        found = torch.autograd.grad(value, [targets[k] for k in wanted], allow_unused=True)
        for k, gradient in zip(wanted, found, strict=True):
            if gradient is not None:
                total[k] += gradient / len(supports.x)
        losses.append(value.detach())
    return total, torch.stack(losses).mean()
