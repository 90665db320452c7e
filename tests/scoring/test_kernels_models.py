"""Tangent kernels of awkward models against one autograd call a sample and output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_models import CASES, N
from torch import Tensor, nn

from engine.scoring import chunked
from engine.scoring.kernels import ntk

INTERACTING = {"batch_statistics"}


def jacobian(model: nn.Module, inputs: tuple[Any, ...], *, together: bool = False) -> Tensor:
    """(N, K, P) by the definition. ``together`` runs the whole batch at once, for models whose samples interact."""
    parameters = list(model.requires_grad_().parameters())

    def rows(batch: tuple[Any, ...]) -> Tensor:
        found = []
        for value in model(*batch).reshape(-1):
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            whole = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
            found.append(torch.cat([g.flatten() for g in whole]))
        return torch.stack(found)

    if together:
        return rows(inputs).unflatten(0, (N, -1))
    samples = [tuple(item[n : n + 1] if isinstance(item, Tensor) else item for item in inputs) for n in range(N)]
    return torch.stack([rows(sample) for sample in samples])


def expected(name: str, outputs: str) -> Tensor:
    model, inputs = CASES[name]()
    rows = jacobian(model, inputs, together=name in INTERACTING)
    if outputs == "sum":
        rows = rows.sum(1)
        return rows @ rows.T
    return torch.einsum("nkp,mlp->nkml", rows, rows)


def close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == torch.float64
    assert found.shape == wanted.shape
    assert wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_of_all_parameters_is_the_definition(name: str, outputs: Any) -> None:
    model, inputs = CASES[name]()
    close(ntk(model, inputs, outputs, "all"), expected(name, outputs))


@pytest.mark.parametrize("outputs", ["sum", "all"])
@pytest.mark.parametrize("name", [name for name in CASES if name not in INTERACTING])
def test_chunks_and_slices_do_not_change_the_kernel(name: str, outputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "FEWEST_BYTES", 0)
    model, inputs = CASES[name]()
    close(ntk(model, inputs, outputs, "all", chunk=3), expected(name, outputs))
