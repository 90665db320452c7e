"""MAML of wide networks as kernel regression (paper 001, Theorem 2), and the kernel of a finite network by its definition."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from engine.scoring.meta import adaptation, metantk


def adapted_outputs(
    theta: Tensor, outputs: Tensor, targets: Tensor, *, tasks: int, query: int, support: int, time: float, reg: float = 0.0
) -> Tensor:
    """Outputs on the queries after the inner loop, float64 (tasks * query, k): Eq. 13, G = Theta_qs T(time) Y'.

    ``theta`` (N, N) is the NTK of one output, rows all queries task-major, then all supports, N = tasks * (query + support).
    ``outputs`` (N, k) are the network's before adaptation; Eq. 13 takes them for zero, otherwise f_q + Theta_qs T (Y' - f_s).
    ``targets`` (tasks * support, k) are Y'. ``time`` is lambda * tau and ``reg`` the ridge of :func:`engine.metantk`.
    """
    count = tasks * query
    residual = (targets.double() - outputs[count:].double()).unflatten(0, (tasks, support))
    adapted = outputs[:count].double().unflatten(0, (tasks, query)).clone()
    for task in range(tasks):
        q = slice(task * query, (task + 1) * query)
        s = slice(count + task * support, count + (task + 1) * support)
        adapted[task] += adaptation(theta[q, s], theta[s, s], time=time, reg=reg) @ residual[task]
    return adapted.flatten(0, 1)


def maml_regression(
    theta: Tensor,
    outputs: Tensor,
    query_targets: Tensor,
    support_targets: Tensor,
    *,
    tasks: int,
    query: int,
    support: int,
    inner_time: float,
    outer_time: float,
) -> Tensor:
    """What a wide network trained by MAML predicts on the queries of every task, float64 (tasks * query, k): Eq. 8 and 12.

    The first tasks, as many as ``query_targets`` (n * query, k) has rows for, are those that MAML is trained on; the others are
    only adapted to, with the ``support_targets`` (tasks * support, k) that all have. ``theta`` and ``outputs`` are those of
    :func:`adapted_outputs`, at initialisation. ``inner_time`` is lambda * tau, ``outer_time`` eta * t; both may be infinite.

    F_t = G + Phi(., train) Phi(train, train)^-1 (I - exp(-outer_time Phi)) (Y - G(train)), the kernel Phi being the MetaNTK.
    Cost: two eigendecompositions, O((tasks * query)^3 + tasks * support^3).
    """
    trained = len(query_targets)
    if trained % query or not 0 < trained <= tasks * query:
        raise ValueError(f"query_targets: {trained} rows are not the queries of 1 to {tasks} tasks of {query}")
    phi = metantk(theta, tasks=tasks, query=query, support=support, time=inner_time, reg=0.0)
    adapted = adapted_outputs(theta, outputs, support_targets, tasks=tasks, query=query, support=support, time=inner_time)
    learned = adaptation(phi[:, :trained], phi[:trained, :trained], time=outer_time, reg=0.0)
    return adapted + learned @ (query_targets.double() - adapted[:trained])


def meta_outputs(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    query: Tensor,
    support: Tensor,
    targets: Tensor,
    *,
    tasks: int,
    rate: float,
    steps: int = 1,
) -> Tensor:
    """The meta-outputs F(X, X', Y') of all tasks (Eq. 1), (tasks * q, k), at ``parameters`` and differentiable by them.

    ``query`` (tasks * q, ...) and ``support`` (tasks * s, ...) are task-major, ``targets`` (tasks * s, k). The inner loop takes
    ``steps`` gradient steps of size ``rate`` on half the squared error of a task's supports.
    """
    parts = zip(query.chunk(tasks), support.chunk(tasks), targets.chunk(tasks), strict=True)
    return torch.cat([_meta_output(model, parameters, *part, rate, steps) for part in parts])


def meta_kernel(
    model: nn.Module, query: Tensor, support: Tensor, targets: Tensor, *, tasks: int, rate: float, steps: int = 1
) -> Tensor:
    """The kernel of the meta-output by its definition (Eq. 1 and 4 without 1/l): J J^T, J the Jacobian of the adapted outputs.

    Arguments are those of :func:`meta_outputs`; the Jacobian goes through the inner steps, second-order terms included. All
    parameters count. Returns (tasks * q * k, tasks * q * k) in the model's precision. The composite formula
    (:func:`engine.metantk`) is its limit for wide networks and small steps: ``python -m bench.studies.wide``.

    Cost: a backward pass through the inner loop for each of the rows, and the whole Jacobian in memory: for small networks.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def adapted(theta: Mapping[str, Tensor]) -> Tensor:
        return meta_outputs(model, theta, query, support, targets, tasks=tasks, rate=rate, steps=steps).flatten()

    rows = jacrev(adapted)(parameters)
    jacobian = torch.cat([part.flatten(1) for part in rows.values()], 1)
    return jacobian @ jacobian.T


def _meta_output(
    model: nn.Module, theta: Mapping[str, Tensor], x: Tensor, support: Tensor, targets: Tensor, rate: float, steps: int
) -> Tensor:
    """F(X, X', Y') of one task (Eq. 1)."""

    def loss(theta: Mapping[str, Tensor]) -> Tensor:
        return (functional_call(model, dict(theta), (support,)) - targets).square().sum() / 2

    for _ in range(steps):
        gradients = grad(loss)(theta)
        theta = {name: p - rate * gradients[name] for name, p in theta.items()}
    return functional_call(model, dict(theta), (x,))
