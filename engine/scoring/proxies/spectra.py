"""What the eigenvalues of NTK and MetaNTK say, in several reductions, from one streamed pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from engine.scoring.condition import condition_number
from engine.scoring.kernels import gram, last_linear, selects
from engine.scoring.meta import metantk
from engine.scoring.proxies.catalogue import META_KERNELS, REDUCTIONS
from engine.scoring.proxies.values import degenerate, scored
from engine.scoring.result import Score


def kernel_scores(
    model: nn.Module, images: Tensor, wanted: Collection[str], *, tasks: int = 0, query: int = 0, support: int = 0
) -> dict[str, Score]:
    """The ``wanted`` reductions of the NTK of ``images`` (N, ...) and, where they are ``tasks`` episodes (all queries first, then
    all supports, ``query`` and ``support`` a task), of the MetaNTKs.

    One forward pass, one backward pass to activations and one Gram matrix for all of them; the eigenvalues are in float64.
    """
    return spectral_scores(gram(model, images, parts_of(model, wanted)), wanted, tasks=tasks, query=query, support=support)


def parts_of(model: nn.Module, wanted: Collection[str]) -> Callable[[str, nn.Parameter], str | None]:
    """How :func:`engine.scoring.kernels.gram` is to divide the weights: the last linear layer is apart where ANIL is wanted."""
    anil = any(META_KERNELS[name][0] == "anil" for name in _kernels(wanted) & META_KERNELS.keys())
    head = f"{last_linear(model)}.weight" if anil else None
    selected = selects("weights", model)
    return lambda name, p: ("head" if name == head else "body") if selected(name, p) else None


def spectral_scores(
    parts: Mapping[str, Tensor], wanted: Collection[str], *, tasks: int = 0, query: int = 0, support: int = 0
) -> dict[str, Score]:
    """The scores of :func:`kernel_scores` from the parts of the NTK, each (N, N)."""
    theta = torch.stack(list(parts.values())).sum(0)
    found: dict[str, Score] = {}
    for name in sorted(_kernels(wanted)):
        if name == "ntk":
            matrix = theta
        else:
            kind, reg = META_KERNELS[name]
            nngp = parts["head"] if kind == "anil" else None
            matrix = metantk(theta, tasks=tasks, query=query, support=support, kernel=kind, nngp=nngp, reg=reg)
        found |= {key: score for key, score in reductions(matrix, name).items() if key in wanted}
    return found


def _kernels(wanted: Collection[str]) -> set[str]:
    return {name for name in ("ntk", *META_KERNELS) if any(f"{name}{suffix}" in wanted for suffix, _, _ in REDUCTIONS)}


def reductions(kernel: Tensor, name: str) -> dict[str, Score]:
    """Condition number, log-determinant, smallest eigenvalue and effective rank of a symmetric kernel (N, N), by full name.

    All carry the condition number's status: a kernel that is singular to its precision has no usable log-determinant either.
    """
    condition = condition_number(kernel)
    assert isinstance(condition, Score)
    names = [f"{name}{suffix}" for suffix, _, _ in REDUCTIONS]
    if condition.status == "nonfinite":
        return {key: scored(key, math.nan) for key in names}
    eigenvalues = torch.linalg.eigvalsh((kernel + kernel.mT).double() / 2)
    if not condition.ok:
        return {names[0]: Score(math.inf, "singular", names[0]), **{key: degenerate(key) for key in names[1:]}}
    shares = eigenvalues / eigenvalues.sum()
    rank = float((-(shares * shares.log()).sum()).exp())
    values = (condition.value, float(eigenvalues.log().sum()), float(eigenvalues[0]), rank)
    return {key: scored(key, value) for key, value in zip(names, values, strict=True)}
