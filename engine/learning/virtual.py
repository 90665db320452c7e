"""Virtual steps of the weights, and how what was learned in them depends on what the loss was given (DARTS, Eq. 7, unrolled).

One step is w_{t+1} = w_t - rate d_t with d_t = g(w_t, leaves) + decay w_t + m_t, the gradient, the penalty and the momentum's
inertia; a further one starts from m_{t+1} = momentum d_t. For a cotangent v of the last weights the adjoint runs backwards:

    v_d = v;  for t = T-1 .. 0:  leaves += d<g_t, v_d> / d leaves;  v = v - rate (decay v_d + d<g_t, v_d> / dw);
                                 v_d = v + momentum v_d

with everything in units of -rate, so that one step is the mixed product of :mod:`engine.learning.hypergradient`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from engine.learning.hypergradient import WIDTH, Hessian, Hypergradient, Loss, Step, both_gradients, derivatives
from engine.spaces.differentiable import weights_held


class VirtualSteps:
    """``steps`` steps of ``loss(w, *leaves)`` from weights (P,), and their adjoint.

    ``end`` are the last weights and ``value`` the loss at the first, detached. ``keep`` holds the graph of the last gradient for
    the adjoint, where it is computed again otherwise: less time, but the memory of a training graph in the meantime. Cost: a
    forward and backward pass a step; of the adjoint about 2 to 3 a step, by exact products or by finite differences alike.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        w: Tensor,
        leaves: tuple[Tensor, ...],
        step: Step,
        steps: int = 1,
        *,
        hessian: Hessian = "exact",
        width: float = WIDTH,
        keep: bool = False,
    ) -> None:
        self.loss, self.leaves, self.step, self.hessian, self.width = loss, leaves, step, hessian, width
        self.starts = [w.detach()]
        self.kept: tuple[Tensor, Tensor, tuple[Tensor, ...]] | None = None
        values = []
        for number in range(steps):
            last = keep and hessian == "exact" and number == steps - 1
            value, at, given, g = self._gradient(self.starts[-1], graph=last)
            if last:
                self.kept = at, g, given
            values.append(value.detach())
            self.starts.append(step.apply(self.starts[-1], g.detach()))
            if number + 1 < steps:
                step = step.following(self.starts[-2], g.detach())
        self.end, self.value = self.starts.pop(), values[0]

    def _gradient(self, w: Tensor, *, graph: bool) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        w = w.clone().requires_grad_()
        leaves = tuple(leaf.detach().clone().requires_grad_(graph) for leaf in self.leaves)
        with torch.enable_grad():
            value = self.loss(w, *leaves)
            (g,) = torch.autograd.grad(value, w, create_graph=graph)
        return value, w, leaves, g

    def pull_back(self, v: Tensor) -> tuple[Tensor, ...]:
        """d <end, v> / d leaves divided by -rate, in the leaves' shapes; an empty leaf has an empty gradient."""
        found = tuple(torch.zeros_like(leaf) for leaf in self.leaves)
        direction, rate = v, self.step.rate
        for number in reversed(range(len(self.starts))):
            of_weights, *of_leaves = self._product(number, direction, for_weights=number > 0)
            found = tuple(a + b for a, b in zip(found, of_leaves, strict=True))
            if number:
                v = v - rate * (self.step.decay * direction + of_weights)
                direction = v + self.step.momentum * direction
        return found

    def _product(self, number: int, v: Tensor, *, for_weights: bool) -> tuple[Tensor, ...]:
        """d <g_t, v> / d (w, leaves); the first is empty unless it is asked for."""
        empty = v.new_empty(0)
        if self.hessian == "exact":
            if self.kept is not None and number + 1 == len(self.starts):
                (w, g, leaves), self.kept = self.kept, None
            else:
                _, w, leaves, g = self._gradient(self.starts[number], graph=True)
            with nullcontext() if for_weights else weights_held():
                return derivatives(g, (w if for_weights else empty, *leaves), v)
        r = self.width / max(float(v.norm()), torch.finfo(v.dtype).tiny)
        ahead, behind = (self._first(torch.add(self.starts[number], v, alpha=sign * r), for_weights) for sign in (1, -1))
        return tuple((x - y).div_(2 * r) for x, y in zip(ahead, behind, strict=True))

    def _first(self, w: Tensor, for_weights: bool) -> tuple[Tensor, ...]:
        w = w.requires_grad_(for_weights)
        leaves = tuple(leaf.detach().clone().requires_grad_() for leaf in self.leaves)
        with torch.enable_grad():
            value = self.loss(w, *leaves)
        return derivatives(value, (w if for_weights else w.new_empty(0), *leaves))


def unrolled_order(
    training: Loss, validation: Loss, w: Tensor, a: Tensor, step: Step, steps: int, *, hessian: Hessian = "exact"
) -> Hypergradient:
    """d validation(w'(a), a) / da with w' so many steps of the training loss: DARTS's second order where it is one.

    The training loss it returns is the first step's. See :func:`engine.learning.hypergradient.second_order`, whose cost this has
    for one step.
    """
    moved = VirtualSteps(training, w, (a,), step, steps, hessian=hessian, keep=True)
    value, v, direct = both_gradients(validation, moved.end, a)
    (product,) = moved.pull_back(v)
    return Hypergradient(direct.sub(product, alpha=step.rate), value, moved.value)
