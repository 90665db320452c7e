"""The hypergradient of three levels: an auxiliary model learns from the main one, and the architecture from both (paper 004).

Level 1: w_m minimises L_m(M, w_m; D1). Level 2: w_a minimises O = L_a(A, w_a; D2) + lambda QRS(f_m, f_a), where f_m are the
features that the trained main model gives the images of D2. Level 3: M and A minimise
P = L_m(M, w_m'; D3) + gamma L_a(A, w_a'; D4). Both inner levels are one step (Eqs. 5 to 10); reference note tetlo-darts, section
6.4, whose seven steps are numbered below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.learning.hypergradient import (
    WIDTH,
    Hessian,
    Loss,
    Step,
    both_gradients,
    mixed_product,
    weight_gradient,
)
from engine.spaces.differentiable import weights_held

# (auxiliary weights, auxiliary architecture, the main model's features of the same images) -> a scalar
TransferLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Trilevel:
    """The five functions of the three levels, each pure in weights and architecture.

    ``main_training`` L_m on D1; ``main_features`` f_m (B, F) on D2; ``transfer`` O on D2; ``main_validation`` L_m on D3;
    ``auxiliary_validation`` L_a on D4. ``gamma`` weighs the last. ``through_step`` False leaves out how the architecture acts on
    the main validation loss through the main model's step (the first-order variant): the transfer's own chain stays.
    """

    main_training: Loss
    main_features: Loss
    transfer: TransferLoss
    main_validation: Loss
    auxiliary_validation: Loss
    gamma: float = 1.0
    through_step: bool = True


class TrilevelGradient(NamedTuple):
    """dP/dM and dP/dA (for one tied architecture their sum is the gradient), and the losses they belong to, detached."""

    main: Tensor
    auxiliary: Tensor
    main_validation: Tensor
    auxiliary_validation: Tensor
    transfer: Tensor


def hypergradient(
    levels: Trilevel,
    main: tuple[Tensor, Tensor, Step],
    auxiliary: tuple[Tensor, Tensor, Step],
    *,
    hessian: Hessian = "exact",
    width: float = WIDTH,
) -> TrilevelGradient:
    """d P / d(M, A) by the seven steps; ``main`` and ``auxiliary`` are (weights, architecture, step of the weights).

    ``hessian="exact"`` takes exact Hessian products, ``"finite-difference"`` the published quotients of that ``width``. The two
    products through the main model's step share one, because it is linear in its direction. At no time is more than one training
    graph held beside another pass, so the peak memory is that of a second-order DARTS step. Cost: about 9 forward and backward
    passes, where such a step takes 4.
    """
    w_m, m, step_m = main
    w_a, a, step_a = auxiliary
    _, g_m = weight_gradient(levels.main_training, w_m, m)
    moved_m = step_m.apply(w_m, g_m)  # 1: w_m'
    value_m, v_m, d_m = both_gradients(levels.main_validation, moved_m, m)  # 3
    with torch.no_grad():
        features = levels.main_features(moved_m, m)
    transfer = _Transfer(levels, w_a, a, features, step_a, hessian, width)  # 2, 4, 5: the auxiliary half
    through_m, u = _pulled_back(levels.main_features, moved_m, m, transfer.of_features)  # 5: the main half
    scale = levels.gamma * step_a.rate
    v = v_m.sub_(u, alpha=scale) if levels.through_step else u.mul_(-scale)  # 6
    h = mixed_product(levels.main_training, w_m, m, v, hessian=hessian, width=width)
    return TrilevelGradient(  # 7
        d_m - scale * through_m - step_m.rate * h,
        levels.gamma * transfer.direct - scale * transfer.through_step,
        value_m,
        transfer.validation,
        transfer.value,
    )


class _Transfer:
    """Steps 2, 4 and 5 of the auxiliary model: what its validation loss says of its architecture and of the main features.

    ``direct`` is dL_a/dA at the moved weights; ``through_step`` and ``of_features`` are the derivatives of <dO/dw_a, v_a> for A
    and for f_m.
    """

    def __init__(
        self, levels: Trilevel, w: Tensor, a: Tensor, features: Tensor, step: Step, hessian: Hessian, width: float
    ) -> None:
        w, a, features = w.detach(), a.detach(), features.detach()
        if hessian == "exact":
            w.requires_grad_()
            leaves = a.clone().requires_grad_(), features.clone().requires_grad_()
            with torch.enable_grad():
                value = levels.transfer(w, *leaves)
                (g,) = torch.autograd.grad(value, w, create_graph=True)
            self.validation, v, self.direct = both_gradients(levels.auxiliary_validation, step.apply(w.detach(), g.detach()), a)
            with weights_held():
                self.through_step, self.of_features = torch.autograd.grad(g, leaves, v)
            self.value = value.detach()
            return
        self.value, g = weight_gradient(lambda w, a: levels.transfer(w, a, features), w, a)
        self.validation, v, self.direct = both_gradients(levels.auxiliary_validation, step.apply(w, g), a)
        r = width / max(float(v.norm()), torch.finfo(v.dtype).tiny)
        ahead, behind = (_for_leaves(levels.transfer, torch.add(w, v, alpha=s * r), a, features) for s in (1, -1))
        self.through_step, self.of_features = ((x - y).div_(2 * r) for x, y in zip(ahead, behind, strict=True))


def _for_leaves(loss: TransferLoss, w: Tensor, a: Tensor, features: Tensor) -> tuple[Tensor, ...]:
    a, features = a.detach().requires_grad_(), features.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(w, a, features)
    return torch.autograd.grad(value, (a, features))


def _pulled_back(features: Loss, w: Tensor, a: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """The features' vector-Jacobian product for the architecture and for the weights."""
    w, a = w.detach().requires_grad_(), a.detach().requires_grad_()
    with torch.enable_grad():
        f = features(w, a)
    of_weights, of_architecture = torch.autograd.grad(f, (w, a), cotangent)
    return of_architecture, of_weights
