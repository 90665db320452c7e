"""The kernel of meta-learning: MetaNTK of MAML, ANIL and multi-task learning from an NTK (MetaNTK-NAS, Eq. 10 and 11)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

MetaKernel = Literal["maml", "anil", "mtl"]


def metantk(
    theta: Tensor,
    *,
    tasks: int,
    query: int,
    support: int,
    kernel: MetaKernel = "maml",
    nngp: Tensor | None = None,
    time: float = math.inf,
    reg: float = 1e-3,
) -> Tensor:
    """Return Phi = S Theta S^T with S = [I, -blockdiag(A_1 .. A_tasks)], the kernel of the adapted queries.

    ``theta`` is the NTK of N = ``tasks * (query + support)`` samples, all queries first (task-major), then all supports
    (task-major), each count per task: (..., N, N) for the summed output, or (..., N, K, N, K) for K outputs (a shape that fits
    both is read as K outputs). Leading axes are a batch. The result is float64, (..., Q, Q) or (..., Q, K, Q, K) with
    Q = ``tasks * query``.

    ``kernel`` says what adapts in the inner loop: ``"maml"`` the whole network (A_i from ``theta``), ``"anil"`` the head
    (A_i from ``nngp``, shaped like ``theta`` up to the batch axes), ``"mtl"`` nothing (A_i = 0, so Phi is the query block).
    ``time`` is learning rate times steps of the inner loop, ``reg`` regularises its inverse; see :func:`adaptation`.

    An item of the batch with a non-finite entry comes back as NaN and leaves the others alone. Wrong shapes, dtypes and
    options are a ``ValueError``. Cost: O(tasks (support K)^3 + Q N^2 K^3) float64 operations an item.
    Source: the blocks of Eq. 11, in the equivalent form of the reference note, section 4.
    """
    _check_options(tasks, query, support, kernel, nngp, time, reg)
    total, queries = tasks * (query + support), tasks * query
    theta, outputs = _flattened("theta", theta, total)
    inner = theta
    if nngp is not None:
        inner, inner_outputs = _flattened("nngp", nngp, total)
        if inner_outputs != outputs or not _broadcastable(inner, theta):
            raise ValueError(f"nngp: shape {tuple(nngp.shape)} does not go with theta; expected the same kernel axes")
    bad = ~(_finite(theta) & _finite(inner))[..., None, None]
    theta, inner = torch.where(bad, 0.0, theta), torch.where(bad, 0.0, inner)
    corner = queries * (outputs or 1)
    if kernel == "mtl":
        phi = theta[..., :corner, :corner]
    else:
        k_qs = _task_blocks(inner[..., :corner, corner:], tasks)
        k_ss = _task_blocks(inner[..., corner:, corner:], tasks)
        phi = _sandwich(adaptation(k_qs, k_ss, time=time, reg=reg), theta)
    phi = torch.where(bad, math.nan, (phi + phi.mT) / 2)
    return phi if outputs is None else phi.unflatten(-1, (queries, outputs)).unflatten(-3, (queries, outputs))


def adaptation(k_qs: Tensor, k_ss: Tensor, *, time: float = math.inf, reg: float = 1e-3) -> Tensor:
    """Return A = K_qs (K_ss + reg I)^-1 (I - exp(-time K_ss)), (..., q, s), by one float64 eigendecomposition of K_ss.

    ``k_qs`` is (..., q, s), ``k_ss`` (..., s, s) symmetric and finite (its lower triangle is read). ``reg`` enters the inverse
    only, as published. The inverse is a pseudo-inverse (``pinvh``): eigenvalues of K_ss + reg I within s * eps of zero,
    relative to the largest, have inverse 0. So a zero eigenvalue with ``reg=0`` contributes nothing at any ``time``. At
    ``time=inf`` the exponential is 0 for every eigenvalue, zero ones among them, which then count as 1/reg; for a positive
    semi-definite joint kernel K_qs vanishes there and neither choice is seen. A negative eigenvalue grows with ``time``.
    """
    eigenvalues, vectors = torch.linalg.eigh(k_ss.double())
    shifted = eigenvalues + reg
    largest = shifted.abs().amax(-1, keepdim=True)
    invertible = shifted.abs() > shifted.shape[-1] * torch.finfo(torch.float64).eps * largest
    decayed = torch.ones_like(eigenvalues) if math.isinf(time) else -torch.expm1(-time * eigenvalues)
    # The inner where keeps 0/0 out, the outer one sets the pseudo-inverse.
    learned = torch.where(invertible, decayed / torch.where(invertible, shifted, 1.0), 0.0)
    return (k_qs.double() @ vectors * learned[..., None, :]) @ vectors.mT


def _sandwich(gain: Tensor, theta: Tensor) -> Tensor:
    """S Theta S^T for ``gain`` = A, (..., T, q, s), and ``theta`` (..., N, N)."""
    tasks, queries = gain.shape[-3], gain.shape[-3] * gain.shape[-2]
    placed = torch.eye(tasks, dtype=gain.dtype, device=gain.device)[:, None, :, None] * gain[..., None, :]
    identity = torch.eye(queries, dtype=gain.dtype, device=gain.device).expand(*gain.shape[:-3], -1, -1)
    selector = torch.cat([identity, -placed.flatten(-2).flatten(-3, -2)], -1)
    return selector @ theta @ selector.mT


def _task_blocks(matrix: Tensor, tasks: int) -> Tensor:
    """The diagonal blocks of (..., T*a, T*b) as (..., T, a, b)."""
    blocks = matrix.unflatten(-1, (tasks, -1)).unflatten(-3, (tasks, -1))
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)


def _finite(matrix: Tensor) -> Tensor:
    return matrix.isfinite().all(-1).all(-1)


def _broadcastable(inner: Tensor, theta: Tensor) -> bool:
    pairs = zip(reversed(inner.shape[:-2]), reversed(theta.shape[:-2]), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def _flattened(name: str, matrix: Tensor, total: int) -> tuple[Tensor, int | None]:
    """Return the kernel as float64 (..., N, N) or (..., N*K, N*K), and K where it has output axes."""
    if not matrix.is_floating_point():
        raise ValueError(f"{name}: dtype {matrix.dtype} is not a real floating-point type")
    shape = tuple(matrix.shape)
    if len(shape) >= 4 and shape[-4] == shape[-2] == total and shape[-3] == shape[-1] > 0:
        return matrix.double().flatten(-2).flatten(-3, -2), shape[-1]
    if shape[-2:] == (total, total):
        return matrix.double(), None
    raise ValueError(
        f"{name}: shape {shape} is neither (..., N, N) nor (..., N, K, N, K) with N = tasks * (query + support) = {total}"
    )


def _check_options(tasks: int, query: int, support: int, kernel: str, nngp: Tensor | None, time: float, reg: float) -> None:
    for name, count in (("tasks", tasks), ("query", query), ("support", support)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    if kernel not in ("maml", "anil", "mtl"):
        raise ValueError(f"kernel: {kernel!r} is not 'maml', 'anil' or 'mtl'")
    if (nngp is None) == (kernel == "anil"):
        raise ValueError(f"nngp: kernel='anil' needs it and the others do not take it (kernel={kernel!r})")
    if math.isnan(time) or time < 0:
        raise ValueError(f"time: expected a number from 0 to inf, got {time}")
    if not 0 <= reg < math.inf:
        raise ValueError(f"reg: expected a finite number of at least 0, got {reg}")
