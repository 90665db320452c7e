"""Newton's method with conjugate gradients for many small regularised classifiers at once, in the span of their samples.

A linear classifier with an L2 penalty lies in the span of its N samples: its weights are ``W = A X`` with A (K, N), and its
logits on the samples ``F = A G + b 1^T`` with the Gram matrix G = X X^T. So a task costs N x N and not N x D numbers, however
wide the features are. All tasks go through the same iterations side by side (leading axis T); those that have arrived stand
still.

With the inner product <V, V'> = tr(V G V'^T) + b . b', the objective ``sum_n loss(F_n) + 1/2 tr(A G A^T)`` has the gradient
``(g + A, g 1)`` where g = dloss/dF, and the Hessian maps (V, v) to ``(H[U] + V, H[U] 1)`` with U = V G + v 1^T: no matrix is
formed or factored, and nothing is divided by the Gram matrix, which may be singular.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import NumericalError

MAX_NEWTON = 100
MAX_CONJUGATE = 200
MAX_HALVINGS = 30
FORCING = 0.1  # how far one Newton step's linear system is solved, relative to the gradient


class Loss(Protocol):
    """A convex loss of the logits F (T, K, N), summed over samples; ``penalty`` (scikit-learn's C) included."""

    def value(self, logits: Tensor) -> Tensor:
        """(T,)."""
        ...

    def gradient(self, logits: Tensor) -> Tensor:
        """(T, K, N)."""
        ...

    def curvature(self, logits: Tensor) -> Callable[[Tensor], Tensor]:
        """The (generalised) Hessian at ``logits``, as a function of a direction (T, K, N)."""
        ...


@dataclass(frozen=True)
class Point:
    """Coefficients A and their products A G, both (T, K, N), and biases b (T, K, 1); a classifier, or a step between two."""

    a: Tensor
    ag: Tensor
    b: Tensor

    @property
    def logits(self) -> Tensor:
        """F = A G + b 1^T."""
        return self.ag + self.b

    def plus(self, other: Point, rate: Tensor) -> Point:
        """This point and ``rate`` (T, 1, 1) times the other."""
        parts = zip((self.a, self.ag, self.b), (other.a, other.ag, other.b), strict=True)
        return Point(*(torch.addcmul(mine, theirs, rate) for mine, theirs in parts))

    def dot(self, other: Point) -> Tensor:
        """The inner product of each task, (T, 1, 1)."""
        return (self.a * other.ag).sum((1, 2), keepdim=True) + (self.b * other.b).sum((1, 2), keepdim=True)


def minimise(gram: Tensor, loss: Loss, outputs: int, *, bias: bool, tolerance: float) -> tuple[Tensor, Tensor]:
    """Minimise ``sum loss(F) + 1/2 tr(A G A^T)`` for T tasks; ``gram`` (T, N, N) -> A (T, K, N) and b (T, K).

    ``bias=False`` keeps b at zero. A task has arrived when its gradient's norm is at most ``tolerance`` times its first one's, or
    rounding. Not arriving within 100 Newton steps is a :class:`NumericalError`. Cost: about 30 products (K, N) x (N, N) a task,
    with a synchronisation each.
    """
    zero = gram.new_zeros(len(gram), outputs, gram.shape[-1])
    point = Point(zero, zero, zero[..., :1])
    goal: Tensor | None = None
    for _ in range(MAX_NEWTON):
        inner = loss.gradient(point.logits)
        gradient = Point(inner + point.a, torch.bmm(inner, gram) + point.ag, inner.sum(2, keepdim=True) * bias)
        squared = gradient.dot(gradient)
        goal = torch.maximum(tolerance**2 * squared, _rounding(gram, inner)) if goal is None else goal
        active = squared > goal
        if not bool(active.any()):
            return point.a, point.b[..., 0]
        step = _conjugate(gram, loss.curvature(point.logits), gradient, torch.maximum(goal, FORCING**2 * squared), bias)
        point = _descend(loss, point, step, gradient, active)
    raise NumericalError(
        f"a few-shot classifier has not converged in {MAX_NEWTON} steps; check the features or lower the penalty"
    )


def _rounding(gram: Tensor, gradient: Tensor) -> Tensor:
    """The squared norm of a gradient that is nothing but rounding, (T, 1, 1): of samples that do not differ, say."""
    largest = 1 + gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]  # the bias is the weight of a feature that is always 1
    return (10 * torch.finfo(gram.dtype).eps) ** 2 * largest * gradient.square().sum((1, 2), keepdim=True)


def _conjugate(gram: Tensor, curvature: Callable[[Tensor], Tensor], gradient: Point, goal: Tensor, bias: bool) -> Point:
    """Solve Hessian . step = -gradient by conjugate gradients until each task's squared residual is at most its ``goal``."""
    zero = torch.zeros_like(gradient.a)
    step, residual, direction = Point(zero, zero, zero[..., :1]), gradient, gradient
    remaining = gradient.dot(gradient)
    for _ in range(MAX_CONJUGATE):
        active = remaining > goal
        if not bool(active.any()):
            break
        inner = curvature(direction.logits)
        image = Point(inner + direction.a, torch.bmm(inner, gram) + direction.ag, inner.sum(2, keepdim=True) * bias)
        rate = torch.where(active, -remaining / direction.dot(image), 0.0)
        step, residual = step.plus(direction, rate), residual.plus(image, rate)
        after = residual.dot(residual)
        direction = residual.plus(direction, torch.where(active, after / remaining, 0.0))
        remaining = after
    return step


def _descend(loss: Loss, point: Point, step: Point, gradient: Point, active: Tensor) -> Point:
    """Take the step, halved for the tasks whose objective it would not lower enough (Armijo, 1e-4).

    What rounding may add to the objective is allowed for: near the minimum nothing else is left to see.
    """
    rate = active.to(point.a.dtype)
    slope = gradient.dot(step)
    before = _objective(loss, point)
    allowed = before + 8 * torch.finfo(before.dtype).eps * before.abs()
    for _ in range(MAX_HALVINGS):
        moved = point.plus(step, rate)
        failed = _objective(loss, moved) > allowed + 1e-4 * rate * slope
        if not bool(failed.any()):
            break
        rate = torch.where(failed, rate / 2, rate)
    return moved


def _objective(loss: Loss, point: Point) -> Tensor:
    return loss.value(point.logits)[:, None, None] + 0.5 * (point.a * point.ag).sum((1, 2), keepdim=True)
