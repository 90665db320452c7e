"""The dominant eigenvalue of a loss's Hessian by Lanczos on exact products (RobustDARTS, ICLR 2020, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def hessian_product(loss: Callable[[Tensor], Tensor], a: Tensor) -> Product:
    """v -> H v for the Hessian H of ``loss`` at ``a``, exact; the graph of the gradient is kept.

    Cost: a forward and backward pass with a graph, then about two passes a product.
    """
    a = a.detach().requires_grad_()
    with torch.enable_grad():
        (g,) = torch.autograd.grad(loss(a), a, create_graph=True)

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(g, a, v.view_as(g), retain_graph=True)[0]

    return product


def largest_eigenvalue(product: Product, start: Tensor, steps: int) -> float:
    """The largest eigenvalue of a symmetric matrix of which only products are known.

    ``steps`` Lanczos steps from ``start`` (of any shape), in float64 with full reorthogonalisation; they end early where the
    Krylov space does. A lower bound, within rounding, that no step lowers; exact after as many steps as there are different
    eigenvalues.
    """
    q = start.detach().double().reshape(-1)
    basis, diagonal, beside = [q / q.norm()], [], []
    for _ in range(min(steps, q.numel())):
        z = product(basis[-1].to(start).view_as(start)).double().reshape(-1)
        diagonal.append(z @ basis[-1])
        for _ in range(2):  # once more, because one pass loses orthogonality to rounding
            for vector in basis:
                z = z - (z @ vector) * vector
        norm = z.norm()
        if float(norm) <= 1e-10 * max(1.0, float(diagonal[0].abs())):
            break
        beside.append(norm)
        basis.append(z / norm)
    size = len(diagonal)
    tridiagonal = torch.diag(torch.stack(diagonal))
    for i in range(size - 1):
        tridiagonal[i, i + 1] = tridiagonal[i + 1, i] = beside[i]
    return float(torch.linalg.eigvalsh(tridiagonal)[-1])


def stop_epoch(
    eigenvalues: Sequence[float], *, factor: float = 1.3, window: int = 5, delta: int = 4, start: int = 10
) -> int | None:
    """The epoch whose cell an early stop returns, or None where the search goes on (RobustDARTS, section 5.2, and its code).

    ``eigenvalues`` are one an epoch, from the first. Each is averaged over ``window`` epochs around it; the search stops where
    the average has grown by more than ``factor`` within ``delta`` epochs, none before ``start``, and returns to the former.
    """
    last = len(eigenvalues) - 1 - window // 2  # the newest epoch that has a whole window
    before = last - delta
    if before < start:
        return None

    def average(epoch: int) -> float:
        part = eigenvalues[max(0, epoch - window // 2) : epoch + window // 2 + 1]
        return sum(part) / len(part)

    return before if average(before) > 0 and average(last) > factor * average(before) else None
