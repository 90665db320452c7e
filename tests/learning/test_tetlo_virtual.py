"""Virtual steps and their adjoint against plain autograd through the same steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.learning.hypergradient import Step
from engine.learning.virtual import VirtualSteps

MATRIX, BASE, INERTIA, V = (
    torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for seed, shape in enumerate(((4, 3), (4,), (4,), (4,)))
)
LEAVES = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64), torch.tensor([[0.5, 0.2]], dtype=torch.float64)


def loss(w: Tensor, a: Tensor, f: Tensor) -> Tensor:
    return (w @ MATRIX @ a).sin() + (w * w * w).sum() * f.sum() + (w.cos() * f[0, 1]).sum()


@pytest.mark.parametrize("hessian", ["exact", "finite-difference"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_adjoint_is_the_derivative(steps: int, keep: bool, hessian: Any) -> None:
    rate, decay, momentum = 0.1, 0.02, 0.9
    leaves = tuple(leaf.clone().requires_grad_() for leaf in LEAVES)
    w, m = BASE.clone().requires_grad_(), INERTIA
    for _ in range(steps):
        (g,) = torch.autograd.grad(loss(w, *leaves), w, create_graph=True)
        direction = g + decay * w + m
        w, m = w - rate * direction, momentum * direction
    wanted = torch.autograd.grad(w, leaves, V)
    step = Step(rate, decay, INERTIA, momentum)
    found = VirtualSteps(loss, BASE, LEAVES, step, steps, hessian=hessian, width=1e-4, keep=keep)
    torch.testing.assert_close(found.end, w.detach())
    torch.testing.assert_close(found.value, loss(BASE, *LEAVES))
    exact = hessian == "exact"
    for _ in range(2):
        for own, other in zip(found.pull_back(V), wanted, strict=True):
            torch.testing.assert_close(-rate * own, other, rtol=1e-9 if exact else 1e-5, atol=1e-12 if exact else 1e-6)


@pytest.mark.parametrize("hessian", ["exact", "finite-difference"])
def test_an_empty_leaf_has_an_empty_gradient(hessian: Any) -> None:
    none = torch.empty(0, dtype=torch.float64)
    found = VirtualSteps(lambda w, a, f: loss(w, LEAVES[0], f), BASE, (none, LEAVES[1]), Step(0.1), 2, hessian=hessian)
    whole = VirtualSteps(loss, BASE, LEAVES, Step(0.1), 2, hessian=hessian)
    empty, own = found.pull_back(V)
    assert empty.shape == (0,)
    torch.testing.assert_close(own, whole.pull_back(V)[1], rtol=1e-5, atol=1e-6)
