from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from engine.scoring.kernels import ntk
from engine.scoring.meta import metantk
from engine.scoring.meta_regression import adapted_outputs, maml_regression, meta_kernel

TASKS, QUERY, SUPPORT, K, FEATURES = 3, 2, 3, 2, 20
SHAPE = {"tasks": TASKS, "query": QUERY, "support": SUPPORT}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Linear:
    """f(x) = x theta: its tangent kernel is x x^T for ever, so MAML by gradient flow is the kernel regression exactly."""

    def __init__(self) -> None:
        self.query, self.support = draw(TASKS * QUERY, FEATURES, seed=1), draw(TASKS * SUPPORT, FEATURES, seed=2)
        self.targets, self.support_targets = draw(TASKS * QUERY, K, seed=3), draw(TASKS * SUPPORT, K, seed=4)
        self.weights = 0.3 * draw(FEATURES, K, seed=5)
        self.x = torch.cat([self.query, self.support])
        self.theta = self.x @ self.x.T

    def adapted(self, weights: Tensor, time: float, tasks: int = TASKS) -> Tensor:
        """The inner loop by gradient flow for ``time``, in weight space."""
        found = []
        for q, s, y in list(
            zip(self.query.chunk(TASKS), self.support.chunk(TASKS), self.support_targets.chunk(TASKS), strict=True)
        )[:tasks]:
            kernel = s @ s.T
            step = torch.linalg.solve(
                kernel, (torch.eye(len(s)).double() - torch.linalg.matrix_exp(-time * kernel)) @ (y - s @ weights)
            )
            found.append(q @ (weights + s.T @ step))
        return torch.cat(found)


@pytest.mark.parametrize("time", [0.0, 0.02, math.inf])
def test_adapted_outputs_of_a_linear_model(time):
    case = Linear()
    found = adapted_outputs(case.theta, case.x @ case.weights, case.support_targets, **SHAPE, time=time)
    assert torch.allclose(found, case.adapted(case.weights, min(time, 1e3)), atol=1e-9)


@pytest.mark.parametrize("outer_time", [0.0, 0.05, 0.4])
def test_training_a_linear_model_by_maml_is_the_regression(outer_time):
    case, trained, inner = Linear(), 2, 0.02
    weights, steps = case.weights.clone().requires_grad_(), 1000
    for _ in range(steps if outer_time else 0):
        residual = case.adapted(weights, inner, trained) - case.targets[: trained * QUERY]
        (gradient,) = torch.autograd.grad(residual.square().sum() / 2, weights)
        weights = (weights - outer_time / steps * gradient).detach().requires_grad_()
    found = maml_regression(
        case.theta,
        case.x @ case.weights,
        case.targets[: trained * QUERY],
        case.support_targets,
        **SHAPE,
        inner_time=inner,
        outer_time=outer_time,
    )
    # the third task was never trained on
    assert torch.allclose(found, case.adapted(weights.detach(), inner), atol=2e-2)


def test_trained_for_ever_the_training_tasks_are_met():
    case = Linear()
    found = maml_regression(
        case.theta, case.x @ case.weights, case.targets, case.support_targets, **SHAPE, inner_time=0.02, outer_time=math.inf
    )
    assert torch.allclose(found, case.targets, atol=1e-8)


@pytest.mark.parametrize("rows", [0, 3, 8])
def test_training_tasks_must_be_whole(rows):
    case = Linear()
    with pytest.raises(ValueError, match=f"query_targets: {rows} rows"):
        maml_regression(
            case.theta, case.x @ case.weights, draw(rows, K), case.support_targets, **SHAPE, inner_time=1.0, outer_time=1.0
        )


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_kernel_by_definition_of_a_linear_model(steps):
    case, rate = Linear(), 0.01
    model = nn.Linear(FEATURES, 1, bias=False).double()
    found = meta_kernel(model, case.query, case.support, case.support_targets[:, :1], tasks=TASKS, rate=rate, steps=steps)
    rows = []
    for q, s in zip(case.query.chunk(TASKS), case.support.chunk(TASKS), strict=True):
        shrink = torch.eye(FEATURES).double() - rate * s.T @ s
        rows.append(q @ torch.linalg.matrix_power(shrink, steps))
    jacobian = torch.cat(rows)
    assert torch.allclose(found, jacobian @ jacobian.T, atol=1e-10)


class Wide(nn.Module):
    """Two layers in the parametrisation of the theory: weights of unit variance, outputs divided by the root of the width."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.first = nn.Parameter(draw(width, FEATURES, seed=seed))
        self.second = nn.Parameter(draw(1, width, seed=seed + 1000))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first.T / FEATURES**0.5) @ self.second.T / self.second.shape[1] ** 0.5


def test_definition_and_composite_formula_meet_with_width():
    case, rate, steps = Linear(), 0.02, 10

    def distance(width: int) -> float:
        total = 0.0
        for seed in range(3):
            model = Wide(width, seed)
            exact = meta_kernel(model, case.query, case.support, case.support_targets[:, :1], tasks=TASKS, rate=rate, steps=steps)
            theta = ntk(model, case.x, params="all")
            composite = metantk(theta, **SHAPE, time=rate * steps, reg=0.0)
            total += float((exact - composite).norm() / composite.norm())
        return total / 3

    narrow, wide = distance(16), distance(1024)
    assert wide < narrow / 3
    assert wide < 0.1


def test_loss_falls_at_the_rate_of_theorem_1():
    case, inner = Linear(), 0.02
    phi = metantk(case.theta, **SHAPE, time=inner, reg=0.0)
    eigenvalues = torch.linalg.eigvalsh(phi)
    rate = 2 / float(eigenvalues[0] + eigenvalues[-1])
    bound = (1 - rate * float(eigenvalues[0]) / 3) ** 2
    weights = case.weights.clone().requires_grad_()
    losses = []
    for _ in range(30):
        loss = (case.adapted(weights, inner) - case.targets).square().sum() / 2
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = (weights - rate * gradient).detach().requires_grad_()
        losses.append(float(loss.detach()))
    assert all(loss <= losses[0] * bound**step * (1 + 1e-9) for step, loss in enumerate(losses))
    assert losses[-1] < losses[0]
