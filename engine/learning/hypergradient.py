"""Hypergradients: how architecture parameters act on a validation loss, directly and through a step of the weights.

Weights are one flat vector w (P,), architecture parameters one tensor a of any shape, and a loss is a pure function of both, so
what is differentiated is always two tensors. A gradient that is not asked for is not formed. Source: DARTS (ICLR 2019), Eqs. 5
to 8; reference note tetlo-darts, sections 1.6 and 6.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from engine.spaces.differentiable import weights_held

Loss = Callable[[Tensor, Tensor], Tensor]
Hessian = Literal["exact", "finite-difference"]

# R = 1e-2 / |v|, the published width of the finite difference.
WIDTH = 1e-2


def weight_gradient(loss: Loss, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, detached, and its gradient for the weights. One forward and one backward pass."""
    value, (found,) = _gradients(loss, w.detach().requires_grad_(), a.detach())
    return value, found


def architecture_gradient(loss: Loss, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, detached, and its gradient for the architecture; no weight gradients are formed on the way."""
    value, (found,) = _gradients(loss, w.detach(), a.detach().requires_grad_())
    return value, found


def both_gradients(loss: Loss, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, detached, and its gradients for weights and architecture. One forward and one backward pass."""
    value, (of_weights, of_architecture) = _gradients(loss, w.detach().requires_grad_(), a.detach().requires_grad_())
    return value, of_weights, of_architecture


def _gradients(loss: Loss, w: Tensor, a: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    with torch.enable_grad():
        value = loss(w, a)
    return value.detach(), derivatives(value, [x for x in (w, a) if x.requires_grad])


def derivatives(output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor | None = None) -> tuple[Tensor, ...]:
    """Gradients of an output for inputs; that of an empty input is empty, whether the output depends on it or not.

    So a model without architecture parameters has an empty tensor of them. An output that depends on none of the others is an
    error.
    """
    found = iter(torch.autograd.grad(output, [x for x in inputs if x.numel()], cotangent))
    return tuple(next(found) if x.numel() else torch.zeros_like(x) for x in inputs)


class Step(NamedTuple):
    """The virtual step of the weights w' = w - rate (0.9 m + g + decay w); see :func:`virtual_step`.

    ``inertia`` is 0.9 m, the momentum that the real step would add, or None for none; ``momentum`` says how much of its direction
    a step leaves to a further one.
    """

    rate: float
    decay: float = 0.0
    inertia: Tensor | None = None
    momentum: float = 0.0

    def apply(self, w: Tensor, gradient: Tensor) -> Tensor:
        """w' as a new tensor."""
        return torch.add(w, self._direction(w, gradient), alpha=-self.rate)

    def following(self, w: Tensor, gradient: Tensor) -> Step:
        """The step after this one."""
        return self._replace(inertia=self.momentum * self._direction(w, gradient))

    def _direction(self, w: Tensor, gradient: Tensor) -> Tensor:
        direction = gradient.add(w, alpha=self.decay)
        if self.inertia is not None:
            direction += self.inertia
        return direction


class Hypergradient(NamedTuple):
    """The gradient for the architecture, the validation loss it belongs to, and the training loss (first order: None)."""

    gradient: Tensor
    validation: Tensor
    training: Tensor | None


def first_order(validation: Loss, w: Tensor, a: Tensor) -> Hypergradient:
    """d validation(w, a) / da with the weights held (DARTS, xi = 0). One forward and backward without weight gradients."""
    value, gradient = architecture_gradient(validation, w, a)
    return Hypergradient(gradient, value, None)


def second_order(
    training: Loss, validation: Loss, w: Tensor, a: Tensor, step: Step, *, hessian: Hessian = "exact", width: float = WIDTH
) -> Hypergradient:
    """d validation(w'(a), a) / da with w' one step of the training loss (DARTS, Eq. 7).

    With v = d validation / dw' it is d validation / da - rate d<d training / dw, v> / da. ``hessian="exact"`` differentiates the
    graph of the training gradient once more (the training pass is shared with the step, at the price of keeping its graph);
    ``"finite-difference"`` is the published quotient of two architecture gradients at w +- R v, R = ``width`` / |v| (Eq. 8).
    In networks with ReLU and max pooling the quotient is not close to the exact product: it straddles kinks (note, section 6.5).
    Cost in forward and backward passes: about 4 exact, 4 by finite differences.
    """
    if hessian == "exact":
        return _second_order_exact(training, validation, w, a, step)
    start, g = weight_gradient(training, w, a)
    value, v, direct = both_gradients(validation, step.apply(w, g), a)
    product = finite_difference(training, w, a, v, width=width)
    return Hypergradient(direct.sub(product, alpha=step.rate), value, start)


def _second_order_exact(training: Loss, validation: Loss, w: Tensor, a: Tensor, step: Step) -> Hypergradient:
    w, a = w.detach().requires_grad_(), a.detach().requires_grad_()
    with torch.enable_grad():
        start = training(w, a)
        (g,) = torch.autograd.grad(start, w, create_graph=True)
    value, v, direct = both_gradients(validation, step.apply(w.detach(), g.detach()), a)
    with weights_held():
        (product,) = torch.autograd.grad(g, a, v)
    return Hypergradient(direct.sub(product, alpha=step.rate), value, start.detach())


def mixed_product(loss: Loss, w: Tensor, a: Tensor, v: Tensor, *, hessian: Hessian = "exact", width: float = WIDTH) -> Tensor:
    """d <d loss / dw, v> / da: the mixed second derivative times a direction v of the weights, in the shape of ``a``."""
    if hessian == "finite-difference":
        return finite_difference(loss, w, a, v, width=width)
    w, a = w.detach().requires_grad_(), a.detach().requires_grad_()
    with torch.enable_grad():
        (g,) = torch.autograd.grad(loss(w, a), w, create_graph=True)
    with weights_held():
        return torch.autograd.grad(g, a, v)[0]


def finite_difference(loss: Loss, w: Tensor, a: Tensor, v: Tensor, *, width: float = WIDTH) -> Tensor:
    """[d loss / da (w + R v) - d loss / da (w - R v)] / 2R with R = ``width`` / |v| (DARTS, Eq. 8); zero for v = 0."""
    norm = float(v.norm())
    if norm == 0:
        return torch.zeros_like(a)
    r = width / norm
    _, ahead = architecture_gradient(loss, torch.add(w, v, alpha=r), a)
    _, behind = architecture_gradient(loss, torch.add(w, v, alpha=-r), a)
    return (ahead - behind).div_(2 * r)
