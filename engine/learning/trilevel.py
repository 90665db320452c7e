"""The hypergradient of three levels: an auxiliary model learns from the main one, and the architecture from both (paper 004).

Level 1: w_m minimises L_m(M, w_m; D1). Level 2: w_a minimises O = L_a(A, w_a; D2) + lambda QRS(f_m, f_a), where f_m are the
features that the trained main model gives the images of D2. Level 3: M and A minimise
P = L_m(M, w_m'; D3) + gamma L_a(A, w_a'; D4). Both inner levels are one step (Eqs. 5 to 10), or a few (Table 16); reference note
tetlo-darts, section 6.4, whose seven steps are numbered below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from engine.learning.hypergradient import WIDTH, Hessian, Loss, Step, both_gradients
from engine.learning.virtual import VirtualSteps

# (auxiliary weights, auxiliary architecture, the main model's features of the same images) -> a scalar
TransferLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Trilevel:
    """The five functions of the three levels, each pure in weights and architecture.

    ``main_training`` L_m on D1; ``main_features`` f_m (B, F) on D2, or what else of the main model the transfer reads;
    ``transfer`` O on D2; ``main_validation`` L_m on D3; ``auxiliary_validation`` L_a on D4. ``gamma`` weighs the last.
    ``through_step`` False leaves out how the architecture acts on the main validation loss through the main model's step (the
    first-order variant): the transfer's own chain stays. ``main_counts`` False leaves the main validation loss out of P
    ("auxiliary only", Table 5), though its value is still found.
    """

    main_training: Loss
    main_features: Loss
    transfer: TransferLoss
    main_validation: Loss
    auxiliary_validation: Loss
    gamma: float = 1.0
    through_step: bool = True
    main_counts: bool = True


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
    steps: int = 1,
) -> TrilevelGradient:
    """d P / d(M, A) by the seven steps; ``main`` and ``auxiliary`` are (weights, architecture, step of the weights).

    An auxiliary model without architecture parameters has an empty tensor of them: its terms vanish. ``steps`` steps are unrolled
    in either inner level, on the same batches. ``hessian="exact"`` takes exact Hessian products, ``"finite-difference"`` the
    published quotients of that ``width``. The two products through the main model's steps share one, because it is linear in its
    direction. At no time is more than one training graph held beside another pass, so the peak memory is that of a second-order
    DARTS step. Cost: about 9 forward and backward passes, where such a step takes 4; 8 for each further step.
    """
    w_m, m, step_m = main
    w_a, a, step_a = auxiliary
    of_main = VirtualSteps(levels.main_training, w_m, (m,), step_m, steps, hessian=hessian, width=width)  # 1: w_m'
    value_m, v_m, d_m = _main_validation(levels, of_main.end, m)  # 3
    with torch.no_grad():
        features = levels.main_features(of_main.end, m)
    of_auxiliary = VirtualSteps(  # 2: w_a'
        levels.transfer, w_a, (a, features), step_a, steps, hessian=hessian, width=width, keep=True
    )
    value_a, v_a, d_a = both_gradients(levels.auxiliary_validation, of_auxiliary.end, a)  # 4
    through_a, of_features = of_auxiliary.pull_back(v_a)  # 5: the auxiliary half
    through_m, u = _pulled_back(levels.main_features, of_main.end, m, of_features)  # 5: the main half
    scale = levels.gamma * step_a.rate
    v = v_m.sub_(u, alpha=scale) if levels.through_step else u.mul_(-scale)  # 6
    (h,) = of_main.pull_back(v)
    return TrilevelGradient(  # 7
        d_m - scale * through_m - step_m.rate * h,
        levels.gamma * d_a - scale * through_a,
        value_m,
        value_a,
        of_auxiliary.value,
    )


def _main_validation(levels: Trilevel, w: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L_m on D3 and its gradients for weights and architecture, which are zero where it does not count."""
    if levels.main_counts:
        return both_gradients(levels.main_validation, w, m)
    with torch.no_grad():
        return levels.main_validation(w, m), torch.zeros_like(w), torch.zeros_like(m)


def _pulled_back(features: Loss, w: Tensor, a: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """The features' vector-Jacobian product for the architecture and for the weights."""
    w, a = w.detach().requires_grad_(), a.detach().requires_grad_()
    with torch.enable_grad():
        f = features(w, a)
    of_weights, of_architecture = torch.autograd.grad(f, (w, a), cotangent)
    return of_architecture, of_weights
