"""The condition number of a kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.scoring.result import Score

MAX_ASYMMETRY = 1e-6
PUBLISHED_NAN = 100000.0
NONFINITE = Score(math.nan, "nonfinite", "condition_number")


def condition_number(kernel: Tensor, *, floor: float | None = None) -> Score | list[Score]:
    """Return kappa = largest / smallest eigenvalue of a symmetric kernel, with its status.

    ``kernel`` is (N, N) or, with K outputs, (N, K, N, K): one :class:`Score`. With one batch axis in front, (B, N, N) or
    (B, N, K, N, K): a list of B scores, each what its item alone would give.

    ``nonfinite`` (NaN): an entry is NaN or infinite. ``singular`` (inf): the smallest eigenvalue is negative, zero or below
    n * eps * largest (n = N or N*K rows, eps of the kernel's dtype), where rounding decides its sign; this never ranks as good.
    ``clamped``: ``floor`` was given and the smallest eigenvalue, singular or not, was below ``floor * largest`` and replaced
    by it, so the value is 1/floor; the default None never clamps.

    Decomposed in float64 whatever the dtype. Gradients computed in float32 perturb every eigenvalue by about 1e-7 * largest
    even when their Gram matrix is float64, so kappa is then good to about 1e-7 * kappa relative: a value above 1e6 from
    float32 gradients says "large" and no more.

    An asymmetry above 1e-6 of the largest entry is a ``ValueError``; below, the mean of kernel and transpose is taken.
    Cost: O(n^3) float64 operations an item.
    """
    if floor is not None and not 0 < floor <= 1:
        raise ValueError(f"floor: expected a share of the largest eigenvalue, above 0 and at most 1, got {floor}")
    matrices, batched = _as_batch(kernel)
    epsilon = matrices.shape[-1] * torch.finfo(kernel.dtype).eps
    finite = matrices.isfinite().all(-1).all(-1)
    # The condition number does not depend on the scale; dividing it out keeps huge and tiny kernels from overflowing.
    scale = matrices.abs().amax((-2, -1), keepdim=True)
    scaled = torch.where(finite[:, None, None], matrices / torch.where(scale > 0, scale, 1.0), 0.0)
    _check_symmetry(scaled)
    eigenvalues = torch.linalg.eigvalsh((scaled + scaled.mT) / 2)
    extremes = zip(finite.tolist(), eigenvalues[:, 0].tolist(), eigenvalues[:, -1].tolist(), strict=True)
    scores = [_score(smallest, largest, epsilon, floor) if usable else NONFINITE for usable, smallest, largest in extremes]
    return scores if batched else scores[0]


def published_condition(kernel: Tensor) -> list[Score]:
    """The condition numbers of kernels (B, n, n) as MetaNTK-NAS's code computes them (reference note, section 4).

    For ``--faithful``. The largest eigenvalue divided by the smallest, whatever its sign: a smallest one that rounding made
    negative gives a negative number, which ranks as excellent. Infinity becomes the largest float64, NaN becomes
    :data:`PUBLISHED_NAN`, so all values are finite; the statuses are those of :func:`condition_number`.
    """
    scores = []
    for matrix, sound in zip(kernel.double(), _listed(condition_number(kernel)), strict=True):
        if sound.status == "nonfinite":
            scores.append(Score(PUBLISHED_NAN, "nonfinite", sound.name))
            continue
        eigenvalues = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)
        value = float((eigenvalues[-1] / eigenvalues[0]).nan_to_num(PUBLISHED_NAN))
        scores.append(Score(value, sound.status, sound.name))
    return scores


def _listed(found: Score | list[Score]) -> list[Score]:
    return found if isinstance(found, list) else [found]


def _score(smallest: float, largest: float, epsilon: float, floor: float | None) -> Score:
    if largest > 0 and floor is not None and smallest < floor * largest:
        return Score(1 / floor, "clamped", "condition_number")
    if largest <= 0 or smallest <= epsilon * largest:
        return Score(math.inf, "singular", "condition_number")
    return Score(largest / smallest, "ok", "condition_number")


def _as_batch(kernel: Tensor) -> tuple[Tensor, bool]:
    """Return the kernel as float64 (B, n, n) and whether it came with a batch axis."""
    if not kernel.is_floating_point():
        raise ValueError(f"kernel: dtype {kernel.dtype} is not a real floating-point type")
    shape, axes = tuple(kernel.shape), kernel.ndim
    half = axes // 2
    if axes not in (2, 3, 4, 5) or shape[-2 * half : -half] != shape[-half:] or 0 in shape[-half:]:
        raise ValueError(f"kernel: shape {shape} is not (N, N), (N, K, N, K) or one of them behind a batch axis")
    size = math.prod(shape[-half:])
    return kernel.double().reshape(-1, size, size), axes % 2 == 1


def _check_symmetry(scaled: Tensor) -> None:
    asymmetry = (scaled - scaled.mT).abs().amax((-2, -1))
    worst = float(asymmetry.max()) if asymmetry.numel() else 0.0
    if worst > MAX_ASYMMETRY:
        item = int(asymmetry.argmax())
        raise ValueError(f"kernel: not symmetric, its transpose differs by {worst:.1e} of the largest entry (item {item})")
